//! config - main.cf and master.cf as one whole, checked
//!
//! What the master runs is read here, at the start, at a reload and by `belfry check`: the same code
//! stopped at different points. Reading changes nothing, and tells every error there is.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use worker_proto::diagnostic::{Complaints, Diagnostic, Fault, Severity};
use worker_proto::files;
use worker_proto::main_cf::MainCf;
use worker_proto::params::CommonParams;

use crate::avail::{Rules, ThrottleRule};
use crate::conf::{self, Configured};
use crate::limits;
use crate::names::Names;
use crate::owner::Owner;
use crate::params::MasterParams;
use crate::service::{Key, ServiceDef};
use crate::table::{self, Context, Disabled};

/// A whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it was read.
    pub directory: PathBuf,
    /// The text of main.cf: what this process hands over to the one that goes on in its place.
    pub main_cf: String,
    /// Parameters of every program.
    pub common: CommonParams,
    /// Parameters of the master.
    pub master: MasterParams,
    /// The account of the workers.
    pub owner: Owner,
    /// The services with their rules and limits, in the order of the file. Empty in a running master,
    /// which has them with their workers.
    pub services: Vec<Configured>,
    /// What is odd and used all the same.
    pub warnings: Vec<Diagnostic>,
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems {
    /// Complaints about places in the files; warnings as well.
    pub diagnostics: Vec<Diagnostic>,
    /// What else is wrong.
    pub faults: Vec<Fault>,
}

impl Problems {
    /// How many forbid the use.
    #[must_use]
    pub fn count(&self) -> usize {
        let errors = self.diagnostics.iter().filter(|d| d.severity == Severity::Error);
        errors.map(|d| d.count).sum::<usize>() + self.faults.len()
    }

    /// The same in words: `1 error`, `2 errors`.
    #[must_use]
    pub fn tally(&self) -> String {
        match self.count() {
            1 => "1 error".to_owned(),
            n => format!("{n} errors"),
        }
    }
}

/// What is found while a configuration is read.
#[derive(Default)]
struct Found {
    complaints: Complaints,
    faults: Vec<Fault>,
}

impl Found {
    /// What was read, unless it was not.
    fn keep<T>(&mut self, result: Result<T, Vec<Diagnostic>>) -> Option<T> {
        result.map_err(|errors| self.complaints.extend(errors)).ok()
    }

    fn keep_fault<T>(&mut self, result: Result<T, Fault>) -> Option<T> {
        result.map_err(|fault| self.faults.push(fault)).ok()
    }

    fn problems(self) -> Problems {
        Problems { diagnostics: self.complaints.into_vec(), faults: self.faults }
    }
}

impl From<Fault> for Problems {
    fn from(fault: Fault) -> Self {
        Self { faults: vec![fault], ..Self::default() }
    }
}

impl fmt::Display for Problems {
    /// Every complaint with its picture.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            writeln!(f, "{diagnostic:#}")?;
        }
        for fault in &self.faults {
            writeln!(f, "{fault}")?;
        }
        Ok(())
    }
}

/// Reads the files in a configuration directory; `table` stands for its master.cf if given. Hosts
/// that `names` does not know and may not ask for are left in it as missing, and count as errors.
///
/// # Errors
/// Everything that is wrong with the files.
pub fn read(directory: &Path, table: Option<&Path>, names: &Names) -> Result<Config, Problems> {
    read_beside(directory, table, names, &|_| None)
}

/// The same beside a running configuration: `running` gives what it has for a key. What is the same
/// is shared with it, a line at a time, so that two tables are never in memory together.
///
/// # Errors
/// As [`read`].
pub fn read_beside(
    directory: &Path,
    table: Option<&Path>,
    names: &Names,
    running: &dyn Fn(&Key) -> Option<Configured>,
) -> Result<Config, Problems> {
    let main_cf_text = MainCf::text(directory)?;
    let (mut main_cf, diagnostics) = MainCf::of(directory, &main_cf_text);
    let mut found = Found::default();
    found.complaints.extend(diagnostics);
    // Wrong parameters do not keep master.cf from being read: it is checked against the defaults.
    let common = found.keep(CommonParams::read(&mut main_cf));
    let common = common.or_else(|| CommonParams::read(&mut MainCf::default()).ok());
    let master = found.keep(MasterParams::read(&mut main_cf));
    let master = master.or_else(|| MasterParams::read(&mut MainCf::default()).ok());
    let path = table.map_or_else(|| directory.join("master.cf"), Path::to_path_buf);
    let text = found.keep_fault(files::read(&path));
    let (Some(common), Some(master)) = (common, master) else {
        return Err(found.problems());
    };
    let owner = found.keep_fault(Owner::named(&common.mail_owner));
    names.configure(&master.known_tcp_ports, &master.inet_protocols);
    let interfaces = found.keep_fault(interfaces(&master, names));
    let (Some(text), Some(interfaces)) = (text, interfaces) else {
        return Err(found.problems());
    };
    let mut disabled = master.master_service_disable.clone();
    if names.protocols() == (false, false) {
        disabled.insert(0, "inet".to_owned());
    }
    let share = |def: ServiceDef| match running(&def.key) {
        Some(old) if conf::is_same(&old.def, &def) => old.def,
        _ => Rc::new(def),
    };
    let (defs, complaints) = table::parse_shared(
        &text,
        &Context {
            file: &path.display().to_string(),
            default_process_limit: u32::try_from(common.default_process_limit).unwrap_or(u32::MAX),
            chroot_default: main_cf.get("compatibility_level").is_some_and(|level| level == "0"),
            disabled: &Disabled::new(&disabled),
            interfaces: &interfaces,
            resolver: names,
            compat: master.postfix_compat(),
        },
        &share,
    );
    let mut paths = HashMap::new();
    found.complaints.extend(complaints);
    let services = defs.into_iter().filter_map(|def| {
        let path = paths.entry(def.command.clone()).or_insert_with(|| {
            let path = common.daemon_directory.join(&*def.command);
            path.display().to_string().into()
        });
        let rules = found.keep(rules(&main_cf, &master, &common, &def, path))?;
        let limits = found.keep(limits::read(&main_cf, &def.ext_name))?;
        let same = running(&def.key).filter(|old| *old.rules == rules);
        let rules = same.map_or_else(|| rules.into(), |old| old.rules);
        Some(Configured { def, rules, limits })
    });
    let services = services.collect();
    let problems = found.problems();
    match owner {
        Some(owner) if problems.count() == 0 => Ok(Config {
            directory: directory.to_path_buf(),
            main_cf: main_cf_text,
            common,
            master,
            owner,
            services,
            warnings: problems.diagnostics,
        }),
        _ => Err(problems),
    }
}

