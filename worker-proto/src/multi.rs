//! multi - one process, many clients, one loop
//!
//! The service registers what it waits for with the [`Reactor`]; events are edge-triggered (mio), so
//! it reads and writes until the kernel says "again". When every event of a turn is handled,
//! [`Multi::turn_end`] is called once: what is dear (a commit) is done there for all.
//!
//! A worker that was told to end takes no more clients from that moment on: those who wait are its
//! successor's. When it leaves work behind it wakes its own service, so that there is one.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockname, socket};

use crate::abi::{TRIGGER_WAKEUP, Transport};
use crate::client::Client;
use crate::clock::Time;
use crate::diagnostic::Fault;
use crate::server::{self, Configured, Jailed, Limit, Status};
use crate::sys::errno_text;
use crate::watchdog;

/// What a program does in its loop. Every call gets the time of the turn.
pub trait Multi: Sized {
    /// What it needs of its line in master.cf.
    const LIMIT: Limit = Limit::Any;
    /// At SIGTERM it is told so and ends when it has finished; otherwise it ends at once.
    const FINISHES: bool = false;

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

    /// The worker is to end, and gets no more clients. At a stop of the system (SIGTERM) nobody comes
    /// after it; otherwise the master has gone, or has a successor ready, which cannot begin before
    /// this worker has ended where the limit is one. May be called twice, the stop last.
    fn retire(&mut self, reactor: &mut Reactor, now: Time, stop: bool);

    /// Whether the worker can end.
    fn is_done(&self) -> bool;

    /// Whether it leaves something for its successor to go on with.
    fn leaves_work(&self) -> bool {
        false
    }
}

/// What the loop waits for.
#[derive(Debug)]
pub struct Reactor {
    poll: Poll,
    next: usize,
    known: HashMap<Token, i32>,
}

const STATUS: Token = Token(0);
const TERM: Token = Token(1);
const FIRST_LISTEN: usize = 2;
/// No service has more listen sockets; the numbers from here on are its own.
const FIRST_OWN: usize = 1024;
/// The loop turns at least this often.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The most clients that are taken before the master is listened to for the first time.
const MAX_FIRST: usize = 256;
/// How long nobody is let in when there was no room.
const CROWDED_PAUSE: Duration = Duration::from_secs(1);

impl Reactor {
    /// Waits for something of the skeleton's own.
    fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> Result<(), Fault> {
        let source = fd.as_raw_fd();
        let registered =
            self.poll.registry().register(&mut SourceFd(&source), token, Interest::READABLE);
        registered.map_err(|e| system(&e))
    }

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
        if M::FINISHES {
            configured.finish_on_term()?;
        }
        let service = M::configure(&mut configured)?;
        configured.jail()?.serve_multi(service)
    })
}

