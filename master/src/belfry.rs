//! belfry - the operator's command: start, stop, reload, look
//!
//! Texts and exit statuses are postfix(1)'s where it has the command.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid, getuid};
use worker_proto::abi::CONFIG_ENV;
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;
use worker_proto::getopt;
use worker_proto::server::CONFIG_DIRECTORY;

use crate::cgroup;
use crate::config::{self, Config, Problems};
use crate::control;
use crate::layout;
use crate::limits;
use crate::lock;
use crate::names::Names;

/// The commands with the manual's text.
pub const COMMANDS: &[(&str, &str)] = &[
    (
        "start",
        "Start the mail system, after the checks of `check`. Every reason for a failure is printed.",
    ),
    (
        "start-fg",
        "Start it in the foreground; the command ends with it. For containers and service managers.",
    ),
    (
        "stop",
        "Stop it in an orderly way: workers get SIGTERM, and SIGKILL when that does not help.",
    ),
    ("abort", "Stop it at once with SIGKILL. What was queued is safe."),
    (
        "reload",
        "Read main.cf and master.cf again. With errors nothing changes, they are printed, and the exit \
      status is 1. With `--changed` only the workers of services that have changed are renewed.",
    ),
    (
        "upgrade",
        "Let the installed master go on in the place of the running one: same process, sockets, workers and \
      clients; then as `reload`. It is asked first whether it can, and if not nothing changes.",
    ),
    (
        "status",
        "Say whether it runs, and show every service; with a name, its workers as well. `--json` \
      prints one object a line; without a name the first is of the master: its process id, and \
      how many descriptors it has open for what.",
    ),
    (
        "metrics",
        "Print the state of every service as OpenMetrics text. For a scraper the worker `metricsd` gives it over HTTP at /metrics; master.cf has a line for it.",
    ),
    ("reset", "Forget the failures of a service and let it start workers at once."),
    (
        "check",
        "Read main.cf and master.cf and print every error; make missing directories. With \
      `--master-cf FILE` that file stands for master.cf, and nothing is made.",
    ),
    ("diff", "Say what a reload would change."),
];

/// What the command line asks for.
struct Request {
    directory: PathBuf,
    verbose: bool,
    command: String,
    words: Vec<String>,
}

/// A failure that was told; the exit status is 1.
struct Told;

type Outcome = Result<(), Told>;

/// Runs the command with its words.
#[must_use]
pub fn main(words: Vec<OsString>) -> ExitCode {
    let request = match request(words) {
        Ok(request) => request,
        Err(problem) => {
            say_error(&format!("{problem}; {}", usage()));
            return ExitCode::FAILURE;
        }
    };
    match run(&request) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Told) => ExitCode::FAILURE,
    }
}

fn usage() -> String {
    let names: Vec<_> = COMMANDS.iter().map(|(name, _)| *name).collect();
    format!("usage: belfry [-c config_dir] [-v] {}", names.join(" | "))
}

fn request(words: Vec<OsString>) -> Result<Request, String> {
    let parsed = getopt::parse("c:v", words)?;
    let mut directory = env::var_os(CONFIG_ENV).map(PathBuf::from);
    let mut verbose = false;
    for (letter, value) in parsed.options {
        match letter {
            'c' => directory = value.map(PathBuf::from),
            _ => verbose = true,
        }
    }
    let mut operands: Vec<String> =
        parsed.operands.into_iter().map(|o| getopt::text(Some(o))).collect();
    // `belfry check -c dir` reads as well as `belfry -c dir check`.
    if let Some(at) = operands.iter().position(|w| w == "-c").filter(|at| at + 1 < operands.len()) {
        directory = Some(PathBuf::from(&operands[at + 1]));
        operands.drain(at..=at + 1);
    }
    let mut operands = operands.into_iter();
    let command = operands.next().ok_or("no command")?;
    let directory = directory.unwrap_or_else(|| CONFIG_DIRECTORY.into());
    let directory = std::path::absolute(&directory).unwrap_or(directory);
    Ok(Request { directory, verbose, command, words: operands.collect() })
}

