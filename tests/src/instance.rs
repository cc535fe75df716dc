//! instance - a private mail system for one test
//!
//! Real master, real workers, below a directory of its own in /tmp, on ports of its own. At the end
//! the test says which complaints it expects in the log; any other, a zombie or a process that is
//! left over is a failure.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User};
use tempfile::TempDir;

use crate::binaries;
use crate::end_of_test;
use crate::logbook::Logbook;
use crate::net;
use crate::process::{self, Process};
use crate::wait;

/// The unprivileged account of the workers.
pub const ACCOUNT: &str = "belfry";

/// A mail system.
#[derive(Debug)]
pub struct Instance {
    dir: TempDir,
    /// Lines of main.cf behind those that every instance has.
    main_cf: Vec<String>,
    /// Lines of master.cf.
    master_cf: Vec<String>,
    /// The port of the SMTP service, once there is one.
    pub port: u16,
    master: Option<Child>,
    /// Where its programs are.
    programs: PathBuf,
    /// What the master is started with: a command before its own, and the environment.
    prefix: Vec<String>,
    environment: Vec<(String, String)>,
    /// The end was checked.
    checked: bool,
}

/// Copies a program that is executed soon. Another process writes it: a child of this one, begun by
/// another test meanwhile, would have the file open for writing, and nobody could execute it.
///
/// # Panics
/// It is not there, or there is no room.
pub fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().expect("every system has cp");
    assert!(status.success(), "cp {}: {status}", from.display());
}

impl Instance {
    /// An instance without services.
    ///
    /// # Panics
    /// The test does not run as root, or there is no room in /tmp.
    #[must_use]
    pub fn bare() -> Self {
        assert!(Uid::effective().is_root(), "these tests start a master, which only root can");
        // A short path: the name of a socket has room for 107 bytes.
        let dir = tempfile::Builder::new().prefix("bf").tempdir_in("/tmp").expect("/tmp has room");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("it is ours");
        let instance = Self {
            dir,
            main_cf: Vec::new(),
            master_cf: Vec::new(),
            port: 0,
            master: None,
            programs: binaries::directory().to_path_buf(),
            prefix: Vec::new(),
            environment: Vec::new(),
            checked: false,
        };
        instance.lay_out();
        instance
    }

    /// An instance with all services of the shipped master.cf, on a port of its own.
    #[must_use]
    pub fn new() -> Self {
        let mut instance = Self::bare();
        instance.port = net::free_port();
        let smtp = format!("127.0.0.1:{} inet n - y - - smtpd", instance.port);
        instance
            .service(&smtp)
            .service("submit unix n - y - - smtpd")
            .service("qmgr unix - - y 300 1 qmgr")
            .service("delivery unix - - y - - delivery-agent");
        instance
    }

    /// Adds a line to main.cf.
    pub fn parameter(&mut self, name: &str, value: &str) -> &mut Self {
        self.main_cf.push(format!("{name} = {value}"));
        self
    }

    /// Adds a line to master.cf.
    pub fn service(&mut self, line: &str) -> &mut Self {
        self.master_cf.push(line.to_owned());
        self
    }

    /// Has these lines of master.cf in place of those before.
    pub fn replace_services(&mut self, lines: &[&str]) -> &mut Self {
        self.master_cf = lines.iter().map(|line| (*line).to_owned()).collect();
        self
    }

    /// Gives it copies of these programs, and no other, which a test may replace.
    ///
    /// # Panics
    /// There is no room in /tmp.
    pub fn own_programs(&mut self, names: &[&str]) -> &mut Self {
        let own = self.root().join("bin");
        fs::create_dir(&own).expect("the directory is new");
        for name in names {
            copy_program(&self.programs.join(name), &own.join(name));
        }
        self.programs = own;
        self
    }

    /// Starts the master by another command, which executes it in its place.
    pub fn started_by(&mut self, words: &[&str]) -> &mut Self {
        self.prefix = words.iter().map(|w| (*w).to_owned()).collect();
        self
    }

    /// Sets an environment variable of the master.
    pub fn environment(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The instance's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// `config_directory`
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root().join("etc")
    }

