//! log - where log lines go, and what they look like
//!
//! Programs write with the macros of the `log` crate; this module is the logger behind them. A line
//! is `belfry/smtpd[77]: warning: text`: the severity word is Postfix's (none for information),
//! and one record is always one line of bounded length. The sink is opened before a worker enters its
//! jail and kept. Lines that would have to wait are lost and counted ([`stream`]).
//!
//! # Bugs
//! A chrooted worker cannot find /dev/log again when the syslog daemon restarts; lines go to nobody
//! until the worker ends (max_use, max_idle, reload).

use std::io::{self, Write};
use std::path::PathBuf;
use std::process;
use std::sync::{Mutex, OnceLock, PoisonError};

use log::{Level, LevelFilter, Record};

use crate::clock;
use crate::diagnostic::{Fault, cut};
use crate::params::CommonParams;
use crate::sys;

mod stream;

use stream::Stream;

/// Target of records at severity `fatal`: the process ends because of its surroundings.
pub const FATAL: &str = "fatal";
/// Target of records at severity `panic`: the process ends because of a bug.
pub const PANIC: &str = "panic";

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    /// Standard error, without a time stamp.
    Stderr,
    /// Standard output (a container's log), with a time stamp and the name of this host.
    Stdout {
        /// The name.
        host: String,
    },
    /// Appended to a file, with a time stamp and the name of this host.
    File {
        /// The file.
        path: PathBuf,
        /// The permissions with which it is made.
        permissions: u32,
        /// The name.
        host: String,
    },
    /// The syslog daemon at /dev/log, at this facility.
    Syslog(Facility),
}

impl Sink {
    /// The sink that the parameters ask for: `maillog_file`, else syslog.
    #[must_use]
    pub fn choose(common: &CommonParams) -> Self {
        // Without its domain, as syslog has it (RFC 3164 section 4.1.2).
        let host = common.myhostname.split('.').next().unwrap_or_default().to_owned();
        match common.maillog_file.as_str() {
            "" => Self::Syslog(Facility::named(&common.syslog_facility).unwrap_or(Facility::MAIL)),
            "/dev/stdout" => Self::Stdout { host },
            file => {
                let permissions = common.maillog_file_permissions;
                Self::File { path: PathBuf::from(file), permissions, host }
            }
        }
    }
}

/// A syslog facility (RFC 5424 section 6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facility(u8);

impl Facility {
    /// `mail`.
    pub const MAIL: Self = Self(2);

    /// The facility of a name, as in syslog.conf(5).
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let plain = [
            "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron",
            "authpriv", "ftp",
        ];
        let code = match name.strip_prefix("local") {
            Some(n) => 16 + n.parse::<u8>().ok().filter(|&n| n < 8)?,
            None => u8::try_from(plain.iter().position(|&p| p == name)?).ok()?,
        };
        Some(Self(code))
    }
}

static OUTPUT: OnceLock<Mutex<Output>> = OnceLock::new();

/// Starts logging. `tag` is the whole name, such as `belfry/smtpd`. A second call changes the tag,
/// the level and the sink.
///
/// # Errors
/// The sink cannot be opened; lines then go to standard error.
pub fn init(tag: &str, verbose: bool, sink: &Sink) -> Result<(), Fault> {
    // The C library reads the time zone now; in a jail it would not find it.
    let _ = sys::LocalTime::at(clock::wall());
    let (stream, fault) = match Stream::open(sink) {
        Ok(stream) => (stream, None),
        Err(fault) => (Stream::stderr(), Some(fault)),
    };
    let tag = tag.to_owned();
    let output = Output { tag, sink: sink.clone(), stream, tee: None, lost: 0 };
    match OUTPUT.get() {
        Some(present) => *present.lock().unwrap_or_else(PoisonError::into_inner) = output,
        None => {
            let _ = OUTPUT.set(Mutex::new(output));
            install();
        }
    }
    log::set_max_level(if verbose { LevelFilter::Debug } else { LevelFilter::Info });
    fault.map_or(Ok(()), Err)
}

/// Opens a log file again, after it was renamed; other sinks stay as they are.
///
/// # Errors
/// The file cannot be opened; the old one stays in use.
pub fn reopen() -> Result<(), Fault> {
    let Some(output) = OUTPUT.get() else {
        return Ok(());
    };
    let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(output.sink, Sink::File { .. }) {
        output.stream = Stream::open(&output.sink)?;
    }
    Ok(())
}

/// How many descriptors the log has open beside standard output and error.
#[must_use]
pub fn descriptors() -> usize {
    let output = OUTPUT.get().map(|o| o.lock().unwrap_or_else(PoisonError::into_inner));
    output.map_or(0, |output| output.stream.descriptors())
}

/// Whether lines go to standard error as well, for a start that an operator waits for.
pub fn tee_stderr(on: bool) {
    if let Some(output) = OUTPUT.get() {
        output.lock().unwrap_or_else(PoisonError::into_inner).tee = on.then(Stream::stderr);
    }
}

/// Logs at severity `fatal`. The caller then ends the process.
pub fn fatal(text: &str) {
    log::error!(target: FATAL, "{text}");
}

/// Sends every Rust panic to the log as one line at severity `panic`.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        log::error!(target: PANIC, "{text}");
    }));
}

