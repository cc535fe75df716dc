//! relay - an SMTP server that answers as a test wants, and remembers what it took
//!
//! For faults that no real relay can be asked for. It is the one thing here that has threads: it
//! lives in the test's own process, beside the test.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// A message that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Envelope sender.
    pub sender: String,
    /// Envelope recipients that were taken.
    pub recipients: Vec<String>,
    /// The text, without the dots of the wire.
    pub text: String,
}

/// What to do instead of the usual.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// The usual.
    Usual,
    /// This reply.
    Reply(String),
    /// Close without a word.
    Hang,
    /// Say nothing as long as the relay lives.
    Mute,
    /// At the end of the data: take the message, and close without a word.
    Swallow,
}

/// What a relay does at a line. The line is a command, `` for the greeting, or `.` for the end of
/// the data.
pub type Script = dyn Fn(&str) -> Act + Send + Sync;

/// The relay.
pub struct Relay {
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    script: Box<Script>,
    taken: Mutex<Vec<Taken>>,
    sessions: AtomicUsize,
    stop: AtomicBool,
}

impl Relay {
    /// A relay that takes everything.
    #[must_use]
    pub fn kind() -> Self {
        Self::scripted(|_| Act::Usual)
    }

    /// The same on a port that was chosen before.
    ///
    /// # Panics
    /// Somebody else listens there.
    #[must_use]
    pub fn on(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        Self::serving(listener, |_| Act::Usual)
    }

    /// A relay with a script.
    ///
    /// # Panics
    /// There is no free port.
    #[must_use]
    pub fn scripted(script: impl Fn(&str) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        Self::serving(listener, script)
    }

    fn serving(
        listener: TcpListener,
        script: impl Fn(&str) -> Act + Send + Sync + 'static,
    ) -> Self {
        listener.set_nonblocking(true).expect("a socket can be");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            taken: Mutex::default(),
            sessions: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        beside(move || accept(&listener, &serving));
        Self { port, shared }
    }

    /// As `relayhost` names it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("[127.0.0.1]:{}", self.port)
    }

    /// What it has taken.
    #[must_use]
    pub fn taken(&self) -> Vec<Taken> {
        self.shared.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many connections there were.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.shared.sessions.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

#[expect(clippy::disallowed_methods, reason = "the relay runs beside the test, in its process")]
fn beside(work: impl FnOnce() + Send + 'static) {
    thread::spawn(work);
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stop.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((stream, _)) => {
                shared.sessions.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(shared);
                beside(move || {
                    let _ = serve(&stream, &shared);
                });
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn serve(stream: &TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut reader = BufReader::new(stream);
    let mut message = Taken { sender: String::new(), recipients: Vec::new(), text: String::new() };
    let act = (shared.script)("");
    wait_out(&act, shared);
    if !answer(stream, &act, "220 relay.example ESMTP")? {
        return Ok(());
    }
    loop {
        let line = read_line(&mut reader, shared)?;
        let verb = line.get(..4).unwrap_or("").to_ascii_uppercase();
        let usual = match verb.as_str() {
            "EHLO" => "250-relay.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8",
            "DATA" if message.recipients.is_empty() => "554 5.5.1 no valid recipients",
            "DATA" => "354 go on",
            "QUIT" => "221 bye",
            _ => "250 2.0.0 ok",
        };
        let act = (shared.script)(&line);
        let good = act == Act::Usual || matches!(&act, Act::Reply(r) if r.starts_with('2'));
        match verb.as_str() {
            "MAIL" | "RSET" => {
                message.sender = path(&line);
                message.recipients.clear();
            }
            "RCPT" if good => message.recipients.push(path(&line)),
            _ => {}
        }
        wait_out(&act, shared);
        let go_on = answer(stream, &act, usual)?;
        if !go_on || verb == "QUIT" {
            return Ok(());
        }
        if verb == "DATA" && usual.starts_with('3') && act == Act::Usual {
            message.text.clear();
            loop {
                let line = read_line(&mut reader, shared)?;
                if line == "." {
                    break;
                }
                message.text.push_str(line.strip_prefix('.').unwrap_or(&line));
                message.text.push_str("\r\n");
            }
            let act = (shared.script)(".");
            if matches!(act, Act::Usual | Act::Swallow) {
                let mut taken = shared.taken.lock().unwrap_or_else(PoisonError::into_inner);
                taken.push(message.clone());
            }
            wait_out(&act, shared);
            if !answer(stream, &act, "250 2.0.0 taken")? {
                return Ok(());
            }
            message.recipients.clear();
        }
    }
}

/// Answers a line; false when the connection is to be closed.
fn answer(mut stream: &TcpStream, act: &Act, usual: &str) -> std::io::Result<bool> {
    let text = match act {
        Act::Usual => usual,
        Act::Reply(text) => text,
        Act::Hang | Act::Mute | Act::Swallow => return Ok(false),
    };
    stream.write_all(format!("{text}\r\n").as_bytes())?;
    Ok(true)
}

/// A relay that says nothing does so until it is dropped.
fn wait_out(act: &Act, shared: &Shared) {
    while *act == Act::Mute && !shared.stop.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(20));
    }
}

fn read_line(reader: &mut BufReader<&TcpStream>, shared: &Shared) -> std::io::Result<String> {
    let mut line = Vec::new();
    loop {
        match reader.read_until(b'\n', &mut line) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) if line.ends_with(b"\n") => break,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if shared.stop.load(Ordering::SeqCst) {
                    return Err(e);
                }
            }
            Err(e) => return Err(e),
        }
    }
    let line = String::from_utf8_lossy(&line);
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// What stands in `<>`.
fn path(line: &str) -> String {
    let inside = line.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
    inside.map_or(String::new(), |(path, _)| path.to_owned())
}
