//! differential - the same scenario under our master and under Debian's Postfix master
//!
//! A [`Scenario`] drives a [`Master`] of either kind and writes down what can be seen in an
//! [`Observation`]. What Postfix's shows is recorded in `tests/corpus/NAME.expected`. Ours must show
//! the same but for the [`Difference`]s that the scenario declares, each by a [`Decision`]: one that
//! nobody has declared is a failure, and so is one that does not occur.
//!
//! MASTER_UNDER_TEST=ours or =postfix picks one master; without it both run, Postfix's if it is
//! installed. BELFRY_BLESS=1 records what Postfix's shows.

mod decision;
mod kind;
mod looks;
mod master;
mod observation;
mod reload;
mod reports;
mod scenario;

pub use decision::{Decision, Difference};
pub use kind::Kind;
pub use looks::Place;
pub use master::Master;
pub use observation::Observation;
pub use reload::Reloaded;
pub use reports::{Knock, Report};
pub use scenario::{Scenario, corpus};
