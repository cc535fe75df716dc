//! The layers of each crate, from the ground up, and the walls between the crates.
//!
//! A module uses only what stands before it in its list. A new module gets its place here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const WORKER_PROTO: &[&str] = &[
    "abi",
    "sys",
    "getopt",
    "time_value",
    "clock",
    "status",
    "diagnostic",
    "files",
    "directory",
    "identity",
    "logical",
    "expand",
    "main_cf",
    "params",
    "log",
    "jail",
    "watchdog",
    "client",
    "server",
    "single",
    "multi",
    "trigger",
];

const MASTER: &[&str] = &[
    // What everybody speaks of.
    "service",
    "notice",
    "params",
    "cli",
    // Pure: no clock, no descriptor, no file.
    "avail",
    "wakeup",
    "table",
    "plan",
    "limits",
    "conf",
    "timer",
    "report",
    "request",
    "jobs",
    // The system.
    "owner",
    "names",
    "config",
    "files",
    "layout",
    "listen",
    "orphans",
    "channel",
    "trigger",
    "signal",
    "lock",
    "monitor",
    "notify",
    "cgroup",
    "remains",
    "control",
    "metricsd",
    "stage2",
    "snapshot",
    "resume",
    // Everything together.
    "event_loop",
    "daemon",
    "belfry",
    "manual",
];

const DELIVERY_AGENT: &[&str] = &[
    "outcome",
    "params",
    // Pure.
    "address",
    "networks",
    "relay",
    "retry",
    "alerts_cf",
    "aliases",
    "message",
    "smtp",
    // qmgr's protocol, and what lies on the disk.
    "wire",
    "store",
    "maildrop",
    "listing",
    "submission",
    // Programs.
    "smtpd",
    "sink",
    "agent",
    "queue",
    "manager",
    "alertq",
    "sendmail",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every Rust file below a directory, without what was built there.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    for path in entries.map(|entry| entry.path()) {
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The code of a file: no comments, no tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules that a text names as `crate::module` or in `crate::{module, ...}`.
fn used(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => found.extend(heads(group)),
            None => found.extend(head(rest)),
        }
    }
    found
}

fn head(text: &str) -> Option<String> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

/// The first word of each item of a `{ }` group whose brace was read.
fn heads(group: &str) -> Vec<String> {
    let (mut depth, mut item, mut items) = (0_u32, String::new(), Vec::new());
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => items.push(std::mem::take(&mut item)),
            '{' => depth += 1,
            '}' => depth -= 1,
            c => item.push(c),
        }
    }
    items.push(item);
    items.iter().filter_map(|item| head(item.trim())).collect()
}

/// What breaks the order in a crate.
fn upward(source: &Path, order: &[&str]) -> Vec<String> {
    let place = |module: &str| order.iter().position(|m| *m == module);
    let mut faults = Vec::new();
    for file in sources(source) {
        let inside = file.strip_prefix(source).expect("it was found there");
        let first = inside.iter().next().unwrap_or_default().to_string_lossy();
        let module = first.trim_end_matches(".rs");
        if module == "lib" || module == "bin" || inside.ends_with("tests.rs") {
            continue;
        }
        let Some(here) = place(module) else {
            faults.push(format!("{module}: has no place in the order"));
            continue;
        };
        for other in used(&code(&file)).iter().filter(|other| *other != module) {
            // What is no module of the order is a macro or an item of the crate itself.
            if place(other).is_some_and(|there| there > here) {
                faults.push(format!("{}: uses {other} above it", inside.display()));
            }
        }
    }
    faults
}

#[test]
fn no_module_uses_one_above_it() {
    for (name, order) in
        [("worker-proto", WORKER_PROTO), ("master", MASTER), ("delivery-agent", DELIVERY_AGENT)]
    {
        let source = workspace().join(name).join("src");
        assert!(!sources(&source).is_empty(), "{name} has no sources");
        assert_eq!(upward(&source, order), [] as [String; 0], "in {name}");
    }
}

#[test]
fn the_check_sees_an_upward_use() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("low.rs"), "use crate::{\n    low::A,\n    high::{B, C},\n};\n")
        .unwrap();
    fs::write(dir.path().join("high.rs"), "// use crate::low\nuse crate::low::D;\n").unwrap();
    fs::write(dir.path().join("other.rs"), "").unwrap();
    assert_eq!(
        upward(dir.path(), &["low", "high"]),
        ["low.rs: uses high above it", "other: has no place in the order"]
    );
}

#[test]
fn master_and_delivery_agent_do_not_know_each_other() {
    for (name, other) in [("master", "delivery-agent"), ("delivery-agent", "master")] {
        let manifest = fs::read_to_string(workspace().join(name).join("Cargo.toml")).unwrap();
        let dependency = manifest.lines().skip_while(|line| !line.contains("dependencies]"));
        let found: Vec<_> = dependency.filter(|line| line.starts_with(other)).collect();
        assert_eq!(found, [] as [&str; 0], "{name} depends on {other}");
    }
}

#[test]
fn unsafe_code_lives_in_one_file() {
    let word = ["un", "safe"].concat();
    for name in ["worker-proto", "master", "delivery-agent", "tests"] {
        for file in sources(&workspace().join(name)) {
            if file.ends_with("worker-proto/src/sys.rs") {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            let block = [" {", " fn", " impl", " extern"].map(|next| format!("{word}{next}"));
            let found: Vec<_> = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .filter(|line| block.iter().any(|b| line.contains(b)))
                .collect();
            assert_eq!(found, [] as [&str; 0], "in {}", file.display());
        }
    }
    for name in ["master", "delivery-agent"] {
        let text = fs::read_to_string(workspace().join(name).join("src/lib.rs")).unwrap();
        assert!(text.contains(&format!("#![forbid({word}_code)]")), "{name}");
    }
}

#[test]
fn w16_time_enters_in_one_place_and_is_monotonic() {
    for name in ["worker-proto", "master", "delivery-agent"] {
        for file in sources(&workspace().join(name).join("src")) {
            if file.ends_with("worker-proto/src/clock.rs") {
                continue;
            }
            let code = code(&file);
            for call in ["Instant::now(", "SystemTime::now("] {
                assert!(!code.contains(call), "{call} in {}", file.display());
            }
        }
    }
}
