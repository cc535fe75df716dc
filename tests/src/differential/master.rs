//! master - a private master of either kind
//!
//! Both get the same main.cf, the same directories, the same environment and the same probe worker.
//! In tables `PORT1` to `PORT9` stand for free ports, and so they do in what is observed.

use std::cell::RefCell;
use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::SystemTime;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::Kind;
use crate::logbook::Logbook;
use crate::process::{self, Process};
use crate::{binaries, instance, net, wait};

/// A master with its directories.
#[derive(Debug)]
pub struct Master {
    pub(super) dir: TempDir,
    pub(super) kind: Kind,
    parameters: Vec<String>,
    child: Option<Child>,
    ended: Option<ExitStatus>,
    pub(super) ports: RefCell<Vec<u16>>,
    /// Process ids that have a name in what is observed.
    pub(super) names: RefCell<Vec<(String, &'static str)>>,
    pub(super) reloads: usize,
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
            names: RefCell::default(),
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

    /// The same, with somebody who listens there.
    ///
    /// # Panics
    /// It is taken by somebody else.
    pub fn occupied_port(&self, number: usize) -> TcpListener {
        TcpListener::bind(("127.0.0.1", self.port(number))).expect("it was free a moment ago")
    }

    /// Puts a script where its programs are.
    ///
    /// # Panics
    /// There is no room in /tmp.
    pub fn script(&self, name: &str, text: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, text).expect("/tmp has room");
        fs::set_permissions(path, Permissions::from_mode(0o755)).expect("it is ours");
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

    /// Writes main.cf.
    ///
    /// # Panics
    /// There is no room in /tmp.
    pub fn main_cf(&self) {
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

    /// The command that starts it, with a poor and known environment, and one group beside root's.
    ///
    /// # Panics
    /// There is no room in /tmp.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.main_cf();
        let mut command = Command::new("setpriv");
        command.args(["--groups", "4"]).arg(self.kind.program());
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

    /// The same in a process that has a child already, which ends soon.
    ///
    /// # Panics
    /// There is no room in /tmp.
    #[must_use]
    pub fn command_with_child(&self) -> Command {
        let inner = self.command(&[]);
        let mut command = Command::new("sh");
        command
            .args(["-c", "sleep 0.2 & exec \"$@\"", "sh"])
            .arg(inner.get_program())
            .args(inner.get_args())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Starts it and waits until it serves or has ended; whether it serves.
    ///
    /// # Panics
    /// It does neither.
    pub fn start(&mut self, arguments: &[&str]) -> bool {
        let command = self.command(arguments);
        self.start_by(command)
    }

    /// The same by a command that ends in this one.
    ///
    /// # Panics
    /// It does neither.
    pub fn start_by(&mut self, mut command: Command) -> bool {
        self.child = Some(command.spawn().expect("the program is there"));
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
