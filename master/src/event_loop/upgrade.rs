//! upgrade - another program goes on in this process (W22)
//!
//! The new program is asked first, in a process of its own, whether it can resume from here. Then
//! this process executes it: the number, the children, the sockets, the locks and the clients who
//! wait stay, and what is known of them goes along as a [`Snapshot`]. The new program then reads the
//! configuration as at a reload. Until exec(2) has succeeded nothing is given up.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mio::Interest;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::SigSet;
use nix::unistd::execv;
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;
use worker_proto::sys::{self, errno_text};

use super::helper::{self, Helper};
use super::jobs::STOPPING;
use super::reload::version;
use super::service::{Live, Service, Unbound, has_group};
use super::{Birth, Master, ServiceId, Source, Timer};
use crate::channel::Channel;
use crate::conf::Configured;
use crate::config::Config;
use crate::control::Control;
use crate::jobs::{Job, Task};
use crate::limits;
use crate::listen::Listener;
use crate::notice::Notice;
use crate::resume;
use crate::snapshot::{SavedService, SavedUnbound, SavedWorker, Snapshot};

/// How long the new program may think about it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The most lines of its reasons that are logged; the operator gets all.
const MOST_REASONS: usize = 50;

/// An upgrade whose program is being asked.
pub(super) struct Upgrading {
    program: PathBuf,
    pub(super) helper: Helper,
}

/// Another program has handed over.
pub(super) struct Resumed {
    /// Its version.
    version: String,
    /// Who has asked for the upgrade.
    clients: Vec<u64>,
}

impl Master {
    /// Begins an upgrade to a program.
    pub(super) fn upgrade(&mut self, now: Time, program: &str) {
        let program =
            if program.is_empty() { self.birth.program.clone() } else { PathBuf::from(program) };
        Notice::Upgrade { version: version(), program: program.display().to_string() }.log();
        match self.ask_successor(&program) {
            Ok(helper) => {
                self.upgrading = Some(Upgrading { program, helper });
                self.timers.set(Timer::Verdict, Some(now + PATIENCE));
            }
            Err(e) => {
                self.refuse_upgrade(now, &format!("{}: {}", program.display(), errno_text(&e)));
            }
        }
    }

    fn ask_successor(&mut self, program: &Path) -> io::Result<Helper> {
        let mut command = helper::command(program.as_os_str());
        command.arg(resume::CHECK_OPTION).stdin(self.save().write()?);
        Helper::start(command, &mut self.sources, Source::Verdict)
    }

    /// The new program has said something, or its time is over.
    pub(super) fn verdict_ready(&mut self, now: Time, overdue: bool) {
        let Some(upgrading) = &mut self.upgrading else {
            return;
        };
        let whole = upgrading.helper.advance();
        if !whole && !overdue {
            return;
        }
        let Some(Upgrading { program, helper }) = self.upgrading.take() else {
            return;
        };
        self.timers.set(Timer::Verdict, None);
        let cut = helper.is_cut();
        let verdict = helper.end(&mut self.sources);
        let name = program.display();
        let reason = if !whole {
            format!("{name} has not answered within {} s", PATIENCE.as_secs())
        } else if cut {
            format!("{name} says too much: {}", verdict.lines().next().unwrap_or_default())
        } else if verdict.starts_with(resume::CAN_RESUME) {
            // It comes back only when that has failed.
            self.hand_over(now, &program)
        } else if verdict.trim().is_empty() {
            format!("{name} says nothing")
        } else {
            verdict.trim_end().to_owned()
        };
        self.refuse_upgrade(now, &reason);
    }

    fn refuse_upgrade(&mut self, now: Time, reason: &str) {
        for line in reason.lines().take(MOST_REASONS) {
            Notice::BadUpgrade { text: line.to_owned() }.log();
        }
        let last = Notice::UpgradeRefused { version: version() };
        last.log();
        self.end_job(now, 1, &format!("{reason}\n{last}\n"));
    }

    /// The master is stopping.
    pub(super) fn cancel_upgrade(&mut self, now: Time) {
        if let Some(Upgrading { helper, .. }) = self.upgrading.take() {
            self.timers.set(Timer::Verdict, None);
            let _ = helper.end(&mut self.sources);
            self.refuse_upgrade(now, STOPPING.trim_end());
        }
    }

