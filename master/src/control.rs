//! control - the operator's socket
//!
//! `pid/control` is a stream socket of mode 0600. A client writes one line and gets an answer: a line
//! with an exit status, then text to its end. Nothing here waits for a client, and one that says
//! nothing is dropped. One that asks for `metrics-feed` stays, and gets one report for each further line.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use mio::Token;
use serde::{Deserialize, Serialize};
use worker_proto::diagnostic::Fault;
use worker_proto::sys;

use crate::request;

/// The socket, below the queue directory.
pub const PATH: &str = "pid/control";
/// How long a client may take to ask.
pub const ASK_TIME: Duration = Duration::from_secs(10);
/// The longest request.
const MAX_REQUEST: usize = 1024;
/// The most clients at a time; further ones wait in the kernel's queue.
const MAX_CLIENTS: usize = 64;
/// The most of them that are feeds, which may stay for ever.
const MAX_FEEDS: usize = 8;

/// The listening socket and its clients.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    clients: HashMap<u64, Client>,
}

/// An operator's connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// Its registration with the poll.
    pub token: Option<Token>,
    input: Vec<u8>,
    output: Vec<u8>,
    asked: bool,
    /// It gets metrics and nothing else.
    feed: bool,
    /// What comes before the text of the answer.
    pub preface: String,
}

/// How far a client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It has asked this, just now.
    Asked(String),
    /// Wait for it to become readable or writable.
    Wait,
    /// It is served, or gone.
    Done,
}

/// A client as one program hands it over to the next.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of Client")]
pub struct SavedClient {
    pub number: u64,
    pub fd: RawFd,
    pub input: Vec<u8>,
    pub output: Vec<u8>,
    pub asked: bool,
    #[serde(default)]
    pub feed: bool,
}

impl Control {
    /// Goes on with a socket and clients that another program had.
    ///
    /// # Errors
    /// A descriptor is not open.
    pub fn adopt(listener: RawFd, clients: &[SavedClient]) -> io::Result<Self> {
        let listener = UnixListener::from(sys::take_fd(listener)?);
        let adopt = |saved: &SavedClient| -> io::Result<(u64, Client)> {
            let stream = UnixStream::from(sys::take_fd(saved.fd)?);
            let (input, output) = (saved.input.clone(), saved.output.clone());
            let (asked, feed) = (saved.asked, saved.feed);
            Ok((saved.number, Client { input, output, asked, feed, ..Client::new(stream) }))
        };
        Ok(Self { listener, clients: clients.iter().map(adopt).collect::<Result<_, _>>()? })
    }

    /// The clients, for the program that goes on in this one's place.
    #[must_use]
    pub fn save(&self) -> Vec<SavedClient> {
        let save = |(number, client): (&u64, &Client)| SavedClient {
            number: *number,
            fd: client.stream.as_raw_fd(),
            input: client.input.clone(),
            output: client.output.clone(),
            asked: client.asked,
            feed: client.feed,
        };
        self.clients.iter().map(save).collect()
    }

    /// Opens the socket; the queue directory is the working directory.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn open() -> Result<Self, Fault> {
        let open = || -> io::Result<UnixListener> {
            match fs::remove_file(PATH) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let listener = UnixListener::bind(PATH)?;
            // The umask of the master has made it so already; this is for one that runs without.
            fs::set_permissions(PATH, fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            sys::set_high(OwnedFd::from(listener)).map(UnixListener::from)
        };
        let listener = open().map_err(|e| Fault::io(format!("bind {PATH}"), &e))?;
        Ok(Self { listener, clients: HashMap::new() })
    }

    /// Takes in the next client under a number; None when none waits.
    pub fn accept(&mut self, number: u64) -> Option<&mut Client> {
        if self.clients.len() >= MAX_CLIENTS {
            return None;
        }
        let (stream, _) = self.listener.accept().ok()?;
        let stream = UnixStream::from(sys::set_high(OwnedFd::from(stream)).ok()?);
        stream.set_nonblocking(true).ok()?;
        Some(self.clients.entry(number).or_insert(Client::new(stream)))
    }

    /// A client.
    pub fn client(&mut self, number: u64) -> Option<&mut Client> {
        self.clients.get_mut(&number)
    }

    /// The clients.
    pub fn clients(&self) -> impl Iterator<Item = (u64, &Client)> {
        self.clients.iter().map(|(number, client)| (*number, client))
    }

    /// Whether there is room for another feed.
    #[must_use]
    pub fn has_room_for_feed(&self) -> bool {
        self.clients.values().filter(|client| client.feed).count() < MAX_FEEDS
    }

    /// Forgets a client.
    pub fn remove(&mut self, number: u64) -> Option<Client> {
        self.clients.remove(&number)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Client {
    const fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            token: None,
            input: Vec::new(),
            output: Vec::new(),
            asked: false,
            feed: false,
            preface: String::new(),
        }
    }

    /// Reads and writes what it can.
    pub fn advance(&mut self) -> Progress {
        if !self.output.is_empty() {
            let progress = self.write();
            if !(self.feed && self.output.is_empty()) {
                return progress;
            }
        }
        let mut bytes = [0; MAX_REQUEST];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return self.ask(true),
                Ok(size) => self.input.extend_from_slice(&bytes[..size]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return self.ask(false),
                Err(_) => return Progress::Done,
            }
            if self.input.len() > MAX_REQUEST {
                return Progress::Done;
            }
        }
    }

    fn ask(&mut self, end: bool) -> Progress {
        if self.asked {
            // It waits for its answer; when it goes away, the answer goes nowhere.
            return if end { Progress::Done } else { Progress::Wait };
        }
        match request::line(&self.input) {
            Some(line) => {
                self.asked = true;
                // One question at a time: what a feed has written beyond it is forgotten.
                self.input.clear();
                Progress::Asked(line)
            }
            None if end => Progress::Done,
            None => Progress::Wait,
        }
    }

    /// Gives the answer; [`Client::advance`] writes it.
    pub fn answer(&mut self, code: u8, text: &str) {
        self.output = format!("{code}\n{}{text}", self.preface).into_bytes();
    }

    /// From now on it gets nothing but metrics.
    pub const fn make_feed(&mut self) {
        self.feed = true;
    }

    /// Whether it gets nothing but metrics.
    #[must_use]
    pub const fn is_feed(&self) -> bool {
        self.feed
    }

    /// Gives a feed a report, after a line with its length. The next question may then come.
    pub fn report(&mut self, text: &str) {
        self.output = format!("{}\n{text}", text.len()).into_bytes();
        self.asked = false;
    }

    /// Whether there is an answer to write.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        !self.output.is_empty()
    }

    fn write(&mut self) -> Progress {
        loop {
            match self.stream.write(&self.output) {
                Ok(size) => {
                    self.output.drain(..size);
                    if self.output.is_empty() {
                        return Progress::Done;
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Progress::Wait,
                Err(_) => return Progress::Done,
            }
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Asks the running master: the exit status and the text of its answer. For the operator's command;
/// it waits.
///
/// # Errors
/// No master listens there, or it has ended in the middle of the answer.
pub fn ask(queue_directory: &std::path::Path, request: &str) -> io::Result<(u8, String)> {
    // Relative to it: a socket's name may have 107 bytes, and an instance may lie deep.
    std::env::set_current_dir(queue_directory)?;
    let mut stream = UnixStream::connect(PATH)?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (code, text) = answer
        .split_once('\n')
        .and_then(|(code, text)| Some((code.parse().ok()?, text)))
        .ok_or_else(|| io::Error::other("the master has ended before it answered"))?;
    Ok((code, text.to_owned()))
}
