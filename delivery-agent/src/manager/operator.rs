//! operator - what alertq asks

use std::fmt::Write;

use mio::Token;
use worker_proto::clock::Time;

use super::Manager;
use crate::listing;
use crate::retry::Health;
use crate::store::{MessageNo, StoreError};
use crate::wire::Header;

type Answer = (u8, String);

impl Manager {
    /// Answers a request; only root and the queue's owner may ask. A list is answered in parts.
    pub(super) fn asked(&mut self, now: Time, token: Token, uid: u32, words: &[String]) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = match words.as_slice() {
            _ if uid != 0 && uid != self.owner => {
                (77, "only the superuser may do that\n".to_owned())
            }
            ["list"] => return self.begin_list(token, false),
            ["list", "--json"] => return self.begin_list(token, true),
            words => self.answer(now, words),
        };
        self.answers.push((token, Header::Answer(answer.0, answer.1)));
    }

    fn answer(&mut self, now: Time, words: &[&str]) -> Answer {
        let queue_now = self.clock.now(now);
        let doing = |no: MessageNo| {
            let next = self.queue.due(no).map(|due| due.since(queue_now).as_secs());
            (self.queue.state(no), next)
        };
        let result = match words {
            ["list", "--failed"] => listing::failed(&self.store, false).map(ok),
            ["list", "--failed", "--json"] | ["list", "--json", "--failed"] => {
                listing::failed(&self.store, true).map(ok)
            }
            ["show", id] => {
                listing::show(&self.store, id, &doing).map(|t| t.map_or_else(|| unknown(id), ok))
            }
            ["relays"] => Ok(ok(self.relay_table(queue_now))),
            ["flush"] | ["flush", "all"] => {
                self.queue.flush(queue_now, None);
                Ok(ok(String::new()))
            }
            [verb @ ("flush" | "hold" | "release" | "requeue" | "delete"), id] => {
                self.change(now, verb, id)
            }
            _ => Ok((64, format!("unknown request: {}\n", words.join(" ")))),
        };
        result.unwrap_or_else(|e| (75, format!("{e}\n")))
    }

    fn change(&mut self, now: Time, verb: &str, id: &str) -> Result<Answer, StoreError> {
        let queue_now = self.clock.now(now);
        let Some(message) = self.store.by_id(id)? else { return Ok(unknown(id)) };
        if message.done > 0 {
            return match verb {
                "requeue" if self.requeue_failed(now, &message)? => Ok(ok(String::new())),
                "requeue" => Ok((1, format!("{id}: nothing of it is left to send\n"))),
                _ => Ok(unknown(id)),
            };
        }
        let no = message.no;
        let seconds = self.clock.stored(queue_now);
        if self.queue.state(no) == "active" && verb != "flush" {
            return Ok((75, format!("{id}: it is on its way; try again\n")));
        }
        match verb {
            "flush" => self.queue.flush(queue_now, Some(no)),
            "hold" => {
                let why = "held by the operator";
                self.store.defer(no, message.attempts, message.next_try, why, true)?;
                self.queue.hold(no);
            }
            "delete" => {
                self.store.delete(no)?;
                self.queue.remove(no);
                log::info!("{id}: deleted by the operator");
            }
            // release, requeue: as if it had just come, the second without its attempts.
            _ => {
                let attempts = if verb == "requeue" { 0 } else { message.attempts };
                self.store.defer(no, attempts, seconds, "", false)?;
                let arrived = self.clock.past(now, message.arrived);
                self.queue.remove(no);
                self.queue.add(no, message.lane, arrived, queue_now, attempts, false);
            }
        }
        Ok(ok(String::new()))
    }

    /// Each relay, its state, since when, when it is probed, and its exact last reply.
    fn relay_table(&self, queue_now: Time) -> String {
        let mut text = String::new();
        let works = self.queue.relays().any(|(_, clock, slow)| clock.is_up() && slow.is_none());
        let tries = if works { "the next message that can wait" } else { "the next message" };
        for (name, clock, slow) in self.queue.relays() {
            let seconds = |since: Time| queue_now.since(since).as_secs();
            let next = match clock.next_probe() {
                None => "being tried".to_owned(),
                Some(at) if at <= queue_now => format!("{tries} tries it"),
                Some(at) => format!("next try in {}s", at.since(queue_now).as_secs()),
            };
            let state = match (clock.health(), clock.down_since(), slow) {
                (_, None, Some(stall)) => {
                    format!("slow, waiting for {} since {}s", stall.stage, seconds(stall.since))
                }
                (Health::Up, ..) => "up".to_owned(),
                (Health::Fails, None, _) => format!("in question, {next}"),
                (Health::Fails, Some(since), _) => format!("down for {}s, {next}", seconds(since)),
                (Health::Unreachable, since, _) => {
                    let since = since.unwrap_or(queue_now);
                    format!("down for {}s, no connection, {next}", seconds(since))
                }
            };
            let last = if clock.last().is_empty() { "not tried yet" } else { clock.last() };
            let _ = writeln!(text, "{name}  {state}  ({last})");
        }
        text
    }
}

const fn ok(text: String) -> Answer {
    (0, text)
}

fn unknown(id: &str) -> Answer {
    (1, format!("{id}: no such message in the queue\n"))
}
