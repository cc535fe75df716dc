//! smtpd's desk against a qmgr that does what the test says.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use super::*;
use crate::wire::{self, Header, OfferReply, Submission};

fn host() -> Host {
    Host {
        name: "h.example".to_owned(),
        origin: "h.example".to_owned(),
        mail_name: "Belfry".to_owned(),
        hop_limit: 50,
        limits: Limits::new(0),
    }
}

fn config() -> Config {
    Config {
        hostname: "h.example".to_owned(),
        banner: "h.example ESMTP".to_owned(),
        message_size_limit: 0,
        line_length_limit: 2048,
        recipient_limit: 100,
        error_limit: 20,
        junk_limit: 100,
        tokens: false,
        forbidden: vec!["GET".to_owned(), "POST".to_owned()],
    }
}

fn queued(id: &str) -> Header {
    Header::Offered(OfferReply::Queued { id: id.to_owned() })
}

/// A qmgr with an answer for each message; None closes the connection instead. It gives what it
/// was offered.
fn with_qmgr(answers: Vec<Option<Header>>, test: impl FnOnce(&mut Qmgr)) -> Vec<Submission> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmgr");
    let listener = UnixListener::bind(&path).unwrap();
    let mut qmgr = Qmgr::new(path, Duration::from_secs(10));
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            let mut offers = Vec::new();
            let mut answers = answers.into_iter().peekable();
            while answers.peek().is_some() {
                let (mut stream, _) = listener.accept().unwrap();
                while let Some(Header::Offer(offer)) = wire::receive(&mut stream).unwrap() {
                    offers.push(offer);
                    match answers.next().flatten() {
                        Some(answer) => wire::send(&mut stream, &answer).unwrap(),
                        None => break,
                    }
                }
            }
            offers
        });
        test(&mut qmgr);
        qmgr.stream = None;
        server.join().unwrap()
    })
}

fn submission() -> Submission {
    let to = vec!["a@b".to_owned()];
    host().submission(b"A: b\n\n", "s@x", to, &Source::User(7), Duration::ZERO).unwrap()
}

#[test]
fn q4_queued_is_said_after_qmgr_has_said_it() {
    let refused = Header::Offered(OfferReply::Refused {
        code: 452,
        enhanced: "4.3.1".to_owned(),
        text: "the queue is full".to_owned(),
    });
    let offers = with_qmgr(vec![Some(queued("X1")), Some(refused)], |qmgr| {
        assert_eq!(qmgr.offer(&submission()).to_string(), "250 2.0.0 Ok: queued as X1");
        assert_eq!(qmgr.offer(&submission()).to_string(), "452 4.3.1 the queue is full");
    });
    assert_eq!(offers.len(), 2);
    assert_eq!(offers[0].origin, "uid 7");
}

#[test]
fn a_qmgr_that_was_started_anew_is_reached_again() {
    let answers = vec![Some(queued("X1")), None, Some(queued("X2"))];
    with_qmgr(answers, |qmgr| {
        assert!(qmgr.offer(&submission()).is_positive());
        assert_eq!(qmgr.offer(&submission()).to_string(), "250 2.0.0 Ok: queued as X2");
    });
}

#[test]
fn without_qmgr_the_client_is_told_to_come_back() {
    let mut qmgr = Qmgr::new(PathBuf::from("/nonexistent/qmgr"), Duration::from_secs(1));
    let answer = qmgr.offer(&submission()).to_string();
    assert_eq!(answer, "451 4.3.0 queue not available: No such file or directory");
    with_qmgr(vec![None], |qmgr| {
        let answer = qmgr.offer(&submission()).to_string();
        // It has gone without an answer, and nobody has come in its place.
        assert_eq!(answer, "451 4.3.0 queue not available: Connection refused");
    });
}

/// A client, and this side of its connection.
fn pair() -> (UnixStream, UnixStream) {
    let (client, end) = UnixStream::pair().unwrap();
    end.set_nonblocking(true).unwrap();
    (client, end)
}