fn install() {
    env_logger::Builder::new()
        .filter_level(LevelFilter::Debug)
        .format(|out, record| out.write_all(&line(record)))
        .target(env_logger::Target::Pipe(Box::new(Pipe)))
        .init();
}

/// The longest text of a line. With what stands before it, it is shorter than PIPE_BUF (4096).
const MAX_TEXT: usize = 3000;

/// The first byte tells the sink the level; the rest is the text with its severity word.
fn line(record: &Record<'_>) -> Vec<u8> {
    let (priority, word) = match (record.target(), record.level()) {
        (FATAL, _) => (b'2', "fatal: "),
        (PANIC, _) => (b'2', "panic: "),
        (_, Level::Error) => (b'3', "error: "),
        (_, Level::Warn) => (b'4', "warning: "),
        (_, Level::Info) => (b'6', ""),
        (_, Level::Debug | Level::Trace) => (b'7', ""),
    };
    let mut bytes = vec![priority];
    bytes.extend_from_slice(word.as_bytes());
    for c in cut(record.args().to_string(), MAX_TEXT).chars() {
        let c = if c.is_control() { '?' } else { c };
        bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
    bytes
}

/// What env_logger writes to: one call a record.
struct Pipe;

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let (Some((priority, text)), Some(output)) = (bytes.split_first(), OUTPUT.get()) {
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            output.record(priority - b'0', &String::from_utf8_lossy(text));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Output {
    tag: String,
    sink: Sink,
    stream: Stream,
    /// Standard error, for an operator who waits.
    tee: Option<Stream>,
    /// Lines that could not be written since the last one that could.
    lost: u64,
}

impl Output {
    fn record(&mut self, priority: u8, text: &str) {
        let head = format!("{}[{}]: ", self.tag, process::id());
        if let Some(tee) = self.tee.as_mut().filter(|_| !matches!(self.stream, Stream::Stderr(_))) {
            let _ = tee.write(format!("{head}{text}\n").as_bytes());
        }
        let told = self.lost == 0 || self.write(4, &head, &lost(self.lost)).is_ok();
        if told {
            self.lost = 0;
        }
        // There is nowhere left to complain; those that are read again see that lines are missing.
        if !told || self.write(priority, &head, text).is_err() {
            self.lost += 1;
        }
    }

    fn write(&mut self, priority: u8, head: &str, text: &str) -> io::Result<()> {
        let stamp = sys::LocalTime::at(clock::wall()).stamp();
        let line = match (&self.stream, &self.sink) {
            (Stream::Syslog(_, facility), _) => {
                let code = facility.0 * 8 + priority;
                format!("<{code}>{stamp} {head}{text}")
            }
            (Stream::Stderr(_), _) => format!("{head}{text}\n"),
            (_, Sink::File { host, .. } | Sink::Stdout { host }) => {
                format!("{stamp} {host} {head}{text}\n")
            }
            (_, Sink::Stderr | Sink::Syslog(_)) => format!("{stamp} {head}{text}\n"),
        };
        self.stream.write(line.as_bytes())
    }
}

fn lost(count: u64) -> String {
    format!("warning: {count} log lines lost: the reader of the log does not keep up")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facilities_have_their_codes() {
        assert_eq!(Facility::named("mail"), Some(Facility(2)));
        assert_eq!(Facility::named("daemon"), Some(Facility(3)));
        assert_eq!(Facility::named("local7"), Some(Facility(23)));
        assert_eq!(Facility::named("local8"), None);
        assert_eq!(Facility::named("post"), None);
    }

    #[test]
    fn a_record_is_one_line_with_its_severity() {
        let text = |target, level, text: &str| {
            let args = format_args!("{text}");
            let record = Record::builder().target(target).level(level).args(args).build();
            String::from_utf8(line(&record)).unwrap()
        };
        assert_eq!(text("x", Level::Info, "a"), "6a");
        assert_eq!(text("x", Level::Warn, "a\nb\u{1b}"), "4warning: a?b?");
        assert_eq!(text("x", Level::Error, "a"), "3error: a");
        assert_eq!(text(FATAL, Level::Error, "a"), "2fatal: a");
        assert_eq!(text(PANIC, Level::Error, "a"), "2panic: a");
        let long = text("x", Level::Info, &"\u{1}ä".repeat(5000));
        assert!(long.len() < 3100 && long.ends_with("..."), "{}", long.len());
    }

    #[test]
    fn a_file_gets_stamped_lines_and_survives_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let host = "mail".to_owned();
        let sink = Sink::File { path: path.clone(), permissions: 0o600, host };
        init("belfry/test", false, &sink).unwrap();
        log::warn!("first");
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        reopen().unwrap();
        fatal("second");
        let old = std::fs::read_to_string(dir.path().join("log.1")).unwrap();
        let new = std::fs::read_to_string(&path).unwrap();
        let tail = format!(" mail belfry/test[{}]: warning: first\n", process::id());
        assert!(old.ends_with(&tail), "{old:?}");
        assert_eq!(old.len(), "Nov 20 10:00:00".len() + tail.len());
        assert!(new.ends_with(": fatal: second\n"), "{new:?}");
    }
}
