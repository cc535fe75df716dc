//! trouble - services that run and yet serve nobody
//!
//! A socket whose file is gone, or that a worker has shut down; a retired worker that does not end and
//! fills the limit. `belfry status` shows it, and a reload or `belfry reset` mends it. A socket that
//! was shut down is replaced at once as well, as nobody but a worker can have done it.

use std::time::Duration;

use worker_proto::clock::Time;

use super::{Master, ServiceId, Timer};
use crate::avail::{Event, Kill};
use crate::listen::Trouble;
use crate::notice::Notice;

/// How often the sockets are looked at without anybody asking.
const LOOK: Duration = Duration::from_secs(60);

impl Master {
    /// Looks at the sockets of all services.
    pub(super) fn look_at_sockets(&mut self, now: Time) {
        self.timers.set(Timer::Sockets, Some(now + LOOK));
        for id in self.services.keys().copied().collect::<Vec<_>>() {
            self.look_at_socket(now, id);
        }
    }

    /// Looks at the sockets of a service; one that was shut down is replaced.
    pub(super) fn look_at_socket(&mut self, now: Time, id: ServiceId) {
        let Some(service) = self.services.get_mut(&id) else { return };
        match service.trouble() {
            None => service.lost = false,
            Some((Trouble::Lost, reason)) => {
                if !service.lost {
                    service.lost = true;
                    let (ext_name, name) = service.names();
                    Notice::SocketLost { ext_name, name, reason }.log();
                    self.status_changed(now);
                }
            }
            Some((Trouble::Shut, reason)) => {
                self.replace_lost(now, id);
                self.queue.push(id, Event::SocketShut(reason));
            }
        }
    }

    /// An operator asks for it: retired workers that fill the limit have a last time to end.
    pub(super) fn end_hung(&mut self, now: Time, id: ServiceId) {
        let Some(service) = self.services.get_mut(&id) else { return };
        let hung = service.pool.hung();
        if service.hung.is_empty() && !hung.is_empty() {
            service.hung = hung;
            let end = now + service.pool.rules().kill_time;
            self.timers.set(Timer::Hung(id), Some(end));
        }
    }

    /// Their time is over. One that has left, or has a client, or keeps nobody from being started any
    /// more, is left alone.
    pub(super) fn kill_hung(&mut self, id: ServiceId) {
        let Some(service) = self.services.get_mut(&id) else { return };
        let marked = std::mem::take(&mut service.hung);
        let mut hung = service.pool.hung();
        hung.retain(|worker| marked.contains(worker));
        for worker in hung {
            let Some(service) = self.services.get(&id) else { return };
            let Some(live) = service.workers.get(&worker) else { continue };
            let path = service.configured.rules.path.clone();
            Notice::HungWorker { path, pid: live.pid }.log();
            self.kill(id, worker, Kill::Kill);
        }
    }
}
