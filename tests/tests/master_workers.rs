//! What a worker has from its master, and how workers come and go.

use std::os::unix::net::UnixStream;

use belfry_tests::probe::Probe;
use belfry_tests::{Instance, net, wait};

/// An instance whose one service is a probe worker at a port; the rest of its line.
fn probe(rest: &str) -> (Instance, u16) {
    let mut instance = Instance::bare();
    let port = net::free_port();
    instance.service(&format!("127.0.0.1:{port} inet n {rest}"));
    (instance, port)
}

#[test]
fn a02_a11_a13_a16_h01_h02_h03_h04_f01_what_a_worker_starts_with() {
    let (mut instance, port) = probe("n n - 3 probe_worker -x {a b}");
    instance.start();
    let report = Probe::tcp(port).unwrap().report().unwrap();
    let master = instance.master_pid().to_string();
    let want = format!("probe_worker|-n|127.0.0.1:{port}|-t|inet|-x|a b");
    assert_eq!(report["argv"], want);
    let config = instance.config().display().to_string();
    assert_eq!(report["env"], format!("GENERATION=1|LANG=C|MAIL_CONFIG={config}"));
    assert_eq!(
        report["fds"],
        "0=/dev/null 1=/dev/null 2=/dev/null 3=pipe 4=pipe 5=socket 6=socket"
    );
    assert_eq!(report["cwd"], instance.queue().display().to_string());
    assert_eq!((report["umask"].as_str(), report["uid"].as_str()), ("0077", "0 0 0 0"));
    assert_eq!(report["blocked"], "0".repeat(16));
    assert_eq!(report["ignored"], "0000000000001000");
    assert_eq!((&report["ppid"], &report["session"]), (&master, &master));
    let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .expect("a process has limits");
    assert_eq!(report["files"], format!("{soft}:{hard}"), "the limit the master was started with");
    instance.finish(&[]);
}

#[test]
fn h01_several_sockets_come_in_the_order_of_the_addresses() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    instance.parameter("inet_interfaces", "127.0.0.1, 127.0.0.2");
    instance.service(&format!("{port} inet n n n - 2 probe_worker"));
    instance.start();
    let report = Probe::tcp(port).unwrap().report().unwrap();
    assert!(report["argv"].ends_with("|-s|2"), "{}", report["argv"]);
    assert!(report["fds"].ends_with("5=socket 6=socket 7=socket"), "{}", report["fds"]);
    instance.finish(&[]);
}

#[test]
fn h01_a_service_with_thirty_listen_sockets() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    let addresses: Vec<_> = (1..=30).map(|n| format!("127.0.0.{n}")).collect();
    instance.parameter("inet_interfaces", &addresses.join(" "));
    instance.service(&format!("{port} inet n n n - 2 probe_worker")).start();
    let report = Probe::tcp(port).unwrap().report().unwrap();
    assert!(report["argv"].ends_with("|-s|30"), "{}", report["argv"]);
    let sockets: Vec<_> = (5..36).map(|n| format!("{n}=socket")).collect();
    assert!(report["fds"].ends_with(&sockets.join(" ")), "{}", report["fds"]);
    let master = format!("/proc/{}/fd", instance.master_pid());
    let low = std::fs::read_dir(master).unwrap().flatten();
    let low = low.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let mut low: Vec<_> = low.filter(|&n| n < worker_proto::sys::HIGH_FD).collect();
    low.sort_unstable();
    assert_eq!(low, [0, 1, 2, 3, 4], "a worker's numbers are free in the master");
    instance.finish(&[]);
}

#[test]
fn i01_i03_a_worker_serves_one_client_after_the_other() {
    let (mut instance, port) = probe("n n - 3 probe_worker");
    instance.start();
    let mut pids = Vec::new();
    for served in 1..=5 {
        pids.push(Probe::tcp(port).unwrap().report().unwrap()["pid"].clone());
        // The worker tells that it is free after its client has gone.
        wait::until("the worker to be free", wait::LONG, || {
            let status = instance.belfry(&["status", "--json"]);
            let status = String::from_utf8_lossy(&status.stdout).into_owned();
            status.contains(&format!("\"served\":{served},\"failed\"")).then_some(())
        });
    }
    assert!(pids.windows(2).all(|p| p[0] == p[1]), "{pids:?}");
    instance.finish(&[]);
}

