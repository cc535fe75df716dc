//! The harness fails a test when it should: what every other test relies on at its end.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use belfry_tests::probe::Probe;
use belfry_tests::{Instance, binaries};

#[test]
#[should_panic(expected = "6=socket 9=/dev/null")]
fn h01_a_worker_with_a_descriptor_too_many_fails_its_test() {
    let mut instance = Instance::bare();
    let libexec = instance.root().join("libexec");
    fs::create_dir(&libexec).unwrap();
    let worker = binaries::directory().join("probe_worker");
    let text = format!("#!/bin/sh\nexec {} \"$@\" 9</dev/null\n", worker.display());
    fs::write(libexec.join("opens-nine"), text).unwrap();
    fs::set_permissions(libexec.join("opens-nine"), Permissions::from_mode(0o755)).unwrap();
    instance
        .parameter("daemon_directory", &libexec.display().to_string())
        .service("a unix n n n - 3 opens-nine")
        .start();
    Probe::unix(&instance.queue().join("public/a")).unwrap().report().unwrap();
    instance.finish(&[]);
}

#[test]
#[should_panic(expected = "unexpected in the log")]
fn a_complaint_that_nobody_expects_fails_its_test() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker crash").start();
    let _client = Probe::unix(&instance.queue().join("public/a")).unwrap();
    instance.log().wait_for("bad command startup");
    instance.finish(&["bad command startup"]);
}

#[test]
#[should_panic(expected = "expected in vain")]
fn a_complaint_that_is_expected_and_not_made_fails_its_test() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker").start();
    instance.finish(&["bad command startup"]);
}
