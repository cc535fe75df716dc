//! metricsd - a worker from which a scraper gets the metrics over HTTP
//!
//! The master parses nothing that comes over a network. This worker, which has no privileges and may
//! be chrooted, does; over a connection to the control socket that it opens before it gives them up,
//! and on which nothing but metrics is to be had, it asks for each scrape. When the master closes that
//! connection, it ends, and the next one has a new one.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use worker_proto::client::Client;
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;
use worker_proto::server::Configured;
use worker_proto::single::Single;

use crate::control;

/// How long a client may take to ask, and the master to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest request.
const MAX_REQUEST: usize = 8192;
/// The longest report: some hundred bytes for a service.
const MAX_REPORT: u64 = 64 << 20;
const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The worker.
#[derive(Debug)]
pub struct Metricsd {
    feed: BufReader<UnixStream>,
    /// The master does not answer any more.
    over: bool,
}

impl Single for Metricsd {
    fn configure(_: &mut Configured) -> Result<Self, Fault> {
        let connect = || -> io::Result<UnixStream> {
            let feed = UnixStream::connect(control::PATH)?;
            feed.set_read_timeout(Some(PATIENCE))?;
            feed.set_write_timeout(Some(PATIENCE))?;
            Ok(feed)
        };
        let mut feed =
            connect().map_err(|e| Fault::io(format!("connect {}", control::PATH), &e))?;
        // The promise: from the first word on there is nothing but metrics on it.
        let asked = feed.write_all(b"metrics-feed\n").and_then(|()| {
            let mut feed = BufReader::new(feed);
            report(&mut feed)?;
            Ok(feed)
        });
        let feed = asked.map_err(|e| Fault::io("ask the master for metrics", &e))?;
        Ok(Self { feed, over: false })
    }

    fn serve(&mut self, mut client: Client) {
        let answer = match ask(&mut client) {
            Ok(Wanted::Metrics { body }) => match self.scrape() {
                Ok(text) => response("200 OK", TYPE, &text, body),
                Err(e) => {
                    log::warn!("ask the master for metrics: {e}");
                    self.over = true;
                    response("503 Service Unavailable", "text/plain", "the master is gone\n", true)
                }
            },
            Ok(Wanted::Nothing(status)) => {
                response(status, "text/plain", &format!("{status}\n"), true)
            }
            // It is gone, or has not asked in time.
            Err(_) => return,
        };
        // Whether it reads its answer is its matter.
        let _ = client.write_all(answer.as_bytes());
    }

    fn wants_to_end(&self) -> bool {
        self.over
    }
}

impl Metricsd {
    fn scrape(&mut self) -> io::Result<String> {
        self.feed.get_mut().write_all(b"metrics\n")?;
        report(&mut self.feed)
    }
}

/// One report: a line with its length, then the text.
fn report(feed: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    feed.read_line(&mut line)?;
    let length: u64 = line.trim().parse().map_err(|_| io::ErrorKind::UnexpectedEof)?;
    if length > MAX_REPORT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = String::new();
    feed.take(length).read_to_string(&mut text)?;
    if text.len() as u64 == length { Ok(text) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// The metrics, or only the head of the answer.
    Metrics { body: bool },
    /// Nothing that there is.
    Nothing(&'static str),
}

/// Reads a request.
fn ask(client: &mut Client) -> io::Result<Wanted> {
    let (end, mut input, mut bytes) = (Time::now() + PATIENCE, Vec::new(), [0; 1024]);
    loop {
        client.set_timeout(end.since(Time::now()).max(Duration::from_millis(1)))?;
        let size = client.read(&mut bytes)?;
        input.extend_from_slice(&bytes[..size]);
        if let Some(wanted) = wanted(&input) {
            return Ok(wanted);
        }
        if size == 0 || Time::now() >= end {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// What has come so far asks for; None when it is not whole.
fn wanted(input: &[u8]) -> Option<Wanted> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let bad = Some(Wanted::Nothing("400 Bad Request"));
    match request.parse(input) {
        Err(_) => return bad,
        Ok(httparse::Status::Partial) if input.len() > MAX_REQUEST => return bad,
        Ok(httparse::Status::Partial) => return None,
        Ok(httparse::Status::Complete(_)) => {}
    }
    let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default();
    Some(match (request.method.unwrap_or_default(), path) {
        ("GET", "/metrics") => Wanted::Metrics { body: true },
        ("HEAD", "/metrics") => Wanted::Metrics { body: false },
        (_, "/metrics") => Wanted::Nothing("405 Method Not Allowed"),
        _ => Wanted::Nothing("404 Not Found"),
    })
}

fn response(status: &str, kind: &str, text: &str, body: bool) -> String {
    let mut answer = String::new();
    let length = text.len();
    let _ = write!(
        answer,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    if body {
        answer.push_str(text);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_understood_when_it_is_whole() {
        let metrics = |body| Some(Wanted::Metrics { body });
        let nothing = |status| Some(Wanted::Nothing(status));
        for (input, want) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", metrics(true)),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", metrics(true)),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", metrics(false)),
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n", None),
            ("", None),
            ("POST /metrics HTTP/1.1\r\n\r\n", nothing("405 Method Not Allowed")),
            ("GET / HTTP/1.1\r\n\r\n", nothing("404 Not Found")),
            ("status --json\r\n\r\n", nothing("400 Bad Request")),
        ] {
            assert_eq!(wanted(input.as_bytes()), want, "{input:?}");
        }
        let endless = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(MAX_REQUEST));
        assert_eq!(wanted(endless.as_bytes()), nothing("400 Bad Request"));
    }

    #[test]
    fn a_report_is_as_long_as_it_says() {
        assert_eq!(report(&mut b"3\nabcd".as_slice()).unwrap(), "abc");
        for bad in ["", "x\n", "4\nabc", "99999999999\n"] {
            assert!(report(&mut bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
