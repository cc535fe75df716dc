//! notice - every line an operator can see in the log
//!
//! A line each, with its severity, what it means, and an example for the golden test and the
//! DIAGNOSTICS of master(8). Where Postfix has the line, these are its words, so that what reads
//! Postfix's log reads ours.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use worker_proto::clock::Time;

mod limit;

/// Severity of a line: what word stands before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Only with `-v`.
    Debug,
    /// No word.
    Info,
    /// `warning:`
    Warning,
    /// `error:`
    Error,
    /// `fatal:`
    Fatal,
}

macro_rules! notices {
    ($(
        $(#[doc = $doc:literal])+
        $severity:ident $name:ident $({ $($field:ident: $type:ty = $example:expr),+ })? => $text:literal;
    )+) => {
        /// A line in the log.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the fields are the words of the line")]
        pub enum Notice {
            $($(#[doc = $doc])+ $name $({ $($field: $type),+ })?,)+
        }

        impl fmt::Display for Notice {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name $({ $($field),+ })? => write!(f, $text),)+
                }
            }
        }

        impl Notice {
            /// How bad it is.
            #[must_use]
            pub const fn severity(&self) -> Severity {
                match self {
                    $(Self::$name $({ $($field: _),+ })? => Severity::$severity,)+
                }
            }

            /// What kind of line it is.
            const fn kind(&self) -> &'static str {
                match self {
                    $(Self::$name $({ $($field: _),+ })? => stringify!($name),)+
                }
            }

            /// Every line with an example and the manual's text, in the order of the manual.
            #[must_use]
            pub fn all() -> Vec<(Self, &'static [&'static str])> {
                vec![$((Self::$name $({ $($field: $example.into()),+ })?, &[$($doc),+]),)+]
            }
        }
    };
}

