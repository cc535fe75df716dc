//! probe - a client of the probe worker

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A connection to a probe worker.
#[derive(Debug)]
pub struct Probe<S: Read + Write> {
    stream: BufReader<S>,
}

/// How long a probe worker may take to answer; far more than it needs.
const PATIENCE: Duration = Duration::from_secs(20);

impl Probe<TcpStream> {
    /// Knocks at a port.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn tcp(port: u16) -> io::Result<Self> {
        Self::tcp_at(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    /// The same at another address.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn tcp_at(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Waits for an answer no longer than this.
    pub fn patience(&self, patience: Duration) {
        let _ = self.stream.get_ref().set_read_timeout(Some(patience));
    }
}

impl Probe<UnixStream> {
    /// Knocks at a socket in the file system.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }
}

impl<S: Read + Write> Probe<S> {
    /// Says a line and hears one.
    ///
    /// # Errors
    /// The worker has gone, or does not answer in time.
    pub fn ask(&mut self, line: &str) -> io::Result<String> {
        self.say(line)?;
        let mut answer = String::new();
        match self.stream.read_line(&mut answer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(answer.trim_end().to_owned()),
        }
    }

    /// Says a line.
    ///
    /// # Errors
    /// The worker has gone.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())
    }

    /// What the worker has from its master.
    ///
    /// # Errors
    /// The worker has gone, or does not answer in time.
    pub fn report(&mut self) -> io::Result<HashMap<String, String>> {
        self.say("report")?;
        let mut report = HashMap::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end().split_once(':') {
                Some((name, value)) => report.insert(name.to_owned(), value.trim().to_owned()),
                None => return Ok(report),
            };
        }
    }
}
