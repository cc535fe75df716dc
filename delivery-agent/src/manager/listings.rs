//! listings - long answers to operators, a page between two turns
//!
//! A page is made when the one before has gone: neither a long queue nor a slow reader costs others
//! anything.

use mio::Token;
use worker_proto::clock::Time;

use super::Manager;
use crate::listing::Lister;
use crate::store::MessageNo;
use crate::wire::Header;

impl Manager {
    /// Whether a page can be made at once.
    pub(super) fn lists(&self) -> bool {
        self.listings.keys().any(|token| self.has_room(*token))
    }

    fn has_room(&self, token: Token) -> bool {
        self.clients.get(&token).is_some_and(|client| client.link.is_flushed())
    }

    /// The next page for everybody who has read the last one.
    pub(super) fn list_on(&mut self, now: Time) {
        self.listings.retain(|token, _| self.clients.contains_key(token));
        let queue_now = self.clock.now(now);
        for token in self.listings.keys().copied().collect::<Vec<_>>() {
            if !self.has_room(token) {
                continue;
            }
            let Some(lister) = self.listings.get_mut(&token) else { continue };
            let doing = |no: MessageNo| {
                let next = self.queue.due(no).map(|due| due.since(queue_now).as_secs());
                (self.queue.state(no), next)
            };
            let header = match lister.page(&self.store, &doing) {
                Ok(Some(text)) => Header::Part(text),
                Ok(None) => Header::Answer(0, String::new()),
                Err(e) => Header::Answer(75, format!("{e}\n")),
            };
            if matches!(header, Header::Answer(..)) {
                self.listings.remove(&token);
            }
            self.send(token, &header);
        }
    }

    /// Begins a list for a client.
    pub(super) fn begin_list(&mut self, token: Token, as_json: bool) {
        self.listings.insert(token, Lister::new(as_json));
    }
}
