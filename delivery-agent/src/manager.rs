//! manager - qmgr: clients, agents and timers around the queue and its store
//!
//! One loop. Submissions of a turn are committed together at its end and answered then (Q4); agents
//! are connected to as there is work, one message at a time each, which makes the master start as
//! many as are needed. Decisions are [`crate::queue`]'s, SQL is [`crate::store`]'s.

use std::collections::HashMap;
use std::time::Duration;

use mio::Token;
use worker_proto::abi::TRIGGER_WAKEUP;
use worker_proto::client::Client;
use worker_proto::clock::{self, Time};
use worker_proto::diagnostic::Fault;
use worker_proto::multi::{Multi, Reactor};
use worker_proto::params::CommonParams;
use worker_proto::server::{self, Configured, Limit};

use crate::listing::Lister;
use crate::params::SubmitParams;
use crate::queue::{Limits, Queue};
use crate::retry::MessageRule;
use crate::store::{Accepted, MessageNo, Store, StoreError};
use crate::wire::{Header, OfferReply, Submission};

mod agents;
mod dropped;
mod failures;
mod in_flight;
mod link;
mod listings;
mod local;
mod operator;
mod queue_clock;
mod setup;
mod storage;
mod survivors;

use agents::Agent;
use dropped::DropBox;
use failures::Notices;
use in_flight::InFlight;
use link::Link;
use local::Local;
use queue_clock::QueueClock;
use storage::Care;
use survivors::{Missing, Survivor};

worker_proto::params! {
    /// Parameters of qmgr.
    pub struct QmgrParams {
        /// The relays, in the order in which they are tried, apart by blanks or commas: `[host]:port`
        /// or `host:port`.
        relayhost: Words = "";
        /// The pause after the first attempt that a relay has put off; it doubles with each.
        minimal_backoff_time: Time = "30s", "1s"..="1d";
        /// The longest pause between two attempts.
        maximal_backoff_time: Time = "30m", "1s"..="7d";
        /// After this long a message that is still put off has failed.
        maximal_queue_lifetime: Days = "4d", "1m"..="365d";
        /// Who is told, once an hour at most, what could not be delivered. A name without a domain stands
        /// for the addresses in alerts.cf; empty for nobody.
        error_notice_recipient: Text = "postmaster";
        /// How long messages that were delivered or have failed stay listed.
        retired_time: Days = "7d", "0s"..="365d";
        /// The most agents at a time. The limit of the delivery service in master.cf holds as well.
        default_destination_concurrency_limit: Count = "20", "1"..="1000";
        /// The agents to begin with, as long as nothing has been delivered.
        initial_destination_concurrency: Count = "5", "1"..="1000";
        /// Below this much free space, in bytes, no message is taken (452).
        queue_minfree: Count = "8388608";
        /// The domains whose mail stays here: it is looked up in alias_maps, then goes to the addresses
        /// of alerts.cf. So is mail to names without a domain.
        mydestination: Words = "$myhostname, localhost.$mydomain, localhost";
        /// Files in the syntax of aliases(5), such as /etc/aliases. They are read at start and reload;
        /// commands and files as targets are not supported.
        alias_maps: Words = "";
        /// The service of master.cf that delivers.
        delivery_service_name: Text = "private/delivery";
    }
}

/// qmgr.
pub struct Manager {
    common: CommonParams,
    params: QmgrParams,
    store: Store,
    queue: Queue,
    local: Local,
    owner: u32,
    clock: QueueClock,
    clients: HashMap<Token, Connected>,
    agents: HashMap<Token, Agent>,
    survivors: HashMap<Token, Survivor>,
    missing: Missing,
    in_flight: InFlight,
    /// Reports that are not on disk: the connection, the agent's number of the lease, and ours.
    reported: Vec<(Token, u64, Option<u64>)>,
    /// Submissions of this turn: who waits, and for what.
    offered: Vec<(Token, Offered)>,
    drops: DropBox,
    /// When agents may be connected to again after that has failed.
    agents_from: Time,
    agents_unreachable: bool,
    /// There is work for an agent that could not be had.
    wants_agent: bool,
    next_cleaning: Time,
    /// Answers to operators, held back until what they asked for is on disk.
    answers: Vec<(Token, Header)>,
    /// Lists of the queue that are being written.
    listings: HashMap<Token, Lister>,
    leaving: Option<Leaving>,
    /// What is to be done with the store.
    care: Care,
    notices: Notices,
    /// What the last qmgr had given out, until the queue is read.
    were_in_flight: Vec<MessageNo>,
}

