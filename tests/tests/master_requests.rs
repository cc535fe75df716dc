//! Reloads, diffs and upgrades that are asked for while another one is in progress, or while the master
//! stops.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use belfry_tests::probe::Probe;
use belfry_tests::process::{self, Process};
use belfry_tests::{Instance, net, wait};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An instance whose resolver answers when the test opens a gate, and not before.
struct Gated {
    instance: Instance,
    manager: UnixDatagram,
}

impl Gated {
    fn start(kill_time: &str, service: &str) -> Self {
        let mut instance = Instance::bare();
        instance.own_programs(&["master", "belfry", "probe_worker"]);
        let path = instance.root().join("notify");
        let manager = UnixDatagram::bind(&path).expect("/tmp has room");
        manager.set_nonblocking(true).expect("it is a socket");
        // The C library reads this file before it resolves the first name: a pipe makes it wait.
        let pipe = instance.root().join("hosts");
        mkfifo(&pipe, Mode::from_bits_truncate(0o600)).expect("/tmp has room");
        fs::hard_link(&pipe, instance.root().join("pipe")).expect("/tmp has room");
        instance
            .environment("RESOLV_HOST_CONF", &pipe.display().to_string())
            .environment("NOTIFY_SOCKET", &path.display().to_string())
            .parameter("stop_kill_time", kill_time)
            .service(service)
            .start();
        // A test may write another program in the place of the one that runs.
        let bin = instance.root().join("bin");
        fs::rename(bin.join("master"), bin.join("real")).expect("it is ours");
        fs::copy(bin.join("real"), bin.join("master")).expect("/tmp has room");
        Self { instance, manager }
    }

    /// Adds a line to the table.
    fn add(&self, line: &str) {
        let path = self.instance.config().join("master.cf");
        let table = fs::read_to_string(&path).expect("the instance has a table");
        fs::write(path, table + line + "\n").expect("/tmp has room");
    }

    /// Adds a service whose address must be asked for.
    fn add_named(&self) -> u16 {
        let port = net::free_port();
        self.add(&format!("localhost:{port} inet n n n - 3 probe_worker"));
        port
    }

    fn belfry(&self, words: &[&str]) -> Child {
        let mut command = self.instance.command("belfry");
        command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("belfry was copied")
    }

    fn wait_for_resolver(&self) {
        wait::until("the resolver to be asked", wait::LONG, || {
            let children = process::children(self.instance.master_pid());
            children.iter().any(|p| p.command.contains("--resolve")).then_some(())
        });
    }

    fn wait_for_program(&self) {
        let asked = self.instance.root().join("asked");
        wait::until("the new program to be asked", wait::LONG, || asked.exists().then_some(()));
    }

    /// Waits until a request has come in, which waits for its turn.
    fn wait_for_clients(&self, count: u64) {
        wait::until("the clients to be in", wait::LONG, || {
            let status = text(&self.instance.belfry(&["status", "--json"]).stdout);
            let row: serde_json::Value = serde_json::from_str(status.lines().next()?).ok()?;
            (row["descriptors"]["operators"] == count + 1).then_some(())
        });
        // One that is in has written its line before it reads; the master reads it in the same turn.
        std::thread::sleep(Duration::from_millis(100));
    }

    fn open_gate(&self) {
        let root = self.instance.root();
        fs::write(root.join("gate"), "").expect("/tmp has room");
        fs::write(root.join("file"), "").expect("/tmp has room");
        fs::rename(root.join("file"), root.join("hosts")).expect("it is ours");
        // Whoever waits already waits at the pipe; nobody may.
        let mut pipe = fs::OpenOptions::new();
        drop(pipe.write(true).custom_flags(libc::O_NONBLOCK).open(root.join("pipe")));
    }

    fn signal(&self, signal: Signal) {
        Process::read(self.instance.master_pid()).expect("it runs").signal(signal);
    }

    /// What the service manager has heard of reloads since the last time.
    fn heard(&self) -> String {
        let mut said = String::new();
        let mut bytes = [0; 4096];
        while let Ok(size) = self.manager.recv(&mut bytes) {
            let message = text(&bytes[..size]);
            for (start, letter) in [("RELOADING", 'L'), ("READY", 'R'), ("STOPPING", 'S')] {
                said.extend(message.starts_with(start).then_some(letter));
            }
        }
        said
    }
}

fn end(child: Child) -> Output {
    child.wait_with_output().expect("it is our child")
}

