//! diagnostic - a complaint about a place in a file, and a fault that ends an operation
//!
//! A [`Diagnostic`] names file, line and column, says what is wrong and how to mend it; reading goes
//! on behind it, so that one run reports every error of a file. `{}` is one line for a log, `{:#}`
//! adds the source line with a caret. A [`Fault`] says what was tried and why it failed.

use std::fmt;
use std::io;

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
    /// The line itself, without its end.
    pub source: String,
    /// What is wrong, in lower case, without a full stop.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
}

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
        Self {
            severity: Severity::Error,
            file: file.to_owned(),
            line,
            column: source[..start].chars().count() + 1,
            width: source[start..end].chars().count(),
            source: source.to_owned(),
            message: message.into(),
            help: None,
        }
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
            .take(self.column - 1)
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