#[test]
fn i05_at_the_limit_clients_wait_and_one_line_says_so() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    instance.parameter("inet_interfaces", "0.0.0.0");
    instance.service(&format!("{port} inet n n n - 2 probe_worker stays")).start();
    let mut held: Vec<_> = (0..2).map(|_| Probe::tcp(port).unwrap()).collect();
    for client in &mut held {
        client.ask("hold").unwrap();
    }
    instance.log().wait_for("has reached its process limit \"2\"");
    let mut waiting = Probe::tcp(port).unwrap();
    waiting.say("hold").unwrap();
    drop(held.remove(0));
    assert!(waiting.ask("report").is_ok(), "the waiting client gets the free worker");
    assert_eq!(instance.log().count("has reached its process limit"), 1);
    instance.finish(&["has reached its process limit", "to avoid this condition", "see master(8)"]);
}

#[test]
fn k01_a_crash_before_the_first_client_pauses_the_service_and_reset_ends_it() {
    let (mut instance, port) = probe("n n - 3 probe_worker crash");
    instance.parameter("service_throttle_start", "60s").start();
    let _client = Probe::tcp(port).unwrap();
    instance.log().wait_for("bad command startup -- throttling");
    let status = instance.belfry(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(text.contains("throttled") && text.contains("workers fail; next try in "), "{text}");
    assert_eq!(instance.log().count("exit status 1"), 1, "no second try yet");
    let reset = instance.belfry(&["reset", &format!("127.0.0.1:{port}")]);
    assert!(reset.status.success(), "{reset:?}");
    instance.log().wait_for_count("exit status 1", 2);
    instance.finish(&["exit status 1", "bad command startup"]);
}

#[test]
fn w04_a_worker_that_ends_at_once_without_work_is_not_started_in_a_frenzy() {
    let (mut instance, port) = probe("n n - 3 probe_worker exit0");
    instance.parameter("service_throttle_start", "60s").start();
    let _client = Probe::tcp(port).unwrap();
    instance.log().wait_for("ended without work -- throttling");
    let metrics = instance.belfry(&["metrics"]);
    let text = String::from_utf8_lossy(&metrics.stdout).into_owned();
    let line = text.lines().find(|l| l.starts_with("belfry_workers_spawned_total")).unwrap();
    assert!(line.ends_with(" 1"), "{line}");
    instance.finish(&["ended without work"]);
}

#[test]
fn j02_j03_j04_j06_j07_w05_a_worker_that_lies_harms_nobody() {
    let (mut instance, port) = probe("n n - 3 probe_worker");
    let other = net::free_port();
    instance.service(&format!("127.0.0.1:{other} inet n n n - 3 probe_worker"));
    instance.start();
    let victim = Probe::tcp(other).unwrap().report().unwrap()["pid"].clone();
    let mut liar = Probe::tcp(port).unwrap();
    for lie in
        [format!("forge {victim} 1 0"), format!("forge {victim} 2 0"), "forge 1 1 1".to_owned()]
    {
        assert_eq!(liar.ask(&lie).unwrap(), "sent");
    }
    instance.log().wait_for_count("ignoring status update from child pid", 3);
    assert_eq!(liar.ask("bytes 5").unwrap(), "sent");
    instance.log().wait_for("sent partial status update (5 bytes)");
    let pid = liar.report().unwrap()["pid"].clone();
    assert_eq!(liar.ask(&format!("forge {pid} 2 7")).unwrap(), "sent");
    instance.log().wait_for(&format!("ignoring unknown status: 7 allegedly from pid: {pid}"));
    assert_eq!(Probe::tcp(other).unwrap().report().unwrap()["pid"], victim);
    instance.finish(&["sent partial status update", "ignoring unknown status"]);
}

#[test]
fn f04_a_program_that_is_not_there_is_told_and_paused() {
    let (mut instance, port) = probe("n n - 3 no-such-program");
    instance.start();
    let _client = Probe::tcp(port).unwrap();
    instance.log().wait_for("no-such-program: No such file or directory");
    instance.log().wait_for("no-such-program: bad command startup -- throttling");
    instance.finish(&["no-such-program"]);
}

#[test]
fn l02_a_worker_that_is_killed_is_told_and_replaced() {
    let (mut instance, port) = probe("n n - 3 probe_worker");
    instance.start();
    // One client is served, so that its end is no bad start.
    let pid = Probe::tcp(port).unwrap().report().unwrap()["pid"].clone();
    let worker = instance.workers("probe_worker").remove(0);
    let mut second = Probe::tcp(port).unwrap();
    second.ask("hold").unwrap();
    worker.signal(nix::sys::signal::Signal::SIGKILL);
    instance.log().wait_for(&format!("pid {pid} killed by signal 9"));
    let next = Probe::tcp(port).unwrap().report().unwrap()["pid"].clone();
    assert_ne!(pid, next);
    instance.finish(&["killed by signal 9"]);
}

#[test]
fn m01_m02_the_last_worker_but_one_brings_stress() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    // A public service: stress is for what anybody can reach.
    instance.parameter("inet_interfaces", "0.0.0.0");
    instance.service(&format!("{port} inet n n n - 2 probe_worker")).start();
    let mut first = Probe::tcp(port).unwrap();
    let report = first.report().unwrap();
    assert!(report["argv"].contains("|-o|stress=") && !report["argv"].contains("stress=yes"));
    let mut second = Probe::tcp(port).unwrap();
    assert!(second.report().unwrap()["argv"].contains("|-o|stress=yes"));
    // The first was told to end, and does so after its client.
    let old = report["pid"].clone();
    drop(first);
    wait::until("the unstressed worker to end", wait::LONG, || {
        let left = instance.workers("probe_worker");
        (!left.iter().any(|w| w.pid.to_string() == old)).then_some(())
    });
    drop(second);
    instance.finish(&["has reached its process limit", "to avoid this condition", "see master(8)"]);
}

