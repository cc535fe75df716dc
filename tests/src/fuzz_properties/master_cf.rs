//! master_cf - from the text of a table to command lines

use std::net::IpAddr;
use std::path::Path;

use master::plan::{self, Flags};
use master::service::ServiceDef;
use master::table::{Context, Disabled, Resolver, parse};
use worker_proto::diagnostic::Diagnostic;

use super::complaints_are_sound;

const FILE: &str = "master.cf";
const DAEMONS: &str = "/usr/libexec/belfry";

/// Reading a table is deterministic, its complaints point into it, what it starts lies where it
/// should, and a table that is written from what was read is read as the same.
///
/// # Panics
/// One of these does not hold.
pub fn master_cf(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for compat in [false, true] {
        let (defs, complaints) = read(&text, compat);
        assert_eq!((defs.clone(), complaints.clone()), read(&text, compat));
        complaints_are_sound(FILE, &text, &complaints);
        defs.iter().for_each(plan_is_sound);
        let written: String = defs.iter().map(write).collect();
        let (again, complaints) = read(&written, compat);
        assert_eq!(complaints, [], "{written:?}");
        let place = |def: &ServiceDef| ServiceDef { line: 0, ..def.clone() };
        let places = |defs: &[ServiceDef]| defs.iter().map(place).collect::<Vec<_>>();
        assert_eq!(places(&defs), places(&again), "{written:?}");
    }
}

/// Names that need no network.
struct Names;

impl Resolver for Names {
    fn host(&self, name: &str) -> Vec<IpAddr> {
        if let Ok(written) = name.parse() {
            return vec![written];
        }
        let known = name == "localhost";
        [[127, 0, 0, 1], [127, 0, 0, 2]].map(IpAddr::from).into_iter().filter(|_| known).collect()
    }

    fn port(&self, name: &str) -> Option<u16> {
        (name == "smtp").then_some(25)
    }
}

fn read(text: &str, compat: bool) -> (Vec<ServiceDef>, Vec<Diagnostic>) {
    let disabled = Disabled::new(&["!kept/fifo".to_owned(), "fifo".to_owned()]);
    let context = Context {
        file: FILE,
        default_process_limit: 100,
        chroot_default: false,
        disabled: &disabled,
        interfaces: &[IpAddr::from([0, 0, 0, 0]), IpAddr::from([0; 16])],
        resolver: &Names,
        compat,
    };
    parse(text, &context)
}

fn plan_is_sound(def: &ServiceDef) {
    assert!(!def.endpoints.is_empty());
    let flags = Flags { debug: true, verbose: true };
    let plan = plan::plan(def, def.endpoints.len(), Path::new(DAEMONS), flags);
    assert_eq!(plan, plan::plan(def, def.endpoints.len(), Path::new(DAEMONS), flags));
    let path = String::from_utf8(plan.path).expect("the table is UTF-8");
    let inside = path.strip_prefix(DAEMONS).and_then(|p| p.strip_prefix('/'));
    let inside = inside.unwrap_or_else(|| panic!("{path:?} is not below {DAEMONS}"));
    assert!(!inside.starts_with('/') && !inside.split('/').any(|part| part == ".."), "{path:?}");
    assert_eq!(plan.args[0], def.command.as_bytes());
    assert!(plan.args.iter().all(|arg| !arg.contains(&0)), "a null byte ends an argument early");
    assert!(!path.contains('\0'));
    let stress = plan.stress.map(|at| plan.args[at].as_slice());
    assert_eq!(stress, def.stressable().then_some(b"stress=yes".as_slice()));
    let own = &plan.args[plan.args.len() - def.args.len()..];
    assert!(own.iter().zip(&def.args).all(|(a, b)| a == b.as_bytes()));
}

/// A line that is read as this definition.
fn write(def: &ServiceDef) -> String {
    let flag = |on: bool| if on { "y" } else { "n" };
    let wakeup = def.wakeup.map_or_else(
        || "0".to_owned(),
        |w| format!("{}{}", w.period.as_secs(), if w.conditional { "?" } else { "" }),
    );
    let mut words = vec![
        def.ext_name.to_string(),
        def.key.transport.to_string(),
        flag(def.private).to_owned(),
        flag(def.unprivileged).to_owned(),
        flag(def.chroot).to_owned(),
        wakeup,
        def.max_proc.unwrap_or(0).to_string(),
        def.command.to_string(),
    ];
    words.extend(def.args.iter().map(|arg| argument(arg)));
    // With the carriage return, so that one at the end of an argument stays with it.
    words.join(" ") + "\r\n"
}

/// An argument as it is written: in braces if it would be read otherwise without them.
fn argument(arg: &str) -> String {
    let bare = !arg.is_empty() && !arg.starts_with('{') && !breaks_up(arg);
    if bare { arg.to_owned() } else { format!("{{{arg}}}") }
}

/// Whether a word has a blank outside braces.
fn breaks_up(word: &str) -> bool {
    let mut depth = 0_u32;
    word.chars().any(|c| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && (c.is_ascii_whitespace() || c == '\x0b')
    })
}
