//! Listen sockets when masters and tables change: no client is refused or reset, whoever has copies of
//! the sockets.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use belfry_tests::probe::Probe;
use belfry_tests::{Instance, net, wait};

/// What a client that connects again and again has seen.
#[derive(Default)]
struct Seen {
    answered: AtomicUsize,
    failures: std::sync::Mutex<Vec<String>>,
}

impl Seen {
    /// Waits until so many more clients were answered.
    fn answers(&self, count: usize) {
        let end = self.answered.load(Ordering::Relaxed) + count;
        wait::until("clients to be answered", wait::LONG, || {
            (self.answered.load(Ordering::Relaxed) >= end).then_some(())
        });
    }

    fn none_failed(&self, what: &str) {
        let failures = self.failures.lock().expect("nobody panics with it");
        assert!(failures.is_empty(), "{what}: {} clients: {:?}", failures.len(), failures.first());
    }
}

/// Runs `work` while a client connects, asks and leaves in a loop.
fn hammer(ask: impl Fn() -> std::io::Result<()> + Sync, work: impl FnOnce(&Seen)) {
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (seen, done) = (Seen::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                match ask() {
                    Ok(()) => drop(seen.answered.fetch_add(1, Ordering::Relaxed)),
                    Err(e) => {
                        seen.failures.lock().expect("nobody panics with it").push(e.to_string());
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            }
        });
        let _end = End(&done);
        seen.answers(3);
        work(&seen);
    });
}

fn ask_tcp(port: u16) -> impl Fn() -> std::io::Result<()> {
    move || Probe::tcp(port)?.ask("hold").map(drop)
}

fn ask_unix(path: &Path) -> impl Fn() -> std::io::Result<()> {
    move || Probe::unix(path)?.ask("hold").map(drop)
}

fn set_table(instance: &Instance, table: &str) {
    fs::write(instance.config().join("master.cf"), format!("{table}\n")).expect("/tmp has room");
}

fn reload(instance: &Instance, table: &str) {
    set_table(instance, table);
    let reload = instance.belfry(&["reload"]);
    assert!(reload.status.success(), "{reload:?}");
}

/// The new master could not bind what a busy worker of the killed one still listened on, for as long
/// as its client stayed.
#[test]
fn a_master_that_follows_a_killed_one_takes_over_the_sockets_of_its_busy_workers() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    instance
        .service(&format!("127.0.0.1:{port} inet n n n - 9 probe_worker"))
        .service("a unix n n n - 9 probe_worker");
    instance.start();
    let path = instance.queue().join("public/a");
    let mut busy = Probe::tcp(port).unwrap();
    busy.ask("hold").unwrap();
    let mut busy_unix = Probe::unix(&path).unwrap();
    busy_unix.ask("hold").unwrap();
    hammer(ask_tcp(port), |tcp| {
        hammer(ask_unix(&path), |unix| {
            for _ in 0..2 {
                instance.kill_master();
                instance.start();
                tcp.answers(10);
                unix.answers(10);
            }
            tcp.none_failed("over TCP");
            unix.none_failed("over a unix socket");
        });
    });
    busy.ask("hold").expect("its worker serves it to the end");
    busy_unix.ask("hold").expect("its worker serves it to the end");
    drop((busy, busy_unix));
    instance.finish(&[]);
}

/// The same where the table has changed meanwhile.
#[test]
fn a_master_that_follows_a_killed_one_may_listen_on_all_addresses_of_the_port() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    instance.service(&format!("127.0.0.1:{port} inet n n n - 9 probe_worker"));
    instance.start();
    let mut busy = Probe::tcp(port).unwrap();
    busy.ask("hold").unwrap();
    hammer(ask_tcp(port), |seen| {
        instance.kill_master();
        instance.replace_services(&[&format!("{port} inet n n n - 9 probe_worker")]);
        instance.start();
        seen.answers(10);
        seen.none_failed("the master of a changed table");
        assert!(Probe::tcp_at(SocketAddr::from(([127, 0, 0, 2], port))).unwrap().report().is_ok());
    });
    busy.ask("hold").expect("its worker serves it to the end");
    drop(busy);
    instance.finish(&[]);
}

/// The old socket, which workers hold, was in the way of the new one.
#[test]
fn a_port_moves_between_one_address_and_all_at_reload_without_a_gap() {
    for busy in [false, true] {
        let mut instance = Instance::bare();
        let port = net::free_port();
        let one = format!("127.0.0.1:{port} inet n n n - 9 probe_worker");
        let all = format!("{port} inet n n n - 9 probe_worker");
        instance.service(&one).start();
        let mut client = Probe::tcp(port).unwrap();
        client.ask("hold").unwrap();
        let client = busy.then_some(client);
        hammer(ask_tcp(port), |seen| {
            for _ in 0..3 {
                reload(&instance, &all);
                seen.answers(10);
                let other = SocketAddr::from(([127, 0, 0, 2], port));
                assert!(Probe::tcp_at(other).unwrap().report().is_ok());
                reload(&instance, &one);
                seen.answers(10);
                wait::until("the other addresses to be refused", wait::LONG, || {
                    TcpStream::connect(other).is_err().then_some(())
                });
            }
            seen.none_failed(if busy { "with a busy worker" } else { "with idle workers" });
        });
        if let Some(mut client) = client {
            client.ask("hold").expect("its worker serves it to the end");
        }
        instance.finish(&[]);
    }
}

