//! Tables of the corpus: what is said about each, where the master listens, and the command lines.
//!
//! A file in `tests/corpus` holds one table, or several with a line `#---` between them: each is run
//! by a master of its own, with blank lines in place of what stands before it, so that line numbers
//! are those of the file. `#main.cf: NAME = VALUE` in a table is a line of its main.cf.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;
use std::thread;

use belfry_tests::differential::{Kind, Master, Observation, Place, Reloaded, Scenario, corpus};

use crate::decisions::{EMPTY, NEWER, PLACES, W01, W02, W17, W21};

/// How many masters run side by side. They mostly wait: Postfix's for a second before it ends.
const SIDE_BY_SIDE: usize = 16;
/// Why a lock can be taken.
const ALONE: &str = "nobody panics with the lock";

const NOTHING: &str = Observation::NOTHING;

pub(crate) const TABLES: Scenario = Scenario {
    name: "tables",
    look,
    differences: &[
        W02.at("command:4", "runs"),
        W02.at(
            "command:4 is refused",
            "service no/such/directory(public/no/such/directory): \
             bind public/no/such/directory: No such file or directory -- retrying",
        ),
        W21.at("command:6", "exit status 1"),
        W21.at(
            "command:6 is refused",
            "field \"command\": \"../bin/probe_worker\" leaves the daemon directory",
        ),
        W21.at("command:6 public/a argv", NOTHING),
        W21.at("command:6 public/a file", NOTHING),
        PLACES.at(
            "duplicate:12 warns",
            "duplicate master.cf entry for service \"mine\" (PORT1) -- using the last entry",
        ),
        PLACES.at(
            "duplicate:9 warns",
            "duplicate master.cf entry for service \"[127.0.0.1]:PORT1\" ([127.0.0.1]:PORT1) \
             -- using the last entry",
        ),
        EMPTY.at("empty:1", "runs, but is refused at a reload"),
        EMPTY.at(
            "empty:1 is refused",
            "it has no service; to end all of them: belfry reload --allow-empty",
        ),
        EMPTY.at("orphan:4", "runs, but is refused at a reload"),
        EMPTY.at(
            "orphan:4 is refused",
            "it has no service; to end all of them: belfry reload --allow-empty",
        ),
        W21.at("inet-names:23", "exit status 1"),
        W21.at("inet-names:23 127.0.0.1:4464 argv", NOTHING),
        W21.at("inet-names:23 is refused", "bad port number: 70000"),
        PLACES.at("inet-names:25 is refused", "unknown service"),
        PLACES.at("inet-names:29 is refused", "unknown service"),
        W21.at("limit:12", "exit status 1"),
        W21.at("limit:12 is refused", "field \"max_proc\": bad value: \"99999999999\""),
        W21.at("limit:12 public/a argv", NOTHING),
        W21.at("limit:12 public/a file", NOTHING),
        W21.at("limit:6 warns", "field \"max_proc\": \"5x\" is read as 5"),
        PLACES.at("missing:17 is refused", NOTHING),
        PLACES.at("missing:18 is refused", "missing \"wakeup_time\" field"),
        W21.at("names:5", "exit status 1"),
        W21.at("names:5 is refused", "service name \"../private/b\" leaves the queue directory"),
        W21.at("names:5 public/../private/b argv", NOTHING),
        W21.at("names:5 public/../private/b file", NOTHING),
        W17.at("names:7 is refused", "service name is too long for a socket"),
        NEWER.at("null-byte:1 warns", "text after null byte may be ignored"),
        W01.at("several-errors:2 is refused", "field \"max_proc\": bad value: \"x\""),
        W01.at("several-errors:3 is refused", "missing \"private\" field"),
        W01.at("several-errors:4 is refused", "bad transport type: INET"),
        W01.at("several-errors:4 is refused (2)", "missing '}'"),
        W21.at("wakeup:10 warns", "field \"wakeup_time\": \"60?1\" is read as 60"),
        W21.at("wakeup:20", "exit status 1"),
        W21.at("wakeup:20 is refused", "field \"wakeup_time\": bad value: \"99999999999?\""),
        W21.at("wakeup:20 public/a argv", NOTHING),
        W21.at("wakeup:20 public/a file", NOTHING),
        W21.at("wakeup:6 warns", "field \"wakeup_time\": \"60s?\" is read as 60"),
        W21.at("wakeup:8 warns", "field \"wakeup_time\": \"1h?\" is read as 1"),
    ],
};

pub(crate) const TABLES6: Scenario =
    Scenario { name: "tables-ipv6", look: look6, differences: &[] };

#[test]
fn tables() {
    TABLES.check();
}

#[test]
fn tables_with_ipv6() {
    if has_ipv6() {
        TABLES6.check();
    }
}

/// Whether this machine has IPv6; a container may have none.
pub(crate) fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

/// What the files are called whose tables need IPv6.
const IPV6: &str = "inet6";

fn look(kind: Kind) -> Observation {
    look_at(kind, |name| !name.starts_with(IPV6))
}

fn look6(kind: Kind) -> Observation {
    look_at(kind, |name| name.starts_with(IPV6))
}

