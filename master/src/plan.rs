//! plan - the command line and environment of a service's workers

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use crate::service::ServiceDef;

/// What the options of the master add to every worker's command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// `-d`
    pub debug: bool,
    /// `-v`
    pub verbose: bool,
}

/// A worker's command line and environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Path of the program.
    pub path: Vec<u8>,
    /// Arguments; the first is the command as master.cf has it.
    pub args: Vec<Vec<u8>>,
    /// Which argument is `stress=yes` (F02).
    pub stress: Option<usize>,
}

/// Plans a service's command line (F01, the order is fixed) for workers with so many listen sockets.
#[must_use]
pub fn plan(def: &ServiceDef, sockets: usize, daemon_directory: &Path, flags: Flags) -> Plan {
    let path = daemon_directory.join(&*def.command);
    let base = def.command.rsplit('/').next().unwrap_or(&def.command);
    let mut args = vec![def.command.to_string()];
    let mut stress = None;
    let mut push = |words: &[&str]| args.extend(words.iter().map(|&w| w.to_owned()));
    match def.max_proc {
        Some(1) => push(&["-l"]),
        None => push(&["-z"]),
        Some(_) => {}
    }
    if base != &*def.ext_name {
        push(&["-n", &def.ext_name]);
    }
    push(&["-t", def.key.transport.name()]);
    let switches =
        [(flags.debug, "-d"), (flags.verbose, "-v"), (def.unprivileged, "-u"), (def.chroot, "-c")];
    for (_, letter) in switches.into_iter().filter(|(on, _)| *on) {
        push(&[letter]);
    }
    if def.stressable() {
        push(&["-o", "stress=yes"]);
        stress = Some(args.len() - 1);
    }
    let mut push = |words: &[&str]| args.extend(words.iter().map(|&w| w.to_owned()));
    if sockets > 1 {
        push(&["-s", &sockets.to_string()]);
    }
    args.extend(def.args.iter().cloned());
    Plan {
        path: OsString::from(path).into_vec(),
        args: args.into_iter().map(String::into_bytes).collect(),
        stress,
    }
}

/// The environment of the workers (A15): `import` is names and `name=value` pairs, apart by blanks
/// or commas, in braces where a value has blanks.
#[must_use]
pub fn environment(
    import: &str,
    lookup: &dyn Fn(&str) -> Option<OsString>,
) -> Vec<(String, OsString)> {
    let mut out: Vec<(String, OsString)> = Vec::new();
    for item in items(import) {
        let pair = match item.split_once('=') {
            Some((name, value)) => Some((name.trim().to_owned(), OsString::from(value.trim()))),
            None => lookup(&item).map(|value| (item.clone(), value)),
        };
        if let Some(pair) = pair {
            out.retain(|(name, _)| *name != pair.0);
            out.push(pair);
        }
    }
    out
}

fn items(import: &str) -> Vec<String> {
    let (mut items, mut item, mut depth) = (Vec::new(), String::new(), 0_usize);
    for c in import.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            c if depth == 0 && (c == ',' || c.is_whitespace()) => {
                items.push(std::mem::take(&mut item));
            }
            c => item.push(c),
        }
    }
    items.push(item);
    items.retain(|i| !i.trim().is_empty());
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{Endpoint, Key};
    use worker_proto::abi::Transport;

    fn def() -> ServiceDef {
        ServiceDef {
            key: Key { transport: Transport::Inet, name: "2525".into() },
            ext_name: "2525".into(),
            private: false,
            unprivileged: true,
            chroot: true,
            wakeup: None,
            max_proc: Some(100),
            command: "smtpd".into(),
            args: vec!["-o".to_owned(), "x = y  z".to_owned()],
            endpoints: ["0.0.0.0:2525", "[::]:2525"]
                .map(|a| Endpoint::Inet(a.parse().unwrap()))
                .to_vec(),
            line: 1,
        }
    }

    fn words(def: &ServiceDef, flags: Flags) -> String {
        let plan = plan(def, def.endpoints.len(), Path::new("/d"), flags);
        let words: Vec<_> = plan.args.iter().map(|a| String::from_utf8_lossy(a)).collect();
        words.join("|")
    }

    #[test]
    fn f01_the_order_of_arguments() {
        let flags = Flags { debug: true, verbose: true };
        assert_eq!(
            words(&def(), flags),
            "smtpd|-n|2525|-t|inet|-d|-v|-u|-c|-o|stress=yes|-s|2|-o|x = y  z"
        );
        assert_eq!(plan(&def(), 2, Path::new("/d"), flags).stress, Some(10));
        let single = ServiceDef {
            key: Key { transport: Transport::Unix, name: "private/qmgr".into() },
            ext_name: "qmgr".into(),
            command: "sub/qmgr".into(),
            max_proc: Some(1),
            chroot: false,
            args: vec![],
            endpoints: vec![Endpoint::Path("private/qmgr".into())],
            ..def()
        };
        assert_eq!(words(&single, Flags::default()), "sub/qmgr|-l|-t|unix|-u");
        assert_eq!(plan(&single, 1, Path::new("/d"), Flags::default()).path, b"/d/sub/qmgr");
        let free = ServiceDef { max_proc: None, unprivileged: false, ..single };
        assert_eq!(words(&free, Flags::default()), "sub/qmgr|-z|-t|unix");
    }

    #[test]
    fn f02_public_services_with_a_limit_above_one_are_told_of_stress() {
        let pass = ServiceDef {
            key: Key { transport: Transport::Pass, name: "private/smtpd".into() },
            endpoints: vec![Endpoint::Path("private/smtpd".into())],
            ..def()
        };
        assert!(plan(&pass, 1, Path::new("/d"), Flags::default()).stress.is_some());
        let loopback =
            ServiceDef { endpoints: vec![Endpoint::Inet("127.0.0.1:1".parse().unwrap())], ..def() };
        for def in [
            ServiceDef { max_proc: Some(1), ..def() },
            ServiceDef { max_proc: None, ..def() },
            loopback,
        ] {
            assert_eq!(plan(&def, 1, Path::new("/d"), Flags::default()).stress, None);
        }
    }

    #[test]
    fn a15_the_environment_is_what_is_imported() {
        let lookup = |name: &str| (name == "TZ").then(|| OsString::from("UTC"));
        let got = environment("TZ, LANG=C {A = b c} HOME TZ", &lookup);
        let got: Vec<_> = got.iter().map(|(n, v)| format!("{n}={}", v.to_string_lossy())).collect();
        assert_eq!(got, ["LANG=C", "A=b c", "TZ=UTC"]);
    }
}