impl Jailed {
    fn serve_multi<M: Multi>(mut self, mut service: M) -> Result<(), Fault> {
        let Some(status) = self.status.take() else {
            return Err(Fault::new("option -S", "a service of many clients needs a master"));
        };
        let poll = Poll::new().map_err(|e| system(&e))?;
        let mut reactor = Reactor { poll, next: FIRST_OWN, known: HashMap::new() };
        reactor.watch(status.as_fd(), STATUS)?;
        if let Some(term) = &self.term {
            reactor.watch(term.as_fd(), TERM)?;
        }
        for (listen, number) in self.listen.iter().zip(FIRST_LISTEN..) {
            reactor.watch(listen.as_fd(), Token(number))?;
        }
        let own_address = self.listen.first().and_then(path_of);
        let mut door = Door { listen: self.listen, crowded: None };
        let mut events = Events::with_capacity(256);
        let (mut retired, mut stopped) = (false, false);
        service.start(&mut reactor, Time::now())?;
        // Those for whom it was started come before the order to end, which may be here already: with
        // reloads in quick succession nobody would be served otherwise.
        let now = Time::now();
        let mut served = 0;
        let stopping = self.term.as_ref().is_some_and(|t| server::is_readable(t.as_fd()));
        for number in 0..if stopping { 0 } else { door.listen.len() } {
            while served < MAX_FIRST
                && let Some(client) = door.accept(number, self.transport, now)?
            {
                if served == 0 {
                    status.taken();
                }
                served += 1;
                if client.set_nonblocking(true).is_ok() {
                    service.connected(&mut reactor, now, client);
                }
            }
        }
        service.turn_end(&mut reactor, now);
        if served > 0 {
            let _ = status.available();
        }
        while !service.is_done() {
            let next = service.deadline().into_iter().chain(door.crowded).min();
            let wait = next.map_or(LONGEST_WAIT, |at| at.since(Time::now()));
            match reactor.poll.poll(&mut events, Some(wait.min(LONGEST_WAIT))) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(system(&e)),
                _ => {}
            }
            watchdog::start(self.common.daemon_timeout);
            let now = Time::now();
            let told = |status: &Status| {
                let term = self.term.as_ref().is_some_and(|t| server::is_readable(t.as_fd()));
                (term || status.is_over(), term)
            };
            let mut retire = |service: &mut M, reactor: &mut Reactor, door: &mut Door| {
                let (over, stop) = told(&status);
                if over && !retired || stop && !stopped {
                    (retired, stopped) = (true, stop);
                    door.close(reactor);
                    service.retire(reactor, now, stop);
                }
                retired
            };
            // Before any client of the same turn.
            if events.iter().any(|e| matches!(e.token(), STATUS | TERM)) {
                retire(&mut service, &mut reactor, &mut door);
            }
            door.try_again(&reactor, now)?;
            let mut used = false;
            for event in &events {
                match event.token() {
                    STATUS | TERM => {}
                    Token(n) if n < FIRST_OWN => {
                        // The end may come while clients are taken; what came after it is not ours.
                        while !retire(&mut service, &mut reactor, &mut door)
                            && let Some(client) =
                                door.accept(n - FIRST_LISTEN, self.transport, now)?
                        {
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
            if used && !status.available() {
                retire(&mut service, &mut reactor, &mut door);
            }
        }
        if !stopped
            && service.leaves_work()
            && let Some(path) = own_address
        {
            wake(&path);
        }
        Ok(())
    }
}

fn system(error: &io::Error) -> Fault {
    Fault::io("event loop", error)
}

/// The listen sockets.
struct Door {
    /// None are left once the worker was told to end.
    listen: Vec<OwnedFd>,
    /// There was no room for a client, and until then none is taken.
    crowded: Option<Time>,
}

impl Door {
    fn accept(
        &mut self,
        number: usize,
        transport: Transport,
        now: Time,
    ) -> Result<Option<Client>, Fault> {
        let Some(listen) = self.listen.get(number).filter(|_| self.crowded.is_none()) else {
            return Ok(None);
        };
        match Client::accept(listen.as_fd(), transport) {
            Err(e) if is_crowded(&e) => {
                log::warn!("accept connection: {} -- trying again", errno_text(&e));
                self.crowded = Some(now + CROWDED_PAUSE);
                Ok(None)
            }
            other => other.map_err(|e| system(&e)),
        }
    }

    /// When the pause is over, who waits is reported again.
    fn try_again(&mut self, reactor: &Reactor, now: Time) -> Result<(), Fault> {
        if self.crowded.is_none_or(|until| until > now) {
            return Ok(());
        }
        self.crowded = None;
        for (listen, number) in self.listen.iter().zip(FIRST_LISTEN..) {
            let (registry, source) = (reactor.poll.registry(), listen.as_raw_fd());
            registry
                .reregister(&mut SourceFd(&source), Token(number), Interest::READABLE)
                .map_err(|e| system(&e))?;
        }
        Ok(())
    }

    fn close(&mut self, reactor: &Reactor) {
        for listen in self.listen.drain(..) {
            // It was registered, and is deregistered before it is closed: others hold it as well.
            let _ = reactor.poll.registry().deregister(&mut SourceFd(&listen.as_raw_fd()));
        }
        self.crowded = None;
    }
}

/// The name of a socket in the file system, as the master has bound it: from the queue directory.
fn path_of(listen: &OwnedFd) -> Option<std::path::PathBuf> {
    let address: UnixAddr = getsockname(listen.as_raw_fd()).ok()?;
    address.path().map(std::path::Path::to_owned)
}

/// Wakes a service as its timer would. It never blocks; a failure means that there is no master to wake.
fn wake(path: &std::path::Path) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let connected = socket(AddressFamily::Unix, SockType::Stream, flags, None).and_then(|fd| {
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(fd)
    });
    let written = connected
        .map_err(io::Error::from)
        .and_then(|fd| io::Write::write_all(&mut UnixStream::from(fd), &[TRIGGER_WAKEUP]));
    if let Err(e) = written {
        log::debug!("wake {}: {}", path.display(), errno_text(&e));
    }
}

/// The system has no room for another connection. Those that are there go on, and one that ends makes
/// room.
fn is_crowded(error: &io::Error) -> bool {
    let crowded = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| crowded.contains(&code))
}
