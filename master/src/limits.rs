//! limits - what a service's processes may use, named in main.cf
//!
//! `NAME_rlimit_nofile = 256:1024` and the like, where NAME is the first column of master.cf with
//! `_` for every character that is neither a letter nor a digit. Pure: it reads values and writes
//! them as the one word that the second stage takes; the second stage applies them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use worker_proto::diagnostic::Diagnostic;
use worker_proto::main_cf::MainCf;

/// What can be set, by the end of the parameter's name, with the manual's text.
pub const SETTINGS: &[(Setting, &str, &str)] = &[
    (Setting::Rlimit(Resource::AddressSpace), "rlimit_as", "Virtual memory, in bytes."),
    (Setting::Rlimit(Resource::Core), "rlimit_core", "Size of a core file, in bytes."),
    (Setting::Rlimit(Resource::Cpu), "rlimit_cpu", "Processor time, in seconds."),
    (Setting::Rlimit(Resource::Data), "rlimit_data", "Data segment, in bytes."),
    (Setting::Rlimit(Resource::FileSize), "rlimit_fsize", "Size of a file it writes, in bytes."),
    (Setting::Rlimit(Resource::Memlock), "rlimit_memlock", "Locked memory, in bytes."),
    (Setting::Rlimit(Resource::OpenFiles), "rlimit_nofile", "Open files."),
    (Setting::Rlimit(Resource::Processes), "rlimit_nproc", "Processes of its user."),
    (Setting::Rlimit(Resource::Stack), "rlimit_stack", "Stack, in bytes."),
    (Setting::Nice, "nice", "Scheduling priority, from -20 to 19 (setpriority(2))."),
    (
        Setting::OomScore,
        "oom_score_adj",
        "How soon the kernel ends it for memory, from -1000 to 1000.",
    ),
    (
        Setting::NoNewPrivs,
        "no_new_privs",
        "With \"yes\" set-user-id programs give it nothing (prctl(2)).",
    ),
    (
        Setting::Cgroup,
        "cgroup",
        "With \"yes\" it has a control group below cgroup_root, and all of its processes end with it.",
    ),
    (
        Setting::CgroupMemory,
        "cgroup_memory_max",
        "Memory of all its processes, in bytes, below cgroup_root.",
    ),
    (Setting::CgroupPids, "cgroup_pids_max", "Number of all its processes, below cgroup_root."),
];

/// A thing that can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Setting {
    /// A resource limit of setrlimit(2).
    Rlimit(Resource),
    /// Scheduling priority.
    Nice,
    /// Adjustment of the out-of-memory score.
    OomScore,
    /// The no_new_privs attribute.
    NoNewPrivs,
    /// A control group of its own.
    Cgroup,
    /// memory.max of the service's control group.
    CgroupMemory,
    /// pids.max of the service's control group.
    CgroupPids,
}

/// A resource of setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the table above says what each is")]
pub enum Resource {
    AddressSpace,
    Core,
    Cpu,
    Data,
    FileSize,
    Memlock,
    OpenFiles,
    Processes,
    Stack,
}

/// A setting with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// What is set.
    pub setting: Setting,
    /// To what.
    pub value: Value,
}

/// The value of a [`Limit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// Soft and hard bound; None is no bound.
    Bounds(Option<u64>, Option<u64>),
    /// A signed number.
    Number(i32),
    /// It is switched on.
    On,
}

