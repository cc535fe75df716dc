//! stage2 - what is set up for a service's process before its program runs
//!
//! `master --stage2 LIMITS CGROUP PATH ARG...` sets the limits in ordinary code and becomes the
//! program: nothing of it is done between clone and exec, and services without limits pay nothing.

use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{RLIM_INFINITY, Resource as Rlimit, setrlimit};
use nix::unistd::execv;
use worker_proto::diagnostic::Fault;
use worker_proto::sys;

use crate::cgroup;
use crate::limits::{self, Limit, Resource, Setting, Value};

/// The option that asks for it.
pub const OPTION: &str = "--stage2";
/// The option that asks for [`execute`].
pub const EXECUTE_OPTION: &str = "--execute";
/// How many words come before the program's own arguments.
pub const WORDS: usize = 5;

/// The command line of the second stage for a program.
#[must_use]
pub fn command_line(limits: &str, cgroup: &str, path: &[u8], args: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let words =
        [b"master".as_slice(), OPTION.as_bytes(), limits.as_bytes(), cgroup.as_bytes(), path];
    words.into_iter().map(<[u8]>::to_vec).chain(args.iter().cloned()).collect()
}

/// Sets the limits and becomes the program; `words` are those behind [`OPTION`]. It only returns to
/// say what went wrong.
pub fn run(words: &[OsString]) -> Fault {
    let [limits, cgroup, path, args @ ..] = words else {
        return Fault::new("second stage", "too few arguments");
    };
    let limits = match limits::from_word(&limits.to_string_lossy()) {
        Ok(limits) => limits,
        Err(problem) => return Fault::new("second stage", problem),
    };
    let cgroup = Path::new(cgroup);
    if let Err(fault) = set_up(&limits, cgroup) {
        return fault;
    }
    let c_string = |word: &OsString| CString::new(word.as_bytes()).unwrap_or_default();
    let args: Vec<CString> = args.iter().map(c_string).collect();
    match execv(&c_string(path), &args) {
        Ok(never) => match never {},
        Err(errno) => Fault::io(format!("exec {}", path.to_string_lossy()), &errno.into()),
    }
}

/// Becomes a program; the words are those behind [`EXECUTE_OPTION`]. It only returns to say why not, as
/// the master does when it cannot start one.
#[must_use]
pub fn execute(words: &[OsString]) -> ExitCode {
    let [program, args @ ..] = words else {
        return ExitCode::FAILURE;
    };
    let error = Command::new(program).args(args).exec();
    let text = sys::errno_text(&error);
    // The reader may have lost its patience.
    let _ = writeln!(io::stderr(), "{}: {text}", program.to_string_lossy());
    ExitCode::FAILURE
}

fn set_up(limits: &[Limit], cgroup: &Path) -> Result<(), Fault> {
    let grouped = !cgroup.as_os_str().is_empty();
    if grouped {
        cgroup::make(cgroup).map_err(|e| Fault::io(format!("mkdir {}", cgroup.display()), &e))?;
    }
    limits.iter().try_for_each(|limit| apply(limit, cgroup))?;
    if grouped { cgroup::join(cgroup) } else { Ok(()) }
}

fn apply(limit: &Limit, cgroup: &Path) -> Result<(), Fault> {
    let result = match (limit.setting, limit.value) {
        (Setting::Rlimit(resource), Value::Bounds(soft, hard)) => {
            let bound = |b: Option<u64>| b.unwrap_or(RLIM_INFINITY);
            setrlimit(rlimit(resource), bound(soft), bound(hard)).map_err(io::Error::from)
        }
        (Setting::Nice, Value::Number(nice)) => sys::set_priority(nice),
        (Setting::OomScore, Value::Number(score)) => {
            fs::write("/proc/self/oom_score_adj", score.to_string())
        }
        (Setting::NoNewPrivs, Value::On) => set_no_new_privs().map_err(io::Error::from),
        // Without a delegated group (`cgroup_root` is empty) these are not set.
        (Setting::Cgroup, _) => Ok(()),
        (Setting::CgroupMemory | Setting::CgroupPids, _) if cgroup.as_os_str().is_empty() => Ok(()),
        (Setting::CgroupMemory, Value::Bounds(_, hard)) => {
            return cgroup::limit(cgroup, "memory.max", hard);
        }
        (Setting::CgroupPids, Value::Bounds(_, hard)) => {
            return cgroup::limit(cgroup, "pids.max", hard);
        }
        // The reader of limits gives each setting the value of its kind.
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    result.map_err(|e| Fault::io(format!("set {limit}"), &e))
}

const fn rlimit(resource: Resource) -> Rlimit {
    match resource {
        Resource::AddressSpace => Rlimit::RLIMIT_AS,
        Resource::Core => Rlimit::RLIMIT_CORE,
        Resource::Cpu => Rlimit::RLIMIT_CPU,
        Resource::Data => Rlimit::RLIMIT_DATA,
        Resource::FileSize => Rlimit::RLIMIT_FSIZE,
        Resource::Memlock => Rlimit::RLIMIT_MEMLOCK,
        Resource::OpenFiles => Rlimit::RLIMIT_NOFILE,
        Resource::Processes => Rlimit::RLIMIT_NPROC,
        Resource::Stack => Rlimit::RLIMIT_STACK,
    }
}
