//! Relays that let messages wait, take them without an answer, or refuse them, with another one idle.

use std::time::Duration;

use belfry_tests::instance::Instance;
use belfry_tests::net::{Client, TEXT, submit};
use belfry_tests::relay::{Act, Relay};
use belfry_tests::wait;
use worker_proto::clock::Time;

fn recipients(relay: &Relay) -> Vec<String> {
    let mut to: Vec<_> = relay.taken().into_iter().flat_map(|t| t.recipients).collect();
    to.sort();
    to
}

fn all(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("u{n}@y.example")).collect()
}

fn wait_for(relay: &Relay, count: usize) {
    wait::until("the messages", wait::LONG, || (relay.taken().len() >= count).then_some(()));
}

fn at_stage(stage: &'static str, act: Act) -> impl Fn(&str) -> Act + Send + Sync + 'static {
    move |line| {
        let here = match stage {
            "" | "." => line == stage,
            _ => line.starts_with(stage),
        };
        if here { act.clone() } else { Act::Usual }
    }
}

/// Ten messages for two relays, of which the first says nothing at this stage.
fn ten_behind_a_mute_relay(stage: &'static str) -> (Relay, Relay, Instance) {
    let (mute, good) = (Relay::scripted(at_stage(stage, Act::Mute)), Relay::kind());
    let mut instance = Instance::new();
    instance
        .parameter("relayhost", &format!("{}, {}", mute.name(), good.name()))
        .parameter("initial_destination_concurrency", "2")
        .parameter("relay_stall_time", "1s")
        .start();
    submit(instance.port, 0..10);
    (mute, good, instance)
}

/// The first relay says nothing at this stage, and no message waits for it longer than a while. Those
/// that it got waited for the whole deadline, while the second one worked.
fn none_waits(stage: &'static str, words: &str) {
    let (mute, good, instance) = ten_behind_a_mute_relay(stage);
    wait_for(&good, 10);
    let down = format!("relay {} is down: timed out while waiting for {words}", mute.name());
    instance.log().wait_for(&down);
    drop(mute);
    instance.finish_with(&[" is down: "], &[]);
}

/// Two messages are with the first relay, which says nothing; the others are sent by the second.
fn others_do_not_wait(stage: &'static str, words: &str) {
    let (mute, good, instance) = ten_behind_a_mute_relay(stage);
    wait_for(&good, 8);
    let relays = instance.command("alertq").arg("relays").output().expect("alertq runs");
    let relays = String::from_utf8_lossy(&relays.stdout).into_owned();
    assert!(relays.contains(&format!("slow, waiting for {words}")), "{relays}");
    assert!(mute.sessions() <= 2, "{} sessions", mute.sessions());
    // Whatever is left ends when the relay does.
    drop(mute);
    instance.finish_with(&[" is slow: "], &[" is down: "]);
}

#[test]
fn s17_a_relay_that_is_mute_at_its_greeting() {
    none_waits("", "the greeting");
}

#[test]
fn s17_a_relay_that_is_mute_at_mail() {
    none_waits("MAIL", "the answer to MAIL");
}

#[test]
fn s17_a_relay_that_is_mute_at_data() {
    none_waits("DATA", "the answer to DATA");
}

#[test]
fn s17_a_relay_that_is_mute_at_the_dot() {
    others_do_not_wait(".", "the answer to the end of data");
}

/// It got a copy of every message each two minutes, and the second relay none.
#[test]
fn s5_a_relay_that_takes_mail_and_closes_without_an_answer() {
    let (bad, good) = (Relay::scripted(at_stage(".", Act::Swallow)), Relay::kind());
    let mut instance = Instance::new();
    instance
        .parameter("relayhost", &format!("{}, {}", bad.name(), good.name()))
        .parameter("initial_destination_concurrency", "2")
        .start();
    submit(instance.port, 0..20);
    instance.log().wait_for(&format!("relay {} is down: ", bad.name()));
    wait_for(&good, 14);
    let (mut got, swallowed) = (recipients(&good), recipients(&bad));
    got.extend(swallowed.clone());
    got.sort();
    got.dedup();
    // Those that may have arrived wait; each was sent once so far.
    wait::until("the rest", wait::LONG, || {
        (good.taken().len() + recipients(&bad).len() >= 20).then_some(())
    });
    assert!(swallowed.len() <= 6, "{swallowed:?}");
    assert!(swallowed.windows(2).all(|w| w[0] != w[1]), "{swallowed:?}");
    instance.finish_with(&[" is down: "], &[]);
}

/// A refusal by the first relay deferred or ended the message with the second idle.
fn second_is_asked(stage: &'static str, reply: &str, word: &str) {
    let bad = Relay::scripted(at_stage(stage, Act::Reply(reply.to_owned())));
    let good = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &format!("{}, {}", bad.name(), good.name())).start();
    submit(instance.port, 0..10);
    wait_for(&good, 10);
    assert_eq!(recipients(&good), all(10));
    instance.log().wait_for_count(": removed", 10);
    instance.log().wait_for(&format!("status={word} ({reply})"));
    instance.finish(&[]);
}