/// The start of the names of a service's own parameters.
#[must_use]
pub fn parameter_prefix(service: &str) -> String {
    service.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// Whether a service with these limits has a control group.
#[must_use]
pub fn ask_for_cgroup(limits: &[Limit]) -> bool {
    limits.iter().any(|limit| match limit.setting {
        Setting::Cgroup | Setting::CgroupMemory | Setting::CgroupPids => true,
        Setting::Rlimit(_) | Setting::Nice | Setting::OomScore | Setting::NoNewPrivs => false,
    })
}

/// What the name of a service's control group starts with: it keeps a service of the name "master" out
/// of the master's group.
pub const CGROUP_PREFIX: &str = "service-";

/// The control group of a service, below `root`: by its name and type, as services of several types may
/// have one name. `taken` are the groups of others, of which one may be on its way out; a group that
/// two shared would be killed for both.
#[must_use]
pub fn cgroup(root: &Path, service: &str, kind: &str, taken: &dyn Fn(&Path) -> bool) -> PathBuf {
    let name = format!("{CGROUP_PREFIX}{}.{kind}", parameter_prefix(service));
    let names = std::iter::once(name.clone()).chain((2..).map(|n: u32| format!("{name}.{n}")));
    let mut groups = names.map(|name| root.join(name));
    groups.find(|group| !taken(group)).unwrap_or_else(|| root.join(name))
}

/// Reads the limits of a service.
///
/// # Errors
/// Every value that is none, at its place.
pub fn read(main_cf: &MainCf, service: &str) -> Result<Vec<Limit>, Vec<Diagnostic>> {
    let prefix = parameter_prefix(service);
    let (mut limits, mut errors) = (Vec::new(), Vec::new());
    for (setting, suffix, _) in SETTINGS {
        let name = format!("{prefix}_{suffix}");
        let value = match main_cf.value(&name) {
            Ok(Some(value)) if !value.text.is_empty() => value,
            Ok(_) => continue,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        match setting.parse(&value.text) {
            Ok(Some(parsed)) => limits.push(Limit { setting: *setting, value: parsed }),
            Ok(None) => {}
            Err(help) => errors.push(
                value.error(format!("parameter {name}: bad value: \"{}\"", value.text)).help(help),
            ),
        }
    }
    if errors.is_empty() { Ok(limits) } else { Err(errors) }
}

/// The limits as one word, for the second stage's command line.
#[must_use]
pub fn to_word(limits: &[Limit]) -> String {
    limits.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Reads the word back.
///
/// # Errors
/// The part that is no limit.
pub fn from_word(word: &str) -> Result<Vec<Limit>, String> {
    word.split(',').filter(|part| !part.is_empty()).map(str::parse).collect()
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = |b: Option<u64>| b.map_or_else(|| "unlimited".to_owned(), |n| n.to_string());
        let suffix = SETTINGS.iter().find(|row| row.0 == self.setting).map_or("", |row| row.1);
        match self.value {
            Value::Bounds(soft, hard) => write!(f, "{suffix}={}:{}", bound(soft), bound(hard)),
            Value::Number(n) => write!(f, "{suffix}={n}"),
            Value::On => write!(f, "{suffix}=yes"),
        }
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(part: &str) -> Result<Self, String> {
        let bad = || format!("no limit: \"{part}\"");
        let (suffix, text) = part.split_once('=').ok_or_else(bad)?;
        let row = SETTINGS.iter().find(|row| row.1 == suffix).ok_or_else(bad)?;
        let value = row.0.parse(text)?.ok_or_else(bad)?;
        Ok(Self { setting: row.0, value })
    }
}

impl Setting {
    /// None is a value that leaves things as they are.
    fn parse(self, text: &str) -> Result<Option<Value>, String> {
        match self {
            Self::Rlimit(_) | Self::CgroupMemory | Self::CgroupPids => {
                bounds(text).map(Some).ok_or_else(|| {
                    "a number, \"unlimited\", or SOFT:HARD with SOFT not above HARD; \
                     k, m and g stand for powers of 1024"
                        .to_owned()
                })
            }
            Self::Nice => number(text, -20, 19),
            Self::OomScore => number(text, -1000, 1000),
            Self::NoNewPrivs | Self::Cgroup => match text {
                "yes" => Ok(Some(Value::On)),
                "no" => Ok(None),
                _ => Err("\"yes\" or \"no\"".to_owned()),
            },
        }
    }
}

fn number(text: &str, low: i32, high: i32) -> Result<Option<Value>, String> {
    match text.parse() {
        Ok(n) if (low..=high).contains(&n) => Ok(Some(Value::Number(n))),
        _ => Err(format!("a whole number from {low} to {high}")),
    }
}

fn bounds(text: &str) -> Option<Value> {
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    let (soft, hard) = (bound(soft)?, bound(hard)?);
    // None is no bound, hence above every number.
    (soft.unwrap_or(u64::MAX) <= hard.unwrap_or(u64::MAX)).then_some(Value::Bounds(soft, hard))
}

fn bound(text: &str) -> Option<Option<u64>> {
    if text == "unlimited" {
        return Some(None);
    }
    let (digits, factor) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 1 << 10),
        b'm' => (&text[..text.len() - 1], 1 << 20),
        b'g' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named_after_the_service() {
        let text =
            "127_0_0_1_2525_rlimit_nofile = 256:1k\nqmgr_nice = 5\nqmgr_no_new_privs = yes\n";
        let (main_cf, _) = MainCf::parse("main.cf", text);
        let smtpd = read(&main_cf, "127.0.0.1:2525").unwrap();
        assert_eq!(to_word(&smtpd), "rlimit_nofile=256:1024");
        let qmgr = read(&main_cf, "qmgr").unwrap();
        assert_eq!(to_word(&qmgr), "nice=5,no_new_privs=yes");
        assert_eq!(read(&main_cf, "other"), Ok(vec![]));
    }

    #[test]
    fn the_word_is_read_back() {
        let word = "rlimit_as=unlimited:unlimited,rlimit_core=0:0,nice=-20,oom_score_adj=1000,\
                    no_new_privs=yes,cgroup_memory_max=1048576:1048576";
        assert_eq!(to_word(&from_word(word).unwrap()), word);
        assert_eq!(from_word(""), Ok(vec![]));
        assert!(from_word("rlimit_sheep=1:1").is_err());
    }

    #[test]
    fn every_bad_limit_is_reported() {
        let text = "a_rlimit_core = 5:4\na_nice = 20\na_no_new_privs = on\na_rlimit_as = -1\n";
        let (main_cf, _) = MainCf::parse("main.cf", text);
        let errors = read(&main_cf, "a").unwrap_err();
        let mut lines: Vec<_> = errors.iter().map(|e| e.line).collect();
        lines.sort_unstable();
        assert_eq!(lines, [1, 2, 3, 4]);
    }

    #[test]
    fn a_service_that_asks_has_a_control_group() {
        let asks = |word| ask_for_cgroup(&from_word(word).unwrap());
        assert!(asks("cgroup=yes") && asks("nice=1,cgroup_pids_max=9:9"));
        assert!(!asks("nice=1") && !asks(""));
    }

    /// Two types of one name had one group, and the end of one service was that of the other's workers.
    #[test]
    fn no_two_services_have_the_same_control_group() {
        let mut taken: Vec<PathBuf> = Vec::new();
        for (name, kind) in [
            ("127.0.0.1:25", "inet"),
            ("a", "unix"),
            ("a", "unix-dgram"),
            ("a", "unix"),
            ("a", "unix"),
        ] {
            let group = cgroup(Path::new("/g"), name, kind, &|g| taken.iter().any(|t| t == g));
            assert!(!taken.contains(&group));
            taken.push(group);
        }
        let want = ["127_0_0_1_25.inet", "a.unix", "a.unix-dgram", "a.unix.2", "a.unix.3"];
        assert_eq!(taken, want.map(|name| PathBuf::from(format!("/g/service-{name}"))));
    }
}
