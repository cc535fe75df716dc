//! sink - an SMTP server that takes everything and keeps it in a Maildir
//!
//! It stands in for a relay in tests and in the quick start. It takes mail from anybody for anybody,
//! so it is of no use for anything else, and says so when it starts.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use log::{info, warn};
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{User, getegid, geteuid};
use worker_proto::client::Client;
use worker_proto::clock;
use worker_proto::diagnostic::Fault;
use worker_proto::directory::{self, Access};
use worker_proto::server::{self, Configured};
use worker_proto::single::Single;
use worker_proto::sys::errno_text;

use crate::maildrop::Limits;
use crate::params::{SinkParams, SmtpdParams, SubmitParams};
use crate::smtp::server::{Answer, Backend, Config, Envelope, Server};
use crate::smtpd::converse;

/// The daemon.
#[derive(Debug)]
pub struct Sink {
    config: Config,
    timeout: Duration,
    desk: Desk,
}

#[derive(Debug)]
struct Desk {
    maildir: Maildir,
    refused: Vec<String>,
    deferred: Vec<String>,
}

/// An open Maildir; its files are made in `tmp` and renamed to `new`, also from inside a jail.
#[derive(Debug)]
struct Maildir {
    tmp: OwnedFd,
    new: OwnedFd,
    sync: bool,
    count: u64,
}

impl Single for Sink {
    fn configure(configured: &mut Configured) -> Result<Self, Fault> {
        let main_cf = &mut configured.main_cf;
        let smtpd = SmtpdParams::read(main_cf).map_err(|errors| server::first(&errors))?;
        let submit = SubmitParams::read(main_cf).map_err(|errors| server::first(&errors))?;
        let params = SinkParams::read(main_cf).map_err(|errors| server::first(&errors))?;
        let owner = User::from_name(&configured.common.mail_owner).ok().flatten();
        // The working directory is the queue directory.
        let path = PathBuf::from(&params.sink_maildir);
        let maildir = Maildir::open(&path, owner.as_ref(), params.sink_sync)
            .map_err(|e| Fault::io(format!("open Maildir {}", path.display()), &e))?;
        info!("sinkd takes all mail for everybody and sends nothing on: it is for tests alone");
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Ok(Self {
            config: Config {
                hostname: configured.common.myhostname.clone(),
                banner: format!("{} ESMTP sink", configured.common.myhostname),
                message_size_limit: Limits::new(submit.message_size_limit).bytes,
                line_length_limit: count(smtpd.line_length_limit),
                recipient_limit: count(smtpd.smtpd_recipient_limit),
                error_limit: smtpd.smtpd_hard_error_limit,
                junk_limit: 100,
                tokens: false,
                forbidden: Vec::new(),
            },
            timeout: smtpd.smtpd_timeout,
            desk: Desk { maildir, refused: params.sink_reject, deferred: params.sink_defer },
        })
    }

    fn serve(&mut self, client: Client) {
        // Every read and write has a deadline of its own.
        if let Err(e) = client.set_nonblocking(true) {
            return warn!("{}", Fault::io("prepare a connection", &e));
        }
        converse(client, Server::new(self.config.clone()), &mut self.desk, self.timeout);
    }
}

impl Backend for Desk {
    fn sender(&mut self, _: &str) -> Result<(), Answer> {
        Ok(())
    }

    fn recipient(&mut self, recipient: &str) -> Result<(), Answer> {
        let listed = |list: &[String]| list.iter().any(|r| r.eq_ignore_ascii_case(recipient));
        if listed(&self.refused) {
            return Err(Answer::new(550, "5.1.1", "no such recipient: it is in sink_reject"));
        }
        if listed(&self.deferred) {
            return Err(Answer::new(450, "4.2.0", "try again: the recipient is in sink_defer"));
        }
        Ok(())
    }

    fn message(&mut self, envelope: &Envelope, body: Vec<u8>) -> Answer {
        match self.maildir.store(envelope, &body) {
            Ok(name) => Answer::new(250, "2.0.0", format!("Ok: stored as {name}")),
            Err(e) => {
                warn!("{}", Fault::io("write to the Maildir", &e));
                Answer::new(451, "4.3.0", format!("cannot store: {}", errno_text(&e)))
            }
        }
    }
}

