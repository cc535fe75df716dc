//! sendmail - the command that programs hand mail to
//!
//! Speaks SMTP to `public/submit`. While nobody answers there, or the queue cannot take the message
//! for now, it goes into the drop directory; exit status 0 means that it is on disk either way (M2).

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::{User, getegid, getgid, getuid};
use worker_proto::abi::CONFIG_ENV;
use worker_proto::clock;
use worker_proto::main_cf::MainCf;
use worker_proto::params::CommonParams;
use worker_proto::server::CONFIG_DIRECTORY;
use worker_proto::sys::errno_text;

use crate::alertq;
use crate::maildrop;
use crate::outcome::Outcome;
use crate::smtp::server::Answer;
use crate::smtp::session::{Config, Event, Mail, Session};
use crate::submission::{Host, Source};

mod compose;
mod options;
mod relay_standard;

use compose::Letter;
use options::{Mode, Options};

/// The socket of smtpd for local users, below the queue directory.
const SUBMIT: &str = "public/submit";
/// How long smtpd may be silent before the message is dropped for later.
const PATIENCE: Duration = Duration::from_secs(60);
/// Received fields after which a message goes in circles; smtpd has its own limit.
const HOP_LIMIT: u64 = 100;

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
    let common = common(options)?;
    std::env::set_current_dir(&common.queue_directory).map_err(|e| {
        let directory = common.queue_directory.display();
        Failure::new(EX_CONFIG, format!("chdir {directory}: {}", errno_text(&e)))
    })?;
    match &options.mode {
        Mode::Aliases => Ok(()),
        Mode::Deliver => deliver(options, &common),
        Mode::List => ask(&common, &["list"]),
        Mode::Flush(None) => ask(&common, &["flush"]),
        Mode::Flush(Some(id)) => ask(&common, &["flush", id]),
        Mode::Smtp => match UnixStream::connect(SUBMIT) {
            Ok(stream) => {
                relay_standard::run(stream).map_err(|e| Failure::new(EX_TEMPFAIL, errno_text(&e)))
            }
            Err(_) => {
                serve_standard(&common);
                Ok(())
            }
        },
    }
}

/// A set-group-id program takes its configuration from nobody but root.
fn common(options: &Options) -> Result<CommonParams, Failure> {
    let trusted = getegid() == getgid() || getuid().is_root();
    let given = options.config.clone().map(OsString::from).or_else(|| std::env::var_os(CONFIG_ENV));
    let directory = given.filter(|_| trusted).unwrap_or_else(|| CONFIG_DIRECTORY.into());
    let fault = |text: String| Failure::new(EX_CONFIG, text);
    let (mut main_cf, _) =
        MainCf::load(Path::new(&directory)).map_err(|fault_| fault(fault_.to_string()))?;
    CommonParams::read(&mut main_cf)
        .map_err(|errors| fault(errors.first().map_or_else(String::new, ToString::to_string)))
}

fn ask(common: &CommonParams, words: &[&str]) -> Result<(), Failure> {
    let words: Vec<String> = words.iter().map(|&w| w.to_owned()).collect();
    let (code, text) = alertq::run(common, &words);
    if code != 0 {
        return Err(Failure::new(code, text.trim_start_matches("alertq: ").trim_end()));
    }
    io::stdout().write_all(text.as_bytes()).map_err(|e| Failure::new(EX_OSERR, errno_text(&e)))
}

fn deliver(options: &Options, common: &CommonParams) -> Result<(), Failure> {
    let mut input = Vec::new();
    io::stdin().read_to_end(&mut input).map_err(|e| {
        Failure::new(EX_NOINPUT, format!("read standard input: {}", errno_text(&e)))
    })?;
    let user = User::from_uid(getuid()).ok().flatten();
    let login = user.as_ref().map_or_else(|| format!("uid{}", getuid()), |u| u.name.clone());
    let full_name = user.as_ref().and_then(|u| {
        let gecos = u.gecos.to_string_lossy();
        gecos.split(',').next().filter(|n| !n.is_empty()).map(str::to_owned)
    });
    let letter = compose::letter(options, common, &login, full_name.as_deref(), &input)?;
    let again = match submit(common, &letter) {
        Ok(result) => return result,
        Err(reason) => reason,
    };
    // Nobody took it and nobody refused it: it waits where qmgr will find it.
    store(common, &letter.sender, &letter.recipients, &letter.body).map_err(|failure| match failure
        .status
    {
        EX_DATAERR => failure,
        _ => Failure { text: format!("{again}; and {}", failure.text), ..failure },
    })
}

/// Puts a message into the drop directory, as smtpd would have handed it over.
fn store(
    common: &CommonParams,
    sender: &str,
    recipients: &[String],
    body: &[u8],
) -> Result<(), Failure> {
    let host = Host::new(common, HOP_LIMIT);
    let source = Source::User(getuid().as_raw());
    let submission = host
        .submission(body, sender, recipients.to_vec(), &source, clock::wall())
        .map_err(|answer| Failure::new(EX_DATAERR, answer))?;
    maildrop::drop_message(Path::new(maildrop::DIRECTORY), &submission).map_err(|e| {
        let status =
            if e.kind() == io::ErrorKind::PermissionDenied { EX_NOPERM } else { EX_TEMPFAIL };
        let cause = errno_text(&e);
        Failure::new(status, format!("the message cannot be stored in maildrop: {cause}"))
    })
}

