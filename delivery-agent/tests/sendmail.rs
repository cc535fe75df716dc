//! The command sendmail, with and without somebody at public/submit.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use delivery_agent::maildrop;
use delivery_agent::smtp::server::{Answer, Backend, Config, Envelope, Server};
use delivery_agent::smtpd::converse;
use delivery_agent::wire::{Lane, Submission};

/// An instance without daemons.
fn instance() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    let text = format!("queue_directory = {path}\nmyhostname = h.example\n");
    fs::write(dir.path().join("main.cf"), text).unwrap();
    fs::create_dir(dir.path().join("maildrop")).unwrap();
    fs::create_dir(dir.path().join("public")).unwrap();
    dir
}

fn run(config: &Path, program: &Path, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .env("MAIL_CONFIG", config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails early does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn sendmail(config: &Path, arguments: &[&str], input: &str) -> (Option<i32>, String) {
    let output = run(config, Path::new(env!("CARGO_BIN_EXE_sendmail")), arguments, input);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.lines().count() <= 1, "one line: {text}");
    (output.status.code(), text)
}

fn dropped(config: &Path) -> Vec<Submission> {
    let limits = maildrop::Limits::new(10_240_000);
    let found = maildrop::Collector::new(config.join("maildrop"), limits).step(0).unwrap();
    assert_eq!(found.complaints, [] as [String; 0]);
    found.messages.into_iter().map(|dropped| dropped.submission).collect()
}

#[test]
fn q11_without_daemons_mail_waits_in_the_drop_directory() {
    let dir = instance();
    let input = "To: a@x\nBcc: b@x\nSubject: s\nImportance: high\n\nhello\n.\nunseen\n";
    let (code, text) = sendmail(dir.path(), &["-t", "-oem", "-f", "s", "c"], input);
    assert_eq!((code, text.as_str()), (Some(0), ""));
    let [got] = <[Submission; 1]>::try_from(dropped(dir.path())).unwrap();
    assert_eq!(got.sender, "s@h.example");
    assert_eq!(got.recipients, ["c", "a@x", "b@x"]);
    assert_eq!(got.lane, Lane::Urgent);
    let body = String::from_utf8(got.body).unwrap();
    assert!(body.starts_with("Received: by h.example (Belfry, from userid "), "{body}");
    assert!(body.contains("\r\nSubject: s\r\n") && body.contains("\r\nDate: "), "{body}");
    assert!(body.ends_with("\r\n\r\nhello\r\n") && !body.contains("b@x"), "{body}");
    let file = fs::read_dir(dir.path().join("maildrop")).unwrap().next().unwrap().unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn m2_every_failure_has_its_status_and_one_line() {
    let dir = instance();
    let mail = "Subject: s\n\nx\n";
    let long_loop = format!("{}\nx\n", "Received: x\n".repeat(101));
    for (arguments, input, code, line) in [
        (vec!["-Z"], mail, 64, "sendmail: fatal: invalid option -Z"),
        (vec!["-bd"], mail, 64, "sendmail: fatal: -bd: "),
        (vec!["a\u{1}@x"], mail, 65, "sendmail: fatal: bad address "),
        (vec!["a@x"], &long_loop, 65, "sendmail: fatal: 554 5.4.6 mail loop detected"),
        (vec!["-t"], mail, 66, "sendmail: fatal: no recipients in the header"),
        (vec![], mail, 66, "sendmail: fatal: no recipients on the command line"),
    ] {
        let (got, text) = sendmail(dir.path(), &arguments, input);
        assert_eq!(got, Some(code), "{arguments:?}: {text}");
        assert!(text.starts_with(line), "{text}");
    }
    assert!(dropped(dir.path()).is_empty());
    fs::remove_dir(dir.path().join("maildrop")).unwrap();
    let (got, text) = sendmail(dir.path(), &["a@x"], mail);
    assert_eq!(got, Some(75), "{text}");
    assert!(text.contains("connect public/submit: ") && text.contains(" maildrop: "), "{text}");
    fs::write(dir.path().join("main.cf"), "message_size_limit = x\nmax_use = x\n").unwrap();
    assert_eq!(sendmail(dir.path(), &["a@x"], mail).0, Some(78));
    fs::remove_file(dir.path().join("main.cf")).unwrap();
    let (got, text) = sendmail(dir.path(), &["a@x"], mail);
    assert_eq!(got, Some(78));
    assert!(text.ends_with("main.cf: No such file or directory\n"), "{text}");
}

/// smtpd with one answer to every message.
struct Desk(&'static str);

impl Backend for Desk {
    fn sender(&mut self, _: &str) -> Result<(), Answer> {
        Ok(())
    }

    fn recipient(&mut self, recipient: &str) -> Result<(), Answer> {
        match recipient {
            "bad@x" => Err(Answer::new(550, "5.1.1", "who")),
            _ => Ok(()),
        }
    }

    fn message(&mut self, _: &Envelope, _: Vec<u8>) -> Answer {
        let (code, text) = self.0.split_once(' ').unwrap();
        Answer::new(code.parse().unwrap(), "", text)
    }
}

#[test]
fn m2_what_smtpd_answers_is_the_exit_status() {
    for (answer, recipient, code, waits) in [
        ("250 2.0.0 Ok: queued as X", "a@x", 0, 0),
        ("451 4.3.0 queue not available", "a@x", 0, 1),
        ("452 4.3.1 the queue is full", "a@x", 75, 0),
        ("554 5.6.0 no", "a@x", 65, 0),
        ("250 2.0.0 Ok: queued as X", "bad@x", 65, 0),
        ("421 4.3.2 going down", "a@x", 0, 1),
    ] {
        let dir = instance();
        let listener = UnixListener::bind(dir.path().join("public/submit")).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (stream, _) = listener.accept().unwrap();
                let server = Server::new(Config {
                    hostname: "h".to_owned(),
                    banner: "h".to_owned(),
                    message_size_limit: 0,
                    line_length_limit: 2048,
                    recipient_limit: 100,
                    error_limit: 20,
                    junk_limit: 100,
                    forbidden: Vec::new(),
                });
                converse(stream, server, &mut Desk(answer), Duration::from_secs(20));
            });
            let (got, text) = sendmail(dir.path(), &[recipient], "Subject: s\n\nx\n");
            assert_eq!(got, Some(code), "{answer}: {text}");
            assert_eq!(text.is_empty(), code == 0, "{answer}: {text}");
        });
        assert_eq!(dropped(dir.path()).len(), waits, "{answer}");
    }
}

