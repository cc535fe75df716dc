//! session - the client's side of SMTP, without a socket or a clock
//!
//! Bytes that were read go in ([`Session::input`]), bytes to write come out ([`Session::output`]),
//! and what became of messages and session comes as [`Event`]s. Each message offered gets exactly one
//! [`Event::Done`], in the order of the offers; [`Event::Lost`] is the last event of a session that
//! did not end by [`Session::quit`].
//!
//! Where the server announces PIPELINING, a second message may be offered while the first is under
//! way: body, dot and the next MAIL, RCPT, DATA then leave in one write, one round trip a message.
//! Only one message has its dot unanswered at any time, so only one can be in doubt.
//!
//! # Bugs
//! A message with 8-bit text goes as it is to a server without 8BITMIME.

use std::collections::VecDeque;

use super::capability::Capabilities;
use super::dot;
use super::reply::{Reply, ReplyReader};
use super::stage::{Expect, Phase};
use super::transaction::{Progress, Transaction, refusal};
use crate::outcome::Outcome;

pub use super::stage::{Config, Event, Stage, Unfit};
pub use super::transaction::Mail;

/// The state machine.
#[derive(Debug)]
pub struct Session {
    config: Config,
    phase: Phase,
    capabilities: Capabilities,
    reader: ReplyReader,
    replies: u64,
    output: Vec<u8>,
    written: u64,
    /// Of these, what the server has not acknowledged to have, as far as is known.
    on_the_way: u64,
    /// The end came in the middle of a message.
    within: bool,
    /// Where in the stream of written bytes the unanswered dot ends.
    dot_end: u64,
    /// Commands not yet written, because each must wait for the answer to the one before.
    plan: VecDeque<Expect>,
    /// Answers to come, in order. Those to an envelope belong to the oldest transaction: the answer
    /// to the dot of the one before it comes first.
    expect: VecDeque<Expect>,
    transactions: VecDeque<Transaction>,
    needs_rset: bool,
    events: VecDeque<Event>,
}

