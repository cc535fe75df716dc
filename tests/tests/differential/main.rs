//! Our master beside Debian's Postfix master: see `belfry_tests::differential`.
//!
//! Where they are meant to differ is told in DIFFERENCES.md, which is made from the decisions here.
//! After a change: `BELFRY_BLESS=1 cargo test -p belfry-tests --test differential`.

mod corpus;
mod decisions;
mod document;
mod lives;
mod reloads;
mod starts;
mod talk;
mod world;

use belfry_tests::differential::Scenario;

/// Every scenario.
const SCENARIOS: &[&Scenario] = &[
    &corpus::TABLES,
    &corpus::TABLES6,
    &world::WORLD,
    &world::WORLD6,
    &world::SCRIPTS,
    &world::OPTIONS,
    &starts::SERIAL,
    &starts::CRASH,
    &starts::CRASH_COMPAT,
    &starts::IDLER,
    &starts::IDLER_COMPAT,
    &starts::KILLED,
    &starts::LIMIT,
    &reloads::BAD_LINE,
    &reloads::BUSY_PORT,
    &reloads::REMOVED,
    &reloads::KEPT,
    &reloads::INTERFACES,
    &reloads::PAUSED,
    &reloads::QUEUE,
    &reloads::DEAF,
    &talk::GOSSIP,
    &talk::WAKEUPS,
    &lives::ENDS,
    &lives::LOCKS,
    &lives::USAGE,
    &lives::STEPCHILD,
    &lives::FAILURE,
];