#[test]
fn m1_smtp_on_standard_input_works_without_daemons() {
    let dir = instance();
    let input = "EHLO c\r\nMAIL FROM:<s@x>\r\nRCPT TO:<a@x>\r\nDATA\r\nSubject: s\r\n\r\nx\r\n.\r\n\
                 QUIT\r\n";
    let output = run(dir.path(), Path::new(env!("CARGO_BIN_EXE_sendmail")), &["-bs"], input);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("220 h.example ESMTP\r\n"), "{said}");
    assert!(said.ends_with("250 2.0.0 Ok: stored for later\r\n221 2.0.0 Bye\r\n"), "{said}");
    assert_eq!(dropped(dir.path())[0].recipients, ["a@x"]);
}

#[test]
fn m1_newaliases_and_mailq_by_their_names() {
    let dir = instance();
    let program = Path::new(env!("CARGO_BIN_EXE_sendmail"));
    let newaliases = dir.path().join("newaliases");
    symlink(program, &newaliases).unwrap();
    assert_eq!(run(dir.path(), &newaliases, &[], "").status.code(), Some(0));
    let mailq = dir.path().join("mailq");
    symlink(program, &mailq).unwrap();
    let output = run(dir.path(), &mailq, &[], "");
    assert_eq!(output.status.code(), Some(69), "no qmgr and no store");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("mailq: fatal: ") && text.lines().count() == 1, "{text}");
}
