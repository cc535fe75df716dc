//! How workers are started, and the pause after failures (1I, 1K, 1M).

use std::time::Duration;

use belfry_tests::differential::{Kind, Master, Observation, Place, Scenario};
use belfry_tests::probe::Probe;
use belfry_tests::process::Process;
use belfry_tests::wait;
use nix::sys::signal::Signal;

use crate::decisions::{W04, W06, W25, WORDS};

const NOTHING: &str = Observation::NOTHING;

pub(crate) const SERIAL: Scenario = Scenario { name: "serial", look: serial, differences: &[] };
pub(crate) const CRASH: Scenario =
    Scenario { name: "crash", look: crash, differences: &[W06.at("pause", "short")] };
pub(crate) const CRASH_COMPAT: Scenario =
    Scenario { name: "crash-compat", look: crash_compat, differences: &[] };
pub(crate) const IDLER: Scenario = Scenario {
    name: "idler",
    look: idler,
    differences: &[
        W04.at("after it", "a pause"),
        W04.at("log: warning: ROOT/bin/probe_worker: ended without work -- throttling", "yes"),
    ],
};
pub(crate) const IDLER_COMPAT: Scenario =
    Scenario { name: "idler-compat", look: idler_compat, differences: &[] };
pub(crate) const KILLED: Scenario = Scenario { name: "killed", look: killed, differences: &[] };
pub(crate) const LIMIT: Scenario = Scenario { name: "limit", look: limit, differences: &[
        W25.at("lines with: uses all of its process limit", "1"),
        WORDS.at("log: warning: see http://www.postfix.org/STRESS_README.html for examples of stress-adapting configuration settings", NOTHING),
        WORDS.at("log: warning: see master(8), \"Stress\", for configuration that adapts to stress", "yes"),
    ] };

#[test]
fn i02_i04_w07_eight_clients_get_their_workers_one_after_the_other() {
    SERIAL.check();
}

#[test]
fn k01_w06_a_worker_that_crashes_pauses_its_service() {
    CRASH.check();
}

#[test]
fn k01_w06_with_compat_the_pause_is_postfixs() {
    CRASH_COMPAT.check();
}

#[test]
fn k03_w04_a_worker_that_ends_without_work() {
    IDLER.check();
}

#[test]
fn k03_w04_with_compat_it_is_started_again_at_once() {
    IDLER_COMPAT.check();
}

#[test]
fn k04_l02_a_worker_that_is_killed() {
    KILLED.check();
}

#[test]
fn i05_i06_m01_m02_w25_services_at_their_limit() {
    LIMIT.check();
}

/// What service_throttle_time is here, and how the two pauses are told apart.
const PAUSE: &str = "service_throttle_time = 3s";
const BETWEEN: Duration = Duration::from_secs(2);
const COMPAT: &str = "compat = postfix";

fn file(name: &str) -> Place {
    Place::File(format!("public/{name}"))
}

fn serial(kind: Kind) -> Observation {
    let master = Master::with(kind, "s unix n n n - 20 probe_worker slow=100\n");
    let clients: Vec<_> = (0..8).map(|_| master.knock(&file("s"))).collect();
    let ready = || {
        let all = master.reports();
        (all.len() == clients.len() && all.iter().all(|r| r.ready.is_some())).then_some(all)
    };
    let workers = wait::until("eight workers", wait::LONG, ready);
    let mut seen = Observation::default();
    let serial = workers.windows(2).all(|two| two[0].ready.is_some_and(|up| up <= two[1].born));
    seen.note("workers come up", if serial { "one after the other" } else { "together" });
    seen
}

fn crash(kind: Kind) -> Observation {
    pause_after_crash(kind, &[PAUSE])
}

fn crash_compat(kind: Kind) -> Observation {
    pause_after_crash(kind, &[PAUSE, COMPAT])
}

fn pause_after_crash(kind: Kind, parameters: &[&str]) -> Observation {
    let mut master = Master::new(kind);
    parameters.iter().for_each(|line| _ = master.parameter(line));
    master.run("c unix n n n - 3 probe_worker crash\n");
    let _client = master.knock(&file("c"));
    let mut seen = Observation::default();
    note_pause(&master, &mut seen);
    master.note_complaints(&mut seen);
    seen
}

