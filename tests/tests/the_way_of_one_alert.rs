//! A message by sendmail and one by SMTP go all the way to a relay that the same master runs.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Stdio;

use belfry_tests::instance::{Instance, account};
use belfry_tests::net::{Client, free_port};
use belfry_tests::relay::Relay;
use belfry_tests::wait;
use delivery_agent::maildrop;
use delivery_agent::wire::{Lane, Submission};

/// Hands a text in by sendmail(1) and tells exit status and standard error.
fn sendmail(instance: &Instance, words: &[&str], text: &str) -> (i32, String) {
    let mut command = instance.command("sendmail");
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("sendmail was built");
    let mut input = child.stdin.take().expect("it is a pipe");
    // It may refuse before it has read all.
    let _ = input.write_all(text.as_bytes());
    drop(input);
    let output = child.wait_with_output().expect("it is our child");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), said)
}

#[test]
fn from_sendmail_and_smtp_to_a_maildir() {
    let mut instance = Instance::new();
    let port = free_port();
    let maildir = instance.queue().join("sink");
    fs::create_dir(&maildir).unwrap();
    let user = account();
    chown(&maildir, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    fs::set_permissions(&maildir, fs::Permissions::from_mode(0o700)).unwrap();
    instance
        .parameter("relayhost", &format!("[127.0.0.1]:{port}"))
        .parameter("sink_maildir", "sink")
        .service(&format!("127.0.0.1:{port} inet n - y - - sinkd"))
        .start();

    let letter = "Subject: by sendmail\n\n.\nHello.\n";
    let (status, said) = sendmail(&instance, &["-i", "-f", "a@x.example", "b@y.example"], letter);
    assert_eq!((status, said.as_str()), (0, ""));
    let mut client = Client::tcp(instance.port).unwrap();
    let text = "Subject: by SMTP\r\n\r\n..dotted\r\n";
    let reply = client.send("a@x.example", &["b@y.example", "c@y.example"], text).unwrap();
    assert_eq!(reply.code, 250, "{}", reply.text);
    assert!(reply.text.contains("queued as "), "{}", reply.text);
    client.say("QUIT").unwrap();

    instance.log().wait_for_count("status=sent", 3);
    let mut arrived: Vec<_> = fs::read_dir(maildir.join("new"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap().replace("\r\n", "\n"))
        .collect();
    arrived.sort_by_key(|text| text.contains("by SMTP"));
    assert_eq!(arrived.len(), 2, "{arrived:#?}");
    assert!(arrived[0].ends_with("\n\n.\nHello.\n"), "{}", arrived[0]);
    assert!(arrived[0].contains("\nSubject: by sendmail\n"), "{}", arrived[0]);
    for field in ["Date: ", "From: ", "Message-ID: ", "Received: "] {
        let here = |text: &String| text.lines().any(|line| line.starts_with(field));
        assert!(arrived.iter().all(here), "{field}: {arrived:#?}");
    }
    assert!(arrived[1].ends_with("\n\n.dotted\n"), "{}", arrived[1]);
    for id in instance.log().lines(": removed") {
        assert!(id.contains("/qmgr["), "{id}");
    }
    let list = instance.command("alertq").arg("list").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&list.stdout), "Mail queue is empty\n");
    instance.finish(&[]);
}

#[test]
fn q11_sendmail_without_a_master_and_delivery_after_the_start() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name());
    instance.write();
    for n in 0..3 {
        let (status, said) =
            sendmail(&instance, &["-i", &format!("u{n}@y.example")], "Subject: early\n\nx\n");
        assert_eq!((status, said.as_str()), (0, ""));
    }
    assert_eq!(fs::read_dir(instance.queue().join("maildrop")).unwrap().count(), 3);
    instance.start();
    wait::until("three messages", wait::LONG, || (relay.taken().len() == 3).then_some(()));
    let mut to: Vec<_> = relay.taken().into_iter().flat_map(|t| t.recipients).collect();
    to.sort();
    assert_eq!(to, ["u0@y.example", "u1@y.example", "u2@y.example"]);
    instance.log().wait_for_count(": removed", 3);
    assert_eq!(fs::read_dir(instance.queue().join("maildrop")).unwrap().count(), 0);
    instance.finish(&[]);
}