fn run(request: &Request) -> Outcome {
    let words: Vec<&str> = request.words.iter().map(String::as_str).collect();
    match (request.command.as_str(), words.as_slice()) {
        ("check", ["--master-cf", file]) => {
            read(request, Some(Path::new(file)), &Names::asking()).map(drop)
        }
        ("check", []) => check(request).map(drop),
        ("start", []) => start(request, false),
        ("start-fg", []) => start(request, true),
        ("stop", []) => stop(request),
        ("abort", []) => abort(request),
        ("reload", [] | ["--changed"]) => reload(request, &words),
        ("upgrade", []) => upgrade(request),
        ("status", _) => status(request, &words),
        ("metrics", []) => relay(request, "metrics"),
        ("reset", [name]) => relay(request, &format!("reset {name}")),
        ("diff", []) => running(request).and_then(|queue| ask(&queue, "diff")),
        (command, _) => {
            let known = COMMANDS.iter().any(|(name, _)| *name == command);
            let problem = if known { "bad arguments of" } else { "unknown command:" };
            say_error(&format!("{problem} {command}; {}", usage()));
            Err(Told)
        }
    }
}

fn read(request: &Request, table: Option<&Path>, names: &Names) -> Result<Config, Told> {
    let config = config::read(&request.directory, table, names).map_err(|p| tell(&p))?;
    for warning in &config.warnings {
        say_error(&format!("{warning:#}"));
    }
    Ok(config)
}

fn tell(problems: &Problems) -> Told {
    for line in problems.to_string().lines() {
        let _ = writeln!(io::stderr(), "{line}");
    }
    say_error(&format!("fatal: {} in the configuration", problems.tally()));
    Told
}

fn check(request: &Request) -> Result<Config, Told> {
    let config = read(request, None, &Names::asking())?;
    superuser()?;
    let faults = layout::make(&config);
    for fault in &faults {
        say_error(&format!("error: {fault}"));
    }
    if faults.is_empty() { Ok(config) } else { Err(Told) }
}

fn start(request: &Request, foreground: bool) -> Outcome {
    superuser()?;
    let config = check(request)?;
    if holder(&config.common.queue_directory)?.is_some() {
        return fail("the Belfry mail system is already running");
    }
    let master = config.common.daemon_directory.join("master");
    let mut command = Command::new(&master);
    command.arg("-c").arg(&request.directory);
    if request.verbose {
        command.arg("-v");
    }
    if foreground {
        use std::os::unix::process::CommandExt;
        let first = std::process::id() == 1;
        command.arg(if first { "-i" } else { "-s" });
        let error = command.exec();
        return fail(&Fault::io(format!("exec {}", master.display()), &error).to_string());
    }
    say("starting the Belfry mail system");
    match command.arg("-w").status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => fail("mail system startup failed"),
        Err(e) => fail(&Fault::io(format!("start {}", master.display()), &e).to_string()),
    }
}

/// How long the master has to end its workers before everything is killed.
const STOP_TIME: Duration = Duration::from_secs(10);

fn stop(request: &Request) -> Outcome {
    superuser()?;
    let queue = queue_directory(request)?;
    let Some(pid) = holder(&queue)? else {
        return fail("the Belfry mail system is not running");
    };
    say("stopping the Belfry mail system");
    let _ = kill(pid, Signal::SIGTERM);
    if wait_for_end(&queue, STOP_TIME)? {
        return Ok(());
    }
    say("stopping the Belfry mail system with force");
    end_group(request, &queue, pid)
}

fn abort(request: &Request) -> Outcome {
    superuser()?;
    let queue = queue_directory(request)?;
    let Some(pid) = holder(&queue)? else {
        return fail("the Belfry mail system is not running");
    };
    say("aborting the Belfry mail system");
    end_group(request, &queue, pid)
}

/// Kills the master and, when it leads a process group, all of it (P05); and what is in the control
/// groups of services (W23).
fn end_group(request: &Request, queue: &Path, pid: Pid) -> Outcome {
    if getpgid(Some(pid)) == Ok(pid) {
        let _ = killpg(pid, Signal::SIGKILL);
    }
    let _ = kill(pid, Signal::SIGKILL);
    if let Ok(config) = config::read(&request.directory, None, &Names::asking()) {
        let root = &config.master.cgroup_root;
        let groups = config.services.iter();
        let groups = groups.filter_map(|s| limits::cgroup(root, &s.def.ext_name, &s.limits));
        groups.for_each(|group| cgroup::end(&group));
    }
    if wait_for_end(queue, STOP_TIME)? { Ok(()) } else { fail("the master does not end") }
}

