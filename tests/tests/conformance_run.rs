//! The running master, line by line: process creation, reaping, wakeups, reloads, signals.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use belfry_tests::probe::Probe;
use belfry_tests::process::{self, Process};
use belfry_tests::{Instance, wait};
use nix::sys::signal::Signal;
use worker_proto::clock::Time;

/// An instance with one service `a`; the rest of its line follows the name and type.
fn with_service(rest: &str) -> Instance {
    let mut instance = Instance::bare();
    instance.service(&format!("a unix {rest}"));
    instance
}

fn knock(instance: &Instance) -> Probe<UnixStream> {
    Probe::unix(&instance.queue().join("public/a")).expect("the service listens")
}

fn status(instance: &Instance, name: &str) -> serde_json::Value {
    let output = instance.belfry(&["status", name, "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn write_table(instance: &Instance, table: &str) {
    // Renamed into its place: a reload must not see half of it.
    let (new, path) = (instance.config().join("new"), instance.config().join("master.cf"));
    fs::write(&new, table).and_then(|()| fs::rename(new, path)).expect("/tmp has room");
}

fn master(instance: &Instance) -> Process {
    Process::read(instance.master_pid()).expect("the master runs")
}

#[test]
fn i04_clients_who_come_together_wait_for_one_start_after_the_other() {
    let mut instance = with_service("n n n - 10 probe_worker slow=200");
    instance.start();
    let start = Time::now();
    let mut clients: Vec<_> = (0..4).map(|_| knock(&instance)).collect();
    let mut times: Vec<Duration> = thread::scope(|scope| {
        let ask = |client: &mut Probe<UnixStream>| {
            client.ask("hold").expect("it is served");
            Time::now().since(start)
        };
        let asked: Vec<_> = clients.iter_mut().map(|c| scope.spawn(move || ask(c))).collect();
        asked.into_iter().map(|a| a.join().expect("it was served")).collect()
    });
    times.sort_unstable();
    for (time, starts) in times.iter().zip(1..) {
        assert!(*time >= Duration::from_millis(200) * starts, "{starts}: {times:?}");
    }
    drop(clients);
    instance.finish(&[]);
}

#[test]
fn l01_workers_who_end_together_are_all_reaped_and_told() {
    let mut instance = with_service("n n n - 20 probe_worker");
    instance.start();
    let mut clients: Vec<_> = (0..12).map(|_| knock(&instance)).collect();
    clients.iter_mut().for_each(|c| drop(c.ask("hold").expect("it is served")));
    // Stopped, the master finds one signal for all of them.
    master(&instance).signal(Signal::SIGSTOP);
    instance.workers("probe_worker").iter().for_each(|w| w.signal(Signal::SIGKILL));
    master(&instance).signal(Signal::SIGCONT);
    instance.log().wait_for_count("killed by signal 9", 12);
    wait::until("no child to be left", wait::LONG, || {
        process::children(instance.master_pid()).is_empty().then_some(())
    });
    instance.finish(&["killed by signal 9", "bad command startup"]);
}

#[test]
fn l04_w14_children_that_the_master_has_inherited_are_reaped_and_ignored() {
    let mut instance = with_service("n n n - 3 probe_worker");
    // The shell starts children and becomes the master.
    instance.started_by(&["/bin/sh", "-c", "(exit 3) & sleep 1000 & exec \"$0\" -v \"$@\""]);
    instance.start();
    let sleeper = wait::until("the shell's child to be sleep", wait::LONG, || {
        process::children(instance.master_pid()).into_iter().find(|p| p.name == "sleep")
    });
    sleeper.signal(Signal::SIGTERM);
    instance.log().wait_for(&format!("process pid {} is not ours", sleeper.pid));
    assert!(knock(&instance).report().is_ok(), "the master goes on");
    instance.finish(&[]);
}

#[test]
fn n02_n03_a_wakeup_that_cannot_be_is_told_and_tried_again() {
    let mut instance = Instance::bare();
    instance.service("a unix-dgram n n n 1 1 probe_worker").start();
    let line = "warning: master_wakeup_timer_event: service a(public/a): Operation not supported";
    instance.log().wait_for_count(line, 2);
    instance.finish(&["master_wakeup_timer_event"]);
}

/// What a wakeup passes is the end of a pipe, which was taken for a client that had gone.
#[test]
fn n02_q10_a_trigger_service_of_type_pass_hears_its_wakeup() {
    let mut instance = Instance::bare();
    let trace = instance.root().join("trace");
    instance
        .parameter("import_environment", &format!("MAIL_CONFIG TRACE={}", trace.display()))
        .service("a pass n n n 1 1 trigger_worker");
    instance.start();
    wait::until("the wakeup", wait::LONG, || {
        fs::read_to_string(&trace).ok()?.contains("W\\u{0}").then_some(())
    });
    instance.finish(&[]);
}

#[test]
fn n04_a_throttled_service_is_not_woken_and_its_timer_goes_on() {
    let mut instance = with_service("n n n 1 3 probe_worker crash");
    instance
        .parameter("service_throttle_start", "50s")
        .service("clock unix n n n 1 3 probe_worker")
        .start();
    instance.log().wait_for("bad command startup -- throttling");
    let served = || status(&instance, "clock")["served"].as_u64().unwrap_or(0);
    let before = served();
    wait::until("two wakeups of another service", wait::LONG, || {
        (served() >= before + 2).then_some(())
    });
    assert_eq!(status(&instance, "a")["spawned"], 1, "it was not woken");
    assert!(instance.belfry(&["reset", "a"]).status.success());
    instance.log().wait_for_count("exit status 1", 2);
    instance.finish(&["exit status 1", "bad command startup"]);
}

#[test]
fn o04_with_a_limit_of_one_the_old_worker_goes_first() {
    let mut instance = with_service("n n n - 1 probe_worker");
    instance.start();
    let mut first = knock(&instance);
    let old = first.report().unwrap()["pid"].clone();
    assert!(instance.belfry(&["reload"]).status.success());
    let mut second = knock(&instance);
    second.say("report").unwrap();
    let row = status(&instance, "a");
    assert_eq!((&row["retired"], &row["spawned"]), (&1.into(), &1.into()), "{row}");
    assert_eq!(first.report().unwrap()["pid"], old, "it finishes what it does");
    drop(first);
    assert_ne!(second.ask("hold").unwrap(), "", "then the next one comes");
    drop(second);
    assert_ne!(knock(&instance).report().unwrap()["pid"], old);
    instance.finish(&[]);
}

#[test]
fn o05_below_a_smaller_limit_nobody_is_started() {
    let mut instance = with_service("n n n - 3 probe_worker");
    instance.start();
    let mut clients: Vec<_> = (0..3).map(|_| knock(&instance)).collect();
    clients.iter_mut().for_each(|c| drop(c.ask("hold").expect("it is served")));
    write_table(&instance, "a unix n n n - 2 probe_worker\n");
    assert!(instance.belfry(&["reload"]).status.success());
    let mut waiting = knock(&instance);
    waiting.say("hold").unwrap();
    drop(clients.pop());
    wait::until("one of three to end", wait::LONG, || {
        (instance.workers("probe_worker").len() == 2).then_some(())
    });
    assert_eq!(status(&instance, "a")["spawned"], 3, "two are still there");
    drop(clients.pop());
    assert!(waiting.ask("hold").is_ok(), "one of two leaves room");
    assert_eq!(status(&instance, "a")["spawned"], 4);
    drop((clients, waiting));
    instance.finish(&[]);
}

#[test]
fn o06_o07_many_reloads_merge_and_the_last_files_count() {
    let mut instance = with_service("n n n - 3 probe_worker");
    instance.start();
    for number in 0..50 {
        // Half of the tables are bad.
        let bad = if number % 2 == 0 { "x unix N - - - - p\n" } else { "" };
        let table = format!("{bad}a unix n n n - 3 probe_worker {number}\n");
        write_table(&instance, &table);
        master(&instance).signal(Signal::SIGHUP);
    }
    wait::until("the last table", wait::LONG, || {
        let report = knock(&instance).report().ok()?;
        report["argv"].ends_with("|49").then_some(())
    });
    instance.finish_with(&[], &["field \"private\"", "reload refused: 1 error;"]);
}

#[test]
fn p02_process_1_ends_everybody_it_sees() {
    let instance = with_service("n n n - 3 probe_worker");
    instance.write();
    let mut unshare = Command::new("unshare");
    unshare.args(["--pid", "--fork", "--mount-proc", "--"]);
    unshare.arg(belfry_tests::binaries::directory().join("master"));
    unshare.args(["-i".as_ref(), "-c".as_ref(), instance.config().as_os_str()]);
    let mut unshare = unshare.spawn().expect("util-linux has it");
    instance.log().wait_for("daemon started");
    let children = process::children(unshare.id().try_into().expect("a process id"));
    let orphan: i32 = knock(&instance).ask("orphan").unwrap().parse().unwrap();
    assert!(orphan < 100, "it is counted in the namespace of the master: {orphan}");
    let is_orphan = |p: &Process| p.command == "sleep 1000" && p.parent == children[0].pid;
    let orphan = wait::until("process 1 to adopt the orphan", wait::LONG, || {
        process::all().into_iter().find(is_orphan)
    });
    children[0].signal(Signal::SIGTERM);
    let end = wait::until("the master to end", wait::LONG, || unshare.try_wait().ok().flatten());
    assert!(end.success(), "{end}");
    assert!(Process::read(orphan.pid).is_none(), "nobody stays");
    instance.finish(&[]);
}

#[test]
fn p03_a_signal_that_means_nothing_ends_the_master_as_anybody() {
    let mut instance = with_service("n n n - 3 probe_worker");
    instance.start();
    assert!(knock(&instance).report().is_ok());
    master(&instance).signal(Signal::SIGUSR1);
    instance.ends_by(Signal::SIGUSR1);
    instance.finish(&[]);
}

#[test]
fn p01_the_master_ends_by_the_signal_it_was_sent() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
        let mut instance = with_service("n n n - 3 probe_worker");
        instance.start();
        let mut client = knock(&instance);
        client.ask("hold").unwrap();
        master(&instance).signal(signal);
        instance.log().wait_for(&format!("terminating on signal {}", signal as i32));
        instance.ends_by(signal);
        instance.finish(&[]);
    }
}

