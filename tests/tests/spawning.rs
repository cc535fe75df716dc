//! How workers are started: what must not wait for another's exec(2), and what must not be overwritten.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use belfry_tests::probe::Probe;
use belfry_tests::{Instance, net, wait};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};
use worker_proto::clock::Time;

/// How long an exec of the scanned program takes.
const SCAN: Duration = Duration::from_secs(2);

/// Delays every exec of a program while `work` runs, as a virus scanner does; `caught` is set when
/// one waits. None where the kernel lets nobody do that.
fn scanned(program: &Path, work: impl FnOnce(&AtomicBool)) -> Option<()> {
    let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
    let scanner = match Fanotify::init(flags, EventFFlags::O_RDONLY) {
        Err(Errno::EPERM | Errno::ENOSYS) => return None,
        result => result.expect("fanotify_init"),
    };
    let here = MarkFlags::FAN_MARK_ADD;
    let root = fs::File::open("/").expect("it is there");
    match scanner.mark(here, MaskFlags::FAN_OPEN_EXEC_PERM, root, Some(program)) {
        Err(Errno::EINVAL) => return None,
        result => result.expect("fanotify_mark"),
    }
    let (caught, done) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            // Several may wait at once; each waits for its own time.
            thread::scope(|answers| {
                while !done.load(Ordering::Relaxed) {
                    let mut fds = [PollFd::new(scanner.as_fd(), PollFlags::POLLIN)];
                    let _ = poll(&mut fds, PollTimeout::from(20_u8));
                    for event in scanner.read_events().unwrap_or_default() {
                        caught.store(true, Ordering::Relaxed);
                        let scanner = &scanner;
                        answers.spawn(move || {
                            thread::sleep(SCAN);
                            let fd = event.fd().expect("a permission event has one");
                            let answer = FanotifyResponse::new(fd, Response::FAN_ALLOW);
                            scanner.write_response(answer).expect("the kernel waits for it");
                        });
                    }
                }
            });
        });
        // Also when the work panics.
        let _end = End(&done);
        work(&caught);
    });
    Some(())
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How long a client waits at most that waits for nothing but a worker's start; the others of a series
/// may be starved by what else the machine does.
const AT_ONCE: Duration = Duration::from_millis(100);

/// Asks again and again, each time a worker of its own, and tells how long each answer took.
fn answers_until(end: Time, port: u16, master: i32) -> Vec<Duration> {
    let mut answers = Vec::new();
    while Time::now() < end {
        let start = Time::now();
        let report = Probe::tcp(port).and_then(|mut client| client.report());
        let report = report.expect("the service answers");
        assert_eq!(report["ppid"], master.to_string());
        answers.push(Time::now().since(start));
    }
    answers
}

/// The whole master slept while a child executed its program: the clients of every other service
/// waited for a virus scanner or a hung file system.
#[test]
fn a_slow_exec_delays_its_own_service_alone() {
    let mut instance = Instance::bare();
    let (fast, slow, slower) = (net::free_port(), net::free_port(), net::free_port());
    instance.own_programs(&["master", "belfry", "probe_worker"]);
    let bin = instance.root().join("bin");
    fs::copy(bin.join("probe_worker"), bin.join("scanned")).expect("/tmp has room");
    instance
        .service(&format!("127.0.0.1:{fast} inet n n n - 9 probe_worker once"))
        .service(&format!("127.0.0.1:{slow} inet n n n - 9 scanned"))
        .service(&format!("127.0.0.1:{slower} inet n n n - 9 scanned"));
    instance.start();
    assert!(Probe::tcp(fast).unwrap().report().is_ok());
    let scan = scanned(&bin.join("scanned"), |caught| {
        let before = Time::now();
        let mut first = Probe::tcp(slow).unwrap();
        let mut second = Probe::tcp(slower).unwrap();
        wait::until("the exec to wait for the scanner", wait::LONG, || {
            caught.load(Ordering::Relaxed).then_some(())
        });
        let answers = answers_until(before + SCAN / 2, fast, instance.master_pid());
        assert!(answers.iter().any(|&took| took < AT_ONCE), "clients waited: {answers:?}");
        // The scanned programs run when they are let.
        for client in [&mut first, &mut second] {
            let report = client.report().unwrap();
            assert_eq!(report["blocked"], "0".repeat(16));
        }
        let took = Time::now().since(before);
        assert!(took >= SCAN, "nobody was scanned: {took:?}");
        assert!(took < SCAN * 2, "one waited for the other: {took:?}");
    });
    if scan.is_none() {
        eprintln!("skipped: the kernel lets nobody delay an exec here");
    }
    instance.finish(&[]);
}

