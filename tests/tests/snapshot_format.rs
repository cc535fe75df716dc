//! The text by which one version hands over to the next: what a released version writes is read by every
//! later one.
//!
//! `snapshots/N.json` was written by a running master, with everything in it that there can be; 1 is of
//! version 0.1.0. When the text changes, add the next file and keep the others.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use belfry_tests::{Instance, binaries};
use master::snapshot::Snapshot;
use serde_json::Value;

/// The texts, from the oldest to the newest.
fn texts() -> Vec<String> {
    let file = |number: usize| format!("{}/snapshots/{number}.json", env!("CARGO_MANIFEST_DIR"));
    let texts: Vec<_> = (1..).map_while(|number| fs::read_to_string(file(number)).ok()).collect();
    assert!(!texts.is_empty(), "the released format is there");
    texts
}

#[test]
fn w22_the_text_is_that_of_the_newest_file() {
    let texts = texts();
    let newest: Value = serde_json::from_str(texts.last().expect("there is one")).unwrap();
    let read = Snapshot::read(newest.to_string().as_bytes());
    let written = read.map(|s| serde_json::to_value(s).expect("it was JSON"));
    assert!(
        written == Ok(newest),
        "the text has changed: add tests/snapshots/{}.json, and keep the others",
        texts.len() + 1
    );
}

#[test]
fn w22_this_program_goes_on_from_the_text_of_every_version() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker").start();
    let directory = instance.config().display().to_string();
    for (text, number) in texts().iter().zip(1..) {
        let path = instance.root().join("snapshot");
        fs::write(&path, text.replace("\"/etc/belfry\"", &format!("{directory:?}"))).unwrap();
        let mut ask = Command::new(binaries::directory().join("master"));
        ask.arg("--can-resume").stdin(Stdio::from(File::open(&path).unwrap()));
        let answer = String::from_utf8(ask.output().unwrap().stdout).unwrap();
        assert!(answer.starts_with("can resume, version "), "{number}: {answer}");
    }
    instance.finish(&[]);
}
