//! What happens to mail under way when a process of the mail system goes: told to end, stopped, or
//! killed. Nothing is lost; it is out again soon; and it is not sent twice where somebody lives who
//! knows that it was sent (Q5, Q6).

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use belfry_tests::instance::{Instance, account};
use belfry_tests::net::Client;
use belfry_tests::process::Process;
use belfry_tests::relay::{Act, Relay};
use belfry_tests::wait;
use nix::sys::signal::Signal;
use worker_proto::clock::Time;

fn submit(instance: &Instance, to: &str) {
    let mut client = Client::tcp(instance.port).expect("smtpd serves");
    let reply = client.send("a@x.example", &[to], "Subject: x\r\n\r\nx\r\n").expect("it answers");
    assert_eq!(reply.code, 250, "{}", reply.text);
    let _ = client.say("QUIT");
}

fn recipients(relay: &Relay) -> Vec<String> {
    let mut to: Vec<_> = relay.taken().into_iter().flat_map(|t| t.recipients).collect();
    to.sort();
    to
}

/// A relay whose first answer to the end of a message does not come before the gate is opened.
struct Gate {
    relay: Relay,
    dots: Arc<AtomicUsize>,
    open: Arc<AtomicBool>,
}

impl Gate {
    fn new() -> Self {
        let (dots, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, is_open) = (Arc::clone(&dots), Arc::clone(&open));
        let relay = Relay::scripted(move |line| {
            if line == "." && count.fetch_add(1, Ordering::SeqCst) == 0 {
                let _ = wait::within(wait::LONG, || is_open.load(Ordering::SeqCst).then_some(()));
            }
            Act::Usual
        });
        Self { relay, dots, open }
    }

    /// An instance with one message that waits for the answer to its end.
    fn instance(&self) -> Instance {
        let mut instance = Instance::new();
        instance.parameter("relayhost", &self.relay.name()).start();
        submit(&instance, "slow@y.example");
        wait::until("the dot", wait::LONG, || {
            (self.dots.load(Ordering::SeqCst) == 1).then_some(())
        });
        instance
    }

    /// Another message goes out meanwhile; then the gate is opened, and both are there once.
    fn check(&self, instance: &Instance) {
        submit(instance, "fast@y.example");
        instance.log().wait_for("to=<fast@y.example>");
        self.open.store(true, Ordering::SeqCst);
        instance.log().wait_for_count(": removed", 2);
        assert_eq!(recipients(&self.relay), ["fast@y.example", "slow@y.example"]);
        assert_eq!(self.dots.load(Ordering::SeqCst), 2, "nothing was sent again");
    }
}

/// The message got a second copy: the retired qmgr waited for a minute, the agent cut the connection
/// when it ended.
#[test]
fn q06_a_message_at_the_dot_is_not_repeated_when_qmgr_is_retired() {
    let gate = Gate::new();
    let instance = gate.instance();
    for round in 1..=3 {
        assert!(instance.belfry(&["reload"]).status.success());
        instance.log().wait_for_count("delivery continues in an agent of the previous qmgr", round);
    }
    gate.check(&instance);
    instance.finish(&[]);
}

#[test]
fn q06_a_message_at_the_dot_is_not_repeated_when_qmgr_is_killed() {
    let gate = Gate::new();
    let instance = gate.instance();
    for round in 1..=3 {
        let qmgr = instance.workers("qmgr");
        qmgr.iter().for_each(|p| p.signal(Signal::SIGKILL));
        instance.log().wait_for_count("delivery continues in an agent of the previous qmgr", round);
    }
    gate.check(&instance);
    instance.finish_with(&["killed by signal 9"], &["bad command startup"]);
}

/// qmgr ends when its master has gone; the agent goes on, and finds the qmgr of the next master.
#[test]
fn q06_a_message_at_the_dot_is_not_repeated_when_the_master_is_killed() {
    let gate = Gate::new();
    let mut instance = gate.instance();
    let agents = instance.workers("delivery-agent");
    let master = Process::read(instance.master_pid()).expect("it runs");
    master.signal(Signal::SIGKILL);
    wait::until("its end", wait::LONG, || {
        Process::read(master.pid).is_none_or(|p| p.zombie()).then_some(())
    });
    instance.start();
    instance.log().wait_for("delivery continues in an agent of the previous qmgr");
    gate.check(&instance);
    // It is nobody's child any more.
    wait::until("the old agent's end", wait::LONG, || {
        agents.iter().all(|a| Process::read(a.pid).is_none_or(|p| p.zombie())).then_some(())
    });
    instance.finish(&[]);
}

