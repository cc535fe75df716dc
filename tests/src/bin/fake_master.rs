//! fake_master - starts one worker and tells what it says
//!
//! `fake_master PROGRAM SOCKET ARG...` binds SOCKET in the file system (a pipe if the type after `-t`
//! says so), starts PROGRAM with the arguments, and prints a line for each status record and for the
//! end: `taken`, `available`, `odd N`, `status N`, `signal N`. Of its standard input it obeys `retire`
//! (half-close, as our master does), `leave` (close, as a master that is gone), `steal` (accept a
//! client itself, as another worker does) and `count` (print `waiting N`, how many clients the worker
//! has left, before its end).

use std::fs;
use std::io::{self, BufRead, BufReader, StdinLock, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, shutdown, socketpair,
};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use worker_proto::abi::Generation;
use worker_proto::status::{Availability, StatusRecord};
use worker_proto::sys::{self, ListenFds, SpawnImage, Spawner};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let (program, socket, args) = (&words[1], &words[2], &words[3..]);
    let fifo = args.iter().any(|a| a == "fifo");
    let listen = sys::set_high(bind(socket, fifo)).expect("a descriptor is free");
    let (ours, theirs) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .expect("a descriptor is free");
    let ours = sys::set_high(ours).expect("a descriptor is free");
    let theirs = sys::set_high(theirs).expect("a descriptor is free");
    sys::place_flow_pipe().expect("a descriptor is free");
    let name = program.rsplit('/').next().unwrap_or(program).to_owned();
    let argv: Vec<Vec<u8>> = [name].iter().chain(args).map(|a| a.clone().into_bytes()).collect();
    let environment: Vec<Vec<u8>> = std::env::vars()
        .filter(|(name, _)| name == "MAIL_CONFIG" || name == "TRACE")
        .map(|(name, value)| format!("{name}={value}").into_bytes())
        .collect();
    let image =
        SpawnImage::new(program.as_bytes(), &argv, &environment, None).expect("no null bytes");
    let sockets = ListenFds::new([listen.as_fd()]).expect("it is one");
    let spawned = Spawner::default()
        .spawn(&image, Generation(8), false, theirs.as_fd(), &sockets, (1024, 4096))
        .expect("a process can be started");
    drop(theirs);
    say(&format!("pid {}", spawned.pid));
    watch(ours, &listen, spawned.pid);
    ExitCode::SUCCESS
}

fn bind(socket: &str, fifo: bool) -> OwnedFd {
    let _ = fs::remove_file(socket);
    if fifo {
        nix::unistd::mkfifo(socket, nix::sys::stat::Mode::S_IRWXU).expect("the directory is ours");
        use std::os::unix::fs::OpenOptionsExt;
        let nonblock = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let mut options = fs::OpenOptions::new();
        return options
            .read(true)
            .write(true)
            .custom_flags(nonblock)
            .open(socket)
            .expect("it is there")
            .into();
    }
    let listener = UnixListener::bind(socket).expect("the directory is ours");
    listener.set_nonblocking(true).expect("it is a socket");
    listener.into()
}

fn watch(ours: OwnedFd, listen: &OwnedFd, pid: nix::unistd::Pid) {
    let mut ours = Some(ours);
    let mut input = BufReader::new(io::stdin().lock());
    let (mut commands, mut counts) = (true, false);
    loop {
        let ended = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, status)) => Some(format!("status {status}")),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(format!("signal {}", signal as i32)),
            _ => None,
        };
        while let Some(fd) = &ours
            && read_record(fd)
        {}
        if let Some(ended) = ended {
            if counts {
                let left = || nix::sys::socket::accept(listen.as_raw_fd()).ok();
                say(&format!("waiting {}", std::iter::from_fn(left).count()));
            }
            return say(&ended);
        }
        let wanted = if commands { PollFlags::POLLIN } else { PollFlags::empty() };
        let stdin = io::stdin();
        let mut fds = vec![PollFd::new(stdin.as_fd(), wanted)];
        fds.extend(ours.iter().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        // The end of the worker is looked for now and then: this is a test's tool.
        let _ = poll(&mut fds, PollTimeout::from(20_u8));
        if commands && fds[0].any().unwrap_or(false) {
            // Several lines may have come in one read.
            loop {
                commands = obey(&mut input, &mut ours, listen, &mut counts);
                if !commands || input.buffer().is_empty() {
                    break;
                }
            }
        }
    }
}

/// Obeys the next line. False: there is none.
fn obey(
    input: &mut BufReader<StdinLock<'_>>,
    ours: &mut Option<OwnedFd>,
    listen: &OwnedFd,
    counts: &mut bool,
) -> bool {
    let mut line = String::new();
    match (input.read_line(&mut line).unwrap_or(0), line.trim()) {
        (0, _) => return false,
        (_, "retire") => {
            if let Some(fd) = ours {
                let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
            }
        }
        (_, "leave") => *ours = None,
        (_, "count") => *counts = true,
        (_, "steal") => {
            let stolen = nix::sys::socket::accept(listen.as_raw_fd()).is_ok();
            say(if stolen { "stolen" } else { "nobody" });
        }
        _ => {}
    }
    true
}

/// Whether there was one.
fn read_record(fd: &OwnedFd) -> bool {
    let mut bytes = [0; 64];
    let size = match recv(fd.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
        Ok(0) | Err(_) => return false,
        Ok(size) => size,
    };
    let record = StatusRecord::decode(&bytes[..size]);
    match record.filter(|r| r.generation == Generation(8)).and_then(|r| r.availability()) {
        Some(Availability::Taken) => say("taken"),
        Some(Availability::Available) => say("available"),
        None => say(&format!("odd {size}")),
    }
    true
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
