use super::*;
use crate::retry::MessageRule;
use proptest::prelude::*;
use std::time::Duration;

fn at(seconds: u64) -> Time {
    Time::from_start(Duration::from_secs(seconds))
}

fn limits() -> Limits {
    Limits {
        agents: 20,
        first_agents: 5,
        message: MessageRule { least: Duration::from_secs(30), most: Duration::from_secs(1800) },
        lifetime: Duration::from_secs(4 * 86_400),
    }
}

fn queue(messages: i64, relays: &[&str]) -> Queue {
    let relays: Vec<_> = relays.iter().map(|&r| r.to_owned()).collect();
    let mut queue = Queue::new(limits(), &relays, 1);
    for no in 1..=messages {
        queue.add(MessageNo(no), Lane::Normal, at(0), at(0), 0, false);
    }
    queue.advance(at(0));
    queue
}

fn news(up: bool) -> RelayNews {
    RelayNews { relay: "a".to_owned(), up, reply: "said".to_owned() }
}

fn delivered() -> Outcome {
    Outcome::Delivered { relay: "a".to_owned(), reply: "250 ok".to_owned() }
}

fn not_sent() -> Outcome {
    Outcome::NotSent { why: "down".to_owned() }
}

/// Leases the next message for one recipient.
fn lease(queue: &mut Queue, now: Time) -> Option<u64> {
    let (no, _) = queue.next_message(now)?;
    Some(queue.lease(now, no, vec![0]))
}

#[test]
fn r7_lanes_share_by_weight_and_none_starves() {
    let mut queue = queue(0, &["a"]);
    for (base, lane) in [(0, Lane::Bulk), (100, Lane::Normal), (200, Lane::Urgent)] {
        for n in 1..=50 {
            queue.add(MessageNo(base + n), lane, at(0), at(0), 0, false);
        }
    }
    queue.advance(at(0));
    let mut counts = [0; 3];
    for _ in 0..24 {
        let (no, _) = queue.next_message(at(0)).unwrap();
        let lease = queue.lease(at(0), no, vec![0]);
        counts[usize::try_from(no.0 / 100).unwrap()] += 1;
        queue.report(at(0), lease, &[(0, delivered())]).unwrap();
    }
    assert_eq!(counts, [2, 6, 16]);
}

#[test]
fn r2_with_every_relay_down_one_message_probes_and_nothing_is_written() {
    let mut queue = queue(100, &["a"]);
    let first: Vec<u64> = std::iter::from_fn(|| lease(&mut queue, at(0))).collect();
    assert_eq!(first.len(), 5);
    for lease in first {
        queue.news(at(0), &news(false));
        let verdict = queue.report(at(0), lease, &[(0, not_sent())]).unwrap();
        assert_eq!((verdict.marks.len(), verdict.deferred), (0, None));
    }
    queue.advance(at(0));
    assert_eq!(lease(&mut queue, at(1)), None);
    assert_eq!(queue.wanted_agents(at(1)), 0);
    let probe_at = queue.deadline().unwrap();
    let probe = lease(&mut queue, probe_at).unwrap();
    assert_eq!(lease(&mut queue, probe_at), None, "one probe at a time");
    assert_eq!(queue.news(probe_at, &news(true)), Some(RelayChange::Up("a".to_owned())));
    queue.report(probe_at, probe, &[(0, delivered())]).unwrap();
    assert!(lease(&mut queue, probe_at).is_some(), "the backlog drains at once");
    assert_eq!(queue.len(), 99);
}

