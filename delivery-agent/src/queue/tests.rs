use super::*;
use crate::outcome::{Finding, Outcome, RelayNews};
use crate::retry::MessageRule;
use crate::store::RecipientState;
use crate::wire::Progress;
use std::time::Duration;

mod simulation;

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

fn news(relay: &str, finding: Finding) -> RelayNews {
    RelayNews { relay: relay.to_owned(), finding, reply: "said".to_owned() }
}

fn delivered() -> Outcome {
    Outcome::Delivered { relay: "a".to_owned(), reply: "250 ok".to_owned() }
}

fn not_sent() -> Outcome {
    Outcome::NotSent { why: "down".to_owned() }
}

fn temp(relay: &str) -> Outcome {
    Outcome::RejectedTemp { relay: relay.to_owned(), reply: "451 later".to_owned() }
}

fn perm(relay: &str) -> Outcome {
    Outcome::RejectedPerm { relay: relay.to_owned(), reply: "550 no".to_owned() }
}

fn doubt(relay: &str) -> Outcome {
    Outcome::InDoubt { relay: relay.to_owned(), why: "connection closed".to_owned() }
}

/// Leases the next message to these recipients.
fn lease_of(queue: &mut Queue, now: Time, positions: &[i64]) -> Option<(MessageNo, Plan)> {
    queue.advance(now);
    match queue.next_task(now)? {
        Task::Send(no, first) => Some((no, queue.lease(now, no, first, positions))),
        Task::Connect(relay) => panic!("a connection to {relay} is due first"),
    }
}

/// Leases the next message to one recipient.
fn lease(queue: &mut Queue, now: Time) -> Option<u64> {
    lease_of(queue, now, &[0]).map(|(_, plan)| plan.lease)
}

/// It was held for good, by a disk that did not answer for a moment.
#[test]
fn a_message_that_could_not_be_read_waits_as_before() {
    let mut queue = queue(2, &["a"]);
    let Some(Task::Send(no, _)) = queue.next_task(at(0)) else { panic!("nothing to send") };
    queue.put_back(no);
    queue.advance(at(1));
    assert!(queue.has_task(at(1)));
    let Some(Task::Send(again, relay)) = queue.next_task(at(1)) else { panic!("it is held") };
    assert_eq!(again, no);
    assert_eq!(queue.lease(at(1), again, relay, &[0]).positions, [0]);
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
        let (no, plan) = lease_of(&mut queue, at(0), &[0]).unwrap();
        counts[usize::try_from(no.0 / 100).unwrap()] += 1;
        queue.report(at(0), plan.lease, &[(0, delivered())]).unwrap();
    }
    assert_eq!(counts, [2, 6, 16]);
}

#[test]
fn r2_with_every_relay_down_one_message_probes_and_nothing_is_written() {
    let mut queue = queue(100, &["a"]);
    let first: Vec<u64> = std::iter::from_fn(|| lease(&mut queue, at(0))).collect();
    assert_eq!(first.len(), 5);
    for lease in first {
        queue.news(at(0), Some(lease), &news("a", Finding::Fails));
        let verdict = queue.report(at(0), lease, &[(0, not_sent())]).unwrap();
        assert_eq!((verdict.marks.len(), verdict.deferred), (0, None));
    }
    assert_eq!(lease(&mut queue, at(1)), None);
    let probe_at = queue.deadline().unwrap();
    let probe = lease(&mut queue, probe_at).unwrap();
    assert_eq!(lease(&mut queue, probe_at), None, "one probe at a time");
    let up = queue.news(probe_at, None, &news("a", Finding::Works));
    assert_eq!(up, Some(RelayChange::Up("a".to_owned())));
    queue.report(probe_at, probe, &[(0, delivered())]).unwrap();
    assert!(lease(&mut queue, probe_at).is_some(), "the backlog drains at once");
    assert_eq!(queue.len(), 99);
}

