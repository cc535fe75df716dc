//! salvage - taking over what can be read of a damaged store
//!
//! A store that was put aside is searched for rows page by page, a part of it in each turn, and its
//! messages are put into the new one under their numbers and queue ids. Every row that cannot change
//! has a checksum, so that what is taken over is what was stored. Where two rows of a message
//! disagree the one that says "delivered" counts: nothing is sent twice because of damage.
//!
//! It can be broken off at any time and begun again: what is in the new store already is left alone.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::RecipientState;
use super::pages::{Cell, Pages, Value, cells, nth_cell};
use super::sum::{body_sum, message_sum, recipient_sum};

/// A message as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) no: i64,
    pub(super) id: String,
    pub(super) arrived: i64,
    pub(super) sender: String,
    pub(super) size: i64,
    pub(super) origin: String,
    pub(super) lane: i64,
    pub(super) attempts: i64,
    pub(super) next_try: i64,
    pub(super) why: String,
    pub(super) held: bool,
    pub(super) done: i64,
    pub(super) token: Option<String>,
    pub(super) recipients: Vec<(i64, String, RecipientState, String)>,
    /// Recipients that could not be read.
    pub(super) lost: i64,
    pub(super) body: Option<Vec<u8>>,
}

impl Found {
    pub(super) fn is_queued(&self) -> bool {
        self.recipients.iter().any(|(_, _, state, _)| *state == RecipientState::Queued)
    }
}

/// What became of the messages of a damaged store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Messages that were taken over and are queued.
    pub queued: u64,
    /// Messages that had ended, by what can be read or as this process knows.
    pub ended: u64,
    /// Recipients that could not be read, of messages that were taken over.
    pub recipients: u64,
    /// Numbers of messages of which something is left, but not enough.
    pub damaged: Vec<i64>,
    /// Numbers of which nothing is left; messages that were deleted are among them.
    pub missing: u64,
    /// How far the numbers went is not known.
    pub open_end: bool,
    /// Parts could not be read, however often that was tried.
    pub unreadable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Message,
    Recipient,
    Body,
}

/// A row's place.
type Place = (i64, Kind, u32, u16);

/// The search through one damaged store.
#[derive(Debug)]
pub(super) struct Salvage {
    path: PathBuf,
    pages: Pages,
    next_page: u32,
    places: Vec<Place>,
    next_place: usize,
    /// Pages in the middle of long rows.
    middle: HashSet<u32>,
    /// The last number that was given, as the store noted it.
    sequence: Option<i64>,
    pub(super) tally: Tally,
}

/// One step of it.
pub(super) enum Step {
    /// There is more.
    Searched,
    /// Messages to take over.
    Found(Vec<Found>),
    /// That was all.
    Done,
}

const PAGES_A_STEP: u32 = 256;
const MESSAGES_A_STEP: usize = 50;
const BYTES_A_STEP: usize = 1 << 20;

