//! The log: nobody waits for whoever reads it, and no source fills it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use belfry_tests::probe::Probe;
use belfry_tests::process::Process;
use belfry_tests::{Instance, wait};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::pipe;

/// Sets whether the open file, which others share, is written to without waiting.
fn nonblocking(file: &File, on: bool) {
    let flags = if on { OFlag::O_NONBLOCK } else { OFlag::empty() };
    fcntl(file, FcntlArg::F_SETFL(flags)).expect("it is open");
}

/// The master froze in the middle of a write, and every service with it.
#[test]
fn a_reader_of_standard_output_that_is_stuck_stops_nobody() {
    let mut instance = Instance::bare();
    instance.service("a unix - - - - - qmgr").parameter("maillog_file", "/dev/stdout").write();
    let (read, write) = pipe().unwrap();
    let (mut read, mut write) = (File::from(read), File::from(write));
    nonblocking(&write, true);
    while write.write(&[b'x'; 4096]).is_ok() {}
    nonblocking(&write, false);
    let mut master = instance.command("master");
    master.arg("-s").arg("-c").arg(instance.config()).stdout(OwnedFd::from(write));
    let mut master = master.stderr(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(master.id()).unwrap();
    wait::until("the master to serve", wait::LONG, || {
        instance.belfry(&["status"]).status.success().then_some(())
    });
    assert!(instance.belfry(&["reload"]).status.success());
    // Reading goes on: what is missing is said.
    let mut bytes = [0; 1 << 16];
    read.read_exact(&mut bytes).unwrap();
    assert!(instance.belfry(&["reload"]).status.success());
    nonblocking(&read, true);
    let size = read.read(&mut bytes).unwrap();
    let text = String::from_utf8_lossy(&bytes[..size]).into_owned();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].contains(" test belfry/master["), "{text}");
    assert!(lines[0].ends_with("log lines lost: the reader of the log does not keep up"), "{text}");
    assert!(lines[1].contains("reload -- "), "{text}");
    Process::read(pid).unwrap().signal(Signal::SIGTERM);
    master.wait().unwrap();
    instance.finish(&[]);
}

/// The parameter was ignored, and lines did not say whose they are.
#[test]
fn lines_in_a_file_name_the_host_and_the_file_has_its_permissions() {
    for permissions in ["0640", "644"] {
        let mut instance = Instance::bare();
        instance.parameter("maillog_file_permissions", permissions);
        instance.parameter("myhostname", "mail.example.org").start();
        let line = instance.log().wait_for("daemon started");
        assert!(
            line.contains(&format!(" mail belfry/master[{}]: ", instance.master_pid())),
            "{line}"
        );
        let mode = fs::metadata(instance.root().join("log")).unwrap().permissions().mode();
        assert_eq!(format!("{:o}", mode & 0o7777), permissions.trim_start_matches('0'));
        instance.finish(&["overrides the earlier entry"]);
    }
}

/// Every record of garbage was a line: 38 MB of log in a second.
#[test]
fn a_worker_that_writes_garbage_does_not_fill_the_log() {
    let mut instance = Instance::bare();
    instance.service("liar unix n n n - 1 probe_worker").start();
    let mut liar = Probe::unix(&instance.queue().join("public/liar")).unwrap();
    for _ in 0..2000 {
        assert_eq!(liar.ask("forge 1 1 1").unwrap(), "sent");
    }
    let line = instance.log().wait_for("more lines suppressed like: ignoring status update from");
    assert!(line.contains(" more lines suppressed like: ignoring status update from child pid 1"));
    let lines = instance.log().count("master[");
    assert!(lines < 300, "{lines} lines of log");
    drop(liar);
    instance.finish(&["more lines suppressed like"]);
}

/// SIGXFSZ ended the master at the first line for which the limit had no room.
#[test]
fn a_log_at_the_limit_of_file_sizes_ends_no_master() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker").start();
    let log = instance.root().join("log");
    let limit = fs::metadata(&log).unwrap().len() + 150;
    let mut prlimit = Command::new("prlimit");
    prlimit.arg(format!("--pid={}", instance.master_pid())).arg(format!("--fsize={limit}"));
    assert!(prlimit.status().expect("util-linux has it").success());
    for _ in 0..5 {
        let reload = instance.belfry(&["reload"]);
        assert!(reload.status.success(), "{reload:?}");
    }
    assert_eq!(fs::metadata(&log).unwrap().len(), limit, "the limit was reached");
    assert!(Probe::unix(&instance.queue().join("public/a")).unwrap().report().is_ok());
    // No room for lines means none about the end either.
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, &text[..=text.rfind('\n').unwrap()]).unwrap();
    instance.finish(&[]);
}