#[test]
fn r1_a_relay_out_of_reach_costs_no_message() {
    let mut queue = queue(100, &["a"]);
    let first = lease(&mut queue, at(0)).unwrap();
    queue.news(at(0), None, &news("a", Finding::Unreachable));
    queue.report(at(0), first, &[(0, not_sent())]).unwrap();
    queue.advance(at(0));
    let mut now = at(0);
    for _ in 0..10 {
        let next = queue.deadline().unwrap();
        assert!((4..=6).contains(&next.since(now).as_secs()), "{next:?}");
        now = next;
        queue.advance(now);
        assert_eq!(queue.next_task(now), Some(Task::Connect("a".to_owned())));
        assert!(!queue.has_task(now));
        queue.news(now, None, &news("a", Finding::Unreachable));
    }
    now = queue.deadline().unwrap();
    queue.next_task(now).unwrap();
    queue.news(now, None, &news("a", Finding::Answers));
    assert!(lease(&mut queue, now).is_some(), "one message tries it");
    assert!(lease(&mut queue, now).is_none());
}

/// With a lease in flight anywhere no probe went out, and qmgr turned at full speed.
#[test]
fn r1_a_probe_is_not_held_back_by_leases_elsewhere() {
    let mut queue = queue(20, &["a", "b"]);
    let stuck = lease(&mut queue, at(0)).unwrap();
    let other = lease(&mut queue, at(0)).unwrap();
    queue.news(at(0), Some(other), &news("b", Finding::Fails));
    queue.news(at(0), Some(other), &news("a", Finding::Fails));
    queue.report(at(0), other, &[(0, not_sent())]).unwrap();
    queue.advance(at(0));
    let (mut now, mut probes) = (at(0), Vec::new());
    for _ in 0..2 {
        now = queue.deadline().unwrap();
        let (_, plan) = lease_of(&mut queue, now, &[0]).unwrap();
        probes.push(plan.relays[0].clone());
        assert!(queue.deadline().is_none_or(|at| at > now));
    }
    probes.sort();
    assert_eq!(probes, ["a", "b"]);
    queue.report(now, stuck, &[(0, not_sent())]).unwrap();
    queue.advance(now);
    assert!(queue.deadline().is_none_or(|at| at > now));
}

#[test]
fn r3_r6_one_recipient_put_off_does_not_repeat_the_others() {
    let mut queue = queue(1, &["a"]);
    let (no, plan) = lease_of(&mut queue, at(0), &[0, 1, 2]).unwrap();
    let outcomes = [(0, delivered()), (1, perm("a")), (2, temp("a"))];
    let verdict = queue.report(at(0), plan.lease, &outcomes).unwrap();
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
    let verdict = queue.report(late, lease, &[(0, temp("a"))]).unwrap();
    assert_eq!((verdict.marks[0].1, verdict.word), (RecipientState::Failed, "expired"));
    assert!(queue.is_empty());
}

#[test]
fn q6_q7_a_message_whose_agents_die_is_tried_again_and_then_held() {
    let mut queue = queue(2, &["a"]);
    for death in 1..=3 {
        let (no, plan) = lease_of(&mut queue, at(0), &[0]).unwrap();
        assert_eq!(no, MessageNo(1));
        let verdict = queue.agent_died(at(0), plan.lease).unwrap();
        assert_eq!(verdict.deferred.is_some(), death == 3);
        assert_eq!(queue.report(at(0), plan.lease, &[]), None, "a late report finds nothing");
    }
    assert_eq!(queue.state(MessageNo(1)), "held");
    assert_eq!(lease_of(&mut queue, at(0), &[0]).unwrap().0, MessageNo(2), "the others go on");
    queue.release(at(1), MessageNo(1));
    queue.advance(at(1));
    assert_eq!(queue.state(MessageNo(1)), "queued");
}

#[test]
fn s1_a_relay_that_is_down_is_left_alone_while_another_works() {
    let mut queue = queue(3, &["a", "b"]);
    queue.news(at(0), None, &news("a", Finding::Fails));
    assert_eq!(lease_of(&mut queue, at(0), &[0]).unwrap().1.relays, ["b"]);
    let probe = lease_of(&mut queue, at(10), &[0]).unwrap().1;
    assert_eq!(probe.relays, ["a", "b"], "time to try it with a real message");
    assert_eq!(lease_of(&mut queue, at(10), &[0]).unwrap().1.relays, ["b"], "with one");
}

