//! server - what all worker skeletons share
//!
//! A worker goes through three states, and a later one cannot be had without the earlier:
//! [`Configured`] (command line, main.cf and log are read; still root), [`Jailed`] (privileges are
//! gone), and serving in one of the forms of [`crate::single`], [`crate::multi`], [`crate::trigger`].
//!
//! The contract with the master is Postfix's (Q01 to Q11 in the tests' names), so that a worker runs
//! under either.
//!
//! # Bugs
//! Workers without `-l` do not take turns at accepting with a lock file, as Postfix's do: an accept
//! that comes too late is told so by the kernel and costs little.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{chdir, write};

use crate::abi::{
    CONFIG_ENV, FLOW_READ_FD, FLOW_WRITE_FD, GENERATION_ENV, Generation, LISTEN_FD, STATUS_FD,
    Transport, VERBOSE_ENV, WORKER_OPTIONS,
};
use crate::diagnostic::{Diagnostic, Fault};
use crate::getopt;
use crate::jail::Jail;
use crate::log::{self, Sink};
use crate::main_cf::MainCf;
use crate::params::CommonParams;
use crate::status::{Availability, StatusRecord};
use crate::sys;
use crate::watchdog;

/// Where main.cf is when nothing says otherwise.
pub const CONFIG_DIRECTORY: &str = "/etc/belfry";

/// The process limit that a program needs in master.cf (Q08).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Any.
    Any,
    /// Exactly 1: it owns something that cannot be shared.
    One,
    /// None (0 in master.cf).
    None,
}

/// Command line and configuration are read; the process still has the privileges it was started with.
#[derive(Debug)]
pub struct Configured {
    /// The parameters, with the overrides of `-o`.
    pub main_cf: MainCf,
    /// Parameters of every program.
    pub common: CommonParams,
    /// The service's name in master.cf.
    pub service: String,
    /// How clients reach it.
    pub transport: Transport,
    options: Options,
    status: Option<Status>,
    listen: Vec<OwnedFd>,
    term: Option<SignalFd>,
}

