//! Where services listen, and what their workers share.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;

use belfry_tests::instance::account;
use belfry_tests::probe::Probe;
use belfry_tests::{Instance, net, wait};

fn status(instance: &Instance, name: &str) -> serde_json::Value {
    let output = instance.belfry(&["status", name, "--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

#[test]
fn g01_g02_g03_files_belong_to_the_mail_owner_and_are_open_to_all() {
    let mut instance = Instance::bare();
    instance
        .service("u unix n n n - 3 probe_worker")
        .service("p pass - n n - 3 probe_worker")
        .service("d unix-dgram - n n - 3 probe_worker")
        .service("f fifo n n n - 3 probe_worker");
    // What a master that was killed has left behind is in nobody's way.
    fs::write(instance.queue().join("public/u"), "").expect("/tmp has room");
    instance.start();
    let owner = account();
    for (path, mode) in
        [("public/u", 0o666), ("private/p", 0o666), ("private/d", 0o666), ("public/f", 0o622)]
    {
        let file = fs::symlink_metadata(instance.queue().join(path)).expect("it was made");
        assert_eq!(file.mode() & 0o7777, mode, "{path}");
        assert_eq!((file.uid(), file.gid()), (owner.uid.as_raw(), owner.gid.as_raw()), "{path}");
        assert_eq!(file.file_type().is_fifo(), path == "public/f");
        assert_eq!(file.file_type().is_socket(), path != "public/f");
    }
    instance.finish(&[]);
}

#[test]
fn g05_w21_the_queue_is_as_long_as_the_greater_limit_and_follows_it() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    let line = |max: u32| format!("127.0.0.1:{port} inet n n n - {max} probe_worker");
    instance.parameter("default_process_limit", "33").service(&line(5)).start();
    let queue = |want: u32| {
        let row = status(&instance, &format!("127.0.0.1:{port}"));
        assert_eq!(row["backlog"], want, "what the kernel says: {row}");
    };
    queue(33);
    fs::write(instance.config().join("master.cf"), line(77) + "\n").expect("/tmp has room");
    assert!(instance.belfry(&["reload"]).status.success());
    queue(77);
    instance.finish(&[]);
}

#[test]
fn g08_w24_the_master_accepts_nobody_and_shows_who_waits() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    let name = format!("127.0.0.1:{port}");
    instance.service(&format!("{name} inet n n n - 1 probe_worker")).start();
    let mut first = Probe::tcp(port).unwrap();
    first.ask("hold").unwrap();
    let waiting: Vec<_> = (0..3).map(|_| Probe::tcp(port).unwrap()).collect();
    wait::until("three to wait in the kernel's queue", wait::LONG, || {
        (status(&instance, &name)["queue"] == 3).then_some(())
    });
    let metrics = String::from_utf8_lossy(&instance.belfry(&["metrics"]).stdout).into_owned();
    let line = metrics.lines().find(|l| l.starts_with("belfry_queue_clients{"));
    assert!(line.is_some_and(|l| l.ends_with(" 3")), "{metrics}");
    drop((first, waiting));
    wait::until("nobody to wait", wait::LONG, || {
        (status(&instance, &name)["queue"] == 0).then_some(())
    });
    instance.finish(&[]);
}

#[test]
fn g07_w21_the_socket_of_a_removed_service_goes_and_stays_with_compat() {
    for (compat, stays) in [("", false), ("postfix", true)] {
        let mut instance = Instance::bare();
        instance.parameter("compat", compat).service("gone unix n n n - 3 probe_worker").start();
        let path = instance.queue().join("public/gone");
        assert!(path.exists());
        fs::write(instance.config().join("master.cf"), "").expect("/tmp has room");
        assert!(instance.belfry(&["reload", "--allow-empty"]).status.success());
        assert_eq!(path.exists(), stays, "compat = {compat}");
        instance.finish(&[]);
    }
}

#[test]
fn a14_the_limit_of_file_size_is_left_as_it_was() {
    let mut instance = Instance::bare();
    let limit = 50_u64 << 20;
    instance
        .started_by(&["/usr/bin/prlimit", &format!("--fsize={limit}")])
        .service("a unix n n n - 3 probe_worker");
    instance.start();
    let mut client = Probe::unix(&instance.queue().join("public/a")).unwrap();
    let pid = client.report().unwrap()["pid"].clone();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
    let line = limits.lines().find(|l| l.starts_with("Max file size")).expect("a line for it");
    let bounds: Vec<_> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(bounds, [limit.to_string(), limit.to_string()]);
    drop(client);
    instance.finish(&[]);
}

#[test]
fn c05_without_protocols_services_of_type_inet_are_left_out() {
    let mut instance = Instance::bare();
    instance
        .parameter("inet_protocols", "")
        .service("127.0.0.1:1 inet n n n - 3 probe_worker")
        .service("a unix n n n - 3 probe_worker");
    instance.start();
    let status = String::from_utf8_lossy(&instance.belfry(&["status"]).stdout).into_owned();
    assert!(status.contains("\na ") && !status.contains("127.0.0.1:1"), "{status}");
    instance.finish(&["inet_protocols"]);
}

#[test]
fn w18_a_wakeup_that_cannot_connect_stops_nobody() {
    let mut instance = Instance::bare();
    instance
        .parameter("default_process_limit", "1")
        .service("full unix n n n 1 1 probe_worker")
        .service("a unix n n n - 3 probe_worker");
    instance.start();
    let queue = instance.queue();
    let full = || UnixStream::connect(queue.join("public/full"));
    let mut first = Probe::unix(&queue.join("public/full")).unwrap();
    first.ask("hold").unwrap();
    // The queue has room for two; a wakeup that finds it full is told, and nobody has waited for it.
    let waiting: Vec<_> = (0..2).map(|_| full().unwrap()).collect();
    let line = "master_wakeup_timer_event: service full(public/full): ";
    instance.log().wait_for(&format!("{line}Resource temporarily unavailable"));
    assert!(Probe::unix(&queue.join("public/a")).unwrap().report().is_ok());
    drop((first, waiting));
    instance.finish(&["master_wakeup_timer_event"]);
}

#[test]
fn w19_w20_a_service_that_waits_has_one_descriptor_and_workers_have_none_of_them() {
    const SERVICES: usize = 1000;
    let mut instance = Instance::bare();
    for number in 0..SERVICES {
        instance.service(&format!("s{number} unix n n n - 3 probe_worker"));
    }
    instance.start();
    let master = instance.master_pid();
    let open = || fs::read_dir(format!("/proc/{master}/fd")).expect("it runs").count();
    assert!((SERVICES..SERVICES + 40).contains(&open()), "{}", open());
    let report = Probe::unix(&instance.queue().join("public/s999")).unwrap().report().unwrap();
    assert_eq!(report["fds"].split_whitespace().count(), 7, "{report:?}");
    instance.finish(&[]);
}

#[test]
fn h07_all_services_share_one_flow_pipe() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker").service("b unix n n n - 3 probe_worker");
    instance.start();
    let pipes = |name: &str| {
        let mut client = Probe::unix(&instance.queue().join("public").join(name)).unwrap();
        let pid = client.report().unwrap()["pid"].clone();
        let end = |number: u32| {
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
            let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap().trim();
            let flags = i32::from_str_radix(flags, 8).unwrap();
            assert_ne!(flags & libc::O_NONBLOCK, 0, "{number}: {info}");
            assert_eq!(flags & libc::O_CLOEXEC, 0, "{number}: {info}");
            fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap()
        };
        (end(3), end(4))
    };
    let (a, b) = (pipes("a"), pipes("b"));
    assert_eq!(a, b);
    assert_eq!(a.0, a.1, "both are ends of one");
    instance.finish(&[]);
}
