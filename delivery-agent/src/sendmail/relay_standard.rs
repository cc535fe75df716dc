//! relay_standard - `-bs`: standard input and output are an SMTP client's

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

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
