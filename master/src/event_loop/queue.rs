//! queue - what is left to do
//!
//! What happens to a service is put at the end of one queue and worked off from its start, so that
//! nothing that is carried out calls itself, however much follows from it. A source that has more than
//! its share of a turn is looked at again in the next one, after whatever became ready meanwhile.

use std::collections::VecDeque;

use super::ServiceId;
use super::sources::Source;
use crate::avail::Event;

#[derive(Default)]
pub(super) struct Queue {
    events: VecDeque<(ServiceId, Event)>,
    again: Vec<Source>,
}

impl Queue {
    /// A service is to be told of an event, after those that are queued.
    pub(super) fn push(&mut self, id: ServiceId, event: Event) {
        self.events.push_back((id, event));
    }

    /// The next event.
    pub(super) fn pop(&mut self) -> Option<(ServiceId, Event)> {
        self.events.pop_front()
    }

    /// A source is to be looked at again in the next turn, whether or not it is reported.
    pub(super) fn again(&mut self, source: Source) {
        if !self.again.contains(&source) {
            self.again.push(source);
        }
    }

    /// Whether the next turn has work already.
    pub(super) const fn has_more(&self) -> bool {
        !self.again.is_empty()
    }

    /// The sources to look at in this turn; what is queued from now on is for the next.
    pub(super) fn turn(&mut self) -> Vec<Source> {
        std::mem::take(&mut self.again)
    }
}
