//! How workers are started: what must not wait for another's exec(2), and what must not be overwritten.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use belfry_tests::probe::Probe;
use belfry_tests::{Instance, net, wait};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};

/// A virus scanner that looks at a program, and at nothing else.
#[derive(Default)]
struct Scanner {
    /// How many execs have waited for it.
    caught: AtomicUsize,
    /// It lets everybody go on.
    done: AtomicBool,
}

impl Scanner {
    fn wait_for(&self, execs: usize) {
        wait::until("execs to wait for the scanner", wait::LONG, || {
            (self.caught.load(Ordering::Relaxed) >= execs).then_some(())
        });
    }

    fn finish(&self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Holds every exec of a program while `work` runs, until that says that it is enough. None where the
/// kernel lets nobody do so.
fn scanned(program: &Path, work: impl FnOnce(&Scanner)) -> Option<()> {
    let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
    let group = match Fanotify::init(flags, EventFFlags::O_RDONLY) {
        Err(Errno::EPERM | Errno::ENOSYS) => return None,
        result => result.expect("fanotify_init"),
    };
    let here = MarkFlags::FAN_MARK_ADD;
    let root = fs::File::open("/").expect("it is there");
    match group.mark(here, MaskFlags::FAN_OPEN_EXEC_PERM, root, Some(program)) {
        Err(Errno::EINVAL) => return None,
        result => result.expect("fanotify_mark"),
    }
    let (scanner, over) = (Scanner::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut held = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(group.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut fds, PollTimeout::from(20_u8));
                let events = group.read_events().unwrap_or_default();
                scanner.caught.fetch_add(events.len(), Ordering::Relaxed);
                held.extend(events);
                if scanner.done.load(Ordering::Relaxed) {
                    for event in held.drain(..) {
                        let fd = event.fd().expect("a permission event has one");
                        let answer = FanotifyResponse::new(fd, Response::FAN_ALLOW);
                        group.write_response(answer).expect("the kernel waits for it");
                    }
                }
            }
        });
        // Also when the work panics.
        let _end = End(&scanner.done, &over);
        work(&scanner);
    });
    // With the group every exec that it holds goes on.
    Some(())
}

struct End<'a>(&'a AtomicBool, &'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        self.1.store(true, Ordering::Relaxed);
    }
}

/// A client is answered, by a worker of its own. How fast is not asked: whoever waits for the scanner
/// waits for as long as the test looks.
fn is_answered(port: u16, master: i32) {
    let report = Probe::tcp(port).and_then(|mut client| client.report());
    assert_eq!(report.expect("the service answers")["ppid"], master.to_string());
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
    let scan = scanned(&bin.join("scanned"), |scanner| {
        let mut clients = [Probe::tcp(slow).unwrap(), Probe::tcp(slower).unwrap()];
        // Neither waits for the other.
        scanner.wait_for(2);
        for _ in 0..5 {
            is_answered(fast, instance.master_pid());
        }
        scanner.finish();
        for client in &mut clients {
            let report = client.report().unwrap();
            assert_eq!(report["blocked"], "0".repeat(16));
        }
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
    let scan = scanned(&bin.join("scanned"), |scanner| {
        let mut client = Probe::tcp(slow).unwrap();
        scanner.wait_for(1);
        let upgrade = instance.belfry(&["upgrade"]);
        assert!(upgrade.status.success(), "{upgrade:?}");
        scanner.finish();
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
    let scan = scanned(&bin.join("master"), |scanner| {
        thread::scope(|scope| {
            let upgrade = scope.spawn(|| instance.belfry(&["upgrade"]));
            scanner.wait_for(1);
            for _ in 0..5 {
                is_answered(fast, instance.master_pid());
            }
            scanner.finish();
            let upgrade = upgrade.join().expect("belfry can be run");
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
