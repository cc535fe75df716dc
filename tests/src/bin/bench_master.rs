//! bench_master - our master and Debian's Postfix master side by side
//!
//! `cargo run --release -p belfry-tests --bin bench_master [SERVICES...]` runs both masters with the
//! same worker on tables of 10, 1,000 and 5,000 services, in turns, and prints ratios: ours divided by
//! Postfix's, so that less is better. Needs root, Debian's postfix, and a quiet machine.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tempfile::TempDir;
use worker_proto::clock::Time;

/// How many knocks are measured for each master and size, in rounds that take turns.
const ROUNDS: usize = 10;
const KNOCKS: usize = 40;
/// Clients that knock together, and how long their worker takes to come up.
const BURST: usize = 8;
const SLOW_START: Duration = Duration::from_millis(250);

/// Which master.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ours,
    Postfix,
}

/// A running master with its table.
struct Master {
    dir: TempDir,
    child: Child,
    kind: Kind,
}

/// What was measured of one master at one size.
#[derive(Default)]
struct Measured {
    start: f64,
    reload: f64,
    rss: f64,
    fds: f64,
    cold: Vec<f64>,
    warm: f64,
    burst: f64,
}

fn main() -> ExitCode {
    let given: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let sizes = if given.is_empty() { vec![10, 1000, 5000] } else { given };
    match run(&sizes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "bench_master: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(sizes: &[usize]) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "ratios, ours / Postfix's (less is better); in brackets ours and Postfix's")?;
    let mut ours_at_first = None;
    for &size in sizes {
        let (ours, theirs) = measure(size)?;
        let cold = |m: &Measured, at: f64| quantile(&m.cold, at);
        writeln!(out, "\n{size} services")?;
        let mut row = |name: &str, a: f64, b: f64, unit: &str| {
            writeln!(out, "  {name:34} {:6.2}   ({a:.3} {unit}, {b:.3} {unit})", a / b)
        };
        row("knock to answer, fresh worker, p50", cold(&ours, 0.5), cold(&theirs, 0.5), "ms")?;
        row("knock to answer, fresh worker, p99", cold(&ours, 0.99), cold(&theirs, 0.99), "ms")?;
        row("a warm worker's knocks, each", ours.warm, theirs.warm, "ms")?;
        row("start", ours.start, theirs.start, "ms")?;
        row("reload", ours.reload, theirs.reload, "ms")?;
        row("resident memory", ours.rss, theirs.rss, "MiB")?;
        row("open descriptors", ours.fds, theirs.fds, "")?;
        row("8 clients, worker up in 250 ms", ours.burst, theirs.burst, "ms")?;
        let first = *ours_at_first.get_or_insert(cold(&ours, 0.5));
        row("ours against ours at the first size", cold(&ours, 0.5), first, "ms")?;
    }
    Ok(())
}

fn measure(size: usize) -> io::Result<(Measured, Measured)> {
    let (mut ours, mut theirs) = (Measured::default(), Measured::default());
    let mut pair = [(Kind::Ours, &mut ours), (Kind::Postfix, &mut theirs)];
    let mut masters = Vec::new();
    for (kind, measured) in &mut pair {
        let before = Time::now();
        let master = Master::start(*kind, size)?;
        measured.start = milliseconds(Time::now().since(before));
        masters.push(master);
    }
    // Taking turns: what else the machine does falls on both.
    for _ in 0..ROUNDS {
        for (master, (_, measured)) in masters.iter().zip(&mut pair) {
            for _ in 0..KNOCKS {
                measured.cold.push(master.knock("cold")?);
            }
        }
    }
    for (master, (_, measured)) in masters.iter_mut().zip(&mut pair) {
        master.knock("warm")?;
        let before = Time::now();
        for _ in 0..1000 {
            master.knock("warm")?;
        }
        measured.warm = milliseconds(Time::now().since(before)) / 1000.0;
        measured.burst = master.burst()?;
        measured.rss = master.status_kib("VmRSS:")? / 1024.0;
        let fds = fs::read_dir(format!("/proc/{}/fd", master.child.id()))?;
        #[expect(clippy::cast_precision_loss, reason = "a few ten thousand")]
        let fds = fds.count() as f64;
        measured.fds = fds;
        measured.reload = master.reload()?;
    }
    Ok((ours, theirs))
}

impl Master {
    fn start(kind: Kind, size: usize) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("bfbench").tempdir_in("/tmp")?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let at = dir.path();
        let owner =
            User::from_name("postfix")?.ok_or_else(|| io::Error::other("no user postfix"))?;
        for sub in ["etc", "libexec", "q", "q/pid", "q/private", "q/public", "d"] {
            fs::create_dir(at.join(sub))?;
        }
        for sub in ["q/private", "q/public", "d"] {
            chown(at.join(sub), Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
        }
        let programs = programs()?;
        fs::copy(programs.join("bench_worker"), at.join("libexec/bench_worker"))?;
        let root = at.display();
        let main_cf = format!(
            "compatibility_level = 3.6\nqueue_directory = {root}/q\ndata_directory = {root}/d\n\
             daemon_directory = {root}/libexec\nmail_owner = postfix\nsetgid_group = postdrop\n\
             maillog_file = {root}/log\nmaillog_file_prefixes = /tmp\ninet_protocols = ipv4\n\
             myhostname = bench.example\n\
             burst_start_burst = {BURST}\n"
        );
        fs::write(at.join("etc/main.cf"), main_cf)?;
        let slow = SLOW_START.as_millis();
        let mut table = format!(
            "cold unix n n n - - bench_worker once\nwarm unix n n n - - bench_worker\n\
             burst unix n n n - - bench_worker hold slow={slow}\n"
        );
        if kind == Kind::Postfix {
            table += "postlog unix-dgram n - n - 1 postlogd\n";
            fs::copy("/usr/lib/postfix/sbin/postlogd", at.join("libexec/postlogd"))?;
        }
        for n in 4..=size {
            table += &format!("s{n} unix n n n - - bench_worker\n");
        }
        fs::write(at.join("etc/master.cf"), table)?;
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
        let master = Self { dir, child, kind };
        // The last service's socket answers when all are there.
        let last = if size >= 4 { format!("s{size}") } else { "burst".to_owned() };
        let end = Time::now() + Duration::from_secs(60);
        while master.connect(&last).is_err() {
            if Time::now() > end {
                return Err(io::Error::other("a master does not start"));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        master.knock("cold")?;
        Ok(master)
    }

    fn connect(&self, service: &str) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(self.path(&format!("q/public/{service}")))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(stream)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Milliseconds from connect to the worker's first byte.
    fn knock(&self, service: &str) -> io::Result<f64> {
        let before = Time::now();
        let mut stream = self.connect(service)?;
        stream.read_exact(&mut [0; 1])?;
        Ok(milliseconds(Time::now().since(before)))
    }

    /// Milliseconds until the last of several clients that knock together is answered.
    fn burst(&self) -> io::Result<f64> {
        let before = Time::now();
        let mut clients = Vec::new();
        for _ in 0..BURST {
            clients.push(self.connect("burst")?);
        }
        for client in &mut clients {
            client.read_exact(&mut [0; 1])?;
        }
        Ok(milliseconds(Time::now().since(before)))
    }

    /// Milliseconds until a reload that adds a service has brought it up.
    fn reload(&self) -> io::Result<f64> {
        let table = self.path("etc/master.cf");
        let text = fs::read_to_string(&table)? + "added unix n n n - - bench_worker\n";
        fs::write(&table, text)?;
        let before = Time::now();
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0)), Signal::SIGHUP)?;
        let end = before + Duration::from_secs(120);
        while self.connect("added").is_err() {
            if Time::now() > end {
                return Err(io::Error::other("a reload does not end"));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(milliseconds(Time::now().since(before)))
    }

    fn status_kib(&self, field: &str) -> io::Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find(|l| l.starts_with(field)).unwrap_or_default();
        Ok(line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0.0))
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(0));
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.child.wait();
        let left = belfry_tests::process::below(self.dir.path());
        left.iter().for_each(|p| p.signal(Signal::SIGKILL));
        debug_assert!(matches!(self.kind, Kind::Ours | Kind::Postfix));
    }
}

/// Where the programs of this build are.
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

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a position in a short list"
)]
fn quantile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * at).round() as usize]
}
