//! Another program goes on in the place of the running master.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use belfry_tests::instance::copy_program;
use belfry_tests::probe::Probe;
use belfry_tests::process::Process;
use belfry_tests::{Instance, net, wait};
use nix::sys::signal::Signal;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An instance whose master can be replaced.
fn instance() -> Instance {
    let mut instance = Instance::bare();
    instance.own_programs(&["master", "belfry", "probe_worker"]);
    instance
}

fn program(instance: &Instance) -> PathBuf {
    instance.root().join("bin/master")
}

/// Installs a master as a package manager does: under a new inode.
fn install(instance: &Instance, program_text: &[u8]) {
    let (new, path) = (instance.root().join("bin/new"), program(instance));
    let text = instance.root().join("text");
    fs::write(&text, program_text).expect("/tmp has room");
    copy_program(&text, &new);
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("it is ours");
    fs::rename(new, path).expect("it is ours");
}

fn status(instance: &Instance, name: &str) -> serde_json::Value {
    let output = instance.belfry(&["status", name, "--json"]);
    serde_json::from_slice(&output.stdout).expect("belfry prints an object")
}

#[test]
fn w22_an_upgrade_keeps_the_process_the_sockets_and_every_client() {
    let mut instance = instance();
    let port = net::free_port();
    instance
        .service(&format!("127.0.0.1:{port} inet n n n - 10 probe_worker"))
        .service("side unix n n n - 3 probe_worker")
        .service("woken fifo n n n 300 1 probe_worker");
    instance.start();
    let mut client = Probe::tcp(port).unwrap();
    let old_worker = client.report().unwrap()["pid"].clone();
    let side = instance.queue().join("public/side");
    assert!(Probe::unix(&side).unwrap().report().is_ok());
    let (pid, before) = (instance.master_pid(), status(&instance, "side"));
    let exe = || fs::read_link(format!("/proc/{pid}/exe")).unwrap().display().to_string();
    install(&instance, &fs::read(program(&instance)).unwrap());
    assert!(exe().ends_with(" (deleted)"), "the old program still runs: {}", exe());

    // Clients come all the while, one after the other; each must be answered.
    let (over, served) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let report = Probe::tcp(port).and_then(|mut probe| probe.report());
                assert!(report.is_ok(), "a client in the middle of the upgrade: {report:?}");
                served.store(true, Ordering::SeqCst);
            }
        });
        wait::until("the first of them", wait::LONG, || {
            served.load(Ordering::SeqCst).then_some(())
        });
        for _ in 0..3 {
            let upgrade = instance.belfry(&["upgrade"]);
            let said = text(&upgrade.stdout);
            assert!(upgrade.status.success(), "{upgrade:?}");
            assert!(
                said.contains("upgraded from version 0.1.0 to 0.1.0 with 3 services"),
                "{said}"
            );
            assert!(said.contains("reload done: 0 added, 0 removed, 0 changed, 3 kept"), "{said}");
        }
        over.store(true, Ordering::SeqCst);
    });

    assert_eq!(exe(), program(&instance).display().to_string(), "the new program, process {pid}");
    assert_eq!(client.report().unwrap()["pid"], old_worker, "a client in progress is not dropped");
    drop(client);
    wait::until("the old worker to be told to end", wait::LONG, || {
        Process::read(old_worker.parse().unwrap()).is_none().then_some(())
    });
    let after = Probe::unix(&side).unwrap().report().unwrap();
    let words = after["env"].split('|').find_map(|w| w.strip_prefix("GENERATION="));
    let generation = u32::from_str_radix(words.unwrap(), 8).unwrap();
    assert!(generation > 3, "generations go on: {after:?}");
    assert_eq!(after["fds"].split_whitespace().count(), 7, "a worker has its own: {after:?}");
    wait::until("counters to go on", wait::LONG, || {
        let row = status(&instance, "side");
        (row["spawned"].as_u64() > before["spawned"].as_u64()).then_some(())
    });
    assert!(instance.belfry(&["reload"]).status.success());
    instance.finish(&[]);
}

