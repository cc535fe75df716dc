//! sendmail - the command that programs hand mail to
//!
//! Speaks SMTP to `public/submit`. While nobody answers there, or the queue cannot take the message
//! for now, it goes into the drop directory; exit status 0 means that it is on disk either way (M2).

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::sys::signal::Signal;
use nix::unistd::{User, getegid, getgid, getuid};
use worker_proto::abi::CONFIG_ENV;
use worker_proto::clock;
use worker_proto::diagnostic::Diagnostic;
use worker_proto::files;
use worker_proto::main_cf::MainCf;
use worker_proto::params::CommonParams;
use worker_proto::server::CONFIG_DIRECTORY;
use worker_proto::sys::{self, errno_text};

use crate::alertq;
use crate::maildrop::{self, Limits};
use crate::message::Message;
use crate::params::SubmitParams;
use crate::smtp::server::Answer;
use crate::submission::{Host, Source};

mod compose;
mod input;
mod options;
mod relay_standard;
mod spool;
mod submit;

use input::Input;
use options::{Mode, Options};
use spool::Spool;
use submit::Verdict;

/// The socket of smtpd for local users, below the queue directory.
const SUBMIT: &str = "public/submit";
/// The largest header.
const HEAD_LIMIT: usize = 4 << 20;

/// A failure with its exit status (sysexits.h) and one line of text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    status: u8,
    text: String,
}

impl Failure {
    fn new(status: u8, text: impl fmt::Display) -> Self {
        Self { status, text: text.to_string() }
    }
}

const EX_USAGE: u8 = 64;
const EX_DATAERR: u8 = 65;
const EX_NOINPUT: u8 = 66;
const EX_UNAVAILABLE: u8 = 69;
const EX_OSERR: u8 = 71;
const EX_TEMPFAIL: u8 = 75;
const EX_NOPERM: u8 = 77;
const EX_CONFIG: u8 = 78;

/// Runs the command with its whole command line; as `mailq` it lists the queue, as `newaliases` it
/// does nothing, as there are no aliases.
#[must_use]
pub fn main(words: &[OsString]) -> ExitCode {
    let name = words.first().map(PathBuf::from).unwrap_or_default();
    let name = name.file_name().and_then(|n| n.to_str()).unwrap_or("sendmail").to_owned();
    let words = words.iter().skip(1).map(|w| w.to_string_lossy().into_owned());
    match options::parse(&name, words).and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(io::stderr(), "{name}: fatal: {}", failure.text);
            ExitCode::from(failure.status)
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    if options.mode == Mode::Aliases {
        return Ok(());
    }
    let settings = settings(options)?;
    let common = &settings.common;
    std::env::set_current_dir(&common.queue_directory).map_err(|e| {
        let directory = common.queue_directory.display();
        Failure::new(EX_CONFIG, format!("chdir {directory}: {}", errno_text(&e)))
    })?;
    // A file that is too large is an error of write(2), not the end of the process.
    let _ = sys::ignore_signal(Signal::SIGXFSZ);
    match &options.mode {
        Mode::Aliases => Ok(()),
        Mode::Deliver => deliver(options, &settings),
        Mode::List => ask(common, &["list"]),
        Mode::Flush(None) => ask(common, &["flush"]),
        Mode::Flush(Some(id)) => ask(common, &["flush", id]),
        Mode::Smtp => smtp(&settings),
    }
}

/// What is configured.
struct Settings {
    common: CommonParams,
    limits: Limits,
    host: Host,
}

/// A set-group-id program takes its configuration from nobody but root.
fn settings(options: &Options) -> Result<Settings, Failure> {
    let trusted = getegid() == getgid() || getuid().is_root();
    let given = options.config.clone().map(OsString::from).or_else(|| std::env::var_os(CONFIG_ENV));
    let directory = given.filter(|_| trusted).unwrap_or_else(|| CONFIG_DIRECTORY.into());
    let fault = |text: String| Failure::new(EX_CONFIG, text);
    let (mut main_cf, _) =
        MainCf::load(Path::new(&directory)).map_err(|fault_| fault(fault_.to_string()))?;
    let first = |errors: Vec<Diagnostic>| {
        fault(errors.first().map_or_else(String::new, ToString::to_string))
    };
    let common = CommonParams::read(&mut main_cf).map_err(first)?;
    let submit = SubmitParams::read(&mut main_cf).map_err(first)?;
    let limits = Limits::new(submit.message_size_limit);
    let host = Host::new(&common, submit.hopcount_limit, limits);
    Ok(Settings { common, limits, host })
}

fn ask(common: &CommonParams, words: &[&str]) -> Result<(), Failure> {
    let words: Vec<String> = words.iter().map(|&w| w.to_owned()).collect();
    let (code, text) = alertq::run(common, &words);
    if code != 0 {
        let text = text.trim_start_matches("alertq: ").trim_start_matches("fatal: ");
        return Err(Failure::new(code, text.trim_end()));
    }
    io::stdout().write_all(text.as_bytes()).map_err(|e| Failure::new(EX_OSERR, errno_text(&e)))
}

