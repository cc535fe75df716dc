//! random - long lives of services of every kind, against the model

use std::time::Duration;

use proptest::prelude::*;
use worker_proto::status::Availability::{self, Available, Taken};

use super::rules;
use super::world::{Step, World};
use crate::avail::{Event, Exit, Kill, Rules, ThrottleRule};

/// A step whose details depend on the world it is taken in.
#[derive(Debug, Clone)]
enum Plan {
    Do(Step),
    StaleStatus(usize, Availability),
    StaleEnd(usize, Exit),
    /// Every worker gets a client.
    Rush,
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let limit = prop_oneof![1 => Just(None), 6 => (1..6_u32).prop_map(Some)];
    let flags = (any::<bool>(), prop::bool::weighted(0.2));
    let throttle = (1..30_u64, prop_oneof![Just(0), 0..100_u64]).prop_map(|(first, more)| {
        let seconds = Duration::from_secs;
        ThrottleRule { first: seconds(first), most: seconds(first + more) }
    });
    let burst = prop_oneof![2 => Just(1), 1 => 2..5_u32];
    let spare = prop_oneof![2 => Just(0), 1 => 1..4_u32];
    (limit, flags, throttle, burst, spare, 1..20_u64).prop_map(
        |(max_proc, (stressable, compat), throttle, start_burst, min_spare, kill_time)| Rules {
            max_proc,
            stressable,
            throttle,
            start_burst,
            min_spare,
            kill_time: Duration::from_secs(kill_time),
            compat,
            ..rules(1)
        },
    )
}

fn any_exit() -> impl Strategy<Value = Exit> {
    prop_oneof![
        3 => Just(Exit::Status(0)),
        1 => Just(Exit::Status(1)),
        1 => Just(Exit::Status(15)),
        1 => prop_oneof![Just(9), Just(11), Just(15)].prop_map(Exit::Signal),
    ]
}

fn any_time() -> impl Strategy<Value = Duration> {
    prop_oneof![
        4 => 1..1500_u64,
        2 => 1500..60_000_u64,
        1 => 900_000..2_000_000_u64,
    ]
    .prop_map(Duration::from_millis)
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let says = || prop_oneof![Just(Taken), Just(Available)];
    let at = any::<usize>;
    let reload = (any_rules(), any::<bool>(), any::<bool>());
    let do_it = prop_oneof![
        20 => Just(Step::Knock),
        20 => (at(), says()).prop_map(|(at, what)| Step::Says(at, what)),
        6 => (at(), any_exit()).prop_map(|(at, exit)| Step::Ends(at, exit)),
        6 => Just(Step::Deadline),
        6 => any_time().prop_map(Step::Wait),
        3 => any_time().prop_map(Step::Late),
        2 => prop::bool::weighted(0.7).prop_map(Step::Forks),
        1 => reload.prop_map(|(rules, changed, retire)| Step::Reload { rules, changed, retire }),
        1 => Just(Step::Reset),
        1 => Just(Step::SocketShut),
    ];
    prop_oneof![
        60 => do_it.prop_map(Plan::Do),
        4 => Just(Plan::Rush),
        2 => (at(), says()).prop_map(|(at, what)| Plan::StaleStatus(at, what)),
        1 => (at(), any_exit()).prop_map(|(at, exit)| Plan::StaleEnd(at, exit)),
    ]
}

fn live(world: &mut World, plan: Plan) {
    match plan {
        Plan::Do(step) => world.step(step),
        Plan::StaleStatus(at, what) => {
            if let Some(id) = world.dead(at) {
                world.step(Step::Stale(Event::Status(id, what)));
            }
        }
        Plan::StaleEnd(at, exit) => {
            if let Some(id) = world.dead(at) {
                world.step(Step::Stale(Event::Ended(id, exit)));
            }
        }
        Plan::Rush => {
            for at in 0..world.model.peers.len() {
                world.step(Step::Says(at, Taken));
            }
        }
    }
}

/// Stops a service, more than once, until it is gone: workers that heed SIGTERM end by it, the others
/// by SIGKILL.
fn stop(world: &mut World, graces: &[Duration], heeds: &[bool]) {
    for grace in graces {
        world.step(Step::Remove(*grace));
    }
    let mut turns = heeds.iter().cycle();
    while !world.gone {
        let killed = world.killed();
        if killed == Some(Kill::Kill) {
            world.step(Step::Ends(0, Exit::Signal(9)));
        } else if killed == Some(Kill::Term) && turns.next() == Some(&true) {
            world.step(Step::Ends(0, Exit::Signal(15)));
        } else {
            assert!(world.has_timer(), "nothing will ever happen");
            world.step(Step::Deadline);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_does_as_the_model(
        rules in any_rules(),
        plans in prop::collection::vec(any_plan(), 0..250),
        graces in prop::collection::vec((0..30_u64).prop_map(Duration::from_secs), 1..3),
        heeds in prop::collection::vec(any::<bool>(), 1..8),
        more in prop::collection::vec(any_plan(), 0..10),
    ) {
        let mut world = World::new(rules);
        for plan in plans {
            live(&mut world, plan);
        }
        world.step(Step::Remove(graces[0]));
        for plan in more {
            live(&mut world, plan);
        }
        stop(&mut world, &graces, &heeds);
    }
}