    /// Executes the program. It returns with the reason when that fails, and all is as before.
    fn hand_over(&mut self, now: Time, program: &Path) -> String {
        // A signal from here on waits for the new program, which has no handler at first.
        let all = SigSet::all();
        if let Err(errno) = all.thread_block() {
            return format!("sigprocmask: {}", errno.desc());
        }
        // What has come before takes its usual way: a reload waits for its turn, here or there.
        self.take_signals(now);
        if self.ending.is_some() {
            let _ = all.thread_unblock();
            return STOPPING.trim_end().to_owned();
        }
        // What was queued is known to no program but this one.
        self.settle(now);
        self.manager.reloading(now);
        let error = self.execute_successor(program);
        self.inherit(false);
        let _ = all.thread_unblock();
        self.manager.ready();
        format!("exec {}: {}", program.display(), errno_text(&error))
    }

    /// Comes back with an error alone.
    fn execute_successor(&self, program: &Path) -> io::Error {
        let text = |word: &std::ffi::OsStr| CString::new(word.as_bytes());
        let execute = || -> io::Result<()> {
            let snapshot = self.save().write()?;
            let (name, options) = self.birth.words.split_first().ok_or(io::ErrorKind::NotFound)?;
            let mut words = vec![
                text(name)?,
                CString::new(resume::OPTION)?,
                CString::new(snapshot.as_raw_fd().to_string())?,
            ];
            for option in options {
                words.push(text(option)?);
            }
            let program = text(program.as_os_str())?;
            self.inherit(true);
            fcntl(&snapshot, FcntlArg::F_SETFD(FdFlag::empty()))?;
            execv(&program, &words).map(|never| match never {}).map_err(io::Error::from)
        };
        match execute() {
            Ok(()) => io::ErrorKind::Other.into(),
            Err(e) => e,
        }
    }

    /// Whether what the new program needs is open in it.
    fn inherit(&self, on: bool) {
        let flag = if on { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
        let keep = |fd: BorrowedFd<'_>| {
            // The descriptor is open, so this cannot fail.
            let _ = fcntl(fd, FcntlArg::F_SETFD(flag));
        };
        self.birth.locks.iter().map(AsFd::as_fd).for_each(keep);
        keep(self.control.as_fd());
        self.control.clients().for_each(|(_, client)| keep(client.as_fd()));
        for service in self.services.values() {
            service.listeners.iter().for_each(|l| keep(l.as_fd()));
            service.workers.values().for_each(|w| keep(w.channel.as_fd()));
        }
    }

    fn save(&self) -> Snapshot {
        let jobs = self.jobs.all();
        Snapshot {
            format: Snapshot::FORMAT,
            version: version(),
            directory: self.config.directory.clone(),
            main_cf: self.config.main_cf.clone(),
            queue_directory: self.config.common.queue_directory.clone(),
            data_directory: self.config.common.data_directory.clone(),
            files: self.birth.files,
            exit_at: self.exit_at,
            generation: self.generation,
            last_number: self.next_number,
            locks: self.birth.locks.iter().map(|lock| lock.as_fd().as_raw_fd()).collect(),
            control: self.control.as_fd().as_raw_fd(),
            clients: self.control.save(),
            asker: jobs.first().and_then(|job| job.clients.first()).copied().unwrap_or(0),
            jobs,
            services: self.services.iter().map(|(id, s)| save_service(*id, s)).collect(),
        }
    }

    /// The master that another program has handed over.
    ///
    /// # Errors
    /// A descriptor is missing, or the system has no room.
    pub fn resume(birth: Birth, config: Config, snapshot: Snapshot) -> Result<Self, Fault> {
        let fault = |e: io::Error| Fault::io("take over from the running master", &e);
        let control =
            Control::adopt(snapshot.control, &snapshot.clients, Time::now()).map_err(fault)?;
        let mut master = Self::serving_nothing(birth, config, control).map_err(fault)?;
        master.exit_at = snapshot.exit_at;
        master.generation = snapshot.generation;
        master.next_number = snapshot.last_number;
        for saved in snapshot.services {
            master.adopt(saved).map_err(fault)?;
        }
        // The upgrade ends with a reload, for those who have asked for it.
        let mut jobs = snapshot.jobs.into_iter();
        let clients = jobs.next().map_or_else(|| vec![snapshot.asker], |upgrade| upgrade.clients);
        master.jobs.put(Job {
            task: Task::Reload { changed: false, allow_empty: false },
            clients: clients.clone(),
        });
        jobs.for_each(|job| master.jobs.put(job));
        master.resumed = Some(Resumed { version: snapshot.version, clients });
        Ok(master)
    }

