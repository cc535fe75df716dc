//! examples - the rows of the conformance table, one short story each

use std::time::Duration;

use worker_proto::clock::Time;
use worker_proto::status::Availability::{Available, Taken};

use super::rules;
use super::story::{A, B, C, D, Story, path, reload};
use crate::avail::{Action, Event, Exit, Pool, Rules, ThrottleRule};
use crate::notice::Notice;

/// Postfix's pauses: all the same.
fn constant(max_proc: u32) -> Rules {
    let minute = Duration::from_secs(60);
    Rules { throttle: ThrottleRule { first: minute, most: minute }, ..rules(max_proc) }
}

#[test]
fn i01_a_service_listens_from_its_start() {
    let mut out = Vec::new();
    Pool::new(rules(2)).start(Time::ZERO, &mut out);
    assert_eq!(out, [Action::Listen(true)]);
}

#[test]
fn i02_a_knock_starts_one_worker_which_counts_as_idle_at_once() {
    let mut story = Story::new(rules(2));
    assert_eq!(story.on(Event::Knock), [Action::Listen(false), Action::Spawn(A, false)]);
    assert_eq!(story.on(Event::Started(A, 7)), []);
    assert_eq!((story.pool.idle(), story.pool.workers().count()), (1, 1));
    // A knock that was already on its way is not for a second worker.
    assert_eq!(story.on(Event::Knock), []);
}

#[test]
fn i03_master_listens_while_all_workers_have_clients() {
    let mut story = Story::new(rules(2));
    story.on(Event::Knock);
    assert_eq!(story.on(Event::Status(A, Taken)), [Action::Listen(true)]);
    assert_eq!(story.on(Event::Status(A, Available)), [Action::Listen(false)]);
    assert_eq!(story.pool.stats().served, 1);
}

#[test]
fn i05_at_the_limit_nobody_listens_and_the_log_says_so_once_in_1000_s() {
    let mut story = Story::new(Rules { stressable: true, ..rules(2) });
    let warning = Notice::ProcessLimit { ext_name: "smtp".into(), name: "25".into(), limit: 2 };
    let lines = [warning, Notice::ProcessLimitAdvice, Notice::ProcessLimitStress];
    for id in [A, B] {
        story.on(Event::Knock);
        if id == A {
            story.on(Event::Status(A, Taken));
        }
    }
    assert_eq!(story.log(Event::Status(B, Taken)), lines);
    assert!(!story.pool.wants_listener());
    story.wait(999_999);
    story.on(Event::Status(B, Available));
    assert_eq!(story.log(Event::Status(B, Taken)), []);
    story.wait(1);
    story.on(Event::Status(B, Available));
    assert_eq!(story.log(Event::Status(B, Taken)), lines);
}

#[test]
fn i06_a_local_service_at_its_limit_is_one_line_and_silent_as_postfix() {
    for compat in [false, true] {
        let mut story = Story::new(Rules { compat, ..rules(2) });
        for id in [A, B] {
            story.on(Event::Knock);
            let lines = story.log(Event::Status(id, Taken));
            assert_eq!(lines.len(), usize::from(id == B && !compat), "{lines:?}");
        }
    }
}

#[test]
fn i07_i08_idle_workers_are_neither_kept_nor_trimmed() {
    let mut story = Story::new(rules(2));
    story.serve(A);
    // Max_idle is over: nobody takes its place until a client comes.
    assert_eq!(story.on(Event::Ended(A, Exit::Status(0))), [Action::Listen(true)]);
    // A smaller limit ends no worker.
    story.on(Event::Knock);
    story.on(Event::Status(B, Taken));
    story.on(Event::Knock);
    assert_eq!(story.on(reload(rules(1), true, false)), []);
    assert_eq!(story.pool.workers().count(), 2);
}

