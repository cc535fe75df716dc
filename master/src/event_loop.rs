//! event_loop - turns readiness into events and actions into system calls
//!
//! One thread, one [`Poll`]. Every decision is made elsewhere: [`crate::avail`] for processes,
//! [`crate::wakeup`] for timers, [`crate::conf`] for reloads. Time is read once a turn. Nothing that
//! happens after the start ends the master but a signal, `-e`, or its own watchdog.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use mio::{Events, Interest, Poll};
use nix::unistd::alarm;
use signal_hook::consts::{SIGCHLD, SIGHUP};
use worker_proto::abi::Generation;
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;
use worker_proto::sys::{Spawner, high_fd};

use crate::avail::{Action, Event};
use crate::config::Config;
use crate::control::Control;
use crate::files;
use crate::jobs::{Jobs, Task};
use crate::listen::Listener;
use crate::lock::Lock;
use crate::notice::{self, Notice};
use crate::notify::Manager;
use crate::orphans;
use crate::params::MasterParams;
use crate::plan::Flags;
use crate::service::{Key, ServiceDef};
use crate::signal::Signals;
use crate::timer::Timers;
use crate::trigger::Trigger;

mod descriptors;
mod helper;
mod jobs;
mod operator;
mod queue;
mod reload;
mod service;
mod sockets;
mod sources;
mod trouble;
mod upgrade;
mod wakeups;
mod workers;

use queue::Queue;
use reload::Reloading;
pub(crate) use reload::log_problems;
use service::Service;
pub(crate) use service::prepare_groups;
use sources::{Source, Sources};
use upgrade::{Resumed, Upgrading};

/// Number of a service in the life of this master, never used twice: what is under way for a removed
/// service cannot reach its successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(u64);

/// What has a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Timer {
    Policy(ServiceId),
    Wakeup(ServiceId),
    Bind(ServiceId),
    Part,
    Trigger(u64),
    Client(u64),
    Hung(ServiceId),
    Sockets,
    Names,
    Verdict,
    Watchdog,
    Status,
    Exit,
}

/// How the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By a signal, with every worker gone.
    Signal(i32),
    /// The time of option `-e` is over.
    ExitTime,
}

/// What the master was started with and never changes.
#[derive(Debug)]
pub struct Birth {
    /// Options for workers.
    pub flags: Flags,
    /// The limit of open files (soft, hard) that workers get: the one the master was started with.
    pub files: (u64, u64),
    /// The workers' environment without GENERATION.
    pub environment: Vec<Vec<u8>>,
    /// This program, for its second stage.
    pub program: PathBuf,
    /// The command line, for the program that goes on in this one's place.
    pub words: Vec<OsString>,
    /// The locks (B01, B02).
    pub locks: Vec<Lock>,
}

/// The running master.
pub struct Master {
    birth: Birth,
    config: Config,
    sources: Sources,
    /// Boxed: the map's nodes are half empty when its keys come in order.
    services: BTreeMap<ServiceId, Box<Service>>,
    by_key: HashMap<Key, ServiceId>,
    pids: HashMap<i32, (ServiceId, crate::avail::WorkerId)>,
    timers: Timers<Timer>,
    /// Sockets that are no service's any more, held until they are ended.
    parting: Vec<Listener>,
    queue: Queue,
    triggers: HashMap<u64, (Trigger, mio::Token, ServiceId)>,
    signals: Signals,
    control: Control,
    jobs: Jobs,
    reloading: Option<Reloading>,
    upgrading: Option<Upgrading>,
    /// Another program has handed over just now.
    resumed: Option<Resumed>,
    generation: Generation,
    spawner: Spawner,
    next_number: u64,
    ending: Option<i32>,
    manager: Manager,
    /// When option `-e` ends the master.
    exit_at: Option<Time>,
    /// How many sockets there may be, where the limit of open files is too low for all.
    room: Option<usize>,
}

/// The kernel ends a master whose loop hangs this long (P07).
const WATCHDOG: Duration = Duration::from_secs(1000);
/// The loop turns at least this often.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

