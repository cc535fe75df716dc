//! Wrong tables: at a start nothing runs, at a reload everything goes on as it was.

use std::fs;
use std::process::Output;

use belfry_tests::Instance;
use belfry_tests::net::free_port;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_error_is_told_at_start_and_nothing_is_started() {
    let mut instance = Instance::bare();
    instance
        .parameter("max_idle", "soon")
        .parameter("max_use", "-1")
        .service("smtp INET n - - - - smtpd")
        .service("a unix N - - x - qmgr")
        .service("b unix - -")
        .service("c unix - - - - - qmgr {x");
    instance.write();
    for command in ["check", "start", "start-fg"] {
        let output = instance.belfry(&[command]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        let said = said(&output);
        for text in [
            "main.cf:9:12: parameter max_idle: bad value: \"soon\"\n",
            "main.cf:10:11: parameter max_use: bad value: \"-1\"\n",
            "master.cf:1:6: bad transport type: INET\n",
            "master.cf:2:8: field \"private\": bad value: \"N\"\n",
            "master.cf:2:14: field \"wakeup\": bad value: \"x\"\n",
            "master.cf:3:11: missing \"chroot\" field\n",
            "master.cf:4:23: missing '}' in \"{x\"\n",
            "1 | smtp INET n - - - - smtpd\n  |      ^^^^\n  = help: ",
            "belfry: fatal: 7 errors in the configuration\n",
        ] {
            assert!(said.contains(text), "{command}: {text}: {said}");
        }
    }
    assert!(!instance.queue().join("pid/master.pid").exists(), "a master was started");
    instance.finish(&[]);
}

#[test]
fn the_master_itself_tells_every_error_and_ends_with_1() {
    let mut instance = Instance::bare();
    instance.service("a unix N - - - - qmgr").service("b unix - - - - soon qmgr");
    instance.write();
    let output = instance.command("master").arg("-c").arg(instance.config()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(said.contains("master.cf:1:8: field \"private\": bad value: \"N\""), "{said}");
    assert!(
        said.contains("master.cf:2:16: field \"process limit\": bad value: \"soon\""),
        "{said}"
    );
    instance.finish(&[]);
}

#[test]
fn a_missing_file_is_told_by_name() {
    let instance = Instance::bare();
    instance.write();
    let table = instance.config().join("master.cf");
    fs::remove_file(&table).unwrap();
    let output = instance.belfry(&["start"]);
    assert_eq!(output.status.code(), Some(1));
    let text = format!("open {}: No such file or directory\n", table.display());
    assert!(said(&output).contains(&text), "{}", said(&output));
    instance.finish(&[]);
}

#[test]
fn a_bad_reload_is_told_and_changes_nothing() {
    let mut instance = Instance::bare();
    let port = free_port();
    // No client ever comes: what the command is does not matter here.
    let line = format!("127.0.0.1:{port} inet n - - - - smtpd");
    instance.service(&line).start();
    let pid = instance.master_pid();
    let table = instance.config().join("master.cf");
    fs::write(&table, format!("{line}\nextra unix - - - x - qmgr\n")).unwrap();
    let output = instance.belfry(&["reload"]);
    assert_eq!(output.status.code(), Some(1));
    let text = said(&output);
    assert!(text.contains("master.cf:2:18: field \"wakeup\": bad value: \"x\""), "{text}");
    instance.log().wait_for("error: reload refused: 1 error;");
    let status = instance.belfry(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains(&format!("127.0.0.1:{port}")) && !status.contains("extra"), "{status}");
    assert!(!instance.queue().join("private/extra").exists(), "a socket of the bad table is there");

    fs::write(&table, format!("{line}\nextra unix - - - - - qmgr\n")).unwrap();
    let output = instance.belfry(&["reload"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    instance.log().wait_for("reload done: 1 added, 0 removed");
    assert!(instance.queue().join("private/extra").exists());
    assert_eq!(instance.master_pid(), pid);
    instance.finish(&["master.cf:2:18", "reload refused: 1 error;"]);
}

#[test]
fn commands_without_a_master_say_so() {
    let mut instance = Instance::bare();
    instance.service("a unix - - - - - qmgr");
    instance.write();
    for command in ["stop", "reload", "abort", "status"] {
        let output = instance.belfry(&[command]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert!(said(&output).contains("the Belfry mail system is not running"), "{command}");
    }
    let output = instance.belfry(&["sing"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("unknown command: sing; usage: belfry "), "{}", said(&output));
    instance.finish(&[]);
}

#[test]
fn start_and_stop_by_the_operators_command() {
    let mut instance = Instance::bare();
    instance.service("a unix - - - - - qmgr");
    instance.write();
    let output = instance.belfry(&["start"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let again = instance.belfry(&["start"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(said(&again).contains("already running"), "{}", said(&again));
    let status = instance.belfry(&["status"]);
    assert_eq!(status.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&status.stdout).contains("is running: PID: "));
    let output = instance.belfry(&["stop"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    instance.finish(&[]);
}

#[test]
fn w13_check_makes_what_is_missing() {
    let instance = Instance::bare();
    instance.write();
    let missing = ["q/private", "q/public", "q/maildrop", "q/queue", "q/pid", "d"];
    for name in missing {
        fs::remove_dir(instance.root().join(name)).unwrap();
    }
    let output = instance.belfry(&["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    for name in missing {
        assert!(instance.root().join(name).is_dir(), "{name}");
    }
    instance.finish(&[]);
}

/// A file that was cut short ended every service.
#[test]
fn a_table_without_services_is_refused_at_reload_unless_it_is_wanted() {
    let mut instance = Instance::bare();
    instance.service("a unix n - - - - qmgr").start();
    let socket = instance.queue().join("public/a");
    let table = instance.config().join("master.cf");
    for text in ["", "# a unix n - - - - qmgr\n"] {
        fs::write(&table, text).unwrap();
        for words in [&["reload"][..], &["reload", "--changed"]] {
            let output = instance.belfry(words);
            assert_eq!(output.status.code(), Some(1), "{text:?}");
            let reason =
                "master.cf: it has no service; to end all of them: belfry reload --allow-empty";
            assert!(said(&output).contains(reason), "{}", said(&output));
            assert!(socket.exists());
        }
    }
    let output = instance.belfry(&["reload", "--allow-empty"]);
    assert!(output.status.success(), "{}", said(&output));
    instance.log().wait_for("reload done: 0 added, 1 removed");
    assert!(!socket.exists());
    instance.finish(&["it has no service", "reload refused: 1 error"]);
}