#[test]
fn an_operator_can_flush_and_delete() {
    let mut queue = queue(1, &["a"]);
    let no = MessageNo(1);
    let lease = lease(&mut queue, at(0)).unwrap();
    assert!(!queue.remove(no), "it is on its way");
    queue.report(at(0), lease, &[(0, temp("a"))]).unwrap();
    queue.flush(at(1), Some(no));
    queue.advance(at(1));
    assert_eq!(queue.state(no), "queued");
    assert!(queue.remove(no));
    assert_eq!(queue.next_task(at(1)), None);
}

#[test]
fn r1_while_a_probe_is_on_its_way_nothing_is_due() {
    let mut queue = queue(10, &["a"]);
    queue.news(at(0), None, &news("a", Finding::Fails));
    let t = queue.deadline().unwrap();
    let _probe = lease(&mut queue, t).unwrap();
    let later = t + Duration::from_secs(10);
    assert_eq!(lease(&mut queue, later), None);
    let d = queue.deadline();
    assert!(d.is_none_or(|d| d > later), "deadline {d:?} is past at {later:?}: poll(0) loop");
}

#[test]
fn a_message_that_no_relay_was_asked_about_does_not_go_round_and_round() {
    let mut queue = queue(1, &["a", "b"]);
    queue.news(at(0), None, &news("a", Finding::Fails));
    let now = at(1);
    let mut leases = 0;
    for _ in 0..1000 {
        let Some(l) = lease(&mut queue, now) else { break };
        leases += 1;
        queue.report(now, l, &[(0, not_sent())]).unwrap();
    }
    assert!(leases < 3, "{leases} leases of one message without time passing");
}

#[test]
fn r3_a_4xx_beside_a_recipient_that_was_not_sent_keeps_its_pause() {
    let mut queue = queue(1, &["a", "b"]);
    queue.news(at(0), None, &news("a", Finding::Fails));
    let (no, plan) = lease_of(&mut queue, at(1), &[0, 1]).unwrap();
    let v = queue.report(at(1), plan.lease, &[(0, temp("b")), (1, not_sent())]).unwrap();
    assert!(
        v.deferred.is_some(),
        "the 451 is neither counted nor written; due {:?}",
        queue.due(no)
    );
}

/// 530 or 421 at RCPT of one message marked the relay down, and the message was each probe.
#[test]
fn r6_a_message_that_ends_sessions_is_not_the_next_probe_and_holds_up_nobody() {
    let mut queue = queue(3, &["a"]);
    let (bad, plan) = lease_of(&mut queue, at(0), &[0]).unwrap();
    let broke = news("a", Finding::Broke);
    assert_eq!(queue.news(at(0), Some(plan.lease), &broke), None, "it may be the message's fault");
    queue.report(at(0), plan.lease, &[(0, not_sent())]).unwrap();
    let (other, probe) = lease_of(&mut queue, at(0), &[0]).unwrap();
    assert_ne!(other, bad, "another one finds out, at once");
    queue.news(at(0), None, &news("a", Finding::Works));
    queue.report(at(0), probe.lease, &[(0, delivered())]).unwrap();
    let (last, plan) = lease_of(&mut queue, at(1), &[0]).unwrap();
    assert_ne!(last, bad);
    queue.report(at(1), plan.lease, &[(0, delivered())]).unwrap();
    assert_eq!(lease(&mut queue, at(3)), None, "it has its own pause");
    let due = queue.deadline().unwrap();
    let (no, plan) = lease_of(&mut queue, due, &[0]).unwrap();
    assert_eq!(no, bad);
    let broke = news("a", Finding::Broke);
    assert_eq!(queue.news(due, Some(plan.lease), &broke), None);
    let verdict = queue.report(due, plan.lease, &[(0, not_sent())]).unwrap();
    assert!(verdict.deferred.unwrap().2.contains("said"), "the reason is listed");
    queue.add(MessageNo(9), Lane::Normal, due, due, 0, false);
    assert!(lease(&mut queue, due).is_some(), "the relay stays up for the others");
}

