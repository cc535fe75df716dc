//! weaknesses - what Postfix's process creation gets wrong, and what is done instead (W03 to W08)

use std::time::Duration;

use worker_proto::clock::Time;
use worker_proto::status::Availability::{Available, Taken};

use super::rules;
use super::story::{A, B, C, Story, path, reload};
use crate::avail::{Action, Event, Exit, Kill, Pool, Rules, WorkerId};
use crate::notice::Notice;

#[test]
fn w03_w10_a_removed_service_goes_from_grace_to_sigterm_to_sigkill_to_gone() {
    let mut story = Story::new(rules(2));
    story.serve(A);
    let end = story.at(10_000);
    let actions = [Action::Retire(A), Action::Timer(end)];
    assert_eq!(story.on(Event::Remove(Duration::from_secs(10))), actions);
    assert_eq!(story.on(Event::Knock), []);
    story.wait(10_000);
    let actions = [Action::Kill(A, Kill::Term), Action::Timer(story.at(5000))];
    assert_eq!(story.on(Event::Tick), actions);
    story.wait(5000);
    assert_eq!(story.on(Event::Tick), [Action::Kill(A, Kill::Kill), Action::Timer(None)]);
    assert_eq!(story.on(Event::Ended(A, Exit::Signal(9))), [Action::Gone]);
}

#[test]
fn w03_a_removed_service_without_workers_is_gone_at_once() {
    let mut story = Story::new(rules(2));
    assert_eq!(
        story.on(Event::Remove(Duration::from_secs(10))),
        [Action::Gone, Action::Listen(false)]
    );
}

#[test]
fn w04_a_worker_that_ends_at_once_without_work_pauses_the_service() {
    let mut story = Story::new(rules(2));
    story.on(Event::Knock);
    let lines = story.log(Event::Ended(A, Exit::Status(0)));
    assert_eq!(lines, [Notice::NoWork { path: path() }]);
    assert!(story.pool.throttled_until().is_some());
}

#[test]
fn w04_a_client_taken_or_a_second_of_life_or_retirement_is_no_failure() {
    let mut taken = Story::new(rules(2));
    taken.on(Event::Knock);
    taken.on(Event::Status(A, Taken));
    taken.on(Event::Ended(A, Exit::Status(0)));
    let mut old = Story::new(rules(2));
    old.on(Event::Knock);
    old.wait(1000);
    old.on(Event::Ended(A, Exit::Status(0)));
    let mut retired = Story::new(rules(2));
    retired.on(Event::Knock);
    retired.on(reload(rules(2), false, true));
    retired.on(Event::Ended(A, Exit::Status(0)));
    for story in [taken, old, retired] {
        assert_eq!(story.pool.throttled_until(), None);
        assert!(story.pool.wants_listener());
    }
}

#[test]
fn w06_pauses_grow_and_a_served_client_a_change_or_the_operator_ends_them() {
    let mut story = Story::new(rules(2));
    let mut pauses = Vec::new();
    for n in 0..4 {
        story.on(Event::Knock);
        story.on(Event::Ended(WorkerId(n), Exit::Status(1)));
        let until = story.pool.throttled_until().unwrap();
        pauses.push(until.since(story.now).as_secs_f64().round());
        story.now = until;
        story.on(Event::Tick);
    }
    assert_eq!(pauses, [1.0, 2.0, 4.0, 8.0]);
    // A client was served: the next failure is a first one.
    story.serve(WorkerId(4));
    story.on(Event::Status(WorkerId(4), Taken));
    for (n, mend) in [(5, Event::Reset), (6, reload(rules(3), true, false))] {
        story.on(Event::Knock);
        story.on(Event::Ended(WorkerId(n), Exit::Status(1)));
        let pause = story.pool.throttled_until().unwrap().since(story.now);
        assert!(pause <= Duration::from_millis(1100), "{pause:?}");
        assert_eq!(story.on(mend), [Action::Listen(true), Action::Timer(None)]);
    }
}

#[test]
fn w07_with_a_burst_several_workers_come_up_together() {
    let mut story = Story::new(Rules { start_burst: 3, ..rules(10) });
    assert_eq!(story.on(Event::Knock), [Action::Spawn(A, false)]);
    assert_eq!(story.on(Event::Knock), [Action::Spawn(B, false)]);
    assert_eq!(story.on(Event::Knock), [Action::Listen(false), Action::Spawn(C, false)]);
    // Two are left to come up, so there is room for one more.
    assert_eq!(story.on(Event::Status(A, Taken)), [Action::Listen(true)]);
    // A worker that is known to be free takes the next client.
    assert_eq!(story.on(Event::Status(A, Available)), [Action::Listen(false)]);
}

#[test]
fn w07_spare_workers_wait_for_clients_below_the_limit() {
    let mut out = Vec::new();
    let mut pool = Pool::new(Rules { min_spare: 2, ..rules(3) });
    pool.start(Time::ZERO, &mut out);
    assert_eq!(out, [Action::Spawn(A, false), Action::Spawn(B, false)]);
    out.clear();
    pool.on(Time::ZERO, Event::Status(A, Taken), &mut out);
    assert_eq!(out, [Action::Spawn(C, false)]);
    out.clear();
    pool.on(Time::ZERO, Event::Status(B, Taken), &mut out);
    assert_eq!(out, []);
}

#[test]
fn w08_a_retired_worker_is_not_counted_on_and_still_heard() {
    let mut story = Story::new(rules(3));
    story.on(Event::Knock);
    // Between accept and its word, it seems idle; the reload must not make clients wait for it.
    let actions = [Action::Retire(A), Action::Listen(true)];
    assert_eq!(story.on(reload(rules(3), false, true)), actions);
    story.on(Event::Status(A, Taken));
    story.on(Event::Status(A, Available));
    assert_eq!(story.pool.stats().served, 1);
    assert!(story.pool.wants_listener());
    assert_eq!(story.on(reload(rules(3), false, true)), []);
}
