//! What workers tell their master, and how it wakes them (1J, 1N).

use std::fs;

use belfry_tests::differential::{Kind, Master, Observation, Scenario};
use belfry_tests::probe::Probe;
use belfry_tests::wait;

use crate::decisions::{W05, WORDS};

const NOTHING: &str = Observation::NOTHING;

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
#[test]
fn j02_to_j07_w05_what_a_worker_says_of_itself_and_others() {
    GOSSIP.check();
}

#[test]
fn n01_n02_n03_wakeups_of_every_type() {
    WAKEUPS.check();
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
