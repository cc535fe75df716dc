//! reports - what the workers of a master have left, and how to make it start one

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use super::{Master, Place};
use crate::wait;

/// The report of one worker.
#[derive(Debug, Clone)]
pub struct Report {
    lines: HashMap<String, String>,
    /// When it was started, on the machine's clock.
    pub born: Duration,
    /// When it was up, if it is.
    pub ready: Option<Duration>,
}

/// A client that has knocked and stays until it is dropped.
#[derive(Debug)]
pub enum Knock {
    /// Over a stream.
    Unix(UnixStream),
    /// Over TCP.
    Tcp(TcpStream),
    /// It has said what it had to say.
    Said,
}

impl Report {
    /// A line of it.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.lines.get(name).map_or("", String::as_str)
    }

    /// What its descriptors are, from the first that it listens on.
    pub fn listens(&self) -> impl Iterator<Item = &str> {
        let all = self.get("descriptors").split('|');
        all.filter(|d| d.split(' ').next().and_then(|n| n.parse().ok()).is_some_and(|n: i32| n > 5))
    }

    fn serves(&self, place: &Place) -> bool {
        let name = place.to_string();
        let below = format!("/q/{name}");
        self.listens().any(|d| d.split(' ').any(|word| word == name || word.ends_with(&below)))
    }

    fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().filter_map(|line| line.split_once(": ").or(line.split_once(':')));
        let lines: HashMap<_, _> =
            lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let born = micros(lines.get("born")?)?;
        Some(Self { lines, born, ready: None })
    }
}

fn micros(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_micros)
}

impl Master {
    /// The reports of all workers there have been, the oldest first.
    #[must_use]
    pub fn reports(&self) -> Vec<Report> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path("reports")).into_iter().flatten().flatten() {
            if !entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let Some(mut report) = Report::parse(&text) else { continue };
            let ready = fs::read_to_string(entry.path().with_extension("ready"));
            report.ready = ready.ok().and_then(|text| micros(text.strip_prefix("ready: ")?));
            found.push(report);
        }
        found.sort_by_key(|report| report.born);
        found
    }

    /// Waits until there have been this many workers.
    ///
    /// # Panics
    /// They do not come.
    pub fn wait_for_reports(&self, count: usize) -> Vec<Report> {
        wait::within(wait::LONG, || Some(self.reports()).filter(|all| all.len() >= count))
            .unwrap_or_else(|| panic!("no {count} workers: {}", self.log().text()))
    }

    /// Knocks at a place as a client of its type does.
    ///
    /// # Panics
    /// Nobody listens there.
    pub fn knock(&self, place: &Place) -> Knock {
        let file = match place {
            Place::Tcp(address) => {
                let stream = TcpStream::connect(address);
                return Knock::Tcp(stream.unwrap_or_else(|e| panic!("{place}: {e}")));
            }
            Place::File(name) => self.path("q").join(name),
        };
        if let Ok(stream) = UnixStream::connect(&file) {
            return Knock::Unix(stream);
        }
        let datagram = UnixDatagram::unbound().expect("a process has descriptors");
        if datagram.send_to(b"knock", &file).is_err() {
            let fifo = OpenOptions::new().write(true).open(&file);
            let written = fifo.and_then(|mut fifo| fifo.write_all(b"knock"));
            written.unwrap_or_else(|e| panic!("{place}: {e}"));
        }
        Knock::Said
    }

    /// Knocks at a place, unless a worker that serves it is there, and gives the worker's report.
    ///
    /// # Panics
    /// No worker comes.
    pub fn worker_at(&self, place: &Place) -> Report {
        let find = || self.reports().into_iter().rev().find(|report| report.serves(place));
        if let Some(report) = find() {
            return report;
        }
        let _client = self.knock(place);
        wait::within(wait::LONG, find)
            .unwrap_or_else(|| panic!("no worker at {place}: {}", self.log().text()))
    }
}
