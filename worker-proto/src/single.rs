//! single - a worker that serves one client at a time

use std::os::fd::AsFd;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use crate::client::Client;
use crate::diagnostic::Fault;
use crate::server::{self, Configured, Jailed, Limit};
use crate::sys;
use crate::watchdog;

/// What a program does with its clients.
pub trait Single: Sized {
    /// What it needs of its line in master.cf.
    const LIMIT: Limit = Limit::Any;

    /// Reads its parameters and opens what it will need, while the process has its privileges.
    ///
    /// # Errors
    /// The worker cannot serve.
    fn configure(configured: &mut Configured) -> Result<Self, Fault>;

    /// Serves one client to its end. What goes wrong with it is the client's matter and not the
    /// worker's.
    fn serve(&mut self, client: Client);

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
        let idle = self.idle_limit();
        let mut used = 0;
        while self.may_serve(used) && !service.wants_to_end() {
            let mut fds = vec![PollFd::new(status.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.listen.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, idle) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Fault::io("poll", &errno.into())),
            }
            // The master has gone or wants this worker to end; it has no client (Q03).
            if fds[0].any().unwrap_or(false) {
                return Ok(());
            }
            let ready: Vec<bool> = fds[1..].iter().map(|fd| fd.any().unwrap_or(false)).collect();
            for (listen, _) in self.listen.iter().zip(ready).filter(|(_, ready)| *ready) {
                let accepted = Client::accept(listen.as_fd(), self.transport);
                match accepted {
                    Ok(None) => {}
                    Ok(Some(client)) => {
                        status.taken();
                        watchdog::start(self.common.daemon_timeout);
                        service.serve(client);
                        watchdog::stop();
                        used += 1;
                        if !status.available() {
                            return Ok(());
                        }
                    }
                    Err(e) => return Err(Fault::io("accept connection", &e)),
                }
            }
        }
        Ok(())
    }
}
