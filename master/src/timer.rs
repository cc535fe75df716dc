//! timer - deadlines of many owners
//!
//! A heap; an owner has at most one deadline, and setting it again leaves the old entry in the heap
//! to be skipped when it comes up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;

use worker_proto::clock::Time;

/// Deadlines by owner.
#[derive(Debug)]
pub struct Timers<K> {
    heap: BinaryHeap<Reverse<(Time, K)>>,
    current: HashMap<K, Time>,
}

impl<K: Copy + Ord + Hash> Timers<K> {
    /// None set.
    #[must_use]
    pub fn new() -> Self {
        Self { heap: BinaryHeap::new(), current: HashMap::new() }
    }

    /// Sets, moves or cancels an owner's deadline.
    pub fn set(&mut self, owner: K, at: Option<Time>) {
        match at {
            Some(at) => {
                if self.current.insert(owner, at) != Some(at) {
                    self.heap.push(Reverse((at, owner)));
                }
            }
            None => {
                self.current.remove(&owner);
            }
        }
    }

    /// The next deadline.
    pub fn next_deadline(&mut self) -> Option<Time> {
        while let Some(Reverse((at, owner))) = self.heap.peek() {
            if self.current.get(owner) == Some(at) {
                return Some(*at);
            }
            self.heap.pop();
        }
        None
    }

    /// Takes out an owner whose deadline has passed.
    pub fn pop_due(&mut self, now: Time) -> Option<K> {
        if self.next_deadline().is_none_or(|at| at > now) {
            return None;
        }
        let Reverse((_, owner)) = self.heap.pop()?;
        self.current.remove(&owner);
        Some(owner)
    }
}

impl<K: Copy + Ord + Hash> Default for Timers<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Time {
        Time::from_start(Duration::from_secs(seconds))
    }

    #[test]
    fn a_moved_or_cancelled_deadline_does_not_come_up() {
        let mut timers = Timers::new();
        timers.set('a', Some(at(1)));
        timers.set('b', Some(at(2)));
        timers.set('a', Some(at(3)));
        timers.set('b', None);
        assert_eq!(timers.next_deadline(), Some(at(3)));
        assert_eq!(timers.pop_due(at(2)), None);
        assert_eq!(timers.pop_due(at(3)), Some('a'));
        assert_eq!(timers.pop_due(at(9)), None);
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn a_deadline_set_again_to_an_earlier_value_comes_up_once() {
        let mut timers = Timers::new();
        timers.set('a', Some(at(5)));
        timers.set('a', Some(at(1)));
        timers.set('a', Some(at(5)));
        assert_eq!(timers.pop_due(at(4)), None);
        assert_eq!(timers.pop_due(at(5)), Some('a'));
        assert_eq!(timers.pop_due(at(5)), None);
    }
}
