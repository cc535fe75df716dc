//! How mail comes in when clients are idle, hostile, or too many.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use belfry_tests::instance::{Instance, account};
use belfry_tests::net::Client;
use belfry_tests::relay::Relay;
use belfry_tests::wait;
use delivery_agent::maildrop;
use delivery_agent::wire::{Lane, Submission};
use worker_proto::clock::Time;

/// 200 idle connections made a good client wait for 599 s: nobody told a worker that was there before
/// the stress, and each new one had the full time for its idle client.
#[test]
fn a_good_client_is_served_within_seconds_while_every_worker_has_an_idle_one() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).parameter("default_process_limit", "10").start();
    let idle: Vec<_> = (0..30)
        .map(|n| {
            let mut stream = TcpStream::connect(("127.0.0.1", instance.port)).unwrap();
            // Some introduce themselves first.
            if n % 3 == 0 {
                stream.write_all(b"EHLO idle\r\n").unwrap();
            }
            stream
        })
        .collect();
    let start = Time::now();
    let mut client = Client::tcp(instance.port).unwrap();
    let reply = client.send("a@x.example", &["b@y.example"], "Subject: x\r\n\r\nx\r\n").unwrap();
    assert_eq!(reply.code, 250, "{}", reply.text);
    let waited = Time::now().since(start);
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    println!("waited {waited:?}");
    drop((idle, client));
    wait::until("the message", wait::LONG, || (!relay.taken().is_empty()).then_some(()));
    instance.finish(&[]);
}

/// The header lines of an HTTP POST were bad commands, then its body spoke SMTP.
#[test]
fn a_web_page_cannot_hand_in_mail() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).start();
    let mut stream = TcpStream::connect(("127.0.0.1", instance.port)).unwrap();
    let body = "HELO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n\r\nx\r\n.\r\nQUIT\r\n";
    let length = body.len();
    // The server may have closed before all of it is written.
    let _ = write!(stream, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
    instance.log().wait_for("non-SMTP command from smtp 127.0.0.1: POST / HTTP/1.1");
    let mut client = Client::tcp(instance.port).unwrap();
    let reply = client.send("a@x.example", &["last@y.example"], "Subject: x\r\n\r\nx\r\n").unwrap();
    assert_eq!(reply.code, 250, "{}", reply.text);
    wait::until("the message", wait::LONG, || (!relay.taken().is_empty()).then_some(()));
    assert_eq!(relay.taken()[0].recipients, ["last@y.example"]);
    instance.finish(&["non-SMTP command"]);
}

/// A file of 1 GB rolled back every batch at every wakeup: no mail left maildrop any more.
#[test]
fn no_file_in_maildrop_keeps_another_one_waiting() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name());
    instance.write();
    let maildrop = instance.queue().join("maildrop");
    let drop_message = |to: &str| {
        let submission = Submission {
            sender: "a@x.example".to_owned(),
            recipients: vec![to.to_owned()],
            origin: String::new(),
            lane: Lane::Normal,
            token: String::new(),
            body: b"Subject: x\r\n\r\nx\r\n".to_vec(),
        };
        maildrop::drop_message(&maildrop, &submission).unwrap();
        fs::read_dir(&maildrop).unwrap().for_each(|entry| {
            let path = entry.unwrap().path();
            let _ = chown(&path, Some(account().uid.as_raw()), Some(account().gid.as_raw()));
        });
    };
    let name = |n: &str| maildrop.join(format!("new.{n}"));
    File::create(name("sparse")).unwrap().set_len(1 << 30).unwrap();
    fs::write(name(&"x".repeat(251)), "long name").unwrap();
    fs::write(name("unreadable"), "secret").unwrap();
    fs::set_permissions(name("unreadable"), fs::Permissions::from_mode(0o000)).unwrap();
    nix::unistd::mkfifo(&name("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    drop_message("good@y.example");
    drop_message("\"a\"@b> X=Y");
    drop_message("last@y.example");
    instance.start();
    wait::until("two messages", wait::LONG, || (relay.taken().len() == 2).then_some(()));
    instance.log().wait_for_count("moved to corrupt/", 5);
    assert_eq!(fs::read_dir(maildrop.join("corrupt")).unwrap().count(), 5);
    instance.log().wait_for_count(": removed", 2);
    assert_eq!(fs::read_dir(&maildrop).unwrap().count(), 1, "the directory corrupt alone");
    instance.finish(&["moved to corrupt/"]);
}
