//! jobs - what an operator asks for that takes time
//!
//! Reloads, diffs and upgrades are done one at a time, in the order in which they were asked for; what
//! is asked for meanwhile waits. Reloads that wait are one: the files are read after the last of them
//! was asked for. A full one among them renews the workers of every service, whoever asked for less. A
//! diff changes nothing, so it is never made into a reload, nor a reload into a diff.
//!
//! Pure. Who asks is a number; SIGHUP has none.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Read the configuration again and make it the running one.
    Reload {
        /// Renew the workers of changed services alone.
        changed: bool,
        /// Also when no service is left.
        #[serde(default)]
        allow_empty: bool,
    },
    /// Read the configuration again and say what would change.
    Diff,
    /// Go on with this program; with none, with the one that is installed.
    Upgrade(String),
}

/// A task and who wants to hear of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What is to be done.
    pub task: Task,
    /// Who gets the outcome.
    pub clients: Vec<u64>,
}

/// The one in progress and those that wait.
#[derive(Debug, Default)]
pub struct Jobs {
    running: Option<Job>,
    waiting: VecDeque<Job>,
}

impl Jobs {
    /// Somebody asks for something.
    pub fn ask(&mut self, task: Task, client: Option<u64>) {
        self.put(Job { task, clients: client.into_iter().collect() });
    }

    /// Puts a job where it belongs among those that wait.
    pub fn put(&mut self, job: Job) {
        let Job { task, clients } = job;
        if let Task::Reload { changed, allow_empty } = task {
            for waiting in &mut self.waiting {
                if let Task::Reload { changed: other, allow_empty: also } = &mut waiting.task {
                    *other = *other && changed;
                    *also = *also || allow_empty;
                    return waiting.clients.extend(clients);
                }
            }
        }
        match self.waiting.back_mut().filter(|last| last.task == task) {
            Some(last) => last.clients.extend(clients),
            None => self.waiting.push_back(Job { task, clients }),
        }
    }

    /// Begins the next, if none is in progress.
    pub fn begin(&mut self) -> Option<&Task> {
        if self.running.is_some() {
            return None;
        }
        self.running = self.waiting.pop_front();
        self.running.as_ref().map(|job| &job.task)
    }

    /// The one in progress has come to its end: who gets the outcome.
    pub fn done(&mut self) -> Vec<u64> {
        self.running.take().map(|job| job.clients).unwrap_or_default()
    }

    /// Nothing more is done: everybody who waits for something.
    pub fn cancel(&mut self) -> Vec<u64> {
        let jobs = self.running.take().into_iter().chain(self.waiting.drain(..));
        jobs.flat_map(|job| job.clients).collect()
    }

    /// A client has gone. What waits for it alone is not begun, but a reload is: that is not for its
    /// answer.
    pub fn leave(&mut self, client: u64) {
        for job in self.running.iter_mut().chain(&mut self.waiting) {
            job.clients.retain(|&c| c != client);
        }
        let wanted = |job: &Job| !job.clients.is_empty() || matches!(job.task, Task::Reload { .. });
        self.waiting.retain(wanted);
    }

    /// All of them in order, that in progress first.
    #[must_use]
    pub fn all(&self) -> Vec<Job> {
        self.running.iter().chain(&self.waiting).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FULL: Task = Task::Reload { changed: false, allow_empty: false };
    const CHANGED: Task = Task::Reload { changed: true, allow_empty: false };

    fn upgrade() -> Task {
        Task::Upgrade(String::new())
    }

    #[test]
    fn reloads_that_wait_are_one_and_a_full_one_wins() {
        let mut jobs = Jobs::default();
        jobs.ask(CHANGED, Some(1));
        assert_eq!(jobs.begin(), Some(&CHANGED), "nothing of what comes later changes it");
        jobs.ask(CHANGED, Some(2));
        jobs.ask(Task::Diff, Some(3));
        jobs.ask(FULL, None);
        jobs.ask(CHANGED, Some(4));
        assert_eq!(jobs.begin(), None, "one at a time");
        assert_eq!(jobs.done(), [1]);
        assert_eq!(jobs.begin(), Some(&FULL));
        assert_eq!(jobs.done(), [2, 4]);
        assert_eq!(jobs.begin(), Some(&Task::Diff));
        assert_eq!(jobs.done(), [3]);
        assert_eq!(jobs.begin(), None);
    }

    #[test]
    fn who_leaves_takes_along_what_only_they_wanted() {
        let mut jobs = Jobs::default();
        for (task, client) in [(Task::Diff, 1), (Task::Diff, 2), (upgrade(), 3), (CHANGED, 4)] {
            jobs.ask(task, Some(client));
        }
        [1, 3, 4].into_iter().for_each(|client| jobs.leave(client));
        assert_eq!(jobs.begin(), Some(&Task::Diff));
        assert_eq!(jobs.done(), [2]);
        assert_eq!(jobs.begin(), Some(&CHANGED));
        assert_eq!(jobs.cancel(), [] as [u64; 0]);
    }

    /// What came in, and what was done with it.
    #[derive(Debug, Clone)]
    enum Step {
        Ask(Task),
        Work,
    }

    proptest! {
        /// Whoever asks is answered once, by a task that is what they asked for or does more, and that
        /// began after they asked.
        #[test]
        fn everybody_gets_what_they_asked_for(
            steps in prop::collection::vec(
                prop_oneof![
                    Just(Step::Ask(FULL)), Just(Step::Ask(CHANGED)), Just(Step::Ask(Task::Diff)),
                    Just(Step::Ask(upgrade())), Just(Step::Work), Just(Step::Work),
                ],
                0..60,
            )
        ) {
            let mut jobs = Jobs::default();
            let mut asked: Vec<(Task, usize)> = Vec::new();
            let mut answered = Vec::new();
            let mut running: Option<(Task, usize)> = None;
            let end = steps.len();
            for (at, step) in steps.into_iter().chain((0..200).map(|_| Step::Work)).enumerate() {
                match step {
                    Step::Ask(task) => {
                        jobs.ask(task.clone(), Some(asked.len() as u64));
                        asked.push((task, at));
                    }
                    Step::Work => {
                        if let Some((task, begun)) = running.take() {
                            for client in jobs.done() {
                                let (wish, when) = &asked[usize::try_from(client).unwrap()];
                                prop_assert!(*when < begun);
                                prop_assert!(*wish == task || *wish == CHANGED && task == FULL);
                                answered.push(client);
                            }
                        }
                        running = jobs.begin().cloned().map(|task| (task, at));
                    }
                }
            }
            prop_assert!(running.is_none(), "after {end} steps and 200 turns all is done");
            answered.sort_unstable();
            prop_assert_eq!(answered, (0..asked.len() as u64).collect::<Vec<_>>());
        }
    }
}
