//! Reloads (1O).

use std::time::Duration;

use belfry_tests::differential::{Kind, Master, Observation, Place, Scenario};
use belfry_tests::probe::Probe;
use belfry_tests::process::Process;
use belfry_tests::wait;
use nix::sys::signal::Signal;

use crate::decisions::{W01, W02, W03, W06, W09, W21, WORDS};

const NOTHING: &str = Observation::NOTHING;

pub(crate) const BAD_LINE: Scenario = Scenario {
    name: "bad-line",
    look: bad_line,
    differences: &[
        W01.at("the reload", "Refused"),
        W01.at("the master", "runs"),
        W01.at("a client of a", "is served"),
    ],
};
pub(crate) const BUSY_PORT: Scenario =
    Scenario { name: "busy-port", look: busy_port, differences: &[
        W02.at("the reload", "Done"),
        W02.at("the master", "runs"),
        W02.at("a client of a", "is served"),
        W02.at("log: fatal: bind 127.0.0.1 port PORT1: Address already in use", NOTHING),
        W02.at("log: error: service 127.0.0.1:PORT1([127.0.0.1]:PORT1): bind 127.0.0.1 port PORT1: Address already in use -- retrying", "yes"),
        W02.at("when the port is free", "it is served"),
    ] };
pub(crate) const REMOVED: Scenario = Scenario {
    name: "removed",
    look: removed,
    differences: &[W21.at("the file g", "is removed"), W21.at("the file f", "is removed")],
};
pub(crate) const KEPT: Scenario = Scenario { name: "kept", look: kept, differences: &[] };
pub(crate) const INTERFACES: Scenario = Scenario {
    name: "interfaces",
    look: interfaces,
    differences: &[
        W09.at("the new address", "is open"),
        W09.at("log: warning: service PORT1: ignoring inet_interfaces change", NOTHING),
        W09.at("log: warning: to change inet_interfaces, stop and start Postfix", NOTHING),
    ],
};
pub(crate) const QUEUE: Scenario = Scenario { name: "queue", look: other_queue, differences: &[
        WORDS.at("log: warning: ignoring queue_directory parameter value change", NOTHING),
        WORDS.at("log: warning: old value: \"ROOT/q\", new value: \"ROOT/other\"", NOTHING),
        WORDS.at("log: warning: to change queue_directory, stop and start Postfix", NOTHING),
        WORDS.at("log: warning: ignoring queue_directory parameter value change: \"ROOT/q\" stays, \"ROOT/other\" needs a stop and a start", "yes"),
    ] };
pub(crate) const DEAF: Scenario = Scenario {
    name: "deaf",
    look: deaf,
    differences: &[W03.at("a client of another service", "is served")],
};
pub(crate) const PAUSED: Scenario = Scenario {
    name: "paused",
    look: paused,
    differences: &[W06.at("its client", "gets a worker")],
};

#[test]
fn o06_w01_a_bad_line_at_a_reload() {
    BAD_LINE.check();
}

#[test]
fn o06_g06_w02_a_busy_port_at_a_reload() {
    BUSY_PORT.check();
}

#[test]
fn o02_l03_g07_w21_removed_services() {
    REMOVED.check();
}

#[test]
fn o03_o04_services_that_stay() {
    KEPT.check();
}

#[test]
fn c03_w09_another_address_at_a_reload() {
    INTERFACES.check();
}

#[test]
fn k05_w06_a_paused_service_that_was_mended() {
    PAUSED.check();
}

#[test]
fn c02_w09_another_queue_directory_at_a_reload() {
    QUEUE.check();
}

#[test]
fn o02_w03_a_removed_worker_that_does_not_end() {
    DEAF.check();
}

const A: &str = "a unix n n n - 3 probe_worker\n";

/// The next client of a service.
fn note_client(master: &Master, name: &str, seen: &mut Observation) {
    let path = master.path("q/public").join(name);
    let served = Probe::unix(&path).and_then(|mut probe| probe.report()).is_ok();
    seen.note(format!("a client of {name}"), if served { "is served" } else { "is not served" });
}

fn bad_line(kind: Kind) -> Observation {
    let mut master = Master::with(kind, A);
    let mut seen = Observation::default();
    let reloaded = master.reload(&format!("{A}x unix N n n - - probe_worker\n"));
    seen.note("the reload", format!("{reloaded:?}"));
    seen.note("the master", master.fate());
    note_client(&master, "a", &mut seen);
    seen
}

fn busy_port(kind: Kind) -> Observation {
    let mut master = Master::with(kind, A);
    let mut seen = Observation::default();
    let busy = master.occupied_port(1);
    let reloaded = master.reload(&format!("{A}127.0.0.1:PORT1 inet n n n - - probe_worker\n"));
    seen.note("the reload", format!("{reloaded:?}"));
    seen.note("the master", master.fate());
    note_client(&master, "a", &mut seen);
    master.note_complaints(&mut seen);
    drop(busy);
    let free = !master.has_ended()
        && wait::within(wait::LONG, || Probe::tcp(master.port(1)).ok()?.report().ok()).is_some();
    seen.note("when the port is free", if free { "it is served" } else { "nobody listens" });
    seen
}

