//! helper - another run of this program, or of its successor, that answers over a pipe
//!
//! What may take long, or must not be trusted to end well, is done there: the loop goes on meanwhile.
//! The process is reaped like any other that is no worker.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::process::Command;

use mio::{Interest, Token};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use worker_proto::sys;

use super::sources::{Source, Sources};

pub(super) struct Helper {
    output: File,
    answer: Vec<u8>,
    token: Token,
}

impl Helper {
    /// Starts it; what it writes on standard output and error is its answer.
    pub(super) fn start(
        mut command: Command,
        sources: &mut Sources,
        source: Source,
    ) -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        let output = sys::set_high(read)?;
        fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        command.stdout(write.try_clone()?).stderr(write).spawn()?;
        // With it our copies of the write end go, and the pipe ends when the process does.
        drop(command);
        let token = sources.add(output.as_fd(), Interest::READABLE, source)?;
        Ok(Self { output: output.into(), answer: Vec::new(), token })
    }

    /// Takes in what it has written; whether that was all.
    pub(super) fn advance(&mut self) -> bool {
        let mut bytes = [0; 4096];
        loop {
            match self.output.read(&mut bytes) {
                Ok(0) => return true,
                Ok(size) => self.answer.extend_from_slice(&bytes[..size]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }

    /// Waits for it no longer: what it has answered so far.
    pub(super) fn end(self, sources: &mut Sources) -> String {
        sources.remove(self.output.as_fd(), self.token);
        String::from_utf8_lossy(&self.answer).into_owned()
    }
}
