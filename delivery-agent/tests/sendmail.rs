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
use delivery_agent::smtpd::{Ending, converse};
use delivery_agent::wire::{Lane, Submission};
use worker_proto::clock::Time;

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
    assert!(text.contains("public/submit: connect: ") && text.contains(" maildrop: "), "{text}");
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

fn config() -> Config {
    Config {
        hostname: "h".to_owned(),
        banner: "h".to_owned(),
        message_size_limit: 0,
        line_length_limit: 2048,
        recipient_limit: 100,
        error_limit: 20,
        junk_limit: 100,
        tokens: false,
        forbidden: Vec::new(),
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
                converse(stream, Server::new(config()), &mut Desk(answer), Duration::from_secs(20));
            });
            let (got, text) = sendmail(dir.path(), &[recipient], "Subject: s\n\nx\n");
            assert_eq!(got, Some(code), "{answer}: {text}");
            assert_eq!(text.is_empty(), code == 0, "{answer}: {text}");
        });
        assert_eq!(dropped(dir.path()).len(), waits, "{answer}");
    }
}

/// Runs a program under a shell's redirections.
fn shell(config: &Path, script: &str) -> (Option<i32>, String) {
    let script = script.replace("SENDMAIL", env!("CARGO_BIN_EXE_sendmail"));
    let output =
        Command::new("sh").arg("-c").arg(script).env("MAIL_CONFIG", config).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A closed descriptor 0 was an empty mail with exit status 0.
#[test]
fn a_closed_standard_input_is_an_error_and_an_empty_one_is_not() {
    let dir = instance();
    let (code, text) = shell(dir.path(), "SENDMAIL a@x <&-");
    assert_eq!((code, text.as_str()), (Some(66), "sendmail: fatal: standard input is closed\n"));
    assert!(dropped(dir.path()).is_empty());
    assert_eq!(shell(dir.path(), "SENDMAIL a@x </dev/null"), (Some(0), String::new()));
    assert_eq!(dropped(dir.path()).len(), 1);
}

/// A Latin-1 recipient became another one, with U+FFFD in it, and the exit status was 0.
#[test]
fn a_recipient_that_is_not_utf_8_is_refused() {
    let dir = instance();
    let latin = "$(printf 'M\\374ller@x')";
    for script in [
        format!("SENDMAIL \"{latin}\" </dev/null"),
        format!("SENDMAIL -f \"{latin}\" a@x </dev/null"),
        format!("echo \"To: {latin}\" | SENDMAIL -t"),
    ] {
        let (code, text) = shell(dir.path(), &script);
        assert_eq!(code, Some(65), "{script}: {text}");
        assert!(text.contains("it is not UTF-8"), "{text}");
    }
    assert!(dropped(dir.path()).is_empty());
}

/// While the system was down, what it would have refused was taken.
#[test]
fn the_limits_hold_while_the_system_is_down() {
    let dir = instance();
    let big = "Subject: big\n\n".to_owned() + &"0123456789\n".repeat(1_000_000);
    let (code, text) = sendmail(dir.path(), &["a@x"], &big);
    assert_eq!(code, Some(69), "{text}");
    assert!(text.contains("larger than message_size_limit (10240000 bytes)"), "{text}");
    assert_eq!(sendmail(dir.path(), &["a@"], "x\n").0, Some(65));
    let many: Vec<_> = (0..50_001).map(|n| format!("user{n}@x")).collect();
    let (code, text) = sendmail(dir.path(), &["-t"], &format!("To: {}\n\nx\n", many.join(", ")));
    assert_eq!(code, Some(65), "{text}");
    assert_eq!(fs::read_dir(dir.path().join("maildrop")).unwrap().count(), 0, "nothing is left");
    // A large one that is within the limit is as it was.
    let big = "Subject: big\n\n".to_owned() + &"0123456789\n".repeat(300_000);
    assert_eq!(sendmail(dir.path(), &["a@x"], &big), (Some(0), String::new()));
    let body = dropped(dir.path()).remove(0).body;
    assert!(body.ends_with(&b"0123456789\r\n".repeat(300_000)));
    assert!(body.starts_with(b"Received: by h.example (Belfry, from userid "));
}

/// More than 1,000 recipients were queued in part, with exit status 75: who tried again doubled them.
#[test]
fn a_message_is_handed_in_whole_or_not_at_all() {
    for (to, taken, waits) in [(100, 1, 0), (2000, 0, 1)] {
        let dir = instance();
        let listener = UnixListener::bind(dir.path().join("public/submit")).unwrap();
        let to: Vec<_> = (0..to).map(|n| format!("user-with-a-long-name-{n}@x.example")).collect();
        let mut desk = Desk("250 2.0.0 Ok: queued as X");
        let ended = thread::scope(|scope| {
            let server = scope.spawn(|| {
                let (stream, _) = listener.accept().unwrap();
                converse(stream, Server::new(config()), &mut desk, Duration::from_secs(20))
            });
            let input = format!("To: {}\n\nx\n", to.join(", "));
            assert_eq!(sendmail(dir.path(), &["-t"], &input), (Some(0), String::new()));
            server.join().unwrap()
        });
        // The server has a limit of 100, and sees the end of a client that has not handed in a thing.
        assert_eq!(ended == Ending::Closed, taken == 1, "{ended:?}");
        let dropped = dropped(dir.path());
        assert_eq!(dropped.len(), waits);
        assert!(dropped.iter().all(|message| message.recipients.len() == 2000));
    }
}

/// With smtpd's configuration bad each mail waited for a minute: somebody listens and nobody comes.
#[test]
fn without_a_greeting_the_drop_directory_is_used_within_seconds() {
    let dir = instance();
    let _listener = UnixListener::bind(dir.path().join("public/submit")).unwrap();
    let start = Time::now();
    assert_eq!(sendmail(dir.path(), &["a@x"], "x\n"), (Some(0), String::new()));
    assert!(Time::now().since(start) < Duration::from_secs(15));
    let origin = &dropped(dir.path())[0].origin;
    let want = "by maildrop (public/submit: timed out while waiting for the greeting)";
    assert!(origin.ends_with(want), "{origin}");
}

/// 100 MB on standard input took 485 MB of memory.
#[test]
fn a_large_message_is_not_kept_in_memory() {
    let dir = instance();
    let path = dir.path().display();
    let text =
        format!("queue_directory = {path}\nmyhostname = h.example\nmessage_size_limit = 0\n");
    fs::write(dir.path().join("main.cf"), text).unwrap();
    let script = "ulimit -v 60000; { echo 'Subject: x'; echo; yes 0123456789 | head -c 100000000; } \
                  | SENDMAIL a@x";
    assert_eq!(shell(dir.path(), script), (Some(0), String::new()));
    let file = fs::read_dir(dir.path().join("maildrop")).unwrap().next().unwrap().unwrap();
    assert!(file.metadata().unwrap().len() > 100_000_000);
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