impl Maildir {
    /// Opens a Maildir, and makes it when it is missing.
    fn open(path: &Path, owner: Option<&User>, sync: bool) -> io::Result<Self> {
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent)?;
        }
        let (uid, gid) = owner.map_or_else(
            || (geteuid().as_raw(), getegid().as_raw()),
            |owner| (owner.uid.as_raw(), owner.gid.as_raw()),
        );
        let access = Access { uid, gid, mode: 0o700 };
        let (top, _) = directory::make_at(AT_FDCWD, path, access)?;
        let open = |name: &str| directory::make_at(&top, Path::new(name), access).map(|(fd, _)| fd);
        open("cur")?;
        Ok(Self { tmp: open("tmp")?, new: open("new")?, sync, count: 0 })
    }

    /// Stores a message; it is on disk when this returns. Gives its file's name.
    fn store(&mut self, envelope: &Envelope, body: &[u8]) -> io::Result<String> {
        self.count += 1;
        let now = clock::wall();
        let (seconds, micros) = (now.as_secs(), now.subsec_micros());
        let name = format!("{seconds}.M{micros}P{}Q{}.sink", process::id(), self.count);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let fd = openat(self.tmp.as_fd(), name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let mut file = File::from(fd);
        file.write_all(&content(envelope, body))?;
        if self.sync {
            file.sync_all()?;
        }
        renameat(self.tmp.as_fd(), name.as_str(), self.new.as_fd(), name.as_str())?;
        if self.sync {
            File::from(self.new.try_clone()?).sync_all()?;
        }
        Ok(name)
    }
}

/// The file: the envelope as fields, then the message, with line ends as files have them.
fn content(envelope: &Envelope, body: &[u8]) -> Vec<u8> {
    let Envelope { sender, recipients, helo, .. } = envelope;
    let mut text = format!("Return-Path: <{sender}>\n");
    for recipient in recipients {
        text.push_str(&format!("Delivered-To: {recipient}\n"));
    }
    text.push_str(&format!("X-Original-Helo: {helo}\n"));
    let mut bytes = text.into_bytes();
    bytes.reserve(body.len());
    for line in body.split_inclusive(|&b| b == b'\n') {
        match line.strip_suffix(b"\r\n") {
            Some(line) => {
                bytes.extend_from_slice(line);
                bytes.push(b'\n');
            }
            None => bytes.extend_from_slice(line),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_lands_in_the_maildir_with_its_envelope() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/sink");
        let mut desk = Desk {
            maildir: Maildir::open(&path, None, true).unwrap(),
            refused: vec!["No@x".to_owned()],
            deferred: vec!["later@x".to_owned()],
        };
        assert!(desk.recipient("yes@x").is_ok());
        assert!(desk.recipient("no@X").unwrap_err().to_string().starts_with("550 5.1.1 "));
        assert!(desk.recipient("later@x").unwrap_err().to_string().starts_with("450 4.2.0 "));
        let envelope = Envelope {
            helo: "c".to_owned(),
            sender: "s@x".to_owned(),
            recipients: vec!["a@x".to_owned(), "b@x".to_owned()],
            ..Envelope::default()
        };
        for _ in 0..2 {
            let answer = desk.message(&envelope, b"Subject: x\r\n\r\ny\r\n".to_vec());
            assert!(answer.is_positive(), "{answer}");
        }
        let files: Vec<_> = fs::read_dir(path.join("new")).unwrap().map(Result::unwrap).collect();
        assert_eq!(files.len(), 2);
        assert_eq!(
            fs::read_to_string(files[0].path()).unwrap(),
            "Return-Path: <s@x>\nDelivered-To: a@x\nDelivered-To: b@x\nX-Original-Helo: c\n\
             Subject: x\n\ny\n"
        );
        assert_eq!(fs::read_dir(path.join("tmp")).unwrap().count(), 0);
        Maildir::open(&path, None, true).unwrap();
    }
}
