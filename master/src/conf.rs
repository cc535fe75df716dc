//! conf - what changes from one table to the next

use std::collections::HashMap;

use crate::service::{Key, ServiceDef};

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
pub fn changes(old: &HashMap<Key, ServiceDef>, new: &[ServiceDef]) -> Changes {
    let mut changes = Changes::default();
    let mut left: HashMap<&Key, &ServiceDef> = old.iter().collect();
    for (at, def) in new.iter().enumerate() {
        match left.remove(&def.key) {
            // A line that only moved is the same.
            Some(old) => {
                let moved = ServiceDef {
                    line: def.line,
                    ..old.clone()
                };
                changes.kept.push((at, moved != *def));
            }
            None => changes.added.push(at),
        }
    }
    changes.removed = left.into_keys().cloned().collect();
    changes.removed.sort_unstable();
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Endpoint;
    use worker_proto::abi::Transport;

    fn def(name: &str, line: usize) -> ServiceDef {
        let name = format!("private/{name}");
        ServiceDef {
            key: Key {
                transport: Transport::Unix,
                name: name.clone(),
            },
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
        let old = ["a", "b", "c"].map(|n| def(n, 1));
        let old = old.into_iter().map(|d| (d.key.clone(), d)).collect();
        let changed = ServiceDef {
            max_proc: None,
            ..def("b", 1)
        };
        let got = changes(&old, &[def("d", 1), def("a", 9), changed]);
        assert_eq!(got.added, [0]);
        assert_eq!(got.kept, [(1, false), (2, true)]);
        assert_eq!(got.removed, [def("c", 1).key]);
    }
}
