//! What the master is to those who start it, and to the kernel: service manager, subreaper, control
//! groups, an ordinary user.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use belfry_tests::instance::account;
use belfry_tests::probe::Probe;
use belfry_tests::process::Process;
use belfry_tests::{Instance, wait};

/// What the master tells a service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("the path is free");
        socket.set_read_timeout(Some(wait::LONG)).expect("a timeout can be set");
        Self(socket)
    }

    /// The next message with this start, which must come.
    fn hears(&self, start: &str) -> String {
        let mut bytes = [0; 4096];
        loop {
            let size = self.0.recv(&mut bytes).unwrap_or_else(|e| panic!("{start}: {e}"));
            let text = String::from_utf8_lossy(&bytes[..size]).into_owned();
            if text.starts_with(start) {
                return text;
            }
        }
    }
}

#[test]
fn a_service_manager_hears_of_readiness_state_life_and_end() {
    let mut instance = Instance::bare();
    let path = instance.root().join("notify");
    let manager = Manager::at(&path);
    instance
        .environment("NOTIFY_SOCKET", &path.display().to_string())
        .environment("WATCHDOG_USEC", "400000")
        .service("fine unix n n n - 3 probe_worker")
        .service("broken unix n n n - 3 probe_worker crash");
    instance.start();
    let ready = format!("READY=1\nMAINPID={}", instance.master_pid());
    assert_eq!(manager.hears("READY=1"), ready);
    assert_eq!(manager.hears("STATUS="), "STATUS=2 services");
    manager.hears("WATCHDOG=1");
    manager.hears("WATCHDOG=1");
    drop(Probe::unix(&instance.queue().join("public/broken")).unwrap());
    assert_eq!(manager.hears("STATUS="), "STATUS=2 services; broken throttled");
    assert!(instance.belfry(&["reload"]).status.success());
    let reloading = manager.hears("RELOADING=1");
    let usec = reloading.split_once("MONOTONIC_USEC=").expect("systemd wants it").1;
    assert!(usec.parse::<u64>().is_ok_and(|usec| usec > 0), "{reloading}");
    assert_eq!(manager.hears("READY=1"), ready);
    instance.stop();
    manager.hears("STOPPING=1");
    instance.finish(&["exit status 1", "throttling"]);
}

#[test]
fn w14_with_a_subreaper_nothing_that_workers_have_started_outlives_the_master() {
    let mut instance = Instance::bare();
    instance.parameter("subreaper", "yes").service("a unix n n n - 3 probe_worker");
    instance.start();
    let mut client = Probe::unix(&instance.queue().join("public/a")).unwrap();
    let orphan: i32 = client.ask("orphan").unwrap().parse().unwrap();
    drop(client);
    let master = instance.master_pid();
    wait::until("the orphan to become the master's", wait::LONG, || {
        Process::read(orphan).filter(|p| p.parent == master)
    });
    instance.stop();
    assert!(Process::read(orphan).is_none(), "it has a session of its own and ended all the same");
    instance.finish(&[]);
}

/// A new control group in a hierarchy of version 2 that we may change.
fn group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = mounts.find(|words| words.get(2) == Some(&"cgroup2"))?[1].to_owned();
    let group = Path::new(&mount).join(format!("belfry-test-{}", std::process::id()));
    fs::create_dir(&group).ok()?;
    group.join("cgroup.kill").exists().then_some(group)
}

#[test]
fn w23_a_service_with_a_control_group_ends_with_all_it_has_started() {
    let Some(group) = group() else {
        assert!(!Path::new("/sys/fs/cgroup/cgroup.controllers").exists(), "it should be ours");
        return eprintln!("skipped: no control group of version 2 is to be had here");
    };
    let mut instance = Instance::bare();
    instance
        .parameter("cgroup_root", &group.display().to_string())
        .parameter("a_cgroup", "yes")
        .service("a unix n n n - 3 probe_worker")
        .service("b unix n n n - 3 probe_worker");
    instance.start();
    let orphan = |name: &str| {
        let mut client = Probe::unix(&instance.queue().join("public").join(name)).unwrap();
        client.ask("orphan").unwrap().parse::<i32>().unwrap()
    };
    let (grouped, free) = (orphan("a"), orphan("b"));
    let members = fs::read_to_string(group.join("service-a.unix/cgroup.procs")).unwrap();
    assert!(members.lines().any(|pid| pid == grouped.to_string()), "{grouped}: {members}");
    fs::write(instance.config().join("master.cf"), "c unix n n n - 3 probe_worker\n").unwrap();
    assert!(instance.belfry(&["reload"]).status.success());
    wait::until("the grouped orphan to be killed", wait::LONG, || {
        Process::read(grouped).is_none_or(|p| p.zombie()).then_some(())
    });
    let free = Process::read(free).expect("one without a group escapes, as under Postfix");
    free.signal(nix::sys::signal::Signal::SIGKILL);
    instance.finish(&[]);
    wait::until("the groups to be empty", wait::LONG, || {
        let below = fs::read_dir(&group).into_iter().flatten().filter_map(Result::ok);
        below.filter(|e| e.path().is_dir()).for_each(|e| drop(fs::remove_dir(e.path())));
        fs::remove_dir(&group).ok()
    });
}