#[test]
fn r3_r6_one_recipient_put_off_does_not_repeat_the_others() {
    let mut queue = queue(1, &["a"]);
    let (no, _) = queue.next_message(at(0)).unwrap();
    let lease = queue.lease(at(0), no, vec![0, 1, 2]);
    let later = Outcome::RejectedTemp { relay: "a".to_owned(), reply: "451 later".to_owned() };
    let never = Outcome::RejectedPerm { relay: "a".to_owned(), reply: "550 no".to_owned() };
    let verdict = queue.report(at(0), lease, &[(0, delivered()), (1, never), (2, later)]).unwrap();
    let marked: Vec<_> = verdict.marks.iter().map(|(p, s, _)| (*p, *s)).collect();
    assert_eq!(marked, [(0, RecipientState::Delivered), (1, RecipientState::Failed)]);
    let (attempts, due, why, held) = verdict.deferred.unwrap();
    assert_eq!((attempts, why.as_str(), held), (1, "451 later", false));
    assert!(due >= at(24) && due <= at(36));
    assert_eq!(queue.state(no), "deferred");
    queue.advance(due);
    assert_eq!(queue.state(no), "queued");
}

#[test]
fn r4_a_message_that_is_still_put_off_after_its_lifetime_has_failed() {
    let mut queue = queue(1, &["a"]);
    let late = at(4 * 86_400);
    let lease = lease(&mut queue, late).unwrap();
    let later = Outcome::RejectedTemp { relay: "a".to_owned(), reply: "451 later".to_owned() };
    let verdict = queue.report(late, lease, &[(0, later)]).unwrap();
    assert_eq!(verdict.marks[0].1, RecipientState::Failed);
    assert!(queue.is_empty());
}

#[test]
fn q6_q7_a_message_whose_agents_die_is_tried_again_and_then_held() {
    let mut queue = queue(2, &["a"]);
    for death in 1..=3 {
        queue.advance(at(0));
        let (no, _) = queue.next_message(at(0)).unwrap();
        assert_eq!(no, MessageNo(1));
        let lease = queue.lease(at(0), no, vec![0]);
        let verdict = queue.agent_died(at(0), lease).unwrap();
        assert_eq!(verdict.deferred.is_some(), death == 3);
        assert_eq!(queue.report(at(0), lease, &[]), None, "a late report finds nothing");
    }
    assert_eq!(queue.state(MessageNo(1)), "held");
    queue.advance(at(0));
    assert_eq!(queue.next_message(at(0)).unwrap().0, MessageNo(2), "the others go on");
    queue.release(at(1), MessageNo(1));
    queue.advance(at(1));
    assert_eq!(queue.state(MessageNo(1)), "queued");
}

#[test]
fn s1_a_relay_that_is_down_is_left_alone_while_another_works() {
    let mut queue = queue(2, &["a", "b"]);
    queue.news(at(0), &news(false));
    let (no, avoid) = queue.next_message(at(0)).unwrap();
    assert_eq!(avoid, ["a"]);
    queue.lease(at(0), no, vec![0]);
    let (_, avoid) = queue.next_message(at(10)).unwrap();
    assert_eq!(avoid, Vec::<String>::new(), "time to probe it with a real message");
}

#[test]
fn an_operator_can_flush_and_delete() {
    let mut queue = queue(1, &["a"]);
    let no = MessageNo(1);
    let lease = lease(&mut queue, at(0)).unwrap();
    assert!(!queue.remove(no), "it is on its way");
    let later = Outcome::RejectedTemp { relay: "a".to_owned(), reply: "451".to_owned() };
    queue.report(at(0), lease, &[(0, later)]).unwrap();
    queue.flush(at(1), Some(no));
    queue.advance(at(1));
    assert_eq!(queue.state(no), "queued");
    assert!(queue.remove(no));
    assert_eq!(queue.next_message(at(1)), None);
}

