//! What a worker has from its master (1F, 1H).

use std::fs;

use belfry_tests::differential::{Kind, Master, Observation, Place, Report, Scenario};
use belfry_tests::probe::Probe;
use belfry_tests::wait;

use crate::corpus::has_ipv6;
use crate::decisions::{EXEC, LOG, REUSEPORT, W04, W05};

const NOTHING: &str = Observation::NOTHING;

pub(crate) const WORLD: Scenario = Scenario {
    name: "world",
    look: world,
    differences: &[
        W05.at("public/u descriptor 5", "unix seqpacket"),
        W05.at("public/f descriptor 5", "unix seqpacket"),
        W05.at("public/p descriptor 5", "unix seqpacket"),
        W05.at("private/d descriptor 5", "unix seqpacket"),
        W05.at("127.0.0.1:PORT1 descriptor 5", "unix seqpacket"),
        W05.at("0.0.0.0:PORT2 descriptor 5", "unix seqpacket"),
        REUSEPORT.at("127.0.0.1:PORT1 socket options", "reuseaddr"),
        REUSEPORT.at("0.0.0.0:PORT2 socket options", "reuseaddr"),
        LOG.at("environment POSTLOG_SERVICE", NOTHING),
        LOG.at("environment POSTLOG_HOSTNAME", NOTHING),
    ],
};
pub(crate) const WORLD6: Scenario = Scenario {
    name: "world-ipv6",
    look: world6,
    differences: &[
        W05.at("0.0.0.0:PORT1 descriptor 5", "unix seqpacket"),
        REUSEPORT.at("0.0.0.0:PORT1 socket options", "reuseaddr|reuseaddr v6only"),
    ],
};
pub(crate) const SCRIPTS: Scenario = Scenario {
    name: "scripts",
    look: scripts,
    differences: &[
        EXEC.at(
            "log: fatal: master_spawn: exec ROOT/bin/no-such-program: No such file or directory",
            NOTHING,
        ),
        EXEC.at(
            "log: warning: master_spawn: exec ROOT/bin/no-such-program: No such file or directory",
            "yes",
        ),
        W04.at("log: warning: ROOT/bin/script: ended without work -- throttling", "yes"),
        W04.at("log: warning: ROOT/bin/bare: ended without work -- throttling", "yes"),
    ],
};
pub(crate) const OPTIONS: Scenario = Scenario { name: "options", look: options, differences: &[] };

#[test]
fn h01_h02_h03_h04_the_world_of_a_worker() {
    WORLD.check();
}

#[test]
fn h01_g04_two_sockets_with_ipv6() {
    if has_ipv6() {
        WORLD6.check();
    }
}

#[test]
fn f03_f04_h04_signals_at_exec_scripts_and_programs_that_are_not_there() {
    SCRIPTS.check();
}

#[test]
fn a03_a04_a09_options_that_workers_see() {
    OPTIONS.check();
}

fn world(kind: Kind) -> Observation {
    let mut master = Master::new(kind);
    master.parameter("inet_interfaces = all");
    master.run(
        "u unix n n n - 3 probe_worker\nf fifo n n n - 1 probe_worker\n\
         d unix-dgram y n n - 1 probe_worker\np pass n n n - 1 probe_worker\n\
         127.0.0.1:PORT1 inet n n n - 3 probe_worker\nPORT2 inet n n n - 3 probe_worker\n",
    );
    let mut seen = Observation::default();
    // In this order: each is told its number.
    for name in ["public/u", "public/f", "private/d", "public/p"] {
        let report = master.worker_at(&Place::File(name.to_owned()));
        note_ends(&master, name, &report, &mut seen);
        if name == "public/u" {
            note_process(&master, &report, &mut seen);
        }
    }
    let ports = [(1, [127, 0, 0, 1]), (2, [0; 4])];
    note_ports(&master, &ports, &mut seen);
    seen
}

fn world6(kind: Kind) -> Observation {
    let mut master = Master::new(kind);
    master.parameter("inet_interfaces = all").parameter("inet_protocols = all");
    master.run("PORT1 inet n n n - 3 probe_worker\n");
    let mut seen = Observation::default();
    note_ports(&master, &[(1, [0; 4])], &mut seen);
    seen
}

/// Services of type inet: the number of the port, and the address.
fn note_ports(master: &Master, ports: &[(usize, [u8; 4])], seen: &mut Observation) {
    let place = |(n, host): &(usize, [u8; 4])| Place::Tcp((*host, master.port(*n)).into());
    let name = |port| master.tidy(&place(port).to_string());
    for port in ports {
        note_ends(master, &name(port), &master.worker_at(&place(port)), seen);
    }
    // Once all have been counted: to answer may take another worker.
    for port in ports {
        let report = Probe::tcp(master.port(port.0)).and_then(|mut probe| probe.report());
        let options = report.expect("a worker answers").remove("options").unwrap_or_default();
        seen.note(format!("{} socket options", name(port)), options);
    }
}

