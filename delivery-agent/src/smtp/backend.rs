//! backend - what a server is told about itself, and what decides for it

use std::fmt;

/// An answer of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    code: u16,
    enhanced: String,
    text: String,
}

impl Answer {
    /// An answer; `enhanced` as in RFC 3463, such as `4.3.0`, or empty.
    #[must_use]
    pub fn new(code: u16, enhanced: impl Into<String>, text: impl Into<String>) -> Self {
        Self { code, enhanced: enhanced.into(), text: text.into() }
    }

    /// Its code.
    #[must_use]
    pub const fn code(&self) -> u16 {
        self.code
    }

    /// Whether it says yes.
    #[must_use]
    pub const fn is_positive(&self) -> bool {
        self.code < 400
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.code)?;
        if !self.enhanced.is_empty() {
            write!(f, "{} ", self.enhanced)?;
        }
        for c in self.text.chars() {
            let c = if c.is_control() { '?' } else { c };
            write!(f, "{c}")?;
        }
        Ok(())
    }
}

/// Limits and names.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name in answers.
    pub hostname: String,
    /// The text of the greeting, behind the code.
    pub banner: String,
    /// Most bytes of a message; 0 for no limit.
    pub message_size_limit: u64,
    /// Most bytes of a command line, without its end.
    pub line_length_limit: usize,
    /// Most recipients of a message.
    pub recipient_limit: usize,
    /// Refused commands after which the session ends.
    pub error_limit: u64,
    /// Commands without a message, such as NOOP, after which each counts as a refused one.
    pub junk_limit: u64,
    /// Whether a client may give a message a name (XTOKEN): it is asked of nobody but this system's own.
    pub tokens: bool,
    /// Commands that no SMTP client sends: they end the session at once.
    pub forbidden: Vec<String>,
}

/// Who sends to whom, and how the client introduced itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The name in HELO or EHLO.
    pub helo: String,
    /// Whether it was EHLO.
    pub esmtp: bool,
    /// Whether MAIL had SMTPUTF8.
    pub smtputf8: bool,
    /// The sender, without brackets; may be empty.
    pub sender: String,
    /// The recipients, without brackets.
    pub recipients: Vec<String>,
    /// The message's name, if the client has given it one.
    pub token: String,
}

/// Decides about envelopes and takes messages.
pub trait Backend {
    /// Whether mail from this sender is taken.
    ///
    /// # Errors
    /// The refusal, for the client.
    fn sender(&mut self, sender: &str) -> Result<(), Answer>;

    /// Whether mail to this recipient is taken.
    ///
    /// # Errors
    /// The refusal, for the client.
    fn recipient(&mut self, recipient: &str) -> Result<(), Answer>;

    /// Takes a message. A positive answer passes the responsibility for it to this side.
    fn message(&mut self, envelope: &Envelope, body: Vec<u8>) -> Answer;
}
