//! How masters start, are kept from starting twice, and end (1A, 1B, 1L, 1P).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use belfry_tests::differential::{Kind, Master, Observation, Place, Scenario};
use belfry_tests::probe::Probe;
use belfry_tests::process::{self, Process};
use belfry_tests::wait;
use nix::sys::signal::Signal;

use crate::decisions::{STOP, W14, W17, W21};

const NOTHING: &str = Observation::NOTHING;

/// Far longer than a worker takes to end.
const SOON: Duration = Duration::from_secs(1);

pub(crate) const ENDS: Scenario = Scenario {
    name: "ends",
    look: ends,
    differences: &[
        STOP.at("SIGTERM: a busy worker that ignores SIGTERM", "ends"),
        STOP.at("SIGINT: a busy worker that ignores SIGTERM", "ends"),
    ],
};
pub(crate) const LOCKS: Scenario = Scenario { name: "locks", look: locks, differences: &[] };
pub(crate) const STEPCHILD: Scenario = Scenario {
    name: "stepchild",
    look: stepchild,
    differences: &[
        W14.at("a client", "is served"),
        W14.at("the master", "runs"),
        W14.at("log: panic: master_reap: unknown pid: N", NOTHING),
    ],
};
pub(crate) const FAILURE: Scenario =
    Scenario { name: "failure", look: failure, differences: &[W17.at("stderr tells why", "yes")] };
pub(crate) const USAGE: Scenario =
    Scenario { name: "usage", look: usage, differences: &[W21.at("master -e soon", "Some(1)")] };

#[test]
fn p01_p03_p04_h06_how_a_master_ends() {
    ENDS.check();
}

#[test]
fn b01_b02_b03_a08_locks() {
    LOCKS.check();
}

#[test]
fn a01_a05_a06_a08_command_lines() {
    USAGE.check();
}

#[test]
fn l04_w14_a_child_that_the_master_has_not_started() {
    STEPCHILD.check();
}

#[test]
fn a10_a18_w17_a_start_that_fails() {
    FAILURE.check();
}

fn stepchild(kind: Kind) -> Observation {
    let mut master = Master::new(kind);
    master.table("a unix n n n - 3 probe_worker\n");
    let command = master.command_with_child();
    let mut seen = Observation::default();
    seen.note("the start", if master.start_by(command) { "succeeds" } else { "fails" });
    // Its child, which is none of the workers, is reaped or ends it.
    wait::until("the child to be seen", wait::LONG, || {
        (master.has_ended() || process::children(master.pid()).is_empty()).then_some(())
    });
    let served = Probe::unix(&master.path("q/public/a")).and_then(|mut p| p.report()).is_ok();
    seen.note("a client", if served { "is served" } else { "is not served" });
    seen.note("the master", if served { master.fate() } else { master.wait_for_end() });
    master.name(&master.pid().to_string(), "PID");
    master.note_complaints(&mut seen);
    seen
}

fn failure(kind: Kind) -> Observation {
    let mut seen = Observation::default();
    let master = Master::new(kind);
    master.table("a unix n n n - 3 probe_worker\n");
    fs::remove_dir(master.path("q/pid")).expect("it is there and empty");
    let status = master.command(&["-w"]).status().expect("the program is there");
    seen.note("master -w", format!("{:?}", status.code()));
    let reason = "open lock file pid/master.pid";
    let text = fs::read_to_string(master.path("stderr")).unwrap_or_default();
    seen.note("stderr tells why", if text.contains(reason) { "yes" } else { "no" });
    seen
}

fn ends(kind: Kind) -> Observation {
    let signals = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL, Signal::SIGUSR1];
    let mut seen = Observation::default();
    thread::scope(|scope| {
        let runs = signals.map(|signal| scope.spawn(move || end_by(kind, signal)));
        runs.into_iter().for_each(|run| seen.extend(run.join().expect("it has told why")));
    });
    seen
}

