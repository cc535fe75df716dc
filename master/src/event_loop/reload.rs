//! reload - from the running table to the next, as a transaction
//!
//! Read, ask for names, compare, bind what is new: up to there an error leaves everything as it was.
//! Then commit, and tell the workers of what has changed (W01, W02).

use std::collections::HashSet;
use std::mem;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use worker_proto::abi::Transport;
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;

use super::helper::{self, Helper};
use super::service::{Service, has_group, prepare_groups};
use super::{Master, ServiceId, Source, Timer, no_room};
use crate::avail::Event;
use crate::cgroup;
use crate::conf::{self, Changes, Configured};
use crate::config::{self, Config, Problems};
use crate::files;
use crate::limits;
use crate::listen::Listener;
use crate::names::{Names, RESOLVE_OPTION};
use crate::notice::Notice;
use crate::service::{Endpoint, Key};

/// How far a reload goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// Workers of every service are renewed: Postfix's way.
    All,
    /// Only workers of changed services are renewed (W15).
    Changed,
    /// Nothing is changed; the differences are told.
    Look,
}

/// How long workers may take with their clients when another service has taken over their addresses.
const CHANGED_GRACE: Duration = Duration::from_hours(24);

/// A reload that waits for the addresses of hosts.
pub(super) struct Reloading {
    extent: Extent,
    names: Names,
    pub(super) helper: Helper,
    allow_empty: bool,
}

impl Master {
    /// Begins a reload, or a look at what one would change.
    pub(super) fn reload(&mut self, now: Time, extent: Extent, allow_empty: bool) {
        let (version, directory) = (version(), self.config.directory.display().to_string());
        if extent == Extent::Look {
            Notice::Diff { version, directory }.log();
        } else {
            Notice::Reload { version, directory }.log();
            self.manager.reloading(now);
            if let Err(fault) = worker_proto::log::reopen() {
                Notice::Trouble { text: fault.to_string() }.log();
            }
        }
        let names = Names::silent();
        let read = self.read_config(&names, allow_empty);
        if names.missing().is_empty() {
            return self.finish_reload(now, extent, read);
        }
        // A slow resolver stops nobody there. It writes a line for each host with its addresses.
        let mut command = Command::new(helper::THIS_PROGRAM);
        command.arg(RESOLVE_OPTION).args(names.missing()).stdin(Stdio::null());
        match Helper::start(command, &mut self.sources, Source::Names) {
            Ok(helper) => {
                self.reloading = Some(Reloading { extent, names, helper, allow_empty });
                let end = now + self.config.master.resolver_timeout;
                self.timers.set(Timer::Names, Some(end));
            }
            Err(e) => {
                let fault = Fault::io("start a process to resolve names", &e);
                self.finish_reload(now, extent, Err(fault.into()));
            }
        }
    }

    /// The helper process has answered, or ended, or its time is over.
    pub(super) fn names_ready(&mut self, now: Time, overdue: bool) {
        let Some(reloading) = &mut self.reloading else {
            return;
        };
        let whole = reloading.helper.advance();
        if !whole && !overdue {
            return;
        }
        let Some(Reloading { extent, names, helper, allow_empty }) = self.reloading.take() else {
            return;
        };
        self.timers.set(Timer::Names, None);
        if !whole {
            let _ = helper.end(&mut self.sources);
            let hosts = names.missing().join(", ");
            let limit = self.config.master.resolver_timeout.as_secs();
            let cause = format!("no answer from the resolver within {limit}s (resolver_timeout)");
            let fault = Fault::new(format!("resolve {hosts}"), cause);
            return self.finish_reload(now, extent, Err(fault.into()));
        }
        for line in helper.end(&mut self.sources).lines() {
            let mut words = line.split(' ');
            let host = words.next().unwrap_or("");
            names.learn(host, words.filter_map(|w| w.parse::<IpAddr>().ok()).collect());
        }
        // A host without an answer has no address.
        for host in names.missing() {
            names.learn(&host, Vec::new());
        }
        let read = self.read_config(&names, allow_empty);
        self.finish_reload(now, extent, read);
    }

