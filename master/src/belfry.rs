//! belfry - the operator's command: start, stop, reload, look
//!
//! Texts and exit statuses are postfix(1)'s where it has the command.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid, getuid};
use worker_proto::abi::CONFIG_ENV;
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;
use worker_proto::getopt;
use worker_proto::main_cf::MainCf;
use worker_proto::params::CommonParams;
use worker_proto::server::CONFIG_DIRECTORY;

use crate::cgroup;
use crate::cli::Options;
use crate::config::{self, Config, Problems};
use crate::control;
use crate::layout;
use crate::limits;
use crate::lock;
use crate::names::Names;
use crate::resume;

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
        "Stop it in an orderly way: workers get SIGTERM, and SIGKILL when that does not help. This works \
      without a readable main.cf too, for the master that was started with this configuration directory; \
      with `--pid PID` for the master with that process id.",
    ),
    ("abort", "Stop it at once with SIGKILL. What was queued is safe."),
    (
        "reload",
        "Read main.cf and master.cf again. With errors nothing changes, they are printed, and the exit \
      status is 1. With `--changed` only the workers of services that have changed are renewed. A \
      master.cf without services is refused, unless `--allow-empty` is given.",
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

/// What may follow `reload`.
const RELOAD_OPTIONS: [&str; 2] = ["--changed", "--allow-empty"];

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
        ("stop", words) => stop(request, &to_be_ended(request, words)?),
        ("abort", words) => abort(request, &to_be_ended(request, words)?),
        ("reload", words) if words.iter().all(|w| RELOAD_OPTIONS.contains(w)) => {
            reload(request, words)
        }
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
    let path = config.common.queue_directory.join(lock::QUEUE_LOCK);
    if lock::lasting_holder(&path).map_err(|fault| fatal(&fault.to_string()))?.is_some() {
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

/// How long the master has to end its workers before everything is killed, when main.cf does not say
/// how long they may take; and how much longer than that.
const STOP_TIME: Duration = Duration::from_secs(10);

/// A master that is to be ended, which holds the lock of its queue directory.
struct Running {
    queue: PathBuf,
    pid: Pid,
}

/// The master that `stop` and `abort` are to end. It must be found whatever has become of main.cf.
fn to_be_ended(request: &Request, words: &[&str]) -> Result<Running, Told> {
    superuser()?;
    let not_running = || fatal("the Belfry mail system is not running");
    match words {
        [] => {}
        ["--pid", word] => {
            let pid = word.parse().ok().filter(|&pid| pid > 0).map(Pid::from_raw);
            let found = pid.and_then(running_as);
            let reason = || format!("process {word} is not a running Belfry master");
            return found.ok_or_else(|| fatal(&reason()));
        }
        _ => return Err(fatal("usage: belfry stop | abort [--pid PID]")),
    }
    let queue = match read_queue_directory(request) {
        Ok(queue) => queue,
        Err(fault) => {
            say_error(&format!("warning: {fault}"));
            match started_with(&request.directory) {
                Some(found) => return Ok(found),
                None => PathBuf::from(default_queue_directory()),
            }
        }
    };
    let pid = holder(&queue)?.ok_or_else(not_running)?;
    Ok(Running { queue, pid })
}

/// The process as a master: its working directory is its queue directory, whose lock it holds.
fn running_as(pid: Pid) -> Option<Running> {
    let queue = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    let holds = lock::is_held_by(&queue.join(lock::QUEUE_LOCK), pid);
    holds.unwrap_or(false).then_some(Running { queue, pid })
}

/// The master that was started with a configuration directory.
fn started_with(directory: &Path) -> Option<Running> {
    let numbers = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid::from_raw));
    numbers.filter(|&pid| configuration_of(pid).as_deref() == Some(directory)).find_map(running_as)
}

/// The configuration directory that a process was started with, if it is a master.
fn configuration_of(pid: Pid) -> Option<PathBuf> {
    let words = |file| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).ok()?;
        let words = bytes.split(|&b| b == 0).map(|w| OsStr::from_bytes(w).to_owned());
        Some(words.collect::<Vec<_>>())
    };
    let line = words("cmdline")?;
    // An upgraded master has these words before those it was started with.
    let own = if line.get(1).is_some_and(|word| word == resume::OPTION) { 3 } else { 1 };
    let options =
        Options::parse(line.into_iter().skip(own).filter(|word| !word.is_empty())).ok()?;
    options.config.or_else(|| {
        let start = format!("{CONFIG_ENV}=");
        let environment = words("environ")?;
        let value = environment.iter().find_map(|w| w.as_bytes().strip_prefix(start.as_bytes()));
        Some(value.map_or_else(|| CONFIG_DIRECTORY.into(), |v| PathBuf::from(OsStr::from_bytes(v))))
    })
}

fn stop(request: &Request, running: &Running) -> Outcome {
    say("stopping the Belfry mail system");
    let _ = kill(running.pid, Signal::SIGTERM);
    let kill_time = config::read(&request.directory, None, &Names::silent())
        .map_or(Duration::ZERO, |config| config.common.stop_kill_time);
    if wait_for_end(&running.queue, kill_time + STOP_TIME)? {
        return Ok(());
    }
    say("stopping the Belfry mail system with force");
    end_group(request, running)
}

fn abort(request: &Request, running: &Running) -> Outcome {
    say("aborting the Belfry mail system");
    end_group(request, running)
}

/// Kills the master and, when it leads a process group, all of it (P05); and what is in the control
/// groups of services (W23).
fn end_group(request: &Request, running: &Running) -> Outcome {
    let pid = running.pid;
    // The group of process 1 would be every process.
    if pid.as_raw() > 1 && getpgid(Some(pid)) == Ok(pid) {
        let _ = killpg(pid, Signal::SIGKILL);
    }
    let _ = kill(pid, Signal::SIGKILL);
    if let Ok(config) = config::read(&request.directory, None, &Names::asking()) {
        let root = Path::new(&config.master.cgroup_root);
        if !root.as_os_str().is_empty() {
            cgroup::end_all(root, limits::CGROUP_PREFIX);
        }
    }
    if wait_for_end(&running.queue, STOP_TIME)? { Ok(()) } else { fail("the master does not end") }
}

/// Whether the lock is free within a time.
fn wait_for_end(queue: &Path, patience: Duration) -> Result<bool, Told> {
    let end = Time::now() + patience;
    let held = || {
        let path = queue.join(lock::QUEUE_LOCK);
        lock::is_held(&path).map_err(|fault| fatal(&fault.to_string()))
    };
    while held()? {
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

fn queue_directory(request: &Request) -> Result<PathBuf, Told> {
    read_queue_directory(request).map_err(|fault| fatal(&fault.to_string()))
}

/// The queue directory, from a main.cf whose other parameters may be wrong.
fn read_queue_directory(request: &Request) -> Result<PathBuf, Fault> {
    let (mut main_cf, _) = MainCf::load(&request.directory)?;
    main_cf.define(CommonParams::TABLE);
    Ok(PathBuf::from(main_cf.get("queue_directory").unwrap_or_default()))
}

fn default_queue_directory() -> &'static str {
    let row = CommonParams::TABLE.iter().find(|row| row.name == "queue_directory");
    row.map_or("", |row| row.default)
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
    lock::holder(&queue.join(lock::QUEUE_LOCK)).map_err(|fault| fatal(&fault.to_string()))
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