/// It ran as a second diff, and told its client so before it had begun.
#[test]
fn a_reload_asked_for_during_a_slow_diff_is_a_reload() {
    let gated = Gated::start("5s", "a unix n n n - 3 probe_worker");
    gated.heard();
    let port = gated.add_named();
    let diff = gated.belfry(&["diff"]);
    gated.wait_for_resolver();
    let reload = gated.belfry(&["reload"]);
    gated.wait_for_clients(2);
    gated.open_gate();
    let (diff, reload) = (end(diff), end(reload));
    assert!(text(&diff.stdout).contains(&format!("+ localhost:{port} inet")), "{diff:?}");
    assert!(text(&reload.stdout).contains("reload done: 1 added"), "{reload:?}");
    assert!(Probe::tcp(port).unwrap().report().is_ok());
    assert_eq!(gated.heard(), "LR", "a diff tells the service manager nothing");
    assert_eq!(gated.instance.log().count("diff -- version"), 1);
    assert_eq!(gated.instance.log().count("reload -- version"), 1);
    gated.instance.finish(&[]);
}

/// Whichever was asked for first decided what all of them were.
#[test]
fn reloads_that_wait_are_one_full_reload_and_a_diff_stays_a_diff() {
    let gated = Gated::start("5s", "a unix n n n - 3 probe_worker");
    let path = gated.instance.queue().join("public/a");
    let worker = || Probe::unix(&path).unwrap().report().unwrap()["pid"].clone();
    let first = worker();
    gated.heard();
    gated.add_named();
    let running = gated.belfry(&["reload", "--changed"]);
    gated.wait_for_resolver();
    let changed = gated.belfry(&["reload", "--changed"]);
    gated.wait_for_clients(2);
    let full = gated.belfry(&["reload"]);
    gated.wait_for_clients(3);
    gated.signal(Signal::SIGHUP);
    let diff = gated.belfry(&["diff"]);
    gated.wait_for_clients(4);
    gated.open_gate();
    assert!(text(&end(running).stdout).contains("reload done: 1 added"));
    for waiting in [changed, full] {
        let said = text(&end(waiting).stdout);
        assert!(said.contains("reload done: 0 added, 0 removed, 0 changed, 2 kept"), "{said}");
    }
    assert_eq!(text(&end(diff).stdout), "no service would change\n");
    assert_ne!(worker(), first, "a full reload renews every worker");
    assert_eq!(gated.heard(), "LRLR");
    assert_eq!(gated.instance.log().count("reload -- version"), 2);
    gated.instance.finish(&[]);
}

/// A resolver that never answered kept every further reload from happening.
#[test]
fn a_resolver_that_does_not_answer_is_killed_and_the_reload_refused() {
    let gated = Gated::start("5s", "a unix n n n - 3 probe_worker");
    gated.heard();
    let main_cf = gated.instance.config().join("main.cf");
    let parameters = fs::read_to_string(&main_cf).unwrap() + "resolver_timeout = 1s\n";
    fs::write(&main_cf, parameters).unwrap();
    assert!(gated.instance.belfry(&["reload"]).status.success(), "the parameter is in force");
    let table = fs::read_to_string(gated.instance.config().join("master.cf")).unwrap();
    gated.add_named();
    let refused = gated.instance.belfry(&["reload"]);
    let said = text(&refused.stderr);
    let why = "resolve localhost: no answer from the resolver within 1s (resolver_timeout)";
    assert!(!refused.status.success() && said.contains(why), "{refused:?}");
    let master = gated.instance.master_pid();
    wait::until("the resolver to be gone", wait::LONG, || {
        let children = process::children(master);
        children.iter().all(|p| !p.command.contains("--resolve")).then_some(())
    });
    assert_eq!(gated.heard(), "LRLR", "the service manager is told that it goes on");
    fs::write(gated.instance.config().join("master.cf"), table).unwrap();
    assert!(gated.instance.belfry(&["reload"]).status.success(), "the next one is none the worse");
    gated.instance.finish(&["no answer from the resolver", "reload refused"]);
}

