//! storage - keeping the store in order between turns
//!
//! Opening it again after a failure, taking over what can be read of a damaged one, giving space
//! back, following the wall clock (Q8, Q9).

use std::collections::HashSet;
use std::time::Duration;

use worker_proto::clock::{self, Time};
use worker_proto::diagnostic::Fault;

use super::Manager;
use crate::store::{MessageNo, Salvaged, StoreError, Summary};

/// When what is to be done with the store is done next.
#[derive(Debug, Default)]
pub(super) struct Care {
    /// The store cannot be used; it is opened again then, after ever longer pauses.
    reopen: Option<(Time, Duration)>,
    salvage: Time,
    /// What was salvaged cannot be stored, and it was told.
    salvage_waits: bool,
    /// When the next damaged store may be put aside, and the pause after that: a disk that spoils
    /// every file must not be filled with them.
    aside: Option<(Time, Duration)>,
    shrink: Time,
    /// There is more to give back to the file system.
    shrinking: bool,
    /// Mail is refused for want of room, and it was told; when that is looked at again.
    full: Option<Time>,
    /// Messages that could not be read, once.
    pub(super) unread: HashSet<MessageNo>,
    /// How far it was checked that every message with a body is queued.
    pub(super) checked: Option<MessageNo>,
    /// The last number at the start: what came after was stored by this process.
    pub(super) first: Option<MessageNo>,
}

/// Pauses between attempts to open the store again.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_secs(60);
/// Messages that are checked in one turn.
const CHECK_STEP: usize = 200;
/// When a store cannot take what was salvaged, or has little to give back.
const LATER: Duration = Duration::from_secs(10);
/// Between steps of giving space back.
const SHRINK_PAUSE: Duration = Duration::from_millis(50);
/// How often free space is looked at while mail is refused.
const ROOM_PAUSE: Duration = Duration::from_secs(5);
/// After so long without damage it is no series.
const CALM: Duration = Duration::from_secs(600);

impl Care {
    /// Whether the store can be used.
    pub(super) const fn is_open(&self) -> bool {
        self.reopen.is_none()
    }
}

impl Manager {
    pub(super) fn storage_deadline(&self) -> Option<Time> {
        if let Some((at, _)) = self.care.reopen {
            return Some(at);
        }
        if self.store.is_damaged() {
            return Some(Time::ZERO);
        }
        let check = self.care.checked.filter(|_| !self.store.is_salvaging()).map(|_| Time::ZERO);
        let salvage = self.store.is_salvaging().then_some(self.care.salvage);
        let is_idle = self.queue.in_flight() == 0;
        let shrink = Some(self.care.shrink).filter(|_| self.care.shrinking && is_idle);
        [salvage, check, shrink, self.care.full].into_iter().flatten().min()
    }

    /// A commit has failed. Nothing more is acknowledged or sent until the store is open again.
    pub(super) fn store_failed(&mut self, now: Time, cause: &StoreError) {
        if self.care.is_open() {
            log::error!(
                "queue database: {cause}; no mail is accepted or sent until it can be opened again"
            );
            self.care.reopen = Some((now, LEAST_PAUSE));
        }
    }

    /// Mail is refused for want of room; told once.
    pub(super) fn store_full(&mut self, now: Time) {
        if self.care.full.is_none() {
            log::warn!(
                "insufficient disk space for the queue (queue_minfree = {} bytes), refusing mail",
                self.params.queue_minfree
            );
        }
        self.care.full = Some(now + ROOM_PAUSE);
    }

    /// To be called at the end of a turn, when everybody has an answer.
    pub(super) fn tend_store(&mut self, now: Time) {
        self.follow_wall_clock(now);
        let damaged = self.store.is_damaged();
        if damaged
            && self.care.is_open()
            && let Some((at, pause)) = self.care.aside.filter(|(at, _)| now < *at)
        {
            log::error!(
                "queue database damaged again; no mail is accepted or sent for {}s",
                pause.as_secs()
            );
            self.care.reopen = Some((at, pause));
        }
        let (at, pause) = self.care.reopen.unwrap_or((now, LEAST_PAUSE));
        if (damaged || !self.care.is_open()) && now >= at {
            self.reopen_store(now, pause);
        }
        if !self.care.is_open() {
            return;
        }
        if self.store.is_salvaging() && now >= self.care.salvage {
            self.salvage_step(now);
        }
        if let Some(after) = self.care.checked.filter(|_| !self.store.is_salvaging()) {
            self.check_step(now, after);
        }
        if self.care.full.is_some_and(|at| now >= at) {
            self.care.full = Some(now + ROOM_PAUSE);
            if !self.store.is_short(0) {
                self.care.full = None;
                log::info!("disk space available, accepting mail again");
            }
        }
        let is_idle = self.offered.is_empty() && self.queue.in_flight() == 0;
        // What ends leaves free pages behind.
        self.care.shrinking |= !is_idle;
        if is_idle && now >= self.care.shrink {
            // What fails here fails where it matters.
            self.care.shrinking = self.store.shrink().unwrap_or(false);
            self.care.shrink = now + if self.care.shrinking { SHRINK_PAUSE } else { LATER };
        }
    }

