//! decision - where our master is meant to differ, and why

/// A way in which ours differs from Postfix's.
#[derive(Debug, PartialEq, Eq)]
pub struct Decision {
    /// `W04`, or a name.
    pub id: &'static str,
    /// What it is about.
    pub title: &'static str,
    /// What Postfix's master does.
    pub postfix: &'static str,
    /// What ours does, and what makes it do as Postfix's.
    pub ours: &'static str,
    /// Tests elsewhere that show it.
    pub tests: &'static [&'static str],
}

impl Decision {
    /// A difference by this decision: what ours shows at a place of an observation.
    #[must_use]
    pub const fn at(&'static self, place: &'static str, ours: &'static str) -> Difference {
        Difference { place, ours, why: self }
    }
}

/// A declared difference in one scenario.
#[derive(Debug, Clone, Copy)]
pub struct Difference {
    /// The name of the line in the observation.
    pub place: &'static str,
    /// What ours shows there; [`crate::differential::Observation::NOTHING`] if it has no such line.
    pub ours: &'static str,
    /// The decision behind it.
    pub why: &'static Decision,
}
