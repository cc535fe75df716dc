//! diagnostic - a complaint about a place in a file, and a fault that ends an operation
//!
//! A [`Diagnostic`] names file, line and column, says what is wrong and how to fix it; reading goes
//! on behind it, so that one run reports every error of a file, up to a number ([`Complaints`]). `{}` is one line for a log, `{:#}`
//! adds the source line with a caret. A [`Fault`] says what was tried and why it failed.

use std::fmt;
use std::io;
use std::ops::Range;

use crate::sys::errno_text;

/// How bad a [`Diagnostic`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file is used all the same.
    Warning,
    /// The file is not used.
    Error,
}

/// A complaint about a place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file as the operator named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// How many characters the caret line underlines; 0 is drawn as 1.
    pub width: usize,
    /// The line itself, without its end; of a long one the part around the place, with "..." for the
    /// rest.
    pub source: String,
    /// How many characters of `source` stand before the place.
    pub lead: usize,
    /// What is wrong, in lower case, without a full stop.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
    /// How many complaints it stands for: more than one where the rest of many is left out.
    pub count: usize,
}

/// The longest message; what it quotes may be as long as the file.
const MAX_MESSAGE: usize = 400;
/// The longest part of a source line that is shown, on each side of the place.
const MAX_SOURCE: usize = 200;

impl Diagnostic {
    /// An error at a byte range of a source line. `start` and `end` are byte offsets into `source`;
    /// they are cut to its length and moved to character borders.
    #[must_use]
    pub fn error(
        file: &str,
        line: usize,
        source: &str,
        start: usize,
        end: usize,
        message: impl Into<String>,
    ) -> Self {
        let start = source.floor_char_boundary(start.min(source.len()));
        let end = source.floor_char_boundary(end.clamp(start, source.len()));
        let (excerpt, at) = excerpt(source, start..end);
        Self {
            severity: Severity::Error,
            file: file.to_owned(),
            line,
            column: source[..start].chars().count() + 1,
            width: excerpt[at.clone()].chars().count(),
            lead: excerpt[..at.start].chars().count(),
            source: excerpt,
            message: cut(message.into(), MAX_MESSAGE),
            help: None,
            count: 1,
        }
    }

    /// The same place with another message.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = cut(message.into(), MAX_MESSAGE);
        self
    }

    /// The same complaint as a warning.
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    /// The same complaint with the cure.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        // A log line is one line, whatever the file holds.
        for c in self.message.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        if !f.alternate() {
            return Ok(());
        }
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        // A tab stays a tab under itself; every other character before the caret is a blank.
        let lead: String = self
            .source
            .chars()
            .take(self.lead)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let shown: String = self
            .source
            .chars()
            .map(|c| if c.is_control() && c != '\t' { '?' } else { c })
            .collect();
        write!(
            f,
            "\n{margin} |\n{number} | {shown}\n{margin} | {lead}{}",
            "^".repeat(self.width.max(1))
        )?;
        match &self.help {
            Some(help) => write!(f, "\n{margin} = help: {help}"),
            None => Ok(()),
        }
    }
}

/// The part of a line around a range, and where the range is in it.
fn excerpt(source: &str, at: Range<usize>) -> (String, Range<usize>) {
    let first = source.floor_char_boundary(at.start.saturating_sub(MAX_SOURCE));
    let shown = at.start..source.floor_char_boundary(at.end.min(at.start + MAX_SOURCE));
    let last = source.floor_char_boundary(at.start + 2 * MAX_SOURCE);
    let before = if first > 0 { MORE } else { "" };
    let after = if last < source.len() { MORE } else { "" };
    let start = before.len() + shown.start - first;
    (format!("{before}{}{after}", &source[first..last]), start..start + shown.len())
}

/// A text of at most so many bytes, or a little more with what says that it was cut.
#[must_use]
pub fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push_str(MORE);
        text.shrink_to_fit();
    }
    text
}

/// Stands for what is not shown.
const MORE: &str = "...";
/// The most complaints about one configuration that are kept.
const MAX_COMPLAINTS: usize = 50;

/// Gathers complaints: the first of them, and how many there are beyond.
#[derive(Debug, Default)]
pub struct Complaints {
    kept: Vec<Diagnostic>,
    rest: Option<Diagnostic>,
}

impl Complaints {
    /// Adds one.
    pub fn push(&mut self, complaint: Diagnostic) {
        if self.kept.len() < MAX_COMPLAINTS {
            return self.kept.push(complaint);
        }
        match &mut self.rest {
            Some(rest) => {
                rest.count += complaint.count;
                rest.severity = rest.severity.max(complaint.severity);
            }
            none => *none = Some(complaint),
        }
    }

