//! Services that run and serve nobody: `belfry status` says so, and a reload or a reset mends them.

use std::fs;
use std::time::Duration;

use belfry_tests::probe::Probe;
use belfry_tests::process::Process;
use belfry_tests::{Instance, net, wait};
use worker_proto::clock::Time;

fn status(instance: &Instance, name: &str) -> serde_json::Value {
    let output = instance.belfry(&["status", name, "--json"]);
    serde_json::from_slice(&output.stdout).expect("belfry prints an object")
}

/// It was `up`, although nobody could connect.
#[test]
fn a_socket_whose_file_is_gone_is_told_and_bound_again() {
    let mut instance = Instance::bare();
    instance
        .service("a unix n n n - 3 probe_worker")
        .service("b unix n n n - 3 probe_worker")
        .start();
    let path = instance.queue().join("public/a");
    assert!(Probe::unix(&path).unwrap().report().is_ok());
    for fix in [&["reset", "a"][..], &["reload", "--changed"], &["reload"]] {
        assert_eq!(status(&instance, "a")["state"], "up");
        fs::remove_file(&path).unwrap();
        if fix[0] == "reset" {
            // Somebody else's is no better than none.
            fs::write(&path, "").unwrap();
        }
        let row = status(&instance, "a");
        assert_eq!(row["state"], "unreachable", "{row}");
        let note = row["note"].as_str().unwrap();
        assert!(note.contains("public/a: the socket file was removed or replaced"), "{note}");
        assert_eq!(status(&instance, "b")["state"], "up");
        assert!(instance.belfry(fix).status.success());
        assert_eq!(status(&instance, "a")["state"], "up", "after {fix:?}");
        assert!(Probe::unix(&path).unwrap().report().is_ok(), "after {fix:?}");
    }
    instance.finish_with(&[], &["the socket file was removed"]);
}

/// Each start found the socket ready, and counted as no failure: 6,224 of them in 8 s.
#[test]
fn a_worker_that_shuts_the_socket_down_is_not_started_in_a_frenzy() {
    let mut instance = Instance::bare();
    let port = net::free_port();
    let inet = format!("127.0.0.1:{port}");
    instance
        .service("a unix n n n - 3 probe_worker shut")
        .service(&format!("{inet} inet n n n - 3 probe_worker shut"))
        .start();
    let connect = || {
        drop(Probe::unix(&instance.queue().join("public/a")));
        drop(Probe::tcp(port));
    };
    let begin = Time::now();
    while Time::now().since(begin) < Duration::from_secs(6) {
        connect();
        std::thread::sleep(Duration::from_millis(2));
    }
    for name in ["a", inet.as_str()] {
        let row = status(&instance, name);
        let (spawned, failed) = (row["spawned"].as_u64().unwrap(), row["failed"].as_u64().unwrap());
        assert!((1..=8).contains(&spawned), "{name}: a handful of starts: {row}");
        assert!(failed > 0, "{name}: they are failures: {row}");
    }
    let shut = instance.log().count("a worker has shut down the socket -- throttling");
    assert!((2..=20).contains(&shut), "{shut} lines");
    // The socket is replaced: with a worker that does no such thing the service is well.
    let table = format!("a unix n n n - 3 probe_worker\n{inet} inet n n n - 3 probe_worker\n");
    fs::write(instance.config().join("master.cf"), table).unwrap();
    assert!(instance.belfry(&["reload"]).status.success());
    wait::until("both to serve", wait::LONG, || {
        Probe::unix(&instance.queue().join("public/a")).ok()?.report().ok()?;
        Probe::tcp(port).ok()?.report().ok()
    });
    instance.finish(&["a worker has shut down the socket"]);
}

/// One that did not end kept the service from having another worker, and `status` said `up`.
#[test]
fn a_retired_worker_that_hangs_is_told_and_killed_when_asked_for() {
    let mut instance = Instance::bare();
    instance
        .parameter("stop_kill_time", "1s")
        .service("a unix n n n - 1 probe_worker ignore-end ignore-term")
        .start();
    let path = instance.queue().join("public/a");
    for fix in [&["reset", "a"][..], &["reload"]] {
        let pid = Probe::unix(&path).unwrap().report().unwrap()["pid"].clone();
        wait::until("the worker to be idle", wait::LONG, || {
            (status(&instance, "a")["idle"] == 1).then_some(())
        });
        assert!(instance.belfry(&["reload"]).status.success());
        let row = status(&instance, "a");
        assert_eq!((&row["state"], &row["retired"]), (&"retiring".into(), &1.into()), "{row}");
        assert!(instance.belfry(fix).status.success());
        wait::until("the worker to be killed", wait::LONG, || {
            Process::read(pid.parse().unwrap()).is_none().then_some(())
        });
        instance.log().wait_for(&format!("pid {pid} was retired and does not end -- killed"));
        assert!(Probe::unix(&path).unwrap().report().is_ok(), "the next one serves");
    }
    instance.finish(&["does not end -- killed", "killed by signal 9"]);
}
