//! control - the operator's socket
//!
//! `pid/control` is a stream socket of mode 0600. A client writes one line and gets an answer: a line
//! with an exit status, then text to its end. Nothing here waits for a client: one that does not ask,
//! or does not read its answer, is dropped in time, and sooner when a new one needs its place. One that
//! asks for `metrics-feed` stays, and gets one report for each further line.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use mio::Token;
use serde::{Deserialize, Serialize};
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;
use worker_proto::sys;

use crate::request;

/// The socket, below the queue directory.
pub const PATH: &str = "pid/control";
/// How long a client may take to ask, and how long to read its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest request.
const MAX_REQUEST: usize = 1024;
/// The most clients at a time; for a further one the idle one goes that has been so the longest.
const MAX_CLIENTS: usize = 64;
/// The most of them that are feeds, which may stay for ever.
const MAX_FEEDS: usize = 8;
/// The answer to a client for whom there is no place.
const BUSY: &str = "1\ntoo many requests in progress; try again later\n";

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
    /// Since when it has been asking, waiting or reading.
    since: Time,
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

/// What became of a client that wanted to come in.
#[derive(Debug)]
pub enum Accepted {
    /// There was none.
    Nobody,
    /// It was told that all places are taken.
    Refused,
    /// It is in.
    Client {
        /// Who had to go for it.
        dropped: Option<(u64, Client)>,
    },
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
    pub fn adopt(listener: RawFd, clients: &[SavedClient], now: Time) -> io::Result<Self> {
        let listener = UnixListener::from(sys::take_fd(listener)?);
        let adopt = |saved: &SavedClient| -> io::Result<(u64, Client)> {
            let stream = UnixStream::from(sys::take_fd(saved.fd)?);
            let (input, output) = (saved.input.clone(), saved.output.clone());
            let (asked, feed) = (saved.asked, saved.feed);
            Ok((saved.number, Client { input, output, asked, feed, ..Client::new(stream, now) }))
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

    /// Takes in the next client under a number.
    pub fn accept(&mut self, number: u64, now: Time) -> Accepted {
        let Ok((stream, _)) = self.listener.accept() else {
            return Accepted::Nobody;
        };
        let Ok(stream) = sys::set_high(OwnedFd::from(stream)).map(UnixStream::from) else {
            return Accepted::Refused;
        };
        if stream.set_nonblocking(true).is_err() {
            return Accepted::Refused;
        }
        let mut dropped = None;
        if self.clients.len() >= MAX_CLIENTS {
            let idle = self.clients.iter().filter(|(_, client)| client.is_idle());
            let Some(oldest) = idle.min_by_key(|(n, c)| (c.since, **n)).map(|(n, _)| *n) else {
                // Its buffer is empty, so that this fits.
                let _ = (&stream).write(BUSY.as_bytes());
                return Accepted::Refused;
            };
            dropped = self.clients.remove(&oldest).map(|client| (oldest, client));
        }
        self.clients.insert(number, Client::new(stream, now));
        Accepted::Client { dropped }
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
    const fn new(stream: UnixStream, now: Time) -> Self {
        Self {
            stream,
            token: None,
            input: Vec::new(),
            output: Vec::new(),
            asked: false,
            since: now,
            feed: false,
            preface: String::new(),
        }
    }

    /// Until when it may take for what it is doing: to ask, or to read its answer. None is for ever: one
    /// that waits for its answer, and a feed between two questions.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let waits = if self.is_answered() { false } else { self.asked || self.feed };
        (!waits).then(|| self.since + PATIENCE)
    }

    /// Whether nothing is lost when it goes: it has not asked, or does not read its answer.
    fn is_idle(&self) -> bool {
        self.deadline().is_some()
    }

    /// Writes what it can; then reads what it can, up to a question.
    pub fn advance(&mut self, now: Time) -> Progress {
        if !self.output.is_empty() {
            let progress = self.write();
            if !(self.feed && self.output.is_empty()) {
                return progress;
            }
            self.since = now;
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
    pub fn answer(&mut self, now: Time, code: u8, text: &str) {
        self.since = now;
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
    pub fn report(&mut self, now: Time, text: &str) {
        self.since = now;
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
