//! stream - where the bytes of a log line go, without waiting for anybody
//!
//! Whoever reads the log may be stuck: a container's runtime, a full syslog daemon, a terminal that was
//! stopped. No line is worth stopping the mail system, so a line that cannot be written at once is
//! lost; [`super`] counts those.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::errno::Errno;
use nix::libc::{ENXIO, O_NOCTTY, O_NONBLOCK};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd;

use super::{Facility, Sink};
use crate::diagnostic::Fault;
use crate::sys;

/// An open sink.
pub(super) enum Stream {
    Stderr(Way),
    Stdout(Way),
    File(File, Way),
    Syslog(UnixDatagram, Facility),
}

/// How a descriptor is written to without waiting. It may be shared with other programs, which do
/// not expect O_NONBLOCK on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// A disk is waited for.
    Regular,
    Socket,
    /// A pipe, a FIFO, a terminal.
    Other,
}

impl Stream {
    pub(super) fn stderr() -> Self {
        Self::Stderr(way(io::stderr().as_fd()))
    }

    pub(super) fn open(sink: &Sink) -> Result<Self, Fault> {
        match sink {
            Sink::Stderr => Ok(Self::stderr()),
            Sink::Stdout { .. } => Ok(Self::Stdout(way(io::stdout().as_fd()))),
            Sink::File { path, permissions, .. } => open(path, *permissions)
                .and_then(|file| sys::set_high(OwnedFd::from(file)))
                .map(|fd| (way(fd.as_fd()), File::from(fd)))
                .map(|(way, file)| Self::File(file, way))
                .map_err(|e| Fault::io(format!("open {}", path.display()), &e)),
            Sink::Syslog(facility) => connect_syslog()
                .map(|socket| Self::Syslog(socket, *facility))
                .map_err(|e| Fault::io("connect /dev/log", &e)),
        }
    }

    /// How many descriptors it has open for itself.
    pub(super) const fn descriptors(&self) -> usize {
        match self {
            Self::Stderr(_) | Self::Stdout(_) => 0,
            Self::File(..) | Self::Syslog(..) => 1,
        }
    }

    /// Writes one line, which has its end, or for syslog one packet.
    pub(super) fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Self::Stderr(way) => write(io::stderr().as_fd(), *way, line),
            Self::Stdout(way) => write(io::stdout().as_fd(), *way, line),
            Self::File(file, way) => write(file.as_fd(), *way, line),
            Self::Syslog(socket, _) => match socket.send(line) {
                Ok(_) => Ok(()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => Err(e),
                // The daemon was restarted: its socket is another one now.
                Err(_) => {
                    *socket = connect_syslog()?;
                    socket.send(line).map(drop)
                }
            },
        }
    }
}

fn way(fd: BorrowedFd<'_>) -> Way {
    let kind = fstat(fd)
        .map_or(SFlag::empty(), |found| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT);
    match kind {
        SFlag::S_IFREG => Way::Regular,
        SFlag::S_IFSOCK => Way::Socket,
        _ => Way::Other,
    }
}

fn write(fd: BorrowedFd<'_>, way: Way, line: &[u8]) -> io::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let written = match way {
        // One write(2) in append mode: lines of several processes do not mix.
        Way::Regular => unistd::write(fd, line).map_err(io::Error::from),
        Way::Socket => send(fd.as_raw_fd(), line, flags).map_err(io::Error::from),
        // A line is shorter than PIPE_BUF: it is written whole or not at all.
        Way::Other => match sys::write_without_waiting(fd, line) {
            Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
                match poll(&mut fds, PollTimeout::ZERO) {
                    Ok(0) => Err(ErrorKind::WouldBlock.into()),
                    _ => unistd::write(fd, line).map_err(io::Error::from),
                }
            }
            written => written,
        },
    };
    written.map(drop)
}

/// Opens a log file, and makes it with these permissions whatever the umask is. A FIFO is opened for
/// reading as well, so that it need not have a reader yet.
fn open(path: &Path, permissions: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).custom_flags(O_NONBLOCK | O_NOCTTY).mode(permissions);
    match options.open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) if e.raw_os_error() == Some(ENXIO) => return options.read(true).open(path),
        opened => return opened,
    }
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            file.set_permissions(Permissions::from_mode(permissions))?;
            Ok(file)
        }
        // Another process was faster, or a link leads to a file that is not there yet.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => options.create(true).open(path),
        Err(e) => Err(e),
    }
}

fn connect_syslog() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect("/dev/log")?;
    socket.set_nonblocking(true)?;
    sys::set_high(OwnedFd::from(socket)).map(UnixDatagram::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    fn fill(stream: &mut Stream) -> usize {
        let line = [b'x'; 1000];
        (0..1000).take_while(|_| stream.write(&line).is_ok()).count()
    }

    /// It froze the master, and with it every service.
    #[test]
    fn a_pipe_that_nobody_reads_takes_what_it_can_and_then_nothing() {
        let (read, write) = unistd::pipe().unwrap();
        let mut stream = Stream::File(File::from(write), Way::Other);
        let written = fill(&mut stream);
        assert!((1..200).contains(&written), "{written}");
        assert_eq!(stream.write(&[b'x'; 1000]).unwrap_err().kind(), ErrorKind::WouldBlock);
        let mut bytes = vec![0; 1000 * written];
        let mut read = File::from(read);
        read.read_exact(&mut bytes).unwrap();
        assert!(stream.write(b"x").is_ok());
    }

    #[test]
    fn a_socket_that_nobody_reads_takes_what_it_can_and_then_nothing() {
        let (_read, write) = std::os::unix::net::UnixStream::pair().unwrap();
        let fd = OwnedFd::from(write);
        let way = way(fd.as_fd());
        assert_eq!(way, Way::Socket);
        assert!((1..1000).contains(&fill(&mut Stream::File(File::from(fd), way))));
    }

    #[test]
    fn a_fifo_without_a_reader_is_opened_and_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
        let sink = Sink::File { path, permissions: 0o600, host: String::new() };
        assert!((1..200).contains(&fill(&mut Stream::open(&sink).unwrap())));
    }

    /// They were those that the umask of whoever came first allowed.
    #[test]
    fn a_new_log_file_has_the_permissions_that_are_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        for permissions in [0o600, 0o640, 0o644] {
            let path = dir.path().join(format!("{permissions:o}"));
            drop(open(&path, permissions).unwrap());
            let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode(), permissions);
            // One that is there stays as it is.
            drop(open(&path, 0o600).unwrap());
            assert_eq!(mode(), permissions);
        }
    }
}