#[test]
fn j05_a_state_that_is_known_and_a_dead_worker_say_nothing_new() {
    let mut story = Story::new(rules(3));
    story.on(Event::Knock);
    story.on(Event::Status(A, Taken));
    assert_eq!(story.on(Event::Status(A, Taken)), []);
    story.on(Event::Status(A, Available));
    assert_eq!(story.on(Event::Status(A, Available)), []);
    assert_eq!(story.pool.stats().served, 1);
    story.on(Event::Ended(A, Exit::Status(0)));
    assert_eq!(story.on(Event::Status(A, Taken)), []);
    assert_eq!(story.on(Event::Ended(A, Exit::Status(1))), []);
    assert_eq!(story.pool.stats().failed, 0);
}

#[test]
fn k01_a_worker_that_fails_before_its_first_client_has_gone_pauses_the_service() {
    for exit in [Exit::Status(1), Exit::Signal(9)] {
        let mut story = Story::new(constant(2));
        story.on(Event::Knock);
        story.on(Event::Started(A, 77));
        story.on(Event::Status(A, Taken));
        let (path, pid) = (path(), 77);
        let how = match exit {
            Exit::Status(status) => Notice::ExitStatus { path: path.clone(), pid, status },
            Exit::Signal(signal) => Notice::KilledBySignal { path: path.clone(), pid, signal },
        };
        let until = story.at(60_000);
        let actions = [
            Action::Log(how),
            Action::Log(Notice::BadStartup { path }),
            Action::Wake(until.unwrap() + constant(2).throttle.first),
            Action::Listen(false),
            Action::Timer(until),
        ];
        assert_eq!(story.all(Event::Ended(A, exit)), actions);
        assert_eq!(story.pool.throttled_until(), until);
    }
}

#[test]
fn k01_a_failed_fork_pauses_the_service() {
    let mut story = Story::new(constant(2));
    story.on(Event::Knock);
    let reason = "Resource temporarily unavailable".to_owned();
    let lines = story.log(Event::StartFailed(A, reason.clone()));
    assert_eq!(lines, [Notice::ForkFailed { reason }]);
    assert_eq!(story.pool.throttled_until(), story.at(60_000));
    assert_eq!(story.pool.workers().count(), 0);
}

#[test]
fn k01_a_worker_that_has_served_may_fail_without_a_pause() {
    let mut story = Story::new(rules(2));
    story.serve(A);
    let lines = story.log(Event::Ended(A, Exit::Signal(11)));
    assert_eq!(lines, [Notice::KilledBySignal { path: path(), pid: 0, signal: 11 }]);
    assert_eq!(story.pool.throttled_until(), None);
    assert!(story.pool.wants_listener());
}

#[test]
fn k02_after_the_pause_the_service_listens_again_and_its_workers_went_on_meanwhile() {
    let mut story = Story::new(constant(3));
    story.serve(A);
    story.on(Event::Status(A, Taken));
    story.on(Event::Knock);
    story.on(Event::Ended(B, Exit::Status(1)));
    assert_eq!(story.on(Event::Status(A, Available)), []);
    assert_eq!(story.on(Event::Status(A, Taken)), []);
    story.wait(59_999);
    assert_eq!(story.on(Event::Tick), []);
    story.wait(1);
    let released = Action::Log(Notice::DebugThrottleReleased { path: path() });
    let actions = [released, Action::Listen(true), Action::Timer(None)];
    assert_eq!(story.all(Event::Tick), actions);
}

#[test]
fn k03_a_normal_end_without_a_client_is_no_failure_for_postfix() {
    let mut story = Story::new(Rules { compat: true, ..constant(2) });
    story.on(Event::Knock);
    assert_eq!(story.all(Event::Ended(A, Exit::Status(0))), [Action::Listen(true)]);
}

#[test]
fn k04_kill_9_of_an_idle_unused_worker_pauses_the_service() {
    let mut story = Story::new(constant(2));
    story.on(Event::Knock);
    story.on(Event::Ended(A, Exit::Signal(9)));
    assert!(story.pool.throttled_until().is_some());
}

