//! logbook - an instance's log file

use std::fs;
use std::path::{Path, PathBuf};

use crate::wait;

/// A log file.
#[derive(Debug, Clone)]
pub struct Logbook {
    path: PathBuf,
}

impl Logbook {
    /// The log at a path; it need not be there yet.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Everything in it.
    #[must_use]
    pub fn text(&self) -> String {
        let bytes = fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The lines with a text in them.
    #[must_use]
    pub fn lines(&self, part: &str) -> Vec<String> {
        let text = self.text();
        let found = text.lines().filter(|line| line.contains(part));
        found.map(str::to_owned).collect()
    }

    /// How many lines have a text in them.
    #[must_use]
    pub fn count(&self, part: &str) -> usize {
        self.lines(part).len()
    }

    /// Waits for a line with a text in it, and gives the last one.
    ///
    /// # Panics
    /// It does not come.
    pub fn wait_for(&self, part: &str) -> String {
        self.wait_for_count(part, 1)
    }

    /// Waits until there are this many lines with a text in them, and gives the last one.
    ///
    /// # Panics
    /// They do not come.
    pub fn wait_for_count(&self, part: &str, count: usize) -> String {
        wait::within(wait::LONG, || {
            let mut lines = self.lines(part);
            (lines.len() >= count).then(|| lines.pop()).flatten()
        })
        .unwrap_or_else(|| panic!("no {count} lines with \"{part}\" in the log:\n{}", self.text()))
    }

    /// The lines with a severity of warning or worse.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let bad = ["warning: ", "error: ", "fatal: ", "panic: "];
        let text = self.text();
        let complaints = text.lines().filter(|line| {
            // Jan 01 00:00:00 host belfry/name[pid]: severity: text
            let text = line.split_once("]: ").map_or(*line, |(_, text)| text);
            bad.iter().any(|word| text.starts_with(word))
        });
        complaints.map(str::to_owned).collect()
    }
}