/// Whether the lock is free within a time.
fn wait_for_end(queue: &Path, patience: Duration) -> Result<bool, Told> {
    let end = Time::now() + patience;
    while holder(queue)?.is_some() {
        if Time::now() >= end {
            return Ok(false);
        }
        // The end of a process that is not our child cannot be waited for otherwise.
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(true)
}

fn reload(request: &Request, words: &[&str]) -> Outcome {
    superuser()?;
    let config = running(request)?;
    say("refreshing the Belfry mail system");
    ask(&config, ["reload"].iter().chain(words).copied().collect::<Vec<_>>().join(" ").as_str())
}

fn upgrade(request: &Request) -> Outcome {
    superuser()?;
    let queue = running(request)?;
    let config = read(request, None, &Names::asking())?;
    say("upgrading the Belfry mail system");
    ask(&queue, &format!("upgrade {}", config.common.daemon_directory.join("master").display()))
}

fn status(request: &Request, words: &[&str]) -> Outcome {
    let queue = queue_directory(request)?;
    let Some(pid) = holder(&queue)? else {
        return fail_plain("the Belfry mail system is not running");
    };
    if !words.contains(&"--json") {
        say(&format!("the Belfry mail system is running: PID: {pid}"));
    }
    let question = ["status"].iter().chain(words).copied().collect::<Vec<_>>().join(" ");
    ask(&queue, &question)
}

fn relay(request: &Request, question: &str) -> Outcome {
    ask(&queue_directory(request)?, question)
}

fn running(request: &Request) -> Result<PathBuf, Told> {
    let queue = queue_directory(request)?;
    match holder(&queue)? {
        Some(_) => Ok(queue),
        None => Err(fatal("the Belfry mail system is not running")),
    }
}

/// The queue directory, from a main.cf whose other parameters may be wrong.
fn queue_directory(request: &Request) -> Result<PathBuf, Told> {
    use worker_proto::main_cf::MainCf;
    use worker_proto::params::CommonParams;
    let (mut main_cf, _) =
        MainCf::load(&request.directory).map_err(|fault| fatal(&fault.to_string()))?;
    main_cf.define(CommonParams::TABLE);
    Ok(PathBuf::from(main_cf.get("queue_directory").unwrap_or_default()))
}

fn ask(queue: &Path, question: &str) -> Outcome {
    match control::ask(queue, question) {
        Ok((0, text)) => {
            let _ = io::stdout().write_all(text.as_bytes());
            Ok(())
        }
        Ok((_, text)) => {
            let _ = io::stderr().write_all(text.as_bytes());
            Err(Told)
        }
        Err(e) => fail(&Fault::io(unreachable_master(queue), &e).to_string()),
    }
}

fn unreachable_master(queue: &Path) -> String {
    format!("connect {}", queue.join(control::PATH).display())
}

/// The master that runs, by the lock it holds.
fn holder(queue: &Path) -> Result<Option<Pid>, Told> {
    let path = queue.join("pid/master.pid");
    let holder = lock::holder(&path).map_err(|fault| fatal(&fault.to_string()))?;
    Ok(holder.map(Pid::from_raw))
}

fn superuser() -> Outcome {
    if getuid().is_root() {
        return Ok(());
    }
    fail("this command is reserved for the superuser")
}

fn fail(reason: &str) -> Outcome {
    Err(fatal(reason))
}

fn fail_plain(reason: &str) -> Outcome {
    say_error(reason);
    Err(Told)
}

fn fatal(reason: &str) -> Told {
    say_error(&format!("fatal: {reason}"));
    Told
}

fn say(text: &str) {
    let _ = writeln!(io::stdout(), "belfry: {text}");
}

fn say_error(text: &str) {
    let _ = writeln!(io::stderr(), "belfry: {text}");
}
