//! Reloads, and starts that are refused.

use std::fs;

use belfry_tests::probe::Probe;
use belfry_tests::{Instance, net, wait};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn add_line(instance: &Instance, line: &str) {
    let path = instance.config().join("master.cf");
    let table = fs::read_to_string(&path).expect("the instance has a table");
    fs::write(path, table + line + "\n").expect("/tmp has room");
}

#[test]
fn w01_a_bad_line_at_reload_changes_nothing_and_belfry_prints_it() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    instance.service(&format!("127.0.0.1:{port} inet n n n - 3 probe_worker")).start();
    let pid = Probe::tcp(port).unwrap().report().unwrap()["pid"].clone();
    wait::until("the worker to be idle again", wait::LONG, || {
        let status = text(&instance.belfry(&["status", "--json"]).stdout);
        let row: serde_json::Value = serde_json::from_str(status.lines().nth(1)?).ok()?;
        (row["idle"] == 1).then_some(())
    });
    add_line(&instance, "x unix N - - soon - p");
    let reload = instance.belfry(&["reload"]);
    assert_eq!(reload.status.code(), Some(1));
    let errors = text(&reload.stderr);
    let file = instance.config().join("master.cf").display().to_string();
    assert!(
        errors.contains(&format!("{file}:2:8: field \"private\": bad value: \"N\"")),
        "{errors}"
    );
    assert!(
        errors.contains(&format!("{file}:2:14: field \"wakeup\": bad value: \"soon\"")),
        "{errors}"
    );
    assert!(errors.contains("2 | x unix N - - soon - p"), "{errors}");
    assert!(errors.contains("= help: y, n, or - for the default"), "{errors}");
    instance.log().wait_for("reload refused: 2 errors");
    assert_eq!(Probe::tcp(port).unwrap().report().unwrap()["pid"], pid, "the same worker serves");
    instance.finish(&["bad value", "reload refused"]);
}

#[test]
fn c06_w01_a_main_cf_that_cannot_be_read_at_reload_changes_nothing() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    instance.service(&format!("127.0.0.1:{port} inet n n n - 3 probe_worker")).start();
    let path = instance.config().join("main.cf");
    let main_cf = fs::read_to_string(&path).unwrap();
    fs::write(&path, main_cf.clone() + "max_idle = soon\n").unwrap();
    let reload = instance.belfry(&["reload"]);
    assert_eq!(reload.status.code(), Some(1));
    assert!(text(&reload.stderr).contains("parameter max_idle: bad value: \"soon\""), "{reload:?}");
    fs::write(&path, main_cf).unwrap();
    assert!(Probe::tcp(port).unwrap().report().is_ok());
    assert!(instance.belfry(&["reload"]).status.success());
    instance.finish(&["parameter max_idle", "reload refused"]);
}

#[test]
fn o02_o03_services_come_and_go_and_workers_finish_their_clients() {
    let mut instance = Instance::bare();
    let (kept, added) = (net::free_port(), net::free_port());
    instance
        .service(&format!("127.0.0.1:{kept} inet n n n - 3 probe_worker"))
        .service("gone unix n n n - 3 probe_worker");
    instance.start();
    let mut client = Probe::tcp(kept).unwrap();
    let old = client.report().unwrap()["pid"].clone();
    let gone = instance.queue().join("public/gone");
    assert!(Probe::unix(&gone).unwrap().report().is_ok());
    let table = format!(
        "127.0.0.1:{kept} inet n n n - 3 probe_worker -x\n127.0.0.1:{added} inet n n n - 3 probe_worker\n"
    );
    fs::write(instance.config().join("master.cf"), table).unwrap();
    let diff = instance.belfry(&["diff"]);
    let want = format!("+ 127.0.0.1:{added} inet\n~ 127.0.0.1:{kept} inet\n- public/gone unix\n");
    assert_eq!(text(&diff.stdout), want);
    let reload = instance.belfry(&["reload"]);
    assert!(reload.status.success(), "{reload:?}");
    assert!(text(&reload.stdout).contains("reload done: 1 added, 1 removed, 1 changed, 0 kept"));
    assert!(Probe::tcp(added).unwrap().report().is_ok());
    assert!(!gone.exists(), "W21: the socket of a removed service is removed");
    let new = Probe::tcp(kept).unwrap().report().unwrap();
    assert_ne!(new["pid"], old);
    assert!(new["argv"].ends_with("|-x"));
    assert_eq!(client.report().unwrap()["pid"], old, "a client in progress is not dropped");
    drop(client);
    wait::until("the old worker to end", wait::LONG, || {
        let left = instance.workers("probe_worker");
        (!left.iter().any(|w| w.pid.to_string() == old)).then_some(())
    });
    instance.finish(&[]);
}

