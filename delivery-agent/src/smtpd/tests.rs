//! smtpd's desk against a qmgr that does what the test says.

use std::os::unix::net::UnixListener;
use std::thread;

use super::*;
use crate::wire::Header;

fn host() -> Host {
    Host {
        name: "h.example".to_owned(),
        origin: "h.example".to_owned(),
        mail_name: "Belfry".to_owned(),
        hop_limit: 50,
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
        let (mut client, end) = UnixStream::pair().unwrap();
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
    let (mut client, end) = UnixStream::pair().unwrap();
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
