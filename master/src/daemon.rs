//! daemon - from the command line to the loop
//!
//! The order is fixed (A17): what an error would leave half done comes last. Until the master serves,
//! every reason goes to standard error as well as to the log.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::time::Duration;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, chdir, getegid, geteuid, getgid, getpid, getuid, setgroups, setsid};
use worker_proto::abi::{CONFIG_ENV, VERBOSE_ENV};
use worker_proto::diagnostic::Fault;
use worker_proto::files::make_free;
use worker_proto::log::{self, Sink};
use worker_proto::main_cf::MainCf;
use worker_proto::server::CONFIG_DIRECTORY;
use worker_proto::sys;

use crate::cli::Options;
use crate::config::{self, Config};
use crate::event_loop::{Birth, End, Master, log_problems, prepare_groups};
use crate::files;
use crate::lock::{self, Lock};
use crate::monitor;
use crate::names::{self, Names};
use crate::notice::Notice;
use crate::params::MasterParams;
use crate::plan::{self, Flags};
use crate::remains::{self, Remains};
use crate::resume;
use crate::stage2;

/// Runs `master` with its whole command line.
#[must_use]
pub fn main(words: &[OsString]) -> ExitCode {
    match words.get(1).and_then(|w| w.to_str()) {
        Some(stage2::OPTION) => return second_stage(&words[2..]),
        Some(stage2::EXECUTE_OPTION) => return stage2::execute(&words[2..]),
        Some(names::RESOLVE_OPTION) => return resolve(&words[2..]),
        Some(resume::CHECK_OPTION) => return resume::check(),
        _ => {}
    }
    sys::keep_memory_small();
    let name = words.first().map(PathBuf::from).unwrap_or_default();
    let name =
        name.file_name().map_or_else(|| "master".into(), |n| n.to_string_lossy().into_owned());
    let _ = log::init(&format!("belfry/{name}"), false, &Sink::Stderr);
    // What comes after the options of an upgrade is the command line as it was.
    let (successor, words) = match words {
        [first, option, state, rest @ ..] if option == resume::OPTION => {
            (Some(state), [std::slice::from_ref(first), rest].concat())
        }
        words => (None, words.to_vec()),
    };
    let options = match Options::parse(words.iter().skip(1).cloned()) {
        Ok(options) => options,
        Err(problem) => return fatal(&Options::usage(&problem)),
    };
    let outcome = match successor {
        Some(state) => go_on(&options, &name, &words, state),
        None => run(&options, &name, &words),
    };
    match outcome {
        Ok(code) => code,
        Err(Refusal::Fault(fault)) => fatal(&fault.to_string()),
        Err(Refusal::Told) => ExitCode::FAILURE,
    }
}