#[test]
fn o01_sighup_reloads() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker").start();
    add_line(&instance, "b unix n n n - 3 probe_worker");
    let master = belfry_tests::process::Process::read(instance.master_pid()).unwrap();
    master.signal(nix::sys::signal::Signal::SIGHUP);
    instance.log().wait_for("reload done: 1 added");
    assert!(Probe::unix(&instance.queue().join("public/b")).unwrap().report().is_ok());
    instance.finish(&[]);
}

#[test]
fn w02_a_busy_port_at_reload_stops_one_service_which_is_tried_again() {
    let mut instance = Instance::bare();
    let (busy, fine) = (std::net::TcpListener::bind("127.0.0.1:0").unwrap(), net::free_port());
    let port = busy.local_addr().unwrap().port();
    instance.service("a unix n n n - 3 probe_worker").start();
    add_line(&instance, &format!("127.0.0.1:{port} inet n n n - 3 probe_worker"));
    add_line(&instance, &format!("127.0.0.1:{fine} inet n n n - 3 probe_worker"));
    assert!(instance.belfry(&["reload"]).status.success());
    let reason = format!("bind 127.0.0.1 port {port}: Address already in use");
    instance.log().wait_for(&reason);
    assert!(Probe::tcp(fine).unwrap().report().is_ok());
    let status = text(&instance.belfry(&["status"]).stdout);
    assert!(status.contains("bind-failed") && status.contains(&reason), "{status}");
    drop(busy);
    instance.log().wait_for(": listening");
    assert!(Probe::tcp(port).unwrap().report().is_ok());
    instance.finish(&["Address already in use"]);
}

#[test]
fn w02_a_busy_port_at_the_start_is_told_and_nothing_starts() {
    let mut instance = Instance::bare();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port();
    instance.service(&format!("127.0.0.1:{port} inet n n n - 3 probe_worker")).write();
    let start = instance.belfry(&["start"]);
    assert_eq!(start.status.code(), Some(1));
    let errors = text(&start.stderr);
    assert!(
        errors.contains(&format!("bind 127.0.0.1 port {port}: Address already in use")),
        "{errors}"
    );
    assert_eq!(instance.belfry(&["status"]).status.code(), Some(1));
    instance.finish(&["Address already in use"]);
}

#[test]
fn w03_a_removed_worker_that_ignores_sigterm_stops_nobody_and_is_killed() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    instance
        .service("deaf unix n n n - 3 probe_worker ignore-term ignore-end")
        .service(&format!("127.0.0.1:{port} inet n n n - 3 probe_worker"))
        .parameter("stop_kill_time", "2s");
    instance.start();
    let mut deaf = Probe::unix(&instance.queue().join("public/deaf")).unwrap();
    deaf.ask("hold").unwrap();
    let table = format!("127.0.0.1:{port} inet n n n - 3 probe_worker\n");
    fs::write(instance.config().join("master.cf"), table).unwrap();
    assert!(instance.belfry(&["reload"]).status.success());
    assert!(Probe::tcp(port).unwrap().report().is_ok(), "the others are served meanwhile");
    let status = text(&instance.belfry(&["status"]).stdout);
    assert!(status.contains("stopping"), "{status}");
    instance.log().wait_for("killed by signal 9");
    wait::until("the service to be forgotten", wait::LONG, || {
        let status = text(&instance.belfry(&["status"]).stdout);
        (!status.contains("deaf")).then_some(())
    });
    instance.finish(&["killed by signal 9"]);
}

#[test]
fn w08_a_worker_between_accept_and_its_word_does_not_stall_the_service() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    instance.service(&format!("127.0.0.1:{port} inet n n n - 5 probe_worker slow=1500")).start();
    // The worker is on its way up, and counts as idle, when the reload retires it.
    let mut first = Probe::tcp(port).unwrap();
    first.say("hold").unwrap();
    wait::until("the first worker", wait::LONG, || {
        (instance.workers("probe_worker").len() == 1).then_some(())
    });
    assert!(instance.belfry(&["reload"]).status.success());
    let mut second = Probe::tcp(port).unwrap();
    assert!(second.ask("hold").is_ok());
    assert!(first.ask("hold").is_ok());
    instance.finish(&[]);
}

#[test]
fn w09_inet_interfaces_changes_at_reload() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    instance.parameter("inet_interfaces", "127.0.0.1");
    instance.service(&format!("{port} inet n n n - 3 probe_worker")).start();
    assert!(Probe::tcp(port).unwrap().report().is_ok());
    assert!(std::net::TcpStream::connect(("127.0.0.3", port)).is_err());
    let path = instance.config().join("main.cf");
    let main_cf = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        main_cf.replace("inet_interfaces = 127.0.0.1", "inet_interfaces = 127.0.0.1 127.0.0.3"),
    )
    .unwrap();
    assert!(instance.belfry(&["reload"]).status.success());
    assert!(std::net::TcpStream::connect(("127.0.0.3", port)).is_ok());
    assert!(Probe::tcp(port).unwrap().report().unwrap()["argv"].ends_with("-s|2"));
    instance.finish(&[]);
}

