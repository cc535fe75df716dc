//! probe_worker - a worker that does what a test tells it
//!
//! Speaks the master/worker interface by hand, so that the tests see the interface and not our
//! skeletons. What it does at its start comes from its arguments, what it does with a client from the
//! client: a line of `report`, `hold`, `exit N`, `orphan`, `forge PID GENERATION STATE`, `bytes N`.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{self, ExitCode};
use std::time::Duration;

use belfry_tests::end_of_test::STRANGERS;
use belfry_tests::process::descriptors;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{read, write};
use worker_proto::abi::{
    CONFIG_ENV, FLOW_READ_FD, FLOW_WRITE_FD, GENERATION_ENV, Generation, LISTEN_FD, STATUS_FD,
    Transport,
};
use worker_proto::client::Client;
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
    let fds = open_descriptors();
    let args: Vec<String> = env::args().collect();
    let has = |word: &str| args.iter().any(|a| a == word);
    let value = |name: &str| {
        let prefix = format!("{name}=");
        args.iter().find_map(|a| a.strip_prefix(&prefix).map(str::to_owned))
    };
    let after = |letter: &str| args.iter().position(|a| a == letter).map(|at| args[at + 1].clone());
    let sockets: i32 = after("-s").map_or(1, |n| n.parse().expect("-s N"));
    let transport: Transport = after("-t").expect("-t TYPE").parse().expect("-t TYPE");
    if let Some(strangers) = strangers(&fds, sockets, transport) {
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
    let fds = words(&fds);
    let worker = Worker { status, fds, stays: has("ignore-end"), once: has("once") };
    worker.serve(&listen, transport, value("trace").as_deref());
    ExitCode::SUCCESS
}

struct Worker {
    status: OwnedFd,
    fds: String,
    stays: bool,
    once: bool,
}

impl Worker {
    fn serve(&self, listen: &[OwnedFd], transport: Transport, trace: Option<&str>) {
        loop {
            let mut fds = vec![PollFd::new(self.status.as_fd(), PollFlags::POLLIN)];
            fds.extend(listen.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN)));
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
            for (listen, _) in listen.iter().zip(ready).filter(|(_, ready)| *ready) {
                if matches!(transport, Transport::Fifo | Transport::UnixDgram) {
                    let mut bytes = [0; 64];
                    let size = read(listen, &mut bytes).unwrap_or(0);
                    self.tell(Availability::Taken);
                    note(trace, &bytes[..size]);
                } else if let Ok(Some(client)) = Client::accept(listen.as_fd(), transport) {
                    self.tell(Availability::Taken);
                    self.client(client, trace);
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

    fn client(&self, client: Client, trace: Option<&str>) {
        let mut reader = BufReader::new(client);
        // A wakeup is a byte and a null byte, and no line.
        let first = reader.fill_buf().unwrap_or_default();
        if first.starts_with(b"W\0") {
            return note(trace, &first[..2]);
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
                Some("report") => self.report(),
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

    /// What the process has from its master, a line each; an empty line ends it.
    fn report(&self) -> String {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find(|l| l.starts_with(name)).unwrap_or_default();
            line.split_once(':')
                .map_or("", |(_, v)| v)
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        let mut environment: Vec<_> = env::vars().map(|(n, v)| format!("{n}={v}")).collect();
        environment.sort();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let files = limits.lines().find(|l| l.starts_with("Max open files")).unwrap_or_default();
        let files: Vec<_> = files.split_whitespace().skip(3).take(2).collect();
        let mut text = String::new();
        for (name, value) in [
            ("pid", pid().to_string()),
            ("ppid", field("PPid")),
            ("argv", env::args().collect::<Vec<_>>().join("|")),
            ("env", environment.join("|")),
            ("fds", self.fds.clone()),
            ("cwd", env::current_dir().map(|d| d.display().to_string()).unwrap_or_default()),
            ("umask", field("Umask")),
            ("uid", field("Uid")),
            ("blocked", field("SigBlk")),
            ("ignored", field("SigIgn")),
            ("session", nix::unistd::getsid(None).map(|s| s.to_string()).unwrap_or_default()),
            ("files", files.join(":")),
            ("no_new_privs", field("NoNewPrivs")),
            ("oom", fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default()),
        ] {
            text += &format!("{name}: {}\n", value.trim());
        }
        text + "\n"
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

/// Number and kind of each open descriptor, without the one that reads the list.
fn open_descriptors() -> Vec<(i32, String)> {
    let mut found = descriptors(pid()).unwrap_or_default();
    found.retain(|(_, target)| !target.ends_with("/fd"));
    let kind = |target: String| target.split(':').next().unwrap_or("").to_owned();
    found.into_iter().map(|(number, target)| (number, kind(target))).collect()
}

/// `number=kind` of each.
fn words(fds: &[(i32, String)]) -> String {
    let words: Vec<_> = fds.iter().map(|(number, kind)| format!("{number}={kind}")).collect();
    words.join(" ")
}

/// What a worker has beside or in place of what the interface says (H01).
fn strangers(fds: &[(i32, String)], sockets: i32, transport: Transport) -> Option<String> {
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
    (!exact).then(|| words(fds))
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
