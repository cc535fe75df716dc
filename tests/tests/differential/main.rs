//! Our master beside Debian's Postfix master: see `belfry_tests::differential`.
//!
//! Where they are meant to differ is told in DIFFERENCES.md, which is made from the decisions here.
//! After a change: `BELFRY_BLESS=1 cargo test -p belfry-tests --test differential`.

mod corpus;
mod decisions;
mod document;

use belfry_tests::differential::Scenario;

/// Every scenario.
const SCENARIOS: &[&Scenario] = &[&corpus::TABLES];
