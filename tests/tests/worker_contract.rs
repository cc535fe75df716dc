//! The worker's side of the master/worker interface (Q01 to Q11), seen by a master that does as the
//! test says.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Stdio};

use belfry_tests::{Instance, binaries, process, wait};
use nix::sys::signal::Signal;

/// A worker under the fake master.
struct Worker {
    instance: Instance,
    child: Child,
    said: BufReader<ChildStdout>,
    pid: i32,
}

impl Worker {
    fn start(program: &str, args: &[&str]) -> Self {
        let mut instance = Instance::bare();
        instance.parameter("sink_maildir", "sink");
        instance.write();
        let sink = instance.queue().join("sink");
        fs::create_dir(&sink).expect("it is new");
        let socket = instance.queue().join("public/w");
        let mut child = instance
            .command("fake_master")
            .arg(binaries::directory().join(program))
            .arg(&socket)
            .args(args)
            .env("TRACE", instance.root().join("trace"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it was built");
        let said = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut worker = Self { instance, child, said, pid: 0 };
        let line = worker.hear();
        worker.pid =
            line.strip_prefix("pid ").expect("it tells the pid first").parse().expect("a number");
        worker
    }

    /// The next line of the fake master.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("it is a pipe");
        line.trim_end().to_owned()
    }

    fn tell(&mut self, command: &str) {
        let input = self.child.stdin.as_mut().expect("it is piped");
        writeln!(input, "{command}").expect("the fake master runs");
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.instance.queue().join("public/w"))
            .expect("the fake master listens")
    }

    /// A client that has the greeting, which only a worker gives.
    fn greeted(&self) -> UnixStream {
        let mut stream = self.connect();
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).expect("the worker greets");
        assert_eq!(&bytes, b"220 ");
        stream
    }

    fn end(mut self, expected: &[&str]) {
        self.child.wait().expect("it is our child");
        self.instance.finish(expected);
    }
}

const UNIX: &[&str] = &["-t", "unix", "-n", "w"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    UNIX.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn q02_a_client_is_told_as_taken_and_then_available() {
    let mut worker = Worker::start("sinkd", UNIX);
    for _ in 0..2 {
        let client = worker.greeted();
        assert_eq!(worker.hear(), "taken");
        drop(client);
        assert_eq!(worker.hear(), "available");
    }
    worker.tell("leave");
    assert_eq!(worker.hear(), "status 0");
    worker.end(&[]);
}

#[test]
fn q01_a_client_that_another_worker_took_is_no_trouble() {
    let mut worker = Worker::start("sinkd", UNIX);
    drop(worker.greeted());
    assert_eq!((worker.hear().as_str(), worker.hear().as_str()), ("taken", "available"));
    for _ in 0..20 {
        // Both are woken; whoever is later finds nobody.
        let _client = worker.connect();
        worker.tell("steal");
        loop {
            match worker.hear().as_str() {
                "stolen" | "nobody" => break,
                "taken" | "available" => {}
                other => panic!("{other}"),
            }
        }
    }
    worker.tell("leave");
    while worker.hear() != "status 0" {}
    worker.end(&[]);
}

#[test]
fn q03_an_idle_worker_ends_when_it_is_retired() {
    let mut worker = Worker::start("sinkd", UNIX);
    worker.tell("retire");
    assert_eq!(worker.hear(), "status 0");
    worker.end(&[]);
}

/// qmgr went on accepting while it was about to end, and took the wakeup of a reload with it. Who is
/// told to end and sees a client in the same turn leaves the client to its successor; and qmgr, which
/// has one however quiet it is, wakes its own service.
#[test]
fn q03_a_worker_that_was_told_to_end_takes_no_client_in_any_form() {
    for (program, wakes) in [("sinkd", false), ("trigger_worker", false), ("qmgr", true)] {
        let mut worker = Worker::start(program, &with(&["-l"]));
        worker.connect().write_all(b"W").unwrap();
        assert_eq!((worker.hear().as_str(), worker.hear().as_str()), ("taken", "available"));
        let process = process::Process::read(worker.pid).expect("it runs");
        process.signal(Signal::SIGSTOP);
        wait::until("it to stand still", wait::LONG, || {
            process::Process::read(worker.pid).is_some_and(|p| p.state == 'T').then_some(())
        });
        worker.tell("retire");
        worker.tell("count");
        // Lines are obeyed in their order: this one is answered when the worker is retired.
        worker.tell("steal");
        assert_eq!(worker.hear(), "nobody");
        let _client = worker.connect();
        process.signal(Signal::SIGCONT);
        let heard = [worker.hear(), worker.hear()];
        assert_eq!(heard, [format!("waiting {}", 1 + usize::from(wakes)), "status 0".to_owned()]);
        worker.end(if program == "qmgr" { &["relayhost is empty"] } else { &[] });
    }
}

#[test]
fn q03_a_busy_worker_finishes_its_client_first() {
    let mut worker = Worker::start("sinkd", UNIX);
    let mut client = worker.greeted();
    assert_eq!(worker.hear(), "taken");
    worker.tell("retire");
    client.write_all(b"NOOP\r\nQUIT\r\n").unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).unwrap();
    assert!(answers.contains("250 ") && answers.contains("221 "), "{answers}");
    assert_eq!(worker.hear(), "available", "what it says after it was retired still arrives");
    assert_eq!(worker.hear(), "status 0");
    worker.end(&[]);
}