#[derive(Debug, Clone)]
enum Step {
    Lease,
    Deliver(usize),
    Defer(usize),
    Die(usize),
    NotSent(usize),
    Down,
    Up,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Lease),
        2 => (0..9_usize).prop_map(Step::Deliver),
        1 => (0..9_usize).prop_map(Step::Defer),
        1 => (0..9_usize).prop_map(Step::Die),
        1 => (0..9_usize).prop_map(Step::NotSent),
        1 => Just(Step::Down),
        1 => Just(Step::Up),
        2 => (0..400_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever happens, each message is in exactly one place, and with a working relay all that is
    /// not held is delivered in the end.
    #[test]
    fn no_message_is_lost(steps in prop::collection::vec(step(), 0..200)) {
        let mut queue = queue(10, &["a"]);
        let (mut now, mut leases) = (at(0), Vec::new());
        let mut ended = 0;
        for step in steps {
            queue.advance(now);
            match step {
                Step::Lease => leases.extend(lease(&mut queue, now)),
                Step::Wait(seconds) => now = now + Duration::from_secs(seconds),
                Step::Down => drop(queue.news(now, &news(false))),
                Step::Up => drop(queue.news(now, &news(true))),
                Step::Deliver(n) | Step::Defer(n) | Step::Die(n) | Step::NotSent(n) => {
                    if n >= leases.len() { continue; }
                    let lease = leases.swap_remove(n);
                    let outcome = match step {
                        Step::Deliver(_) => delivered(),
                        Step::NotSent(_) => not_sent(),
                        _ => Outcome::RejectedTemp { relay: "a".to_owned(), reply: "451".to_owned() },
                    };
                    if matches!(step, Step::Die(_)) {
                        queue.agent_died(now, lease).unwrap();
                    } else {
                        let verdict = queue.report(now, lease, &[(0, outcome)]).unwrap();
                        ended += verdict.marks.len();
                    }
                }
            }
            prop_assert_eq!(queue.len() + ended, 10);
            prop_assert_eq!(queue.in_flight(), leases.len());
            let held = (1..=10).filter(|n| queue.state(MessageNo(*n)) == "held").count();
            let ready: usize = queue.ready.iter().map(BTreeSet::len).sum();
            prop_assert_eq!(ready + queue.waiting.len() + leases.len() + held, queue.len());
            prop_assert!(leases.len() <= 20);
        }
        for lease in leases {
            queue.report(now, lease, &[(0, delivered())]);
        }
        for _ in 0..200 {
            now = now + Duration::from_secs(400);
            queue.news(now, &news(true));
            queue.advance(now);
            if let Some(lease) = lease(&mut queue, now) {
                queue.report(now, lease, &[(0, delivered())]);
            }
        }
        let held = (1..=10).filter(|n| queue.state(MessageNo(*n)) == "held").count();
        prop_assert_eq!(queue.len(), held);
    }
}

#[test]
fn r1_while_a_probe_is_on_its_way_nothing_is_due() {
    let mut queue = queue(10, &["a"]);
    queue.news(at(0), &news(false));
    let t = queue.deadline().unwrap();
    let _probe = lease(&mut queue, t).unwrap();
    let later = t + Duration::from_secs(10);
    queue.advance(later);
    assert_eq!(lease(&mut queue, later), None);
    let d = queue.deadline();
    assert!(d.is_none_or(|d| d > later), "deadline {d:?} is past at {later:?}: poll(0) loop");
}

#[test]
fn a_message_that_no_relay_was_asked_about_does_not_go_round_and_round() {
    let mut queue = queue(1, &["a", "b"]);
    queue.news(at(0), &news(false));
    let now = at(1);
    let mut leases = 0;
    for _ in 0..1000 {
        queue.advance(now);
        let Some(l) = lease(&mut queue, now) else { break };
        leases += 1;
        queue.report(now, l, &[(0, not_sent())]).unwrap();
    }
    assert!(leases < 3, "{leases} leases of one message without time passing");
}

#[test]
fn r3_a_4xx_beside_a_recipient_that_was_not_sent_keeps_its_pause() {
    let mut queue = queue(1, &["a", "b"]);
    queue.news(at(0), &news(false));
    let (no, _) = queue.next_message(at(1)).unwrap();
    let l = queue.lease(at(1), no, vec![0, 1]);
    let temp = Outcome::RejectedTemp { relay: "b".to_owned(), reply: "451 later".to_owned() };
    let v = queue.report(at(1), l, &[(0, temp), (1, not_sent())]).unwrap();
    assert!(
        v.deferred.is_some(),
        "the 451 is neither counted nor written; due {:?}",
        queue.due(no)
    );
}