impl Master {
    /// A master that has bound its sockets; it serves from [`Master::run`] on, and ends `exit_after`
    /// now (`-e`).
    ///
    /// # Errors
    /// What is missing, all of it.
    pub fn new(
        birth: Birth,
        config: Config,
        exit_after: Option<Duration>,
    ) -> Result<Self, Vec<Fault>> {
        let strict = config.master.strict_start;
        let control = Control::open().map_err(|fault| vec![fault])?;
        let mut master = Self::serving_nothing(birth, config, control)
            .map_err(|e| vec![Fault::io("event loop", &e)])?;
        let now = Time::now();
        master.exit_at = exit_after.map(|after| now + after);
        let mut faults = Vec::new();
        let mut old = orphans::sockets(&master.config);
        let found = old.len();
        master.count_files(files::needed(&master.config));
        let mut without = 0;
        for configured in std::mem::take(&mut master.config.services) {
            if let Err(fault) = master.room_for(&configured.def) {
                master.add(now, configured, Err(fault));
                without += 1;
                continue;
            }
            let bound = Service::bind(&configured.def, &master.config, &mut old);
            match bound {
                Err(fault) if strict => faults.push(fault),
                bound => drop(master.add(now, configured, bound)),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        master.tell_without(without);
        if found > old.len() {
            Notice::TookOver { sockets: found - old.len() }.log();
        }
        old.retain(Listener::is_inet);
        master.part_with(now, old);
        Ok(master)
    }

    fn serving_nothing(birth: Birth, config: Config, control: Control) -> io::Result<Self> {
        let mut sources = Sources::new(high_poll()?);
        let signals = Signals::catch()?;
        sources.add(signals.as_fd(), Interest::READABLE, Source::Signals)?;
        sources.add(control.as_fd(), Interest::READABLE, Source::Control)?;
        Ok(Self {
            birth,
            sources,
            services: BTreeMap::new(),
            by_key: HashMap::new(),
            pids: HashMap::new(),
            timers: Timers::new(),
            parting: Vec::new(),
            queue: Queue::default(),
            triggers: HashMap::new(),
            signals,
            control,
            jobs: Jobs::default(),
            reloading: None,
            upgrading: None,
            resumed: None,
            generation: Generation(0),
            spawner: Spawner::default(),
            next_number: 0,
            ending: None,
            manager: Manager::of_environment(),
            exit_at: None,
            room: None,
            config,
        })
    }

    /// The parameters in force.
    #[must_use]
    pub const fn params(&self) -> &MasterParams {
        &self.config.master
    }

    /// How long what is left may take to end (`stop_kill_time`).
    #[must_use]
    pub const fn stop_kill_time(&self) -> Duration {
        self.config.common.stop_kill_time
    }

    /// Tells the service manager that the master serves.
    pub fn tell_ready(&self) {
        self.manager.ready();
    }

    /// Serves until it is told to end.
    pub fn run(&mut self) -> End {
        let mut events = Events::with_capacity(256);
        let now = Time::now();
        self.timers.set(Timer::Exit, self.exit_at);
        self.watchdog(now);
        self.status_changed(now);
        for id in self.services.keys().copied().collect::<Vec<_>>() {
            self.start(now, id);
        }
        self.look_at_sockets(now);
        self.go_on(now);
        self.settle(now);
        loop {
            if let Some(signal) = self.ending
                && self.services.is_empty()
            {
                return End::Signal(signal);
            }
            alarm::set(u32::try_from(WATCHDOG.as_secs()).unwrap_or(u32::MAX));
            let told = notice::tell_suppressed(Time::now());
            let next = self.timers.next_deadline().into_iter().chain(told).min();
            let mut wait = next.map_or(LONGEST_WAIT, |at| at.since(Time::now()).min(LONGEST_WAIT));
            if self.queue.has_more() {
                wait = Duration::ZERO;
            }
            if let Err(e) = self.sources.wait(&mut events, wait)
                && e.kind() != io::ErrorKind::Interrupted
            {
                // Nothing is known to cause this; a loop that spins and says so beats one that is gone.
                Notice::Trouble { text: Fault::io("poll", &e).to_string() }.log();
            }
            let now = Time::now();
            for source in self.queue.turn() {
                self.ready(now, source, false);
                self.settle(now);
            }
            for event in &events {
                if let Some(source) = self.sources.find(event.token()) {
                    if let Source::Listen(id) = source
                        && event.is_read_closed()
                    {
                        self.look_at_socket(now, id);
                    }
                    self.ready(now, source, event.is_writable());
                    self.settle(now);
                }
            }
            while let Some(timer) = self.timers.pop_due(now) {
                if timer == Timer::Exit {
                    Notice::ExitTime.log();
                    return End::ExitTime;
                }
                self.due(now, timer);
                self.settle(now);
            }
        }
    }

    fn ready(&mut self, now: Time, source: Source, writable: bool) {
        match source {
            Source::Signals => self.take_signals(now),
            Source::Control => self.accept_clients(now),
            Source::Client(number) => self.serve_client(now, number),
            Source::Listen(id) => self.queue.push(id, Event::Knock),
            Source::Status(id, worker) => self.read_status(id, worker),
            Source::Trigger(number) => self.trigger_ready(number, writable),
            Source::Names => self.names_ready(now, false),
            Source::Jobs => self.begin_job(now),
            Source::Verdict => self.verdict_ready(now, false),
        }
    }

    fn due(&mut self, now: Time, timer: Timer) {
        match timer {
            Timer::Policy(id) => self.queue.push(id, Event::Tick),
            Timer::Wakeup(id) => self.wake(now, id),
            Timer::Bind(id) => drop(self.bind_again(now, id)),
            Timer::Part => self.end_sockets(now),
            Timer::Trigger(number) => self.end_trigger(number),
            Timer::Client(number) => self.end_client(number),
            Timer::Hung(id) => self.kill_hung(id),
            Timer::Sockets => self.look_at_sockets(now),
            Timer::Names => self.names_ready(now, true),
            Timer::Verdict => self.verdict_ready(now, true),
            Timer::Watchdog => self.watchdog(now),
            Timer::Status => self.tell_status(now),
            Timer::Exit => {}
        }
    }

    fn take_signals(&mut self, now: Time) {
        for signal in self.signals.take() {
            match signal {
                SIGCHLD => self.reap(),
                SIGHUP => self.ask(now, Task::Reload { changed: false, allow_empty: false }, None),
                deadly => self.end(now, deadly),
            }
        }
    }

    /// Ends every service and then the loop (P01): SIGTERM at once, SIGKILL when that does not help.
    /// Nothing begins from here on.
    fn end(&mut self, now: Time, signal: i32) {
        if self.ending.is_none() {
            Notice::Terminating { signal }.log();
            self.ending = Some(signal);
            self.cancel_jobs(now);
            self.manager.stopping();
        }
        for id in self.services.keys().copied().collect::<Vec<_>>() {
            self.retire_service(id, Duration::ZERO);
        }
    }

    /// Tells the pools what has happened, in order, and does what they say. Whatever follows from
    /// that is queued in its turn: nothing that is called from here calls this.
    fn settle(&mut self, now: Time) {
        while let Some((id, event)) = self.queue.pop() {
            let Some(service) = self.services.get_mut(&id) else { continue };
            let knock = event == Event::Knock;
            let mut actions = Vec::new();
            service.pool.on(now, event, &mut actions);
            self.execute(now, id, actions);
            if knock {
                self.listen_on(id);
            }
        }
    }

    fn execute(&mut self, now: Time, id: ServiceId, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Listen(on) => self.set_listening(id, on),
                Action::Spawn(worker, stress) => self.spawn(now, id, worker, stress),
                Action::Retire(worker) => self.retire(id, worker),
                Action::Kill(worker, kill) => self.kill(id, worker, kill),
                Action::Timer(at) => {
                    self.timers.set(Timer::Policy(id), at);
                    self.status_changed(now);
                }
                Action::Wake(at) => self.wake_at(id, at),
                Action::Gone => self.forget(id),
                Action::Log(notice) => notice.log(),
            }
        }
    }