#[test]
fn w22_a_program_that_cannot_go_on_changes_nothing() {
    let mut instance = instance();
    let port = net::free_port();
    instance.service(&format!("127.0.0.1:{port} inet n n n - 10 probe_worker")).start();
    let good = fs::read(program(&instance)).unwrap();
    let mut client = Probe::tcp(port).unwrap();
    let pid = client.report().unwrap()["pid"].clone();
    for (script, reason) in [
        ("#!/bin/sh\nexit 1\n", "says nothing"),
        // It filled the memory of the master.
        ("#!/bin/sh\nexec yes can resume, version 9\n", "says too much: can resume"),
        ("#!/bin/sh\necho unknown option >&2\n", "unknown option"),
        ("#!/no/such/interpreter\n", "No such file or directory"),
        // It says yes, and is gone when it is to be executed.
        ("#!/bin/sh\nrm \"$0\"\necho can resume, version 9\n", "exec "),
    ] {
        install(&instance, script.as_bytes());
        let upgrade = instance.belfry(&["upgrade"]);
        let said = text(&upgrade.stderr);
        assert_eq!(upgrade.status.code(), Some(1), "{upgrade:?}");
        assert!(said.contains(reason) && said.contains("upgrade refused; version"), "{said}");
        assert_eq!(client.report().unwrap()["pid"], pid);
        let other = Probe::tcp(port).unwrap().report().unwrap();
        assert_ne!(other["pid"], pid);
        assert_eq!(other["fds"].split_whitespace().count(), 7, "nothing was left open: {other:?}");
    }
    let table = instance.config().join("master.cf");
    let lines = fs::read_to_string(&table).unwrap();
    install(&instance, &good);
    fs::write(&table, lines.clone() + "x unix N - - - - p\n").unwrap();
    let refused = instance.belfry(&["upgrade"]);
    assert!(text(&refused.stderr).contains("master.cf:2:8: field \"private\""), "{refused:?}");
    fs::write(&table, lines).unwrap();
    assert!(instance.belfry(&["upgrade"]).status.success());
    assert_eq!(client.report().unwrap()["pid"], pid);
    drop(client);
    instance.finish(&["upgrade: ", "upgrade refused"]);
}

#[test]
fn w22_pauses_and_services_on_their_way_out_go_on() {
    let mut instance = instance();
    instance
        .parameter("service_throttle_start", "50s")
        .parameter("stop_kill_time", "2s")
        .service("broken unix n n n - 3 probe_worker crash")
        .service("gone unix n n n - 3 probe_worker ignore-term ignore-end");
    instance.start();
    let knock = |name: &str| Probe::unix(&instance.queue().join("public").join(name)).unwrap();
    drop(knock("broken"));
    instance.log().wait_for("bad command startup -- throttling");
    let worker = knock("gone").report().unwrap()["pid"].clone();
    fs::write(instance.config().join("master.cf"), "broken unix n n n - 3 probe_worker crash\n")
        .unwrap();
    assert!(instance.belfry(&["reload"]).status.success());
    let upgrade = instance.belfry(&["upgrade"]);
    let said = text(&upgrade.stdout);
    assert!(said.contains("with 2 services, 1 workers"), "{said}");
    let state = status(&instance, "broken")["state"].clone();
    assert_eq!(state, "throttled");
    wait::until("the stubborn worker to be killed", wait::LONG, || {
        Process::read(worker.parse().unwrap()).is_none().then_some(())
    });
    wait::until("its service to be forgotten", wait::LONG, || {
        (!text(&instance.belfry(&["status"]).stdout).contains("gone")).then_some(())
    });
    instance.finish(&["exit status 1", "throttling", "killed by signal 9"]);
}

