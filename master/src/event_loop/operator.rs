//! operator - what comes over the control socket

use std::os::fd::AsFd;
use std::time::Duration;

use mio::Interest;
use worker_proto::clock::Time;

use super::service::Service;
use super::{Extent, Master, Source, Timer};
use crate::avail::Event;
use crate::control::{ASK_TIME, Progress};
use crate::report::{self, Row, State, WorkerRow};
use crate::request::Request;

/// How long after a change the service manager is told.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

impl Master {
    pub(super) fn accept_clients(&mut self, now: Time) {
        loop {
            let number = self.number();
            let Some(client) = self.control.accept(number) else {
                return;
            };
            let added =
                self.sources.add(client.as_fd(), Interest::READABLE, Source::Client(number));
            match added {
                Ok(token) => client.token = Some(token),
                Err(_) => drop(self.control.remove(number)),
            }
            self.timers.set(Timer::Client(number), Some(now + ASK_TIME));
            self.serve_client(now, number);
        }
    }

    pub(super) fn serve_client(&mut self, now: Time, number: u64) {
        let Some(client) = self.control.client(number) else {
            return;
        };
        match client.advance() {
            Progress::Asked(request) => {
                self.timers.set(Timer::Client(number), None);
                self.request(now, number, &request);
            }
            Progress::Wait => {
                let Some(token) = client.token else { return };
                let interest =
                    if client.is_answered() { Interest::WRITABLE } else { Interest::READABLE };
                if self.sources.change(client.as_fd(), token, interest).is_err() {
                    self.end_client(number);
                }
            }
            Progress::Done => self.end_client(number),
        }
    }

    pub(super) fn end_client(&mut self, number: u64) {
        self.timers.set(Timer::Client(number), None);
        let Some(client) = self.control.remove(number) else {
            return;
        };
        if let Some(token) = client.token {
            self.sources.remove(client.as_fd(), token);
        }
        // One that waited for its turn may come in now.
        self.accept_clients(Time::now());
    }

    /// Answers a client.
    pub(super) fn answer(&mut self, number: u64, code: u8, text: &str) {
        if let Some(client) = self.control.client(number) {
            client.answer(code, text);
            self.serve_client(Time::now(), number);
        }
    }

    fn request(&mut self, now: Time, number: u64, line: &str) {
        if self.control.client(number).is_some_and(|client| client.is_feed()) {
            return self.feed_metrics(now, number);
        }
        let (code, text) = match Request::parse(line) {
            Some(Request::MetricsFeed) if self.control.has_room_for_feed() => {
                if let Some(client) = self.control.client(number) {
                    client.make_feed();
                }
                return self.feed_metrics(now, number);
            }
            Some(Request::MetricsFeed) => (1, "too many metrics feeds\n".to_owned()),
            Some(Request::Reload { changed: false }) => {
                return self.reload(now, Some(number), Extent::All);
            }
            Some(Request::Reload { changed: true }) => {
                return self.reload(now, Some(number), Extent::Changed);
            }
            Some(Request::Diff) => return self.reload(now, Some(number), Extent::Look),
            Some(Request::Upgrade(program)) => return self.upgrade(now, number, &program),
            Some(Request::Pid) => (0, format!("{}\n", std::process::id())),
            Some(Request::Metrics) => (0, report::metrics(&self.rows(now, None))),
            Some(Request::Status { name: None, json: false }) => {
                (0, report::table(&self.rows(now, None)))
            }
            Some(Request::Status { name: None, json: true }) => {
                let master = report::master_json(std::process::id(), &self.descriptors());
                (0, master + &report::json(&self.rows(now, None)))
            }
            Some(Request::Status { name: Some(name), json: true }) => {
                named(&name, &self.rows(now, Some(&name)), report::json)
            }
            Some(Request::Status { name: Some(name), json: false }) => {
                named(&name, &self.rows(now, Some(&name)), |rows| {
                    let workers = rows.iter().map(report::workers);
                    report::table(rows) + "\n" + &workers.collect::<Vec<_>>().join("\n")
                })
            }
            Some(Request::Reset(name)) => self.reset(now, &name),
            None => (1, format!("unknown request: {line}\n")),
        };
        self.answer(number, code, &text);
    }