/// `-bs` while smtpd does not answer: messages go into the drop directory.
fn serve_standard(common: &CommonParams) {
    relay_standard::serve(&common.myhostname, |sender, recipients, body| {
        match store(common, sender, recipients, body) {
            Ok(()) => Answer::new(250, "2.0.0", "Ok: stored for later"),
            Err(failure) if failure.status == EX_DATAERR => Answer::new(554, "5.6.0", failure.text),
            Err(failure) => Answer::new(451, "4.3.0", failure.text),
        }
    });
}

/// Hands a letter to smtpd. The outer error is the reason why it can go into the drop directory: it
/// was not answered.
fn submit(common: &CommonParams, letter: &Letter) -> Result<Result<(), Failure>, String> {
    let mut stream = UnixStream::connect(SUBMIT).map_err(|e| unreachable_smtpd(&e).text)?;
    let timeouts = stream.set_read_timeout(Some(PATIENCE));
    timeouts.and_then(|()| stream.set_write_timeout(Some(PATIENCE))).map_err(|e| errno_text(&e))?;
    let mut session = Session::new(Config {
        relay: SUBMIT.to_owned(),
        helo: common.myhostname.clone(),
        pipelining: true,
    });
    let mail = Mail {
        sender: letter.sender.clone(),
        recipients: letter.recipients.iter().cloned().enumerate().collect(),
        body: Rc::from(letter.body.as_slice()),
    };
    let mut mail = Some(mail);
    let mut bytes = [0; 4096];
    loop {
        while let Some(event) = session.event() {
            match event {
                Event::Open => {
                    if let Some(mail) = mail.take()
                        && let Err(unfit) = session.offer(mail)
                    {
                        return Ok(Err(Failure::new(EX_DATAERR, unfit.reply)));
                    }
                }
                Event::Done(outcomes) => {
                    session.quit();
                    let _ = stream.write_all(session.output());
                    return judge(&outcomes);
                }
                Event::Lost { why, .. } => return Err(format!("{SUBMIT}: {why}")),
            }
        }
        let written = session.output().len();
        let result = stream.write_all(session.output()).and_then(|()| {
            session.wrote(written);
            stream.read(&mut bytes)
        });
        match result {
            Ok(0) => session.lost("connection closed"),
            Ok(size) => session.input(&bytes[..size]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => session.lost("timed out"),
            Err(e) => session.lost(&errno_text(&e)),
        }
    }
}

/// What smtpd's answers come to. The message was queued for the recipients that were taken; a refused
/// one is the caller's to hear about.
fn judge(outcomes: &[(usize, Outcome)]) -> Result<Result<(), Failure>, String> {
    let worst = outcomes.iter().map(|(_, o)| o).max_by_key(|outcome| match outcome {
        Outcome::Delivered { .. } => 0,
        Outcome::InDoubt { .. } | Outcome::NotSent { .. } => 1,
        Outcome::RejectedTemp { .. } => 2,
        Outcome::RejectedPerm { .. } => 3,
    });
    let some_taken = outcomes.iter().any(|(_, o)| matches!(o, Outcome::Delivered { .. }));
    match worst {
        None | Some(Outcome::Delivered { .. }) => Ok(Ok(())),
        Some(Outcome::RejectedPerm { reply, .. }) => {
            let status = if reply.starts_with("552") { EX_UNAVAILABLE } else { EX_DATAERR };
            Ok(Err(Failure::new(status, reply)))
        }
        // The disk is full: the drop directory is on the same one.
        Some(Outcome::RejectedTemp { reply, .. }) if reply.starts_with("452") || some_taken => {
            Ok(Err(Failure::new(EX_TEMPFAIL, reply)))
        }
        Some(Outcome::RejectedTemp { reply, .. }) => Err(reply.clone()),
        // It may have been queued: a second copy is the lesser evil.
        Some(Outcome::InDoubt { why, .. } | Outcome::NotSent { why }) => Err(why.clone()),
    }
}

fn unreachable_smtpd(error: &io::Error) -> Failure {
    Failure::new(EX_TEMPFAIL, format!("connect {SUBMIT}: {}", errno_text(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(outcomes: &[Outcome]) -> Result<Result<(), u8>, String> {
        let outcomes: Vec<_> = outcomes.iter().cloned().enumerate().collect();
        judge(&outcomes).map(|r| r.map_err(|f| f.status))
    }

    #[test]
    fn m2_answers_become_exit_statuses() {
        let relay = String::new;
        let ok = Outcome::Delivered { relay: relay(), reply: "250 queued".to_owned() };
        let no = Outcome::RejectedPerm { relay: relay(), reply: "550 no".to_owned() };
        let full = Outcome::RejectedTemp { relay: relay(), reply: "452 4.3.1 full".to_owned() };
        let later = Outcome::RejectedTemp { relay: relay(), reply: "451 4.3.0 later".to_owned() };
        assert_eq!(judged(std::slice::from_ref(&ok)), Ok(Ok(())));
        assert_eq!(judged(&[ok.clone(), no]), Ok(Err(EX_DATAERR)));
        assert_eq!(judged(&[full]), Ok(Err(EX_TEMPFAIL)));
        assert_eq!(
            judged(&[ok, later.clone()]),
            Ok(Err(EX_TEMPFAIL)),
            "no second copy to those taken"
        );
        assert!(judged(&[later]).is_err(), "it goes to the drop directory");
    }
}