fn note_pause(master: &Master, seen: &mut Observation) {
    let workers = master.wait_for_reports(2);
    let short = workers[1].born - workers[0].born < BETWEEN;
    seen.note("pause", if short { "short" } else { "service_throttle_time" });
}

fn idler(kind: Kind) -> Observation {
    starts_of_idler(kind, &[])
}

fn idler_compat(kind: Kind) -> Observation {
    starts_of_idler(kind, &[COMPAT])
}

fn starts_of_idler(kind: Kind, parameters: &[&str]) -> Observation {
    let mut master = Master::new(kind);
    parameters.iter().for_each(|line| _ = master.parameter(line));
    master.run("e unix n n n - 3 probe_worker exit0\n");
    let client = master.knock(&file("e"));
    let pauses = wait::until("a pause or many starts", wait::LONG, || {
        let pauses = master.log().count("throttling") > 0;
        (pauses || master.reports().len() >= 10).then_some(pauses)
    });
    let mut seen = Observation::default();
    seen.note("after it", if pauses { "a pause" } else { "the next one at once" });
    drop(client);
    master.note_complaints(&mut seen);
    seen
}

fn killed(kind: Kind) -> Observation {
    let mut master = Master::new(kind);
    master.parameter(PAUSE).run(
        "served unix n n n - 3 probe_worker\nother unix n n n - 3 probe_worker\n\
         unused unix n n n - 3 probe_worker slow=60000\n",
    );
    let mut seen = Observation::default();
    let report = || {
        let probe = Probe::unix(&master.path("q/public/served"));
        probe.and_then(|mut probe| probe.report()).expect("a worker answers")["pid"].clone()
    };
    // A worker that takes another client has said that the one before was served, and the master has
    // heard it when it has started a worker of another service.
    let mut pids = Vec::new();
    let pid = loop {
        let pid = report();
        if pids.contains(&pid) {
            break pid;
        }
        pids.push(pid);
    };
    master.worker_at(&file("other"));
    kill(&pid);
    master.log().wait_for("killed by signal 9");
    report();
    seen.note("pauses after one that has served", master.log().count("throttling").to_string());
    let _client = master.knock(&file("unused"));
    let unused = master.worker_at(&file("unused"));
    kill(unused.get("pid"));
    master.log().wait_for("throttling");
    seen.note("pauses after one that has not", master.log().count("throttling").to_string());
    master.note_complaints(&mut seen);
    seen
}

fn kill(pid: &str) {
    let process = pid.parse().ok().and_then(Process::read);
    process.expect("the worker is there").signal(Signal::SIGKILL);
}

fn limit(kind: Kind) -> Observation {
    let mut master = Master::new(kind);
    master.parameter("inet_interfaces = all");
    master.run("PORT1 inet n n n - 2 probe_worker\nl unix n n n - 2 probe_worker\n");
    let mut seen = Observation::default();
    let mut public: Vec<_> =
        (0..2).map(|_| Probe::tcp(master.port(1)).expect("the master listens")).collect();
    let mut pids = Vec::new();
    for (n, client) in public.iter_mut().enumerate() {
        let report = client.report().expect("a worker answers");
        seen.note(format!("worker {} of the public service", n + 1), master.tidy(&report["argv"]));
        pids.push(report["pid"].clone());
    }
    master.log().wait_for("to avoid this condition");
    let path = master.path("q/public/l");
    let mut local: Vec<_> =
        (0..2).map(|_| Probe::unix(&path).expect("the master listens")).collect();
    for client in &mut local {
        client.ask("hold").expect("a worker answers");
    }
    // The stress has told the first worker to end, which it does after its client.
    drop(public.remove(0));
    wait::until("the first worker to end", wait::LONG, || {
        pids[0].parse().ok().and_then(Process::read).is_none().then_some(())
    });
    seen.note("the first worker after its client", "ends");
    // Everything about the local service has been said when the next knock was answered.
    drop(Probe::tcp(master.port(1)).and_then(|mut p| p.report()).expect("there is room again"));
    master.note_count("uses all of its process limit", &mut seen);
    master.note_complaints(&mut seen);
    seen
}
