//! Debian's smtp-source hands in, Debian's smtp-sink receives; in between things are killed.

use std::collections::BTreeSet;
use std::time::Duration;

use belfry_tests::instance::Instance;
use belfry_tests::net::Client;
use belfry_tests::smtp_sink::{SmtpSink, smtp_source};
use belfry_tests::wait;
use nix::sys::signal::Signal;

const MESSAGES: usize = 1000;
/// How long a thousand messages may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn hand_in(instance: &Instance) {
    let output = smtp_source(instance.port, MESSAGES);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "smtp-source: {said}");
}

fn relayed(instance: &mut Instance) -> SmtpSink {
    let sink = SmtpSink::start();
    instance.parameter("relayhost", &sink.name());
    sink
}

/// Kills one worker of a program.
fn kill_one(instance: &Instance, program: &str) -> bool {
    let workers = instance.workers(program);
    let Some(worker) = workers.first() else { return false };
    worker.signal(Signal::SIGKILL);
    true
}

/// Waits until this many messages were received, then until the queue is empty.
fn drained(instance: &Instance) {
    let empty = || {
        let output = instance.command("alertq").arg("list").output().ok()?;
        (output.stdout == b"Mail queue is empty\n").then_some(())
    };
    wait::until("the queue to become empty", PATIENCE, empty);
}

#[test]
#[cfg_attr(not(peer_postfix), ignore = "Debian's postfix is not installed")]
fn a_thousand_messages_arrive_once_each() {
    let mut instance = Instance::new();
    let sink = relayed(&mut instance);
    instance.start();
    hand_in(&instance);
    drained(&instance);
    let recipients = sink.recipients();
    let distinct: BTreeSet<_> = recipients.iter().collect();
    assert_eq!((recipients.len(), distinct.len()), (MESSAGES, MESSAGES));
    assert_eq!(instance.log().count("status=sent"), MESSAGES);
    instance.finish(&[]);
}

#[test]
#[cfg_attr(not(peer_postfix), ignore = "Debian's postfix is not installed")]
fn w22_upgrades_while_mail_goes_through_lose_and_double_nothing() {
    let mut instance = Instance::new();
    let sink = relayed(&mut instance);
    instance.start();
    let pid = instance.master_pid();
    let mut upgrades = 0;
    std::thread::scope(|scope| {
        let source = scope.spawn(|| hand_in(&instance));
        while !source.is_finished() {
            let upgrade = instance.belfry(&["upgrade"]);
            assert!(upgrade.status.success(), "{upgrade:?}");
            upgrades += 1;
        }
    });
    assert!(upgrades > 0 && instance.master_pid() == pid);
    drained(&instance);
    let recipients = sink.recipients();
    let distinct: BTreeSet<_> = recipients.iter().collect();
    assert_eq!((recipients.len(), distinct.len()), (MESSAGES, MESSAGES), "{upgrades} upgrades");
    instance.finish(&[]);
}

#[test]
#[cfg_attr(not(peer_postfix), ignore = "Debian's postfix is not installed")]
fn q05_kill_9_of_qmgr_and_agents_loses_nothing() {
    let mut instance = Instance::new();
    let sink = relayed(&mut instance);
    instance.start();
    sink.pause(true);
    hand_in(&instance);
    sink.pause(false);
    let mut in_flight = 0;
    for (at, program) in
        [(100, "delivery-agent"), (300, "qmgr"), (500, "delivery-agent"), (700, "qmgr")]
    {
        wait::until("the drain", PATIENCE, || (sink.count() >= at).then_some(()));
        let agents = instance.workers("delivery-agent").len();
        if kill_one(&instance, program) {
            in_flight += if program == "qmgr" { agents } else { 1 };
        }
    }
    drained(&instance);
    let recipients = sink.recipients();
    let distinct: BTreeSet<_> = recipients.iter().collect();
    assert_eq!(distinct.len(), MESSAGES, "{} messages are lost", MESSAGES - distinct.len());
    let repeats = recipients.len() - distinct.len();
    assert!(repeats <= in_flight, "{repeats} repeats with {in_flight} agents in flight");
    // What else is said depends on what they were doing.
    let possible =
        ["delivery agent terminated abnormally", "connection of qmgr", "throttling", "is down"];
    instance.finish_with(&["killed by signal 9"], &possible);
}

#[test]
#[cfg_attr(not(peer_postfix), ignore = "Debian's postfix is not installed")]
fn q04_what_was_acknowledged_survives_kill_9_of_qmgr_while_it_comes_in() {
    let mut instance = Instance::new();
    let sink = relayed(&mut instance);
    instance.start();
    let mut clients: Vec<_> = (0..10).map(|_| None).collect();
    let mut taken = BTreeSet::new();
    for n in 0..400 {
        if n % 100 == 50 {
            wait::until("qmgr", PATIENCE, || kill_one(&instance, "qmgr").then_some(()));
        }
        let to = format!("n{n}@y.example");
        // A refusal for now is right while qmgr is away; it is tried again.
        wait::until("smtpd to take it", PATIENCE, || {
            let slot = &mut clients[n % 10];
            let mut client = slot.take().or_else(|| Client::tcp(instance.port).ok())?;
            let reply = client.send("a@x.example", &[&to], "Subject: x\r\n\r\nx\r\n").ok()?;
            if reply.code == 421 {
                return None;
            }
            *slot = Some(client);
            assert!(reply.code == 250 || reply.code / 100 == 4, "{reply:?}");
            (reply.code == 250).then(|| taken.insert(to.clone()))
        });
    }
    drop(clients);
    drained(&instance);
    let arrived: BTreeSet<_> = sink.recipients().into_iter().collect();
    assert_eq!(taken.difference(&arrived).collect::<Vec<_>>(), [] as [&String; 0], "lost");
    assert_eq!(arrived.len(), 400);
    let possible =
        ["delivery agent terminated abnormally", "connection of qmgr", "throttling", "offer to"];
    instance.finish_with(&["killed by signal 9"], &possible);
}