#[test]
fn an_ordinary_user_may_run_a_master_for_trials() {
    let mut instance = Instance::bare();
    instance.own_programs(&["master", "belfry", "probe_worker"]);
    let user = account();
    let ids = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
    let mut directories = vec![instance.root().to_path_buf()];
    while let Some(directory) = directories.pop() {
        chown(&directory, ids.0, ids.1).unwrap();
        let below = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
        directories.extend(below.filter(|path| path.is_dir()));
    }
    let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
    let become_user = ["/usr/bin/setpriv", "--reuid", &uid, "--regid", &gid, "--clear-groups"];
    instance.started_by(&become_user).service("a unix n y y - 3 probe_worker");
    let as_user = |instance: &Instance, program: &str, words: &[&str]| {
        let path = instance.root().join("bin").join(program);
        let mut command = Command::new(become_user[0]);
        command.args(&become_user[1..]).arg(path).env("MAIL_CONFIG", instance.config());
        command.args(words).output().expect("setpriv is part of util-linux")
    };
    instance.write();
    let refused = as_user(&instance, "master", &[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("the master command is reserved for the superuser"), "{said}");

    instance.parameter("run_unprivileged", "yes");
    instance.start();
    let report = Probe::unix(&instance.queue().join("public/a")).unwrap().report().unwrap();
    assert_eq!(report["uid"], [uid.as_str(); 4].join(" "));
    let status = as_user(&instance, "belfry", &["status", "--json"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("\"served\":"), "{status:?}");
    instance.finish(&[]);
}

/// A directory that stands for a delegated control group: what the master writes where.
fn stand_in(instance: &Instance) -> PathBuf {
    let group = instance.root().join("group");
    fs::create_dir(&group).expect("/tmp has room");
    fs::write(group.join("cgroup.procs"), "").expect("/tmp has room");
    fs::write(group.join("cgroup.controllers"), "").expect("/tmp has room");
    group
}

/// Services of two types had one group by their name, and the end of one killed the other's workers.
#[test]
fn the_end_of_a_service_kills_no_worker_of_another_one() {
    let mut instance = Instance::bare();
    let group = stand_in(&instance);
    instance
        .parameter("cgroup_root", &group.display().to_string())
        .parameter("a_cgroup", "yes")
        .service("a unix n n n - 3 probe_worker")
        .service("a fifo y n n - 3 probe_worker");
    instance.start();
    let public = instance.queue().join("public/a");
    // What a worker of each has made.
    fs::create_dir(group.join("service-a.fifo")).unwrap();
    fs::write(instance.config().join("master.cf"), "a unix n n n - 3 probe_worker\n").unwrap();
    assert!(instance.belfry(&["reload"]).status.success());
    let _client = Probe::unix(&public).unwrap().report().unwrap();
    let killed = |name: &str| group.join(name).join("cgroup.kill").exists();
    assert!(killed("service-a.fifo"));
    assert!(group.join("service-a.unix").exists() && !killed("service-a.unix"));
    instance.stop();
    assert!(killed("service-a.unix"), "it ends with its own service");
    instance.finish(&[]);
}

/// A service that came back while the workers of its predecessor still had their time shared their
/// group, and was killed with it.
#[test]
fn a_service_that_comes_back_has_another_group_while_the_old_one_ends() {
    let mut instance = Instance::bare();
    let group = stand_in(&instance);
    instance
        .parameter("cgroup_root", &group.display().to_string())
        .parameter("stop_grace", "1h")
        .parameter("a_cgroup", "yes")
        .service("a unix n n n - 3 probe_worker");
    instance.start();
    let path = instance.queue().join("public/a");
    let mut old = Probe::unix(&path).unwrap();
    old.ask("hold").unwrap();
    let table = instance.config().join("master.cf");
    for text in ["b unix n n n - 3 probe_worker\n", "a unix n n n - 3 probe_worker\n"] {
        fs::write(&table, text).unwrap();
        assert!(instance.belfry(&["reload"]).status.success());
    }
    let mut new = Probe::unix(&path).unwrap();
    new.ask("hold").unwrap();
    drop(old);
    let killed = |name: &str| group.join(name).join("cgroup.kill").exists();
    wait::until("the old service to be gone", wait::LONG, || {
        killed("service-a.unix").then_some(())
    });
    assert!(group.join("service-a.unix.2").exists() && !killed("service-a.unix.2"));
    assert!(new.ask("hold").is_ok());
    instance.finish(&[]);
}