    /// Reads the files beside the running configuration. A table without services is more often a
    /// file that was cut short than a wish.
    fn read_config(&self, names: &Names, allow_empty: bool) -> Result<Config, Problems> {
        let directory = &self.config.directory;
        let running =
            |key: &Key| Some(self.services.get(self.by_key.get(key)?)?.configured.clone());
        let config = config::read_beside(directory, None, names, &running)?;
        if config.services.is_empty() && !self.by_key.is_empty() && !allow_empty {
            let file = directory.join("master.cf");
            let cause = "it has no service; to end all of them: belfry reload --allow-empty";
            let fault = Fault::new(file.display().to_string(), cause);
            return Err(Problems { diagnostics: config.warnings, faults: vec![fault] });
        }
        Ok(config)
    }

    fn finish_reload(&mut self, now: Time, extent: Extent, read: Result<Config, Problems>) {
        let (code, text) = match read {
            Ok(config) if extent == Extent::Look => (0, self.describe(&config)),
            Ok(config) => (0, self.commit(now, config, extent == Extent::Changed)),
            Err(problems) if extent == Extent::Look => (1, problems.to_string()),
            Err(problems) => (1, refuse(&problems)),
        };
        if extent != Extent::Look {
            self.manager.ready();
            self.status_changed(now);
        }
        self.end_job(now, code, &text);
        // What the new table took while it was read.
        worker_proto::sys::return_memory();
    }

    /// The master is stopping.
    pub(super) fn cancel_reload(&mut self) {
        let Some(Reloading { extent, helper, .. }) = self.reloading.take() else {
            return;
        };
        self.timers.set(Timer::Names, None);
        let _ = helper.end(&mut self.sources);
        if extent != Extent::Look {
            Notice::ReloadCancelled.log();
            self.manager.ready();
        }
    }

    /// Makes a configuration the running one. Nothing here can fail as a whole: a socket that cannot
    /// be bound is the trouble of one service, which is tried again.
    fn commit(&mut self, now: Time, mut config: Config, changed_only: bool) -> String {
        let mut text: String = config.warnings.iter().map(|w| format!("{w:#}\n")).collect();
        for warning in &config.warnings {
            Notice::OddConfig { text: warning.to_string() }.log();
        }
        self.keep_fixed(&mut config);
        if config.master.cgroup_root != self.config.master.cgroup_root {
            prepare_groups(&config);
        }
        self.count_files(files::needed(&config));
        let changes = self.changes(&config);
        // The services take their definitions with them.
        let mut services: Vec<_> = mem::take(&mut config.services).into_iter().map(Some).collect();
        self.config = config;
        // Every socket that is not needed where it is, before any new one is bound.
        let mut old = mem::take(&mut self.parting);
        if !changes.removed.is_empty() {
            let defs = services.iter().flatten();
            let used = defs.flat_map(|c| c.def.endpoints.iter()).collect();
            changes.removed.iter().for_each(|key| self.remove(key, &used, &mut old));
        }
        for (at, _) in changes.kept.iter().filter(|(_, changed)| *changed) {
            let Some(Configured { def, .. }) = &services[*at] else { continue };
            let Some(&id) = self.by_key.get(&def.key) else { continue };
            if self.services[&id].configured.def.endpoints != def.endpoints {
                self.take_sockets(id, &def.endpoints, &mut old);
            }
        }
        let mut without = 0;
        for &at in &changes.added {
            let Some(configured) = services[at].take() else { continue };
            let room = self.room_for(&configured.def);
            without += usize::from(room.is_err());
            let bound = room.and_then(|()| Service::bind(&configured.def, &self.config, &mut old));
            let id = self.add(now, configured, bound);
            self.start(now, id);
            text.extend(self.services[&id].unbound.iter().map(|u| format!("{}\n", u.reason)));
        }
        let mut changed_count = 0;
        for &(at, changed) in &changes.kept {
            let Some(configured) = services[at].take() else { continue };
            let Some(&id) = self.by_key.get(&configured.def.key) else { continue };
            changed_count += usize::from(changed);
            self.redefine(now, id, configured, changed, !changed_only || changed, &mut old);
        }
        self.tell_without(without);
        self.part_with(now, old);
        let (added, removed) = (changes.added.len(), changes.removed.len());
        let kept = changes.kept.len() - changed_count;
        let notice = Notice::Reloaded { added, removed, changed: changed_count, kept };
        notice.log();
        text + &format!("{notice}\n")
    }