/// A client on `private/qmgr`.
struct Connected {
    link: Link,
    uid: u32,
}

/// A submission that waits for its commit.
struct Offered {
    result: Result<Accepted, StoreError>,
    /// Without its bytes, which are in the store.
    submission: Submission,
    size: usize,
    /// The message that has ended and is removed when this one is on disk.
    replaces: Option<MessageNo>,
}

/// qmgr was told to end, and gives out no more messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// For a successor, which waits for the store. Agents report to it.
    Succeeded,
    /// For nobody: the reports of agents are waited for, but not longer than this.
    Stopped(Time),
}

/// How often ended messages are looked through.
const CLEANING: Duration = Duration::from_secs(3600);

impl Multi for Manager {
    const LIMIT: Limit = Limit::One;
    const FINISHES: bool = true;

    fn configure(configured: &mut Configured) -> Result<Self, Fault> {
        let params = QmgrParams::read(&mut configured.main_cf).map_err(|e| server::first(&e))?;
        let submit = SubmitParams::read(&mut configured.main_cf).map_err(|e| server::first(&e))?;
        let owner = setup::directories(&configured.common)?;
        let local = Local::configure(configured, &params, owner);
        let relays = params.relayhost.clone();
        if relays.is_empty() {
            log::warn!("parameter relayhost is empty: messages stay in the queue");
        }
        let (store, damage) = setup::open_store(&params, owner)?;
        if let Some(damage) = damage {
            log::error!("{damage}");
        }
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let agents = count(params.default_destination_concurrency_limit);
        let limits = Limits {
            agents,
            first_agents: count(params.initial_destination_concurrency).min(agents),
            message: MessageRule {
                least: params.minimal_backoff_time,
                most: params.maximal_backoff_time.max(params.minimal_backoff_time),
            },
            lifetime: params.maximal_queue_lifetime,
        };
        let (in_flight, were_in_flight) = setup::open_in_flight(owner);
        let wall = clock::wall();
        let clock = QueueClock::new(Time::now(), wall);
        let seed = wall.as_secs() << 32 | u64::from(wall.subsec_nanos());
        Ok(Self {
            common: configured.common.clone(),
            params,
            store,
            queue: Queue::new(limits, &relays, seed),
            local,
            owner: owner.0,
            clock,
            clients: HashMap::new(),
            agents: HashMap::new(),
            survivors: HashMap::new(),
            missing: Missing::default(),
            in_flight,
            reported: Vec::new(),
            offered: Vec::new(),
            drops: DropBox::new(submit.message_size_limit),
            agents_from: Time::ZERO,
            agents_unreachable: false,
            wants_agent: false,
            next_cleaning: Time::ZERO,
            answers: Vec::new(),
            listings: HashMap::new(),
            leaving: None,
            care: Care::default(),
            notices: Notices::default(),
            were_in_flight,
        })
    }

    fn start(&mut self, reactor: &mut Reactor, now: Time) -> Result<(), Fault> {
        match self.load(now) {
            // It is put aside at the end of the turn, and what can be read comes back from there.
            Err(StoreError::Damaged(_)) => {}
            other => other.map_err(|e| Fault::new("read the queue", e))?,
        }
        if !self.queue.is_empty() {
            log::info!("{} messages in the queue", self.queue.len());
        }
        let were_in_flight = std::mem::take(&mut self.were_in_flight);
        self.expect_survivors(were_in_flight);
        self.drops.watch(reactor);
        self.drops.look(now);
        Ok(())
    }

    fn connected(&mut self, reactor: &mut Reactor, now: Time, client: Client) {
        // It is a socket in the file system; anything else is a mistake in master.cf.
        let Client::Unix(stream, uid) = client else {
            log::warn!(
                "connection from a client that is not local refused: qmgr must be a service of type unix"
            );
            return;
        };
        let Ok((token, link)) = Link::watch(reactor, stream) else { return };
        self.clients.insert(token, Connected { link, uid });
        self.client_ready(reactor, now, token);
    }