/// The configuration of a running master without its services, from the text of its main.cf.
///
/// # Errors
/// Everything that is wrong with it: it was right for the program that ran with it until now.
pub fn running(directory: &Path, main_cf_text: String) -> Result<Config, Problems> {
    let (mut main_cf, warnings) = MainCf::of(directory, &main_cf_text);
    let problems = |diagnostics| Problems { diagnostics, faults: Vec::new() };
    let common = CommonParams::read(&mut main_cf).map_err(problems)?;
    let master = MasterParams::read(&mut main_cf).map_err(problems)?;
    let owner = Owner::named(&common.mail_owner)?;
    let directory = directory.to_path_buf();
    let services = Vec::new();
    Ok(Config { directory, main_cf: main_cf_text, common, master, owner, services, warnings })
}

impl Config {
    /// Length of the queue of clients of a service (G05).
    #[must_use]
    pub fn backlog(&self, def: &ServiceDef) -> u32 {
        let default = u32::try_from(self.common.default_process_limit).unwrap_or(u32::MAX);
        default.max(def.max_proc.unwrap_or(0))
    }
}

fn rules(
    main_cf: &MainCf,
    master: &MasterParams,
    common: &CommonParams,
    def: &ServiceDef,
    path: &Rc<str>,
) -> Result<Rules, Vec<Diagnostic>> {
    let prefix = limits::parameter_prefix(&def.ext_name);
    let mut errors = Vec::new();
    let mut own = |suffix: &str, general: u64| {
        let name = format!("{prefix}_{suffix}");
        let number = match main_cf.value(&name) {
            Ok(None) => return general,
            Ok(Some(value)) => {
                value.text.parse::<u64>().ok().filter(|&n| n <= 1000).ok_or_else(|| {
                    value
                        .error(format!("parameter {name}: bad value: \"{}\"", value.text))
                        .help("a number from 0 to 1000")
                })
            }
            Err(error) => Err(error),
        };
        number.unwrap_or_else(|error| {
            errors.push(error);
            general
        })
    };
    let (burst, spare) =
        (own("start_burst", master.start_burst), own("min_spare", master.min_spare));
    let compat = master.postfix_compat();
    let most = master.service_throttle_time;
    let first = if compat { most } else { master.service_throttle_start.min(most) };
    let rules = Rules {
        ext_name: def.ext_name.clone(),
        name: def.key.name.clone(),
        path: Rc::clone(path),
        max_proc: def.max_proc,
        stressable: def.stressable(),
        throttle: ThrottleRule { first, most },
        start_burst: u32::try_from(burst).unwrap_or(1).max(1),
        min_spare: u32::try_from(spare).unwrap_or(0),
        kill_time: common.stop_kill_time,
        compat,
    };
    if errors.is_empty() { Ok(rules) } else { Err(errors) }
}

/// The addresses of services that name none (E10).
fn interfaces(master: &MasterParams, names: &Names) -> Result<Vec<IpAddr>, Fault> {
    let (v4, v6) = names.protocols();
    let fixed = |list: [&str; 2]| {
        let addresses = list.iter().filter_map(|a| a.parse::<IpAddr>().ok());
        addresses.filter(|a| if a.is_ipv4() { v4 } else { v6 }).collect()
    };
    let mut all = Vec::new();
    for word in &master.inet_interfaces {
        let found: Vec<IpAddr> = match word.as_str() {
            "all" => fixed(["0.0.0.0", "::"]),
            "loopback-only" => fixed(["127.0.0.1", "::1"]),
            host => names.addresses(host.trim_start_matches('[').trim_end_matches(']')),
        };
        if found.is_empty() && (v4 || v6) {
            let subject = format!("parameter inet_interfaces: \"{word}\"");
            return Err(Fault::new(subject, "no address of the protocols in inet_protocols"));
        }
        all.extend(found.into_iter().filter(|a| !all.contains(a)).collect::<Vec<_>>());
    }
    Ok(all)
}
