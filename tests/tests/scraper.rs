//! A scraper gets the metrics over HTTP from a worker; the master never speaks with it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use belfry_tests::probe::Probe;
use belfry_tests::{Instance, net, wait};

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
