//! alertq - the queue on the command line
//!
//! Asks qmgr; when qmgr does not run, lists the store itself (Q13).

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::unistd::geteuid;
use worker_proto::abi::CONFIG_ENV;
use worker_proto::diagnostic::Fault;
use worker_proto::getopt;
use worker_proto::identity;
use worker_proto::jail::mail_owner;
use worker_proto::main_cf::MainCf;
use worker_proto::params::CommonParams;
use worker_proto::server::{self, CONFIG_DIRECTORY};

use crate::listing::{self, EMPTY, Lister};
use crate::maildrop;
use crate::store::Store;
use crate::wire;

/// The commands with the manual's text.
pub const COMMANDS: &[(&str, &str)] = &[
    ("list [--json]", "Every message in the queue: why it waits and when it is tried next."),
    (
        "list --failed [--json]",
        "Every message that could not be delivered to somebody, with the reply.",
    ),
    ("show ID", "One message, queued or ended, with what each relay said."),
    (
        "relays",
        "The relays: up or down, since when, when they are tried next, and their last words.",
    ),
    ("flush [ID]", "Try a message, or every message, now."),
    ("hold ID", "Keep a message in the queue and do not try it."),
    ("release ID", "Try a message that was held."),
    ("requeue ID", "The same, and forget its attempts. One that has failed is queued anew."),
    ("delete ID", "Remove a message for good."),
];

/// A request may have to wait for a commit.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the command with its words.
#[must_use]
pub fn main(words: Vec<OsString>) -> ExitCode {
    let (code, text) = match parse(words) {
        Ok((directory, words)) => match parameters(&directory) {
            Ok(common) => run(&common, &words),
            Err(fault) => (78, format!("alertq: fatal: {fault}\n")),
        },
        Err(problem) => (64, format!("alertq: {problem}; {}\n", usage())),
    };
    // A reader that has gone away wants no more.
    let _ = if code == 0 {
        io::stdout().write_all(text.as_bytes())
    } else {
        io::stderr().write_all(text.as_bytes())
    };
    ExitCode::from(code)
}

fn usage() -> String {
    let names: Vec<_> = COMMANDS.iter().map(|(name, _)| *name).collect();
    format!("usage: alertq [-c config_dir] {}", names.join(" | "))
}

fn parse(words: Vec<OsString>) -> Result<(PathBuf, Vec<String>), String> {
    let parsed = getopt::parse("c:", words)?;
    let given = parsed.options.into_iter().next_back().and_then(|(_, value)| value);
    let directory =
        given.or_else(|| std::env::var_os(CONFIG_ENV)).unwrap_or_else(|| CONFIG_DIRECTORY.into());
    let words: Vec<String> = parsed.operands.into_iter().map(|o| getopt::text(Some(o))).collect();
    let known =
        |(name, _): &(&str, &str)| name.split(' ').next() == words.first().map(String::as_str);
    if !COMMANDS.iter().any(known) {
        return Err(words
            .first()
            .map_or_else(|| "no command".to_owned(), |w| format!("unknown command: {w}")));
    }
    Ok((directory.into(), words))
}

fn parameters(config: &Path) -> Result<CommonParams, Fault> {
    let (mut main_cf, _) = MainCf::load(config)?;
    CommonParams::read(&mut main_cf).map_err(|errors| server::first(&errors))
}