/// The tables of some files.
fn look_at(kind: Kind, wanted: fn(&str) -> bool) -> Observation {
    let tables = all_tables().into_iter().filter(|(name, _)| wanted(name));
    let tables = Mutex::new(tables.collect::<Vec<_>>());
    let seen = Mutex::new(Observation::default());
    thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let Some((name, text)) = tables.lock().expect(ALONE).pop() else { return };
                    let mut one = Observation::default();
                    run(kind, &name, &text, &mut one);
                    seen.lock().expect(ALONE).extend(one);
                }
            });
        }
    });
    seen.into_inner().expect(ALONE)
}

/// `FILE:LINE` of its first line, and the text.
fn all_tables() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(corpus()).expect("the corpus is there").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".cf") else { continue };
        let text = fs::read_to_string(entry.path()).expect("a table is text");
        let mut before = 0;
        for table in text.split_inclusive("#---\n") {
            found.push((format!("{name}:{}", before + 1), "\n".repeat(before) + table));
            before += table.lines().count();
        }
    }
    assert!(found.len() > 20, "the corpus is not there");
    found
}

fn run(kind: Kind, name: &str, text: &str, seen: &mut Observation) {
    // Before it serves, Postfix's master tells the system's log alone: hence a reload.
    let mut master = prepared(kind, text);
    master.run(FIRST);
    let first = Place::File("public/first".to_owned());
    let reloaded = master.reload_without(&first, text);
    note_complaints(&master, name, seen);
    if reloaded == Reloaded::Done {
        seen.note(name, "runs");
        return note_services(&master, name, seen);
    }
    let mut master = prepared(kind, text);
    master.table(text);
    if master.start(&[]) {
        return seen.note(name, "runs, but is refused at a reload");
    }
    seen.note(name, master.wait_for_end());
}

/// What the master runs first; of a type that no table disables.
const FIRST: &str = "first unix-dgram n n n - - probe_worker\n";

fn prepared(kind: Kind, text: &str) -> Master {
    let mut master = Master::new(kind);
    for line in text.lines().filter_map(|line| line.strip_prefix("#main.cf: ")) {
        master.parameter(line);
    }
    master
}

fn note_complaints(master: &Master, name: &str, seen: &mut Observation) {
    let file = name.split(':').next().unwrap_or_default();
    let mut count = BTreeMap::<String, usize>::new();
    let complaints = master.complaints();
    for (place, said) in complaints.iter().filter_map(|line| complaint(line, file)) {
        let place = if place.starts_with(file) { place } else { format!("{name} {place}") };
        let nth = count.entry(place.clone()).or_default();
        *nth += 1;
        seen.note(if *nth == 1 { place } else { format!("{place} ({nth})") }, said);
    }
}

fn note_services(master: &Master, name: &str, seen: &mut Observation) {
    for place in master.listens() {
        let at = format!("{name} {}", master.tidy(&place.to_string()));
        if let Place::File(file) = &place {
            let meta = fs::symlink_metadata(master.path("q").join(file));
            let meta = meta.expect("the master has made it");
            let belongs = if meta.uid() == 0 { "root" } else { "the mail owner" };
            seen.note(format!("{at} file"), format!("{:o} of {belongs}", meta.mode()));
        }
        seen.note(format!("{at} argv"), master.tidy(master.worker_at(&place).get("argv")));
    }
}

/// Where a complaint is made and what it says, in words that both masters share.
fn complaint(line: &str, file: &str) -> Option<(String, String)> {
    let (severity, text) = line.split_once(": ")?;
    if text.starts_with("reload refused") {
        return None;
    }
    let (mut place, mut said) = (None, text);
    if let Some((_, rest)) = text.split_once("ROOT/etc/master.cf:") {
        // Postfix: " line 3: text", " text"; ours: "3:8: text".
        let (before, behind) = rest.split_once(": ").unwrap_or(("", rest));
        let number = before.strip_prefix(" line ").or_else(|| Some(before.split_once(':')?.0));
        place = number.and_then(|n| n.parse::<usize>().ok());
        said = if place.is_some() { behind } else { rest };
    }
    let said = classify(said.trim_start().trim_start_matches("warning: "));
    // Postfix names no place in a warning.
    Some(match (severity, place) {
        ("warning", _) => ("warns".to_owned(), said),
        (_, Some(line)) => (format!("{file}:{line} is refused"), said),
        (_, None) => ("is refused".to_owned(), said),
    })
}

/// Both tell the same in slightly other words: the names of two columns, how the text in question is
/// quoted, and what stands for a tab.
fn classify(said: &str) -> String {
    let said = said.replace("\"process limit\"", "\"max_proc\"");
    let said = said.replace("\"wakeup\"", "\"wakeup_time\"").replace("\\t", "?");
    if said.ends_with(" is too long for a socket") {
        return "service name is too long for a socket".to_owned();
    }
    if let Some((before, _)) = said.split_once(" service: ") {
        return format!("{before} service");
    }
    said.split_once(" in \"").map_or(said.as_str(), |(before, _)| before).to_owned()
}
