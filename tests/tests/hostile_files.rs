//! Files that are not what they should be: each is an error at once, and the running master goes on.

use std::fs;
use std::io::{BufWriter, Write};
use std::process::Output;

use belfry_tests::probe::Probe;
use belfry_tests::process::Process;
use belfry_tests::{Instance, wait};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The master waited for a writer, deaf to every signal; `belfry stop` waited as well.
#[test]
fn a_fifo_in_the_place_of_a_file_is_an_error_at_once() {
    let mut instance = Instance::bare();
    instance.service("a unix - - - - - qmgr").start();
    for name in ["master.cf", "main.cf"] {
        let (path, kept) = (instance.config().join(name), instance.config().join("kept"));
        fs::rename(&path, &kept).unwrap();
        mkfifo(&path, Mode::S_IRUSR).unwrap();
        let reason = format!("open {}: not a regular file", path.display());
        for command in ["check", "start"] {
            let output = instance.belfry(&[command]);
            assert_eq!(output.status.code(), Some(1), "{command}");
            assert!(said(&output).contains(&reason), "{command}: {}", said(&output));
        }
        let before = instance.log().count("reload refused: 1 error");
        Process::read(instance.master_pid()).unwrap().signal(Signal::SIGHUP);
        wait::until("the reload to be refused", wait::LONG, || {
            (instance.log().count("reload refused: 1 error") > before).then_some(())
        });
        assert_eq!(instance.log().count(&reason), 1, "{}", instance.log().text());
        if name == "master.cf" {
            fs::remove_file(&path).unwrap();
            fs::rename(&kept, &path).unwrap();
            assert!(instance.belfry(&["reload"]).status.success());
        }
    }
    // main.cf cannot be read, and the master can be stopped all the same.
    let output = instance.belfry(&["stop"]);
    assert!(output.status.success(), "{}", said(&output));
    instance.ends_by(Signal::SIGTERM);
    instance.finish(&["not a regular file", "reload refused: 1 error"]);
}

/// A directory that the mail owner had put in the place of the lock file or of a socket kept the system
/// from starting.
#[test]
fn what_the_mail_owner_puts_in_the_place_of_a_lock_or_socket_does_not_stop_a_start() {
    let mut instance = Instance::bare();
    instance.service("a unix - - - - - qmgr").start().stop();
    let lock = instance.root().join("d/master.lock");
    let socket = instance.queue().join("private/a");
    for kind in ["directory", "link", "fifo"] {
        for path in [&lock, &socket] {
            let _ = fs::remove_file(path);
            match kind {
                "directory" => {
                    fs::create_dir(path).unwrap();
                    fs::write(path.join("inside"), "x").unwrap();
                }
                "link" => std::os::unix::fs::symlink("/nowhere", path).unwrap(),
                _ => mkfifo(path, Mode::S_IRUSR).unwrap(),
            }
        }
        instance.start().stop();
    }
    instance.finish(&[]);
}

/// 100 MB of random bytes were read for 11 s, with 1.5 GB of memory and 110 MB of log.
#[test]
fn of_a_file_of_garbage_a_few_errors_are_told_and_the_rest_counted() {
    let mut instance = Instance::bare();
    instance.service("a unix - - - - - qmgr").start();
    let table = instance.config().join("master.cf");
    let good = fs::read(&table).unwrap();
    let mut garbage = BufWriter::new(fs::File::create(&table).unwrap());
    let mut state = 1_u64;
    for _ in 0..(15 << 20) / 8 {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        garbage.write_all(&(state ^ (state >> 29)).to_le_bytes()).unwrap();
    }
    drop(garbage);
    let output = instance.belfry(&["reload"]);
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(said.contains("more errors or warnings from here on"), "{said}");
    assert!(said.len() < 200_000, "{} bytes", said.len());
    assert!(said.lines().all(|line| line.len() < 3000), "a line without bound");
    let log = instance.log().text();
    assert!(log.len() < 100_000 && log.lines().count() < 70, "{} bytes of log", log.len());
    // As large, and nothing but continuations.
    fs::write(&table, "a unix - - - - - qmgr\n".to_owned() + &" x\n".repeat(5 << 20)).unwrap();
    assert!(instance.belfry(&["reload"]).status.success());
    fs::write(&table, "a unix - - - - - qmgr\n".to_owned() + &" x\n".repeat(6 << 20)).unwrap();
    let output = instance.belfry(&["reload"]);
    assert!(self::said(&output).contains("larger than 16 MB"), "{}", self::said(&output));
    fs::write(&table, good).unwrap();
    assert!(instance.belfry(&["reload"]).status.success());
    instance.finish(&["master.cf:", "reload refused: ", "larger than 16 MB"]);
}