    fn reopen_store(&mut self, now: Time, pause: Duration) {
        match self.store.recover() {
            Ok(told) => {
                if let Some(text) = told {
                    log::error!("{text}");
                    let (_, pause) =
                        self.care.aside.filter(|(at, _)| now.since(*at) < CALM).unwrap_or_default();
                    let pause = (pause * 2).clamp(LEAST_PAUSE, MOST_PAUSE);
                    self.care.aside = Some((now + pause, pause));
                    // They come back as they are found, but for those that are being delivered.
                    self.queue.forget_waiting();
                }
                if self.care.reopen.take().is_some() {
                    log::info!("queue database open again, accepting mail again");
                }
                self.care.salvage = now;
            }
            Err(fault) => {
                if self.care.is_open() || pause == LEAST_PAUSE {
                    log::error!("{fault}; retrying, no mail is accepted or sent meanwhile");
                }
                self.care.reopen = Some((now + pause, (pause * 2).min(MOST_PAUSE)));
            }
        }
    }

    fn salvage_step(&mut self, now: Time) {
        match self.store.salvage() {
            Ok(Salvaged::Nothing) => {}
            Ok(Salvaged::Queued(messages)) => {
                self.care.salvage_waits = false;
                // One that is being delivered is known already.
                for m in &messages {
                    self.take_in(now, m);
                    self.read_at_last(now, m.no, &m.id);
                }
            }
            Ok(Salvaged::Finished(_, line)) => {
                log::warn!("{line}");
                if !self.store.is_salvaging() {
                    self.nothing_unread();
                }
            }
            Err(StoreError::Damaged(_)) => {}
            Err(e) => {
                if !std::mem::replace(&mut self.care.salvage_waits, true) {
                    log::warn!("take over messages from a damaged queue database: {e}; retrying");
                }
                self.care.salvage = now + LATER;
            }
        }
    }

    /// A large file is not checked as a whole when it is opened. A message that a damaged index has
    /// hidden is found by its body.
    fn check_step(&mut self, now: Time, after: MessageNo) {
        let mut page = self.store.with_body(after, CHECK_STEP).unwrap_or_default();
        // What this process has stored itself is queued when its commit is done, and not before.
        let first = self.care.first;
        page.retain(|no| first.is_some_and(|first| *no <= first));
        self.care.checked = page.last().copied().filter(|_| page.len() == CHECK_STEP);
        for no in page.into_iter().filter(|no| self.queue.state(*no) == "ended").collect::<Vec<_>>()
        {
            match self.store.by_no(no) {
                Ok(Some(m)) if m.done == 0 => {
                    log::warn!("{}: missing in an index of the queue database, queued again", m.id);
                    self.take_in(now, &m);
                }
                Ok(None) => self.store.report_damage("a message is missing and its body is there"),
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }

    /// Puts a message that is in the store into the queue, if it is not there.
    pub(super) fn take_in(&mut self, now: Time, m: &Summary) {
        if self.queue.state(m.no) == "ended" {
            let arrived = self.clock.past(now, m.arrived);
            let due = self.clock.due(now, m.next_try, self.longest_pause());
            self.queue.add(m.no, m.lane, arrived, due, m.attempts, m.held);
        }
    }

    fn longest_pause(&self) -> Duration {
        self.params.maximal_backoff_time.max(self.params.minimal_backoff_time).mul_f32(1.2)
    }

    /// Times in the store that a wrong clock has left in the future are put right.
    pub(super) fn clamp_times(&mut self, now: Time) -> Result<(), StoreError> {
        let seconds = self.clock.stored(self.clock.now(now));
        self.store.clamp_times(seconds, self.longest_pause().as_secs())
    }

    /// Whether the times of a message can be, by this clock.
    pub(super) fn is_time_right(&self, now: Time, m: &Summary) -> bool {
        let seconds = self.clock.stored(self.clock.now(now));
        m.arrived <= seconds && m.next_try <= seconds + self.longest_pause().as_secs()
    }

    fn follow_wall_clock(&mut self, now: Time) {
        let Some(step) = self.clock.follow(now, clock::wall()) else { return };
        log::warn!("the clock was set by {step}s; the queue's times are moved with it");
        let first = self.care.first.unwrap_or(MessageNo(i64::MAX));
        let moved = self.store.move_times(first, step).and_then(|()| self.clamp_times(now));
        if let Err(e) = moved {
            log::warn!("{}", Fault::new("move the queue's times", e));
        }
    }
}
