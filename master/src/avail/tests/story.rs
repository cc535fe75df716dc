//! story - a pool and a clock, for tests that tell what happens to one service

use std::rc::Rc;
use std::time::Duration;

use worker_proto::clock::Time;
use worker_proto::status::Availability::{Available, Taken};

use super::rules;
use crate::avail::{Action, Event, Pool, Rules, WorkerId};
use crate::notice::Notice;

pub(super) const A: WorkerId = WorkerId(0);
pub(super) const B: WorkerId = WorkerId(1);
pub(super) const C: WorkerId = WorkerId(2);
pub(super) const D: WorkerId = WorkerId(3);

/// A pool, and a clock in milliseconds.
pub(super) struct Story {
    pub(super) pool: Pool,
    pub(super) now: Time,
}

impl Story {
    /// Begins at 100 s; the first actions are left out.
    pub(super) fn new(rules: Rules) -> Self {
        let mut story =
            Self { pool: Pool::new(rules), now: Time::from_start(Duration::from_secs(100)) };
        story.pool.start(story.now, &mut Vec::new());
        story
    }

    pub(super) fn wait(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
    }

    pub(super) fn all(&mut self, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        self.pool.on(self.now, event, &mut out);
        out
    }

    /// What to do, without the lines for the log and wakeups.
    pub(super) fn on(&mut self, event: Event) -> Vec<Action> {
        let all = self.all(event);
        all.into_iter().filter(|a| !matches!(a, Action::Log(_) | Action::Wake(_))).collect()
    }

    /// The lines for the log alone.
    pub(super) fn log(&mut self, event: Event) -> Vec<Notice> {
        let lines = self.all(event).into_iter();
        lines.filter_map(|a| if let Action::Log(line) = a { Some(line) } else { None }).collect()
    }

    /// A client that a new worker serves to the end.
    pub(super) fn serve(&mut self, id: WorkerId) {
        assert!(self.all(Event::Knock).contains(&Action::Spawn(id, false)));
        self.all(Event::Status(id, Taken));
        self.all(Event::Status(id, Available));
    }

    pub(super) fn at(&self, millis: u64) -> Option<Time> {
        Some(self.now + Duration::from_millis(millis))
    }
}

pub(super) fn path() -> Rc<str> {
    rules(1).path
}

pub(super) fn reload(rules: Rules, changed: bool, retire: bool) -> Event {
    Event::Reload { rules: rules.into(), changed, retire }
}