/// An agent that dies together with its qmgr tells nobody: its message goes out again after a moment.
#[test]
fn q06_a_message_whose_agent_and_qmgr_are_killed_goes_out_again() {
    let gate = Gate::new();
    let instance = gate.instance();
    let both = [instance.workers("qmgr"), instance.workers("delivery-agent")].concat();
    both.iter().for_each(|p| p.signal(Signal::SIGKILL));
    instance.log().wait_for("delivery agent terminated abnormally");
    instance.log().wait_for(": removed");
    gate.open.store(true, Ordering::SeqCst);
    instance.finish_with(
        &["killed by signal 9", "delivery agent terminated abnormally"],
        &["bad command startup", "offer to private/qmgr"],
    );
}

/// The retired qmgr accepted the wakeup of the reload and ended with it: no qmgr for 300 s in half of
/// all reloads with mail in flight and mail behind it.
#[test]
fn q01_after_a_reload_mail_is_out_at_once() {
    const ROUNDS: usize = 25;
    const MESSAGES: usize = 8;
    let relay = Relay::scripted(|line| {
        if line == "." {
            thread::sleep(Duration::from_millis(20));
        }
        Act::Usual
    });
    let mut instance = Instance::new();
    instance
        .parameter("relayhost", &relay.name())
        .parameter("initial_destination_concurrency", "1")
        .parameter("default_destination_concurrency_limit", "1")
        .start();
    let mut slowest = Duration::ZERO;
    for round in 0..ROUNDS {
        for n in 0..MESSAGES {
            submit(&instance, &format!("u{round}-{n}@y.example"));
        }
        let begin = Time::now();
        assert!(instance.belfry(&["reload"]).status.success());
        instance.log().wait_for_count(": removed", (round + 1) * MESSAGES);
        slowest = slowest.max(Time::now().since(begin));
    }
    assert_eq!(relay.taken().len(), ROUNDS * MESSAGES, "nothing was sent twice");
    // Two seconds on a machine with nothing else to do.
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    instance.finish(&[]);
}

/// A stop ended agents at once: each message in flight was sent again after the next start.
#[test]
fn q06_a_stop_in_the_middle_of_a_drain_repeats_nothing() {
    const MESSAGES: usize = 120;
    let relay = Relay::scripted(|line| {
        if line == "." {
            thread::sleep(Duration::from_millis(30));
        }
        Act::Usual
    });
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).parameter("stop_kill_time", "30s").start();
    for n in 0..MESSAGES {
        submit(&instance, &format!("u{n}@y.example"));
        if n % 40 == 39 {
            wait::until("some of them", wait::LONG, || {
                (relay.taken().len() > n - 20).then_some(())
            });
            instance.stop().start();
        }
    }
    instance.log().wait_for_count(": removed", MESSAGES);
    assert_eq!(relay.taken().len(), MESSAGES);
    assert_eq!(recipients(&relay).into_iter().collect::<BTreeSet<_>>().len(), MESSAGES);
    instance.finish(&[]);
}

