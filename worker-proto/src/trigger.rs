//! trigger - a worker that is told that there is work, and by whom does not matter
//!
//! A request is a few bytes; what they do not know, services ignore (Q10).

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;

use crate::abi::{TRIGGER_BUF, Transport};
use crate::client::{self, Client};
use crate::diagnostic::Fault;
use crate::server::{self, Configured, Jailed, Limit};

/// What a program does when it is told.
pub trait Trigger: Sized {
    /// What it needs of its line in master.cf.
    const LIMIT: Limit = Limit::Any;

    /// Reads its parameters and opens what it will need, while the process has its privileges.
    ///
    /// # Errors
    /// The worker cannot serve.
    fn configure(configured: &mut Configured) -> Result<Self, Fault>;

    /// Does what a request asks for.
    fn request(&mut self, bytes: &[u8]);
}

/// How long a client may take to write its request: it has it ready when it connects.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a program of this form.
#[must_use]
pub fn main<T: Trigger>(program: &str) -> ExitCode {
    server::main(program, |mut configured| {
        configured.require(T::LIMIT, false)?;
        let service = T::configure(&mut configured)?;
        configured.jail()?.serve_trigger(service)
    })
}

impl Jailed {
    fn serve_trigger<T: Trigger>(self, mut service: T) -> Result<(), Fault> {
        let Some(status) = &self.status else {
            let cause = "a trigger service has no client to serve";
            return Err(Fault::new("option -S", cause));
        };
        let take = |listen: BorrowedFd<'_>| take(listen, self.transport);
        self.one_by_one(status, take, |bytes: Vec<u8>| {
            service.request(&bytes);
            true
        })
    }
}

/// The next request; None when another worker was faster.
fn take(listen: BorrowedFd<'_>, transport: Transport) -> Result<Option<Vec<u8>>, Fault> {
    let mut bytes = [0; TRIGGER_BUF];
    let size = match transport {
        Transport::Fifo | Transport::UnixDgram => match read(listen, &mut bytes) {
            Ok(size) => size,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(errno) => return Err(Fault::io("read request", &errno.into())),
        },
        // What is passed is the end of a pipe (master(8), wakeups), or a connection.
        Transport::Pass => {
            let passed = client::accept_passed(listen);
            match passed.map_err(|e| Fault::io("accept connection", &e))? {
                Some(fd) => read_in_time(fd.as_fd(), &mut bytes),
                None => return Ok(None),
            }
        }
        Transport::Inet | Transport::Unix => {
            let accepted = Client::accept(listen, transport);
            let Some(mut client) = accepted.map_err(|e| Fault::io("accept connection", &e))? else {
                return Ok(None);
            };
            // A client that says nothing in time has asked for nothing.
            let _ = client.set_timeout(PATIENCE);
            client.read(&mut bytes).unwrap_or(0)
        }
    };
    Ok(Some(bytes[..size].to_vec()))
}

/// Reads what is there, or comes within [`PATIENCE`]; nothing otherwise.
fn read_in_time(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> usize {
    let patience = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], patience) {
        Ok(1..) => read(fd, bytes).unwrap_or(0),
        _ => 0,
    }
}