/// An upgrade replaced the memory in which a child was about to execute its program.
#[test]
fn a_worker_whose_exec_is_slow_survives_an_upgrade() {
    let mut instance = Instance::bare();
    let slow = net::free_port();
    instance.own_programs(&["master", "belfry", "probe_worker"]);
    let bin = instance.root().join("bin");
    fs::copy(bin.join("probe_worker"), bin.join("scanned")).expect("/tmp has room");
    instance.service(&format!("127.0.0.1:{slow} inet n n n - 9 scanned"));
    instance.start();
    let scan = scanned(&bin.join("scanned"), |caught| {
        let mut client = Probe::tcp(slow).unwrap();
        wait::until("the exec to wait for the scanner", wait::LONG, || {
            caught.load(Ordering::Relaxed).then_some(())
        });
        let upgrade = instance.belfry(&["upgrade"]);
        assert!(upgrade.status.success(), "{upgrade:?}");
        let report = client.report().unwrap();
        assert_eq!(report["ppid"], instance.master_pid().to_string());
    });
    if scan.is_none() {
        eprintln!("skipped: the kernel lets nobody delay an exec here");
    }
    instance.finish(&[]);
}

/// The program to upgrade to was executed from the loop, to ask it whether it can go on.
#[test]
fn a_slow_exec_of_a_new_program_delays_nobody_while_it_is_asked() {
    let mut instance = Instance::bare();
    let fast = net::free_port();
    instance.own_programs(&["master", "belfry", "probe_worker"]);
    let bin = instance.root().join("bin");
    instance.service(&format!("127.0.0.1:{fast} inet n n n - 9 probe_worker once"));
    instance.start();
    // Installed as a new file.
    fs::rename(bin.join("master"), bin.join("master.old")).expect("it is there");
    fs::copy(bin.join("master.old"), bin.join("master")).expect("/tmp has room");
    let scan = scanned(&bin.join("master"), |caught| {
        thread::scope(|scope| {
            let upgrade = scope.spawn(|| instance.belfry(&["upgrade"]));
            wait::until("the exec to wait for the scanner", wait::LONG, || {
                caught.load(Ordering::Relaxed).then_some(())
            });
            let end = Time::now() + SCAN / 2;
            let answers = answers_until(end, fast, instance.master_pid());
            assert!(answers.iter().any(|&took| took < AT_ONCE), "clients waited: {answers:?}");
            let upgrade = upgrade.join().unwrap();
            assert!(upgrade.status.success(), "{upgrade:?}");
        });
    });
    if scan.is_none() {
        eprintln!("skipped: the kernel lets nobody delay an exec here");
    }
    instance.finish(&[]);
}

/// 600 addresses: the first worker's sockets were put over the master's own descriptors.
#[test]
fn more_addresses_than_a_worker_can_have_are_an_error_with_its_place() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    let addresses: Vec<_> =
        (0..600).map(|n| format!("127.0.{}.{}", 1 + n / 250, 1 + n % 250)).collect();
    let many = format!("inet_interfaces = {}\n", addresses.join(" "));
    let main_cf = instance.config().join("main.cf");
    let line = format!("{port} inet n n n - 2 probe_worker");
    instance.service("a unix n n n - 3 probe_worker").write();
    let few = fs::read_to_string(&main_cf).unwrap();
    fs::write(&main_cf, few.clone() + &many).unwrap();
    fs::write(instance.config().join("master.cf"), line.clone() + "\n").unwrap();
    let complaint =
        format!("master.cf:1:1: service {port} has 600 addresses to listen on, the most is 500");
    for words in [&["check"][..], &["start"]] {
        let output = instance.belfry(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
        assert!(said.contains(&complaint), "{words:?}: {said}");
        assert!(said.contains("= help: name fewer in inet_interfaces"), "{words:?}: {said}");
    }
    instance.start();
    let main_cf_now = fs::read_to_string(&main_cf).unwrap();
    fs::write(&main_cf, main_cf_now + &many).unwrap();
    let table = format!("{line}\na unix n n n - 3 probe_worker\n");
    fs::write(instance.config().join("master.cf"), table).unwrap();
    let reload = instance.belfry(&["reload"]);
    let said = String::from_utf8_lossy(&reload.stderr).into_owned();
    assert_eq!(reload.status.code(), Some(1), "{said}");
    assert!(said.contains(&complaint), "{said}");
    assert!(Probe::unix(&instance.queue().join("public/a")).unwrap().report().is_ok());
    instance.finish(&["600 addresses", "reload refused"]);
}