#[test]
fn k05_a_reload_of_an_unchanged_service_does_not_end_its_pause() {
    let mut story = Story::new(constant(2));
    story.on(Event::Knock);
    story.on(Event::Ended(A, Exit::Status(1)));
    assert_eq!(story.on(reload(constant(2), false, true)), []);
    assert!(story.pool.throttled_until().is_some());
    let compat = Rules { compat: true, ..constant(3) };
    assert_eq!(story.on(reload(compat, true, true)), []);
}

#[test]
fn k06_a_new_throttle_time_counts_from_the_next_failure() {
    let mut story = Story::new(constant(2));
    story.on(Event::Knock);
    story.on(Event::Ended(A, Exit::Status(1)));
    let until = story.pool.throttled_until();
    let second = Duration::from_secs(1);
    let rules = Rules { throttle: ThrottleRule { first: second, most: second }, ..rules(2) };
    story.on(reload(rules, false, false));
    assert_eq!(story.pool.throttled_until(), until);
    story.wait(60_000);
    story.on(Event::Tick);
    story.on(Event::Knock);
    story.on(Event::Ended(B, Exit::Status(1)));
    assert_eq!(story.pool.throttled_until(), story.at(1000));
}

#[test]
fn l03_sigterm_is_no_news_of_a_removed_service_and_sigkill_is() {
    for (exit, lines) in [(Exit::Signal(15), 0), (Exit::Status(15), 0), (Exit::Signal(9), 1)] {
        let mut story = Story::new(rules(2));
        story.serve(A);
        story.on(Event::Remove(Duration::ZERO));
        assert_eq!(story.log(Event::Ended(A, exit)).len(), lines);
    }
}

#[test]
fn l05_a_dead_idle_worker_is_no_longer_counted_on() {
    let mut story = Story::new(rules(2));
    story.serve(A);
    assert_eq!(story.on(Event::Ended(A, Exit::Signal(9))), [Action::Listen(true)]);
    assert_eq!((story.pool.idle(), story.pool.workers().count()), (0, 0));
}

#[test]
fn m01_the_last_worker_starts_under_stress_and_the_others_are_renewed() {
    let mut story = Story::new(Rules { stressable: true, ..rules(3) });
    for id in [A, B] {
        assert!(story.on(Event::Knock).contains(&Action::Spawn(id, false)));
        story.on(Event::Status(id, Taken));
    }
    let last =
        [Action::Retire(A), Action::Retire(B), Action::Listen(false), Action::Spawn(C, true)];
    assert_eq!(story.on(Event::Knock), last);
    // While the pulse lasts nobody else is renewed; the event makes it last longer.
    story.on(Event::Status(C, Taken));
    story.wait(999_000);
    story.on(Event::Ended(A, Exit::Status(0)));
    assert_eq!(story.on(Event::Knock), [Action::Listen(false), Action::Spawn(D, true)]);
    story.wait(999_000);
    assert!(story.pool.stressed(story.now));
}

#[test]
fn m02_when_the_pulse_ends_new_workers_are_plain_and_the_others_stay() {
    let mut story = Story::new(Rules { stressable: true, ..rules(2) });
    story.on(Event::Knock);
    story.on(Event::Status(A, Taken));
    assert_eq!(story.on(Event::Knock).last(), Some(&Action::Spawn(B, true)));
    story.on(Event::Ended(A, Exit::Status(0)));
    story.wait(1_000_000);
    assert_eq!(story.on(Event::Tick), []);
    story.on(Event::Ended(B, Exit::Status(0)));
    assert_eq!(story.on(Event::Knock), [Action::Listen(false), Action::Spawn(C, false)]);
}

#[test]
fn m01_a_service_without_stress_renews_nobody() {
    let mut story = Story::new(rules(1));
    assert_eq!(story.on(Event::Knock), [Action::Listen(false), Action::Spawn(A, false)]);
    assert!(!story.pool.stressed(story.now));
}
