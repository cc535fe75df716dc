//! The agent against a server that does what a script says, over loopback.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use delivery_agent::agent::Agent;
use delivery_agent::outcome::{Finding, Outcome, RelayNews};
use delivery_agent::relay::Relay;
use delivery_agent::smtp::stream::Timeouts;
use delivery_agent::wire::{self, Header, Lease, Progress};

/// A report, and what was told before it.
#[derive(Debug, Default)]
struct Report {
    lease: u64,
    outcomes: Vec<(usize, Outcome)>,
    relays: Vec<RelayNews>,
    slow: Vec<Progress>,
}

/// What goes wrong in one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// Instead of the answer at this stage, these bytes; then the line is closed or stays silent.
    Say(&'static str, &'static [u8], After),
    /// Every answer byte by byte.
    Drip,
    /// This answer at this stage, each time; all else as usual.
    Answer(&'static str, &'static str),
    /// The line is closed when this many bytes were said.
    CloseAt(usize),
    /// It says nothing more when this many bytes were said.
    MuteAt(usize),
    /// This answer to RCPT for this recipient.
    AnswerTo(&'static str, &'static str),
    /// This answer to RCPT, and then the line is closed.
    AnswerAndClose(&'static str),
    /// So many recipients at a time.
    AtMost(usize),
    /// The answer at this stage comes so much later.
    Late(&'static str, Duration),
    /// It reads nothing after its answer to DATA, and has little room.
    Deaf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Close,
    Stall,
}

/// A server: one fault for each connection, none when they run out.
struct Peer {
    listener: TcpListener,
    faults: Vec<Fault>,
    ehlo: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Got {
    connection: usize,
    recipients: Vec<String>,
    body: String,
}

const EHLO: &str = "250-peer\r\n250-PIPELINING\r\n250 8BITMIME\r\n";

impl Peer {
    fn new(faults: &[Fault]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        if faults.contains(&Fault::Deaf) {
            nix::sys::socket::setsockopt(&listener, nix::sys::socket::sockopt::RcvBuf, &4096)
                .unwrap();
        }
        Self { listener, faults: faults.to_vec(), ehlo: EHLO }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    fn run(&self, stop: &AtomicBool, got: &mpsc::Sender<Got>) {
        for (connection, stream) in self.listener.incoming().enumerate() {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            let fault = self.faults.get(connection).copied().unwrap_or(Fault::Nothing);
            let _ =
                Conversation { stream: stream.unwrap(), fault, said: 0 }.run(self.ehlo, |r, b| {
                    got.send(Got { connection, recipients: r, body: b }).unwrap();
                });
        }
    }
}

struct Conversation {
    stream: TcpStream,
    fault: Fault,
    said: usize,
}

/// The conversation is over.
struct Over;

impl Conversation {
    /// Until the client gives up.
    fn wait_for_the_end(&self) {
        let mut line = String::new();
        while BufReader::new(&self.stream).read_line(&mut line).is_ok_and(|n| n > 0) {}
    }

    fn say(&mut self, stage: &str, answer: &str) -> Result<bool, Over> {
        let mut bytes = answer.as_bytes();
        match self.fault {
            Fault::Say(at, text, after) if at == stage => {
                self.stream.write_all(text).map_err(|_| Over)?;
                if after == After::Stall {
                    self.wait_for_the_end();
                }
                return Err(Over);
            }
            Fault::Answer(at, text) if at == stage => bytes = text.as_bytes(),
            Fault::CloseAt(limit) if self.said + bytes.len() > limit => {
                let _ = self.stream.write_all(&bytes[..limit - self.said]);
                return Err(Over);
            }
            Fault::MuteAt(limit) if self.said + bytes.len() > limit => {
                self.wait_for_the_end();
                return Err(Over);
            }
            Fault::Drip => {
                for byte in bytes {
                    self.stream.write_all(&[*byte]).map_err(|_| Over)?;
                }
                return Ok(bytes[0] < b'4');
            }
            Fault::Late(at, by) if at == stage => thread::sleep(by),
            _ => {}
        }
        self.said += bytes.len();
        self.stream.write_all(bytes).map_err(|_| Over)?;
        Ok(bytes[0] < b'4')
    }

    fn run(mut self, ehlo: &str, mut got: impl FnMut(Vec<String>, String)) -> Result<(), Over> {
        self.stream.set_nodelay(true).unwrap();
        let mut lines = BufReader::new(self.stream.try_clone().unwrap()).lines();
        self.say("greeting", "220 peer\r\n")?;
        let mut recipients = Vec::new();
        while let Some(Ok(line)) = lines.next() {
            let word = line[..line.len().min(4)].to_ascii_uppercase();
            match word.as_str() {
                "EHLO" => drop(self.say("ehlo", ehlo)?),
                "MAIL" => {
                    recipients.clear();
                    self.say("mail", "250 ok\r\n")?;
                }
                "RCPT" => {
                    let refused = line.contains("<bad");
                    let answer = match self.fault {
                        _ if refused => "550 5.1.1 who\r\n",
                        Fault::AnswerTo(to, text) if line.contains(to) => text,
                        Fault::AnswerAndClose(text) => text,
                        Fault::AtMost(most) if recipients.len() == most => "452 4.5.3 many\r\n",
                        _ => "250 ok\r\n",
                    };
                    if self.say("rcpt", answer)? {
                        recipients.push(line["RCPT TO:<".len()..line.len() - 1].to_owned());
                    }
                }
                "DATA" => {
                    if matches!(self.fault, Fault::AnswerAndClose(_)) {
                        self.say("data", "554 5.5.1 nobody\r\n")?;
                        return Err(Over);
                    }
                    if !self.say("data", "354 go\r\n")? {
                        continue;
                    }
                    if self.fault == Fault::Deaf {
                        // Long after the client has given up.
                        thread::sleep(4 * SHORT);
                        return Err(Over);
                    }
                    let body: Vec<_> = lines
                        .by_ref()
                        .map(Result::unwrap_or_default)
                        .take_while(|l| l != ".")
                        .collect();
                    // A message counts when the answer is on its way.
                    let taken = (recipients.clone(), body.join("\n"));
                    if self.say("dot", "250 2.0.0 taken\r\n")? && !taken.0.is_empty() {
                        got(taken.0, taken.1);
                    }
                }
                "QUIT" => return Ok(()),
                _ => drop(self.say("other", "250 ok\r\n")?),
            }
        }
        Ok(())
    }
}

fn relay(name: &str, address: Option<SocketAddr>) -> Relay {
    Relay {
        name: name.to_owned(),
        host: name.to_owned(),
        port: 25,
        addresses: address.into_iter().collect(),
        problem: "host not found".to_owned(),
    }
}

/// Hands leases to an agent with these relays and gives its reports, and what the peers got.
fn deliver(peers: &[Peer], stall: Duration, leases: Vec<Lease>) -> (Vec<Report>, Vec<Vec<Got>>) {
    let names = ["a", "b", "c"];
    let relays = peers.iter().zip(names).map(|(p, n)| relay(n, Some(p.address()))).collect();
    deliver_to(relays, peers, stall, leases)
}

fn deliver_to(
    relays: Vec<Relay>,
    peers: &[Peer],
    stall: Duration,
    leases: Vec<Lease>,
) -> (Vec<Report>, Vec<Vec<Got>>) {
    run(relays, peers, stall, vec![leases])
}

/// The same with each lease after the report on the one before.
fn deliver_in_turn(
    relays: Vec<Relay>,
    peers: &[Peer],
    leases: Vec<Lease>,
) -> (Vec<Report>, Vec<Vec<Got>>) {
    run(relays, peers, PATIENT, leases.into_iter().map(|lease| vec![lease]).collect())
}

fn agent(relays: Vec<Relay>, stall: Duration) -> Agent {
    Agent {
        relays,
        helo: "agent.example".to_owned(),
        timeouts: Timeouts {
            connect: stall,
            helo: stall,
            mail: stall,
            rcpt: stall,
            data_init: stall,
            data_xfer: stall,
            data_done: stall,
            rset: stall,
        },
        session_limit: Duration::from_secs(300),
        qmgr: None,
        stall: STALL,
    }
}

fn run(
    relays: Vec<Relay>,
    peers: &[Peer],
    stall: Duration,
    rounds: Vec<Vec<Lease>>,
) -> (Vec<Report>, Vec<Vec<Got>>) {
    let agent = agent(relays, stall);
    let stop = AtomicBool::new(false);
    let (mut qmgr, end) = UnixStream::pair().unwrap();
    end.set_nonblocking(true).unwrap();
    // A test that hangs fails instead.
    qmgr.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    thread::scope(|scope| {
        let mut inboxes: Vec<Receiver<Got>> = Vec::new();
        for peer in peers {
            let (tx, rx) = mpsc::channel();
            inboxes.push(rx);
            scope.spawn(|| {
                let tx = tx;
                peer.run(&stop, &tx);
            });
        }
        let running = scope.spawn(move || agent.serve(end));
        let (mut reports, mut next) = (Vec::new(), Report::default());
        for leases in rounds {
            let count = reports.len() + leases.len();
            for lease in leases {
                wire::send(&mut qmgr, &Header::Lease(lease)).unwrap();
            }
            while reports.len() < count {
                match wire::receive(&mut qmgr) {
                    Ok(Some(Header::News(news))) => next.relays.push(news),
                    Ok(Some(Header::Progress(progress))) => next.slow.push(progress),
                    Ok(Some(Header::Report(wire::Report { lease, outcomes }))) => {
                        wire::send(&mut qmgr, &Header::Noted(vec![lease])).unwrap();
                        reports.push(Report { lease, outcomes, ..std::mem::take(&mut next) });
                    }
                    other => {
                        stop.store(true, Ordering::SeqCst);
                        peers.iter().for_each(|p| drop(TcpStream::connect(p.address())));
                        panic!("no report but {other:?} after {reports:?}");
                    }
                }
            }
        }
        drop(qmgr);
        running.join().unwrap();
        stop.store(true, Ordering::SeqCst);
        peers.iter().for_each(|p| drop(TcpStream::connect(p.address())));
        let got = inboxes.into_iter().map(|rx| rx.iter().collect()).collect();
        (reports, got)
    })
}

fn lease(number: u64, recipients: &[&str]) -> Lease {
    Lease {
        lease: number,
        id: format!("ID{number}"),
        sender: "s@x".to_owned(),
        recipients: recipients.iter().map(|r| (*r).to_owned()).collect(),
        relays: ["a", "b", "c"].map(str::to_owned).to_vec(),
        except: Vec::new(),
        body: format!("Subject: {number}\r\n\r\n.text\r\n").into_bytes(),
    }
}

fn fails(news: &RelayNews) -> bool {
    !matches!(news.finding, Finding::Works | Finding::Answers)
}

fn words(report: &Report) -> Vec<String> {
    let mut outcomes = report.outcomes.clone();
    outcomes.sort_by_key(|(n, _)| *n);
    let word = |o: &Outcome| format!("{} {}", o.relay().unwrap_or("-"), o.word());
    outcomes.iter().map(|(_, o)| word(o)).collect()
}

const PATIENT: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(300);
const STALL: Duration = Duration::from_millis(100);

#[test]
fn s2_many_messages_in_one_session() {
    let peers = [Peer::new(&[])];
    let leases = (0..200).map(|n| lease(n, &["x@y"])).collect();
    let (reports, got) = deliver(&peers, PATIENT, leases);
    assert!(reports.iter().all(|r| words(r) == ["a sent"]));
    assert_eq!(got[0].len(), 200);
    assert!(got[0].iter().all(|g| g.connection == 0));
    assert_eq!(got[0][7].body, "Subject: 7\n\n..text");
    let news: Vec<_> = reports.iter().flat_map(|r| &r.relays).collect();
    assert_eq!(news.len(), 1, "a relay that works is told once");
    assert_eq!(news[0].finding, Finding::Works);
}

#[test]
fn r6_the_second_of_three_recipients_is_refused() {
    let peers = [Peer::new(&[])];
    let (reports, got) = deliver(&peers, PATIENT, vec![lease(1, &["x@y", "bad@y", "z@y"])]);
    assert_eq!(words(&reports[0]), ["a sent", "a refused", "a sent"]);
    assert_eq!(got[0][0].recipients, ["x@y", "z@y"]);
}

/// Each fault before the dot moves the batch to the second relay, and nothing is lost or repeated.
#[test]
fn s1_a_failure_at_any_stage_moves_the_rest_of_the_batch() {
    let stages = ["greeting", "ehlo", "mail", "rcpt", "data"];
    let faults: [(&'static [u8], After); 6] = [
        (b"", After::Close),
        (b"421 4.3.2 going down\r\n", After::Close),
        (b"\x00\xff garbage\r\n", After::Stall),
        (b"250-a\r\n251 b\r\n", After::Stall),
        (b"2", After::Close),
        (b"399 was\xdf\r\n", After::Stall),
    ];
    for stage in stages {
        for (text, after) in faults {
            let peers = [Peer::new(&[Fault::Say(stage, text, after); 9]), Peer::new(&[])];
            let leases = (0..3).map(|n| lease(n, &["x@y", "z@y"])).collect();
            let (reports, got) = deliver(&peers, PATIENT, leases);
            let context = format!("{} at {stage}", text.escape_ascii());
            for report in &reports {
                assert_eq!(words(report), ["b sent", "b sent"], "{context}");
            }
            assert_eq!((got[0].len(), got[1].len()), (0, 3), "{context}");
            let news: Vec<_> = reports.iter().flat_map(|r| &r.relays).collect();
            assert!(news.iter().any(|n| n.relay == "a" && fails(n) && !n.reply.is_empty()));
            assert!(news.iter().any(|n| n.relay == "b" && !fails(n)), "{context}");
        }
    }
}

#[test]
fn s6_a_stall_at_any_stage_ends_at_its_deadline() {
    for (stage, waited) in [
        ("greeting", "the greeting"),
        ("ehlo", "the answer to EHLO"),
        ("mail", "the answer to MAIL"),
        ("rcpt", "the answer to RCPT"),
        ("data", "the answer to DATA"),
    ] {
        let peers = [Peer::new(&[Fault::Say(stage, b"25", After::Stall)]), Peer::new(&[])];
        let (reports, _) = deliver(&peers, SHORT, vec![lease(1, &["x@y"])]);
        assert_eq!(words(&reports[0]), ["b sent"], "{stage}");
        let down = reports[0].relays.iter().find(|n| fails(n)).unwrap();
        assert_eq!(down.reply, format!("timed out while waiting for {waited}"));
    }
}

/// A message waited for the whole deadline, five minutes at RCPT, while another relay worked.
#[test]
fn s1_a_message_does_not_wait_for_a_mute_relay_while_another_works() {
    for stage in ["greeting", "ehlo", "mail", "rcpt", "data"] {
        let peers = [Peer::new(&[Fault::Say(stage, b"25", After::Stall)]), Peer::new(&[])];
        let (reports, _) = deliver(&peers, PATIENT, vec![lease(1, &["x@y"])]);
        assert_eq!(words(&reports[0]), ["b sent"], "{stage}");
        assert!(reports[0].relays.iter().any(|n| n.relay == "a" && fails(n)), "{stage}");
        assert!(reports[0].slow.is_empty(), "{stage}");
    }
}

/// A relay that has worked and is mute then was asked a second time, for as long.
#[test]
fn s1_a_relay_that_has_worked_and_is_mute_counts_as_failing() {
    let each = "250 ok\r\n250 ok\r\n354 go\r\n250 2.0.0 taken\r\n".len();
    let first = "220 peer\r\n".len() + EHLO.len() + each;
    let peers = [Peer::new(&[Fault::MuteAt(first), Fault::MuteAt(0)]), Peer::new(&[])];
    let (reports, _) = deliver(&peers, PATIENT, vec![lease(1, &["x@y"]), lease(2, &["x@y"])]);
    assert_eq!(words(&reports[0]), ["a sent"]);
    assert_eq!(words(&reports[1]), ["b sent"]);
    let failed: Vec<_> = reports[1].relays.iter().filter(|n| fails(n)).collect();
    assert!(
        matches!(failed[..], [n] if n.reply == "timed out while waiting for the answer to MAIL")
    );
}

/// The answer to the end of the text is awaited: the message may have arrived.
#[test]
fn s6_a_late_answer_after_the_dot_is_waited_for_though_another_relay_works() {
    let peers = [Peer::new(&[Fault::Late("dot", SHORT)]), Peer::new(&[])];
    let (reports, got) = deliver(&peers, PATIENT, vec![lease(1, &["x@y"])]);
    assert_eq!((words(&reports[0]), got[1].len()), (vec!["a sent".to_owned()], 0));
}

#[test]
fn s5_a_fault_after_the_dot_is_in_doubt_and_no_other_relay_is_asked_for_it() {
    for (text, after) in [
        (b"".as_slice(), After::Close),
        (b"", After::Stall),
        (b"250 half", After::Close),
        (b"hello\r\n", After::Stall),
        (b"354 go on\r\n", After::Stall),
    ] {
        let peers = [Peer::new(&[Fault::Say("dot", text, after)]), Peer::new(&[])];
        let (reports, got) = deliver(&peers, SHORT, vec![lease(1, &["x@y", "bad@y"])]);
        let words = words(&reports[0]);
        assert_eq!(words, ["a in doubt", "a refused", "b refused"], "{}", text.escape_ascii());
        assert!(got[1].is_empty());
        let broke = (&reports[0].relays[0].relay[..], reports[0].relays[0].finding);
        assert_eq!(broke, ("a", Finding::Broke), "it counts against the relay");
    }
}

/// A relay that has taken one message and then closes over each was never counted as failing.
#[test]
fn s5_doubt_counts_against_a_relay_that_has_worked_before() {
    let each = "250 ok\r\n250 ok\r\n354 go\r\n250 2.0.0 taken\r\n".len();
    let first = "220 peer\r\n".len() + EHLO.len() + each;
    let peers = [Peer::new(&[Fault::CloseAt(first + 26)]), Peer::new(&[])];
    let (reports, _) = deliver(&peers, PATIENT, vec![lease(1, &["x@y"]), lease(2, &["x@y"])]);
    assert_eq!(words(&reports[1]), ["a in doubt"]);
    assert_eq!(reports[1].relays.last().unwrap().finding, Finding::Broke);
}

#[test]
fn s1_a_421_after_the_dot_is_no_doubt() {
    let fault = Fault::Say("dot", b"421 4.3.0 no\r\n", After::Close);
    let peers = [Peer::new(&[fault]), Peer::new(&[])];
    let (reports, got) = deliver(&peers, PATIENT, vec![lease(1, &["x@y"])]);
    assert_eq!(words(&reports[0]), ["b sent"]);
    assert_eq!(got[1].len(), 1);
}

/// A 4xx or 5xx of the first relay deferred or ended the message although the second was idle.
#[test]
fn s1_r5_what_one_relay_refuses_the_next_one_is_asked_about() {
    for (stage, answer, word) in REFUSALS {
        let peers = [Peer::new(&[Fault::Answer(stage, answer); 9]), Peer::new(&[])];
        let leases = (0..3).map(|n| lease(n, &["x@y"])).collect();
        let (reports, got) = deliver(&peers, PATIENT, leases);
        for report in &reports {
            assert_eq!(words(report), [word, "b sent"], "{answer} at {stage}");
        }
        assert_eq!(got[1].len(), 3, "{answer} at {stage}");
        assert!(reports.iter().flat_map(|r| &r.relays).all(|n| !fails(n)), "{answer} at {stage}");
    }
}

const REFUSALS: [(&str, &str, &str); 7] = [
    ("mail", "451 4.7.1 greylisted\r\n", "a deferred"),
    ("mail", "550 5.7.1 no\r\n", "a refused"),
    ("rcpt", "450 4.2.1 later\r\n", "a deferred"),
    ("rcpt", "552 5.2.2 many\r\n", "a deferred"),
    ("data", "554 5.5.0 no\r\n", "a refused"),
    ("dot", "451 4.3.0 later\r\n", "a deferred"),
    ("dot", "554-5.7.1 Das ist\r\n554 5.7.1 Spam\r\n", "a refused"),
];

#[test]
fn r3_refusals_belong_to_the_message_and_the_session_goes_on() {
    for (stage, answer, word) in REFUSALS {
        let peers = [Peer::new(&[Fault::Answer(stage, answer)])];
        let leases = (0..3).map(|n| lease(n, &["x@y"])).collect();
        let (reports, _) = deliver(&peers, PATIENT, leases);
        for report in &reports {
            assert_eq!(words(report), [word], "{answer} at {stage}");
        }
        assert!(reports.iter().flat_map(|r| &r.relays).all(|n| !fails(n)), "{answer} at {stage}");
    }
}

/// Each message that the first relay refused cost a session with either.
#[test]
fn s2_what_one_relay_refuses_costs_no_session_each() {
    // A second connection to the first relay would be served without a fault.
    let greylist = Fault::Answer("rcpt", "450 4.7.1 later\r\n");
    let peers = [Peer::new(&[greylist]), Peer::new(&[])];
    let leases = (0..20).map(|n| lease(n, &["x@y"])).collect();
    let (reports, got) = deliver(&peers, PATIENT, leases);
    assert!(reports.iter().all(|r| words(r) == ["a deferred", "b sent"]));
    assert_eq!((got[0].len(), got[1].len()), (0, 20));
    assert!(got[1].iter().all(|g| g.connection == 0));
}

/// A session that was left for another relay is closed by its relay meanwhile.
#[test]
fn s2_a_session_that_was_left_and_has_ended_is_opened_again() {
    let answer = Fault::AnswerAndClose("450 4.7.1 later\r\n");
    let peers = [Peer::new(&[answer; 30]), Peer::new(&[])];
    let rounds = (0..5).map(|n| lease(n, &["x@y"])).collect();
    let relays = vec![relay("a", Some(peers[0].address())), relay("b", Some(peers[1].address()))];
    let (reports, _) = deliver_in_turn(relays, &peers, rounds);
    for report in &reports {
        assert_eq!(words(report), ["a deferred", "b sent"]);
        assert!(report.relays.iter().all(|n| !fails(n)), "{report:?}");
    }
}

#[test]
fn r5_only_the_recipient_that_one_relay_refused_goes_to_the_next() {
    let peers = [Peer::new(&[Fault::AnswerTo("bad@y", "550 5.1.1 no\r\n")]), Peer::new(&[])];
    let mut lease = lease(1, &["x@y", "bad@y", "z@y"]);
    lease.except = vec![(2, "a".to_owned())];
    let (reports, got) = deliver(&peers, PATIENT, vec![lease]);
    assert_eq!(words(&reports[0]), ["a sent", "a refused", "b refused", "b sent"]);
    assert_eq!(got[0][0].recipients, ["x@y"]);
    assert_eq!(got[1][0].recipients, ["z@y"]);
}

/// A relay that takes a hundred recipients at a time got the rest half a minute and more later.
#[test]
fn s7_recipients_that_were_too_many_follow_in_the_same_session() {
    let peers = [Peer::new(&[Fault::AtMost(100)])];
    let to: Vec<_> = (0..1000).map(|n| format!("u{n}@y")).collect();
    let to: Vec<_> = to.iter().map(String::as_str).collect();
    let (reports, got) = deliver(&peers, PATIENT, vec![lease(1, &to)]);
    assert!(words(&reports[0]).iter().all(|w| w == "a sent"));
    assert!(got[0].iter().all(|g| g.connection == 0 && g.recipients.len() <= 100));
    let mut taken: Vec<_> = got[0].iter().flat_map(|g| g.recipients.clone()).collect();
    taken.sort();
    taken.dedup();
    assert_eq!((got[0].len(), taken.len()), (10, 1000));
}

#[test]
fn s17_qmgr_is_told_while_an_answer_is_awaited_for_long() {
    for (stage, what) in [
        ("greeting", "the greeting"),
        ("mail", "the answer to MAIL"),
        ("data", "the answer to DATA"),
        ("dot", "the answer to the end of data"),
    ] {
        let peers = [Peer::new(&[Fault::Late(stage, SHORT)])];
        let (reports, _) = deliver(&peers, PATIENT, vec![lease(7, &["x@y"])]);
        let slow: Vec<_> = reports[0]
            .slow
            .iter()
            .map(|p| (p.lease, &p.relay[..], p.waits_for.as_deref()))
            .collect();
        assert_eq!(slow[0], (7, "a", Some(what)), "{stage}");
        assert!(slow[1..].iter().all(|s| *s == (7, "a", None)), "{slow:?}");
        assert_eq!(words(&reports[0]), ["a sent"]);
    }
}

/// The answer to EHLO and 421 in one segment: 13,404 connections in five seconds.
#[test]
fn r1_a_session_that_ends_without_a_message_counts_against_the_relay() {
    let text = b"250-peer\r\n250 8BITMIME\r\n421 4.3.2 too busy\r\n";
    let peers = [Peer::new(&[Fault::Say("ehlo", text, After::Close); 50]), Peer::new(&[])];
    let leases = (0..3).map(|n| lease(n, &["x@y"])).collect();
    let (reports, _) = deliver(&peers, PATIENT, leases);
    assert!(reports.iter().all(|r| words(r) == ["b sent"]), "{reports:?}");
    let down = reports.iter().flat_map(|r| &r.relays).filter(|n| fails(n));
    assert_eq!(down.map(|n| n.finding).collect::<Vec<_>>(), [Finding::Fails]);
}

/// The body waits in the kernel's buffer when the line is given up: the relay cannot have the end of
/// it, so the next one gets the message at once.
#[test]
fn s5_a_dot_that_was_not_acknowledged_is_no_doubt() {
    let peers = [Peer::new(&[Fault::Deaf]), Peer::new(&[])];
    let mut big = lease(1, &["x@y"]);
    big.body = b"0123456789abcdef0123456789abcdef\r\n".repeat(20_000);
    let (reports, got) = deliver(&peers, SHORT, vec![big]);
    assert_eq!(words(&reports[0]), ["b sent"]);
    assert_eq!(got[1].len(), 1);
    assert_eq!(reports[0].relays[0].finding, Finding::Broke);
}

#[test]
fn r1_a_bare_connection_finds_out_about_a_relay() {
    let peers = [Peer::new(&[])];
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let relays = vec![relay("a", Some(peers[0].address())), relay("b", Some(closed))];
    for (name, finding) in [("a", Finding::Answers), ("b", Finding::Unreachable)] {
        let agent = agent(relays.clone(), PATIENT);
        let (mut qmgr, end) = UnixStream::pair().unwrap();
        end.set_nonblocking(true).unwrap();
        qmgr.set_read_timeout(Some(PATIENT)).unwrap();
        thread::scope(|scope| {
            scope.spawn(move || agent.serve(end));
            wire::send(&mut qmgr, &Header::Probe(name.to_owned())).unwrap();
            match wire::receive(&mut qmgr).unwrap() {
                Some(Header::News(news)) => {
                    assert_eq!((&news.relay[..], news.finding), (name, finding));
                }
                other => panic!("{other:?}"),
            }
            drop(qmgr);
        });
    }
}

#[test]
fn s2_a_session_that_has_worked_is_opened_again_at_the_same_relay() {
    // Four messages fit into the first connection, none whole into what follows of it.
    let greeting = "220 peer\r\n".len() + EHLO.len();
    let each = "250 ok\r\n250 ok\r\n354 go\r\n250 2.0.0 taken\r\n".len();
    let peers = [Peer::new(&[Fault::CloseAt(greeting + 4 * each + 3)]), Peer::new(&[])];
    let leases = (0..9).map(|n| lease(n, &["x@y"])).collect();
    let (reports, got) = deliver(&peers, PATIENT, leases);
    assert!(reports.iter().all(|r| words(r) == ["a sent"]), "{reports:?}");
    assert_eq!(got[0].iter().filter(|g| g.connection == 0).count(), 4);
    assert_eq!(got[0].len(), 9);
    assert!(got[1].is_empty());
    assert!(reports.iter().flat_map(|r| &r.relays).all(|n| !fails(n)));
}

/// Whatever byte of the server's the line ends at, each message is sent or in doubt once.
#[test]
fn s5_a_line_closed_at_any_byte_loses_nothing() {
    let all = "220 peer\r\n".len() + EHLO.len() + 2 * 41;
    for byte in 0..all {
        let peers = [Peer::new(&[Fault::CloseAt(byte)]), Peer::new(&[])];
        let leases = (0..2).map(|n| lease(n, &["x@y"])).collect();
        let (reports, got) = deliver(&peers, PATIENT, leases);
        let mut certain = 0;
        for report in &reports {
            let word = words(report).join(",");
            assert!(word.ends_with("sent") || word == "a in doubt", "{word} at byte {byte}");
            certain += usize::from(word.ends_with("sent"));
        }
        // What the peer has taken although its answer was cut is in doubt, and not sent again.
        assert!(got[0].len() + got[1].len() >= certain, "byte {byte}");
        assert!(got[0].len() + got[1].len() <= 2, "byte {byte}: a message was sent twice");
    }
}

#[test]
fn s4_answers_that_drip_are_put_together() {
    let peers = [Peer::new(&[Fault::Drip])];
    let leases = (0..5).map(|n| lease(n, &["x@y"])).collect();
    let (reports, got) = deliver(&peers, PATIENT, leases);
    assert!(reports.iter().all(|r| words(r) == ["a sent"]));
    assert_eq!(got[0].len(), 5);
}

#[test]
fn s7_without_pipelining_all_goes_one_by_one() {
    let mut peer = Peer::new(&[]);
    peer.ehlo = "250 peer\r\n";
    let leases = (0..5).map(|n| lease(n, &["bad@y", "x@y"])).collect();
    let (reports, got) = deliver(&[peer], PATIENT, leases);
    assert!(reports.iter().all(|r| words(r) == ["a refused", "a sent"]));
    assert_eq!(got[0].len(), 5);
}

#[test]
fn s7_a_relay_with_a_small_size_is_passed_over_for_that_message_only() {
    let mut small = Peer::new(&[]);
    small.ehlo = "250-peer\r\n250-PIPELINING\r\n250 SIZE 100\r\n";
    let peers = [small, Peer::new(&[])];
    let mut big = lease(1, &["x@y"]);
    big.body = b"x\r\n".repeat(100);
    let leases = vec![lease(0, &["x@y"]), big.clone(), lease(2, &["x@y"])];
    let (reports, _) = deliver(&peers, PATIENT, leases);
    let mut by_lease: Vec<_> = reports.iter().map(|r| (r.lease, words(r).join(","))).collect();
    by_lease.sort();
    let want = [(0, "a sent"), (1, "a refused,b sent"), (2, "a sent")];
    assert_eq!(by_lease, want.map(|(n, w)| (n, w.to_owned())));
    let (reports, _) = deliver(&peers[..1], PATIENT, vec![big]);
    assert_eq!(words(&reports[0]), ["a refused"], "no relay takes it");
}

#[test]
fn r1_when_every_relay_is_down_no_message_has_an_attempt() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let relays = vec![relay("a", Some(closed)), relay("b", None)];
    let leases = (0..3).map(|n| lease(n, &["x@y"])).collect();
    let (reports, _) = deliver_to(relays, &[], PATIENT, leases);
    for report in &reports {
        assert_eq!(words(report), ["- not sent"]);
        assert_eq!(report.outcomes[0].1.text(), "b: host not found");
    }
    let news: Vec<_> =
        reports.iter().flat_map(|r| &r.relays).map(|n| (&n.relay[..], n.finding)).collect();
    let unreachable = [("a", Finding::Unreachable), ("b", Finding::Unreachable)];
    assert_eq!(news, unreachable, "once each");
    assert!(reports[0].relays[0].reply.ends_with("Connection refused"));
}

#[test]
fn s1_a_relay_that_qmgr_says_to_avoid_is_not_asked() {
    let peers = [Peer::new(&[]), Peer::new(&[])];
    let mut avoiding = lease(1, &["x@y"]);
    avoiding.relays.remove(0);
    let (reports, got) = deliver(&peers, PATIENT, vec![avoiding]);
    assert_eq!(words(&reports[0]), ["b sent"]);
    assert!(got[0].is_empty());
}

#[test]
fn r6_a_session_that_ends_in_a_message_is_told_as_such() {
    for stage in ["mail", "rcpt", "data", "dot"] {
        for text in [b"421 4.3.2 later\r\n".as_slice(), b"530 5.7.0 log in\r\n"] {
            if stage == "dot" && text.starts_with(b"530") {
                continue;
            }
            let peers = [Peer::new(&[Fault::Say(stage, text, After::Close); 9])];
            let (reports, _) = deliver(&peers, PATIENT, vec![lease(1, &["x@y"])]);
            assert_eq!(words(&reports[0]), ["- not sent"], "{stage}");
            let told: Vec<_> = reports[0].relays.iter().map(|n| n.finding).collect();
            assert_eq!(told, [Finding::Broke], "{stage} {}", text.escape_ascii());
        }
    }
}

#[test]
fn r1_qmgr_decides_when_a_relay_that_failed_is_asked_again() {
    let peer = Peer::new(&[Fault::Say("greeting", b"421 4.3.2 busy\r\n", After::Close)]);
    let agent_relays = vec![relay("a", Some(peer.address()))];
    // The second lease comes after the report on the first, and does not say to avoid the relay.
    let peers = [peer];
    let (reports, got) =
        deliver_in_turn(agent_relays, &peers, vec![lease(1, &["x@y"]), lease(2, &["x@y"])]);
    assert_eq!(words(&reports[0]), ["- not sent"]);
    assert_eq!(words(&reports[1]), ["a sent"]);
    assert!(!fails(&reports[1].relays[0]));
    assert_eq!(got[0].len(), 1);
}