/// Privileges are gone; what is left is to serve.
#[derive(Debug)]
pub struct Jailed {
    /// The service's name in master.cf.
    pub service: String,
    pub(crate) transport: Transport,
    pub(crate) common: CommonParams,
    pub(crate) status: Option<Status>,
    pub(crate) listen: Vec<OwnedFd>,
    /// Readable once SIGTERM has come, in a worker that finishes its work then.
    pub(crate) term: Option<SignalFd>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one letter of the command line")]
struct Options {
    chroot: bool,
    debug: bool,
    limit_one: bool,
    unlimited: bool,
    unprivileged: bool,
    standard_error: bool,
    once: bool,
    verbose: bool,
    name: Option<String>,
    transport: Option<Transport>,
    sockets: usize,
    overrides: Vec<(String, String)>,
}

/// Runs a worker: `body` is what it does from [`Configured`] on.
///
/// A worker that fails ends at once with status 1. Postfix's wait a second first, so that a master
/// that does not pause is not kept busy; ours pauses, and so does Postfix's.
#[must_use]
pub fn main(program: &str, body: impl FnOnce(Configured) -> Result<(), Fault>) -> ExitCode {
    let _ = log::init(&format!("belfry/{program}"), false, &Sink::Stderr);
    log::log_panics();
    let words = env::args_os().skip(1);
    match configure(program, words).and_then(body) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            log::fatal(&fault.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Reads the command line and main.cf and adopts the descriptors the master has placed.
fn configure(
    program: &str,
    words: impl IntoIterator<Item = OsString>,
) -> Result<Configured, Fault> {
    let options = options(words).map_err(|problem| Fault::new("command line", problem))?;
    let directory = env::var_os(CONFIG_ENV).unwrap_or_else(|| CONFIG_DIRECTORY.into());
    let (mut main_cf, _) = MainCf::load(&PathBuf::from(directory))?;
    for (name, value) in &options.overrides {
        main_cf.set(name, value);
    }
    let common = CommonParams::read(&mut main_cf).map_err(|errors| first(&errors))?;
    let tag = format!("{}/{program}", common.syslog_name);
    let verbose = options.verbose || env::var_os(VERBOSE_ENV).is_some();
    let sink = if options.standard_error { Sink::Stderr } else { Sink::choose(&common) };
    if let Err(fault) = log::init(&tag, verbose, &sink) {
        ::log::warn!("{fault}");
    }
    // A file that is too large is an error of write(2), not the end of the process.
    sys::ignore_signal(Signal::SIGXFSZ).map_err(|e| Fault::io("ignore SIGXFSZ", &e))?;
    sys::ignore_signal(Signal::SIGPIPE).map_err(|e| Fault::io("ignore SIGPIPE", &e))?;
    let queue = &common.queue_directory;
    chdir(queue).map_err(|e| Fault::io(format!("chdir {}", queue.display()), &e.into()))?;
    let (status, listen) = if options.once { (None, Vec::new()) } else { adopt(options.sockets)? };
    Ok(Configured {
        service: options.name.clone().unwrap_or_else(|| program.to_owned()),
        transport: options.transport.unwrap_or(Transport::Unix),
        main_cf,
        common,
        options,
        status,
        listen,
        term: None,
    })
}

impl Configured {
    /// Checks what a program needs of its line in master.cf: the process limit, and whether it must
    /// keep its privileges (Q08).
    ///
    /// # Errors
    /// The line does not give it.
    pub fn require(&self, limit: Limit, privileged: bool) -> Result<(), Fault> {
        let service = format!("service {}", self.service);
        // By hand, with -S, there is no line in master.cf.
        let missing = match limit {
            Limit::Any => None,
            Limit::One => (!self.options.limit_one).then_some("requires a process limit of 1"),
            Limit::None => (!self.options.unlimited).then_some("requires a process limit of 0"),
        };
        match missing.filter(|_| !self.options.once) {
            Some(cause) => Err(Fault::new(service, cause)),
            None if privileged && self.options.unprivileged => {
                Err(Fault::new(service, "requires privileged operation"))
            }
            None => Ok(()),
        }
    }

    /// From now on SIGTERM does not end the process: it takes no more clients, finishes what it has in
    /// hand, and then ends.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn finish_on_term(&mut self) -> Result<(), Fault> {
        let term = SigSet::from(Signal::SIGTERM);
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let watched = term.thread_block().and_then(|()| SignalFd::with_flags(&term, flags));
        self.term = Some(watched.map_err(|e| Fault::io("watch SIGTERM", &e.into()))?);
        Ok(())
    }

    /// Gives up the privileges that the line in master.cf does not leave.
    ///
    /// # Errors
    /// See [`Jail::enter`].
    pub fn jail(self) -> Result<Jailed, Fault> {
        let jail = Jail {
            root: self.options.chroot.then_some(self.common.queue_directory.as_path()),
            user: self.options.unprivileged.then_some(self.common.mail_owner.as_str()),
        };
        jail.enter()?;
        Ok(Jailed {
            service: self.service,
            transport: self.transport,
            common: self.common,
            status: self.status,
            listen: self.listen,
            term: self.term,
        })
    }
}

impl Jailed {
    /// Waits for clients and serves one after the other, until the master has gone or wants this
    /// worker to end, nobody comes for max_idle, max_use were served, or `serve` says so.
    ///
    /// # Errors
    /// No client can be taken any more.
    pub(crate) fn one_by_one<C>(
        &self,
        status: &Status,
        take: impl Fn(BorrowedFd<'_>) -> Result<Option<C>, Fault>,
        mut serve: impl FnMut(C) -> bool,
    ) -> Result<(), Fault> {
        // 0 in a parameter is no limit (Q04).
        let idle = match self.common.max_idle {
            Duration::ZERO => PollTimeout::NONE,
            limit => PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX),
        };
        let most = Some(self.common.max_use).filter(|&n| n > 0).unwrap_or(u64::MAX);
        let (mut used, mut first) = (0, true);
        while used < most {
            let mut fds = vec![PollFd::new(status.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.listen.iter().map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN)));
            fds.extend(self.term.iter().map(|t| PollFd::new(t.as_fd(), PollFlags::POLLIN)));
            match poll(&mut fds, idle) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Fault::io("poll", &errno.into())),
            }
            let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
            let sockets = self.listen.len();
            // It has no client, so nobody loses by its end (Q03). This comes before a client that is
            // ready as well: a worker that was told to end takes none. The exception is a worker that
            // was told so before its first look: it serves one of those it was started for, or with
            // reloads in quick succession nobody would be served.
            let stopping = fds[1 + sockets..].iter().any(is_ready);
            let waits = fds[1..=sockets].iter().any(is_ready);
            if stopping || is_ready(&fds[0]) && !(first && waits) {
                return Ok(());
            }
            first = false;
            // One at a time: what the master says meanwhile comes before the next client.
            // The search begins at another socket each time, so that none waits for a busier one.
            let turn = usize::try_from(used).unwrap_or(0);
            let mut order = (0..sockets).map(|n| (n + turn) % sockets);
            let Some(at) = order.find(|&n| is_ready(&fds[1 + n])) else { continue };
            let Some(client) = take(self.listen[at].as_fd())? else { continue };
            status.taken();
            watchdog::start(self.common.daemon_timeout);
            let goes_on = serve(client);
            watchdog::stop();
            used += 1;
            if !status.available() || !goes_on {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Whether something can be read from a descriptor, or it has ended.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// The status channel to the master.
#[derive(Debug)]
pub(crate) struct Status {
    fd: OwnedFd,
    generation: Generation,
}

impl Status {
    fn write(&self, availability: Availability) -> io::Result<()> {
        let pid = i32::try_from(process::id()).unwrap_or(0);
        let record = StatusRecord::new(pid, self.generation, availability);
        write(&self.fd, &record.encode())?;
        Ok(())
    }

    /// Tells that a client was taken. A master that is gone is noticed later: the client comes first
    /// (Q02).
    pub(crate) fn taken(&self) {
        let _ = self.write(Availability::Taken);
    }

    /// Tells that the next client can come. False: the master has no use for this worker any more.
    pub(crate) fn available(&self) -> bool {
        self.write(Availability::Available).is_ok()
    }

    /// The master has gone, or wants this worker to end: it writes nothing here, so what can be read
    /// is the end.
    pub(crate) fn is_over(&self) -> bool {
        is_readable(self.as_fd())
    }
}

impl AsFd for Status {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn adopt(sockets: usize) -> Result<(Option<Status>, Vec<OwnedFd>), Fault> {
    let take = |number| {
        sys::take_fd(number).map_err(|e| {
            let subject = format!("descriptor {number}, which a master passes");
            Fault::io(subject, &e)
        })
    };
    let text = env::var(GENERATION_ENV).unwrap_or_default();
    let generation = text
        .parse()
        .map_err(|e| Fault::new(format!("environment {GENERATION_ENV}=\"{text}\""), e))?;
    for number in [FLOW_READ_FD, FLOW_WRITE_FD] {
        // The flow pipe stays open for as long as the process lives.
        let _ = sys::release(take(number)?);
    }
    let fd = take(STATUS_FD)?;
    let listen = (0..).map(|n| LISTEN_FD + n).take(sockets).map(take);
    Ok((Some(Status { fd, generation }), listen.collect::<Result<_, _>>()?))
}

fn options(words: impl IntoIterator<Item = OsString>) -> Result<Options, String> {
    let parsed = getopt::parse(WORKER_OPTIONS, words)?;
    let mut options = Options { sockets: 1, ..Options::default() };
    for (letter, value) in parsed.options {
        let text = getopt::text(value);
        let shortcut = |name: &str| (name.to_owned(), text.clone());
        match letter {
            'c' => options.chroot = true,
            'd' | 'D' => options.debug = true,
            'i' => options.overrides.push(shortcut("max_idle")),
            'l' => options.limit_one = true,
            'm' => options.overrides.push(shortcut("max_use")),
            'n' => options.name = Some(text),
            'o' => {
                let (name, value) =
                    text.split_once('=').ok_or_else(|| format!("-o {text}: missing \"=\""))?;
                options.overrides.push((name.trim().to_owned(), value.trim().to_owned()));
            }
            's' => {
                options.sockets = text.parse().map_err(|_| format!("-s {text}: not a number"))?;
            }
            'S' => options.once = true,
            't' => {
                options.transport = Some(text.parse().map_err(|e| format!("-t {text}: not {e}"))?);
            }
            'u' => options.unprivileged = true,
            'v' => options.verbose = true,
            'V' => options.standard_error = true,
            'z' => options.unlimited = true,
            // -r, how long a master waits to retire workers, is of no use to a worker.
            _ => {}
        }
    }
    Ok(options)
}

/// One fault for a list of complaints: all of them in a line each would be in the log before.
#[must_use]
pub fn first(errors: &[Diagnostic]) -> Fault {
    for error in errors.iter().skip(1) {
        ::log::error!("{error}");
    }
    Fault::new("configuration", errors.first().map_or_else(String::new, ToString::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q07_the_options_of_a_master_are_understood() {
        let line = "-l -n 25 -t inet -d -v -u -c -o stress=yes -s 2 -o {x} -i 5 -m 7 -r 9 -S -V -z";
        let words = line.replace("{x}", "a=b").replace("  ", " ");
        let got = options(words.split(' ').map(OsString::from)).unwrap();
        assert!(got.limit_one && got.unprivileged && got.chroot && got.verbose && got.unlimited);
        assert_eq!(got.name.as_deref(), Some("25"));
        assert_eq!((got.transport, got.sockets), (Some(Transport::Inet), 2));
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        let want =
            [pair("stress", "yes"), pair("a", "b"), pair("max_idle", "5"), pair("max_use", "7")];
        assert_eq!(got.overrides, want);
    }

    #[test]
    fn bad_options_are_told() {
        for bad in ["-x", "-o novalue", "-s many", "-t INET", "-n"] {
            assert!(options(bad.split(' ').map(OsString::from)).is_err(), "{bad}");
        }
    }
}
