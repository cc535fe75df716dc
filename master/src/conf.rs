//! conf - what changes from one table to the next

use std::collections::HashMap;
use std::rc::Rc;

use crate::avail::Rules;
use crate::limits::Limit;
use crate::service::{Key, ServiceDef};

/// A service with what main.cf says about it.
#[derive(Debug, Clone)]
pub struct Configured {
    /// Its line in master.cf.
    pub def: Rc<ServiceDef>,
    /// Its policy.
    pub rules: Rc<Rules>,
    /// What its processes may use.
    pub limits: Vec<Limit>,
}

/// The difference of two tables. Numbers are positions in the new table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Services that were not there.
    pub added: Vec<usize>,
    /// Services that stay; whether their definition differs.
    pub kept: Vec<(usize, bool)>,
    /// Services that are no more.
    pub removed: Vec<Key>,
}

/// Compares two tables by the keys of their services.
#[must_use]
pub fn changes(old: &HashMap<Key, &Configured>, new: &[Configured]) -> Changes {
    let mut changes = Changes::default();
    let mut left = old.clone();
    for (at, configured) in new.iter().enumerate() {
        match left.remove(&configured.def.key) {
            Some(old) => changes.kept.push((at, differs(old, configured))),
            None => changes.added.push(at),
        }
    }
    changes.removed = left.into_keys().collect();
    changes.removed.sort_unstable();
    changes
}

fn differs(old: &Configured, new: &Configured) -> bool {
    !same_line(&old.def, &new.def)
        || !(Rc::ptr_eq(&old.rules, &new.rules) || old.rules == new.rules)
        || old.limits != new.limits
}

/// Whether two definitions are the same. A line that only moved is.
#[must_use]
pub fn same_line(old: &Rc<ServiceDef>, new: &Rc<ServiceDef>) -> bool {
    Rc::ptr_eq(old, new) || is_same(old, new)
}

/// The same for one that is not shared.
#[must_use]
pub fn is_same(old: &ServiceDef, new: &ServiceDef) -> bool {
    let moved = ServiceDef { line: new.line, ..old.clone() };
    moved == *new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::avail::ThrottleRule;
    use crate::service::Endpoint;
    use std::time::Duration;
    use worker_proto::abi::Transport;

    fn configured(name: &str, line: usize) -> Configured {
        let second = Duration::from_secs(1);
        let rules = Rules {
            ext_name: name.into(),
            name: name.into(),
            path: "/x".into(),
            max_proc: Some(1),
            stressable: false,
            throttle: ThrottleRule { first: second, most: second },
            start_burst: 1,
            min_spare: 0,
            kill_time: second,
            compat: false,
        };
        Configured { def: def(name, line).into(), rules: rules.into(), limits: vec![] }
    }

    fn def(name: &str, line: usize) -> ServiceDef {
        let name: Rc<str> = format!("private/{name}").into();
        ServiceDef {
            key: Key { transport: Transport::Unix, name: name.clone() },
            ext_name: name.clone(),
            private: true,
            unprivileged: true,
            chroot: false,
            wakeup: None,
            max_proc: Some(1),
            command: "x".into(),
            args: vec![],
            endpoints: vec![Endpoint::Path(name)],
            line,
        }
    }

    #[test]
    fn o02_o03_added_kept_changed_removed() {
        let old = ["a", "b", "c", "e"].map(|n| configured(n, 1));
        let old = old.iter().map(|c| (c.def.key.clone(), c)).collect();
        let mut b = configured("b", 1);
        Rc::make_mut(&mut b.def).max_proc = None;
        let mut e = configured("e", 1);
        Rc::make_mut(&mut e.rules).min_spare = 1;
        let got = changes(&old, &[configured("d", 1), configured("a", 9), b, e]);
        assert_eq!(got.added, [0]);
        assert_eq!(got.kept, [(1, false), (2, true), (3, true)]);
        assert_eq!(got.removed, [def("c", 1).key]);
    }
}