    /// All of them; the last says how many are left out.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<Diagnostic> {
        if let Some(rest) = self.rest {
            let message = format!("{} more errors or warnings from here on", rest.count);
            self.kept.push(rest.message(message).help("fix those above first"));
        }
        self.kept
    }
}

impl Extend<Diagnostic> for Complaints {
    fn extend<T: IntoIterator<Item = Diagnostic>>(&mut self, complaints: T) {
        complaints.into_iter().for_each(|complaint| self.push(complaint));
    }
}

/// Whether any of the complaints forbids the use of the file.
#[must_use]
pub fn any_error(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(|d| d.severity == Severity::Error)
}

/// An operation failed: who or what, and why. It ends the operation, not the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    subject: String,
    cause: String,
}

impl Fault {
    /// `open /x/master.pid` failed, because of `cause`.
    #[must_use]
    pub fn new(subject: impl Into<String>, cause: impl fmt::Display) -> Self {
        Self { subject: subject.into(), cause: cause.to_string() }
    }

    /// The same for an error of the system, in strerror(3)'s words without a number.
    #[must_use]
    pub fn io(subject: impl Into<String>, cause: &io::Error) -> Self {
        Self { subject: subject.into(), cause: errno_text(cause) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.cause)
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_keeps_tabs_and_counts_characters() {
        let source = "smtp\tinet  n  -  n  sööner  -  smtpd";
        let start = source.find("söön").unwrap();
        let d = Diagnostic::error(
            "etc/master.cf",
            12,
            source,
            start,
            start + "sööner".len(),
            "field \"wakeup\": bad value: \"sööner\"",
        )
        .help("a number of seconds, with \"?\" to wait for the first use");
        assert_eq!(format!("{d}"), "etc/master.cf:12:21: field \"wakeup\": bad value: \"sööner\"");
        assert_eq!(
            format!("{d:#}"),
            "etc/master.cf:12:21: field \"wakeup\": bad value: \"sööner\"\n   |\n12 | \
             smtp\tinet  n  -  n  sööner  -  smtpd\n   |     \t               ^^^^^^\n   = help: \
             a number of seconds, with \"?\" to wait for the first use"
        );
    }

    /// A line of megabytes was printed, and logged, as it was.
    #[test]
    fn a_long_line_and_what_is_quoted_of_it_are_cut() {
        let source = format!("{}bäd{}", "a".repeat(1 << 20), "c".repeat(1 << 20));
        let start = 1 << 20;
        let d = Diagnostic::error("f", 1, &source, start, start + 4, source.clone()).help("no");
        assert_eq!((d.column, d.width), (start + 1, 3));
        assert!(format!("{d}").len() < 500 && format!("{d}").ends_with("aaa..."), "{d}");
        let picture = format!("{d:#}");
        let lines: Vec<_> = picture.lines().collect();
        assert!(lines[2].len() < 700 && lines[2].ends_with("ccc..."), "{picture}");
        let at = lines[3].find('^').unwrap();
        assert_eq!(lines[2].find("bäd"), Some(at), "{picture}");
        assert!(lines[3].ends_with(" ^^^"), "{picture}");
    }

    /// 100 MB of random bytes made 110 MB of log.
    #[test]
    fn of_many_complaints_the_first_are_kept_and_the_rest_counted() {
        let complaint = |line| Diagnostic::error("f", line, "x", 0, 1, "bad");
        let mut file = Complaints::default();
        file.extend((1..=49).map(|line| complaint(line).warning()));
        file.extend((50..=60).map(complaint));
        let file = file.into_vec();
        assert_eq!((file.len(), file.iter().map(|d| d.count).sum::<usize>()), (51, 60));
        assert_eq!(file[50].to_string(), "f:51:1: 10 more errors or warnings from here on");
        // Those of one file are part of those of a configuration.
        let mut all = Complaints::default();
        all.push(complaint(1));
        all.extend(file);
        let all = all.into_vec();
        assert_eq!((all.len(), all.iter().map(|d| d.count).sum::<usize>()), (51, 61));
    }

    #[test]
    fn offsets_out_of_range_are_cut() {
        let d = Diagnostic::error("f", 1, "ab", 7, 9, "missing field");
        assert_eq!((d.column, d.width), (3, 0));
        assert!(format!("{d:#}").ends_with("\n  |   ^"));
    }

    #[test]
    fn a_log_line_is_one_line() {
        let d = Diagnostic::error("f", 1, "a\u{1}", 1, 2, "bad \"\n\u{1}\"");
        assert_eq!(format!("{d}"), "f:1:2: bad \"\\n\\u{1}\"");
    }

    #[test]
    fn a_fault_has_no_error_number() {
        let fault = Fault::io("open /x", &io::Error::from_raw_os_error(2));
        assert_eq!(fault.to_string(), "open /x: No such file or directory");
    }
}