/// The one that ends sessions is alone for a while, and then another comes.
#[test]
fn r6_a_message_does_not_wait_for_one_that_ends_sessions() {
    let mut queue = queue(1, &["a"]);
    let mut now = at(0);
    for _ in 0..10 {
        let (_, plan) = lease_of(&mut queue, now, &[0]).unwrap();
        queue.news(now, Some(plan.lease), &news("a", Finding::Broke));
        queue.report(now, plan.lease, &[(0, not_sent())]).unwrap();
        queue.advance(now);
        let next = queue.deadline().unwrap();
        assert!(next.since(now) >= Duration::from_secs(4) && next.since(now) < PAUSE);
        now = next;
    }
    let again = lease_of(&mut queue, now, &[0]).unwrap().1;
    queue.add(MessageNo(9), Lane::Normal, now, now, 0, false);
    assert_eq!(lease_of(&mut queue, now, &[0]).unwrap().0, MessageNo(9), "while it is under way");
    queue.agent_died(now, again.lease);
}

const PAUSE: Duration = Duration::from_secs(361);

#[test]
fn s17_a_relay_that_lets_one_message_wait_gets_no_other_while_the_next_one_works() {
    let mut queue = queue(20, &["a", "b"]);
    let stuck: Vec<_> = (0..5).map(|_| lease_of(&mut queue, at(0), &[0]).unwrap().1).collect();
    assert_eq!(lease(&mut queue, at(0)), None, "as many agents as there may be");
    let slow = |lease, what: Option<&str>| Progress {
        lease,
        relay: "a".to_owned(),
        waits_for: what.map(str::to_owned),
    };
    let change = queue.progress(at(10), &slow(stuck[0].lease, Some("the greeting")));
    assert_eq!(change, Some(RelayChange::Slow("a".to_owned(), "the greeting".to_owned())));
    let (_, plan) = lease_of(&mut queue, at(10), &[0]).unwrap();
    assert_eq!(plan.relays, ["b"]);
    queue.progress(at(20), &slow(stuck[0].lease, None));
    queue.report(at(20), plan.lease, &[(0, delivered())]).unwrap();
    queue.report(at(20), stuck[0].lease, &[(0, delivered())]).unwrap();
    assert_eq!(lease_of(&mut queue, at(20), &[0]).unwrap().1.relays, ["a", "b"]);
    // An agent that has died waits for nothing.
    queue.progress(at(30), &slow(stuck[1].lease, Some("the greeting")));
    queue.agent_died(at(30), stuck[1].lease);
    assert_eq!(lease_of(&mut queue, at(30), &[0]).unwrap().1.relays, ["a", "b"]);
}

#[test]
fn s1_r5_what_one_relay_refuses_waits_for_the_other_and_bounces_when_both_have() {
    let mut queue = queue(1, &["a", "b"]);
    queue.news(at(0), None, &news("b", Finding::Fails));
    let (no, plan) = lease_of(&mut queue, at(0), &[0]).unwrap();
    assert_eq!(plan.relays, ["a"]);
    let verdict = queue.report(at(0), plan.lease, &[(0, perm("a"))]).unwrap();
    assert_eq!(verdict.marks, []);
    assert_eq!(verdict.deferred.unwrap().2, "550 no", "a reason is listed");
    assert_eq!(queue.state(no), "deferred");
    let due = queue.deadline().unwrap();
    let (_, plan) = lease_of(&mut queue, due, &[0]).unwrap();
    assert_eq!(plan.relays[0], "b");
    assert!(!plan.relays.contains(&"a".to_owned()) || plan.except == [(0, "a".to_owned())]);
    queue.news(due, None, &news("b", Finding::Works));
    let verdict = queue.report(due, plan.lease, &[(0, perm("b"))]).unwrap();
    assert_eq!(verdict.marks, [(0, RecipientState::Failed, "a: 550 no; b: 550 no".to_owned())]);
    assert!(queue.is_empty());
}

#[test]
fn r3_greylisted_by_one_relay_and_sent_by_the_other_as_soon_as_it_is_back() {
    let mut queue = queue(1, &["a", "b"]);
    queue.news(at(0), None, &news("b", Finding::Unreachable));
    let l = lease(&mut queue, at(0)).unwrap();
    queue.report(at(0), l, &[(0, temp("a"))]).unwrap();
    let now = queue.deadline().unwrap();
    assert!(now < at(7));
    assert_eq!(queue.next_task(now), Some(Task::Connect("b".to_owned())));
    queue.news(now, None, &news("b", Finding::Answers));
    assert_eq!(lease_of(&mut queue, now, &[0]).unwrap().1.relays[0], "b");
}

