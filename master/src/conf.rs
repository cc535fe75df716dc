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
    pub def: ServiceDef,
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

/// A line that only moved is the same.
fn differs(old: &Configured, new: &Configured) -> bool {
    let moved = ServiceDef { line: new.def.line, ..old.def.clone() };
    moved != new.def || old.rules != new.rules || old.limits != new.limits
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
            ext_name: name.to_owned(),
            name: name.to_owned(),
            path: "/x".to_owned(),
            max_proc: Some(1),
            stressable: false,
            throttle: ThrottleRule { first: second, most: second },
            start_burst: 1,
            min_spare: 0,
            kill_time: second,
            compat: false,
        };
        Configured { def: def(name, line), rules: rules.into(), limits: vec![] }
    }

    fn def(name: &str, line: usize) -> ServiceDef {
        let name = format!("private/{name}");
        ServiceDef {
            key: Key { transport: Transport::Unix, name: name.clone() },
            ext_name: name.clone(),
            private: true,
            unprivileged: true,
            chroot: false,
            wakeup: None,
            max_proc: Some(1),
            command: "x".to_owned(),
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
        b.def.max_proc = None;
        let mut e = configured("e", 1);
        Rc::make_mut(&mut e.rules).min_spare = 1;
        let got = changes(&old, &[configured("d", 1), configured("a", 9), b, e]);
        assert_eq!(got.added, [0]);
        assert_eq!(got.kept, [(1, false), (2, true), (3, true)]);
        assert_eq!(got.removed, [def("c", 1).key]);
    }
}