notices! {
    /// The master serves. Logged once a start.
    Info Started { version: String = "0.1.0", directory: String = "/etc/belfry" }
        => "daemon started -- version {version}, configuration {directory}";
    /// An earlier master was killed and workers of it still serve clients. Their listen sockets go on to
    /// be used, with the clients that wait in them.
    Info TookOver { sockets: usize = 3_usize }
        => "took over {sockets} listen sockets from workers of an earlier master";
    /// A reload was asked for, by SIGHUP or by `belfry reload`.
    Info Reload { version: String = "0.1.0", directory: String = "/etc/belfry" }
        => "reload -- version {version}, configuration {directory}";
    /// The reload has taken effect.
    Info Reloaded { added: usize = 1_usize, removed: usize = 0_usize, changed: usize = 2_usize, kept: usize = 5_usize }
        => "reload done: {added} added, {removed} removed, {changed} changed, {kept} kept";
    /// The configuration has errors, each logged above. Nothing has changed: the services run as
    /// before. Fix the files and reload again.
    Error ReloadRefused { errors: String = "2 errors" }
        => "reload refused: {errors}; the running configuration stays in force";
    /// `belfry diff`: the configuration is read and compared, and nothing is changed.
    Info Diff { version: String = "0.1.0", directory: String = "/etc/belfry" }
        => "diff -- version {version}, configuration {directory}";
    /// A reload was in progress when the master was told to stop. It is not carried out.
    Info ReloadCancelled
        => "reload cancelled: the master is stopping";
    /// `belfry upgrade`: the program is asked whether it can go on from here.
    Info Upgrade { version: String = "0.1.0", program: String = "/usr/libexec/belfry/master" }
        => "upgrade -- version {version}, program {program}";
    /// What the new program says against the upgrade.
    Error BadUpgrade { text: String = "/usr/libexec/belfry/master: No such file or directory" }
        => "upgrade: {text}";
    /// Nothing has changed: this program goes on. The reasons are logged above.
    Error UpgradeRefused { version: String = "0.1.0" }
        => "upgrade refused; version {version} goes on";
    /// This program has taken over, in the same process and with every worker. A reload follows.
    Info Resumed { old: String = "0.1.0", version: String = "0.2.0", services: usize = 12_usize, workers: usize = 5_usize }
        => "upgraded from version {old} to {version} with {services} services, {workers} workers";
    /// A complaint about a place in main.cf or master.cf that forbids its use.
    Error BadConfig { text: String = "/etc/belfry/master.cf:12:21: field \"wakeup\": bad value: \"soon\"" }
        => "{text}";
    /// A complaint about a place in main.cf or master.cf that is used all the same.
    Warning OddConfig { text: String = "/etc/belfry/master.cf:9:1: duplicate entry" }
        => "{text}";
    /// The master was told to stop.
    Info Terminating { signal: i32 = 15 }
        => "terminating on signal {signal}";
    /// The time of option `-e` is over.
    Info ExitTime
        => "master exit time has arrived";
    /// A worker has shut down the listen socket that it shares with the master, so that no client could
    /// connect. The service pauses, longer each time, and has a new socket.
    Warning SocketShut { ext_name: Rc<str> = "smtp", name: Rc<str> = "25", reason: String = "127.0.0.1:25: a worker has shut down the socket" }
        => "service {ext_name}({name}): {reason} -- throttling, binding again";
    /// No client can connect: the socket's file was removed or replaced. `belfry reload`, or `belfry
    /// reset NAME`, binds it again.
    Warning SocketLost { ext_name: Rc<str> = "qmgr", name: Rc<str> = "private/qmgr", reason: String = "private/qmgr: the socket file was removed or replaced" }
        => "service {ext_name}({name}): {reason}; reload or reset binds it again";
    /// A worker that was told to end has not, and kept the next one from starting. A reload, or
    /// `belfry reset NAME`, was asked for, and stop_kill_time is over.
    Warning HungWorker { path: Rc<str> = "/usr/libexec/belfry/qmgr", pid: i32 = 77 }
        => "process {path} pid {pid} was retired and does not end -- killed";
    /// Something the master needs to start is missing.
    Fatal CannotStart { reason: String = "open lock file pid/master.pid: unable to set exclusive lock: Resource temporarily unavailable" }
        => "{reason}";
    /// A worker ended with a status other than 0; its own lines above say why.
    Warning ExitStatus { path: Rc<str> = "/usr/libexec/belfry/smtpd", pid: i32 = 77, status: i32 = 1 }
        => "process {path} pid {pid} exit status {status}";
    /// A worker was ended by a signal.
    Warning KilledBySignal { path: Rc<str> = "/usr/libexec/belfry/smtpd", pid: i32 = 77, signal: i32 = 9 }
        => "process {path} pid {pid} killed by signal {signal}";
    /// A worker ended badly before it served a client. The service pauses, longer each time.
    /// `belfry status` shows until when; `belfry reset NAME` ends the pause.
    Warning BadStartup { path: Rc<str> = "/usr/libexec/belfry/smtpd" }
        => "{path}: bad command startup -- throttling";
    /// A worker ended at once, without an error and without a word. The service pauses as after a
    /// failure, since the waiting client would start the next one at once.
    Warning NoWork { path: Rc<str> = "/usr/libexec/belfry/smtpd" }
        => "{path}: ended without work -- throttling";
    /// A program could not be executed.
    Warning ExecFailed { path: Rc<str> = "/usr/libexec/belfry/smtpd", reason: String = "No such file or directory" }
        => "master_spawn: exec {path}: {reason}";
    /// The system has no room for another process.
    Warning ForkFailed { reason: String = "Resource temporarily unavailable" }
        => "master_spawn: fork: {reason} -- throttling";
    /// A pause is over.
    Debug DebugThrottleReleased { path: Rc<str> = "/usr/libexec/belfry/smtpd" }
        => "throttle released for command {path}";
    /// All workers that a service may have are busy. At most once in 1000 seconds for a service.
    Warning ProcessLimit { ext_name: Rc<str> = "smtp", name: Rc<str> = "25", limit: u32 = 100_u32 }
        => "service \"{ext_name}\" ({name}) has reached its process limit \"{limit}\": new clients may experience noticeable delays";
    /// The same for a service that only this host reaches, in one line. It is as it should be when the
    /// limit is what was meant to bound the work, as with the delivery service.
    Info LocalLimit { ext_name: Rc<str> = "delivery", name: Rc<str> = "private/delivery", limit: u32 = 20_u32 }
        => "service \"{ext_name}\" ({name}) uses all of its process limit \"{limit}\"";
    /// What to do about it.
    Warning ProcessLimitAdvice
        => "to avoid this condition, increase the process count in master.cf or reduce the service time per client";
    /// Where to read more.
    Warning ProcessLimitStress
        => "see master(8), \"Stress\", for configuration that adapts to stress";
    /// A worker wrote something else than a status record.
    Warning PartialStatus { ext_name: Rc<str> = "smtp", name: Rc<str> = "25", pid: i32 = 77, size: usize = 5_usize }
        => "service {ext_name}({name}): child (pid {pid}) sent partial status update ({size} bytes)";
    /// A worker wrote another worker's process id or generation. It is ignored.
    Info ForeignStatus { pid: i32 = 77, generation: String = "11" }
        => "ignoring status update from child pid {pid} generation {generation}";
    /// A worker wrote a status that no version defines. It is ignored.
    Warning UnknownStatus { pid: i32 = 77, state: i32 = 7 }
        => "ignoring unknown status: {state} allegedly from pid: {pid}";
    /// A process ended that the master has not started, such as a grandchild in a container.
    Debug DebugUnknownChild { pid: i32 = 77 }
        => "process pid {pid} is not ours";
    /// A service could not be woken by its timer. It is tried again in the next period.
    Warning WakeupFailed { ext_name: Rc<str> = "qmgr", name: Rc<str> = "private/qmgr", reason: String = "Connection refused" }
        => "master_wakeup_timer_event: service {ext_name}({name}): {reason}";
    /// A service has no socket. The others run; it is tried again, and `belfry status` shows when.
    Error BindFailed { ext_name: Rc<str> = "smtp", name: Rc<str> = "25", reason: String = "bind 127.0.0.1 port 25: Address already in use" }
        => "service {ext_name}({name}): {reason} -- retrying";
    /// The service of the line before has its socket now.
    Info BindRecovered { ext_name: Rc<str> = "smtp", name: Rc<str> = "25" }
        => "service {ext_name}({name}): listening";
    /// Not every service and worker can have the descriptors that it needs. Raise the limit, with
    /// LimitNOFILE in the unit or with `ulimit -Hn` before the start.
    Warning FewFiles { limit: u64 = 256_u64, needed: u64 = 702_u64 }
        => "the limit of open files is {limit}, and {needed} are needed: raise it with LimitNOFILE in the unit or with ulimit -Hn";
    /// These services are tried again; `belfry status` shows which they are.
    Error WithoutFiles { services: usize = 12_usize }
        => "{services} services have no socket: the limit of open files is reached";
    /// A change that takes effect only with a new start.
    Warning IgnoredChange { name: Rc<str> = "queue_directory", old: String = "/a", new: String = "/b" }
        => "ignoring {name} parameter value change: \"{old}\" stays, \"{new}\" needs a stop and a start";
    /// More lines of one kind about one service than are logged; the first of those that were left out
    /// is shown.
    Warning Suppressed { count: u64 = 12000_u64, example: String = "ignoring status update from child pid 77 generation 11" }
        => "{count} more lines suppressed like: {example}";
    /// Something failed that the master can do without.
    Warning Trouble { text: String = "accept pid/control: Too many open files" }
        => "{text}";
}