    /// `queue_directory`
    #[must_use]
    pub fn queue(&self) -> PathBuf {
        self.root().join("q")
    }

    /// The log.
    #[must_use]
    pub fn log(&self) -> Logbook {
        Logbook::at(&self.root().join("log"))
    }

    /// A program of the workspace, or by an absolute path, told of this instance in the environment.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.env("MAIL_CONFIG", self.config()).current_dir("/").stdin(Stdio::null());
        command
    }

    /// Runs `belfry` with these words.
    ///
    /// # Panics
    /// It cannot be run.
    #[must_use]
    pub fn belfry(&self, words: &[&str]) -> Output {
        self.command("belfry").args(words).output().expect("belfry was built")
    }

    /// Writes the configuration, without starting anything.
    ///
    /// # Panics
    /// There is no room in /tmp.
    pub fn write(&self) {
        let root = self.root().display();
        let bin = self.programs.display();
        let mut main_cf = format!(
            "queue_directory = {root}/q\ndata_directory = {root}/d\ndaemon_directory = {bin}\n\
             command_directory = {bin}\nmaillog_file = {root}/log\nmail_owner = {ACCOUNT}\n\
             myhostname = test.example\ninet_protocols = ipv4\n"
        );
        for line in &self.main_cf {
            main_cf.push_str(line);
            main_cf.push('\n');
        }
        let config = self.config();
        let master_cf = self.master_cf.join("\n") + "\n";
        fs::write(config.join("main.cf"), main_cf).expect("/tmp has room");
        fs::write(config.join("master.cf"), master_cf).expect("/tmp has room");
        let alerts = config.join("alerts.cf");
        if !alerts.exists() {
            fs::write(alerts, "admin@test.example\n").expect("/tmp has room");
        }
    }

    /// Starts the master and waits until it serves.
    ///
    /// # Panics
    /// It does not.
    pub fn start(&mut self) -> &mut Self {
        self.write();
        let before = self.log().count("daemon started");
        let errors = File::create(self.root().join("stderr")).expect("/tmp has room");
        let master = self.programs.join("master").display().to_string();
        let words: Vec<String> = self.prefix.iter().cloned().chain([master]).collect();
        let mut command = self.command(&words[0]);
        command.args(&words[1..]).envs(self.environment.iter().cloned());
        command.args(["-c".as_ref(), self.config().as_os_str()]).stdout(Stdio::null());
        let mut child = command.stderr(errors).spawn().expect("master was built");
        wait::until("the master to serve", wait::LONG, || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("master: {status}: {}{}", self.stderr(), self.log().text());
            }
            (self.log().count("daemon started") > before).then_some(())
        });
        self.master = Some(child);
        self
    }

    /// What the master said on standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.root().join("stderr")).unwrap_or_default()
    }

    /// The master's process id.
    ///
    /// # Panics
    /// It does not run.
    #[must_use]
    pub fn master_pid(&self) -> i32 {
        let child = self.master.as_ref().expect("the master was started");
        child.id().try_into().expect("a process id is positive")
    }

    /// The workers of a program.
    #[must_use]
    pub fn workers(&self, program: &str) -> Vec<Process> {
        // The kernel keeps 15 bytes of the name.
        let name = &program[..program.len().min(15)];
        let mut workers = process::children(self.master_pid());
        workers.retain(|p| p.name == name && !p.zombie());
        workers
    }

    /// Checks the running master, asks it to stop, and waits until it and all its workers have ended.
    ///
    /// # Panics
    /// Somebody stays, or the master has a zombie or a descriptor too many.
    pub fn stop(&mut self) -> &mut Self {
        let pid = self.master_pid();
        end_of_test::no_zombie(pid);
        end_of_test::no_stray_descriptor(pid, &self.queue());
        if let Some(master) = Process::read(pid) {
            master.signal(Signal::SIGTERM);
        }
        let mut child = self.master.take().expect("it was there a moment ago");
        wait::until("the master to end", wait::LONG, || child.try_wait().ok().flatten());
        self.wait_for_nobody();
        self
    }

    /// Waits until the master has ended by a signal that the test has sent, and everybody with it.
    ///
    /// # Panics
    /// It ends otherwise, or somebody stays.
    pub fn ends_by(&mut self, signal: Signal) -> &mut Self {
        let mut child = self.master.take().expect("the master was started");
        let end = wait::until("the master to end", wait::LONG, || child.try_wait().ok().flatten());
        assert_eq!(end.signal(), Some(signal as i32), "{end}");
        self.wait_for_nobody();
        self
    }

    /// Ends the master at once and waits until its workers have seen it.
    ///
    /// # Panics
    /// Somebody stays.
    pub fn kill(&mut self) -> &mut Self {
        let mut child = self.master.take().expect("the master was started");
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
        self.wait_for_nobody();
        self
    }

    /// Ends the master at once. Its workers end when they have served their clients; another master may
    /// be started before.
    ///
    /// # Panics
    /// There is none.
    pub fn kill_master(&mut self) -> &mut Self {
        let mut child = self.master.take().expect("the master was started");
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
        self
    }

    fn wait_for_nobody(&self) {
        let gone = wait::within(Duration::from_secs(20), || {
            process::below(self.root()).is_empty().then_some(())
        });
        let left = process::below(self.root());
        assert!(gone.is_some(), "left over: {left:#?}\n{}", self.log().text());
    }

    /// Stops the master if it runs and checks the end ([`end_of_test`]): nobody left, and no complaint
    /// in the log but those with one of these texts, each of which was made.
    ///
    /// # Panics
    /// One of these does not hold.
    pub fn finish(self, expected: &[&str]) {
        self.finish_with(expected, &[]);
    }

    /// The same, for a test whose end leaves open whether some complaints are made.
    ///
    /// # Panics
    /// As [`Instance::finish`].
    pub fn finish_with(mut self, expected: &[&str], possible: &[&str]) {
        if self.master.is_some() {
            self.stop();
        }
        self.wait_for_nobody();
        self.checked = true;
        end_of_test::no_stranger(self.root());
        end_of_test::only_expected_complaints(&self.log(), expected, possible);
    }

    fn lay_out(&self) {
        let user = account();
        let owned = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
        let root = (Some(Uid::from_raw(0).as_raw()), Some(Gid::from_raw(0).as_raw()));
        for (name, mode, (uid, gid)) in [
            ("etc", 0o755, root),
            ("q", 0o755, root),
            ("d", 0o700, owned),
            ("q/pid", 0o755, root),
            ("q/private", 0o700, owned),
            ("q/public", 0o755, owned),
            ("q/maildrop", 0o1730, owned),
            ("q/queue", 0o700, owned),
        ] {
            let path = self.root().join(name);
            fs::create_dir(&path).expect("the directory is new");
            chown(&path, uid, gid).expect("we are root");
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("we are root");
        }
    }
}

