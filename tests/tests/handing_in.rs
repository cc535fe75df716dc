//! How mail comes in when clients are idle, hostile, or too many.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use belfry_tests::instance::Instance;
use belfry_tests::net::Client;
use belfry_tests::relay::Relay;
use belfry_tests::wait;
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