#[test]
fn r4_what_no_relay_that_is_up_can_take_expires_with_its_reason() {
    let mut queue = queue(1, &["a", "b"]);
    queue.news(at(0), None, &news("b", Finding::Unreachable));
    let l = lease(&mut queue, at(0)).unwrap();
    queue.report(at(0), l, &[(0, perm("a"))]).unwrap();
    let end = at(4 * 86_400);
    assert_eq!(queue.expire(at(86_400)), []);
    let verdicts = queue.expire(end);
    assert_eq!(verdicts.len(), 1);
    assert_eq!(verdicts[0].word, "expired");
    assert!(verdicts[0].marks[0].2.contains("550 no"), "{verdicts:?}");
    assert!(queue.is_empty());
}

#[test]
fn r4_a_message_has_a_last_try_before_it_expires() {
    let mut queue = queue(1, &["a"]);
    let end = at(4 * 86_400);
    let mut now = at(0);
    while now < end {
        let l = lease(&mut queue, now).unwrap();
        let verdict = queue.report(now, l, &[(0, temp("a"))]).unwrap();
        assert_eq!(verdict.marks, [], "at {now}");
        now = queue.deadline().unwrap().min(end);
        assert_eq!(queue.expire(now), [], "at {now}");
    }
    let l = lease(&mut queue, end).expect("the last try");
    assert_eq!(queue.report(end, l, &[(0, temp("a"))]).unwrap().word, "expired");
}

#[test]
fn r4_after_a_long_outage_there_is_a_last_try() {
    let mut queue = queue(2, &["a"]);
    let l = lease(&mut queue, at(0)).unwrap();
    queue.report(at(0), l, &[(0, temp("a"))]).unwrap();
    queue.news(at(1), None, &news("a", Finding::Unreachable));
    let late = at(8 * 86_400);
    assert_eq!(queue.expire(late), []);
    assert!(queue.next_task(late).is_some());
    queue.news(late, None, &news("a", Finding::Answers));
    let l = lease(&mut queue, late).unwrap();
    queue.news(late, None, &news("a", Finding::Works));
    assert_eq!(queue.expire(late), [], "the other one is tried, too");
    assert_eq!(queue.report(late, l, &[(0, delivered())]).unwrap().marks.len(), 1);
    let l = lease(&mut queue, late).unwrap();
    queue.report(late, l, &[(0, delivered())]).unwrap();
    assert!(queue.is_empty());
}

/// A relay that takes mail and closes without an answer got a copy every two minutes for ever.
#[test]
fn s5_copies_in_doubt_are_few_and_then_the_other_relay_has_it() {
    let mut queue = queue(1, &["a", "b"]);
    let (mut now, mut sent) = (at(0), Vec::new());
    loop {
        let (_, plan) = lease_of(&mut queue, now, &[0]).unwrap();
        let relay = plan.relays[0].clone();
        sent.push((now.since_start().as_secs(), relay.clone()));
        if relay == "b" {
            break;
        }
        queue.news(now, Some(plan.lease), &news("a", Finding::Broke));
        queue.report(now, plan.lease, &[(0, doubt("a"))]).unwrap();
        // The relay works for others in between.
        queue.news(now, None, &news("a", Finding::Works));
        while !queue.has_task(now) {
            now = queue.deadline().unwrap();
            queue.advance(now);
        }
    }
    let want = [(0, "a"), (120, "a"), (360, "a"), (360, "b")];
    assert_eq!(sent, want.map(|(at, relay)| (at, relay.to_owned())));
}

#[test]
fn s5_an_urgent_message_in_doubt_goes_to_another_relay_at_once() {
    for (lane, wait) in [(Lane::Urgent, 0), (Lane::Normal, 600)] {
        let mut queue = queue(0, &["a", "b"]);
        queue.add(MessageNo(1), lane, at(0), at(0), 0, false);
        let (_, plan) = lease_of(&mut queue, at(0), &[0]).unwrap();
        queue.news(at(0), Some(plan.lease), &news("a", Finding::Broke));
        queue.report(at(0), plan.lease, &[(0, doubt("a"))]).unwrap();
        queue.news(at(0), None, &news("a", Finding::Unreachable));
        while let Some(next) = queue.deadline().filter(|&next| next < at(wait)) {
            queue.advance(next);
            if let Some(Task::Connect(_)) = queue.next_task(next) {
                queue.news(next, None, &news("a", Finding::Unreachable));
            }
        }
        queue.probe_lost("a");
        let task = loop {
            queue.advance(at(wait));
            match queue.next_task(at(wait)) {
                Some(Task::Connect(_)) => {}
                task => break task,
            }
        };
        assert_eq!(task, Some(Task::Send(MessageNo(1), 1)), "{lane:?}");
    }
}

