//! probe_worker - a worker that does what a test tells it
//!
//! Speaks the master/worker interface by hand, so that the tests see the interface and not our
//! skeletons. What it does at its start comes from its arguments, what it does with a client from the
//! client: a line of `report`, `hold`, `exit N`, `orphan`, `forge PID GENERATION STATE`, `bytes N`.
//! With PROBE_REPORTS in its environment it leaves a report as a file of that directory, named by its
//! process id, before anything else; and `PID.ready` when it is up.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{self, ExitCode};
use std::time::Duration;

use belfry_tests::end_of_test::STRANGERS;
use belfry_tests::world::World;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{read, write};
use worker_proto::abi::{
    CONFIG_ENV, FLOW_READ_FD, FLOW_WRITE_FD, GENERATION_ENV, Generation, LISTEN_FD, STATUS_FD,
    Transport,
};
use worker_proto::client::Client;
use worker_proto::clock::Time;
use worker_proto::status::{Availability, StatusRecord};
use worker_proto::sys;

#[expect(
    clippy::disallowed_methods,
    reason = "to end in the middle of a client is what a test asks for"
)]
fn end(status: i32) -> ! {
    process::exit(status)
}

/// Starts a process that leaves this one's session and loses its parent at once; tells its id.
fn orphan() -> String {
    let script = "setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!";
    let output = process::Command::new("sh").args(["-c", script]).output();
    output.map_or_else(|e| format!("{e}\n"), |o| String::from_utf8_lossy(&o.stdout).into_owned())
}

fn main() -> ExitCode {
    // Before anything is opened: what the master has left open.
    let world = World::now();
    leave("", || world.report(&[]));
    let args: Vec<String> = env::args().collect();
    let has = |word: &str| args.iter().any(|a| a == word);
    let value = |name: &str| {
        let prefix = format!("{name}=");
        args.iter().find_map(|a| a.strip_prefix(&prefix).map(str::to_owned))
    };
    let after = |letter: &str| args.iter().position(|a| a == letter).map(|at| args[at + 1].clone());
    let sockets: i32 = after("-s").map_or(1, |n| n.parse().expect("-s N"));
    let transport: Transport = after("-t").expect("-t TYPE").parse().expect("-t TYPE");
    if let Some(strangers) = strangers(&world, sockets, transport) {
        report_strangers(&strangers);
    }
    if has("exit0") {
        return ExitCode::SUCCESS;
    }
    if has("crash") {
        return ExitCode::FAILURE;
    }
    if has("ignore-term") {
        sys::ignore_signal(Signal::SIGTERM).expect("any signal but two can be ignored");
    }
    if let Some(ms) = value("slow") {
        std::thread::sleep(Duration::from_millis(ms.parse().expect("slow=MS")));
    }
    let status = sys::take_fd(STATUS_FD).expect("the master passes 5");
    let listen: Vec<OwnedFd> = (LISTEN_FD..LISTEN_FD + sockets)
        .map(|n| sys::take_fd(n).expect("the master passes 6 and up"))
        .collect();
    if has("shut") {
        for listen in &listen {
            shutdown(listen.as_raw_fd(), Shutdown::Read).expect("it listens");
        }
    }
    leave(".ready", || format!("ready: {}\n", Time::now().since_start().as_micros()));
    let worker = Worker { status, world, stays: has("ignore-end"), once: has("once") };
    if has("shut") {
        // As if there had been a client.
        worker.tell(Availability::Taken);
        worker.tell(Availability::Available);
        return ExitCode::SUCCESS;
    }
    worker.serve(&listen, transport, value("trace").as_deref());
    ExitCode::SUCCESS
}

struct Worker {
    status: OwnedFd,
    world: World,
    stays: bool,
    once: bool,
}

