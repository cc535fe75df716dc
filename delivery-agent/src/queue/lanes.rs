//! lanes - messages in order: by urgency, then by age

use std::collections::BTreeSet;

use crate::store::MessageNo;
use crate::wire::Lane;

/// Every lane, the most urgent first.
pub(super) const LANES: [Lane; 3] = [Lane::Urgent, Lane::Normal, Lane::Bulk];

/// Shares of the lanes (R7).
const WEIGHTS: [u32; 3] = [8, 3, 1];

/// Messages in their lanes.
#[derive(Debug, Default)]
pub(super) struct Lanes([BTreeSet<MessageNo>; 3]);

impl Lanes {
    pub(super) fn insert(&mut self, lane: Lane, no: MessageNo) {
        self.0[index(lane)].insert(no);
    }

    pub(super) fn remove(&mut self, lane: Lane, no: MessageNo) {
        self.0[index(lane)].remove(&no);
    }

    pub(super) fn contains(&self, lane: Lane, no: MessageNo) -> bool {
        self.0[index(lane)].contains(&no)
    }

    pub(super) fn first(&self, lane: Lane) -> Option<MessageNo> {
        self.0[index(lane)].first().copied()
    }

    /// Any message of a lane, as the number says.
    pub(super) fn any(&self, lane: Lane, number: u64) -> Option<MessageNo> {
        let messages = &self.0[index(lane)];
        let (MessageNo(first), MessageNo(last)) = (*messages.first()?, *messages.last()?);
        let span = last.abs_diff(first).saturating_add(1);
        let from = MessageNo(first.saturating_add_unsigned(number % span));
        messages.range(from..).next().copied()
    }
}

/// Whose turn it is: each lane has so many turns a round, and one without messages gives its turns
/// away.
#[derive(Debug)]
pub(super) struct Turns([u32; 3]);

impl Turns {
    pub(super) const fn new() -> Self {
        Self(WEIGHTS)
    }

    /// The lane whose turn it is among those that have something.
    pub(super) fn next(&self, has: impl Fn(Lane) -> bool) -> Option<Lane> {
        let with = || LANES.into_iter().filter(|&lane| has(lane));
        with().find(|&lane| self.0[index(lane)] > 0).or_else(|| with().next())
    }

    /// A lane has had its turn.
    pub(super) fn spend(&mut self, lane: Lane) {
        let left = &mut self.0[index(lane)];
        if *left == 0 {
            self.0 = WEIGHTS;
        }
        self.0[index(lane)] -= 1;
    }
}

const fn index(lane: Lane) -> usize {
    match lane {
        Lane::Urgent => 0,
        Lane::Normal => 1,
        Lane::Bulk => 2,
    }
}
