//! master - a private master of either kind
//!
//! Both get the same main.cf, the same directories, the same environment and the same probe worker.
//! In tables `PORT1` to `PORT9` stand for free ports, and so they do in what is observed.

use std::cell::RefCell;
use std::env;
use std::fmt;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::SystemTime;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::Observation;
use crate::descriptors::{self, What};
use crate::logbook::Logbook;
use crate::probe::Probe;
use crate::process::{self, Process};
use crate::{binaries, instance, net, wait};

/// Which master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Ours,
    /// Debian's Postfix's.
    Postfix,
}

/// The program of Debian's package.
const POSTFIX_MASTER: &str = "/usr/lib/postfix/sbin/master";

impl Kind {
    /// The masters that were asked for, as far as they are installed.
    ///
    /// # Panics
    /// Something else was asked for.
    #[must_use]
    pub fn under_test() -> Vec<Self> {
        match env::var("MASTER_UNDER_TEST").as_deref() {
            Ok("ours") => vec![Self::Ours],
            Ok("postfix") => vec![Self::Postfix],
            Ok(word) => panic!("MASTER_UNDER_TEST={word}: write ours or postfix"),
            Err(_) if cfg!(peer_postfix) => vec![Self::Postfix, Self::Ours],
            Err(_) => vec![Self::Ours],
        }
    }

    fn program(self) -> PathBuf {
        match self {
            Self::Ours => binaries::directory().join("master"),
            Self::Postfix => PathBuf::from(POSTFIX_MASTER),
        }
    }
}

/// How a reload went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// The new table is in force.
    Done,
    /// The old one is.
    Refused,
    /// The master has ended.
    Died,
}

/// A master with its directories.
#[derive(Debug)]
pub struct Master {
    dir: TempDir,
    kind: Kind,
    parameters: Vec<String>,
    child: Option<Child>,
    ended: Option<ExitStatus>,
    ports: RefCell<Vec<u16>>,
    reloads: usize,
}

