//! bench - a master with a table of the smallest workers, to be measured
//!
//! Ours or Debian's, with the same worker and the same configuration.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tempfile::TempDir;
use worker_proto::clock::Time;

use crate::logbook::Logbook;
use crate::{instance, process};

/// Which master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Of this workspace.
    Ours,
    /// Debian's.
    Postfix,
}

/// A running master with its table.
#[derive(Debug)]
pub struct Master {
    dir: TempDir,
    child: Child,
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a state is looked at.
const GLANCE: Duration = Duration::from_micros(200);

impl Master {
    /// Starts it with these lines of main.cf and of master.cf, and waits until the last service
    /// answers.
    ///
    /// # Errors
    /// A program or an account is missing, or it does not start.
    pub fn start(kind: Kind, main_cf: &str, table: &str) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("bfbench").tempdir_in("/tmp")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let at = dir.path();
        let owner = match kind {
            Kind::Ours => instance::account(),
            Kind::Postfix => {
                User::from_name("postfix")?.ok_or_else(|| io::Error::other("no user postfix"))?
            }
        };
        for sub in ["etc", "libexec", "q", "q/pid", "q/private", "q/public", "d"] {
            fs::create_dir(at.join(sub))?;
        }
        for sub in ["q/private", "q/public", "d"] {
            chown(at.join(sub), Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
        }
        let programs = programs()?;
        fs::copy(programs.join("bench_worker"), at.join("libexec/bench_worker"))?;
        let (root, name) = (at.display(), &owner.name);
        let common = format!(
            "compatibility_level = 3.6\nqueue_directory = {root}/q\ndata_directory = {root}/d\n\
             daemon_directory = {root}/libexec\nmail_owner = {name}\nsetgid_group = postdrop\n\
             maillog_file = {root}/log\nmaillog_file_prefixes = /tmp\ninet_protocols = ipv4\n\
             myhostname = bench.example\n"
        );
        fs::write(at.join("etc/main.cf"), common + main_cf)?;
        let mut table = table.to_owned();
        if kind == Kind::Postfix {
            table.insert_str(0, "postlog unix-dgram n - n - 1 postlogd\n");
            fs::copy("/usr/lib/postfix/sbin/postlogd", at.join("libexec/postlogd"))?;
        }
        fs::write(at.join("etc/master.cf"), &table)?;
        let program = match kind {
            Kind::Ours => programs.join("master"),
            Kind::Postfix => PathBuf::from("/usr/lib/postfix/sbin/master"),
        };
        let child = Command::new(program)
            .args(["-c".as_ref(), at.join("etc").as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let master = Self { dir, child };
        // The last service's socket answers when all are there.
        let last = table.lines().last().and_then(|l| l.split(' ').next()).unwrap_or_default();
        master.wait("start", || master.connect(last).is_ok())?;
        Ok(master)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(0)
    }

    /// The table it reads.
    #[must_use]
    pub fn table(&self) -> PathBuf {
        self.dir.path().join("etc/master.cf")
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> Logbook {
        Logbook::at(&self.dir.path().join("log"))
    }

    /// `queue_directory`
    #[must_use]
    pub fn queue(&self) -> PathBuf {
        self.dir.path().join("q")
    }

    /// Asks it to read its configuration again; does not wait.
    ///
    /// # Errors
    /// It has ended.
    pub fn hang_up(&self) -> io::Result<()> {
        Ok(kill(Pid::from_raw(self.pid()), Signal::SIGHUP)?)
    }

    /// Waits for a state.
    ///
    /// # Errors
    /// It does not come.
    pub fn wait(&self, what: &str, mut reached: impl FnMut() -> bool) -> io::Result<()> {
        let end = Time::now() + PATIENCE;
        while !reached() {
            if Time::now() > end {
                return Err(io::Error::other(format!("timed out waiting for {what}")));
            }
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// A client of a service.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect(&self, service: &str) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.queue().join("public").join(service))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Knocks and waits for the worker's first byte; how long that took.
    ///
    /// # Errors
    /// No worker answers.
    pub fn knock(&self, service: &str) -> io::Result<Duration> {
        let before = Time::now();
        let mut stream = self.connect(service)?;
        stream.read_exact(&mut [0; 1])?;
        Ok(Time::now().since(before))
    }

    /// Resident memory in KiB.
    ///
    /// # Errors
    /// It has ended.
    pub fn resident(&self) -> io::Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
        Ok(line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0))
    }

    /// How many descriptors it has open.
    ///
    /// # Errors
    /// It has ended.
    pub fn descriptors(&self) -> io::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        let _ = self.child.wait();
        let left = process::below(self.dir.path());
        left.iter().for_each(|p| p.signal(Signal::SIGKILL));
    }
}

/// Where the programs of this build are: beside the one that runs.
fn programs() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.parent().map(Path::to_path_buf).unwrap_or_default();
    for program in ["master", "bench_worker"] {
        if !directory.join(program).exists() {
            let hint = "cargo build --release --workspace --bins";
            return Err(io::Error::other(format!("{program} is not built: {hint}")));
        }
    }
    Ok(directory)
}