fn deliver(options: &Options, settings: &Settings) -> Result<(), Failure> {
    let spool = spool(options, settings)?;
    let why = match submit::submit(&settings.common.myhostname, &spool) {
        Verdict::Taken => return Ok(()),
        Verdict::Refused(failure) => return Err(failure),
        Verdict::Unavailable(why) => why,
    };
    // Nobody took it and nobody refused it: it waits where qmgr will find it.
    spool.store(&why).map_err(|e| {
        let failure = not_stored(&e);
        Failure { text: format!("{why}; and {}", failure.text), ..failure }
    })
}

/// Reads the message.
fn spool(options: &Options, settings: &Settings) -> Result<Spool, Failure> {
    let (common, limit) = (&settings.common, settings.limits.bytes);
    let unreadable =
        |e: io::Error| Failure::new(EX_NOINPUT, format!("read standard input: {}", errno_text(&e)));
    if input::is_closed(io::stdin()) {
        return Err(Failure::new(EX_NOINPUT, "standard input is closed"));
    }
    let mut input = Input::new(io::stdin().lock(), options.ignore_dots);
    let mut bytes = Vec::new();
    let mut more = true;
    while more && bytes.len() < HEAD_LIMIT {
        more = input.next(&mut bytes).map_err(unreadable)?;
    }
    let (message, body) = Message::head(&bytes);
    if more && body == bytes.len() {
        let text = format!("the header of the message is larger than {HEAD_LIMIT} bytes");
        return Err(Failure::new(EX_DATAERR, text));
    }
    let user = User::from_uid(getuid()).ok().flatten();
    let login = user.as_ref().map_or_else(|| format!("uid{}", getuid()), |u| u.name.clone());
    let full_name = user.as_ref().and_then(|u| {
        let gecos = u.gecos.to_string_lossy();
        gecos.split(',').next().filter(|n| !n.is_empty()).map(str::to_owned)
    });
    let letter = compose::letter(options, common, &login, full_name.as_deref(), message)?;
    let head = letter.message.to_bytes();
    let source = Source::User(getuid().as_raw());
    let submission = settings
        .host
        .completed(letter.message, &letter.sender, letter.recipients, &source, clock::wall())
        .map_err(|answer| refused(&answer))?;
    let mut spool = Spool::new(head, submission);
    let check = |spool: &Spool| match spool.size() <= limit {
        true if settings.limits.admit(spool.complete_size()) => Ok(()),
        _ => {
            let text = format!("the message is larger than message_size_limit ({limit} bytes)");
            Err(Failure::new(EX_UNAVAILABLE, text))
        }
    };
    bytes.drain(..body);
    loop {
        spool.add(&bytes).map_err(|e| not_stored(&e))?;
        check(&spool)?;
        bytes.clear();
        if !input.next(&mut bytes).map_err(unreadable)? {
            break;
        }
    }
    spool.end().map_err(|e| not_stored(&e))?;
    check(&spool)?;
    Ok(spool)
}

/// What smtpd would have answered.
fn refused(answer: &Answer) -> Failure {
    Failure::new(if answer.code() == 552 { EX_UNAVAILABLE } else { EX_DATAERR }, answer)
}

fn not_stored(e: &io::Error) -> Failure {
    let status = if e.kind() == io::ErrorKind::PermissionDenied { EX_NOPERM } else { EX_TEMPFAIL };
    let cause = errno_text(e);
    Failure::new(status, format!("the message cannot be stored in maildrop: {cause}"))
}

/// Puts a message into the drop directory, as smtpd would have handed it over.
fn store(host: &Host, sender: &str, recipients: &[String], body: &[u8]) -> Result<(), Answer> {
    let source = Source::User(getuid().as_raw());
    let submission = host.submission(body, sender, recipients.to_vec(), &source, clock::wall())?;
    maildrop::drop_message(Path::new(maildrop::DIRECTORY), &submission)
        .map_err(|e| Answer::new(451, "4.3.0", not_stored(&e).text))
}

/// `-bs`: smtpd talks to the client, or this program does while it does not answer.
fn smtp(settings: &Settings) -> Result<(), Failure> {
    let stream = files::connect(Path::new(SUBMIT));
    match stream.ok().filter(|stream| relay_standard::greets(stream, submit::GREETING)) {
        Some(stream) => {
            relay_standard::run(stream).map_err(|e| Failure::new(EX_TEMPFAIL, errno_text(&e)))
        }
        None => {
            serve_standard(settings);
            Ok(())
        }
    }
}

/// `-bs` while smtpd does not answer: messages go into the drop directory.
fn serve_standard(settings: &Settings) {
    let name = &settings.common.myhostname;
    relay_standard::serve(name, settings.limits, |sender, recipients, body| {
        match store(&settings.host, sender, recipients, body) {
            Ok(()) => Answer::new(250, "2.0.0", "Ok: stored for later"),
            Err(answer) => answer,
        }
    });
}
