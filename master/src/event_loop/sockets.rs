//! sockets - binding what services listen on, and parting with what none listens on any more
//!
//! A socket whose service is gone, or has other addresses, is held first: no connection begins in it.
//! If no client waits in it, it is ended, for all workers that have copies. If clients wait, and a
//! service serves their address from now on (`127.0.0.1:25` has become `25`), its workers get the
//! socket beside their own until the queue is empty. Thus no client is refused or reset by a change of
//! addresses.

use std::mem;
use std::time::Duration;

use worker_proto::clock::Time;
use worker_proto::sys::MAX_LISTEN;

use super::{Master, ServiceId, Timer, no_room};
use crate::avail::Event;
use crate::listen::Listener;
use crate::notice::Notice;
use crate::service::Endpoint;

/// How often a socket in which clients wait is looked at.
const GLANCE: Duration = Duration::from_millis(20);
/// New clients that keep its queue from being empty are sent elsewhere after this time.
const LONGEST_STAY: Duration = Duration::from_secs(5);

impl Master {
    /// Takes the sockets from a service that it is not to have any more, those for other addresses
    /// than these. One in the file system is closed, one of TCP is for whoever can use it.
    pub(super) fn take_sockets(
        &mut self,
        id: ServiceId,
        but: &[Endpoint],
        old: &mut Vec<Listener>,
    ) {
        self.unwatch(id);
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        let all = mem::take(&mut service.listeners);
        let (stay, go) = all.into_iter().partition(|l| but.contains(l.endpoint()));
        service.listeners = stay;
        service.listeners.iter_mut().for_each(|l| l.left = None);
        old.extend(Vec::into_iter(go).filter(Listener::is_inet));
    }

    /// What is left of old sockets when everything new is bound.
    pub(super) fn part_with(&mut self, now: Time, old: Vec<Listener>) {
        old.iter().for_each(|listener| listener.hold(true));
        self.parting.extend(old);
        if !self.parting.is_empty() {
            // When the workers of removed services have been told of their end.
            self.timers.set(Timer::Part, Some(now));
        }
    }

    /// Ends sockets that are held and in which no client waits, and looks for others to hold.
    pub(super) fn end_sockets(&mut self, now: Time) {
        let held = mem::take(&mut self.parting);
        let lent: Vec<ServiceId> =
            self.services.iter().filter(|(_, s)| s.lent()).map(|(id, _)| *id).collect();
        let mut again = !lent.is_empty();
        for id in lent {
            self.take_back(now, id);
        }
        for listener in held {
            match self.cover_of(listener.endpoint()) {
                Some(id) if !listener.is_quiet() => {
                    self.lend(now, id, listener);
                    again = true;
                }
                _ => listener.end(),
            }
        }
        let next = if self.parting.is_empty() { again.then(|| now + GLANCE) } else { Some(now) };
        self.timers.set(Timer::Part, next);
    }

    /// The service that serves an address from now on.
    fn cover_of(&self, endpoint: &Endpoint) -> Option<ServiceId> {
        let covers = |l: &Listener| l.left.is_none() && l.endpoint().overlaps(endpoint);
        let mut services = self.services.iter().filter(|(_, s)| !s.pool.is_stopping());
        services.find(|(_, s)| s.listeners.iter().any(covers)).map(|(id, _)| *id)
    }

    /// A service's workers get a socket beside their own.
    fn lend(&mut self, now: Time, id: ServiceId, mut listener: Listener) {
        self.unwatch(id);
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        if service.listeners.len() < MAX_LISTEN {
            listener.hold(false);
            listener.left.get_or_insert(now);
            service.listeners.push(listener);
            service.sockets_changed();
        } else {
            listener.end();
        }
        self.renew(id);
    }

    /// Takes back what was lent and is empty, to be ended when the workers have been told.
    fn take_back(&mut self, now: Time, id: ServiceId) {
        self.unwatch(id);
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        let before = service.listeners.len();
        for listener in mem::take(&mut service.listeners) {
            let Some(since) = listener.left else {
                service.listeners.push(listener);
                continue;
            };
            listener.hold(true);
            if listener.is_quiet() {
                self.parting.push(listener);
                continue;
            }
            listener.hold(now.since(since) > LONGEST_STAY);
            service.listeners.push(listener);
        }
        if service.listeners.len() == before {
            return self.watch(id);
        }
        service.sockets_changed();
        self.renew(id);
    }

    /// Workers with other sockets than the service has now end when they are idle.
    fn renew(&mut self, id: ServiceId) {
        if let Some(service) = self.services.get(&id) {
            let rules = service.pool.rules().clone();
            self.queue.push(id, Event::Reload { rules, changed: false, retire: true });
        }
        self.watch(id);
    }

    /// Binds what a service should have and has not, with the help of old sockets. It has all of its
    /// sockets or none (W09).
    pub(super) fn rebind(&mut self, now: Time, id: ServiceId, old: &mut Vec<Listener>) {
        self.unwatch(id);
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        let def = service.configured.def.clone();
        let new = service.listeners.is_empty();
        let mut result = if new { self.room_for(&def) } else { Ok(()) };
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        let wanted = if result.is_ok() { def.endpoints.as_slice() } else { &[] };
        for endpoint in wanted {
            if service.listeners.iter().any(|l| l.endpoint() == endpoint) {
                continue;
            }
            let backlog = self.config.backlog(&def);
            match Listener::bind(endpoint, def.key.transport, backlog, self.config.owner, old) {
                Ok(listener) => service.listeners.push(listener),
                Err(fault) => result = Err(fault),
            }
        }
        // Workers get the sockets in the order of the addresses, and all of them.
        let place = |l: &Listener| def.endpoints.iter().position(|e| e == l.endpoint());
        service.listeners.sort_by_key(|l| place(l).unwrap_or(usize::MAX));
        service.sockets_changed();
        let (ext_name, name) = service.names();
        match result {
            Ok(()) => {
                if service.unbound.take().is_some() {
                    Notice::BindRecovered { ext_name, name }.log();
                }
            }
            Err(fault) => {
                let first = service.unbound.is_none();
                let at = service.bind_failed(now, &fault);
                self.timers.set(Timer::Bind(id), Some(at));
                if first && fault != no_room() {
                    Notice::BindFailed { ext_name, name, reason: fault.to_string() }.log();
                }
                // Half of the sockets would be another service than the one that is defined.
                service.listeners.drain(..).for_each(Listener::end);
            }
        }
        self.watch(id);
    }

    /// Binds what is not bound, or what no client can connect to; whether there was anything.
    pub(super) fn bind_again(&mut self, now: Time, id: ServiceId) -> bool {
        let Some(service) = self.services.get(&id).filter(|s| !s.pool.is_stopping()) else {
            return false;
        };
        if service.trouble().is_some() {
            self.replace_lost(now, id);
        } else if service.unbound.is_some() {
            self.rebind(now, id, &mut Vec::new());
        } else {
            return false;
        }
        true
    }

    /// Replaces the sockets to which no client can connect.
    pub(super) fn replace_lost(&mut self, now: Time, id: ServiceId) {
        self.unwatch(id);
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        let backlog = self.config.backlog(&service.configured.def);
        // One of TCP that was shut down listens again by this.
        service.listeners.iter().for_each(|l| l.set_backlog(backlog));
        service.listeners.retain(|l| l.trouble().is_none());
        service.lost = false;
        self.rebind(now, id, &mut Vec::new());
    }
}