#[test]
fn n01_n02_wakeups_reach_every_type_of_service() {
    let mut instance = Instance::bare();
    let trace = instance.root().join("trace");
    let option = format!("trace={}", trace.display());
    instance
        .service(&format!("u unix n n n 1 1 probe_worker {option}"))
        .service(&format!("f fifo n n n 1 1 probe_worker {option}"))
        .service(&format!("never unix n n n 1? 1 probe_worker {option}"));
    instance.start();
    let text = || std::fs::read_to_string(&trace).unwrap_or_default();
    wait::until("four wakeups", wait::LONG, || (text().lines().count() >= 4).then_some(()));
    assert!(text().contains("W\\u{0}"), "{}", text());
    assert!(text().lines().any(|l| l.ends_with(" W")), "the pipe gets one byte: {}", text());
    assert_eq!(instance.workers("probe_worker").len(), 2, "the conditional one was never used");
    instance.finish(&[]);
}

#[test]
fn p01_p04_sigterm_leaves_nobody_and_sigkill_of_the_master_drains() {
    let (mut instance, port) = probe("n n - 3 probe_worker");
    instance.start();
    let mut client = Probe::tcp(port).unwrap();
    client.ask("hold").unwrap();
    instance.stop();
    instance.start();
    let _ = Probe::tcp(port).unwrap().report().unwrap();
    instance.kill();
    instance.finish(&[]);
}

#[test]
fn w07_with_a_burst_clients_do_not_wait_for_each_others_workers() {
    let (mut instance, port) = probe("n n - 20 probe_worker slow=400");
    instance.parameter("start_burst", "8").start();
    let before = std::time::Duration::from_millis(400);
    let mut clients: Vec<_> = (0..8).map(|_| Probe::tcp(port).unwrap()).collect();
    for client in &mut clients {
        client.say("hold").unwrap();
    }
    let start = worker_proto::clock::Time::now();
    for client in &mut clients {
        client.ask("hold").unwrap();
    }
    let took = worker_proto::clock::Time::now().since(start);
    assert!(took < before * 6, "one after the other they take eight starts, these took {took:?}");
    instance.finish(&[]);
}