    /// Takes in how many open files are needed from now on, and raises the limit if need be.
    fn count_files(&mut self, needed: u64) {
        let limit = files::grow(needed);
        let before =
            std::mem::replace(&mut self.room, (limit < needed).then(|| files::room(limit)));
        if self.room.is_some() && before != self.room {
            Notice::FewFiles { limit, needed }.log();
        }
    }

    /// Whether a service can have its sockets and leave enough for workers.
    fn room_for(&self, def: &ServiceDef) -> Result<(), Fault> {
        let Some(room) = self.room else {
            return Ok(());
        };
        let used: usize = self.services.values().map(|s| s.listeners.len()).sum();
        if used + def.endpoints.len() <= room {
            return Ok(());
        }
        Err(no_room())
    }

    /// Tells how many services have no room: one line, not one for each.
    fn tell_without(&self, services: usize) {
        if services > 0 {
            Notice::WithoutFiles { services }.log();
        }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}

/// Why a service has no socket that would have one with a higher limit. It is logged once for all.
fn no_room() -> Fault {
    Fault::new("no socket", "the limit of open files is reached")
}

/// A poll whose descriptor lies above those that workers get by number: the low ones are taken
/// while it is made.
fn high_poll() -> io::Result<Poll> {
    let null = std::fs::File::open("/dev/null")?;
    let mut taken = vec![null];
    while std::os::fd::AsRawFd::as_raw_fd(&taken[taken.len() - 1]) < high_fd() {
        taken.push(taken[0].try_clone()?);
    }
    Poll::new()
}