#[test]
fn r6_a_recipient_in_doubt_does_not_hold_up_the_one_that_was_deferred() {
    let mut queue = queue(1, &["a"]);
    let (_, plan) = lease_of(&mut queue, at(0), &[0, 1]).unwrap();
    queue.report(at(0), plan.lease, &[(0, doubt("a")), (1, temp("a"))]).unwrap();
    let due = queue.deadline().unwrap();
    assert!(due <= at(36));
    assert_eq!(lease_of(&mut queue, due, &[0, 1]).unwrap().1.positions, [1]);
}

/// An agent has a message of the last qmgr for some of its recipients.
#[test]
fn q6_recipients_that_a_surviving_agent_does_not_have_are_not_forgotten() {
    let mut queue = queue(1, &["a"]);
    let lease = queue.adopt(MessageNo(1), vec![0], &[1]).unwrap();
    queue.report(at(0), lease, &[(0, delivered())]).unwrap();
    assert_eq!(queue.len(), 1);
    assert_eq!(lease_of(&mut queue, at(0), &[1]).unwrap().1.positions, [1]);
}

/// An agent whose session has worked before does not say so again.
#[test]
fn r1_a_delivery_shows_that_a_relay_is_up() {
    let mut queue = queue(9, &["a"]);
    queue.news(at(0), None, &news("a", Finding::Fails));
    let now = queue.deadline().unwrap();
    let probe = lease(&mut queue, now).unwrap();
    let verdict = queue.report(now, probe, &[(0, delivered())]).unwrap();
    assert_eq!(verdict.change, Some(RelayChange::Up("a".to_owned())));
    lease(&mut queue, now).unwrap();
    assert!(lease(&mut queue, now).is_some(), "more than one at a time");
}

/// A relay that takes two sessions and answers the others with 421.
#[test]
fn r1_a_relay_that_takes_few_sessions_gets_no_more() {
    let mut queue = queue(500, &["a"]);
    let (mut now, mut downs) = (at(0), 0);
    while !queue.is_empty() {
        let mut leases = Vec::new();
        while let Some(lease) = lease(&mut queue, now) {
            leases.push(lease);
        }
        if leases.is_empty() {
            now = queue.deadline().unwrap();
            continue;
        }
        for over in leases.split_off(leases.len().min(2)) {
            let change = queue.news(now, Some(over), &news("a", Finding::Fails));
            downs += usize::from(matches!(change, Some(RelayChange::Down(..))));
            queue.report(now, over, &[(0, not_sent())]).unwrap();
        }
        for lease in leases {
            queue.report(now, lease, &[(0, delivered())]).unwrap();
        }
        now = now + Duration::from_millis(10);
    }
    assert!(downs <= 5, "{downs} lines in the log");
    assert!(now < at(60), "{now}");
}

/// A relay was hung: the urgent message that came when it was time to try it again waited there,
/// alone, while another relay worked.
#[test]
fn r7_an_urgent_message_does_not_try_out_a_relay_while_another_works() {
    let mut queue = queue(0, &["a", "b"]);
    queue.news(at(0), None, &news("a", Finding::Fails));
    let now = at(10);
    for no in 1..=7 {
        queue.add(MessageNo(no), Lane::Urgent, now, now, 0, false);
    }
    let mut leases = Vec::new();
    while let Some((no, plan)) = lease_of(&mut queue, now, &[0]) {
        assert_eq!(plan.relays, ["b"], "{no:?}");
        leases.push(plan.lease);
    }
    assert_eq!(leases.len(), 5, "as many as it may have at a time");
    assert_eq!(queue.deadline(), None, "nothing is due");
    // One that can wait does it, and so does one that the other relay has refused.
    queue.add(MessageNo(8), Lane::Normal, now, now, 0, false);
    let (no, plan) = lease_of(&mut queue, now, &[0]).unwrap();
    assert_eq!((no.0, &plan.relays[..]), (8, &["a".to_owned(), "b".to_owned()][..]));
    queue.news(now, Some(plan.lease), &news("a", Finding::Fails));
    let outcome = Outcome::Delivered { relay: "b".to_owned(), reply: "250 ok".to_owned() };
    queue.report(now, plan.lease, &[(0, outcome)]).unwrap();
    queue.report(now, leases[0], &[(0, perm("b"))]).unwrap();
    while lease_of(&mut queue, now, &[0]).is_some() {}
    let next = queue.deadline().unwrap();
    let (no, plan) = lease_of(&mut queue, next, &[0]).unwrap();
    assert_eq!((no.0, &plan.relays[0][..]), (1, "a"));
}