    fn changes(&self, config: &Config) -> Changes {
        let current = self.services.values().filter(|s| !s.pool.is_stopping());
        let current = current.map(|s| (s.configured.def.key.clone(), &s.configured)).collect();
        conf::changes(&current, &config.services)
    }

    /// What a reload would do.
    fn describe(&self, config: &Config) -> String {
        let changes = self.changes(config);
        let name = |at: &usize| {
            let def = &config.services[*at].def;
            format!("{} {}", def.ext_name, def.key.transport)
        };
        let added = changes.added.iter().map(|at| format!("+ {}\n", name(at)));
        let changed = changes.kept.iter().filter(|(_, changed)| *changed);
        let changed = changed.map(|(at, _)| format!("~ {}\n", name(at)));
        let removed = changes.removed.iter().map(|k| format!("- {} {}\n", k.name, k.transport));
        let lines: String = added.chain(changed).chain(removed).collect();
        if lines.is_empty() { "no service would change\n".to_owned() } else { lines }
    }

    /// What a running master cannot change keeps its value (C02).
    fn keep_fixed(&self, config: &mut Config) {
        let old = &self.config.common;
        let new = &mut config.common;
        let fixed = [
            ("queue_directory", &old.queue_directory, &mut new.queue_directory),
            ("data_directory", &old.data_directory, &mut new.data_directory),
        ];
        for (name, old, new) in fixed {
            if old != new {
                let (name, new_text) = (name.into(), new.display().to_string());
                let old_text = old.display().to_string();
                Notice::IgnoredChange { name, old: old_text, new: new_text }.log();
                new.clone_from(old);
            }
        }
    }

    /// A new service; [`Master::start`] makes it listen.
    pub(super) fn add(
        &mut self,
        now: Time,
        configured: Configured,
        bound: Result<Vec<Listener>, Fault>,
    ) -> ServiceId {
        let id = ServiceId(self.number());
        self.by_key.insert(configured.def.key.clone(), id);
        let mut service = Service::new(now, configured);
        match bound {
            Ok(listeners) => service.listeners = listeners,
            Err(fault) => {
                let at = service.bind_failed(now, &fault);
                self.timers.set(Timer::Bind(id), Some(at));
                let (ext_name, name) = service.names();
                if fault != no_room() {
                    Notice::BindFailed { ext_name, name, reason: fault.to_string() }.log();
                }
            }
        }
        self.services.insert(id, Box::new(service));
        self.claim_group(id);
        id
    }

    /// Gives a service that asks for a control group one that no other has, for as long as it is there.
    fn claim_group(&mut self, id: ServiceId) {
        let root = Path::new(&self.config.master.cgroup_root);
        let Some(service) = self.services.get(&id) else { return };
        let has_one = service.group.as_ref().is_some_and(|group| group.parent() == Some(root));
        if has_one || !has_group(&service.configured, &self.config) {
            return;
        }
        let key = &service.configured.def.key;
        let taken =
            |group: &Path| self.services.values().any(|s| s.group.as_deref() == Some(group));
        let name = &service.configured.def.ext_name;
        let group = limits::cgroup(root, name, key.transport.name(), &taken);
        if let Some(service) = self.services.get_mut(&id) {
            service.group = Some(group);
        }
    }