    fn ready(&mut self, reactor: &mut Reactor, now: Time, token: Token) {
        if self.agents.contains_key(&token) {
            self.agent_ready(reactor, now, token);
        } else if self.survivors.contains_key(&token) {
            self.survivor_ready(reactor, now, token);
        } else if self.drops.is_watched_by(token) {
            self.drops.something_new(now);
        } else {
            self.client_ready(reactor, now, token);
        }
    }

    fn turn_end(&mut self, reactor: &mut Reactor, now: Time) {
        if now >= self.next_cleaning {
            self.clean(now);
        }
        self.take_dropped(now);
        self.give_up_missing(now);
        if self.gives_out() {
            self.expire(now);
            self.give_notice(now);
        }
        let committed = self.store.commit();
        let told = self.note_reports();
        self.answer_operators(&committed);
        self.answer_offers(reactor, now, committed);
        self.tend_store(now);
        self.feed_agents(reactor, now);
        self.flush_notes(told);
        self.list_on(now);
    }

    fn deadline(&self) -> Option<Time> {
        let queue = self.queue.deadline().filter(|_| self.gives_out());
        let queue = queue.map(|at| self.clock.back(at).max(self.agents_from));
        let agents = self.wants_agent.then_some(self.agents_from);
        // One turn after the other until the drop directory is empty.
        let dropped = self.drops.deadline().filter(|_| self.takes_files());
        let listing = self.lists().then_some(Time::ZERO);
        let lingering = self.agents.values().filter_map(Agent::deadline).min();
        let leaving = match self.leaving {
            Some(Leaving::Stopped(end)) => Some(end),
            Some(Leaving::Succeeded) | None => None,
        };
        let storage = self.storage_deadline();
        if !self.care.is_open() {
            return [storage, leaving].into_iter().flatten().min();
        }
        [
            queue,
            agents,
            dropped,
            listing,
            lingering,
            storage,
            self.notices.deadline().filter(|_| self.gives_out()),
            Some(self.next_cleaning),
            leaving,
            self.missing.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn retire(&mut self, _: &mut Reactor, now: Time, stop: bool) {
        self.leaving = Some(match stop {
            true => Leaving::Stopped(now + self.common.stop_kill_time),
            false => Leaving::Succeeded,
        });
    }

    fn is_done(&self) -> bool {
        let over = |end: Time| Time::now() >= end;
        let left = |leaving| match leaving {
            Leaving::Succeeded => true,
            Leaving::Stopped(end) => self.queue.in_flight() == 0 || over(end),
        };
        self.leaving.is_some_and(left)
    }

    fn leaves_work(&self) -> bool {
        // Even an empty queue wants its manager: files are dropped without a word to anybody.
        true
    }
}

impl Manager {
    /// Takes in what the store has, and puts the times of a wrong clock right.
    fn load(&mut self, now: Time) -> Result<(), StoreError> {
        self.care.first = Some(self.store.last_number()?);
        let mut are_right = !self.store.ends_after(self.clock.stored(self.clock.now(now)))?;
        let mut last = MessageNo(0);
        loop {
            let page = self.store.queued(last, 1000)?;
            let Some(end) = page.last() else { break };
            last = end.no;
            for m in &page {
                self.take_in(now, m);
                are_right &= self.is_time_right(now, m);
            }
        }
        self.care.checked = Some(MessageNo(0));
        if are_right { Ok(()) } else { self.clamp_times(now) }
    }

    /// Reads what a client has to say.
    fn client_ready(&mut self, reactor: &mut Reactor, now: Time, token: Token) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        let open = client.link.advance();
        if client.link.decoder.trigger() == Some(TRIGGER_WAKEUP) {
            self.drop_client(reactor, token);
            return self.drops.look(now);
        }
        loop {
            let Some(client) = self.clients.get_mut(&token) else { return };
            let uid = client.uid;
            match client.link.decoder.next_frame() {
                Ok(Some(Header::Offer(submission))) => self.take_offer(now, token, submission),
                Ok(Some(Header::Ask(words))) => self.asked(now, token, uid, &words),
                Ok(Some(Header::Announce(held))) => {
                    return self.survivor(reactor, now, token, held);
                }
                Ok(Some(_)) | Err(_) => {
                    log::warn!("protocol error from uid {uid}, closing connection");
                    return self.drop_client(reactor, token);
                }
                Ok(None) => break,
            }
        }
        if !open {
            self.drop_client(reactor, token);
        }
    }

    fn send(&mut self, token: Token, header: &Header) {
        if let Some(client) = self.clients.get_mut(&token) {
            client.link.send(header);
        }
    }

    fn drop_client(&mut self, reactor: &mut Reactor, token: Token) {
        reactor.remove(token);
        self.clients.remove(&token);
    }

    fn take_offer(&mut self, now: Time, token: Token, mut submission: Submission) {
        submission.recipients = self.local.complete(&submission.recipients);
        let result = self.accept(now, &submission);
        let size = std::mem::take(&mut submission.body).len();
        self.offered.push((token, Offered { result, submission, size, replaces: None }));
    }

    fn accept(&mut self, now: Time, submission: &Submission) -> Result<Accepted, StoreError> {
        let seconds = self.clock.stored(self.clock.now(now));
        self.store.accept(submission, seconds)
    }

    /// Told after the commit: a line about what was refused in the end would mislead.
    fn log_queued(id: &str, offered: &Offered) {
        let (submission, size) = (&offered.submission, offered.size);
        let (sender, origin) = (&submission.sender, &submission.origin);
        let count = submission.recipients.len();
        log::info!(
            "{id}: from=<{sender}>, size={size}, nrcpt={count}, origin={origin} (queue active)"
        );
    }

    fn answer_operators(&mut self, committed: &Result<(), StoreError>) {
        for (token, answer) in std::mem::take(&mut self.answers) {
            let answer = match committed {
                Ok(()) => answer,
                Err(error) => Header::Answer(75, format!("{error}\n")),
            };
            self.send(token, &answer);
        }
    }

    /// The commit of this turn is done, or has failed: tells everybody who waits for it.
    fn answer_offers(
        &mut self,
        reactor: &mut Reactor,
        now: Time,
        committed: Result<(), StoreError>,
    ) {
        let queue_now = self.clock.now(now);
        for (token, offered) in std::mem::take(&mut self.offered) {
            let outcome = committed.clone().and(offered.result.clone());
            if outcome == Err(StoreError::Full) {
                self.store_full(now);
            }
            let reply = match outcome {
                Ok(Accepted { no, id, fresh }) => {
                    if fresh {
                        Self::log_queued(&id, &offered);
                        self.queue.add(no, offered.submission.lane, queue_now, queue_now, 0, false);
                        // If that fails it stays listed.
                        drop(offered.replaces.map(|old| self.store.delete(old)));
                    }
                    OfferReply::Queued { id }
                }
                Err(error) => refusal(&error),
            };
            self.send(token, &Header::Offered(reply));
            self.client_ready(reactor, now, token);
        }
        self.drops.settle(now, &committed);
        match committed {
            Ok(()) => {}
            // Told with the messages that are refused; marks are made again in the next turn.
            Err(StoreError::Full | StoreError::Reopened) => {}
            Err(e @ (StoreError::Failed(_) | StoreError::Newer(_) | StoreError::Damaged(_))) => {
                self.store_failed(now, &e);
            }
        }
    }

    fn clean(&mut self, now: Time) {
        self.next_cleaning = now + CLEANING;
        let seconds = self.clock.stored(self.clock.now(now));
        let before = seconds.saturating_sub(self.params.retired_time.as_secs());
        if let Err(e) = self.store.forget_ended(before) {
            log::warn!("forget ended messages: {e}");
        }
    }
}

fn refusal(error: &StoreError) -> OfferReply {
    let (code, enhanced, text) = match error {
        StoreError::Full => (452, "4.3.1", "Insufficient system storage"),
        StoreError::Failed(_)
        | StoreError::Newer(_)
        | StoreError::Reopened
        | StoreError::Damaged(_) => (451, "4.3.0", "Queue file write error"),
    };
    OfferReply::Refused { code, enhanced: enhanced.to_owned(), text: text.to_owned() }
}