#[test]
fn w07_spare_workers_wait_for_clients() {
    let (mut instance, port) = probe("n n - 5 probe_worker");
    let name = format!("127_0_0_1_{port}_min_spare");
    instance.parameter(&name, "2").start();
    wait::until("two spare workers", wait::LONG, || {
        (instance.workers("probe_worker").len() == 2).then_some(())
    });
    instance.finish(&[]);
}

#[test]
fn limits_of_a_service_are_set_before_its_program_runs() {
    let (mut instance, port) = probe("n n - 2 probe_worker");
    let name = |setting: &str| format!("127_0_0_1_{port}_{setting}");
    instance
        .parameter(&name("rlimit_nofile"), "123:456")
        .parameter(&name("no_new_privs"), "yes")
        .parameter(&name("oom_score_adj"), "500")
        .start();
    let report = Probe::tcp(port).unwrap().report().unwrap();
    assert_eq!(report["files"], "123:456");
    assert_eq!((report["no_new_privs"].as_str(), report["oom"].as_str()), ("1", "500"));
    assert!(report["argv"].starts_with("probe_worker|-n|"), "{}", report["argv"]);
    assert!(report["fds"].ends_with("5=socket 6=socket"), "{}", report["fds"]);
    instance.finish(&[]);
}

#[test]
fn a04_dash_capital_d_runs_the_debugger_command_on_the_master() {
    let mut instance = Instance::bare();
    let trace = instance.root().join("debugger");
    let command = format!("echo $process_name $process_id >{}", trace.display());
    instance
        .parameter("debugger_command", &command)
        .service("a unix n n n - 3 probe_worker")
        .write();
    let mut master = instance.command("master").args(["-D", "-e", "30"]).spawn().unwrap();
    let want = format!("master {}\n", master.id());
    wait::until("the debugger", wait::LONG, || {
        (std::fs::read_to_string(&trace).unwrap_or_default() == want).then_some(())
    });
    belfry_tests::process::Process::read(i32::try_from(master.id()).unwrap())
        .unwrap()
        .signal(nix::sys::signal::Signal::SIGTERM);
    master.wait().unwrap();
    instance.finish(&[]);
}

/// Too many connections once ended qmgr, with whatever it had in hand.
#[test]
fn a_resident_worker_without_room_for_a_client_goes_on() {
    let mut instance = Instance::new();
    instance.parameter("qmgr_rlimit_nofile", "24").start();
    let qmgr = || instance.workers("qmgr").first().map(|w| w.pid);
    let pid = wait::until("qmgr", wait::LONG, qmgr);
    let socket = instance.queue().join("private/qmgr");
    let clients: Vec<_> = (0..40).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    instance.log().wait_for("accept connection: Too many open files -- trying again");
    drop(clients);
    let mut sendmail = instance.command("sendmail");
    let sent = sendmail.arg("admin@test.example").status().expect("sendmail was built");
    assert!(sent.success());
    instance.log().wait_for("from=<");
    assert_eq!(qmgr(), Some(pid), "it is still the same");
    instance.finish(&["Too many open files", "relayhost is empty"]);
}

/// nix has no number for a real-time signal: such an end was taken for an error of waitpid(2), the
/// worker counted for ever, and the master waited for it when it was to stop.
#[test]
fn l02_a_worker_killed_by_a_real_time_signal_has_a_successor() {
    let (mut instance, port) = probe("n n - 1 probe_worker");
    instance.start();
    for signal in [34, 64] {
        let mut client = Probe::tcp(port).unwrap();
        let pid = client.report().unwrap()["pid"].clone();
        let kill = format!("kill -{signal} {pid}");
        let sent = std::process::Command::new("sh").args(["-c", &kill]).status();
        assert!(sent.is_ok_and(|status| status.success()), "{kill}");
        let line = format!("pid {pid} killed by signal {signal}");
        instance.log().wait_for(&line);
        wait::until("the next worker", wait::LONG, || Probe::tcp(port).ok()?.report().ok());
    }
    let status = instance.belfry(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(text.contains("signal 64"), "{text}");
    instance.finish(&["killed by signal", "bad command startup"]);
}