/// A file that was dropped while qmgr ran, smtpd being busy, waited for the next wakeup: 300 s.
#[test]
fn q11_a_file_dropped_while_qmgr_runs_is_taken_at_once() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).start();
    // qmgr runs, and its wakeup is over.
    wait::until("qmgr", wait::LONG, || {
        let list = instance.command("alertq").arg("list").output().ok()?;
        list.stdout.starts_with(b"Mail queue is empty").then_some(())
    });
    let drop_directory = instance.queue().join("maildrop");
    for n in 1..=3 {
        let submission = Submission {
            sender: "a@x.example".to_owned(),
            recipients: vec![format!("u{n}@y.example")],
            origin: String::new(),
            lane: Lane::Normal,
            token: String::new(),
            body: b"Subject: x\r\n\r\nx\r\n".to_vec(),
        };
        maildrop::drop_message(&drop_directory, &submission).unwrap();
        instance.log().wait_for_count(": removed", n);
    }
    assert_eq!(relay.taken().len(), 3);
    instance.finish(&[]);
}

#[test]
fn m2_bad_messages_are_refused_with_one_line() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).parameter("message_size_limit", "5000").start();
    let big = format!("Subject: big\n\n{}", "0123456789\n".repeat(1000));
    for (words, text, status) in [
        (&["-i"][..], "Subject: x\n\nx\n", 66),
        (&["-i", "-t"][..], "Subject: x\n\nx\n", 66),
        (&["-bd"][..], "", 64),
        (&["-i", "b@y.example"][..], big.as_str(), 69),
        (&["-i", "b y@"][..], "Subject: x\n\nx\n", 65),
    ] {
        let (got, said) = sendmail(&instance, words, text);
        assert_eq!(got, status, "{words:?}: {said}");
        assert!(said.starts_with("sendmail: fatal: ") && said.lines().count() == 1, "{said}");
    }
    let mut client = Client::tcp(instance.port).unwrap();
    let size = client.say("MAIL FROM:<a@x.example> SIZE=1000000").unwrap();
    assert_eq!(size.code, 552, "{}", size.text);
    let code = |line: &str, client: &mut Client| client.say(line).unwrap().code / 100;
    for line in ["MAIL FROM:a@x", "RCPT TO:<b@y>", "DATA", "SING"] {
        assert_eq!(code(line, &mut client), 5, "{line}");
    }
    client.say("QUIT").unwrap();
    assert_eq!(relay.taken(), []);
    instance.finish(&[]);
}

#[test]
fn m4_a_bare_line_feed_does_not_smuggle_a_message() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).start();
    let mut client = Client::tcp(instance.port).unwrap();
    let smuggled = "MAIL FROM:<evil@x>\r\nRCPT TO:<evil@y>\r\nDATA\r\nSubject: smuggled\r\n";
    let text = format!("Subject: outer\r\n\r\na\n.\n{smuggled}\r\nb\r\n");
    let reply = client.send("a@x.example", &["b@y.example"], &text);
    // Refused, or taken as one message; never as two.
    if reply.is_ok_and(|r| r.code == 250) {
        wait::until("the message", wait::LONG, || (!relay.taken().is_empty()).then_some(()));
    }
    drop(client);
    let mut client = Client::tcp(instance.port).unwrap();
    let reply =
        client.send("a@x.example", &["last@y.example"], "Subject: last\r\n\r\nx\r\n").unwrap();
    assert_eq!(reply.code, 250, "{}", reply.text);
    let last = |t: &belfry_tests::relay::Taken| t.recipients == ["last@y.example"];
    wait::until("the last message", wait::LONG, || relay.taken().iter().any(last).then_some(()));
    assert!(!relay.taken().iter().any(|t| t.sender.contains("evil")), "{:#?}", relay.taken());
    instance.finish(&[]);
}