#[test]
fn q02_a_master_that_is_gone_costs_the_client_nothing() {
    let mut worker = Worker::start("sinkd", UNIX);
    let mut client = worker.greeted();
    assert_eq!(worker.hear(), "taken");
    worker.tell("leave");
    client.write_all(b"QUIT\r\n").unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).unwrap();
    assert!(answers.contains("221 "), "{answers}");
    assert_eq!(worker.hear(), "status 0");
    worker.end(&[]);
}

#[test]
fn q04_a_worker_ends_after_max_use_clients_and_after_max_idle() {
    let mut worker = Worker::start("sinkd", &with(&["-m", "2"]));
    drop(worker.greeted());
    drop(worker.greeted());
    let heard: Vec<_> = (0..5).map(|_| worker.hear()).collect();
    assert_eq!(heard, ["taken", "available", "taken", "available", "status 0"]);
    worker.end(&[]);
    let mut worker = Worker::start("sinkd", &with(&["-i", "1"]));
    assert_eq!(worker.hear(), "status 0");
    worker.end(&[]);
}

#[test]
fn q05_q06_what_the_master_passed_is_not_passed_on() {
    let worker = Worker::start("sinkd", UNIX);
    let client = worker.greeted();
    // Close-on-exec, as /proc tells it in octal.
    for number in 3..=6 {
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", worker.pid)).unwrap();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap().trim();
        assert!(i64::from_str_radix(flags, 8).unwrap() & 0o2_000_000 != 0, "{number}: {flags}");
    }
    drop(client);
    let mut worker = worker;
    worker.tell("leave");
    while worker.hear() != "status 0" {}
    worker.end(&[]);
}

#[test]
fn q08_a_wrong_process_limit_is_told() {
    let mut worker = Worker::start("qmgr", UNIX);
    assert_eq!(worker.hear(), "status 1");
    worker.instance.log().wait_for("fatal: service w: requires a process limit of 1");
    worker.end(&["requires a process limit of 1"]);
}

#[test]
fn q10_a_trigger_is_a_few_bytes_over_a_socket_or_a_pipe() {
    for kind in ["unix", "fifo"] {
        let mut worker = Worker::start("trigger_worker", &["-l", "-t", kind, "-n", "w"]);
        let path = worker.instance.queue().join("public/w");
        for bytes in [b"W\0".as_slice(), b"F"] {
            if kind == "unix" {
                worker.connect().write_all(bytes).unwrap();
            } else {
                fs::OpenOptions::new().write(true).open(&path).unwrap().write_all(bytes).unwrap();
            }
            assert_eq!((worker.hear().as_str(), worker.hear().as_str()), ("taken", "available"));
        }
        let trace = fs::read_to_string(worker.instance.root().join("trace")).unwrap();
        assert_eq!(trace, "W\\u{0}\nF\n", "{kind}");
        worker.tell("retire");
        assert_eq!(worker.hear(), "status 0");
        worker.end(&[]);
    }
}

#[test]
fn u_and_c_give_up_root_and_the_file_system() {
    let mut worker = Worker::start("sinkd", &with(&["-u", "-c"]));
    let client = worker.greeted();
    let status = fs::read_to_string(format!("/proc/{}/status", worker.pid)).unwrap();
    let account = belfry_tests::instance::account();
    let field = |name: &str| {
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), vec![account.uid.to_string(); 4]);
    assert_eq!(field("Gid:"), vec![account.gid.to_string(); 4]);
    assert_eq!(field("CapEff:"), ["0000000000000000"]);
    let root = fs::read_link(format!("/proc/{}/root", worker.pid)).unwrap();
    assert_eq!(root, worker.instance.queue());
    drop(client);
    worker.tell("leave");
    while worker.hear() != "status 0" {}
    worker.end(&[]);
}

#[test]
fn capital_s_serves_standard_input_once() {
    let mut instance = Instance::bare();
    instance.parameter("sink_maildir", "sink").write();
    fs::create_dir(instance.queue().join("sink")).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child: Child = {
        let mut command: Command = instance.command("sinkd");
        command.arg("-S").stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
        command.spawn().unwrap()
    };
    let mut client = ours;
    client.write_all(b"QUIT\r\n").unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).unwrap();
    assert!(answers.starts_with("220 ") && answers.contains("\r\n221 "), "{answers}");
    assert!(child.wait().unwrap().success());
    wait::until("it to end", wait::LONG, || {
        process::below(instance.root()).is_empty().then_some(())
    });
    instance.finish(&[]);
}

#[test]
fn q04_zero_is_no_limit_and_the_watchdog_spares_a_busy_session() {
    let mut worker =
        Worker::start("sinkd", &with(&["-m", "0", "-i", "0", "-o", "daemon_timeout=2"]));
    let mut client = worker.greeted();
    assert_eq!(worker.hear(), "taken");
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    // Longer than the watchdog's time, in steps that are shorter.
    for _ in 0..5 {
        std::thread::sleep(std::time::Duration::from_millis(600));
        client.write_all(b"NOOP\r\n").unwrap();
        line.clear();
        reader.read_line(&mut line).unwrap();
        assert!(line.starts_with("250"), "{line}");
    }
    drop((client, reader));
    assert_eq!(worker.hear(), "available");
    worker.tell("leave");
    assert_eq!(worker.hear(), "status 0");
    worker.end(&[]);
}