/// What a conversation with a desk without qmgr comes to.
fn ending(end: UnixStream, terms: Terms<'_>) -> Ending {
    let mut qmgr = Qmgr::new(PathBuf::from("/nonexistent"), Duration::from_secs(1));
    let host = host();
    let mut desk = Desk { source: Source::User(1), host: &host, qmgr: &mut qmgr };
    converse(end, Server::new(config()), &mut desk, terms)
}

/// A client that read nothing blocked its smtpd until the watchdog ended it.
#[test]
fn a_client_that_does_not_read_its_answers_is_closed() {
    let (mut client, end) = pair();
    thread::scope(|scope| {
        let server = scope.spawn(|| ending(end, Duration::from_millis(300).into()));
        // More answers than fit between them.
        while client.write_all(&b"EHLO c\r\n".repeat(100)).is_ok() {}
        assert!(matches!(server.join().unwrap(), Ending::TimedOut | Ending::Closed));
    });
}

/// sendmail says QUIT and goes; the answer then found nobody, and "lost connection" was logged.
#[test]
fn a_client_that_goes_without_waiting_for_the_answer_to_quit_is_not_lost() {
    let (mut client, end) = pair();
    client.write_all(b"EHLO c\r\n").unwrap();
    let ending = thread::scope(|scope| {
        let server = scope.spawn(|| ending(end, Duration::from_secs(10).into()));
        let mut bytes = [0; 1000];
        let mut said = String::new();
        while !said.contains("CHUNKING") {
            let count = client.read(&mut bytes).unwrap();
            said += &String::from_utf8_lossy(&bytes[..count]);
        }
        client.write_all(b"QUIT\r\n").unwrap();
        drop(client);
        server.join().unwrap()
    });
    assert_eq!(ending, Ending::Closed);
}

/// The header lines of an HTTP POST were bad commands, then its body spoke SMTP.
#[test]
fn a_request_of_http_ends_the_session_at_its_first_line() {
    for first in ["POST / HTTP/1.1", "OPTIONS / HTTP/1.1", "\u{16}\u{3}\u{1}", "{\"json\": 1}"] {
        let (mut client, end) = pair();
        let text = format!("{first}\r\nHost: x\r\n\r\nEHLO c\r\nMAIL FROM:<a@b>\r\n");
        client.write_all(text.as_bytes()).unwrap();
        let got = ending(end, Duration::from_secs(10).into());
        assert!(matches!(got, Ending::Foreign(_)), "{first}: {got:?}");
        let mut said = String::new();
        let _ = client.read_to_string(&mut said);
        let want =
            "220 h.example ESMTP\r\n221 2.7.0 Error: not an SMTP command; closing connection\r\n";
        assert_eq!(said, want, "{first}");
    }
}

/// 200 idle clients made a good one wait for 599 s: a worker that was started before learned nothing
/// of the stress.
#[test]
fn an_idle_client_makes_room_when_the_master_or_another_client_needs_the_worker() {
    for by_master in [true, false] {
        let (mut client, end) = pair();
        let (master, channel) = UnixStream::pair().unwrap();
        let (other, waiting) = UnixStream::pair().unwrap();
        let others = Others { master: channel.as_fd(), waiting: vec![waiting.as_fd()] };
        let terms = Terms {
            timeout: Duration::from_secs(600),
            stress_timeout: Duration::from_millis(200),
            others: Some(&others),
        };
        thread::scope(|scope| {
            let server = scope.spawn(|| ending(end, terms));
            let mut bytes = [0; 200];
            assert!(client.read(&mut bytes).unwrap() > 0, "it is greeted");
            let master = Some(master).filter(|_| !by_master);
            if !by_master {
                (&other).write_all(b"x").unwrap();
            }
            let count = client.read(&mut bytes).unwrap();
            let said = String::from_utf8_lossy(&bytes[..count]);
            assert_eq!(said, "421 4.3.2 h.example closing an idle connection, try again later\r\n");
            assert_eq!(server.join().unwrap(), Ending::MadeRoom);
            drop(master);
        });
    }
}

