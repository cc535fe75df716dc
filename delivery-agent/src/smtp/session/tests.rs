//! Conversations, line by line.

use std::rc::Rc;

use proptest::prelude::*;

use super::super::server::{self, Answer, Backend, Envelope, Server};
use super::*;

const FULL: &str = "250-r\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n";

fn mail(recipients: &[&str], body: &str) -> Mail {
    Mail {
        sender: "s@x".to_owned(),
        recipients: recipients.iter().map(|r| (*r).to_owned()).enumerate().collect(),
        body: Rc::from(body.as_bytes()),
    }
}

fn fresh() -> Session {
    Session::new(Config { relay: "r".to_owned(), helo: "h".to_owned(), pipelining: true })
}

/// A session behind the answer to EHLO.
fn open(ehlo: &str) -> Session {
    let mut session = fresh();
    session.input(b"220 r\r\n");
    assert_eq!(wire(&mut session), "EHLO h\r\n");
    session.input(ehlo.as_bytes());
    assert_eq!(session.event(), Some(Event::Open));
    session
}

/// Takes the output as if it was written.
fn wire(session: &mut Session) -> String {
    let text = String::from_utf8(session.output().to_vec()).unwrap();
    session.wrote(text.len());
    text
}

/// The outcomes of the next message, a word each.
fn words(session: &mut Session) -> Vec<&'static str> {
    match session.event() {
        Some(Event::Done(outcomes)) => outcomes.iter().map(|(_, o)| o.word()).collect(),
        other => panic!("no message is done: {other:?}"),
    }
}

fn lost(session: &mut Session) -> String {
    match session.event() {
        Some(Event::Lost { why, .. }) => why,
        other => panic!("the session is not lost: {other:?}"),
    }
}

#[test]
fn s3_one_round_trip_a_message() {
    let mut s = open(FULL);
    s.offer(mail(&["a@x"], "one\r\n")).unwrap();
    assert!(s.wants_mail());
    s.offer(mail(&["b@x", "c@x"], "zw\u{f6}lf\r\n")).unwrap();
    assert!(!s.wants_mail());
    assert_eq!(wire(&mut s), "MAIL FROM:<s@x> SIZE=5\r\nRCPT TO:<a@x>\r\nDATA\r\n");
    s.input(b"250 ok\r\n250 ok\r\n354 go\r\n");
    let next = "MAIL FROM:<s@x> SIZE=8 BODY=8BITMIME\r\nRCPT TO:<b@x>\r\nRCPT TO:<c@x>\r\nDATA\r\n";
    assert_eq!(wire(&mut s), format!("one\r\n.\r\n{next}"));
    assert_eq!(s.stage(), Stage::Dot);
    assert_eq!(s.event(), None, "not before the answer to the dot");
    s.input(b"250 2.0.0 taken\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n");
    assert_eq!(words(&mut s), ["sent"]);
    assert_eq!(wire(&mut s), "zw\u{f6}lf\r\n.\r\n");
    s.input(b"250 taken\r\n");
    assert_eq!(words(&mut s), ["sent", "sent"]);
}

#[test]
fn s3_the_second_of_two_is_sent_behind_the_first() {
    let mut s = open(FULL);
    s.offer(mail(&["a@x"], "one\r\n")).unwrap();
    wire(&mut s);
    s.input(b"250 ok\r\n250 ok\r\n354 go\r\n");
    assert_eq!(wire(&mut s), "one\r\n.\r\n");
    s.offer(mail(&["b@x"], "two\r\n")).unwrap();
    assert_eq!(wire(&mut s), "MAIL FROM:<s@x> SIZE=5\r\nRCPT TO:<b@x>\r\nDATA\r\n");
    s.input(b"250 taken\r\n250 ok\r\n250 ok\r\n354 go\r\n");
    assert_eq!(wire(&mut s), "two\r\n.\r\n");
    s.input(b"250 taken\r\n");
    assert_eq!((words(&mut s), words(&mut s)), (vec!["sent"], vec!["sent"]));
    assert!(s.is_idle());
    s.quit();
    assert_eq!(wire(&mut s), "QUIT\r\n");
    s.input(b"\xff nonsense\r\n");
    assert!(s.is_over());
    assert_eq!(s.event(), None, "nothing depends on the answer to QUIT");
}