impl Default for Instance {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(mut child) = self.master.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Chrooted workers of a dead master end by themselves; stuck ones must not stay.
        let left = process::below(self.dir.path());
        left.iter().for_each(|p| p.signal(Signal::SIGKILL));
        if thread::panicking() {
            // The log is the first thing to look at.
            let text = self.log().text();
            let start = text.char_indices().rev().nth(20_000).map_or(0, |(at, _)| at);
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("--- log of the instance ---\n{}---\n", &text[start..]).as_bytes(),
            );
        } else {
            assert!(self.checked, "a test ends its instance with finish()");
        }
    }
}

/// The account, made if it is missing.
///
/// # Panics
/// It cannot be made.
pub fn account() -> User {
    static MADE: Once = Once::new();
    MADE.call_once(|| {
        if User::from_name(ACCOUNT).ok().flatten().is_none() {
            let useradd = Command::new("useradd")
                .args(["--system", "--user-group", "--no-create-home", "--home-dir", "/"])
                .args(["--shell", "/usr/sbin/nologin", ACCOUNT])
                .output()
                .expect("useradd is there");
            assert!(useradd.status.success(), "{}", String::from_utf8_lossy(&useradd.stderr));
        }
    });
    User::from_name(ACCOUNT).ok().flatten().expect("the account was made")
}