/// 300 clients that sent NOOP or RCPT now and then, each answered, kept everybody else out.
#[test]
fn a_client_that_talks_but_brings_no_message_makes_room_too() {
    for command in ["NOOP\r\n", "RCPT TO:<a@b>\r\n"] {
        let (mut client, end) = pair();
        let (_master, channel) = UnixStream::pair().unwrap();
        let (other, waiting) = UnixStream::pair().unwrap();
        (&other).write_all(b"x").unwrap();
        let others = Others { master: channel.as_fd(), waiting: vec![waiting.as_fd()] };
        let terms = Terms {
            timeout: Duration::from_secs(600),
            stress_timeout: Duration::from_millis(300),
            others: Some(&others),
        };
        let ending = thread::scope(|scope| {
            let server = scope.spawn(|| ending(end, terms));
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            client.write_all(b"EHLO x\r\nMAIL FROM:<a@b>\r\n").unwrap();
            for _ in 0..60 {
                let mut bytes = [0; 400];
                if !matches!(client.read(&mut bytes), Ok(1..)) {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
                let _ = client.write_all(command.as_bytes());
            }
            drop(client);
            server.join().unwrap()
        });
        assert_eq!(ending, Ending::MadeRoom, "{command}");
    }
}

#[test]
fn m4_a_whole_conversation() {
    let offers = with_qmgr(vec![Some(queued("X1"))], |qmgr| {
        let host = host();
        let mut desk = Desk {
            source: Source::Network {
                address: "127.0.0.1".to_owned(),
                helo: String::new(),
                protocol: "SMTP",
            },
            host: &host,
            qmgr,
        };
        let (mut client, end) = pair();
        let text = "EHLO c.example\r\nMAIL FROM:<s@x>\r\nRCPT TO:<root>\r\nDATA\r\n\
                    Subject: hi\r\n\r\n..\r\n.\r\nQUIT\r\n";
        client.write_all(text.as_bytes()).unwrap();
        let ending = converse(end, Server::new(config()), &mut desk, Duration::from_secs(10));
        assert_eq!(ending, Ending::Closed);
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        let tail = "354 End data with <CR><LF>.<CR><LF>\r\n250 2.0.0 Ok: queued as X1\r\n\
                    221 2.0.0 Bye\r\n";
        assert!(said.starts_with("220 h.example ESMTP\r\n250-h.example\r\n"), "{said}");
        assert!(said.ends_with(tail), "{said}");
    });
    assert_eq!(offers[0].recipients, ["root"]);
    assert_eq!(offers[0].origin, "smtp 127.0.0.1");
    let body = String::from_utf8(offers[0].body.clone()).unwrap();
    assert!(body.starts_with("Received: from c.example (unknown [127.0.0.1])\r\n"), "{body}");
    assert!(body.contains(" with ESMTP;\r\n"), "{body}");
    assert!(body.ends_with("\r\n\r\n.\r\n"), "{body}");
}

#[test]
fn m4_a_client_that_drips_or_sleeps_is_timed_out() {
    let mut qmgr = Qmgr::new(PathBuf::from("/nonexistent"), Duration::from_secs(1));
    let host = host();
    let mut desk = Desk { source: Source::User(1), host: &host, qmgr: &mut qmgr };
    let (mut client, end) = pair();
    let short = Duration::from_millis(200);
    let ending = thread::scope(|scope| {
        let server = scope.spawn(|| converse(end, Server::new(config()), &mut desk, short));
        // Each byte comes in time; the command does not.
        while client.write_all(b"N").is_ok() {
            let mut bytes = [0; 200];
            client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            if let Ok(count) = client.read(&mut bytes)
                && bytes[..count].starts_with(b"421 4.4.2 h.example timeout exceeded\r\n")
            {
                break;
            }
        }
        server.join().unwrap()
    });
    assert_eq!(ending, Ending::TimedOut);
}
