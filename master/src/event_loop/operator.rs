//! operator - what comes over the control socket

use std::os::fd::AsFd;
use std::time::Duration;

use mio::Interest;
use worker_proto::clock::Time;

use super::jobs::STOPPING;
use super::service::Service;
use super::{Master, Source, Timer};
use crate::avail::Event;
use crate::control::{Accepted, Client, Progress};
use crate::jobs::Task;
use crate::report::{self, Row, State, WorkerRow};
use crate::request::Request;

/// How long after a change the service manager is told.
const STATUS_PAUSE: Duration = Duration::from_secs(1);
/// The most clients that are taken in in one turn.
const CLIENTS_A_TURN: usize = 16;

impl Master {
    /// Takes in clients, some in a turn: those who are in already have theirs as well.
    pub(super) fn accept_clients(&mut self, now: Time) {
        for _ in 0..CLIENTS_A_TURN {
            let number = self.number();
            match self.control.accept(number, now) {
                Accepted::Nobody => return,
                Accepted::Refused => {}
                Accepted::Client { dropped } => {
                    dropped
                        .into_iter()
                        .for_each(|(number, client)| self.drop_client(number, &client));
                    self.watch_client(now, number);
                    // One that has left already keeps nobody's place.
                    self.serve_client(now, number);
                }
            }
        }
        self.queue.again(Source::Control);
    }

    /// Waits for what a client asks, which may be there already: registering reports it.
    pub(super) fn watch_client(&mut self, now: Time, number: u64) {
        let Some(client) = self.control.client(number) else { return };
        match self.sources.add(client.as_fd(), Interest::READABLE, Source::Client(number)) {
            Ok(token) => client.token = Some(token),
            Err(_) => return self.end_client(number),
        }
        self.client_deadline(now, number);
    }

    /// A client's next step: one request at the most, or what it takes of its answer.
    pub(super) fn serve_client(&mut self, now: Time, number: u64) {
        let Some(client) = self.control.client(number) else { return };
        match client.advance(now) {
            Progress::Asked(request) => self.request(now, number, &request),
            Progress::Wait => {
                let Some(token) = client.token else { return };
                let interest =
                    if client.is_answered() { Interest::WRITABLE } else { Interest::READABLE };
                if self.sources.change(client.as_fd(), token, interest).is_err() {
                    return self.end_client(number);
                }
            }
            Progress::Done => return self.end_client(number),
        }
        self.client_deadline(now, number);
    }

    /// What a client may take for what it is doing now.
    fn client_deadline(&mut self, now: Time, number: u64) {
        let deadline = self.control.client(number).and_then(|client| client.deadline());
        self.timers.set(Timer::Client(number), deadline.map(|at| at.max(now)));
    }

    pub(super) fn end_client(&mut self, number: u64) {
        if let Some(client) = self.control.remove(number) {
            self.drop_client(number, &client);
        }
    }

    fn drop_client(&mut self, number: u64, client: &Client) {
        self.timers.set(Timer::Client(number), None);
        self.jobs.leave(number);
        if let Some(token) = client.token {
            self.sources.remove(client.as_fd(), token);
        }
    }

    /// Answers a client, which is written to it in the next turn.
    pub(super) fn answer(&mut self, now: Time, number: u64, code: u8, text: &str) {
        if let Some(client) = self.control.client(number) {
            client.answer(now, code, text);
            self.client_deadline(now, number);
            self.queue.again(Source::Client(number));
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
            Some(Request::Reload { changed, allow_empty }) => {
                return self.ask(now, Task::Reload { changed, allow_empty }, Some(number));
            }
            Some(Request::Diff) => return self.ask(now, Task::Diff, Some(number)),
            Some(Request::Upgrade(program)) => {
                return self.ask(now, Task::Upgrade(program), Some(number));
            }
            Some(Request::Reset(_)) if self.ending.is_some() => (1, STOPPING.to_owned()),
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
        self.answer(now, number, code, &text);
    }

    fn feed_metrics(&mut self, now: Time, number: u64) {
        let text = report::metrics(&self.rows(now, None));
        if let Some(client) = self.control.client(number) {
            client.report(now, &text);
            self.queue.again(Source::Client(number));
        }
    }

    /// Forgets the failures of a service, and tries to bind what is not bound.
    fn reset(&mut self, now: Time, name: &str) -> (u8, String) {
        let running = self.services.iter().filter(|(_, s)| !s.pool.is_stopping());
        let named = running.filter(|(_, s)| has_name(s, name));
        let ids: Vec<_> = named.map(|(id, _)| *id).collect();
        if ids.is_empty() {
            return (1, no_service(name));
        }
        for id in ids {
            self.look_at_socket(now, id);
            let lost = self.bind_again(now, id);
            self.queue.push(id, Event::Reset);
            if lost && let Some(service) = self.services.get(&id) {
                // Workers with the old socket never get another client.
                let rules = service.configured.rules.clone();
                self.queue.push(id, Event::Reload { rules, changed: false, retire: true });
            }
            self.end_hung(now, id);
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
    } else if let Some((_, reason)) = service.trouble() {
        State::Unreachable(reason)
    } else if pool.waits_for_retired() {
        State::Retiring(pool.workers().count())
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
        name: def.ext_name.to_string(),
        key: def.key.name.to_string(),
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
    let def = &service.configured.def;
    *def.ext_name == *name || *def.key.name == *name
}

fn named(name: &str, rows: &[Row], text: impl Fn(&[Row]) -> String) -> (u8, String) {
    if rows.is_empty() { (1, no_service(name)) } else { (0, text(rows)) }
}

fn no_service(name: &str) -> String {
    format!("no service \"{name}\" in the running table\n")
}