impl Master {
    /// One that does not run yet.
    ///
    /// # Panics
    /// There is no room in /tmp, or the test does not run as root.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        let dir = tempfile::Builder::new().prefix("bfd").tempdir_in("/tmp").expect("/tmp has room");
        let root = dir.path();
        fs::set_permissions(root, Permissions::from_mode(0o755)).expect("it is ours");
        let owner = instance::account();
        for sub in ["etc", "bin", "bin/sub", "reports", "q", "q/pid", "q/private", "q/public", "d"]
        {
            fs::create_dir(root.join(sub)).expect("the directory is new");
        }
        for sub in ["q/private", "q/public", "d"] {
            let (uid, gid) = (owner.uid.as_raw(), owner.gid.as_raw());
            chown(root.join(sub), Some(uid), Some(gid)).expect("we are root");
        }
        let probe = binaries::directory().join("probe_worker");
        for name in ["bin/probe_worker", "bin/sub/probe_worker"] {
            std::os::unix::fs::symlink(&probe, root.join(name)).expect("the directory is new");
        }
        Self {
            dir,
            kind,
            parameters: Vec::new(),
            child: None,
            ended: None,
            ports: RefCell::default(),
            reloads: 0,
        }
    }

    /// Adds a line to main.cf.
    pub fn parameter(&mut self, line: &str) -> &mut Self {
        self.parameters.push(line.to_owned());
        self
    }

    /// A file or directory of it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> Logbook {
        Logbook::at(&self.path("log"))
    }

    /// Which one it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The port that `PORTn` stands for.
    pub fn port(&self, number: usize) -> u16 {
        let mut ports = self.ports.borrow_mut();
        while ports.len() < number {
            ports.push(net::free_port());
        }
        ports[number - 1]
    }

    /// Writes master.cf.
    ///
    /// # Panics
    /// There is no room in /tmp.
    pub fn table(&self, text: &str) {
        fs::write(self.path("etc/master.cf"), self.with_ports(text)).expect("/tmp has room");
    }

    fn with_ports(&self, text: &str) -> String {
        (1..10).fold(text.to_owned(), |text, n| {
            let word = format!("PORT{n}");
            if text.contains(&word) { text.replace(&word, &self.port(n).to_string()) } else { text }
        })
    }

    fn main_cf(&self) {
        let root = self.dir.path().display();
        let group = if self.kind == Kind::Postfix { "postdrop" } else { instance::ACCOUNT };
        let environment = "MAIL_CONFIG TZ LANG=C POSTLOG_SERVICE";
        let mut lines = vec![
            "compatibility_level = 3.6".to_owned(),
            format!("queue_directory = {root}/q"),
            format!("data_directory = {root}/d"),
            format!("daemon_directory = {root}/bin"),
            format!("mail_owner = {}", instance::ACCOUNT),
            format!("setgid_group = {group}"),
            format!("maillog_file = {root}/log"),
            "maillog_file_prefixes = /tmp".to_owned(),
            "myhostname = test.example".to_owned(),
            "inet_protocols = ipv4".to_owned(),
            "inet_interfaces = 127.0.0.1".to_owned(),
            format!("import_environment = {environment} PROBE_REPORTS={root}/reports"),
        ];
        for line in &self.parameters {
            let name = |line: &str| line.split(' ').next().map(str::to_owned);
            lines.retain(|before| name(before) != name(line));
            lines.push(self.with_ports(line));
        }
        let path = self.path("etc/main.cf");
        fs::write(&path, lines.join("\n") + "\n").expect("/tmp has room");
        // Postfix waits until a file has not been written to for a second.
        let file = File::options().write(true).open(path).expect("it was written");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("it is ours");
    }

    /// The command that starts it, with a poor and known environment.
    ///
    /// # Panics
    /// There is no room in /tmp.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.main_cf();
        let mut command = Command::new(self.kind.program());
        let errors = File::create(self.path("stderr")).expect("/tmp has room");
        command
            .env_clear()
            .envs([("PATH", "/usr/bin:/bin"), ("TZ", "UTC"), ("JUNK", "1")])
            .args(["-c".as_ref(), self.path("etc").as_os_str()])
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors);
        command
    }

    /// Starts it and waits until it serves or has ended; whether it serves.
    ///
    /// # Panics
    /// It does neither.
    pub fn start(&mut self, arguments: &[&str]) -> bool {
        let child = self.command(arguments).spawn().expect("the program is there");
        self.child = Some(child);
        wait::until("the master to serve or to end", wait::LONG, || {
            if self.has_ended() {
                return Some(false);
            }
            (self.log().count("daemon started") > 0).then_some(true)
        })
    }

    /// The same with a table.
    pub fn with(kind: Kind, table: &str) -> Self {
        let mut master = Self::new(kind);
        master.run(table);
        master
    }

    /// Starts it with a table that is right.
    ///
    /// # Panics
    /// It does not serve.
    pub fn run(&mut self, table: &str) {
        self.table(table);
        assert!(self.start(&[]), "{:?} does not start: {}", self.kind, self.log().text());
    }

    /// Its process id.
    ///
    /// # Panics
    /// It was not started.
    #[must_use]
    pub fn pid(&self) -> i32 {
        let child = self.child.as_ref().expect("it was started");
        child.id().try_into().expect("a process id is positive")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = Process::read(self.pid()) {
            process.signal(signal);
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        if let Some(child) = &mut self.child
            && self.ended.is_none()
        {
            self.ended = child.try_wait().ok().flatten();
        }
        self.ended.is_some()
    }

    /// What has become of it.
    pub fn fate(&mut self) -> String {
        if !self.has_ended() {
            return "runs".to_owned();
        }
        match self.ended.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => format!("exit status {code}"),
            Some((None, Some(signal))) => format!("signal {signal}"),
            _ => "unknown".to_owned(),
        }
    }

    /// Waits until it has ended, and tells how.
    ///
    /// # Panics
    /// It does not.
    pub fn wait_for_end(&mut self) -> String {
        wait::until("the master to end", wait::LONG, || self.has_ended().then_some(()));
        self.fate()
    }

    /// Gives it a new table and waits until that is in force, is refused, or has killed it. A service
    /// behind all others tells: it answers when everything before it is done.
    ///
    /// # Panics
    /// None of these happens.
    pub fn reload(&mut self, table: &str) -> Reloaded {
        self.reloads += 1;
        let last = format!("reloaded{}", self.reloads);
        let line = format!("{last} unix n n n - - probe_worker\n");
        let socket = self.path("q/public").join(last);
        self.reload_until(&format!("{table}{line}"), |_| {
            Probe::unix(&socket).and_then(|mut probe| probe.report()).is_ok()
        })
    }

    /// The same with a table that is left as it is. Ours says when it is in force; Postfix's last
    /// closes the sockets of removed services, of which `gone` is the last.
    ///
    /// # Panics
    /// None of these happens.
    pub fn reload_without(&mut self, gone: &Place, table: &str) -> Reloaded {
        self.reload_until(table, |master| match master.kind {
            Kind::Ours => master.log().count("reload done") > 0,
            // In this order: one that ends has no descriptors left.
            Kind::Postfix => !master.listens().contains(gone) && master.has_descriptors(),
        })
    }

    fn reload_until(&mut self, table: &str, done: impl Fn(&Self) -> bool) -> Reloaded {
        self.table(table);
        let before = self.log().count("reload refused");
        self.signal(Signal::SIGHUP);
        wait::until("the reload", wait::LONG, || {
            if self.has_ended() {
                return Some(Reloaded::Died);
            }
            if self.log().count("reload refused") > before {
                return Some(Reloaded::Refused);
            }
            done(self).then_some(Reloaded::Done)
        })
    }

    /// The text without what differs from run to run.
    #[must_use]
    pub fn tidy(&self, text: &str) -> String {
        let mut text = text.replace(&self.dir.path().display().to_string(), "ROOT");
        for (n, port) in self.ports.borrow().iter().enumerate() {
            text = text.replace(&port.to_string(), &format!("PORT{}", n + 1));
        }
        text
    }

    /// Every place where it listens: the descriptor's text without its number.
    #[must_use]
    pub fn listens(&self) -> Vec<Place> {
        let all = descriptors::of(self.pid());
        let mut places: Vec<Place> = all.into_iter().filter_map(|d| self.place(d.what)).collect();
        places.sort();
        places.dedup();
        places
    }

    fn has_descriptors(&self) -> bool {
        !descriptors::of(self.pid()).is_empty()
    }

    fn place(&self, what: What) -> Option<Place> {
        match what {
            What::Tcp(address, true) => Some(Place::Tcp(address)),
            What::Unix(_, _, name)
                if name.starts_with("private/") || name.starts_with("public/") =>
            {
                Some(Place::File(name))
            }
            What::Other(name) => {
                let is_fifo = fs::metadata(&name).is_ok_and(|m| m.file_type().is_fifo());
                let below = Path::new(&name).strip_prefix(self.path("q")).ok()?;
                is_fifo.then(|| Place::File(below.display().to_string()))
            }
            What::Pipe(_) | What::Unix(..) | What::Tcp(..) => None,
        }
    }

    /// What the master has logged with a severity of warning or worse: a line each, without the stamp
    /// and what differs from run to run.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let lines = self.log().complaints();
        let lines = lines.iter().filter(|line| line.contains("/master["));
        lines.map(|line| self.tidy(line.split_once("]: ").map_or("", |(_, text)| text))).collect()
    }

    /// Notes each complaint with how often it came.
    pub fn note_complaints(&self, seen: &mut Observation) {
        let mut lines: Vec<String> = self.complaints().iter().map(|l| without_pids(l)).collect();
        lines.sort();
        lines.dedup();
        lines.into_iter().for_each(|line| seen.note(format!("log: {line}"), "yes"));
    }
}

/// Where a master listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A socket or a fifo, below the queue directory.
    File(String),
    /// An address.
    Tcp(std::net::SocketAddr),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name) => write!(f, "{name}"),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

/// Process ids are another in each run.
fn without_pids(line: &str) -> String {
    let mut words: Vec<&str> = line.split(' ').collect();
    for at in 1..words.len() {
        if matches!(words[at - 1], "pid" | "pid:" | "(pid") {
            words[at] = if words[at].ends_with(')') { "N)" } else { "N" };
        }
    }
    words.join(" ")
}

impl Drop for Master {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Workers see that it has gone; those that do not look must not stay.
        process::below(self.dir.path()).iter().for_each(|p| p.signal(Signal::SIGKILL));
    }
}
