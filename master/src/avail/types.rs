//! types - what a pool is told, what it answers, and what it knows of a worker

use std::rc::Rc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use worker_proto::clock::Time;
use worker_proto::status::Availability;

use super::ThrottleRule;
use crate::notice::Notice;

/// Number of a worker in its pool, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(pub u64);

/// What a service allows and asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Name in master.cf, for notices.
    pub ext_name: Rc<str>,
    /// Canonical name, for notices.
    pub name: Rc<str>,
    /// Path of the program, for notices.
    pub path: Rc<str>,
    /// The most workers; None is no limit.
    pub max_proc: Option<u32>,
    /// Workers can be told of stress (F02).
    pub stressable: bool,
    /// Pauses after failures.
    pub throttle: ThrottleRule,
    /// How many workers may be on their way up at a time (1: Postfix's way, W07).
    pub start_burst: u32,
    /// How many idle workers to keep without a client (0: Postfix's way, W07).
    pub min_spare: u32,
    /// How long workers have from SIGTERM to SIGKILL.
    pub kill_time: Duration,
    /// Exactly Postfix's behaviour where ours differs.
    pub compat: bool,
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Exit {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client waits on a listen socket.
    Knock,
    /// The worker of a [`Action::Spawn`] has this process id.
    Started(WorkerId, i32),
    /// The worker of a [`Action::Spawn`] could not be started.
    StartFailed(WorkerId, String),
    /// A worker wrote its status.
    Status(WorkerId, Availability),
    /// A worker ended.
    Ended(WorkerId, Exit),
    /// The time of [`Action::Timer`] has come.
    Tick,
    /// The definition was read again; `changed` when it differs, `retire` to renew the workers.
    Reload {
        /// The rules from now on.
        rules: Rc<Rules>,
        /// The operator has changed something about the service.
        changed: bool,
        /// Workers are to end when idle.
        retire: bool,
    },
    /// The service is no more; its workers have this long before SIGTERM.
    Remove(Duration),
    /// The operator asks to forget failures.
    Reset,
    /// A worker has shut down a listen socket: why, in words.
    SocketShut(String),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Watch the listen sockets, or stop watching them.
    Listen(bool),
    /// Start a worker, under stress or not. It counts as idle from now on (I02).
    Spawn(WorkerId, bool),
    /// Tell a worker to end when idle, by end of file on its status channel.
    Retire(WorkerId),
    /// Send a worker a signal.
    Kill(WorkerId, Kill),
    /// Call again with [`Event::Tick`] at this time; None cancels.
    Timer(Option<Time>),
    /// A worker has left, and what it did between clients is to go on: wake the service at this time,
    /// if it has a wakeup timer.
    Wake(Time),
    /// The removed service has no workers left.
    Gone,
    /// Tell the operator.
    Log(Notice),
}

/// A signal that a pool sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kill {
    /// SIGTERM
    Term,
    /// SIGKILL
    Kill,
}

/// What an operator wants to know of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Its process id, once started.
    pub pid: Option<i32>,
    /// It has a client.
    pub busy: bool,
    /// It was told to end.
    pub retired: bool,
    /// Clients served.
    pub served: u64,
    /// When it was started.
    pub born: Time,
    pub(super) heard: bool,
}

/// Counters since the service was defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Workers started.
    pub spawned: u64,
    /// Clients served.
    pub served: u64,
    /// Workers that ended abnormally or without work.
    pub failed: u64,
    /// How the last worker ended.
    pub last_exit: Option<Exit>,
}