#[test]
fn w22_signals_during_an_upgrade_are_not_lost_and_kill_nobody() {
    let mut instance = instance();
    let port = net::free_port();
    instance.service(&format!("127.0.0.1:{port} inet n n n - 10 probe_worker")).start();
    let master = Process::read(instance.master_pid()).unwrap();
    /// Ends the storm whatever happens.
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                master.signal(Signal::SIGHUP);
                master.signal(Signal::SIGCHLD);
                // Without a pause the other signals of this process would hardly get a turn.
                thread::sleep(Duration::from_millis(1));
            }
        });
        let _end = End(&over);
        let reloads = || instance.log().count("reload done: ");
        for _ in 0..5 {
            // No upgrade is under way: this is the work of a signal.
            let before = reloads();
            wait::until("SIGHUP to reload", wait::LONG, || (reloads() > before).then_some(()));
            // A storm of reloads may be on when it is asked for; it says so, and is asked again.
            wait::until("an upgrade", wait::LONG, || {
                instance.belfry(&["upgrade"]).status.success().then_some(())
            });
        }
        let before = reloads();
        wait::until("SIGHUP to reload", wait::LONG, || (reloads() > before).then_some(()));
    });
    assert!(Probe::tcp(port).unwrap().report().is_ok());
    instance.finish(&[]);
}

/// One SIGHUP alone, with no other reload that could do its work.
#[test]
fn w22_a_sighup_while_the_new_program_is_asked_reloads_afterwards() {
    let mut instance = instance();
    instance.service("a unix n n n - 3 probe_worker").start();
    let (asked, answer) = (instance.root().join("asked"), instance.root().join("answer"));
    let script = format!(
        "#!/bin/sh\n: >{}\nwhile ! [ -e {} ]; do sleep 0.1; done\necho not today\n",
        asked.display(),
        answer.display()
    );
    install(&instance, script.as_bytes());
    let mut upgrade = instance.command("belfry");
    let mut upgrade = upgrade.arg("upgrade").spawn().expect("belfry was copied");
    wait::until("the new program to be asked", wait::LONG, || asked.exists().then_some(()));
    let table = instance.config().join("master.cf");
    let lines = fs::read_to_string(&table).unwrap();
    fs::write(&table, lines + "late unix n n n - 3 probe_worker\n").unwrap();
    Process::read(instance.master_pid()).unwrap().signal(Signal::SIGHUP);
    // The signal has come before the answer of this command.
    assert!(instance.belfry(&["status"]).status.success());
    fs::write(&answer, "").unwrap();
    assert!(!upgrade.wait().expect("it is our child").success());
    instance.log().wait_for("reload done: 1 added, 0 removed, 0 changed, 1 kept");
    assert!(Probe::unix(&instance.queue().join("public/late")).unwrap().report().is_ok());
    instance.finish(&["upgrade: not today", "upgrade refused"]);
}

#[test]
fn w22_a_master_that_is_stopping_is_not_upgraded() {
    let mut instance = instance();
    instance
        .parameter("stop_kill_time", "2s")
        .service("a unix n n n - 3 probe_worker ignore-term ignore-end");
    instance.start();
    let mut client = Probe::unix(&instance.queue().join("public/a")).unwrap();
    client.ask("hold").unwrap();
    let asked = instance.root().join("asked");
    let script = format!(
        "#!/bin/sh\n: >{}\nwhile ! grep -q terminating {}; do sleep 0.1; done\n\
         echo can resume, version 9\n",
        asked.display(),
        instance.root().join("log").display()
    );
    install(&instance, script.as_bytes());
    let mut upgrade = instance.command("belfry");
    let mut upgrade = upgrade.arg("upgrade").spawn().expect("belfry was copied");
    wait::until("the new program to be asked", wait::LONG, || asked.exists().then_some(()));
    Process::read(instance.master_pid()).unwrap().signal(Signal::SIGTERM);
    instance.ends_by(Signal::SIGTERM);
    assert!(!upgrade.wait().expect("it is our child").success());
    let refused = ["upgrade: the master is stopping", "upgrade refused"];
    instance.finish(&[&refused[..], &["killed by signal 9"]].concat());
}
