//! DIFFERENCES.md is what the decisions and the scenarios say.

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use belfry_tests::differential::{Decision, corpus};

use crate::SCENARIOS;
use crate::decisions::ALL;

const HEAD: &str = "# Where Belfry's master differs from Postfix's

What an operator or a worker can see to be different, and nothing else: the scenarios named here run
under both masters, and every difference between what they show must be declared. Where no test is
named the difference is in the making and not in what can be seen.

Made from `tests/tests/differential/decisions.rs`; see the head of `main.rs` there.
";

fn document() -> String {
    let mut text = HEAD.to_owned();
    for decision in ALL {
        let Decision { id, title, postfix, ours, .. } = decision;
        let _ = write!(text, "\n## {id}: {title}\n\nPostfix: {postfix}\n\nBelfry: {ours}\n");
        let mut seen = scenarios_of(decision);
        seen.extend(decision.tests.iter().map(|test| format!("`{test}`")));
        if !seen.is_empty() {
            let _ = write!(text, "\nSeen by: {}.\n", seen.join(", "));
        }
    }
    text
}

/// The scenarios that show it.
fn scenarios_of(decision: &Decision) -> Vec<String> {
    let shows = SCENARIOS.iter().filter(|s| s.differences.iter().any(|d| d.why == decision));
    shows.map(|scenario| format!("`differential` {}", scenario.name)).collect()
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn the_document_is_fresh() {
    let path = workspace().join("tests/DIFFERENCES.md");
    if env::var_os("BELFRY_BLESS").is_some_and(|v| v == "1") {
        fs::write(&path, document()).unwrap();
    }
    let shipped = fs::read_to_string(&path).unwrap_or_default();
    assert!(shipped == document(), "tests/DIFFERENCES.md is stale: see the head of this test");
    let readme = fs::read_to_string(workspace().join("README.md")).unwrap();
    assert!(readme.contains("tests/DIFFERENCES.md"), "README.md does not point to it");
}

#[test]
fn every_weakness_is_told_once() {
    let mut ids: Vec<&str> = ALL.iter().map(|decision| decision.id).collect();
    for n in 1..=25 {
        assert!(ids.contains(&format!("W{n:02}").as_str()), "W{n:02} is missing");
    }
    ids.sort_unstable();
    let all = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), all, "an id is there twice");
}

#[test]
fn every_record_is_that_of_a_scenario() {
    for entry in fs::read_dir(corpus()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".expected") else { continue };
        assert!(SCENARIOS.iter().any(|scenario| scenario.name == name), "{name} is none");
    }
}

#[test]
fn the_tests_named_are_there() {
    let mut sources = String::new();
    for directory in ["tests/tests", "master/src", "master/src/avail/tests", "master/src/table"] {
        for entry in fs::read_dir(workspace().join(directory)).unwrap().flatten() {
            sources += &fs::read_to_string(entry.path()).unwrap_or_default();
        }
    }
    for test in ALL.iter().flat_map(|decision| decision.tests) {
        assert!(sources.contains(&format!("fn {test}(")), "{test} is no test");
    }
}
