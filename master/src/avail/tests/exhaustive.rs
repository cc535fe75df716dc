//! exhaustive - everything that can happen to a service with two workers
//!
//! Sequences that lead to the same state have the same future, so each state is entered once: the
//! states after one event, after two, and so on. [`World`] checks every rule after every event.

use std::collections::HashSet;
use std::time::Duration;

use worker_proto::status::Availability::{Available, Taken};

use super::model::Life;
use super::rules;
use super::world::{Step, World};
use crate::avail::{Event, Exit, Rules, ThrottleRule};

const DEPTH: usize = 9;

/// The state without what differs and does not matter: names of workers, and absolute time.
fn state(world: &World) -> Vec<u64> {
    let (model, now) = (&world.model, world.now);
    let left =
        |time| u64::try_from(worker_proto::clock::Time::since(time, now).as_millis()).unwrap();
    let mut state = vec![
        u64::from(model.rules.max_proc.unwrap_or(0)),
        model.pause.map_or(0, left),
        u64::from(model.failures > 0),
        left(model.stress_end),
        model.shortage_told.map_or(0, |at| left(at + Duration::from_secs(1000))),
        u64::from(world.dead(0).is_some()),
    ];
    state.extend(match model.life {
        Life::Serves => [0, 0],
        Life::Grace(end) => [1, left(end)],
        Life::Term(end) => [2, left(end)],
        Life::Killed => [3, 0],
        Life::Gone => [4, 0],
    });
    for peer in &model.peers {
        let young = now < peer.born + Duration::from_secs(1);
        let newer = peer.born > model.last_failure;
        let flags = [peer.busy, peer.retired, peer.spoke, peer.served > 0, young, newer];
        state.push(flags.iter().fold(1, |bits, flag| bits << 1 | u64::from(*flag)));
    }
    state
}

/// All that can happen next; a knock with a failing fork is two steps.
fn steps(world: &World) -> Vec<Vec<Step>> {
    let limit = if world.model.rules.max_proc == Some(2) { 1 } else { 2 };
    let same = world.model.rules.clone();
    let other = Rules { max_proc: Some(limit), ..same.clone() };
    let mut steps = vec![
        vec![Step::Knock],
        vec![Step::Forks(false), Step::Knock, Step::Forks(true)],
        vec![Step::Deadline],
        vec![Step::Forks(false), Step::Deadline, Step::Forks(true)],
        vec![Step::Wait(Duration::from_secs(1000))],
        vec![Step::Reload { rules: same, changed: false, retire: true }],
        vec![Step::Reload { rules: other, changed: true, retire: false }],
        vec![Step::Remove(Duration::from_secs(10))],
        vec![Step::Remove(Duration::ZERO)],
        vec![Step::Reset],
    ];
    for at in 0..world.model.peers.len() {
        steps.push(vec![Step::Says(at, Taken)]);
        steps.push(vec![Step::Says(at, Available)]);
        steps.push(vec![Step::Ends(at, Exit::Status(0))]);
        steps.push(vec![Step::Ends(at, Exit::Signal(9))]);
    }
    if let Some(id) = world.dead(0) {
        steps.push(vec![Step::Stale(Event::Status(id, Taken))]);
        steps.push(vec![Step::Stale(Event::Status(id, Available))]);
        steps.push(vec![Step::Stale(Event::Ended(id, Exit::Signal(9)))]);
    }
    steps
}

/// Returns how many states there are.
fn explore(change: Rules) -> usize {
    let minute = Duration::from_secs(60);
    let throttle = ThrottleRule { first: minute, most: minute };
    let mut worlds = vec![World::new(Rules { throttle, ..change })];
    let mut seen = HashSet::new();
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for world in worlds {
            for step in steps(&world) {
                let mut after = world.clone();
                step.into_iter().for_each(|step| after.step(step));
                if !after.gone && seen.insert(state(&after)) {
                    next.push(after);
                }
            }
        }
        worlds = next;
    }
    seen.len()
}

#[test]
fn every_sequence_of_events() {
    assert!(explore(rules(2)) > 1000);
}

#[test]
fn every_sequence_of_events_with_stress() {
    assert!(explore(Rules { stressable: true, ..rules(2) }) > 1000);
}

#[test]
fn every_sequence_of_events_with_a_burst_and_a_spare_worker() {
    assert!(explore(Rules { start_burst: 2, min_spare: 1, ..rules(2) }) > 1000);
}

#[test]
fn every_sequence_of_events_as_postfix() {
    assert!(explore(Rules { compat: true, stressable: true, ..rules(2) }) > 1000);
}
