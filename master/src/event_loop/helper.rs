//! helper - another run of this program, or of its successor, that answers over a pipe
//!
//! What may take long, or must not be trusted to end well, is done there: the loop goes on meanwhile.
//! The process is reaped like any other that is no worker. Whatever it does, it takes no more memory
//! here than its answer may, and it does not outlive the wait for it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use mio::{Interest, Token};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2};
use worker_proto::sys;

use super::sources::{Source, Sources};
use crate::stage2;

pub(super) struct Helper {
    output: File,
    answer: Vec<u8>,
    token: Token,
    /// Its process and group, until it was waited for.
    process: Option<Pid>,
    /// The longest answer.
    most: usize,
}

/// The program that runs, also when another has been installed in its place.
pub(super) const THIS_PROGRAM: &str = "/proc/self/exe";

/// A command that executes another program. The caller of [`Helper::start`] waits until the process
/// has executed its program, which can take long for one that was not run before (a virus scanner): it
/// is this program, which then executes the other.
pub(super) fn command(program: &OsStr) -> Command {
    let mut command = Command::new(THIS_PROGRAM);
    command.arg(stage2::EXECUTE_OPTION).arg(program);
    command
}

/// The longest answer of a program that is asked whether it can go on; no list of errors is longer.
const MAX_ANSWER: usize = 64 << 10;
/// The longest list of addresses.
const MAX_ADDRESSES: usize = 4 << 20;

impl Helper {
    /// Starts it, in a process group of its own; what it writes on standard output and error is its
    /// answer.
    pub(super) fn start(
        mut command: Command,
        sources: &mut Sources,
        source: Source,
    ) -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        let output = sys::set_high(read)?;
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let most = if source == Source::Names { MAX_ADDRESSES } else { MAX_ANSWER };
        let token = sources.add(output.as_fd(), Interest::READABLE, source)?;
        let started = write
            .try_clone()
            .and_then(|copy| command.stdout(copy).stderr(write).process_group(0).spawn());
        // With it our copies of the write end go, and the pipe ends when the process does.
        drop(command);
        match started {
            Ok(child) => {
                let process = i32::try_from(child.id()).ok().map(Pid::from_raw);
                Ok(Self { output: output.into(), answer: Vec::new(), token, process, most })
            }
            Err(e) => {
                sources.remove(output.as_fd(), token);
                Err(e)
            }
        }
    }

    /// Whether its answer was longer than what was taken of it.
    pub(super) const fn is_cut(&self) -> bool {
        self.answer.len() >= self.most
    }

    /// Takes in what it has written; whether that was all, or all that is taken.
    pub(super) fn advance(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            if self.is_cut() {
                return true;
            }
            match self.output.read(&mut bytes) {
                Ok(0) => return true,
                Ok(size) => self.answer.extend_from_slice(&bytes[..size]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }

    /// A process was waited for: its number may be another's from now on.
    pub(super) fn reaped(&mut self, pid: i32) {
        self.process = self.process.filter(|process| process.as_raw() != pid);
    }

    /// Waits for it no longer, and ends it: what it has answered so far.
    pub(super) fn end(mut self, sources: &mut Sources) -> String {
        sources.remove(self.output.as_fd(), self.token);
        self.answer.truncate(self.most);
        String::from_utf8_lossy(&self.answer).into_owned()
    }
}

impl Drop for Helper {
    /// Also when it has answered: it might go on without end.
    fn drop(&mut self) {
        if let Some(process) = self.process {
            let _ = killpg(process, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use mio::{Events, Poll};
    use nix::sys::wait::{WaitStatus, waitpid};

    fn start(script: &str) -> (Helper, Sources, Pid) {
        let mut sources = Sources::new(Poll::new().unwrap());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let helper = Helper::start(command, &mut sources, Source::Verdict).unwrap();
        let pid = helper.process.unwrap();
        (helper, sources, pid)
    }

    fn killed(pid: Pid) -> bool {
        matches!(waitpid(pid, None), Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _)))
    }

    /// It filled the memory of the master: 2 GB in 5 s.
    #[test]
    fn a_talkative_helper_is_cut_short_and_ended() {
        let (mut helper, mut sources, pid) =
            start("while :; do echo xxxxxxxxxxxxxxxxxxxxxxx; done");
        let mut events = Events::with_capacity(8);
        while !helper.advance() {
            sources.wait(&mut events, Duration::from_secs(10)).unwrap();
        }
        assert_eq!(helper.end(&mut sources).len(), MAX_ANSWER);
        assert!(killed(pid));
    }

    /// It stayed for ever.
    #[test]
    fn a_helper_that_hangs_is_ended_with_its_children() {
        let (mut helper, mut sources, pid) = start("sleep 1000 & echo begun; wait");
        let mut events = Events::with_capacity(8);
        while helper.answer.is_empty() {
            sources.wait(&mut events, Duration::from_secs(10)).unwrap();
            assert!(!helper.advance());
        }
        assert_eq!(helper.end(&mut sources), "begun\n");
        assert!(killed(pid));
        // The group is gone when nobody is left in it; orphans are reaped by process 1.
        let gone = || killpg(pid, None).is_err();
        for _ in 0..1000 {
            if gone() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("its child is still there");
    }
}