fn removed(kind: Kind) -> Observation {
    let table = "g unix n n n - 3 probe_worker\nf fifo n n n - 3 probe_worker\n\
                 127.0.0.1:PORT1 inet n n n - 3 probe_worker\n";
    let mut master = Master::with(kind, &format!("{A}{table}"));
    let mut seen = Observation::default();
    let mut client = Probe::unix(&master.path("q/public/g")).expect("the master listens");
    let pid = client.report().expect("a worker answers")["pid"].clone();
    let reloaded = master.reload(A);
    seen.note("the reload", format!("{reloaded:?}"));
    // Its worker gets SIGTERM, whatever it does.
    let ends = || pid.parse().ok().and_then(Process::read).filter(|p| !p.zombie()).is_none();
    wait::until("the worker to end", wait::LONG, || ends().then_some(()));
    seen.note("a worker with a client", "ends");
    for name in ["g", "f"] {
        let there = master.path("q/public").join(name).exists();
        seen.note(format!("the file {name}"), if there { "stays" } else { "is removed" });
    }
    let refused = Probe::tcp(master.port(1)).is_err();
    seen.note("its port", if refused { "is closed" } else { "is open" });
    note_client(&master, "a", &mut seen);
    master.note_complaints(&mut seen);
    seen
}

fn kept(kind: Kind) -> Observation {
    let mut master = Master::with(kind, &format!("{A}b unix n n n - 3 probe_worker\n"));
    let mut seen = Observation::default();
    let idle = master.worker_at(&Place::File("public/b".to_owned())).get("pid").to_owned();
    let path = master.path("q/public/a");
    let mut client = Probe::unix(&path).expect("the master listens");
    let busy = client.report().expect("a worker answers")["pid"].clone();
    let table = "a unix n n n - 4 probe_worker new\nb unix n n n - 3 probe_worker\n";
    seen.note("the reload", format!("{:?}", master.reload(table)));
    let alive = |pid: &str| pid.parse().ok().and_then(Process::read).is_some();
    wait::until("the idle worker to end", wait::LONG, || (!alive(&idle)).then_some(()));
    seen.note("an idle worker of a service that has not changed", "ends");
    let same = client.report().is_ok_and(|report| report["pid"] == busy);
    seen.note("a worker with a client", if same { "goes on with it" } else { "is gone" });
    let next = Probe::unix(&path).and_then(|mut p| p.report()).expect("a worker answers");
    seen.note("the next worker", master.tidy(&next["argv"]));
    drop(client);
    wait::until("the old worker to end", wait::LONG, || (!alive(&busy)).then_some(()));
    seen.note("the old worker after its client", "ends");
    master.note_complaints(&mut seen);
    seen
}

fn interfaces(kind: Kind) -> Observation {
    let table = "PORT1 inet n n n - 3 probe_worker\n";
    let mut master = Master::with(kind, table);
    let mut seen = Observation::default();
    master.parameter("inet_interfaces = 127.0.0.1, 127.0.0.2").main_cf();
    seen.note("the reload", format!("{:?}", master.reload(table)));
    let other = std::net::TcpStream::connect(("127.0.0.2", master.port(1))).is_ok();
    seen.note("the new address", if other { "is open" } else { "is closed" });
    master.note_complaints(&mut seen);
    seen
}

fn other_queue(kind: Kind) -> Observation {
    let mut master = Master::with(kind, A);
    let other = format!("queue_directory = {}", master.path("other").display());
    master.parameter(&other).main_cf();
    let mut seen = Observation::default();
    seen.note("the reload", format!("{:?}", master.reload(A)));
    note_client(&master, "a", &mut seen);
    master.note_complaints(&mut seen);
    seen
}

fn deaf(kind: Kind) -> Observation {
    let mut master = Master::new(kind);
    let deaf = "deaf unix n n n - 3 probe_worker ignore-term ignore-end\n";
    master.parameter("stop_kill_time = 1h").run(&format!("{A}{deaf}"));
    let mut client = Probe::unix(&master.path("q/public/deaf")).expect("the master listens");
    let pid = client.report().expect("a worker answers")["pid"].clone();
    master.table(A);
    master.signal(Signal::SIGHUP);
    master.log().wait_for("reload -- ");
    let mut seen = Observation::default();
    let place = Place::File("public/a".to_owned());
    let _client = master.knock(&place);
    let served =
        wait::within(Duration::from_secs(3), || (master.reports().len() > 1).then_some(()));
    seen.note("a client of another service", if served.is_some() { "is served" } else { "waits" });
    let process = pid.parse().ok().and_then(Process::read);
    process.expect("it ignores SIGTERM").signal(Signal::SIGKILL);
    seen.note(
        "when the worker was killed",
        format!("{} workers", master.wait_for_reports(2).len()),
    );
    seen
}

fn paused(kind: Kind) -> Observation {
    let mut master = Master::new(kind);
    master.parameter("service_throttle_time = 60s").parameter("service_throttle_start = 60s");
    master.run("c unix n n n - 3 probe_worker crash\n");
    let _client = master.knock(&Place::File("public/c".to_owned()));
    master.log().wait_for("throttling");
    let mut seen = Observation::default();
    seen.note("the reload", format!("{:?}", master.reload("c unix n n n - 3 probe_worker\n")));
    let served = wait::within(Duration::from_secs(3), || {
        let mut all = master.reports().into_iter();
        all.find(|report| report.get("argv") == "probe_worker|-n|c|-t|unix")
    });
    seen.note("its client", if served.is_some() { "gets a worker" } else { "waits" });
    seen
}
