//! jobs - reloads, diffs and upgrades, one after the other

use worker_proto::clock::Time;

use super::reload::Extent;
use super::{Master, Source};
use crate::jobs::Task;

/// The answer to whoever asks for something that a stopping master does not begin.
pub(super) const STOPPING: &str = "the master is stopping\n";

impl Master {
    /// Somebody asks for something that takes its time: `client`, or a signal. It begins in the next
    /// turn, or when what was asked for before is done.
    pub(super) fn ask(&mut self, now: Time, task: Task, client: Option<u64>) {
        if self.ending.is_none() {
            self.jobs.ask(task, client);
            self.queue.again(Source::Jobs);
        } else if let Some(client) = client {
            self.answer(now, client, 1, STOPPING);
        }
    }

    pub(super) fn begin_job(&mut self, now: Time) {
        match self.jobs.begin().cloned() {
            None => {}
            Some(Task::Reload { changed, allow_empty }) => {
                let extent = if changed { Extent::Changed } else { Extent::All };
                self.reload(now, extent, allow_empty);
            }
            Some(Task::Diff) => self.reload(now, Extent::Look, true),
            Some(Task::Upgrade(program)) => self.upgrade(now, &program),
        }
    }

    /// The job in progress has come to its end, with this outcome.
    pub(super) fn end_job(&mut self, now: Time, code: u8, text: &str) {
        for client in self.jobs.done() {
            self.answer(now, client, code, text);
        }
        self.queue.again(Source::Jobs);
    }

    /// The master is stopping: nothing that was asked for is done any more.
    pub(super) fn cancel_jobs(&mut self, now: Time) {
        self.cancel_reload();
        self.cancel_upgrade(now);
        for client in self.jobs.cancel() {
            self.answer(now, client, 1, STOPPING);
        }
    }
}