#[test]
fn s1_r5_a_5xx_of_the_first_relay() {
    second_is_asked("MAIL", "550 5.7.1 not from you", "refused");
}

#[test]
fn s1_r3_a_4xx_of_the_first_relay() {
    second_is_asked("RCPT", "450 4.7.1 greylisted", "deferred");
}

#[test]
fn r5_a_recipient_that_both_relays_refuse_has_bounced() {
    let refuse = || Relay::scripted(at_stage("RCPT", Act::Reply("550 5.1.1 no".to_owned())));
    let (a, b) = (refuse(), refuse());
    let mut instance = Instance::new();
    instance.parameter("relayhost", &format!("{}, {}", a.name(), b.name())).start();
    submit(instance.port, 0..1);
    let line = instance.log().wait_for("status=bounced");
    assert!(line.contains(&a.name()) && line.contains(&b.name()), "{line}");
    instance.log().wait_for(": removed");
    instance.finish(&[]);
}

/// What had failed was in no list, and requeue did not know it.
#[test]
fn r5_what_has_failed_is_listed_and_can_be_sent_again() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let refuses = Arc::new(AtomicBool::new(true));
    let relay = Relay::scripted({
        let refuses = Arc::clone(&refuses);
        move |line| {
            let bad = line.starts_with("RCPT") && line.contains("u1@");
            if bad && refuses.load(Ordering::SeqCst) {
                Act::Reply("550 5.1.1 nobody".to_owned())
            } else {
                Act::Usual
            }
        }
    });
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).start();
    let mut client = Client::tcp(instance.port).expect("smtpd serves");
    let reply = client.send("a@x.example", &["u0@y.example", "u1@y.example"], TEXT);
    let text = reply.expect("smtpd answers").text;
    let id = text.rsplit(' ').next().expect("an id").to_owned();
    instance.log().wait_for(": removed");
    let alertq = |words: &[&str]| {
        let output = instance.command("alertq").args(words).output().expect("alertq runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let (code, list) = alertq(&["list", "--failed"]);
    assert_eq!(code, Some(0), "{list}");
    assert!(list.contains(&id) && list.contains("(550 5.1.1 nobody)"), "{list}");
    assert!(!list.contains("u0@"), "{list}");
    refuses.store(false, Ordering::SeqCst);
    assert_eq!(alertq(&["requeue", &id]), (Some(0), String::new()));
    wait_for(&relay, 2);
    assert_eq!(recipients(&relay), all(2), "nobody has it twice");
    assert_eq!(relay.taken()[0].text, relay.taken()[1].text);
    instance.log().wait_for_count(": removed", 2);
    wait::until("an empty list", wait::LONG, || {
        alertq(&["list", "--failed"]).1.contains("-- 0 failed").then_some(())
    });
    instance.finish(&[]);
}

/// 13,404 connections in five seconds.
#[test]
fn r1_a_relay_that_answers_ehlo_and_closes_in_one_segment() {
    let text = "250-relay\r\n250 8BITMIME\r\n421 4.3.2 too busy";
    let bad = Relay::scripted(at_stage("EHLO", Act::Reply(text.to_owned())));
    let mut instance = Instance::new();
    instance.parameter("relayhost", &bad.name()).start();
    submit(instance.port, 0..10);
    instance.log().wait_for(" is down: 421 4.3.2 too busy");
    // The rate is what is measured here.
    let begin = Time::now();
    wait::until("three seconds", wait::LONG, || {
        (Time::now().since(begin) > Duration::from_secs(3)).then_some(())
    });
    assert!(bad.sessions() <= 8, "{} sessions", bad.sessions());
    instance.finish(&[" is down: "]);
}

/// The relay was down for the sake of one message, which was each probe as well.
#[test]
fn r6_a_relay_that_wants_a_login_for_one_recipient() {
    for reply in ["530 5.7.0 log in first", "421 4.3.2 closing"] {
        let bad = Relay::scripted(move |line| {
            let odd = line.starts_with("RCPT") && line.contains("<u0@");
            if odd { Act::Reply(reply.to_owned()) } else { Act::Usual }
        });
        let mut instance = Instance::new();
        instance.parameter("relayhost", &bad.name()).start();
        submit(instance.port, 0..10);
        wait_for(&bad, 9);
        assert_eq!(recipients(&bad), all(10)[1..]);
        assert_eq!(instance.log().count(" is down: "), 0);
        instance.finish(&[]);
    }
}

/// A relay that takes two recipients at a time got the rest half a minute and more later.
#[test]
fn s7_recipients_that_were_too_many_follow_at_once() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let count = AtomicUsize::new(0);
    let relay = Relay::scripted(move |line| match line.get(..4) {
        Some("MAIL") => {
            count.store(0, Ordering::SeqCst);
            Act::Usual
        }
        Some("RCPT") if count.fetch_add(1, Ordering::SeqCst) >= 2 => {
            Act::Reply("452 4.5.3 too many recipients".to_owned())
        }
        _ => Act::Usual,
    });
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).start();
    let mut client = Client::tcp(instance.port).unwrap();
    let to = all(7);
    let to: Vec<_> = to.iter().map(String::as_str).collect();
    let reply = client.send("a@x.example", &to, TEXT).unwrap();
    assert_eq!(reply.code, 250, "{}", reply.text);
    instance.log().wait_for(": removed");
    assert_eq!(recipients(&relay), all(7));
    assert_eq!(relay.sessions(), 1);
    instance.finish(&[]);
}

