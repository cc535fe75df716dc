//! wakeups - services woken by their timers

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use mio::Interest;
use worker_proto::clock::Time;

use super::{Master, ServiceId, Source, Timer};
use crate::notice::Notice;
use crate::trigger;

/// How long a woken worker may keep the connection (N02).
const TRIGGER_TIME: Duration = Duration::from_secs(100);

impl Master {
    /// A service's wakeup timer has come. While it is throttled nothing is sent, and the timer goes
    /// on (N04).
    pub(super) fn wake(&mut self, now: Time, id: ServiceId) {
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        let fires = service.alarm.fire(now);
        self.timers.set(Timer::Wakeup(id), service.alarm.next());
        if !fires || service.pool.throttled_until().is_some() || service.listeners.is_empty() {
            return;
        }
        let def = &service.configured.def;
        let result = trigger::wake(&def.endpoints[0], def.key.transport, self.config.owner);
        match result {
            Ok(None) => {}
            Ok(Some(trigger)) => {
                let number = self.number();
                let interest = if trigger.unsent { Interest::WRITABLE } else { Interest::READABLE };
                let added = self.sources.add(trigger.fd.as_fd(), interest, Source::Trigger(number));
                if let Ok(token) = added {
                    self.triggers.insert(number, (trigger, token, id));
                    self.timers.set(Timer::Trigger(number), Some(now + TRIGGER_TIME));
                }
            }
            Err(e) => self.wakeup_failed(id, &e),
        }
    }

    /// A worker has left: the service is woken then, and not a whole period later.
    pub(super) fn wake_at(&mut self, id: ServiceId, at: Time) {
        if let Some(service) = self.services.get_mut(&id) {
            service.alarm.lost(at);
            self.timers.set(Timer::Wakeup(id), service.alarm.next());
        }
    }

    fn wakeup_failed(&self, id: ServiceId, error: &io::Error) {
        let Some(service) = self.services.get(&id) else {
            return;
        };
        let (ext_name, name) = service.names();
        let reason = worker_proto::sys::errno_text(error);
        Notice::WakeupFailed { ext_name, name, reason }.log();
    }

    pub(super) fn trigger_ready(&mut self, number: u64, writable: bool) {
        let Some((trigger, token, id)) = self.triggers.get_mut(&number) else {
            return;
        };
        let id = *id;
        if !(trigger.unsent && writable) {
            return self.end_trigger(number);
        }
        if let Err(e) = trigger.connected() {
            self.wakeup_failed(id, &e);
            return self.end_trigger(number);
        }
        let watched = self.sources.change(trigger.fd.as_fd(), *token, Interest::READABLE);
        if watched.is_err() {
            self.end_trigger(number);
        }
    }

    pub(super) fn end_trigger(&mut self, number: u64) {
        if let Some((trigger, token, _)) = self.triggers.remove(&number) {
            self.sources.remove(trigger.fd.as_fd(), token);
        }
        self.timers.set(Timer::Trigger(number), None);
    }
}