/// A reload brought the services back, and no further signal ended the master; so did the answer of a
/// resolver that came late.
#[test]
fn a_master_that_is_stopping_does_not_reload() {
    let mut gated = Gated::start("3s", "a unix n n n - 3 probe_worker ignore-term ignore-end");
    gated.heard();
    let path = gated.instance.queue().join("public/a");
    let mut client = Probe::unix(&path).unwrap();
    client.ask("hold").unwrap();
    let port = gated.add_named();
    let reload = gated.belfry(&["reload"]);
    gated.wait_for_resolver();
    let waiting = gated.belfry(&["diff"]);
    gated.wait_for_clients(2);
    gated.signal(Signal::SIGTERM);
    gated.instance.log().wait_for("terminating on signal 15");
    for asked in [reload, waiting] {
        let asked = end(asked);
        assert!(!asked.status.success(), "{asked:?}");
        assert!(text(&asked.stderr).contains("the master is stopping"), "{asked:?}");
    }
    gated.open_gate();
    for words in [&["reload"][..], &["reload", "--changed"], &["diff"], &["reset", "a"]] {
        let refused = gated.instance.belfry(words);
        assert!(text(&refused.stderr).contains("the master is stopping"), "{words:?}: {refused:?}");
    }
    gated.signal(Signal::SIGHUP);
    gated.signal(Signal::SIGTERM);
    assert!(Probe::tcp(port).is_err(), "nothing of the new table is served");
    gated.instance.ends_by(Signal::SIGTERM);
    assert_eq!(gated.heard(), "LRS");
    assert_eq!(gated.instance.log().count("reload done"), 0);
    gated.instance.finish(&["killed by signal 9"]);
}

/// What came while the new program was executed was taken for done, although it had failed.
#[test]
fn a_sighup_during_an_upgrade_that_fails_is_not_lost() {
    let mut gated = Gated::start("5s", "a unix n n n - 3 probe_worker");
    let bin = gated.instance.root().join("bin");
    let root = gated.instance.root().display().to_string();
    // It says yes, and is gone when it is to be executed.
    let script = format!(
        "#!/bin/sh\nwhile [ ! -e {root}/gate ]; do sleep 0.05; done\nrm \"$0\"\n\
         echo can resume, version 9\n"
    );
    fs::write(bin.join("master"), script).unwrap();
    gated.add("b unix n n n - 3 probe_worker");
    let upgrade = gated.belfry(&["upgrade"]);
    gated.instance.log().wait_for("upgrade -- version");
    // The master sleeps until both have happened, so that it sees the answer first.
    gated.signal(Signal::SIGSTOP);
    gated.open_gate();
    wait::until("the new program to answer", wait::LONG, || {
        let children = process::children(gated.instance.master_pid());
        children.iter().any(Process::zombie).then_some(())
    });
    gated.signal(Signal::SIGHUP);
    gated.signal(Signal::SIGCONT);
    let upgrade = end(upgrade);
    assert!(text(&upgrade.stderr).contains("upgrade refused"), "{upgrade:?}");
    gated.instance.log().wait_for("reload done: 1 added");
    let path = gated.instance.queue().join("public/b");
    assert!(Probe::unix(&path).unwrap().report().is_ok());
    gated.instance.stop();
    gated.instance.finish(&["upgrade: exec ", "upgrade refused"]);
}

/// What is asked for while the new program is being asked is done by it.
#[test]
fn what_is_asked_for_during_an_upgrade_is_done_after_it() {
    let mut gated = Gated::start("5s", "a unix n n n - 3 probe_worker");
    let root = gated.instance.root().display().to_string();
    let bin = gated.instance.root().join("bin");
    let script = format!(
        "#!/bin/sh\n: >{root}/asked\nwhile [ ! -e {root}/gate ]; do sleep 0.05; done\n\
         rm \"$0\"; mv {root}/bin/real \"$0\"; exec \"$0\" \"$@\"\n"
    );
    fs::write(bin.join("master"), script).unwrap();
    let upgrade = gated.belfry(&["upgrade"]);
    gated.wait_for_program();
    gated.add("b unix n n n - 3 probe_worker");
    let reload = gated.belfry(&["reload"]);
    gated.wait_for_clients(2);
    let diff = gated.belfry(&["diff"]);
    gated.wait_for_clients(3);
    gated.open_gate();
    let (upgrade, reload, diff) = (end(upgrade), end(reload), end(diff));
    assert!(text(&upgrade.stdout).contains("upgraded from version"), "{upgrade:?}");
    let said = text(&reload.stdout);
    assert!(said.contains("reload done: 1 added") && !said.contains("upgraded"), "{reload:?}");
    assert_eq!(text(&diff.stdout), "no service would change\n", "{diff:?}");
    gated.instance.stop();
    gated.instance.finish(&[]);
}