/// The same by inet_interfaces, where the service stays.
#[test]
fn inet_interfaces_moves_between_one_address_and_all_without_a_gap() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    instance.parameter("inet_interfaces", "127.0.0.1");
    instance.service(&format!("{port} inet n n n - 9 probe_worker")).start();
    let mut client = Probe::tcp(port).unwrap();
    client.ask("hold").unwrap();
    let path = instance.config().join("main.cf");
    let one = fs::read_to_string(&path).unwrap();
    let all = one.replace("inet_interfaces = 127.0.0.1", "inet_interfaces = all");
    hammer(ask_tcp(port), |seen| {
        for _ in 0..2 {
            for text in [&all, &one] {
                fs::write(&path, text).unwrap();
                let reload = instance.belfry(&["reload"]);
                assert!(reload.status.success(), "{reload:?}");
                seen.answers(10);
            }
        }
        seen.none_failed("at a change of inet_interfaces");
    });
    client.ask("hold").expect("its worker serves it to the end");
    instance.finish(&[]);
}

/// A service without a socket, because another of the table had its port, got none when that one was
/// removed: the port was closed until the next try, a minute later at most.
#[test]
fn a_service_that_had_no_socket_gets_that_of_the_one_removed_without_a_gap() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    let one = format!("127.0.0.1:{port} inet n n n - 9 probe_worker");
    let all = format!("{port} inet n n n - 9 probe_worker");
    instance.parameter("strict_start", "no");
    instance.service(&one).start();
    hammer(ask_tcp(port), |seen| {
        for other in [&all, &one, &all] {
            let running = fs::read_to_string(instance.config().join("master.cf")).unwrap();
            reload(&instance, &format!("{}\n{other}", running.trim_end()));
            let status = String::from_utf8(instance.belfry(&["status"]).stdout).unwrap();
            assert!(status.contains("bind-failed"), "two services and one port: {status}");
            seen.answers(10);
            reload(&instance, other);
            let status = String::from_utf8(instance.belfry(&["status"]).stdout).unwrap();
            assert!(!status.contains("bind-failed"), "the port is free: {status}");
            seen.answers(10);
        }
        seen.none_failed("when one of two services on a port is removed");
    });
    instance.finish(&["Address already in use -- retrying"]);
}

/// The worker of the removed service was still there, with the socket that nobody served, and the port
/// was taken for as long as it stayed.
#[test]
fn a_service_that_is_removed_is_refused_and_comes_back_while_an_old_worker_stays() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    let line = format!("127.0.0.1:{port} inet n n n - 9 probe_worker ignore-term ignore-end");
    instance.parameter("stop_kill_time", "60s");
    instance.service("a unix n n n - 9 probe_worker").service(&line).start();
    let mut busy = Probe::tcp(port).unwrap();
    busy.ask("hold").unwrap();
    for _ in 0..2 {
        reload(&instance, "a unix n n n - 9 probe_worker");
        let refused = wait::within(wait::LONG, || TcpStream::connect(("127.0.0.1", port)).err());
        assert!(refused.is_some(), "a removed service takes clients");
        reload(&instance, &line);
        hammer(ask_tcp(port), |seen| {
            seen.answers(10);
            seen.none_failed("after the service is back");
        });
    }
    busy.ask("hold").expect("it is deaf to the master and goes on");
    for worker in instance.workers("probe_worker") {
        worker.signal(nix::sys::signal::Signal::SIGKILL);
    }
    instance.finish_with(&["killed by signal 9"], &["bad command startup"]);
}

/// No test: another program that listens, for the next one.
#[test]
fn stranger() {
    if let Ok(address) = std::env::var("STRANGER") {
        let listener = TcpListener::bind(address).unwrap();
        listener.incoming().for_each(drop);
    }
}

/// What is ours is known by more than its words: nobody gives a socket to a master that way, and a
/// port that another program has is an error.
#[test]
fn a_port_of_another_program_is_an_error_whatever_that_says_of_itself() {
    let mut instance = Instance::bare();
    let account = belfry_tests::instance::account();
    let port = net::free_port();
    let line = format!("127.0.0.1:{port} inet n n n - 9 probe_worker");
    instance.service(&line).write();
    // It pretends to be a worker of an earlier master, as the mail owner.
    let program = instance.root().join("stranger");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut stranger = std::process::Command::new("/usr/bin/setpriv")
        .args(["--reuid", &account.uid.to_string(), "--regid", &account.gid.to_string()])
        .arg("--clear-groups")
        .arg(program)
        .args(["--exact", "stranger"])
        .env("GENERATION", "1")
        .env("MAIL_CONFIG", instance.config())
        .env("STRANGER", format!("127.0.0.1:{port}"))
        .current_dir("/")
        .spawn()
        .unwrap();
    wait::until("the stranger to listen", wait::LONG, || {
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
    let start = instance.belfry(&["start"]);
    let errors = String::from_utf8_lossy(&start.stderr).into_owned();
    assert_eq!(start.status.code(), Some(1), "{errors}");
    assert!(errors.contains("Address already in use"), "{errors}");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    instance.start();
    // Another program on another address of the port, where all are asked for.
    let other = TcpListener::bind(("127.0.0.2", port)).unwrap();
    set_table(&instance, &format!("{port} inet n n n - 9 probe_worker"));
    assert!(instance.belfry(&["reload"]).status.success());
    instance.log().wait_for(&format!("bind 0.0.0.0 port {port}: Address already in use"));
    drop(other);
    instance.log().wait_for(": listening");
    assert!(Probe::tcp(port).unwrap().report().is_ok());
    instance.finish(&["Address already in use"]);
}
