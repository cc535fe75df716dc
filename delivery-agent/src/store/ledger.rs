//! ledger - what has ended since this process began
//!
//! A mark that is on disk can be lost with its page. What was delivered in this run is not sent
//! again even then.

use std::collections::{BTreeMap, HashMap};

use super::changes::Change;
use super::{MessageNo, RecipientState};

/// Recipients that have ended, with the reply.
type Marks = Vec<(i64, RecipientState, String)>;

/// Numbers of ended messages, as ranges: nearly all end, so there are few.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    ended: BTreeMap<i64, i64>,
    partly: HashMap<MessageNo, Marks>,
}

impl Ledger {
    /// A change was made, or should have been; by it the message has ended.
    pub(super) fn note(&mut self, change: &Change, ended: bool) {
        match change {
            Change::Delete { no } => self.end(*no),
            Change::Mark { no, .. } if ended => self.end(*no),
            Change::Mark { no, marks, .. } => {
                let ended = marks.iter().filter(|(_, state, _)| *state != RecipientState::Queued);
                self.partly.entry(*no).or_default().extend(ended.cloned());
            }
            Change::Defer { .. } => {}
        }
    }

    fn end(&mut self, no: MessageNo) {
        self.partly.remove(&no);
        let (mut first, mut last) = (no.0, no.0);
        if let Some((&before, &end)) = self.ended.range(..=first).next_back() {
            if end >= last {
                return;
            }
            if end == first - 1 {
                first = before;
            }
        }
        if let Some(end) = self.ended.remove(&(last + 1)) {
            last = end;
        }
        self.ended.insert(first, last);
    }

    /// Ranges of messages that have ended.
    pub(super) fn ended(&self) -> impl Iterator<Item = (i64, i64)> + '_ {
        self.ended.iter().map(|(first, last)| (*first, *last))
    }

    /// Recipients that have ended, of messages that have not as far as is known.
    pub(super) fn partly(&self) -> impl Iterator<Item = (MessageNo, &Marks)> + '_ {
        self.partly.iter().map(|(no, marks)| (*no, marks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_are_the_set_of_what_was_put_in(numbers in prop::collection::vec(1_i64..60, 0..80)) {
            let mut ledger = Ledger::default();
            numbers.iter().for_each(|n| ledger.end(MessageNo(*n)));
            let listed: Vec<i64> = ledger.ended().flat_map(|(a, b)| a..=b).collect();
            let mut wanted = numbers.clone();
            wanted.sort_unstable();
            wanted.dedup();
            prop_assert_eq!(listed, wanted);
            let ranges: Vec<_> = ledger.ended().collect();
            prop_assert!(ranges.windows(2).all(|w| w[0].1 + 1 < w[1].0), "not joined: {:?}", ranges);
        }
    }
}
