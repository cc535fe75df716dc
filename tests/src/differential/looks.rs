//! looks - what can be seen of a master from outside: where it listens, what it says

use std::fmt;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::{Master, Observation};
use crate::descriptors::{self, What};

impl Master {
    /// The text without what differs from run to run.
    #[must_use]
    pub fn tidy(&self, text: &str) -> String {
        let mut text = text.replace(&self.dir.path().display().to_string(), "ROOT");
        for (n, port) in self.ports.borrow().iter().enumerate() {
            text = text.replace(&port.to_string(), &format!("PORT{}", n + 1));
        }
        for (pid, name) in self.names.borrow().iter() {
            text = text.replace(pid, name);
        }
        text
    }

    /// Gives a process id a name in what is observed.
    pub fn name(&self, pid: &str, name: &'static str) {
        self.names.borrow_mut().push((pid.to_owned(), name));
    }

    /// Every place where it listens: the descriptor's text without its number.
    #[must_use]
    pub fn listens(&self) -> Vec<Place> {
        let all = descriptors::of(self.pid());
        let mut places: Vec<Place> = all.into_iter().filter_map(|d| self.place(d.what)).collect();
        places.sort();
        places.dedup();
        places
    }

    pub(super) fn has_descriptors(&self) -> bool {
        !descriptors::of(self.pid()).is_empty()
    }

    fn place(&self, what: What) -> Option<Place> {
        match what {
            What::Tcp(address, true) => Some(Place::Tcp(address)),
            What::Unix(_, _, name)
                if name.starts_with("private/") || name.starts_with("public/") =>
            {
                Some(Place::File(name))
            }
            What::Other(name) => {
                let is_fifo = fs::metadata(&name).is_ok_and(|m| m.file_type().is_fifo());
                let below = Path::new(&name).strip_prefix(self.path("q")).ok()?;
                is_fifo.then(|| Place::File(below.display().to_string()))
            }
            What::Pipe(_) | What::Unix(..) | What::Tcp(..) => None,
        }
    }

    /// What the master has logged with a severity of warning or worse: a line each, without the stamp
    /// and what differs from run to run.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let lines = self.log().complaints();
        let lines = lines.iter().filter(|line| line.contains("/master["));
        lines.map(|line| self.tidy(line.split_once("]: ").map_or("", |(_, text)| text))).collect()
    }

    /// Notes how many lines of its log have a text in them.
    pub fn note_count(&self, part: &str, seen: &mut Observation) {
        seen.note(format!("lines with: {part}"), self.log().count(part).to_string());
    }

    /// Notes each complaint, however often it came.
    pub fn note_complaints(&self, seen: &mut Observation) {
        let mut lines: Vec<String> = self.complaints().iter().map(|l| without_pids(l)).collect();
        lines.sort();
        lines.dedup();
        lines.into_iter().for_each(|line| seen.note(format!("log: {line}"), "yes"));
    }
}

/// Where a master listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A socket or a fifo, below the queue directory.
    File(String),
    /// An address.
    Tcp(std::net::SocketAddr),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name) => write!(f, "{name}"),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// Process ids and addresses are others in each run.
fn without_pids(line: &str) -> String {
    let mut words: Vec<&str> = line.split(' ').collect();
    words.iter_mut().filter(|word| word.starts_with("0x")).for_each(|word| *word = "ADDRESS");
    for at in 1..words.len() {
        if matches!(words[at - 1], "pid" | "pid:" | "(pid") {
            words[at] = if words[at].ends_with(')') { "N)" } else { "N" };
        }
    }
    words.join(" ")
}
