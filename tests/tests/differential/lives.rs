//! What workers say and how masters wake them, end, and are kept from starting twice (1A, 1B, 1J, 1N, 1P).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use belfry_tests::differential::{Kind, Master, Observation, Place, Scenario};
use belfry_tests::probe::Probe;
use belfry_tests::process::Process;
use belfry_tests::wait;
use nix::sys::signal::Signal;

use crate::decisions::{STOP, W05, W21, WORDS};

const NOTHING: &str = Observation::NOTHING;

/// Far longer than a worker takes to end.
const SOON: Duration = Duration::from_secs(1);

pub(crate) const GOSSIP: Scenario = Scenario {
    name: "gossip",
    look: gossip,
    differences: &[
        W05.at("the master", "runs"),
        W05.at("log: panic: master_status_event: pointer corruption: ADDRESS != ADDRESS", NOTHING),
        W05.at("log: ignoring status update from child pid B generation 1", "yes"),
        W05.at("log: ignoring status update from child pid 1 generation 1", "yes"),
        WORDS.at("log: ignoring status update from child pid A generation 9", NOTHING),
        WORDS.at("log: ignoring status update from child pid A generation 11", "yes"),
        WORDS.at(
            "log: warning: master_status_event: ignoring unknown status: A allegedly from pid: N",
            NOTHING,
        ),
        WORDS.at("log: warning: ignoring unknown status: 7 allegedly from pid: N", "yes"),
    ],
};
pub(crate) const WAKEUPS: Scenario = Scenario { name: "wakeups", look: wakeups, differences: &[] };
pub(crate) const ENDS: Scenario = Scenario {
    name: "ends",
    look: ends,
    differences: &[
        STOP.at("SIGTERM: a busy worker that ignores SIGTERM", "ends"),
        STOP.at("SIGINT: a busy worker that ignores SIGTERM", "ends"),
    ],
};
pub(crate) const LOCKS: Scenario = Scenario { name: "locks", look: locks, differences: &[] };
pub(crate) const USAGE: Scenario =
    Scenario { name: "usage", look: usage, differences: &[W21.at("master -e soon", "Some(1)")] };

#[test]
fn j02_to_j07_w05_what_a_worker_says_of_itself_and_others() {
    GOSSIP.check();
}

#[test]
fn n01_n02_n03_wakeups_of_every_type() {
    WAKEUPS.check();
}

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

fn gossip(kind: Kind) -> Observation {
    let mut master =
        Master::with(kind, "a unix n n n - 3 probe_worker\nb unix n n n - 3 probe_worker\n");
    let mut seen = Observation::default();
    let connect = |name: &str| {
        let mut probe = Probe::unix(&master.path("q/public").join(name)).expect("it listens");
        let pid = probe.report().expect("a worker answers")["pid"].clone();
        (probe, pid)
    };
    let (_victim, b) = connect("b");
    let (mut liar, a) = connect("a");
    master.name(&a, "A");
    master.name(&b, "B");
    // An answer does not mean that the master has read it: its lines do.
    let mut lie = |lie: &str| _ = liar.ask(lie);
    lie("forge 1 1 1");
    lie(&format!("forge {a} 9 1"));
    master.log().wait_for("ignoring status update from child pid");
    lie(&format!("forge {a} 2 0"));
    lie(&format!("forge {a} 2 7"));
    master.log().wait_for("ignoring unknown status");
    lie("bytes 5");
    master.log().wait_for("partial status update (5 bytes)");
    lie(&format!("forge {b} 1 1"));
    wait::until("the master to see it", wait::LONG, || {
        let about_b = format!("ignoring status update from child pid {b}");
        (master.has_ended() || master.log().count(&about_b) > 0).then_some(())
    });
    seen.note("the master", master.fate());
    for line in master.log().lines("ignoring status update") {
        let text = line.split_once("]: ").map_or("", |(_, text)| text).to_owned();
        seen.note(format!("log: {}", master.tidy(&text)), "yes");
    }
    master.note_complaints(&mut seen);
    seen
}

fn wakeups(kind: Kind) -> Observation {
    let mut master = Master::new(kind);
    let root = master.path("trace-");
    let line =
        |name: &str, line: &str| format!("{line} probe_worker trace={}{name}\n", root.display());
    master.run(
        &(line("u", "u unix n n n 1 1")
            + &line("f", "f fifo n n n 1 1")
            + &line("p", "p pass n n n 1 1")
            + &line("i", "127.0.0.1:PORT1 inet n n n 1 1")
            + &line("d", "d unix-dgram n n n 1 1")
            + &line("c", "c unix n n n 1? 1")),
    );
    let mut seen = Observation::default();
    let said = |name: &str| -> Vec<String> {
        let text = fs::read_to_string(master.path(&format!("trace-{name}"))).unwrap_or_default();
        text.lines().filter_map(|line| Some(line.split_once(' ')?.1.to_owned())).collect()
    };
    for name in ["u", "f", "i"] {
        let heard = wait::within(wait::LONG, || Some(said(name)).filter(|s| s.len() >= 2));
        let heard =
            heard.unwrap_or_else(|| panic!("{name} hears nothing: {}", master.log().text()));
        // A late reader finds several wakeups in a fifo.
        let several = heard[0].bytes().all(|byte| byte == b'W') && !heard[0].is_empty();
        let heard = if several { "W" } else { &heard[0] };
        seen.note(format!("{name} hears again and again"), heard);
    }
    // What is passed is a pipe, which the probe does not read.
    let woken = wait::within(wait::LONG, || {
        master.reports().into_iter().find(|report| report.get("argv").contains("-t|pass"))
    });
    seen.note("p", if woken.is_some() { "is woken" } else { "sleeps on" });
    seen.note("c before its first client hears", format!("{:?}", said("c").first()));
    drop(Probe::unix(&master.path("q/public/c")).and_then(|mut p| p.report()));
    let heard = wait::within(wait::LONG, || said("c").first().cloned());
    seen.note("c after its first client hears", heard.unwrap_or_default());
    master.log().wait_for("master_wakeup_timer_event");
    seen.note("d hears", format!("{:?}", said("d").first()));
    master.note_complaints(&mut seen);
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
