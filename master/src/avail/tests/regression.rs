//! regression - one test for each bug that was found, with what went wrong

use std::time::Duration;

use worker_proto::clock::Time;
use worker_proto::status::Availability::{Available, Taken};

use super::rules;
use super::story::{Story, reload};
use crate::avail::{Action, Event, Exit, Kill, Pool, Rules, WorkerId};
use crate::notice::Notice;

const A: WorkerId = WorkerId(0);
const B: WorkerId = WorkerId(1);

fn at(seconds: u64) -> Time {
    Time::from_start(Duration::from_secs(seconds))
}

fn on(pool: &mut Pool, seconds: u64, event: Event) -> Vec<Action> {
    let mut out = Vec::new();
    pool.on(at(seconds), event, &mut out);
    out
}

fn failed(id: WorkerId) -> Event {
    Event::StartFailed(id, "Resource temporarily unavailable".to_owned())
}

/// A spare worker that could not be forked at the end of a pause set the timer of the next pause, and
/// the cancellation of the old timer came after it: the service stayed throttled for good.
#[test]
fn w06_a_failed_start_is_not_overtaken_by_older_actions() {
    let mut pool = Pool::new(Rules { min_spare: 1, ..rules(2) });
    let mut first = Vec::new();
    pool.start(at(100), &mut first);
    assert_eq!(first, [Action::Spawn(A, false)]);
    on(&mut pool, 100, failed(A));
    let tick = on(&mut pool, 102, Event::Tick);
    let released = Action::Log(Notice::DebugThrottleReleased { path: rules(1).path });
    assert_eq!(tick, [released, Action::Timer(None), Action::Spawn(B, false)]);
    let last = on(&mut pool, 102, failed(B)).pop();
    assert_eq!(last, Some(Action::Timer(pool.throttled_until())));
}

/// The end of the master during the grace of a removed service sent its workers back a step: a second
/// SIGTERM, and SIGKILL later than promised.
#[test]
fn w03_a_second_removal_hastens_the_end_and_never_goes_a_step_back() {
    let mut pool = Pool::new(rules(2));
    on(&mut pool, 100, Event::Knock);
    on(&mut pool, 100, Event::Remove(Duration::from_secs(60)));
    let soon = on(&mut pool, 101, Event::Remove(Duration::ZERO));
    assert_eq!(soon, [Action::Kill(A, Kill::Term), Action::Timer(Some(at(106)))]);
    assert_eq!(on(&mut pool, 103, Event::Remove(Duration::ZERO)), []);
    let kill = on(&mut pool, 106, Event::Tick);
    assert_eq!(kill, [Action::Kill(A, Kill::Kill), Action::Timer(None)]);
    assert_eq!(on(&mut pool, 107, Event::Remove(Duration::ZERO)), []);
    assert!(on(&mut pool, 108, Event::Ended(A, Exit::Signal(9))).contains(&Action::Gone));
    assert_eq!(on(&mut pool, 109, Event::Remove(Duration::ZERO)), []);
}

/// A reload of a service with as many idle workers as it may have told of a shortage: they were
/// retired, and so nobody was idle.
#[test]
fn i05_a_reload_of_idle_workers_at_the_limit_is_no_shortage() {
    let mut pool = Pool::new(Rules { stressable: true, min_spare: 2, ..rules(2) });
    pool.start(at(100), &mut Vec::new());
    let rules = pool.rules().clone();
    let actions = on(&mut pool, 100, Event::Reload { rules, changed: false, retire: true });
    assert_eq!(actions, [Action::Retire(A), Action::Retire(B)]);
}

/// A worker that said it was free, which was known, and ended at once was not taken for one that does
/// no work: the waiting client started the next one, a thousand a second.
#[test]
fn w04_to_say_available_is_no_work() {
    let mut pool = Pool::new(rules(2));
    pool.start(at(100), &mut Vec::new());
    on(&mut pool, 100, Event::Knock);
    on(&mut pool, 100, Event::Status(A, Available));
    on(&mut pool, 100, Event::Ended(A, Exit::Status(0)));
    assert!(pool.throttled_until().is_some());
    on(&mut pool, 102, Event::Tick);
    on(&mut pool, 102, Event::Knock);
    on(&mut pool, 102, Event::Status(B, Taken));
    on(&mut pool, 102, Event::Ended(B, Exit::Status(0)));
    assert_eq!(pool.throttled_until(), None);
}

/// A retired qmgr took the wakeup of the reload with it and exited with status 0: the next one came
/// after 300 s.
#[test]
fn a_service_is_woken_when_its_retired_worker_has_ended() {
    let mut story = Story::new(rules(1));
    story.serve(A);
    story.on(reload(rules(1), false, true));
    let actions = story.all(Event::Ended(A, Exit::Status(0)));
    assert!(actions.contains(&Action::Wake(story.now)), "{actions:?}");
    // One that ends by itself has nothing to hand on.
    story.serve(B);
    let actions = story.all(Event::Ended(B, Exit::Status(0)));
    assert!(!actions.iter().any(|a| matches!(a, Action::Wake(_))), "{actions:?}");
}

#[test]
fn a_service_is_woken_a_moment_after_a_worker_was_lost_and_not_in_its_pause() {
    let mut story = Story::new(rules(1));
    story.serve(A);
    let first = rules(1).throttle.first;
    let actions = story.all(Event::Ended(A, Exit::Signal(9)));
    assert!(actions.contains(&Action::Wake(story.now + first)), "{actions:?}");
    story.on(Event::Knock);
    let actions = story.all(Event::Ended(B, Exit::Status(1)));
    let until = story.pool.throttled_until().unwrap();
    assert!(actions.contains(&Action::Wake(until + first)), "{actions:?}");
    story.on(Event::Remove(Duration::ZERO));
    assert!(!story.all(Event::Tick).iter().any(|a| matches!(a, Action::Wake(_))));
}

/// A worker that saw the end of its channel before SIGTERM could not tell a stop from a reload.
#[test]
fn at_a_stop_the_signal_comes_before_the_end_of_the_channel() {
    let mut story = Story::new(rules(1));
    story.serve(A);
    let actions = story.on(Event::Remove(Duration::ZERO));
    assert_eq!(actions[..2], [Action::Kill(A, Kill::Term), Action::Retire(A)]);
}