/// It found no lock of its own name and took over the sockets of the first.
#[test]
fn a_master_of_another_name_does_not_start_on_the_same_queue_directory() {
    let mut instance = Instance::bare();
    instance.service("a unix - - - - - qmgr").start();
    let other = instance.root().join("other");
    std::os::unix::fs::symlink(belfry_tests::binaries::directory().join("master"), &other).unwrap();
    // Not kept out by the lock of the data directory alone.
    let (data, main_cf) = (instance.root().join("d2"), instance.config().join("main.cf"));
    fs::create_dir(&data).unwrap();
    let account = belfry_tests::instance::account();
    let (uid, gid) = (Some(account.uid.as_raw()), Some(account.gid.as_raw()));
    std::os::unix::fs::chown(&data, uid, gid).unwrap();
    let text = fs::read_to_string(&main_cf).unwrap();
    fs::write(&main_cf, format!("{text}data_directory = {}\n", data.display())).unwrap();
    let mut second = instance.command(&other.display().to_string());
    let second = second.arg("-c").arg(instance.config()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let reason = "pid/master.pid: unable to set exclusive lock: Resource temporarily unavailable";
    assert!(said(&second).contains(reason), "{}", said(&second));
    instance.finish(&[reason]);
}

/// Process 0 was signalled: the group of whoever ran `belfry stop`; and then nobody, until the process
/// id was given.
#[test]
fn whatever_the_pid_file_says_the_master_that_holds_its_lock_is_told_to_stop() {
    let mut instance = Instance::bare();
    instance.service("a unix - - - - - qmgr").start();
    let pid = instance.master_pid();
    for text in ["garbage\n", "0\n", "-1\n", ""] {
        fs::write(instance.queue().join("pid/master.pid"), text).unwrap();
        let output = instance.belfry(&["status"]);
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains(&format!("is running: PID: {pid}\n")), "{text:?}: {output:?}");
    }
    for bad in ["0", "-1", "1", "x"] {
        let output = instance.belfry(&["stop", "--pid", bad]);
        assert_eq!(output.status.code(), Some(1), "{bad}: {output:?}");
        assert!(said(&output).contains("is not a running Belfry master"), "{}", said(&output));
    }
    let output = instance.belfry(&["stop", "--pid", &pid.to_string()]);
    assert!(output.status.success(), "{}", said(&output));
    instance.ends_by(Signal::SIGTERM);
    instance.start();
    fs::write(instance.queue().join("pid/master.pid"), "1\n").unwrap();
    let output = instance.belfry(&["stop"]);
    assert!(output.status.success(), "{}", said(&output));
    instance.ends_by(Signal::SIGTERM);
    instance.finish(&[]);
}

/// What another program had bound under the name meanwhile was removed with the service.
#[test]
fn a_removed_service_takes_its_own_socket_away_and_no_other() {
    let mut instance = Instance::bare();
    instance.service("own unix n - - - - qmgr").service("lost unix n - - - - qmgr");
    instance.service("stays unix n - - - - qmgr").start();
    let (own, lost) = (instance.queue().join("public/own"), instance.queue().join("public/lost"));
    fs::remove_file(&lost).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&lost).unwrap();
    fs::write(instance.config().join("master.cf"), "stays unix n - - - - qmgr\n").unwrap();
    assert!(instance.belfry(&["reload"]).status.success());
    instance.log().wait_for("reload done: 0 added, 2 removed");
    assert!(!own.exists() && lost.exists());
    drop(other);
    instance.finish(&[]);
}

/// The master did not start ("event loop: Too many open files"), or told one fatal error for each service.
#[test]
fn a_low_limit_of_open_files_is_told_once_and_costs_as_few_services_as_can_be() {
    for (limit, services, without) in [(64, 2, false), (256, 5, false), (64, 200, true)] {
        let mut instance = Instance::bare();
        let files = format!("--nofile={limit}:{limit}");
        // Root could raise it otherwise.
        let drop = ["/usr/bin/setpriv", "--bounding-set", "-sys_resource"];
        instance.started_by(&[&["/usr/bin/prlimit", files.as_str()][..], &drop].concat());
        for n in 1..=services {
            instance.service(&format!("s{n} unix n n n - 3 probe_worker"));
        }
        instance.start();
        let log = instance.log();
        let few = format!("warning: the limit of open files is {limit}, and ");
        assert_eq!(log.count(&few), 1, "{}", log.text());
        assert_eq!(
            log.count(" services have no socket: the limit of open files is reached"),
            usize::from(without)
        );
        for name in ["s1", "s2"] {
            assert!(
                Probe::unix(&instance.queue().join("public").join(name)).unwrap().report().is_ok()
            );
        }
        assert!(instance.belfry(&["reload"]).status.success());
        assert!(log.text().lines().count() < 20, "{}", log.text());
        instance.finish_with(&["the limit of open files is"], &["services have no socket"]);
    }
    // Root raises the limit where it may, and workers get the one that was.
    let mut instance = Instance::bare();
    instance.started_by(&["/usr/bin/prlimit", "--nofile=64:64"]);
    instance.service("a unix n n n - 3 probe_worker").start();
    let report = Probe::unix(&instance.queue().join("public/a")).unwrap().report().unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", report["pid"]));
    let limits = limits.unwrap_or_default();
    assert!(limits.is_empty() || limits.contains("Max open files            64"), "{limits}");
    // In a container root may not.
    instance.finish_with(&[], &["the limit of open files is"]);
}