/// With all relays down and a message under way qmgr turned at full speed.
#[test]
fn r1_qmgr_rests_while_every_relay_is_down() {
    let mute = Relay::scripted(at_stage("", Act::Mute));
    let busy = Relay::scripted(at_stage("", Act::Reply("421 4.3.2 too busy".to_owned())));
    let none = format!("[127.0.0.1]:{}", belfry_tests::net::free_port());
    let mut instance = Instance::new();
    instance
        .parameter("relayhost", &format!("{none}, {}, {}", busy.name(), mute.name()))
        .parameter("relay_stall_time", "1s")
        .start();
    submit(instance.port, 0..10);
    instance.log().wait_for(&format!("relay {none} is down: "));
    instance.log().wait_for(&format!("relay {} is down: 421", busy.name()));
    instance.log().wait_for(&format!("relay {} is slow: ", mute.name()));
    let pid = instance.workers("qmgr").remove(0).pid;
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("qmgr runs");
        let fields: Vec<_> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        fields[11..13].iter().filter_map(|f| f.parse::<u64>().ok()).sum::<u64>()
    };
    // What is used in some seconds is what is measured.
    let (begin, before) = (Time::now(), ticks());
    wait::until("six seconds", wait::LONG, || {
        (Time::now().since(begin) > Duration::from_secs(6)).then_some(())
    });
    let used = ticks() - before;
    assert!(used < 60, "{used} hundredths of a second of processor time in six seconds");
    assert!(busy.sessions() < 12, "{} sessions", busy.sessions());
    // What waits for it ends with it.
    drop(mute);
    instance.finish_with(&[" is down: ", " is slow: "], &[]);
}
