//! relay_standard - `-bs`: standard input and output are an SMTP client's

use std::io::{self, Read, Stdin, Stdout, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::maildrop::Limits;
use crate::smtp::server::{Answer, Backend, Config, Envelope, Server};
use crate::smtpd::converse;

/// Copies both ways until the server ends the session.
pub(super) fn run(mut stream: UnixStream) -> io::Result<()> {
    let (mut input, mut output) = (io::stdin(), io::stdout());
    let mut bytes = [0; 16 << 10];
    let mut open = true;
    loop {
        let wanted = if open { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds =
            [PollFd::new(stream.as_fd(), PollFlags::POLLIN), PollFd::new(input.as_fd(), wanted)];
        poll(&mut fds, PollTimeout::NONE)?;
        let (server, client) = (fds[0].any().unwrap_or(true), fds[1].any().unwrap_or(true));
        if server {
            match stream.read(&mut bytes)? {
                0 => return Ok(()),
                size => output.write_all(&bytes[..size]).and_then(|()| output.flush())?,
            }
        }
        if client && open {
            match input.read(&mut bytes)? {
                0 => {
                    open = false;
                    stream.shutdown(Shutdown::Write)?;
                }
                size => stream.write_all(&bytes[..size])?,
            }
        }
    }
}

/// Standard input and output as one stream.
struct Standard(Stdin, Stdout);

impl Read for Standard {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        // Not through the buffer: what lies there would not wake poll(2).
        nix::unistd::read(&self.0, bytes).map_err(io::Error::from)
    }
}

impl Write for Standard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}

impl AsFd for Standard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What takes a message: sender, recipients, text.
struct Taker<F>(F);

impl<F: FnMut(&str, &[String], &[u8]) -> Answer> Backend for Taker<F> {
    fn sender(&mut self, _: &str) -> Result<(), Answer> {
        Ok(())
    }

    fn recipient(&mut self, _: &str) -> Result<(), Answer> {
        Ok(())
    }

    fn message(&mut self, envelope: &Envelope, body: Vec<u8>) -> Answer {
        (self.0)(&envelope.sender, &envelope.recipients, &body)
    }
}

/// Whether smtpd has something to say in time.
pub(super) fn greets(stream: &UnixStream, within: Duration) -> bool {
    let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLIN)], timeout).is_ok_and(|n| n > 0)
}

/// Is the server itself, as smtpd does not answer.
pub(super) fn serve(
    hostname: &str,
    limits: Limits,
    take: impl FnMut(&str, &[String], &[u8]) -> Answer,
) {
    let server = Server::new(Config {
        hostname: hostname.to_owned(),
        banner: format!("{hostname} ESMTP"),
        message_size_limit: limits.bytes,
        line_length_limit: 2048,
        recipient_limit: limits.recipients,
        error_limit: 20,
        junk_limit: 100,
        tokens: false,
        forbidden: Vec::new(),
    });
    let standard = Standard(io::stdin(), io::stdout());
    converse(standard, server, &mut Taker(take), Duration::from_secs(300));
}
