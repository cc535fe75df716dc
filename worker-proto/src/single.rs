//! single - a worker that serves one client at a time

use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use crate::client::Client;
use crate::diagnostic::Fault;
use crate::server::{self, Configured, Jailed, Limit};
use crate::sys;

/// What tells a worker, while it has a client, that others need its place.
#[derive(Debug)]
pub struct Others<'a> {
    /// The channel to the master. The other end closes when the master wants this worker to end, as it
    /// does when every worker is busy (stress) and at a reload.
    pub master: BorrowedFd<'a>,
    /// The sockets where clients wait; readable when one does that no worker takes.
    pub waiting: Vec<BorrowedFd<'a>>,
}

/// What a program does with its clients.
pub trait Single: Sized {
    /// What it needs of its line in master.cf.
    const LIMIT: Limit = Limit::Any;
    /// At SIGTERM it finishes its client and then ends; otherwise it ends at once.
    const FINISHES: bool = false;

    /// Reads its parameters and opens what it will need, while the process has its privileges.
    ///
    /// # Errors
    /// The worker cannot serve.
    fn configure(configured: &mut Configured) -> Result<Self, Fault>;

    /// Serves one client to its end. What goes wrong with it is the client's matter and not the
    /// worker's.
    fn serve(&mut self, client: Client);

    /// The same, for a program that gives up a client without progress when others need its place.
    fn serve_among(&mut self, client: Client, others: &Others<'_>) {
        let _ = others;
        self.serve(client);
    }

    /// Whether it wants to end now that no client is there, whatever max_use says.
    fn wants_to_end(&self) -> bool {
        false
    }
}

/// Runs a program of this form.
#[must_use]
pub fn main<S: Single>(program: &str) -> ExitCode {
    server::main(program, |mut configured| {
        configured.require(S::LIMIT, false)?;
        if S::FINISHES {
            configured.finish_on_term()?;
        }
        let service = S::configure(&mut configured)?;
        configured.jail()?.serve_single(service)
    })
}

impl Jailed {
    fn serve_single<S: Single>(self, mut service: S) -> Result<(), Fault> {
        let Some(status) = &self.status else {
            let standard = sys::take_fd(0).and_then(Client::from_fd);
            let client = standard.map_err(|e| Fault::io("option -S: standard input", &e))?;
            service.serve(client);
            return Ok(());
        };
        let waiting = self.listen.iter().map(AsFd::as_fd).collect();
        let others = Others { master: status.as_fd(), waiting };
        let take = |listen: BorrowedFd<'_>| {
            Client::accept(listen, self.transport).map_err(|e| Fault::io("accept connection", &e))
        };
        self.one_by_one(status, take, |client| {
            service.serve_among(client, &others);
            !service.wants_to_end()
        })
    }
}