/// A storm of signals for workers that have just been started, while the master is told to reload:
/// the signals are the workers', and each dies of its own.
#[test]
fn p08_w12_a_signal_between_fork_and_exec_is_the_workers() {
    let mut instance = with_service("n n n - 50 probe_worker");
    instance.parameter("service_throttle_start", "1s").parameter("service_throttle_time", "1s");
    instance.start();
    let pid = instance.master_pid();
    let over = std::sync::atomic::AtomicBool::new(false);
    let is_over = || over.load(std::sync::atomic::Ordering::SeqCst);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over() {
                for child in process::children(pid) {
                    child.signal(Signal::SIGTERM);
                }
            }
        });
        scope.spawn(|| {
            while !is_over() {
                master(&instance).signal(Signal::SIGHUP);
                thread::yield_now();
            }
        });
        for _ in 0..100 {
            drop(knock(&instance));
            // Many die before they have a client, which pauses the service.
            assert!(instance.belfry(&["reset", "a"]).status.success());
        }
        over.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    assert_eq!(instance.master_pid(), pid);
    wait::until("a worker", Duration::from_secs(30), || knock(&instance).report().ok());
    assert_eq!(instance.log().count("terminating on signal"), 0, "none was the master's");
    instance.finish_with(&[], &["killed by signal 15", "bad command startup", "exit status 1"]);
}