/// Does what the words say: the exit status and the text. Root becomes the mail owner for good: what
/// is asked and read here lies in that account's directories, where any name may be a link.
#[must_use]
pub fn run(common: &CommonParams, words: &[String]) -> (u8, String) {
    let queue = common.queue_directory.as_path();
    if geteuid().is_root() {
        let account = mail_owner(&common.mail_owner);
        let done = account.and_then(|user| identity::become_for_good(user.uid, user.gid));
        if let Err(fault) = done {
            return (78, format!("alertq: fatal: {fault}\n"));
        }
    }
    let path = queue.join("private/qmgr");
    let mut out = Parts::default();
    let mut asked = ask(queue, words, &mut out);
    // One that ended just now, for a reload, has a successor. What was told is not told twice.
    for _ in 1..ASKED {
        if out.begun || !asked.as_ref().is_err_and(wire::is_cut) {
            break;
        }
        asked = ask(queue, words, &mut out);
    }
    let (code, text) = match asked {
        _ if out.closed => return (0, String::new()),
        Ok((0, text)) if text.is_empty() && out.empty => (0, EMPTY.to_owned()),
        Ok((0, text)) => (0, text),
        Ok((code, text)) => (code, format!("alertq: {text}")),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            (77, "alertq: fatal: only root may see and change the queue\n".to_owned())
        }
        Err(e) => {
            let fault = Fault::io(format!("ask {}", path.display()), &e);
            let failed = (69, format!("alertq: fatal: {fault}\n"));
            if out.begun { failed } else { offline(words, &mut out).unwrap_or(failed) }
        }
    };
    (code, printable(&with_dropped(words, code, text)))
}

/// A list tells of messages that qmgr has not taken in yet, too.
fn with_dropped(words: &[String], code: u8, text: String) -> String {
    let waiting = match (words, code) {
        ([list], 0) if list == "list" => maildrop::count(Path::new(maildrop::DIRECTORY)),
        _ => 0,
    };
    let plural = if waiting == 1 { "" } else { "s" };
    match waiting {
        0 => text,
        _ => {
            let list = if text == EMPTY { "" } else { &text };
            format!("{list}-- {waiting} message{plural} in maildrop, not yet in the queue.\n")
        }
    }
}

/// What others have written, fit for a terminal: a control character is shown by its number.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            // As in JSON, where it stands in strings alone.
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A long answer on its way to standard output.
#[derive(Default)]
struct Parts {
    begun: bool,
    /// The list is empty, which is told at the end if nothing else is.
    empty: bool,
    /// The reader has gone away: it wants no more.
    closed: bool,
}

impl Parts {
    fn take(&mut self, text: &str) -> io::Result<()> {
        if text == EMPTY {
            self.empty = true;
            return Ok(());
        }
        self.begun |= !text.is_empty();
        let written = io::stdout().write_all(printable(text).as_bytes());
        self.closed |= written.is_err();
        written
    }
}

/// How often qmgr is asked when it goes in the middle.
const ASKED: usize = 4;

fn ask(queue: &Path, words: &[String], out: &mut Parts) -> io::Result<(u8, String)> {
    // Relative to it: a socket's name may have 107 bytes, and an instance may lie deep.
    std::env::set_current_dir(queue)?;
    let mut stream = UnixStream::connect("private/qmgr")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    wire::ask(&mut stream, words, |text| out.take(text))
}

/// What can be told without qmgr; None when it runs after all, or is needed. The queue directory is
/// the working directory.
fn offline(words: &[String], out: &mut Parts) -> Option<(u8, String)> {
    let is_new = !Path::new("queue/queue.db").exists();
    if is_new && words == ["list"] && maildrop::count(Path::new(maildrop::DIRECTORY)) > 0 {
        return Some((0, EMPTY.to_owned()));
    }
    let store = Store::look(Path::new("queue")).ok()?;
    let doing = |_| ("queued", None);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let text = match words.as_slice() {
        ["list"] | ["list", "--json"] => {
            let mut lister = Lister::new(words.len() > 1);
            while let Some(page) = lister.page(&store, &doing).ok()? {
                if out.take(&page).is_err() {
                    break;
                }
            }
            if out.empty { EMPTY.to_owned() } else { String::new() }
        }
        ["list", "--failed"] => listing::failed(&store, false).ok()?,
        ["list", "--failed", "--json"] | ["list", "--json", "--failed"] => {
            listing::failed(&store, true).ok()?
        }
        ["show", id] => listing::show(&store, id, &doing).ok()??,
        _ => return None,
    };
    Some((0, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header or a reply of a relay could clear the operator's screen, or answer in its name.
    #[test]
    fn no_control_character_reaches_the_terminal() {
        let text = "Subject: \u{1b}[2J\u{9b}1m\u{7f}\tx\r\n\u{e4}\n";
        assert_eq!(printable(text), "Subject: \\u001b[2J\\u009b1m\\u007f\tx\\u000d\n\u{e4}\n");
    }
}
