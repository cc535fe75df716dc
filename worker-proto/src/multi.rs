//! multi - one process, many clients, one loop
//!
//! The service registers what it waits for with the [`Reactor`]; events are edge-triggered (mio), so
//! it reads and writes until the kernel says "again". When every event of a turn is handled,
//! [`Multi::turn_end`] is called once: what is dear (a commit) is done there for all.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::ExitCode;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use crate::client::Client;
use crate::clock::Time;
use crate::diagnostic::Fault;
use crate::server::{self, Configured, Jailed, Limit};
use crate::sys::errno_text;
use crate::watchdog;

/// What a program does in its loop. Every call gets the time of the turn.
pub trait Multi: Sized {
    /// What it needs of its line in master.cf.
    const LIMIT: Limit = Limit::Any;

    /// Reads its parameters and opens what it will need, while the process has its privileges.
    ///
    /// # Errors
    /// The worker cannot serve.
    fn configure(configured: &mut Configured) -> Result<Self, Fault>;

    /// The privileges are gone and the loop begins.
    ///
    /// # Errors
    /// The worker cannot serve.
    fn start(&mut self, reactor: &mut Reactor, now: Time) -> Result<(), Fault>;

    /// A client has come; it is in non-blocking mode and not registered.
    fn connected(&mut self, reactor: &mut Reactor, now: Time, client: Client);

    /// Something the service has registered is ready.
    fn ready(&mut self, reactor: &mut Reactor, now: Time, token: Token);

    /// Every event of this turn was handled.
    fn turn_end(&mut self, reactor: &mut Reactor, now: Time);

    /// When the next turn must come at the latest.
    fn deadline(&self) -> Option<Time>;

    /// The master has gone or wants the worker to end.
    fn retire(&mut self, reactor: &mut Reactor, now: Time);

    /// Whether the worker can end.
    fn is_done(&self) -> bool;
}

/// What the loop waits for.
#[derive(Debug)]
pub struct Reactor {
    poll: Poll,
    next: usize,
    known: HashMap<Token, i32>,
}

const STATUS: Token = Token(0);
const FIRST_LISTEN: usize = 1;
/// No service has more listen sockets; the numbers from here on are its own.
const FIRST_OWN: usize = 1024;
/// The loop turns at least this often.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long nobody is let in when there was no room.
const CROWDED_PAUSE: Duration = Duration::from_secs(1);

impl Reactor {
    /// Waits for something; it must stay open until [`Reactor::remove`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add(&mut self, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<Token> {
        let token = Token(self.next);
        self.poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), token, interest)?;
        self.next += 1;
        self.known.insert(token, fd.as_raw_fd());
        Ok(token)
    }

    /// Stops waiting for something; to be called before it is closed.
    pub fn remove(&mut self, token: Token) {
        if let Some(raw) = self.known.remove(&token) {
            // It was registered under this number.
            let _ = self.poll.registry().deregister(&mut SourceFd(&raw));
        }
    }
}

/// Runs a program of this form.
#[must_use]
pub fn main<M: Multi>(program: &str) -> ExitCode {
    server::main(program, |mut configured| {
        configured.require(M::LIMIT, false)?;
        let service = M::configure(&mut configured)?;
        configured.jail()?.serve_multi(service)
    })
}

impl Jailed {
    fn serve_multi<M: Multi>(self, mut service: M) -> Result<(), Fault> {
        let Some(status) = &self.status else {
            return Err(Fault::new("option -S", "a service of many clients needs a master"));
        };
        let system = |e: &io::Error| Fault::io("event loop", e);
        let poll = Poll::new().map_err(|e| system(&e))?;
        let mut reactor = Reactor { poll, next: FIRST_OWN, known: HashMap::new() };
        let watch = |reactor: &Reactor, fd: BorrowedFd<'_>, token| {
            let source = fd.as_raw_fd();
            reactor.poll.registry().register(&mut SourceFd(&source), token, Interest::READABLE)
        };
        watch(&reactor, status.as_fd(), STATUS).map_err(|e| system(&e))?;
        for (listen, number) in self.listen.iter().zip(FIRST_LISTEN..) {
            watch(&reactor, listen.as_fd(), Token(number)).map_err(|e| system(&e))?;
        }
        let mut events = Events::with_capacity(256);
        let mut retired = false;
        let mut crowded: Option<Time> = None;
        service.start(&mut reactor, Time::now())?;
        service.turn_end(&mut reactor, Time::now());
        while !service.is_done() {
            let next = service.deadline().into_iter().chain(crowded).min();
            let wait = next.map_or(LONGEST_WAIT, |at| at.since(Time::now()));
            match reactor.poll.poll(&mut events, Some(wait.min(LONGEST_WAIT))) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(system(&e)),
                _ => {}
            }
            watchdog::start(self.common.daemon_timeout);
            let now = Time::now();
            let mut used = false;
            if crowded.is_some_and(|until| until <= now) {
                crowded = None;
                // Who waits is reported again.
                for (listen, number) in self.listen.iter().zip(FIRST_LISTEN..) {
                    let (registry, source) = (reactor.poll.registry(), listen.as_raw_fd());
                    registry
                        .reregister(&mut SourceFd(&source), Token(number), Interest::READABLE)
                        .map_err(|e| system(&e))?;
                }
            }
            for event in &events {
                match event.token() {
                    STATUS if !retired => {
                        retired = true;
                        service.retire(&mut reactor, now);
                    }
                    STATUS => {}
                    Token(n) if n < FIRST_OWN && crowded.is_some() => {}
                    Token(n) if n < FIRST_OWN => {
                        let listen = self.listen[n - FIRST_LISTEN].as_fd();
                        loop {
                            let client = match Client::accept(listen, self.transport) {
                                Ok(Some(client)) => client,
                                Ok(None) => break,
                                Err(e) if is_crowded(&e) => {
                                    let reason = errno_text(&e);
                                    log::warn!("accept connection: {reason} -- trying again");
                                    crowded = Some(now + CROWDED_PAUSE);
                                    break;
                                }
                                Err(e) => return Err(system(&e)),
                            };
                            if !used {
                                status.taken();
                                used = true;
                            }
                            if client.set_nonblocking(true).is_ok() {
                                service.connected(&mut reactor, now, client);
                            }
                        }
                    }
                    token if reactor.known.contains_key(&token) => {
                        service.ready(&mut reactor, now, token);
                    }
                    _ => {}
                }
            }
            service.turn_end(&mut reactor, now);
            watchdog::stop();
            if used && !status.available() && !retired {
                retired = true;
                service.retire(&mut reactor, now);
            }
        }
        Ok(())
    }
}

/// The system has no room for another connection. Those that are there go on, and one that ends makes
/// room.
fn is_crowded(error: &io::Error) -> bool {
    let crowded = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| crowded.contains(&code))
}