impl Session {
    /// A session on a fresh connection.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            phase: Phase::Opening,
            capabilities: Capabilities::default(),
            reader: ReplyReader::default(),
            replies: 0,
            output: Vec::new(),
            written: 0,
            on_the_way: 0,
            within: false,
            dot_end: 0,
            plan: VecDeque::new(),
            expect: VecDeque::from([Expect::Greeting]),
            transactions: VecDeque::new(),
            needs_rset: false,
            events: VecDeque::new(),
        }
    }

    /// What happened since the last call, oldest first.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What the server announced.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// What the session waits for.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.expect.front().map_or(Stage::Idle, |expect| expect.stage(self.dot_is_written()))
    }

    /// How many whole replies came; with [`Session::stage`] it says when a deadline starts anew.
    #[must_use]
    pub const fn replies(&self) -> u64 {
        self.replies
    }

    /// Whether another message may be offered now.
    #[must_use]
    pub fn wants_mail(&self) -> bool {
        let window = if self.is_pipelined() { 2 } else { 1 };
        self.phase == Phase::Open && self.transactions.len() < window
    }

    /// Whether the session is open and has nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Open && self.transactions.is_empty() && self.expect.is_empty()
    }

    /// Whether nothing can happen any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Gives a message to the session; only when it [wants one](Session::wants_mail).
    ///
    /// # Errors
    /// The server cannot take this message; the session has not changed.
    pub fn offer(&mut self, mail: Mail) -> Result<(), Unfit> {
        mail.fits(&self.capabilities)?;
        self.transactions.push_back(Transaction::new(mail));
        self.advance();
        Ok(())
    }

    /// Bytes to write now.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// This many bytes of the output were written.
    pub fn wrote(&mut self, count: usize) {
        self.output.drain(..count);
        self.written += count as u64;
    }

    /// Takes bytes that were read.
    pub fn input(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.phase != Phase::Over {
            match self.reader.feed(bytes) {
                Ok((taken, reply)) => {
                    bytes = &bytes[taken..];
                    if let Some(reply) = reply {
                        self.replies += 1;
                        self.answer(reply);
                    }
                }
                Err(bad) => self.die(bad.to_string()),
            }
        }
    }

    /// So many of the bytes that were written are known not to have reached the server; to be told
    /// before [`Session::lost`].
    pub const fn not_arrived(&mut self, count: u64) {
        self.on_the_way = count;
    }

    /// The connection is gone, or a deadline has passed.
    pub fn lost(&mut self, why: &str) {
        match self.phase {
            Phase::Over => {}
            // Nothing depends on the answer to QUIT.
            Phase::Quitting => self.phase = Phase::Over,
            Phase::Opening | Phase::Open => {
                let stage = self.stage();
                self.die(format!("{why} while waiting for {stage}"));
            }
        }
    }

    /// Ends the session; only when it is [idle](Session::is_idle). The answer need not be awaited.
    pub fn quit(&mut self) {
        if self.phase == Phase::Open && self.transactions.is_empty() {
            self.phase = Phase::Quitting;
            self.send(Expect::Quit);
        }
    }

    const fn is_pipelined(&self) -> bool {
        self.config.pipelining && self.capabilities.pipelining
    }

    const fn dot_is_written(&self) -> bool {
        self.written >= self.dot_end
    }

    /// Whether the server can have the dot.
    const fn dot_has_arrived(&self) -> bool {
        self.written.saturating_sub(self.on_the_way) >= self.dot_end
    }

    fn answer(&mut self, reply: Reply) {
        let Some(expect) = self.expect.pop_front() else {
            if reply.code() == 421 {
                return self.end(&reply);
            }
            return self.die(format!("unasked reply: {reply}"));
        };
        if reply.code() == 421 && expect != Expect::Quit {
            if expect == Expect::Dot {
                self.within = true;
                self.settle(&Outcome::NotSent { why: reply.to_string() });
            }
            return self.end(&reply);
        }
        match expect {
            Expect::Greeting if reply.is_positive() => self.send(Expect::Ehlo),
            Expect::Ehlo if reply.is_positive() => {
                self.capabilities = Capabilities::of(&reply);
                self.open();
            }
            Expect::Ehlo if reply.is_permanent() => self.send(Expect::Helo),
            Expect::Helo if reply.is_positive() => self.open(),
            Expect::Greeting | Expect::Ehlo | Expect::Helo => self.end(&reply),
            Expect::Rset if !reply.is_positive() => self.die(format!("RSET: {reply}")),
            Expect::Mail | Expect::Rcpt(_) | Expect::Data if reply.wants_login() => {
                self.end(&reply);
            }
            Expect::Mail | Expect::Rcpt(_) if reply.code() / 100 == 3 => self.wrong(&reply),
            Expect::Mail => self.mail_answer(reply),
            Expect::Rcpt(position) => self.rcpt_answer(position, reply),
            Expect::Data => self.data_answer(&reply),
            Expect::Dot => self.dot_answer(&reply),
            Expect::Rset | Expect::LoneDot => {}
            Expect::Quit => self.phase = Phase::Over,
        }
        self.advance();
    }

    fn open(&mut self) {
        self.phase = Phase::Open;
        self.events.push_back(Event::Open);
    }

    fn mail_answer(&mut self, reply: Reply) {
        if reply.is_positive() {
            return;
        }
        if let Some(front) = self.transactions.front_mut() {
            front.refuse_sender(reply);
        }
        self.give_up_envelope();
    }

    fn rcpt_answer(&mut self, position: usize, reply: Reply) {
        if let Some(front) = self.transactions.front_mut() {
            front.recipient(position, reply);
            if self.plan.front() == Some(&Expect::Data) && !front.any_accepted() {
                self.give_up_envelope();
            }
        }
    }

    /// In lock step, leaves out the rest of an envelope that came to nothing. With pipelining it is
    /// already under way, and the answer to DATA ends the matter.
    fn give_up_envelope(&mut self) {
        if !self.plan.is_empty() {
            self.plan.clear();
            self.needs_rset = true;
            self.settle(&Outcome::NotSent { why: "no recipient was accepted".to_owned() });
        }
    }

    fn data_answer(&mut self, reply: &Reply) {
        let accepted = self.transactions.front().is_some_and(Transaction::any_accepted);
        match reply.code() {
            354 if accepted => self.send_body(),
            // The server waits for a message that has no recipient: give it none.
            354 => {
                self.output.extend_from_slice(b".\r\n");
                self.expect.push_back(Expect::LoneDot);
                self.settle(&Outcome::NotSent { why: "no recipient was accepted".to_owned() });
            }
            400..=599 => {
                self.needs_rset = true;
                let outcome = refusal(&self.config.relay, reply);
                self.settle(&outcome);
            }
            _ => self.wrong(reply),
        }
    }

    fn send_body(&mut self) {
        if let Some(front) = self.transactions.front_mut() {
            front.progress = Progress::Body;
            dot::stuff(&front.mail.body, &mut self.output);
            self.dot_end = self.written + self.output.len() as u64;
            self.expect.push_back(Expect::Dot);
        }
    }

    fn dot_answer(&mut self, reply: &Reply) {
        let relay = self.config.relay.clone();
        let early = !self.dot_is_written();
        match reply.code() {
            200..=299 if !early => {
                self.settle(&Outcome::Delivered { relay, reply: reply.to_string() });
            }
            400..=599 => {
                self.settle(&refusal(&relay, reply));
                if early {
                    // What is left of the body would be read as commands.
                    self.die(format!("{reply} before the end of data"));
                }
            }
            _ => self.wrong(reply),
        }
    }

    /// A reply that is none to the command before it.
    fn wrong(&mut self, reply: &Reply) {
        self.die(format!("wrong reply: {reply}"));
    }

    /// The oldest transaction is over.
    fn settle(&mut self, rest: &Outcome) {
        if let Some(front) = self.transactions.pop_front() {
            let outcomes = front.finish(&self.config.relay, rest);
            self.events.push_back(Event::Done(outcomes));
        }
    }

    /// The server has said that it does not go on.
    fn end(&mut self, reply: &Reply) {
        self.close(reply.to_string(), true);
    }

    fn die(&mut self, why: String) {
        self.close(why, false);
    }

    fn close(&mut self, why: String, told: bool) {
        if self.phase == Phase::Quitting {
            self.phase = Phase::Over;
            return;
        }
        let in_doubt = Outcome::InDoubt { relay: self.config.relay.clone(), why: why.clone() };
        let not_sent = Outcome::NotSent { why: why.clone() };
        self.within |= self.transactions.front().is_some_and(|t| t.progress != Progress::Waiting);
        while let Some(front) = self.transactions.front() {
            let doubtful = front.progress == Progress::Body && self.dot_has_arrived();
            self.settle(if doubtful { &in_doubt } else { &not_sent });
        }
        self.phase = Phase::Over;
        self.output.clear();
        self.plan.clear();
        self.expect.clear();
        let within = self.within;
        self.events.push_back(Event::Lost { why, told, within });
    }

    /// Sends what may be sent now; called at the end of every change.
    fn advance(&mut self) {
        if self.phase != Phase::Open {
            return;
        }
        self.plan_next();
        while self.is_pipelined() || self.expect.is_empty() {
            match self.plan.pop_front() {
                Some(command) => self.send(command),
                None => break,
            }
        }
    }

    /// Plans the envelope of the next message: of the oldest, or, behind a body, of the second.
    fn plan_next(&mut self) {
        if !self.plan.is_empty() {
            return;
        }
        let front_sent = self.transactions.front().is_some_and(|t| t.progress == Progress::Body);
        let next = usize::from(front_sent && self.is_pipelined());
        let Some(transaction) = self.transactions.get_mut(next) else {
            return;
        };
        if transaction.progress != Progress::Waiting {
            return;
        }
        transaction.progress = Progress::Envelope;
        if std::mem::take(&mut self.needs_rset) {
            self.plan.push_back(Expect::Rset);
        }
        self.plan.push_back(Expect::Mail);
        let recipients = 0..transaction.mail.recipients.len();
        self.plan.extend(recipients.map(Expect::Rcpt));
        self.plan.push_back(Expect::Data);
    }

    fn send(&mut self, command: Expect) {
        let line = match command {
            Expect::Ehlo => format!("EHLO {}", self.config.helo),
            Expect::Helo => format!("HELO {}", self.config.helo),
            Expect::Rset => "RSET".to_owned(),
            Expect::Mail => match self.envelope() {
                Some(mail) => mail.mail_command(&self.capabilities),
                None => return,
            },
            Expect::Rcpt(position) => match self.envelope() {
                Some(mail) => mail.rcpt_command(position),
                None => return,
            },
            Expect::Data => "DATA".to_owned(),
            Expect::Quit => "QUIT".to_owned(),
            Expect::Greeting | Expect::Dot | Expect::LoneDot => return,
        };
        self.output.extend_from_slice(line.as_bytes());
        self.output.extend_from_slice(b"\r\n");
        self.expect.push_back(command);
    }

    /// The transaction whose envelope is being sent.
    fn envelope(&self) -> Option<&Mail> {
        let open = |t: &&Transaction| t.progress == Progress::Envelope;
        self.transactions.iter().find(open).map(|t| &t.mail)
    }
}

#[cfg(test)]
mod tests;
