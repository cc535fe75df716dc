//! The options of master(8) that have no test elsewhere.

use std::process::Stdio;

use belfry_tests::{Instance, process, wait};

#[test]
fn a01_a12_what_cannot_be_is_told() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker").write();
    for words in [&["-x"][..], &["operand"], &["-t", "-w"], &["-i"], &["-e", "soon"]] {
        let refused = instance.command("master").args(words).output().unwrap();
        assert_eq!(refused.status.code(), Some(1), "{words:?}");
        let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(errors.contains("fatal: ") && errors.lines().count() == 1, "{words:?}: {errors}");
    }
    instance.finish(&[]);
}

#[test]
fn a05_after_its_time_the_master_ends_and_workers_drain() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n 1 3 probe_worker").write();
    let mut master = instance.command("master").args(["-e", "2"]).spawn().unwrap();
    instance.log().wait_for("daemon started");
    let status = master.wait().unwrap();
    assert_eq!(status.code(), Some(0));
    instance.log().wait_for("master exit time has arrived");
    wait::until("the workers to end", wait::LONG, || {
        process::below(instance.root()).is_empty().then_some(())
    });
    instance.finish(&[]);
}

#[test]
fn a07_dash_s_logs_to_standard_output() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker").write();
    // The last of two entries counts.
    instance.parameter("maillog_file", "/dev/stdout").write();
    let mut master = instance.command("master");
    master.args(["-s", "-e", "1"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let output = master.spawn().unwrap().wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(log.contains("daemon started") && log.contains("exit time has arrived"), "{log}");
    instance.finish(&[]);
}

#[test]
fn a09_one_v_for_workers_whatever_the_count() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker").write();
    let mut master = instance.command("master").args(["-vv", "-v"]).spawn().unwrap();
    instance.log().wait_for("daemon started");
    let path = instance.queue().join("public/a");
    let report = belfry_tests::probe::Probe::unix(&path).unwrap().report().unwrap();
    assert_eq!(report["argv"], "probe_worker|-n|a|-t|unix|-v");
    let pid = i32::try_from(master.id()).unwrap();
    process::Process::read(pid).unwrap().signal(nix::sys::signal::Signal::SIGTERM);
    master.wait().unwrap();
    instance.finish(&[]);
}

#[test]
fn a10_w17_dash_w_waits_and_prints_the_reason_of_a_failure() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker").write();
    let started = instance.command("master").arg("-w").output().unwrap();
    assert!(started.status.success(), "{started:?}");
    // It serves when the command has ended, not some time later.
    let path = instance.queue().join("public/a");
    assert!(belfry_tests::probe::Probe::unix(&path).unwrap().report().is_ok());
    assert!(instance.belfry(&["stop"]).status.success());
    std::fs::remove_dir_all(instance.queue().join("pid")).unwrap();
    let refused = instance.command("master").arg("-w").output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        errors.contains("open lock file pid/master.pid: No such file or directory"),
        "{errors}"
    );
    // It is in the log as well.
    instance.finish(&["fatal: open lock file pid/master.pid: No such file or directory"]);
}
