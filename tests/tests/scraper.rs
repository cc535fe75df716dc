//! A scraper gets the metrics over HTTP from a worker; the master never speaks with it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use belfry_tests::probe::Probe;
use belfry_tests::{Instance, net, open_metrics, wait};
use master::report::{Row, State};
use proptest::prelude::*;

/// An instance with the worker, chrooted and without privileges, and one service.
fn instance() -> (Instance, u16) {
    let (mut instance, port) = (Instance::bare(), net::free_port());
    instance
        .service(&format!("127.0.0.1:{port} inet n y y - 1 metricsd"))
        .service("a unix n n n - 3 probe_worker");
    instance.start();
    (instance, port)
}

fn http(port: u16, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the service listens");
    stream.set_read_timeout(Some(wait::LONG)).expect("a timeout can be set");
    stream.write_all(request.as_bytes()).expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.to_owned(), body.to_owned())
}

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

/// The number of clients that service `a` has served.
fn served(body: &str) -> Option<u64> {
    let line = body.lines().find(|l| l.starts_with("belfry_clients_served_total{service=\"a\""))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn w11_each_scrape_has_the_numbers_of_its_moment() {
    let (instance, port) = instance();
    let (head, body) = http(port, GET);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let kind = "\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(head.contains(kind), "{head}");
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    assert_eq!(served(&body), Some(0), "{body}");
    let path = instance.queue().join("public/a");
    drop(Probe::unix(&path).unwrap().report().unwrap());
    wait::until("the client to be counted", wait::LONG, || {
        (served(&http(port, GET).1) == Some(1)).then_some(())
    });
    let worker = instance.workers("metricsd").remove(0).pid;
    let status = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    assert!(!status.contains("Uid:\t0"), "it has no privileges: {status}");

    let (head, body) = http(port, "HEAD /metrics HTTP/1.0\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK") && body.is_empty(), "{head}");
    for (request, status) in [
        ("GET /other HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("status --json\r\n\r\n", "400 Bad Request"),
    ] {
        let (head, _) = http(port, request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {head}");
    }
    // The next worker has a connection of its own, after a reload and after an upgrade.
    for command in ["reload", "upgrade"] {
        assert!(instance.belfry(&[command]).status.success());
        assert_eq!(served(&http(port, GET).1), Some(1), "after {command}");
    }
    instance.finish(&[]);
}

#[test]
fn a_feed_has_metrics_alone_and_a_deaf_one_stops_nobody() {
    let (instance, port) = instance();
    let feed = || {
        let mut feed = UnixStream::connect(instance.queue().join("pid/control")).unwrap();
        feed.set_read_timeout(Some(wait::LONG)).unwrap();
        feed.write_all(b"metrics-feed\n").unwrap();
        feed
    };
    let mut first = feed();
    let mut bytes = [0; 4096];
    assert!(first.read(&mut bytes).unwrap() > 0);
    first.write_all(b"upgrade /bin/true\n").unwrap();
    let size = first.read(&mut bytes).unwrap();
    let text = String::from_utf8_lossy(&bytes[..size]).into_owned();
    assert!(text.contains("\n# TYPE "), "whatever it asks it gets metrics: {text}");
    assert_eq!(instance.log().count("upgrade"), 0);

    let mut deaf: Vec<_> = (0..20).map(|_| feed()).collect();
    let is_refused = |feed: &mut UnixStream| {
        let mut start = [0; 6];
        feed.read_exact(&mut start).is_ok() && start == *b"1\ntoo "
    };
    deaf.retain_mut(|feed| !is_refused(feed));
    assert_eq!(deaf.len(), 7, "with the first one eight may stay");
    // They ask and ask, and never read.
    for feed in &mut deaf {
        feed.set_nonblocking(true).unwrap();
        for _ in 0..1000 {
            let _ = feed.write(b"metrics\n");
        }
    }
    assert!(instance.belfry(&["status"]).status.success());
    drop((first, deaf));
    wait::until("room for the worker", wait::LONG, || served(&http(port, GET).1));
    instance.finish(&[]);
}

/// Services that had the same labels: by one name private and public, by one name of several types, and
/// removed with a worker that does not end and added again, twice.
fn namesakes() -> Instance {
    let mut instance = Instance::bare();
    let table = "x unix y n n - 3 probe_worker\nx unix n n n - 3 probe_worker ignore-end\n";
    instance.parameter("stop_grace", "1h").parameter("stop_kill_time", "1s");
    instance
        .service("x unix y n n - 3 probe_worker")
        .service("x unix n n n - 3 probe_worker ignore-end");
    instance.start();
    for _ in 0..2 {
        let client = Probe::unix(&instance.queue().join("public/x"));
        client.and_then(|mut client| client.report()).expect("it serves");
        for text in ["y fifo n n n - 3 probe_worker\n", table] {
            std::fs::write(instance.config().join("master.cf"), text).expect("/tmp has room");
            assert!(instance.belfry(&["reload"]).status.success());
        }
    }
    instance
}

fn metrics(instance: &Instance) -> String {
    String::from_utf8(instance.belfry(&["metrics"]).stdout).expect("it is UTF-8")
}

/// Ends an instance with workers that do not end by themselves within its grace.
fn stop(instance: Instance) {
    instance.finish_with(&[], &["killed by signal"]);
}

#[test]
fn no_series_comes_twice() {
    let instance = namesakes();
    let status = String::from_utf8(instance.belfry(&["status"]).stdout).unwrap();
    assert_eq!(status.matches("stopping").count(), 2, "{status}");
    let text = metrics(&instance);
    let samples = open_metrics::read(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let idle = |key: &str| {
        let mut found = samples.iter().filter(|s| s.name == "belfry_workers_idle");
        found.find(|s| s.labels["key"] == key).map(|s| s.value)
    };
    assert_eq!((idle("public/x"), idle("private/x")), (Some(0.0), Some(0.0)), "{text}");
    stop(instance);
}

/// The parser that Prometheus's own client library comes with reads as many samples as there are lines:
/// it leaves out a series that comes twice.
#[test]
#[cfg_attr(not(peer_prometheus), ignore = "python3 with prometheus_client is not installed")]
fn the_parser_of_prometheus_reads_every_sample() {
    const COUNT: &str = "import sys\n\
        from prometheus_client.openmetrics.parser import text_string_to_metric_families as read\n\
        print(sum(len(family.samples) for family in read(sys.stdin.read())))\n";
    let instance = namesakes();
    let text = metrics(&instance);
    let peer = belfry_tests::peer::ALL.iter().find(|p| p.name == "prometheus").unwrap();
    let python = peer.find().remove(0).unwrap();
    let mut child = std::process::Command::new(python)
        .args(["-c", COUNT])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), lines.to_string(), "{text}");
    stop(instance);
}

fn row() -> impl Strategy<Value = Row> {
    let state = prop_oneof![Just(State::Up), Just(State::Stopping), Just(State::Throttled(7))];
    let name = prop_oneof![Just("a".to_owned()), Just("b".to_owned()), ".*"];
    let transport = prop_oneof![Just("unix"), Just("inet")];
    (name.clone(), name, transport, state, 0..3_usize).prop_map(
        |(name, key, transport, state, busy)| {
            let (idle, retired, spawned, served, failed) = (0, 0, 9, 8, 1);
            let (max, queue, last_exit, workers) = (Some(3), None, None, Vec::new());
            Row {
                name,
                key,
                transport,
                state,
                busy,
                idle,
                retired,
                max,
                queue,
                spawned,
                served,
                failed,
                last_exit,
                workers,
            }
        },
    )
}

proptest! {
    #[test]
    fn whatever_services_are_called_the_text_is_well_formed(rows in prop::collection::vec(row(), 0..20)) {
        let text = master::report::metrics(&rows);
        let samples = open_metrics::read(&text);
        prop_assert!(samples.is_ok(), "{samples:?}\n{text}");
        let busy = samples.unwrap_or_default().into_iter().filter(|s| s.name == "belfry_workers_busy");
        let values: Vec<f64> = busy.map(|s| s.value).collect();
        let rows: u32 = rows.iter().map(|r| u32::try_from(r.busy).unwrap_or(0)).sum();
        let sum = values.into_iter().fold(0.0, |sum, value| sum + value);
        prop_assert!((sum - f64::from(rows)).abs() < 0.5, "no worker is left out: {}", text);
    }
}