impl Salvage {
    pub(super) fn of(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            pages: Pages::open(path),
            next_page: 1,
            places: Vec::new(),
            next_place: 0,
            middle: HashSet::new(),
            sequence: None,
            tally: Tally::default(),
        }
    }

    pub(super) const fn is_readable(&self) -> bool {
        self.pages.count() > 0
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Why something could not be read since this was asked last.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.pages.take_failure()
    }

    /// Goes on for a moment.
    pub(super) fn step(&mut self) -> Step {
        if self.next_page <= self.pages.count() {
            for _ in 0..PAGES_A_STEP {
                if self.next_page <= self.pages.count() {
                    self.search(self.next_page);
                    self.next_page += 1;
                }
            }
            if self.next_page > self.pages.count() {
                self.sort();
            }
            return Step::Searched;
        }
        let (mut found, mut bytes) = (Vec::new(), 0);
        while found.len() < MESSAGES_A_STEP && bytes < BYTES_A_STEP {
            let Some(&(no, ..)) = self.places.get(self.next_place) else { break };
            let rest = &self.places[self.next_place..];
            let count = rest.partition_point(|place| place.0 == no);
            match self.assemble(no, &rest[..count]) {
                Ok(message) => {
                    bytes += message.body.as_ref().map_or(0, Vec::len);
                    found.push(message);
                }
                Err(Nothing::Ended) => {}
                Err(Nothing::Damaged) => self.tally.damaged.push(no),
            }
            self.next_place += count;
        }
        if found.is_empty() && self.next_place >= self.places.len() {
            return Step::Done;
        }
        Step::Found(found)
    }

    fn search(&mut self, number: u32) {
        if !self.pages.is_live(number) {
            return;
        }
        let Some(page) = self.pages.read(number) else { return };
        for (nth, cell) in cells(number, &page) {
            let Some((kind, no)) = self.kind(&page, &cell) else { continue };
            if !self.pages.is_mapped() {
                self.middle.extend(self.pages.overflow(&page, &cell));
            }
            self.places.push((no, kind, number, nth));
        }
    }

    /// Which table a row is of, by its shape, and its message.
    fn kind(&mut self, page: &[u8], cell: &Cell) -> Option<(Kind, i64)> {
        let (kinds, ints) = cell.shape(page)?;
        let text = |n: usize| kinds.get(n).is_some_and(|k| *k >= 13 && k % 2 == 1);
        let int = |n: usize| kinds.get(n).is_some_and(|k| matches!(k, 1..=6 | 8 | 9));
        let Some(no) = cell.rowid else {
            let is_one = kinds.len() >= 5 && int(0) && int(1) && text(2) && int(3) && text(4);
            return ints.first().filter(|_| is_one).map(|no| (Kind::Recipient, *no));
        };
        let blob = |n: usize| kinds.get(n).is_some_and(|k| *k >= 12 && k % 2 == 0);
        if kinds.len() >= 13 && kinds[0] == 0 && text(1) && int(2) && text(3) && int(11) {
            return Some((Kind::Message, no));
        }
        if matches!(kinds.len(), 2 | 3) && kinds[0] == 0 && blob(1) {
            return Some((Kind::Body, no));
        }
        if kinds.len() == 2
            && text(0)
            && int(1)
            && let Some([Value::Text(name), Value::Int(last)]) =
                self.pages.row(page, cell).as_deref()
            && name == "message"
        {
            self.sequence = self.sequence.max(Some(*last));
        }
        None
    }

    fn sort(&mut self) {
        self.places.retain(|(no, _, page, _)| *no > 0 && !self.middle.contains(page));
        self.places.sort_unstable();
        self.places.dedup();
        // Numbers are given one after the other; a gap is a message that is gone, for whatever reason.
        let numbers: BTreeSet<i64> = self.places.iter().map(|place| place.0).collect();
        self.tally.open_end = self.sequence.is_none();
        // A store that took another's place has begun far behind it.
        let before = numbers.first().filter(|first| **first > 1000).map_or(0, |first| first - 1);
        let all = numbers.iter().copied().chain(self.sequence.map(|last| last + 1));
        let gaps = all.scan(before, |before, no| Some(no - std::mem::replace(before, no) - 1));
        let missing: i64 = gaps.filter(|gap| (1..1 << 16).contains(gap)).sum();
        self.tally.missing = missing.unsigned_abs();
    }

    fn assemble(&self, no: i64, places: &[Place]) -> Result<Found, Nothing> {
        let mut message: Option<Found> = None;
        let mut wanted = None;
        let mut recipients: Vec<(i64, String, RecipientState, String)> = Vec::new();
        let mut body = None;
        for &(_, kind, number, nth) in places {
            let Some(values) = self.values(number, nth) else { continue };
            match kind {
                Kind::Message => {
                    if let Some((found, count)) = message_of(no, &values) {
                        // Of two the one that is further on.
                        let further =
                            |m: &Found| (m.done > 0, m.attempts) < (found.done > 0, found.attempts);
                        if message.as_ref().is_none_or(further) {
                            message = Some(found);
                            wanted = count;
                        }
                    }
                }
                Kind::Recipient => {
                    let Some(one) = recipient_of(no, &values) else { continue };
                    match recipients.iter_mut().find(|r| r.0 == one.0) {
                        Some(other) if other.2 == RecipientState::Queued => *other = one,
                        Some(_) => {}
                        None => recipients.push(one),
                    }
                }
                Kind::Body => body = body.or_else(|| body_of(no, &values)),
            }
        }
        let queued = recipients.iter().any(|(_, _, state, _)| *state == RecipientState::Queued);
        // Had the message ended, its body would have gone with that.
        let was_queued = queued || body.is_some() && recipients.is_empty();
        let Some(mut message) = message else {
            return Err(if was_queued { Nothing::Damaged } else { Nothing::Ended });
        };
        if recipients.is_empty() {
            return Err(if message.done > 0 { Nothing::Ended } else { Nothing::Damaged });
        }
        if queued && body.is_none() {
            return Err(Nothing::Damaged);
        }
        recipients.sort_by_key(|r| r.0);
        let found = i64::try_from(recipients.len()).unwrap_or(i64::MAX);
        message.lost = wanted.map_or(0, |wanted: i64| (wanted - found).max(0));
        if !queued && message.lost > 0 && message.done == 0 {
            return Err(Nothing::Damaged);
        }
        message.recipients = recipients;
        message.body = body;
        Ok(message)
    }

    fn values(&self, number: u32, nth: u16) -> Option<Vec<Value>> {
        let page = self.pages.read(number)?;
        let cell = nth_cell(number, &page, nth)?;
        let mut values = self.pages.row(&page, &cell)?;
        if let (Some(rowid), Some(first)) = (cell.rowid, values.first_mut()) {
            *first = Value::Int(rowid);
        }
        Some(values)
    }

    /// The file is done with: it keeps another name, so that it is not searched again.
    pub(super) fn finish(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let done = self.path.with_file_name(name.replacen("damaged", "salvaged", 1));
        for suffix in ["", "-wal"] {
            let with = |path: &Path| PathBuf::from(format!("{}{suffix}", path.display()));
            let _ = fs::rename(with(&self.path), with(&done));
        }
        done
    }
}