/// Why the master does not start.
enum Refusal {
    Fault(Fault),
    /// Every reason is in the log already.
    Told,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

fn fatal(reason: &str) -> ExitCode {
    Notice::CannotStart { reason: reason.to_owned() }.log();
    ExitCode::FAILURE
}

fn run(options: &Options, name: &str, words: &[OsString]) -> Result<ExitCode, Refusal> {
    let directory = options
        .config
        .clone()
        .or_else(|| env::var_os(CONFIG_ENV).map(PathBuf::from))
        .unwrap_or_else(|| CONFIG_DIRECTORY.into());
    // The working directory changes below.
    let directory = std::path::absolute(&directory).unwrap_or(directory);
    may_run(&directory)?;
    let program = env::current_exe().map_err(|e| Fault::io("find this program", &e))?;
    let monitored = env::var_os(monitor::WAITED_FOR).is_some();
    if options.wait && !monitored {
        return Ok(monitor::start_and_wait(&program, &words[1..])?);
    }
    umask(Mode::from_bits_truncate(0o077));
    sys::ignore_signal(Signal::SIGPIPE).map_err(|e| Fault::io("ignore SIGPIPE", &e))?;
    sys::close_from(3).map_err(|e| Fault::io("close_range (Linux 5.9 or later is needed)", &e))?;
    if options.init && getpid().as_raw() != 1 {
        return Err(Fault::new("option -i", "the master is not process 1").into());
    }
    if geteuid().is_root() {
        // Those of who starts it would be those of every worker.
        setgroups(&[Gid::from_raw(0)]).map_err(|e| Fault::io("setgroups", &e.into()))?;
    }
    let files = raise_file_limit()?;
    if options.leads_session() && setsid().is_err() && nix::unistd::getsid(None) != Ok(getpid()) {
        return Err(Fault::new("setsid", "cannot become a session leader").into());
    }
    let read = config::read(&directory, None, &Names::asking());
    let config = read.map_err(|problems| {
        log_problems(&problems);
        Refusal::Told
    })?;
    sys::fit_high(files::grow(files::needed(&config)));
    let verbose = options.verbose || env::var_os(VERBOSE_ENV).is_some();
    if !options.test {
        start_log(&config, name, verbose);
    }
    chdir(&config.common.queue_directory).map_err(|errno| {
        let subject = format!("chdir {}", config.common.queue_directory.display());
        Fault::io(subject, &errno.into())
    })?;
    if options.test {
        let running = lock::is_held(&PathBuf::from(format!("pid/{name}.pid")))?;
        return Ok(if running { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let locks = take_locks(&config, name)?;
    if config.master.subreaper {
        set_child_subreaper(true).map_err(|e| Fault::io("subreaper", &e.into()))?;
    }
    for warning in &config.warnings {
        Notice::OddConfig { text: warning.to_string() }.log();
    }
    prepare_groups(&config);
    let birth = Birth {
        flags: Flags { debug: options.debug, verbose },
        files,
        environment: worker_environment(&config),
        program,
        words: words.to_vec(),
        locks,
    };
    let debugger_command = config.master.debugger_command.clone();
    let master = Master::new(birth, config, options.exit_after).map_err(|faults| {
        for fault in faults {
            Notice::CannotStart { reason: fault.to_string() }.log();
        }
        Refusal::Told
    })?;
    sys::place_flow_pipe().map_err(|e| Fault::io("make the flow pipe", &e))?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Notice::Started { version, directory: directory.display().to_string() }.log();
    if monitored {
        monitor::ready();
    }
    detach(options)?;
    master.tell_ready();
    let debugger = options.debugger || env::var_os("MAIL_DEBUG").is_some();
    if debugger && let Err(fault) = start_debugger(&debugger_command) {
        Notice::Trouble { text: fault.to_string() }.log();
    }
    Ok(serve(master, options))
}

/// From here on lines go to the log, and to standard error until the master serves.
fn start_log(config: &Config, name: &str, verbose: bool) {
    resume::start_log(config, name, verbose);
    // A container gathers both outputs in one log.
    log::tee_stderr(!matches!(Sink::choose(&config.common), Sink::Stdout { .. }));
}

/// Goes on in the place of another program (W22): there is nothing to set up and nobody to tell but
/// the log.
fn go_on(
    options: &Options,
    name: &str,
    words: &[OsString],
    state: &OsString,
) -> Result<ExitCode, Refusal> {
    sys::fit_high(files::grow(0));
    let (snapshot, config) = resume::take(state)?;
    let verbose = options.verbose || env::var_os(VERBOSE_ENV).is_some();
    resume::start_log(&config, name, verbose);
    let lock = |fd| Lock::adopt(fd).map_err(|e| Fault::io("keep the locks", &e));
    let locks = snapshot.locks.iter().copied().map(lock).collect::<Result<_, _>>()?;
    let birth = Birth {
        flags: Flags { debug: options.debug, verbose },
        files: snapshot.files,
        environment: worker_environment(&config),
        program: env::current_exe().map_err(|e| Fault::io("find this program", &e))?,
        words: words.to_vec(),
        locks,
    };
    let master = Master::resume(birth, config, snapshot)?;
    // Signals have waited since before this program began.
    SigSet::all().thread_unblock().map_err(|e| Fault::io("sigprocmask", &e.into()))?;
    Ok(serve(master, options))
}

/// Serves to the end. The locks last until the master is gone.
fn serve(mut master: Master, options: &Options) -> ExitCode {
    // What the table took while it was read.
    sys::return_memory();
    let end = master.run();
    let (subreaper, patience) = (master.params().subreaper, master.stop_kill_time());
    drop(master);
    finish(end, options, subreaper, patience)
}

/// Only root may start the master (A12), or whom `run_unprivileged` lets, for trials.
fn may_run(directory: &Path) -> Result<(), Fault> {
    if getuid() != geteuid() || getgid() != getegid() {
        return Err(Fault::new("set-user-id", "the master command must not be"));
    }
    let allowed = || {
        let (mut main_cf, _) = MainCf::load(directory)?;
        let params = MasterParams::read(&mut main_cf);
        Ok::<_, Fault>(params.is_ok_and(|params| params.run_unprivileged))
    };
    if getuid().is_root() || allowed().unwrap_or(false) {
        return Ok(());
    }
    Err(Fault::new("uid is not 0", "the master command is reserved for the superuser"))
}

/// Runs the command that is to look at this process (A04). Its end is seen with that of the workers.
fn start_debugger(command: &str) -> Result<(), Fault> {
    let fault = |cause: &str| Fault::new("debugger_command", cause);
    if command.is_empty() {
        return Err(fault("it is empty"));
    }
    let started = process::Command::new("/bin/sh").args(["-c", command]).spawn();
    started.map(drop).map_err(|e| fault(&sys::errno_text(&e)))
}

/// Takes the locks (B01, B02). The first is the queue directory's, whatever this program is called:
/// two masters would take each other's sockets.
fn take_locks(config: &Config, name: &str) -> Result<Vec<Lock>, Fault> {
    let pid = process::id();
    let mut locks = vec![lock::take(Path::new(lock::QUEUE_LOCK), pid)?];
    let own = PathBuf::from(format!("pid/{name}.pid"));
    if own != Path::new(lock::QUEUE_LOCK) {
        locks.push(lock::take(&own, pid)?);
    }
    let path = config.common.data_directory.join("master.lock");
    // The mail owner may have put anything there; the queue directory is locked by the first.
    let take = || {
        let is_usable = |found: fs::Metadata| found.is_file() && found.nlink() == 1;
        if !fs::symlink_metadata(&path).is_ok_and(is_usable) {
            let subject = || format!("open lock file {}", path.display());
            make_free(&path).map_err(|e| Fault::io(subject(), &e))?;
        }
        lock::take(&path, pid)
    };
    locks.push(config.owner.run(take)?);
    Ok(locks)
}

/// Raises the limit of open files to the highest allowed; what it was is for the workers.
fn raise_file_limit() -> Result<(u64, u64), Fault> {
    let fault = |errno: nix::Error| Fault::io("limit of open files", &errno.into());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(fault)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(fault)?;
    Ok((soft, hard))
}

/// The workers' environment: what is imported, and the configuration directory (A02, A15).
fn worker_environment(config: &Config) -> Vec<Vec<u8>> {
    let lookup = |name: &str| match name {
        CONFIG_ENV => Some(config.directory.clone().into_os_string()),
        name => env::var_os(name),
    };
    let pairs = plan::environment(&config.master.import_environment, &lookup);
    let line = |(name, value): (String, OsString)| {
        let mut line = OsString::from(name + "=");
        line.push(value);
        line.into_encoded_bytes()
    };
    pairs.into_iter().map(line).collect()
}

/// Standard input, output and error become /dev/null, as far as the options do not keep them. From
/// here on the log is the only place for words.
fn detach(options: &Options) -> Result<(), Fault> {
    log::tee_stderr(false);
    if options.debug {
        return Ok(());
    }
    let fault = |e: &std::io::Error| Fault::io("open /dev/null", e);
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(|e| fault(&e))?;
    let keep_output = options.stdout || options.init;
    for number in [0, 1, 2].into_iter().filter(|&n| !(n == 1 && keep_output)) {
        sys::replace_standard(null.as_fd(), number).map_err(|e| fault(&e))?;
    }
    Ok(())
}

/// Ends as asked for: by the same signal that ended the loop (P01). Before that, what workers have
/// left behind gets SIGTERM.
fn finish(end: End, options: &Options, subreaper: bool, patience: Duration) -> ExitCode {
    let End::Signal(number) = end else {
        return ExitCode::SUCCESS;
    };
    let remains = match (options.init, subreaper) {
        (true, _) => Remains::Everybody,
        (false, true) => Remains::Adopted,
        (false, false) => Remains::Group,
    };
    // Ignored here first: the group has this process in it.
    let _ = sys::ignore_signal(Signal::SIGTERM);
    remains::end(remains, options.leads_session(), patience);
    if options.init {
        return ExitCode::SUCCESS;
    }
    if let Ok(signal) = Signal::try_from(number) {
        let _ = sys::die_by(signal);
    }
    ExitCode::FAILURE
}

fn second_stage(words: &[OsString]) -> ExitCode {
    let fault = stage2::run(words);
    // Without privileges to lose yet, the log is found as the master finds it.
    let directory = env::var_os(CONFIG_ENV).unwrap_or_else(|| CONFIG_DIRECTORY.into());
    if let Ok((mut main_cf, _)) = MainCf::load(&PathBuf::from(directory))
        && let Ok(common) = worker_proto::params::CommonParams::read(&mut main_cf)
    {
        let tag = format!("{}/stage2", common.syslog_name);
        let _ = log::init(&tag, false, &Sink::choose(&common));
    }
    log::fatal(&fault.to_string());
    ExitCode::FAILURE
}

fn resolve(hosts: &[OsString]) -> ExitCode {
    use std::io::Write;
    let mut out = std::io::stdout();
    for host in hosts {
        let host = host.to_string_lossy();
        let addresses = names::ask(&host);
        let words: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        if writeln!(out, "{host} {}", words.join(" ")).is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