#[test]
fn w15_reload_changed_renews_only_workers_of_changed_services() {
    let mut instance = Instance::bare();
    let (same, other) = (net::free_port(), net::free_port());
    instance
        .service(&format!("127.0.0.1:{same} inet n n n - 3 probe_worker"))
        .service(&format!("127.0.0.1:{other} inet n n n - 3 probe_worker"));
    instance.start();
    let pid = |port| Probe::tcp(port).unwrap().report().unwrap()["pid"].clone();
    let (first, second) = (pid(same), pid(other));
    let table = format!(
        "127.0.0.1:{same} inet n n n - 3 probe_worker\n127.0.0.1:{other} inet n n n - 4 probe_worker\n"
    );
    fs::write(instance.config().join("master.cf"), table).unwrap();
    assert!(instance.belfry(&["reload", "--changed"]).status.success());
    assert_eq!(pid(same), first);
    assert_ne!(pid(other), second);
    instance.finish(&[]);
}

#[test]
fn names_are_resolved_at_reload_without_stopping_the_loop() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker").start();
    let port = net::free_port();
    add_line(&instance, &format!("localhost:{port} inet n n n - 3 probe_worker"));
    let reload = instance.belfry(&["reload"]);
    assert!(reload.status.success(), "{reload:?}");
    assert!(Probe::tcp(port).unwrap().report().is_ok());
    add_line(&instance, "no-such-host.invalid:1 inet n n n - 3 probe_worker");
    let reload = instance.belfry(&["reload"]);
    assert_eq!(reload.status.code(), Some(1));
    assert!(text(&reload.stderr).contains("bad hostname or network address"), "{reload:?}");
    instance.finish(&["bad hostname", "reload refused"]);
}

#[test]
fn every_error_of_a_table_at_the_start_is_listed_and_nothing_starts() {
    let mut instance = Instance::bare();
    instance.service("a unix N n n - 3 p").service("b unix").service("c unix n n n - -1 p").write();
    for words in [&["start"][..], &["check"]] {
        let refused = instance.belfry(words);
        assert_eq!(refused.status.code(), Some(1));
        let errors = text(&refused.stderr);
        for part in [
            ":1:8: field \"private\"",
            ":2:7: missing",
            ":3:16: field \"process limit\"",
            "3 errors",
        ] {
            assert!(errors.contains(part), "{part}: {errors}");
        }
    }
    let status = instance.belfry(&["status"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(text(&status.stderr).contains("the Belfry mail system is not running"));
    fs::remove_file(instance.config().join("master.cf")).unwrap();
    let refused = instance.belfry(&["check"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("master.cf: No such file or directory"), "{refused:?}");
    instance.finish(&[]);
}

#[test]
fn a17_b03_a_second_master_is_refused_and_the_first_goes_on() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker").start();
    let start = instance.belfry(&["start"]);
    assert_eq!(start.status.code(), Some(1));
    assert!(text(&start.stderr).contains("fatal: the Belfry mail system is already running"));
    let second = instance.command("master").arg("-w").output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let errors = text(&second.stderr);
    let line = "open lock file pid/master.pid: unable to set exclusive lock: Resource temporarily unavailable";
    assert!(errors.contains(line), "{errors}");
    assert!(Probe::unix(&instance.queue().join("public/a")).unwrap().report().is_ok());
    let test = instance.command("master").arg("-t").output().unwrap();
    assert_eq!(test.status.code(), Some(1), "A08: a master runs");
    instance.stop();
    let test = instance.command("master").arg("-t").output().unwrap();
    assert_eq!(test.status.code(), Some(0), "A08: none runs");
    instance.finish(&["unable to set exclusive lock: Resource temporarily unavailable"]);
}

#[test]
fn p05_belfry_starts_and_stops() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker").write();
    let start = instance.belfry(&["start"]);
    assert!(start.status.success(), "{start:?}");
    assert_eq!(text(&start.stdout), "belfry: starting the Belfry mail system\n");
    assert!(Probe::unix(&instance.queue().join("public/a")).unwrap().report().is_ok());
    let status = text(&instance.belfry(&["status"]).stdout);
    assert!(status.contains("the Belfry mail system is running: PID: "), "{status}");
    let stop = instance.belfry(&["stop"]);
    assert!(stop.status.success(), "{stop:?}");
    let stop = instance.belfry(&["stop"]);
    assert_eq!(stop.status.code(), Some(1));
    assert!(text(&stop.stderr).contains("fatal: the Belfry mail system is not running"));
    assert!(belfry_tests::process::below(instance.root()).is_empty(), "nobody is left");
    assert!(instance.belfry(&["start"]).status.success());
    assert!(instance.belfry(&["abort"]).status.success());
    wait::until("everybody to be gone", wait::LONG, || {
        belfry_tests::process::below(instance.root()).is_empty().then_some(())
    });
    instance.finish(&[]);
}
