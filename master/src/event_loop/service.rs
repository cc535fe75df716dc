//! service - one service while it runs

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use mio::Token;
use worker_proto::abi::Generation;
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;
use worker_proto::sys::{Launch, ListenFds, SpawnImage, Spawner};

use super::Birth;
use crate::avail::{Pool, WorkerId};
use crate::cgroup;
use crate::channel::Channel;
use crate::conf::Configured;
use crate::config::Config;
use crate::limits;
use crate::listen::{Listener, Trouble};
use crate::notice::Notice;
use crate::plan;
use crate::service::{Endpoint, ServiceDef};
use crate::stage2;
use crate::wakeup::Alarm;

pub(super) struct Service {
    pub(super) configured: Configured,
    pub(super) pool: Pool,
    pub(super) alarm: Alarm,
    pub(super) listeners: Vec<Listener>,
    /// Registrations of the listeners; empty while nobody is waited for.
    pub(super) listening: Vec<Token>,
    pub(super) wants_listen: bool,
    pub(super) workers: HashMap<WorkerId, Live>,
    pub(super) unbound: Option<Unbound>,
    /// Its control group, from when it was first asked for.
    pub(super) group: Option<PathBuf>,
    /// That its socket is lost was logged.
    pub(super) lost: bool,
    /// Retired workers that are killed at the end of their time: an operator has asked for it.
    pub(super) hung: Vec<WorkerId>,
    /// Made with the first worker; most services of a large table never have one. Boxed: it is as large
    /// as the rest.
    image: Option<Box<SpawnImage>>,
}

/// A worker's process.
pub(super) struct Live {
    pub(super) pid: i32,
    pub(super) generation: Generation,
    pub(super) channel: Channel,
    pub(super) token: Option<Token>,
    /// How it was started; None for one that another program has handed over.
    pub(super) launch: Option<Launch>,
}

/// Why a service has no sockets, or not those it should have.
pub(super) struct Unbound {
    pub(super) reason: String,
    pub(super) pause: Duration,
    pub(super) next: Time,
}

/// The first and the longest pause before binding is tried again.
const BIND_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

impl Service {
    pub(super) fn new(now: Time, configured: Configured) -> Self {
        Self {
            pool: Pool::new(Rc::clone(&configured.rules)),
            alarm: Alarm::new(now, configured.def.wakeup),
            configured,
            listeners: Vec::new(),
            listening: Vec::new(),
            wants_listen: false,
            workers: HashMap::new(),
            unbound: None,
            group: None,
            lost: false,
            hung: Vec::new(),
            image: None,
        }
    }

    /// Binds all endpoints of a definition, or none. Old sockets are used where they fit.
    pub(super) fn bind(
        def: &ServiceDef,
        config: &Config,
        old: &mut Vec<Listener>,
    ) -> Result<Vec<Listener>, Fault> {
        let mut bind = |endpoint: &Endpoint| {
            Listener::bind(endpoint, def.key.transport, config.backlog(def), config.owner, old)
        };
        // Not by collect(): with results it makes room for four, in each of thousands of services.
        let mut listeners = Vec::with_capacity(def.endpoints.len());
        for endpoint in &def.endpoints {
            listeners.push(bind(endpoint)?);
        }
        Ok(listeners)
    }

    /// Whether its workers have sockets that are not its own.
    pub(super) fn lent(&self) -> bool {
        self.listeners.iter().any(|l| l.left.is_some())
    }

    /// The command line has their number.
    pub(super) fn sockets_changed(&mut self) {
        self.image = None;
    }

    /// Binding has failed: when to try again.
    pub(super) fn bind_failed(&mut self, now: Time, fault: &Fault) -> Time {
        let (first, most) = BIND_PAUSE;
        let pause = self.unbound.as_ref().map_or(first, |u| (u.pause * 2).min(most));
        let next = now + pause;
        self.unbound = Some(Unbound { reason: fault.to_string(), pause, next });
        next
    }

    /// Which of its sockets no client can connect to, if any, and why, in words.
    pub(super) fn trouble(&self) -> Option<(Trouble, String)> {
        self.listeners.iter().find_map(|listener| {
            let trouble = listener.trouble()?;
            Some((trouble, format!("{}: {}", listener.endpoint(), trouble.text())))
        })
    }

    /// Names for notices: as written, and canonical.
    pub(super) fn names(&self) -> (Rc<str>, Rc<str>) {
        let def = &self.configured.def;
        (def.ext_name.clone(), def.key.name.clone())
    }

    /// Takes over a new definition; the command line is made anew when it is needed.
    pub(super) fn redefine(&mut self, now: Time, configured: Configured) {
        self.alarm = Alarm::new(now, configured.def.wakeup);
        self.configured = configured;
        self.image = None;
    }

    pub(super) fn start_worker(
        &mut self,
        birth: &Birth,
        config: &Config,
        spawner: &mut Spawner,
        generation: Generation,
        stress: bool,
    ) -> io::Result<Live> {
        let (channel, status) = Channel::pair()?;
        let listen = ListenFds::new(self.listeners.iter().map(AsFd::as_fd))?;
        let image = match &mut self.image {
            Some(image) => image,
            empty => {
                let sockets = self.listeners.len();
                let group = self.group.as_deref();
                let image = image(&self.configured, sockets, group, birth, config)?;
                empty.insert(Box::new(image))
            }
        };
        let launch =
            spawner.spawn(image, generation, stress, status.as_fd(), &listen, birth.files)?;
        let pid = launch.pid.as_raw();
        Ok(Live { pid, generation, channel, token: None, launch: Some(launch) })
    }
}

/// Makes the delegated control group ready. Without it the limits of some services cannot be set, and
/// each of them will say so; the others run.
pub(crate) fn prepare_groups(config: &Config) {
    let root = &config.master.cgroup_root;
    if !root.is_empty()
        && let Err(fault) = cgroup::prepare(Path::new(root))
    {
        Notice::Trouble { text: format!("cgroup_root: {fault}") }.log();
    }
}

/// A service with limits is started through our own second stage, which sets them.
fn image(
    configured: &Configured,
    sockets: usize,
    group: Option<&Path>,
    birth: &Birth,
    config: &Config,
) -> io::Result<SpawnImage> {
    let plan = plan::plan(&configured.def, sockets, &config.common.daemon_directory, birth.flags);
    if configured.limits.is_empty() {
        return SpawnImage::new(&plan.path, &plan.args, &birth.environment, plan.stress);
    }
    let group = group.filter(|_| has_group(configured, config));
    let cgroup = group.map_or_else(String::new, |path| path.display().to_string());
    let word = limits::to_word(&configured.limits);
    let args = stage2::command_line(&word, &cgroup, &plan.path, &plan.args);
    let program = birth.program.as_os_str().as_encoded_bytes();
    let stress = plan.stress.map(|at| at + stage2::WORDS);
    SpawnImage::new(program, &args, &birth.environment, stress)
}

/// Whether a service runs in a control group of its own.
pub(super) fn has_group(configured: &Configured, config: &Config) -> bool {
    !config.master.cgroup_root.is_empty() && limits::ask_for_cgroup(&configured.limits)
}