#[test]
fn s7_helo_and_lock_step() {
    let mut s = fresh();
    s.input(b"220 r\r\n");
    wire(&mut s);
    s.input(b"502 no\r\n");
    assert_eq!(wire(&mut s), "HELO h\r\n");
    s.input(b"250 r\r\n");
    assert_eq!(s.event(), Some(Event::Open));
    s.offer(mail(&["a@x", "b@x"], "x\r\n")).unwrap();
    assert!(!s.wants_mail());
    for (want, answer) in [
        ("MAIL FROM:<s@x>\r\n", "250 ok\r\n"),
        ("RCPT TO:<a@x>\r\n", "550 no\r\n"),
        ("RCPT TO:<b@x>\r\n", "250 ok\r\n"),
        ("DATA\r\n", "354 go\r\n"),
        ("x\r\n.\r\n", "250 taken\r\n"),
    ] {
        assert_eq!(wire(&mut s), want);
        s.input(answer.as_bytes());
    }
    assert_eq!(words(&mut s), ["refused", "sent"]);
    s.offer(mail(&["a@x"], "x\r\n")).unwrap();
    assert_eq!(wire(&mut s), "MAIL FROM:<s@x>\r\n", "no RSET: nothing went wrong");
}

#[test]
fn s7_rset_only_after_an_error_in_lock_step() {
    for (answers, word) in [
        (vec!["451 later\r\n"], "deferred"),
        (vec!["250 ok\r\n", "550 no\r\n"], "refused"),
        (vec!["250 ok\r\n", "552 many\r\n"], "deferred"),
        (vec!["250 ok\r\n", "250 ok\r\n", "554 no\r\n"], "refused"),
    ] {
        let mut s = open("250 r\r\n");
        s.offer(mail(&["a@x"], "x\r\n")).unwrap();
        for answer in answers {
            wire(&mut s);
            s.input(answer.as_bytes());
        }
        assert_eq!(words(&mut s), [word]);
        s.offer(mail(&["b@x"], "x\r\n")).unwrap();
        assert_eq!(wire(&mut s), "RSET\r\n");
        s.input(b"250 ok\r\n");
        assert_eq!(wire(&mut s), "MAIL FROM:<s@x>\r\n");
    }
}

#[test]
fn s7_a_lone_dot_when_nobody_is_left() {
    let mut s = open(FULL);
    s.offer(mail(&["a@x", "b@x"], "one\r\n")).unwrap();
    s.offer(mail(&["c@x"], "two\r\n")).unwrap();
    wire(&mut s);
    s.input(b"250 ok\r\n550 no\r\n450 later\r\n354 go\r\n");
    assert_eq!(words(&mut s), ["refused", "deferred"]);
    assert_eq!(wire(&mut s), ".\r\nMAIL FROM:<s@x> SIZE=5\r\nRCPT TO:<c@x>\r\nDATA\r\n");
    s.input(b"554 no recipients\r\n250 ok\r\n250 ok\r\n354 go\r\n");
    assert_eq!(wire(&mut s), "two\r\n.\r\n");
    s.input(b"250 taken\r\n");
    assert_eq!(words(&mut s), ["sent"]);
}

#[test]
fn r6_one_refused_recipient_does_not_touch_the_others() {
    let mut s = open(FULL);
    s.offer(mail(&["a@x", "b@x", "c@x"], "x\r\n")).unwrap();
    wire(&mut s);
    s.input(b"250 ok\r\n250 ok\r\n550 5.1.1 who\r\n250 ok\r\n354 go\r\n");
    wire(&mut s);
    s.input(b"250 taken\r\n");
    assert_eq!(words(&mut s), ["sent", "refused", "sent"]);
}

