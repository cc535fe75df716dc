//! workers - starting, hearing, telling and reaping processes

use std::os::fd::AsFd;

use mio::Interest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;
use worker_proto::status::StatusRecord;
use worker_proto::sys::{self, ChildEnd, errno_text};

use super::service::Live;
use super::{Master, ServiceId, Source, Timer};
use crate::avail::{Event, Exit, Kill, WorkerId};
use crate::channel::Read;
use crate::notice::Notice;

/// The most records of one worker that are read in one turn: nobody else waits for a flood.
const RECORDS_A_TURN: usize = 64;

impl Master {
    /// Watches the listen sockets, or watches them no more.
    pub(super) fn set_listening(&mut self, id: ServiceId, on: bool) {
        if let Some(service) = self.services.get_mut(&id) {
            service.wants_listen = on;
        }
        self.unwatch(id);
        self.watch(id);
    }

    /// The only place that deregisters listen sockets: before a service's sockets change. It wants
    /// them watched, or not, as before.
    pub(super) fn unwatch(&mut self, id: ServiceId) {
        if let Some(service) = self.services.get_mut(&id) {
            for (listener, token) in service.listeners.iter().zip(service.listening.drain(..)) {
                self.sources.remove(listener.as_fd(), token);
            }
        }
    }

    /// The only place that registers listen sockets, if the service wants them watched.
    pub(super) fn watch(&mut self, id: ServiceId) {
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        if !service.wants_listen || !service.listening.is_empty() {
            return;
        }
        for listener in &service.listeners {
            match self.sources.add(listener.as_fd(), Interest::READABLE, Source::Listen(id)) {
                Ok(token) => service.listening.push(token),
                Err(e) => {
                    Notice::Trouble { text: Fault::io("watch a listen socket", &e).to_string() }
                        .log();
                }
            }
        }
    }

    /// A service whose client was seen may still want more (a burst): registering again reports who
    /// waits.
    pub(super) fn listen_on(&mut self, id: ServiceId) {
        let again = self.services.get(&id).is_some_and(|s| s.wants_listen);
        if again {
            self.set_listening(id, true);
        }
    }

    pub(super) fn spawn(&mut self, now: Time, id: ServiceId, worker: WorkerId, stress: bool) {
        self.generation.0 += 1;
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        let started = service.start_worker(
            &self.birth,
            &self.config,
            &mut self.spawner,
            self.generation,
            stress,
        );
        let mut live = match started {
            Ok(live) => live,
            Err(e) => return self.queue.push(id, Event::StartFailed(worker, errno_text(&e))),
        };
        let source = Source::Status(id, worker);
        live.token = self.sources.add(live.channel.as_fd(), Interest::READABLE, source).ok();
        let pid = live.pid;
        self.pids.insert(pid, (id, worker));
        service.workers.insert(worker, live);
        service.alarm.used(now);
        self.timers.set(Timer::Wakeup(id), service.alarm.next());
        self.queue.push(id, Event::Started(worker, pid));
    }

    /// Reads what a worker says. It is gossip: it changes what we think of that worker and nothing
    /// else.
    pub(super) fn read_status(&mut self, id: ServiceId, worker: WorkerId) {
        for _ in 0..RECORDS_A_TURN {
            let Some(live) = self.live(id, worker) else {
                return;
            };
            match live.channel.read() {
                Read::Record(record) => self.record(id, worker, record),
                Read::Odd(size) => {
                    let pid = live.pid;
                    let Some(service) = self.services.get(&id) else {
                        return;
                    };
                    let (ext_name, name) = service.names();
                    Notice::PartialStatus { ext_name, name, pid, size }.log();
                }
                Read::Empty => return,
                Read::End => {
                    // It has closed its end; that it is gone is for waitpid(2) to say.
                    if let Some(token) = live.token.take() {
                        let channel = &self.services[&id].workers[&worker].channel;
                        self.sources.remove(channel.as_fd(), token);
                    }
                    return;
                }
            }
        }
        self.queue.again(Source::Status(id, worker));
    }

    fn live(&mut self, id: ServiceId, worker: WorkerId) -> Option<&mut Live> {
        self.services.get_mut(&id)?.workers.get_mut(&worker)
    }

    fn record(&mut self, id: ServiceId, worker: WorkerId, record: StatusRecord) {
        let Some(live) = self.live(id, worker) else {
            return;
        };
        if record.pid != live.pid || record.generation != live.generation {
            let generation = record.generation.to_string();
            let notice = Notice::ForeignStatus { pid: record.pid, generation };
            return notice.log_of(self.name_of(id));
        }
        match record.availability() {
            Some(availability) => self.queue.push(id, Event::Status(worker, availability)),
            None => {
                let notice = Notice::UnknownStatus { pid: record.pid, state: record.state };
                notice.log_of(self.name_of(id));
            }
        }
    }

    fn name_of(&self, id: ServiceId) -> &str {
        self.services.get(&id).map_or("", |service| &service.configured.def.key.name)
    }

    pub(super) fn retire(&mut self, id: ServiceId, worker: WorkerId) {
        if let Some(live) = self.live(id, worker) {
            live.channel.retire();
        }
    }

    pub(super) fn kill(&mut self, id: ServiceId, worker: WorkerId, how: Kill) {
        let signal = match how {
            Kill::Term => Signal::SIGTERM,
            Kill::Kill => Signal::SIGKILL,
        };
        if let Some(live) = self.live(id, worker) {
            // The process is ours until it is waited for, so the number is not another's.
            let _ = kill(Pid::from_raw(live.pid), signal);
        }
    }

    /// Waits for every child that has ended (L01). One that is not ours is nothing to fear (W14).
    pub(super) fn reap(&mut self) {
        loop {
            let (pid, exit) = match sys::reap() {
                Ok(Some((pid, ChildEnd::Status(status)))) => (pid, Exit::Status(status)),
                Ok(Some((pid, ChildEnd::Signal(signal)))) => (pid, Exit::Signal(signal)),
                Ok(None) => return,
                Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return,
                Err(e) => {
                    let text = Fault::io("waitpid", &e).to_string();
                    return Notice::Trouble { text }.log();
                }
            };
            let Some((id, worker)) = self.pids.remove(&pid.as_raw()) else {
                self.helper_reaped(pid.as_raw());
                Notice::DebugUnknownChild { pid: pid.as_raw() }.log();
                continue;
            };
            // What it wrote before it ended counts.
            self.read_status(id, worker);
            if let Some(service) = self.services.get_mut(&id)
                && let Some(live) = service.workers.remove(&worker)
            {
                if let Some(token) = live.token {
                    self.sources.remove(live.channel.as_fd(), token);
                }
                if let Some(e) = live.launch.and_then(|launch| launch.exec_error()) {
                    let path = service.configured.rules.path.clone();
                    Notice::ExecFailed { path, reason: errno_text(&e) }.log();
                }
            }
            self.queue.push(id, Event::Ended(worker, exit));
        }
    }

    fn helper_reaped(&mut self, pid: i32) {
        let helpers = self.reloading.iter_mut().map(|r| &mut r.helper);
        let helpers = helpers.chain(self.upgrading.iter_mut().map(|u| &mut u.helper));
        helpers.for_each(|helper| helper.reaped(pid));
    }
}
