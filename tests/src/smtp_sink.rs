//! smtp_sink - Debian's smtp-sink as a relay, and smtp-source as a client

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::{net, peer, wait};

/// A running smtp-sink that keeps what it gets.
#[derive(Debug)]
pub struct SmtpSink {
    /// Its port on 127.0.0.1.
    pub port: u16,
    dir: TempDir,
    child: Child,
}

impl SmtpSink {
    /// Starts one.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn start() -> Self {
        let dir =
            tempfile::Builder::new().prefix("bfsink").tempdir_in("/tmp").expect("/tmp has room");
        // It gives up root before it writes.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("it is ours");
        let port = net::free_port();
        let program = peer::find("smtp-sink").expect("Debian's postfix is installed");
        let child = Command::new(program)
            .args(["-u", "nobody", "-d", "%M."])
            .args([format!("127.0.0.1:{port}"), "1000".to_owned()])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("smtp-sink was found");
        wait::until("smtp-sink to listen", wait::LONG, || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self { port, dir, child }
    }

    /// Its name in `relayhost`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("[127.0.0.1]:{}", self.port)
    }

    /// Stops it, as SIGSTOP does, or lets it go on.
    ///
    /// # Panics
    /// It has ended.
    pub fn pause(&self, on: bool) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a process id is positive"));
        kill(pid, if on { Signal::SIGSTOP } else { Signal::SIGCONT }).expect("it is our child");
    }

    /// How many messages came, whole or not yet.
    #[must_use]
    pub fn count(&self) -> usize {
        fs::read_dir(self.dir.path()).map_or(0, Iterator::count)
    }

    /// The recipients of all messages, a message each, in order.
    #[must_use]
    pub fn recipients(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        let mut found: Vec<_> = entries
            .filter_map(|entry| {
                let bytes = fs::read(entry.path()).unwrap_or_default();
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let line = text.lines().find_map(|line| line.strip_prefix("X-Rcpt-Args: "))?;
                Some(line.trim_matches(['<', '>']).to_owned())
            })
            .collect();
        found.sort();
        found
    }

    /// How often each message has come, by its Message-Id.
    #[must_use]
    pub fn messages(&self) -> HashMap<String, usize> {
        let mut found = HashMap::new();
        for entry in fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            let bytes = fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            // The file is there from MAIL on; whole it is when its last line has come.
            let whole = text.contains("\n\n") || text.contains("\r\n\r\n");
            let id = text.lines().find_map(|l| {
                l.to_ascii_lowercase().strip_prefix("message-id: ").map(str::to_owned)
            });
            if let Some(id) = id.filter(|_| whole) {
                *found.entry(id).or_insert(0) += 1;
            }
        }
        found
    }
}

impl Drop for SmtpSink {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hands in messages of 1 KB with smtp-source over 20 connections, each to another recipient.
///
/// # Panics
/// It is not installed.
#[must_use]
pub fn smtp_source(port: u16, messages: usize) -> Output {
    let program = peer::find("smtp-source").expect("Debian's postfix is installed");
    Command::new(program)
        .args([
            "-d",
            "-N",
            "-s",
            "20",
            "-l",
            "1024",
            "-f",
            "a@source.example",
            "-t",
            "b@sink.example",
        ])
        .args(["-m".to_owned(), messages.to_string(), format!("127.0.0.1:{port}")])
        .stdin(Stdio::null())
        .output()
        .expect("smtp-source was found")
}