    pub(super) fn start(&mut self, now: Time, id: ServiceId) {
        let mut actions = Vec::new();
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        service.pool.start(now, &mut actions);
        self.timers.set(Timer::Wakeup(id), service.alarm.next());
        self.execute(now, id, actions);
    }

    fn remove(&mut self, key: &Key, used: &HashSet<&Endpoint>, old: &mut Vec<Listener>) {
        let Some(id) = self.by_key.remove(key) else {
            return;
        };
        let mut grace = self.config.master.stop_grace;
        if let Some(service) = self.services.get(&id) {
            let endpoints = &service.configured.def.endpoints;
            let compat = self.config.master.postfix_compat();
            if !compat {
                // Another type may listen at the same path from now on.
                let unused = |l: &&Listener| !used.contains(l.endpoint());
                service.listeners.iter().filter(unused).for_each(Listener::unlink);
            }
            // A service of another name goes on with its clients, as with those of a changed one.
            let goes_on = |e: &Endpoint| used.contains(e) || used.iter().any(|u| u.overlaps(e));
            let inet = key.transport == Transport::Inet;
            if inet && !compat && endpoints.iter().all(goes_on) {
                grace = grace.max(CHANGED_GRACE);
            }
        }
        self.take_sockets(id, &[], old);
        self.retire_service(id, grace);
    }

    /// Stops a service: no more clients, and its workers end.
    pub(super) fn retire_service(&mut self, id: ServiceId, grace: Duration) {
        self.set_listening(id, false);
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        service.alarm.stop();
        service.listeners.clear();
        self.timers.set(Timer::Wakeup(id), None);
        self.timers.set(Timer::Bind(id), None);
        self.queue.push(id, Event::Remove(grace));
    }

    /// A removed service's last worker has ended.
    pub(super) fn forget(&mut self, id: ServiceId) {
        let service = self.services.remove(&id);
        // What its workers have started and left behind.
        service.and_then(|s| s.group).iter().for_each(|group| cgroup::end(group));
        self.timers.set(Timer::Policy(id), None);
        self.timers.set(Timer::Hung(id), None);
    }

    fn redefine(
        &mut self,
        now: Time,
        id: ServiceId,
        configured: Configured,
        changed: bool,
        retire: bool,
        old: &mut Vec<Listener>,
    ) {
        let backlog = self.config.backlog(&configured.def);
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        let moved = service.configured.def.endpoints != configured.def.endpoints;
        let lost = service.trouble().is_some();
        let rules = configured.rules.clone();
        service.redefine(now, configured);
        self.claim_group(id);
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        service.listeners.iter().for_each(|l| l.set_backlog(backlog));
        self.timers.set(Timer::Wakeup(id), service.alarm.next());
        if lost {
            self.replace_lost(now, id);
        }
        // One without sockets tries too: another service may have left what it wants.
        let unbound = self.services.get(&id).is_some_and(|s| s.unbound.is_some());
        if moved || unbound {
            self.rebind(now, id, old);
        }
        self.end_hung(now, id);
        // Workers with a socket that was replaced never get another client.
        self.queue.push(id, Event::Reload { rules, changed, retire: retire || lost });
    }
}

/// The version of this program.
pub(super) fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

fn refuse(problems: &Problems) -> String {
    log_problems(problems);
    let notice = Notice::ReloadRefused { errors: problems.tally() };
    notice.log();
    format!("{problems}{notice}\n")
}

/// Logs every complaint as a line.
pub(crate) fn log_problems(problems: &Problems) {
    use worker_proto::diagnostic::Severity;
    for diagnostic in &problems.diagnostics {
        let text = diagnostic.to_string();
        match diagnostic.severity {
            Severity::Error => Notice::BadConfig { text }.log(),
            Severity::Warning => Notice::OddConfig { text }.log(),
        }
    }
    for fault in &problems.faults {
        Notice::BadConfig { text: fault.to_string() }.log();
    }
}