    fn feed_metrics(&mut self, now: Time, number: u64) {
        let text = report::metrics(&self.rows(now, None));
        if let Some(client) = self.control.client(number) {
            client.report(&text);
            self.serve_client(now, number);
        }
    }

    /// Forgets the failures of a service, and tries to bind what is not bound.
    fn reset(&mut self, now: Time, name: &str) -> (u8, String) {
        let named = self.services.iter().filter(|(_, s)| has_name(s, name));
        let ids: Vec<_> = named.map(|(id, _)| *id).collect();
        if ids.is_empty() {
            return (1, no_service(name));
        }
        for id in ids {
            self.bind_again(now, id);
            self.feed(now, id, Event::Reset);
        }
        (0, format!("service \"{name}\": failures forgotten\n"))
    }

    /// The service manager hears of it soon: not at once, as what happens now may go on for a while.
    pub(super) fn status_changed(&mut self, now: Time) {
        if self.manager.listens() {
            self.timers.set(Timer::Status, Some(now + STATUS_PAUSE));
        }
    }

    pub(super) fn tell_status(&mut self, now: Time) {
        self.manager.status(report::summary(&self.rows(now, None)));
    }

    pub(super) fn watchdog(&mut self, now: Time) {
        if let Some(interval) = self.manager.watchdog() {
            self.manager.alive();
            self.timers.set(Timer::Watchdog, Some(now + interval));
        }
    }

    fn rows(&self, now: Time, name: Option<&str>) -> Vec<Row> {
        let wanted = |s: &&Service| name.is_none_or(|n| has_name(s, n));
        let services = self.services.values().map(Box::as_ref).filter(wanted);
        services.map(|service| row(now, service)).collect()
    }
}

fn row(now: Time, service: &Service) -> Row {
    let (pool, def) = (&service.pool, &service.configured.def);
    let stats = pool.stats();
    let seconds = |until: Time| until.since(now).as_secs_f64().ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small positive number"
    )]
    let seconds = |until: Time| seconds(until) as u64;
    let state = if pool.is_stopping() {
        State::Stopping
    } else if let Some(unbound) = &service.unbound {
        State::BindFailed(unbound.reason.clone(), seconds(unbound.next))
    } else if let Some(until) = pool.throttled_until() {
        State::Throttled(seconds(until))
    } else if pool.at_limit() && pool.idle() == 0 && pool.rules().max_proc != Some(1) {
        State::AtLimit
    } else if pool.stressed(now) {
        State::Stress
    } else {
        State::Up
    };
    let workers: Vec<WorkerRow> = pool
        .workers()
        .map(|(_, worker)| WorkerRow {
            pid: worker.pid.unwrap_or(0),
            state: match (worker.retired, worker.busy) {
                (true, _) => "retired",
                (false, true) => "busy",
                (false, false) => "idle",
            },
            served: worker.served,
            age: now.since(worker.born).as_secs(),
        })
        .collect();
    let count = |state| workers.iter().filter(|w| w.state == state).count();
    let queues = service.listeners.iter().filter_map(crate::listen::Listener::queue);
    Row {
        name: def.ext_name.clone(),
        key: def.key.name.clone(),
        transport: def.key.transport.name(),
        state,
        busy: count("busy"),
        idle: count("idle"),
        retired: count("retired"),
        max: def.max_proc,
        queue: queues.reduce(|a, b| (a.0 + b.0, a.1 + b.1)),
        spawned: stats.spawned,
        served: stats.served,
        failed: stats.failed,
        last_exit: stats.last_exit,
        workers,
    }
}

fn has_name(service: &Service, name: &str) -> bool {
    service.configured.def.ext_name == name || service.configured.def.key.name == name
}

fn named(name: &str, rows: &[Row], text: impl Fn(&[Row]) -> String) -> (u8, String) {
    if rows.is_empty() { (1, no_service(name)) } else { (0, text(rows)) }
}

fn no_service(name: &str) -> String {
    format!("no service \"{name}\" in the running table\n")
}