enum Nothing {
    /// The message had ended, or was removed.
    Ended,
    Damaged,
}

fn int(value: Option<&Value>) -> Option<i64> {
    if let Some(Value::Int(n)) = value { Some(*n) } else { None }
}

fn text(value: Option<&Value>) -> Option<String> {
    if let Some(Value::Text(text)) = value { Some(text.clone()) } else { None }
}

/// A row of `message`, and how many recipients it had if that is known.
fn message_of(no: i64, row: &[Value]) -> Option<(Found, Option<i64>)> {
    let found = Found {
        no,
        id: text(row.get(1))?,
        arrived: int(row.get(2))?,
        sender: text(row.get(3))?,
        size: int(row.get(4))?,
        origin: text(row.get(5))?,
        lane: int(row.get(6))?,
        attempts: int(row.get(7))?.clamp(0, 1 << 20),
        next_try: int(row.get(8))?,
        why: text(row.get(9)).unwrap_or_default(),
        held: int(row.get(10))? != 0,
        done: int(row.get(11))?,
        token: text(row.get(12)),
        recipients: Vec::new(),
        lost: 0,
        body: None,
    };
    let (count, sum) = (int(row.get(13)), int(row.get(14)));
    let recipients = count.unwrap_or(0);
    let Found { id, sender, size, origin, lane, .. } = &found;
    let right = message_sum(no, id, sender, *size, origin, *lane, recipients);
    sum.is_none_or(|sum| sum == right).then_some((found, count))
}

fn recipient_of(no: i64, row: &[Value]) -> Option<(i64, String, RecipientState, String)> {
    let (position, address) = (int(row.get(1))?, text(row.get(2))?);
    let (state, reply) = (RecipientState::of(int(row.get(3))?), text(row.get(4))?);
    let sum = int(row.get(5));
    if sum.is_some_and(|sum| sum != recipient_sum(no, position, &address)) {
        return None;
    }
    // What has ended has a reply. Without one the state is damaged.
    let state = if reply.is_empty() { RecipientState::Queued } else { state };
    Some((position, address, state, reply))
}

fn body_of(no: i64, row: &[Value]) -> Option<Vec<u8>> {
    let Some(Value::Blob(bytes)) = row.get(1) else { return None };
    let sum = int(row.get(2));
    sum.is_none_or(|sum| sum == body_sum(no, bytes)).then(|| bytes.clone())
}
