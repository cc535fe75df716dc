//! cgroup - control groups of services (cgroups(7), version 2)
//!
//! `cgroup_root` names a group that was delegated to the master. Processes live in its leaves alone:
//! the master moves to a group of its own there, and a service that asks for it gets one, which no
//! other service has before the last process of this one has ended.
//! What such a service has started, and what left its process group, ends with the group (W23).

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use worker_proto::diagnostic::Fault;

/// Name of the master's own group.
const OWN: &str = "master";
/// The controllers that limits are made of.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];

/// Makes the delegated group ready: the master leaves it for a group below, and the controllers that
/// it has are handed on.
///
/// # Errors
/// It is no group, or is not this process's to change.
pub fn prepare(root: &Path) -> Result<(), Fault> {
    let read = |file: &str| {
        let path = root.join(file);
        fs::read_to_string(&path).map_err(|e| Fault::io(format!("open {}", path.display()), &e))
    };
    let own = std::process::id().to_string();
    if read("cgroup.procs")?.lines().any(|pid| pid == own) {
        let group = root.join(OWN);
        make(&group).map_err(|e| Fault::io(format!("mkdir {}", group.display()), &e))?;
        join(&group)?;
    }
    let available = read("cgroup.controllers")?;
    for controller in CONTROLLERS {
        if available.split_whitespace().any(|word| word == controller) {
            write(&root.join("cgroup.subtree_control"), &format!("+{controller}"))?;
        }
    }
    Ok(())
}

/// Sets a limit of a group.
///
/// # Errors
/// The group has no such controller, or is not ours.
pub fn limit(group: &Path, file: &str, most: Option<u64>) -> Result<(), Fault> {
    write(&group.join(file), &most.map_or_else(|| "max".to_owned(), |n| n.to_string()))
}

/// Makes a group, if it is not there.
///
/// # Errors
/// The delegated group is not ours.
pub fn make(group: &Path) -> io::Result<()> {
    match fs::create_dir(group) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Moves the calling process into a group.
///
/// # Errors
/// The group is not ours.
pub fn join(group: &Path) -> Result<(), Fault> {
    write(&group.join("cgroup.procs"), "0")
}

/// Kills whatever is left in a group and removes it. A group that is not there is well.
pub fn end(group: &Path) {
    if fs::write(group.join("cgroup.kill"), "1").is_ok() {
        // Its last process may take a moment to go; an empty group that stays is used again.
        let _ = fs::remove_dir(group);
    }
}

/// Ends every group below the delegated one whose name starts like this.
pub fn end_all(root: &Path, prefix: &str) {
    let groups = fs::read_dir(root).into_iter().flatten().flatten();
    let ours = groups.filter(|group| group.file_name().to_string_lossy().starts_with(prefix));
    ours.for_each(|group| end(&group.path()));
}

fn write(path: &Path, text: &str) -> Result<(), Fault> {
    fs::write(path, text).map_err(|e| Fault::io(format!("write {}", path.display()), &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's files are stood for by plain ones: what is written where.
    #[test]
    fn the_master_leaves_the_delegated_group_and_hands_its_controllers_on() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str| root.path().join(name);
        fs::write(file("cgroup.procs"), format!("1\n{}\n", std::process::id())).unwrap();
        fs::write(file("cgroup.controllers"), "cpu pids\n").unwrap();
        prepare(root.path()).unwrap();
        assert_eq!(fs::read_to_string(file("master/cgroup.procs")).unwrap(), "0");
        assert_eq!(fs::read_to_string(file("cgroup.subtree_control")).unwrap(), "+pids");
        assert!(prepare(&file("nowhere")).is_err());
    }
}