impl Worker {
    fn serve(&self, listens: &[OwnedFd], transport: Transport, trace: Option<&str>) {
        loop {
            let mut fds = vec![PollFd::new(self.status.as_fd(), PollFlags::POLLIN)];
            fds.extend(listens.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN)));
            if self.stays {
                fds[0].set_events(PollFlags::empty());
            }
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            if fds[0].any().unwrap_or(false) {
                if self.stays {
                    // It is deaf, not blind: a poll that always returns would burn a processor.
                    std::thread::sleep(Duration::from_millis(50));
                } else {
                    return;
                }
            }
            let ready: Vec<bool> = fds[1..].iter().map(|fd| fd.any().unwrap_or(false)).collect();
            for (listen, _) in listens.iter().zip(ready).filter(|(_, ready)| *ready) {
                if matches!(transport, Transport::Fifo | Transport::UnixDgram) {
                    let mut bytes = [0; 64];
                    let size = read(listen, &mut bytes).unwrap_or(0);
                    self.tell(Availability::Taken);
                    note(trace, &bytes[..size]);
                } else if let Ok(Some(client)) = Client::accept(listen.as_fd(), transport) {
                    self.tell(Availability::Taken);
                    self.client(client, trace, listens);
                } else {
                    continue;
                }
                self.tell(Availability::Available);
                if self.once {
                    return;
                }
            }
        }
    }

    fn tell(&self, availability: Availability) {
        let _ = write(&self.status, &self.record(availability).encode());
    }

    fn record(&self, availability: Availability) -> StatusRecord {
        let text = env::var(GENERATION_ENV).unwrap_or_default();
        let generation: Generation = text.parse().expect("GENERATION is octal");
        StatusRecord::new(pid(), generation, availability)
    }

    fn client(&self, client: Client, trace: Option<&str>, listens: &[OwnedFd]) {
        let mut reader = BufReader::new(client);
        // A wakeup is a byte and a null byte, which may come apart, and no line.
        if reader.fill_buf().unwrap_or_default().starts_with(b"W") {
            let mut request = [0; 2];
            let whole = reader.read_exact(&mut request).is_ok();
            return note(trace, if whole { &request } else { b"less than a wakeup" });
        }
        let mut line = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| words.get(at).and_then(|w| w.parse().ok()).unwrap_or(0);
            let answer = match words.first().copied() {
                Some("report") => self.world.report(listens),
                Some("hold") => format!("holding {}\n", pid()),
                Some("exit") => end(number(1)),
                Some("orphan") => orphan(),
                Some("bytes") => {
                    let _ = write(&self.status, &vec![0; usize::try_from(number(1)).unwrap_or(0)]);
                    "sent\n".to_owned()
                }
                Some("forge") => {
                    let generation = Generation(u32::try_from(number(2)).unwrap_or(0));
                    let record = StatusRecord { pid: number(1), generation, state: number(3) };
                    let _ = write(&self.status, &record.encode());
                    "sent\n".to_owned()
                }
                _ => "unknown\n".to_owned(),
            };
            if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

fn pid() -> i32 {
    i32::try_from(process::id()).unwrap_or(0)
}

/// Appends a line to the trace file.
fn note(trace: Option<&str>, bytes: &[u8]) {
    let Some(trace) = trace else { return };
    let line = format!("{} {}\n", pid(), String::from_utf8_lossy(bytes).escape_default());
    let file = OpenOptions::new().append(true).create(true).open(trace);
    let _ = file.and_then(|mut f| f.write_all(line.as_bytes()));
}

/// Leaves a file for the test, whole at once.
fn leave(suffix: &str, text: impl FnOnce() -> String) {
    let Ok(directory) = env::var("PROBE_REPORTS") else { return };
    let (half, whole) = (format!("{}.half", pid()), format!("{}{suffix}", pid()));
    let directory = Path::new(&directory);
    let written = fs::write(directory.join(&half), text());
    let _ = written.and_then(|()| fs::rename(directory.join(half), directory.join(whole)));
}

/// What a worker has beside or in place of what the interface says (H01).
fn strangers(world: &World, sockets: i32, transport: Transport) -> Option<String> {
    let fds = world.fds();
    let numbers: Vec<i32> = fds.iter().map(|(number, _)| *number).collect();
    let wanted: Vec<i32> = (0..LISTEN_FD + sockets).collect();
    let expected = |(number, kind): &(i32, String)| match *number {
        0..=2 => true,
        FLOW_READ_FD | FLOW_WRITE_FD => kind == "pipe",
        STATUS_FD => kind == "socket",
        _ if transport == Transport::Fifo => kind.starts_with('/'),
        _ => kind == "socket",
    };
    let exact = numbers == wanted && fds.iter().all(expected);
    (!exact).then(|| world.words())
}

/// Leaves a line for the end of the test.
fn report_strangers(strangers: &str) {
    let config = env::var_os(CONFIG_ENV).expect("the master passes it");
    let path = Path::new(&config).with_file_name(STRANGERS);
    let argv = env::args().collect::<Vec<_>>().join(" ");
    let file = OpenOptions::new().append(true).create(true).open(path);
    let written = file.and_then(|mut f| writeln!(f, "{argv}: {strangers}"));
    written.expect("there is room in the test's directory");
}
