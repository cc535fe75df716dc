//! conversation - one client's session: reads, writes and their deadlines
//!
//! Each command, and each block of a message, has the time of `timeout`, however slowly it drips in,
//! and so has each write. A client that makes no progress - it is silent, or talks and brings no
//! message - is closed early when another one needs its place: when the master wants this worker to end, as it does when every worker is busy (stress), and
//! when a client waits on the listen socket and no worker takes it.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use worker_proto::client::write_within;
use worker_proto::clock::Time;
use worker_proto::single::Others;
use worker_proto::watchdog;

use crate::smtp::server::{Backend, Server};

/// How a conversation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With QUIT, or by the server's will.
    Closed,
    /// The client sent this line, which is not SMTP.
    Foreign(String),
    /// The client has gone.
    Lost,
    /// The client said nothing, or too little, or read too little, for too long.
    TimedOut,
    /// The same, while other clients wait.
    MadeRoom,
}

/// How much time a client has.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// For each command, each block of a message, and each write.
    pub timeout: Duration,
    /// The same under stress.
    pub stress_timeout: Duration,
    /// Who else may need this worker.
    pub others: Option<&'a Others<'a>>,
}

impl From<Duration> for Terms<'_> {
    fn from(timeout: Duration) -> Self {
        Self { timeout, stress_timeout: timeout, others: None }
    }
}

/// Bytes of a message that count as a sign of life.
const BLOCK: usize = 64 * 1024;
/// What a client that has begun no message has under stress: who has mail sends it at once.
const IDLE_UNDER_STRESS: Duration = Duration::from_secs(2);
/// How often a worker with an idle client looks whether another client waits.
const LOOK: Duration = Duration::from_millis(500);
/// The longest single wait: the watchdog is for a worker that is stuck, not for one that waits.
const SLICE: Duration = Duration::from_secs(10);

/// Has a conversation with one client, whose connection does not block.
pub fn converse<'a, S, B>(
    mut stream: S,
    mut server: Server,
    backend: &mut B,
    terms: impl Into<Terms<'a>>,
) -> Ending
where
    S: Read + Write + AsFd,
    B: Backend,
{
    let terms = terms.into();
    let mut stressed = false;
    // When another client was first seen to wait.
    let mut waits_since = None;
    let mut bytes = vec![0; 32 * 1024];
    let mut received = 0;
    // When the client last showed a sign of life.
    let mut life = Time::now();
    // When it last brought a message, or a block of one: answers alone are no use of a worker that
    // others need.
    let mut progress = life;
    let mut messages = 0;
    loop {
        let hurried = match server.is_in_transaction() {
            true => terms.stress_timeout,
            false => terms.stress_timeout.min(IDLE_UNDER_STRESS),
        };
        let allowed = if stressed { hurried } else { terms.timeout };
        if !server.output().is_empty() {
            let deadline = Time::now() + allowed;
            let result = write_within(&mut stream, server.output(), deadline);
            match result {
                // It has heard enough.
                _ if server.is_closing() => {}
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::TimedOut => return Ending::TimedOut,
                Err(_) => return Ending::Lost,
            }
            server.wrote(server.output().len());
            life = Time::now();
            received = 0;
        }
        if server.messages() > messages {
            messages = server.messages();
            progress = life;
        }
        if server.is_closing() {
            return match server.foreign() {
                Some(line) => Ending::Foreign(line.to_owned()),
                None => Ending::Closed,
            };
        }
        if received >= BLOCK {
            received = 0;
            life = Time::now();
            progress = life;
        }
        watchdog::feed();
        let now = Time::now();
        let soon = (life + hurried).min(progress + terms.stress_timeout);
        let deadline = if stressed { soon } else { life + allowed };
        let mut left = deadline.since(now);
        if let Some(others) = terms.others.filter(|_| !stressed) {
            let patient = soon.since(now);
            if !patient.is_zero() || !is_readable(&others.waiting) {
                waits_since = None;
            } else if now.since(*waits_since.get_or_insert(now)) > settling() {
                stressed = true;
                continue;
            }
            // At the end of its patience, and then again and again.
            left = left.min(if patient.is_zero() { LOOK } else { patient });
        }
        if left.is_zero() {
            let (text, ending) = match stressed {
                true => ("closing an idle connection, try again later", Ending::MadeRoom),
                false => ("timeout exceeded", Ending::TimedOut),
            };
            server.close(if stressed { "4.3.2" } else { "4.4.2" }, text);
            // Without waiting: it would be for nobody's good.
            let _ = write_within(&mut stream, server.output(), Time::now());
            return ending;
        }
        let master = terms.others.filter(|_| !stressed).map(|others| others.master);
        let (readable, retired) = wait(stream.as_fd(), master, left.min(SLICE));
        stressed |= retired;
        if !readable {
            continue;
        }
        match stream.read(&mut bytes) {
            Ok(0) => return Ending::Lost,
            Ok(count) => {
                server.input(&bytes[..count], backend);
                received += if server.is_in_message() { count } else { 0 };
            }
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(_) => return Ending::Lost,
        }
    }
}

/// How long a client must have waited before an idle one makes room for it: long enough for a worker
/// that is free or is just started, and not the same for all, or all would give up theirs for one.
fn settling() -> Duration {
    Duration::from_millis(100 + u64::from(std::process::id() % 32) * 16)
}

fn is_readable(sockets: &[BorrowedFd<'_>]) -> bool {
    let mut fds: Vec<_> = sockets.iter().map(|&fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Waits: whether the client can be read, and whether the master has closed its channel.
fn wait(client: BorrowedFd<'_>, master: Option<BorrowedFd<'_>>, within: Duration) -> (bool, bool) {
    let mut fds = vec![PollFd::new(client, PollFlags::POLLIN)];
    // The end of the other side is told unasked.
    fds.extend(master.map(|fd| PollFd::new(fd, PollFlags::empty())));
    // A millisecond more: a wait that ends too early would only be repeated.
    let within = within + Duration::from_millis(1);
    let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    if poll(&mut fds, timeout).is_err() {
        return (false, false);
    }
    let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
    (is_ready(&fds[0]), fds.get(1).is_some_and(is_ready))
}