fn end_by(kind: Kind, signal: Signal) -> Observation {
    let mut seen = Observation::default();
    let mut master = Master::new(kind);
    master.parameter("stop_kill_time = 1s").run(
        "idle unix n n n - 3 probe_worker\nbusy unix n n n - 3 probe_worker\n\
         deaf unix n n n - 3 probe_worker ignore-term\n",
    );
    let idle = master.worker_at(&Place::File("public/idle".to_owned())).get("pid").to_owned();
    let hold = |name: &str| {
        let mut probe = Probe::unix(&master.path("q/public").join(name)).expect("it listens");
        let pid = probe.report().expect("a worker answers")["pid"].clone();
        (probe, pid)
    };
    let ((_one, busy), (_two, deaf)) = (hold("busy"), hold("deaf"));
    master.signal(signal);
    seen.note(format!("{signal}: the master"), master.wait_for_end());
    for (name, pid) in [
        ("an idle worker", idle),
        ("a busy worker", busy),
        ("a busy worker that ignores SIGTERM", deaf),
    ] {
        let gone = || pid.parse().ok().and_then(Process::read).is_none_or(|p| p.zombie());
        // Who has not ended soon was not told to.
        let ended = wait::within(SOON, || gone().then_some(())).is_some();
        seen.note(format!("{signal}: {name}"), if ended { "ends" } else { "stays" });
    }
    let text = format!("terminating on signal {}", signal as i32);
    seen.note(format!("{signal}: lines in the log"), master.log().count(&text).to_string());
    seen
}

fn locks(kind: Kind) -> Observation {
    let mut seen = Observation::default();
    let mut master = Master::with(kind, "a unix n n n - 3 probe_worker\n");
    let pid = master.pid().to_string();
    master.name(&pid, "PID");
    for name in ["q/pid/master.pid", "d/master.lock"] {
        let meta = fs::metadata(master.path(name)).expect("the master holds it");
        let belongs = if meta.uid() == 0 { "root" } else { "the mail owner" };
        let text = fs::read_to_string(master.path(name)).unwrap_or_default();
        seen.note(
            format!("{name} file"),
            format!("{:o} of {belongs}, {} bytes", meta.mode(), meta.len()),
        );
        seen.note(format!("{name} text"), format!("{:?}", master.tidy(text.trim_start())));
    }
    let mut run = |words: &[&str], when: &str| {
        let status = master.command(words).status().expect("the program is there");
        seen.note(format!("master {} {when}", words.join(" ")), format!("{:?}", status.code()));
    };
    run(&["-t"], "while one runs");
    run(&[], "while one runs");
    run(&["-w"], "while one runs");
    master.signal(Signal::SIGTERM);
    let end = master.wait_for_end();
    let status = master.command(&["-t"]).status().expect("the program is there");
    seen.note("master -t when none runs", format!("{:?}", status.code()));
    seen.note("the first master", end);
    for name in ["q/pid/master.pid", "d/master.lock"] {
        seen.note(
            format!("{name} in the end"),
            if master.path(name).exists() { "stays" } else { "is gone" },
        );
    }
    seen
}

fn usage(kind: Kind) -> Observation {
    let lines = [
        &["-x"][..],
        &["operand"],
        &["-t", "-w"],
        &["-i"],
        &["-e", "soon"],
        &["-D", "-i"],
        &["-e", "1"],
    ];
    let mut seen = Observation::default();
    thread::scope(|scope| {
        let run = |words: &'static [&str]| {
            move || {
                let master = Master::new(kind);
                master.table("a unix n n n - 3 probe_worker\n");
                master.command(words).status().expect("the program is there").code()
            }
        };
        for (words, run) in lines.map(|words| (words, scope.spawn(run(words)))) {
            let status = run.join().expect("it was run");
            seen.note(format!("master {}", words.join(" ")), format!("{status:?}"));
        }
    });
    seen
}