/// The store fails when the outcome of a delivery is written, and qmgr goes before it can be written:
/// the next one would have sent the message again.
#[test]
fn q08_after_a_failure_of_the_store_the_next_qmgr_is_told_what_was_sent() {
    let attempts = AtomicUsize::new(0);
    let relay = Relay::scripted(move |line| {
        let first = line.starts_with("RCPT") && attempts.fetch_add(1, Ordering::SeqCst) == 0;
        if first { Act::Reply("451 4.7.1 greylisted".to_owned()) } else { Act::Usual }
    });
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).parameter("minimal_backoff_time", "3s").start();
    submit(&instance, "u@y.example");
    instance.log().wait_for("status=deferred");
    // From now on this qmgr can write nothing, not even to its log.
    let qmgr = instance.workers("qmgr").remove(0).pid;
    let mut limit = Command::new("prlimit");
    limit.args(["--pid", &qmgr.to_string(), "--fsize=1:1"]);
    limit.uid(account().uid.as_raw()).gid(account().gid.as_raw());
    let output = limit.output().expect("prlimit is there");
    assert!(output.status.success(), "{output:?}");
    wait::until("the delivery", wait::LONG, || (relay.taken().len() == 1).then_some(()));
    let process = Process::read(qmgr).expect("it waits for its store");
    process.signal(Signal::SIGKILL);
    instance.log().wait_for("delivery continues in an agent of the previous qmgr");
    instance.log().wait_for("status=sent");
    instance.log().wait_for(": removed");
    assert_eq!(relay.taken().len(), 1, "it was not sent again");
    instance.finish_with(&["killed by signal 9"], &["bad command startup"]);
}

/// Kills processes of a program while mail comes in and goes out over two relays, and tells how often
/// a message was repeated. Every message that was acknowledged arrives.
fn repeats(program: &str, kills: usize) -> usize {
    const MESSAGES: usize = 400;
    let slow = |line: &str| {
        if line == "." {
            thread::sleep(Duration::from_millis(10));
        }
        Act::Usual
    };
    // The first relay takes no more than one recipient in three: the others go to the second.
    let first = Relay::scripted(move |line| match line.strip_prefix("RCPT TO:<") {
        Some(to) if !to.contains("0@") => Act::Reply("421 4.3.2 go elsewhere".to_owned()),
        _ => slow(line),
    });
    let second = Relay::scripted(slow);
    let mut instance = Instance::new();
    instance.parameter("relayhost", &format!("{}, {}", first.name(), second.name())).start();
    let arrived = || {
        let mut copies = BTreeMap::<String, usize>::new();
        for to in [recipients(&first), recipients(&second)].concat() {
            *copies.entry(to).or_default() += 1;
        }
        copies
    };
    let mut acknowledged = BTreeSet::new();
    let mut killed = 0;
    let mut kill = |instance: &Instance, due: usize| {
        if killed < due
            && let Some(process) = instance.workers(program).first()
        {
            process.signal(Signal::SIGKILL);
            killed += 1;
        }
    };
    for n in 0..MESSAGES {
        // Each attempt is a message of its own: what was not acknowledged may have been queued.
        let to = format!("u{n}@y.example");
        let text = "Subject: x\r\n\r\nx\r\n";
        let sent = Client::tcp(instance.port).and_then(|mut c| c.send("a@x.example", &[&to], text));
        if sent.is_ok_and(|reply| reply.code == 250) {
            acknowledged.insert(to);
        }
        kill(&instance, n * kills / MESSAGES);
    }
    assert!(acknowledged.len() > MESSAGES / 2, "{}", acknowledged.len());
    wait::until("every message", 2 * wait::LONG, || {
        let copies = arrived();
        acknowledged.iter().all(|to| copies.contains_key(to)).then_some(())
    });
    // A message on which three agents were killed is held (Q7).
    wait::until("an empty queue", 2 * wait::LONG, || {
        let list = instance.command("alertq").args(["list", "--json"]).output().ok()?;
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        list.lines().all(|line| line.contains("\"state\":\"held\"")).then_some(())
    });
    let repeats = arrived().values().map(|copies| copies - 1).sum();
    let possible = [
        "killed by signal 9",
        "bad command startup",
        "delivery agent terminated abnormally",
        "delivery agents died on it",
        "offer to private/qmgr",
        " is down: ",
    ];
    instance.finish_with(&["killed by signal 9"], &possible);
    repeats
}

#[test]
fn q05_qmgr_is_killed_while_draining() {
    assert_eq!(repeats("qmgr", 12), 0, "its agents have lived, and told the next one");
}

#[test]
fn q05_agents_are_killed_while_draining() {
    let repeats = repeats("delivery-agent", 25);
    assert!(repeats <= 25, "{repeats} repeats, and each of 25 agents had one message at most");
}

#[test]
fn q05_smtpds_are_killed_while_draining() {
    assert_eq!(repeats("smtpd", 25), 0);
}