thread_local! {
    static LIMITER: RefCell<limit::Limiter> = RefCell::default();
}

impl Notice {
    /// Writes the line to the log, unless there are too many like it.
    pub fn log(&self) {
        match self.source() {
            Some(source) => self.log_of(source),
            None => self.write(),
        }
    }

    /// The same for a line about a service that it does not name.
    pub fn log_of(&self, source: &str) {
        // What only `-v` shows was asked for.
        let admit = || {
            let now = Time::now();
            LIMITER.with_borrow_mut(|limiter| limiter.admit(now, self.kind(), source, self))
        };
        if self.severity() == Severity::Debug || admit() {
            self.write();
        }
    }

    /// What can cause any number of lines of this kind: a service, a program.
    fn source(&self) -> Option<&str> {
        match self {
            Self::ExitStatus { path: source, .. }
            | Self::KilledBySignal { path: source, .. }
            | Self::BadStartup { path: source }
            | Self::NoWork { path: source }
            | Self::ExecFailed { path: source, .. }
            | Self::PartialStatus { name: source, .. }
            | Self::WakeupFailed { name: source, .. } => Some(source),
            Self::ForkFailed { .. }
            | Self::ForeignStatus { .. }
            | Self::UnknownStatus { .. }
            | Self::Trouble { .. } => Some(""),
            _ => None,
        }
    }

    fn write(&self) {
        match self.severity() {
            Severity::Debug => log::debug!("{self}"),
            Severity::Info => log::info!("{self}"),
            Severity::Warning => log::warn!("{self}"),
            Severity::Error => log::error!("{self}"),
            Severity::Fatal => worker_proto::log::fatal(&self.to_string()),
        }
    }
}

/// Logs how many lines were suppressed in the periods that are over; when to call it again.
pub fn tell_suppressed(now: Time) -> Option<Time> {
    let summaries = LIMITER.with_borrow_mut(|limiter| limiter.end(now));
    for limit::Summary { count, example } in summaries {
        Notice::Suppressed { count, example }.write();
    }
    LIMITER.with_borrow(limit::Limiter::next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Log lines are interface: a change here is a change for whoever reads the log.
    #[test]
    fn the_lines_are_as_they_were() {
        let lines: String = Notice::all()
            .iter()
            .map(|(notice, _)| format!("{:?}: {notice}\n", notice.severity()))
            .collect();
        assert_eq!(lines, include_str!("notice.golden"));
    }

    #[test]
    fn every_line_is_one_line_and_explained() {
        for (notice, doc) in Notice::all() {
            assert!(!notice.to_string().contains('\n'), "{notice}");
            assert!(!doc.concat().trim().is_empty(), "{notice}");
        }
    }
}