#[test]
fn r6_a_refused_message_does_not_touch_the_next_one() {
    for (answers, word) in [
        ("550 no\r\n503 no\r\n503 no\r\n", "refused"),
        ("450 no\r\n503 no\r\n503 no\r\n", "deferred"),
        ("250 ok\r\n250 ok\r\n451 no\r\n", "deferred"),
    ] {
        let mut s = open(FULL);
        s.offer(mail(&["a@x"], "one\r\n")).unwrap();
        s.offer(mail(&["b@x"], "two\r\n")).unwrap();
        wire(&mut s);
        s.input(answers.as_bytes());
        assert_eq!(words(&mut s), [word]);
        let next = "RSET\r\nMAIL FROM:<s@x> SIZE=5\r\nRCPT TO:<b@x>\r\nDATA\r\n";
        assert_eq!(wire(&mut s), next);
        s.input(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n");
        wire(&mut s);
        s.input(b"250 taken\r\n");
        assert_eq!(words(&mut s), ["sent"]);
    }
}

#[test]
fn s7_a_message_that_does_not_fit_leaves_the_session_alone() {
    let mut s = open("250-r\r\n250 SIZE 3\r\n");
    let unfit = s.offer(mail(&["a@x"], "1234")).unwrap_err();
    assert!(unfit.reply.starts_with("552 5.3.4"));
    let unfit = s.offer(mail(&["\u{e4}@x"], "x")).unwrap_err();
    assert!(unfit.reply.starts_with("553 5.6.7"));
    let unfit = s.offer(mail(&["a@x>\r\nRCPT TO:<b@x"], "x")).unwrap_err();
    assert!(unfit.reply.starts_with("553 5.1.3"));
    assert!(s.is_idle());
    let mut s = open(FULL);
    s.offer(mail(&["\u{e4}@x"], "x")).unwrap();
    assert!(wire(&mut s).starts_with("MAIL FROM:<s@x> SIZE=1 SMTPUTF8\r\n"));
}

/// What is said before the fault, and what becomes of the message then.
const STAGES: [(&str, &str); 6] = [
    ("greeting", ""),
    ("ehlo", "220 r\r\n"),
    ("mail", "250-r\r\n250 PIPELINING\r\n"),
    ("rcpt", "250 ok\r\n"),
    ("data", "250 ok\r\n"),
    ("dot", "354 go\r\n"),
];

/// Plays the stages before number `stage`, offers the message as soon as it is wanted.
fn play(stage: usize) -> (Session, bool) {
    let mut s = fresh();
    let mut offered = false;
    for (_, answer) in &STAGES[..=stage] {
        s.input(answer.as_bytes());
        if s.wants_mail() && !offered {
            assert_eq!(s.event(), Some(Event::Open));
            s.offer(mail(&["a@x"], "x\r\n")).unwrap();
            offered = true;
        }
        wire(&mut s);
    }
    (s, offered)
}

#[test]
fn s5_every_fault_at_every_stage_has_its_outcome() {
    let faults: [(&str, Option<&str>); 7] = [
        ("the line is lost", None),
        ("421", Some("421 4.3.2 going down\r\n")),
        ("garbage", Some("\x00\x01hello\r\n")),
        ("codes differ", Some("250-a\r\n550 b\r\n")),
        ("wrong code", Some("399 what\r\n")),
        ("4xx", Some("451 4.0.0 later\r\n")),
        ("5xx", Some("550 5.0.0 never\r\n")),
    ];
    for (number, (stage, _)) in STAGES.iter().enumerate() {
        for (fault, bytes) in faults {
            let (mut s, offered) = play(number);
            match bytes {
                None => s.lost("connection reset"),
                Some(bytes) => s.input(bytes.as_bytes()),
            }
            let context = format!("{fault} at {stage}");
            // An envelope is pipelined: its end is the answer to DATA.
            let refusal = fault == "4xx" || fault == "5xx";
            if refusal && (*stage == "mail" || *stage == "rcpt") {
                let rest = if *stage == "mail" { "503 no\r\n503 no\r\n" } else { "503 no\r\n" };
                s.input(rest.as_bytes());
            }
            if refusal && number >= 2 {
                let word = if fault == "4xx" { "deferred" } else { "refused" };
                assert_eq!(words(&mut s), [word], "{context}");
                assert!(s.is_idle(), "{context}");
                continue;
            }
            if *stage == "ehlo" && fault == "5xx" {
                assert_eq!(wire(&mut s), "HELO h\r\n");
                continue;
            }
            assert_eq!(offered, number >= 2, "{context}");
            if offered {
                let doubtful = *stage == "dot" && fault != "421";
                let word = if doubtful { "in doubt" } else { "not sent" };
                assert_eq!(words(&mut s), [word], "{context}");
            }
            assert!(!lost(&mut s).is_empty(), "{context}");
            assert!(s.is_over() && s.event().is_none(), "{context}");
            s.lost("again");
            assert_eq!(s.event(), None, "{context}: told twice");
        }
    }
}

#[test]
fn s5_a_lost_line_after_250_is_delivered() {
    let (mut s, _) = play(5);
    s.input(b"250 taken\r\n");
    s.lost("connection reset");
    assert_eq!(words(&mut s), ["sent"]);
    assert_eq!(lost(&mut s), "connection reset while waiting for a message");
}

#[test]
fn s5_half_a_reply_after_the_dot_is_in_doubt() {
    for half in ["2", "250 taken", "250-taken\r\n"] {
        let (mut s, _) = play(5);
        s.input(half.as_bytes());
        s.lost("end of file");
        assert_eq!(words(&mut s), ["in doubt"], "{half:?}");
    }
}

#[test]
fn s5_nothing_is_in_doubt_before_the_dot_is_written() {
    let mut s = open(FULL);
    s.offer(mail(&["a@x"], "body\r\n")).unwrap();
    wire(&mut s);
    s.input(b"250 ok\r\n250 ok\r\n354 go\r\n");
    let size = s.output().len();
    s.wrote(size - 1);
    assert_eq!(s.stage(), Stage::Body);
    s.lost("broken pipe");
    assert_eq!(words(&mut s), ["not sent"]);
}

#[test]
fn s5_an_early_refusal_of_the_body_counts_and_ends_the_session() {
    for (answer, word) in
        [("552 too big\r\n", "refused"), ("452 full\r\n", "deferred"), ("250 ok\r\n", "not sent")]
    {
        let mut s = open(FULL);
        s.offer(mail(&["a@x"], "body\r\n")).unwrap();
        wire(&mut s);
        s.input(b"250 ok\r\n250 ok\r\n354 go\r\n");
        s.wrote(2);
        s.input(answer.as_bytes());
        assert_eq!(words(&mut s), [word]);
        lost(&mut s);
    }
}

#[test]
fn r1_a_login_that_is_asked_for_is_the_relays_matter() {
    let (mut s, _) = play(2);
    s.input(b"530 5.7.0 Authentication required\r\n");
    assert_eq!(words(&mut s), ["not sent"]);
    assert_eq!(lost(&mut s), "530 5.7.0 Authentication required");
}

#[test]
fn s5_only_one_of_two_is_in_doubt() {
    let mut s = open(FULL);
    s.offer(mail(&["a@x"], "one\r\n")).unwrap();
    s.offer(mail(&["b@x"], "two\r\n")).unwrap();
    wire(&mut s);
    s.input(b"250 ok\r\n250 ok\r\n354 go\r\n");
    wire(&mut s);
    s.lost("connection reset");
    assert_eq!((words(&mut s), words(&mut s)), (vec!["in doubt"], vec!["not sent"]));
}

#[derive(Default)]
struct Inbox(Vec<(Vec<String>, Vec<u8>)>);

impl Backend for Inbox {
    fn sender(&mut self, _: &str) -> Result<(), Answer> {
        Ok(())
    }

    fn recipient(&mut self, recipient: &str) -> Result<(), Answer> {
        match recipient.starts_with('n') {
            true => Err(Answer::new(550, "5.1.1", "no")),
            false => Ok(()),
        }
    }

    fn message(&mut self, envelope: &Envelope, body: Vec<u8>) -> Answer {
        self.0.push((envelope.recipients.clone(), body));
        Answer::new(250, "2.0.0", "Ok")
    }
}

proptest! {
    /// Client and server, with every byte stream cut anywhere: what goes in comes out once.
    #[test]
    fn our_two_sides_understand_each_other(
        mails in prop::collection::vec(
            (prop::collection::vec("[yn]{1,3}", 1..4), "([.a\u{e4}]{0,3}\r\n){0,6}"), 1..6),
        cuts in prop::collection::vec(1_usize..40, 1..30),
        pipelining in any::<bool>(),
    ) {
        let mut server = Server::new(server::Config {
            hostname: "r".to_owned(),
            banner: "r ESMTP".to_owned(),
            message_size_limit: 0,
            line_length_limit: 500,
            recipient_limit: 100,
            error_limit: 1000,
            junk_limit: 100,
            tokens: false,
            forbidden: Vec::new(),
        });
        let mut inbox = Inbox::default();
        let mut client =
            Session::new(Config { relay: "r".to_owned(), helo: "h".to_owned(), pipelining });
        let mut todo: VecDeque<_> = mails.iter().cloned().collect();
        let mut cuts = cuts.iter().cycle();
        let mut done = Vec::new();
        while done.len() < mails.len() {
            while client.wants_mail() && let Some((to, body)) = todo.pop_front() {
                let to: Vec<_> = to.iter().map(String::as_str).collect();
                client.offer(mail(&to, &body)).unwrap();
            }
            let n = (*cuts.next().unwrap()).min(client.output().len());
            let bytes = client.output()[..n].to_vec();
            client.wrote(n);
            server.input(&bytes, &mut inbox);
            let m = (*cuts.next().unwrap()).min(server.output().len());
            let bytes = server.output()[..m].to_vec();
            server.wrote(m);
            client.input(&bytes);
            prop_assert!(n + m > 0 || client.wants_mail(), "stuck in {}", client.stage());
            while let Some(event) = client.event() {
                match event {
                    Event::Open => {}
                    Event::Done(outcomes) => done.push(outcomes),
                    Event::Lost { why, .. } => prop_assert!(false, "{}", why),
                }
            }
        }
        let mut taken = inbox.0.iter();
        for ((to, body), outcomes) in mails.iter().zip(&done) {
            let good: Vec<_> = to.iter().filter(|r| r.starts_with('y')).cloned().collect();
            for (recipient, (_, outcome)) in to.iter().zip(outcomes) {
                let word = if recipient.starts_with('y') { "sent" } else { "refused" };
                prop_assert_eq!(outcome.word(), word);
            }
            if !good.is_empty() {
                let (recipients, bytes) = taken.next().unwrap();
                prop_assert_eq!(recipients, &good);
                prop_assert_eq!(bytes.as_slice(), body.as_bytes());
            }
        }
        prop_assert!(taken.next().is_none());
    }
}
