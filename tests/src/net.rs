//! net - ports, and a client that says what a test wants said

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A port of 127.0.0.1 that nobody listens on.
///
/// # Panics
/// There is none.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Below the ports that the kernel gives to clients, which could take it before the test does; each
    // test process begins elsewhere, and its tests, side by side, never get the same one.
    let free = |port: u16| {
        let v4 = TcpListener::bind(("0.0.0.0", port)).map(drop);
        let v6 = TcpListener::bind(("::", port)).map(drop);
        v4.is_ok() && v6.map_or_else(|e| e.kind() != ErrorKind::AddrInUse, |()| true)
    };
    let ports = 20_000;
    let first = std::process::id().wrapping_mul(997);
    (0..ports)
        .map(|_| first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % ports)
        .filter_map(|n| u16::try_from(10_000 + n).ok())
        .find(|&port| free(port))
        .expect("a port is free")
}

/// A byte stream.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// An SMTP client that sends what it is told.
pub struct Client {
    stream: BufReader<Box<dyn Stream>>,
}

/// An answer: all lines in one, apart by blanks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The code.
    pub code: u16,
    /// Everything behind the code.
    pub text: String,
}

impl Client {
    /// Connects to a port of 127.0.0.1 and reads the greeting.
    ///
    /// # Errors
    /// As the system says.
    pub fn tcp(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Self::greet(Box::new(stream))
    }

    /// The same over a unix socket.
    ///
    /// # Errors
    /// As the system says.
    pub fn unix(path: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Self::greet(Box::new(stream))
    }

    fn greet(stream: Box<dyn Stream>) -> std::io::Result<Self> {
        let mut client = Self { stream: BufReader::new(stream) };
        let greeting = client.reply()?;
        if greeting.code != 220 {
            return Err(std::io::Error::other(format!("greeting: {greeting:?}")));
        }
        client.say("EHLO test.example")?;
        Ok(client)
    }

    /// Reads one answer.
    ///
    /// # Errors
    /// The line is lost.
    pub fn reply(&mut self) -> std::io::Result<Reply> {
        let mut text = String::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end();
            let code = line.get(..3).and_then(|code| code.parse().ok());
            let Some(code) = code else {
                return Err(std::io::Error::other(format!("not a reply: {line}")));
            };
            text.push_str(line.get(4..).unwrap_or(""));
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(Reply { code, text });
            }
            text.push(' ');
        }
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The line is lost.
    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Sends a line and reads the answer.
    ///
    /// # Errors
    /// The line is lost.
    pub fn say(&mut self, line: &str) -> std::io::Result<Reply> {
        self.write(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }

    /// Hands a message in; the answer is the first that is no success, else that to the data. The
    /// text has CRLF line ends and no line with a dot alone.
    ///
    /// # Errors
    /// The line is lost.
    pub fn send(&mut self, from: &str, to: &[&str], text: &str) -> std::io::Result<Reply> {
        let mut lines = vec![format!("MAIL FROM:<{from}>")];
        lines.extend(to.iter().map(|to| format!("RCPT TO:<{to}>")));
        lines.push("DATA".to_owned());
        for line in lines {
            let reply = self.say(&line)?;
            if reply.code >= 400 {
                self.say("RSET")?;
                return Ok(reply);
            }
        }
        self.write(text.as_bytes())?;
        self.say(".")
    }
}

/// A message.
pub const TEXT: &str = "Subject: x\r\n\r\nx\r\n";

/// Submits a message to each of these recipients, `uN@y.example`, in one session.
///
/// # Panics
/// The server does not accept one of them.
pub fn submit(port: u16, numbers: Range<usize>) {
    let mut client = Client::tcp(port).expect("smtpd serves");
    for n in numbers {
        let to = format!("u{n}@y.example");
        let reply = client.send("a@x.example", &[&to], TEXT).expect("smtpd answers");
        assert_eq!(reply.code, 250, "{}", reply.text);
    }
    let _ = client.say("QUIT");
}