    fn adopt(&mut self, saved: SavedService) -> io::Result<()> {
        let id = ServiceId(saved.id);
        let mut service = restore_service(saved)?;
        if service.group.is_none() && has_group(&service.configured, &self.config) {
            // What a version before this one has called it.
            let name = limits::parameter_prefix(&service.configured.def.ext_name);
            let root = Path::new(&self.config.master.cgroup_root);
            service.group = Some(root.join(format!("{}{name}", limits::CGROUP_PREFIX)));
        }
        if service.lent() {
            self.timers.set(Timer::Part, Some(Time::now()));
        }
        if let Some(unbound) = &service.unbound {
            self.timers.set(Timer::Bind(id), Some(unbound.next));
        }
        if !service.pool.is_stopping() {
            self.by_key.insert(service.configured.def.key.clone(), id);
        }
        for (worker, live) in &service.workers {
            self.pids.insert(live.pid, (id, *worker));
        }
        let mut service = Box::new(service);
        for (worker, live) in &mut service.workers {
            let source = Source::Status(id, *worker);
            live.token =
                Some(self.sources.add(live.channel.as_fd(), Interest::READABLE, source)?);
        }
        self.services.insert(id, service);
        Ok(())
    }

    /// The first turn of a master that was handed over: what happened meanwhile, then a reload.
    pub(super) fn go_on(&mut self, now: Time) {
        let Some(Resumed { version: old, clients: askers }) = self.resumed.take() else {
            return;
        };
        let workers = self.services.values().map(|s| s.workers.len()).sum();
        let services = self.services.len();
        let notice = Notice::Resumed { old, version: version(), services, workers };
        notice.log();
        let clients: Vec<u64> = self.control.clients().map(|(number, _)| number).collect();
        for number in clients {
            self.watch_client(now, number);
            // One whose answer is not read yet becomes writable in its turn.
            self.queue.again(Source::Client(number));
        }
        for asker in askers {
            if let Some(client) = self.control.client(asker) {
                client.preface = format!("{notice}\n");
            }
        }
        self.reap();
        self.queue.again(Source::Jobs);
    }
}

fn save_service(id: ServiceId, service: &Service) -> SavedService {
    let listener = |l: &Listener| (l.endpoint().clone(), l.as_fd().as_raw_fd());
    let worker = |(id, live): (&_, &Live)| SavedWorker {
        id: *id,
        pid: live.pid,
        generation: live.generation,
        channel: live.channel.as_fd().as_raw_fd(),
    };
    let unbound =
        |u: &Unbound| SavedUnbound { reason: u.reason.clone(), pause: u.pause, next: u.next };
    SavedService {
        id: id.0,
        def: service.configured.def.clone(),
        limits: service.configured.limits.clone(),
        pool: service.pool.clone(),
        alarm: service.alarm,
        listeners: service.listeners.iter().map(listener).collect(),
        files: service.listeners.iter().map(Listener::file).collect(),
        workers: service.workers.iter().map(worker).collect(),
        unbound: service.unbound.as_ref().map(unbound),
        group: service.group.clone(),
    }
}

fn restore_service(saved: SavedService) -> io::Result<Service> {
    let SavedService {
        def, limits, pool, alarm, listeners, files, workers, unbound, group, ..
    } = saved;
    let rules = pool.rules().clone();
    let mut service = Service::new(Time::ZERO, Configured { def, rules, limits });
    (service.pool, service.alarm) = (pool, alarm);
    // A version before this one does not tell.
    let files = files.into_iter().chain(std::iter::repeat(None));
    for ((endpoint, fd), file) in listeners.into_iter().zip(files) {
        let own = service.configured.def.endpoints.contains(&endpoint);
        let mut listener = Listener::adopt(endpoint, sys::take_fd(fd)?, file);
        listener.left = (!own).then(Time::now);
        service.listeners.push(listener);
    }
    for SavedWorker { id, pid, generation, channel } in workers {
        let channel = Channel::adopt(sys::take_fd(channel)?);
        service.workers.insert(id, Live { pid, generation, channel, token: None, launch: None });
    }
    service.unbound =
        unbound.map(|SavedUnbound { reason, pause, next }| Unbound { reason, pause, next });
    service.group = group;
    Ok(service)
}