/// What differs from service to service.
fn note_ends(master: &Master, name: &str, report: &Report, seen: &mut Observation) {
    seen.note(format!("{name} argv"), master.tidy(report.get("argv")));
    let generation = report.get("env").split('|').find(|v| v.starts_with("GENERATION="));
    seen.note(format!("{name} generation"), generation.unwrap_or_default());
    for descriptor in report.get("descriptors").split('|') {
        let (number, what) = descriptor.split_once(' ').unwrap_or_default();
        seen.note(format!("{name} descriptor {number}"), master.tidy(what));
    }
}

/// What does not.
fn note_process(master: &Master, report: &Report, seen: &mut Observation) {
    for name in ["cwd", "umask", "uid", "gid", "blocked", "no_new_privs"] {
        seen.note(name, master.tidy(report.get(name)));
    }
    for variable in report.get("env").split('|') {
        let (name, value) = variable.split_once('=').unwrap_or_default();
        seen.note(format!("environment {name}"), master.tidy(value));
    }
    let pid = master.pid().to_string();
    for name in ["ppid", "session", "group"] {
        seen.note(name, if report.get(name) == pid { "the master's" } else { "another" });
    }
    // These come from whoever started the master, which is this test.
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limits = limits.lines().skip(1).collect::<Vec<_>>().join("|");
    let oom = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    seen.note("groups", report.get("groups"));
    for (name, own) in [("limits", limits.trim()), ("oom", oom.trim())] {
        let given = report.get(name);
        seen.note(name, if given == own { "as the master's starter" } else { given });
    }
}

/// The signals of the C library's own, which its posix_spawn leaves ignored when it starts a master.
const LIBRARYS: u64 = 0b11 << 31;

fn scripts(kind: Kind) -> Observation {
    let master = {
        let mut master = Master::new(kind);
        // A program that changes nothing of what it was given, as Rust's start-up does.
        let text = "exec cat /proc/self/status >\"$PROBE_REPORTS/../$0.status\"\n";
        master.script("script", &format!("#!/bin/sh\n{}", text.replace("$0", "script")));
        master.script("bare", &text.replace("$0", "bare"));
        master.run(
            "script unix n n n - 3 script\nbare unix n n n - 3 bare\n\
             missing unix n n n - 3 no-such-program\n",
        );
        master
    };
    let mut seen = Observation::default();
    for name in ["script", "bare", "missing"] {
        let _client = master.knock(&Place::File(format!("public/{name}")));
        if name == "missing" {
            master.log().wait_for("no-such-program: bad command startup");
            continue;
        }
        let file = master.path(&format!("{name}.status"));
        let status = wait::within(wait::LONG, || {
            fs::read_to_string(&file).ok().filter(|text| text.contains("SigCgt"))
        });
        for line in status.unwrap_or_default().lines().filter(|line| line.starts_with("Sig")) {
            if let Some((field @ ("SigBlk" | "SigIgn" | "SigPnd"), mask)) = line.split_once(":\t") {
                let mask = u64::from_str_radix(mask, 16).unwrap_or(u64::MAX) & !LIBRARYS;
                seen.note(format!("{name} {field}"), format!("{mask:x}"));
            }
        }
    }
    master.note_complaints(&mut seen);
    seen
}

fn options(kind: Kind) -> Observation {
    let mut seen = Observation::default();
    for words in [&[][..], &["-v", "-v"], &["-d"], &["-D"]] {
        let mut master = Master::new(kind);
        let touch =
            format!("debugger_command = echo $process_name >{}", master.path("ran").display());
        master.parameter(&touch);
        master.table("a unix n n n - 3 probe_worker\n");
        assert!(master.start(words), "{kind:?} {words:?}");
        let name = format!("master {}", words.join(" "));
        let report = master.worker_at(&Place::File("public/a".to_owned()));
        seen.note(format!("{name}: argv"), master.tidy(report.get("argv")));
        for descriptor in report.get("descriptors").split('|').take(3) {
            let (number, what) = descriptor.split_once(' ').unwrap_or_default();
            seen.note(format!("{name}: descriptor {number}"), master.tidy(what));
        }
        let leads = report.get("session") == master.pid().to_string();
        seen.note(format!("{name}: session"), if leads { "its own" } else { "its starter's" });
        let ran = words == ["-D"]
            && wait::within(wait::LONG, || fs::read(master.path("ran")).ok()).is_some();
        seen.note(format!("{name}: debugger"), if ran { "ran" } else { "did not run" });
    }
    seen
}
