//! Relays that fail, in every way a test can have them fail, and recipients that are refused.

use belfry_tests::instance::Instance;
use belfry_tests::net::{Client, TEXT, free_port, submit};
use belfry_tests::relay::{Act, Relay};
use belfry_tests::wait;

/// Waits for this many messages, and makes sure each recipient has one.
fn all_once(relay: &Relay, count: usize) {
    wait::until("all messages", wait::LONG, || (relay.taken().len() >= count).then_some(()));
    let mut to: Vec<_> = relay.taken().into_iter().flat_map(|t| t.recipients).collect();
    to.sort();
    let mut wanted: Vec<_> = (0..count).map(|n| format!("u{n}@y.example")).collect();
    wanted.sort();
    assert_eq!(to, wanted);
}

/// Ten messages with a first relay that does this; the second takes all of them, once.
fn second_takes_over(first: &str, second: &Relay) {
    let mut instance = Instance::new();
    instance.parameter("relayhost", &format!("{first}, {}", second.name())).start();
    submit(instance.port, 0..10);
    all_once(second, 10);
    instance.log().wait_for_count(": removed", 10);
    instance.log().wait_for(&format!("relay {first} is down: "));
    // Told once a change, not once a message.
    assert_eq!(instance.log().count(" is down: "), 1);
    instance.finish(&[" is down: "]);
}

#[test]
fn s1_a_relay_that_refuses_connections() {
    second_takes_over(&format!("[127.0.0.1]:{}", free_port()), &Relay::kind());
}

#[test]
fn s1_a_relay_that_hangs_up() {
    let bad = Relay::scripted(|_| Act::Hang);
    second_takes_over(&bad.name(), &Relay::kind());
}

#[test]
fn s1_a_relay_that_greets_with_554() {
    let bad = Relay::scripted(|line| match line {
        "" => Act::Reply("554 5.7.1 not you".to_owned()),
        _ => Act::Usual,
    });
    second_takes_over(&bad.name(), &Relay::kind());
}

#[test]
fn s1_a_relay_that_closes_at_mail_with_421() {
    let bad = Relay::scripted(|line| match line.get(..4) {
        Some("MAIL") => Act::Reply("421 4.3.2 closing".to_owned()),
        _ => Act::Usual,
    });
    second_takes_over(&bad.name(), &Relay::kind());
    assert_eq!(bad.taken(), []);
}

#[test]
fn r6_one_refused_recipient_of_three() {
    let relay = Relay::scripted(|line| {
        if line.starts_with("RCPT") && line.contains("u1@") {
            Act::Reply("550 5.1.1 nobody here".to_owned())
        } else {
            Act::Usual
        }
    });
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).start();
    let mut client = Client::tcp(instance.port).unwrap();
    let to = ["u0@y.example", "u1@y.example", "u2@y.example"];
    let reply = client.send("a@x.example", &to, TEXT).unwrap();
    assert_eq!(reply.code, 250, "{}", reply.text);
    let id = reply.text.rsplit(' ').next().unwrap().to_owned();
    instance.log().wait_for(&format!("{id}: removed"));
    assert_eq!(relay.taken().len(), 1);
    assert_eq!(relay.taken()[0].recipients, ["u0@y.example", "u2@y.example"]);
    let refused = instance.log().wait_for("to=<u1@y.example>");
    assert!(refused.contains("(550 5.1.1 nobody here)"), "{refused}");
    assert!(!refused.contains("status=sent"), "{refused}");
    assert_eq!(instance.log().count("status=sent"), 2);
    instance.finish(&[]);
}

#[test]
fn r3_a_message_that_is_put_off_is_tried_again() {
    let relay = {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let attempts = AtomicUsize::new(0);
        Relay::scripted(move |line| {
            let first = line.starts_with("RCPT") && attempts.fetch_add(1, Ordering::SeqCst) == 0;
            if first { Act::Reply("451 4.7.1 greylisted".to_owned()) } else { Act::Usual }
        })
    };
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).parameter("minimal_backoff_time", "1s").start();
    submit(instance.port, 0..1);
    let line = instance.log().wait_for("status=deferred");
    assert!(line.contains("(451 4.7.1 greylisted)"), "{line}");
    all_once(&relay, 1);
    instance.log().wait_for(": removed");
    instance.finish(&[]);
}

#[test]
fn r2_the_backlog_drains_when_the_only_relay_returns() {
    let port = free_port();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &format!("[127.0.0.1]:{port}")).start();
    submit(instance.port, 0..30);
    instance.log().wait_for(" is down: ");
    let list = instance.command("alertq").args(["list", "--json"]).output().unwrap();
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert_eq!(list.lines().count(), 30, "{list}");
    for line in list.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(object["sender"], "a@x.example");
        assert_eq!(object["recipients"][0]["state"], "queued");
    }
    let relays = instance.command("alertq").arg("relays").output().unwrap();
    let relays = String::from_utf8_lossy(&relays.stdout).into_owned();
    assert!(relays.contains("down") && relays.contains(&port.to_string()), "{relays}");
    let text = instance.command("alertq").arg("list").output().unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.trim_end().ends_with(" in 30 Requests."), "{text}");

    let relay = Relay::on(port);
    all_once(&relay, 30);
    instance.log().wait_for_count(": removed", 30);
    instance.log().wait_for(" is up again");
    instance.finish(&[" is down: "]);
}

#[test]
fn s2_a_backlog_goes_in_few_sessions() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance
        .parameter("relayhost", &relay.name())
        .parameter("default_destination_concurrency_limit", "2")
        .parameter("initial_destination_concurrency", "2")
        .start();
    submit(instance.port, 0..200);
    all_once(&relay, 200);
    instance.log().wait_for_count(": removed", 200);
    let sessions = relay.sessions();
    assert!(sessions < 100, "{sessions} sessions for 200 messages");
    instance.finish(&[]);
}