/// The only relay does not answer for some messages, each for minutes: they were in all sessions that
/// it may have at a time, and the others waited for them.
#[test]
fn r6_messages_that_wait_for_the_only_relay_do_not_hold_up_the_others() {
    let mut queue = queue(115, &["a"]);
    let (mut now, mut left, mut most) = (at(0), 100, 0);
    let mut stuck = Vec::new();
    while left > 0 {
        while let Some((no, plan)) = lease_of(&mut queue, now, &[0]) {
            if no.0 <= 15 {
                stuck.push((now, plan.lease));
            } else {
                left -= 1;
                queue.news(now, Some(plan.lease), &news("a", Finding::Works));
                queue.report(now, plan.lease, &[(0, delivered())]).unwrap();
            }
        }
        most = most.max(queue.in_flight());
        now = now + Duration::from_secs(1);
        for (since, lease) in &stuck {
            if now.since(*since) == Duration::from_secs(10) {
                let waits_for = Some("the answer to RCPT".to_owned());
                queue.progress(now, &Progress { lease: *lease, relay: "a".to_owned(), waits_for });
            }
        }
        assert!(now < at(150), "{left} are left");
    }
    assert!(most <= 16);
}

/// When it answers for none, it gets no more sessions than messages may be on their way.
#[test]
fn r1_a_relay_that_answers_for_no_message_gets_one_session_at_a_time_beyond_the_first() {
    let mut queue = queue(110, &["a"]);
    let mut stuck: Vec<(Time, u64)> = Vec::new();
    for second in 0..300 {
        let now = at(second);
        for (_, lease) in stuck.iter().filter(|(s, _)| now.since(*s) == Duration::from_secs(10)) {
            let waits_for = Some("the answer to RCPT".to_owned());
            queue.progress(now, &Progress { lease: *lease, relay: "a".to_owned(), waits_for });
        }
        while let Some(lease) = lease(&mut queue, now) {
            stuck.push((now, lease));
        }
        assert!(stuck.len() <= 5 + usize::try_from(second / 10).unwrap(), "{second}");
    }
    assert_eq!(stuck.len(), limits().agents);
}

/// Twenty messages over which a relay ends its sessions were in front of a hundred others, and each
/// was a probe before one of those: hours, as the pauses grow.
#[test]
fn r6_many_messages_that_end_sessions_do_not_keep_the_others_from_the_only_relay() {
    let mut queue = queue(120, &["a"]);
    for no in 1..=5 {
        queue.remove(MessageNo(no));
        queue.add(MessageNo(no), Lane::Urgent, at(0), at(0), 0, false);
    }
    let (mut now, mut left) = (at(0), 100);
    while left > 0 {
        let mut leases = Vec::new();
        while let Some((no, plan)) = lease_of(&mut queue, now, &[0]) {
            leases.push((no, plan.lease));
        }
        for (no, lease) in &leases {
            if no.0 <= 20 {
                queue.news(now, Some(*lease), &news("a", Finding::Broke));
                queue.report(now, *lease, &[(0, not_sent())]).unwrap();
            } else {
                left -= 1;
                queue.news(now, Some(*lease), &news("a", Finding::Works));
                queue.report(now, *lease, &[(0, delivered())]).unwrap();
            }
        }
        if leases.is_empty() {
            now = queue.deadline().unwrap();
        }
        assert!(now < at(90), "{left} are left");
    }
}
