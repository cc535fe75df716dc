//! pages - the pages of a database file, read without SQLite
//!
//! A damaged file is searched for rows page by page, whatever has become of the trees that led to
//! them. The WAL lies over the file: its newest intact frame of a page counts. The format is that of
//! <https://www.sqlite.org/fileformat2.html>; nothing in it is believed before it was checked.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// The size of a page in every store.
pub(super) const PAGE: usize = PAGE_SIZE as usize;
/// The same.
pub(super) const PAGE_SIZE: u32 = 4096;
/// Entries of a page that tells what the pages after it are for.
const ENTRIES: u32 = PAGE_SIZE / 5;
/// A row is not longer than this.
const MOST_PAYLOAD: usize = 1 << 30;

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Int(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// A database file and its WAL.
#[derive(Debug)]
pub(super) struct Pages {
    file: Option<File>,
    wal: Option<File>,
    /// Where in the WAL a page is.
    newer: HashMap<u32, u64>,
    /// How many pages there are to read.
    count: u32,
    /// Free pages, by the list of them. What is in them is old.
    free: HashSet<u32>,
    /// There are pages that tell what each page is for.
    has_map: bool,
    /// And all of them can be believed.
    mapped: bool,
    map: Option<(u32, Vec<u8>)>,
    /// The disk did not answer, which says nothing about what is on it.
    failure: RefCell<Option<io::Error>>,
}

/// What a WAL is like.
#[derive(Debug, Default)]
pub(super) struct Wal {
    newer: HashMap<u32, u64>,
    /// Pages of the database after the last commit.
    size: u32,
    /// A frame of a transaction that was committed is damaged.
    pub(super) damaged: bool,
    /// It could not be read.
    pub(super) failure: Option<io::Error>,
}

impl Pages {
    /// Opens a database file for reading, with its WAL.
    pub(super) fn open(path: &Path) -> Self {
        let mut failure = None;
        let file = keep_failure(open(path), &mut failure);
        let mut name = path.as_os_str().to_owned();
        name.push("-wal");
        let wal = keep_failure(open(Path::new(&name)), &mut failure);
        let read = wal.as_ref().map(read_wal).unwrap_or_default();
        let length = file.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
        let in_file = u32::try_from(length.div_ceil(PAGE as u64)).unwrap_or(u32::MAX);
        let in_wal = read.newer.keys().max().copied().unwrap_or(0);
        let mut pages = Self {
            file,
            wal,
            newer: read.newer,
            count: if read.size > 0 { read.size.max(in_wal) } else { in_file.max(in_wal) },
            free: HashSet::new(),
            has_map: false,
            mapped: false,
            map: None,
            failure: RefCell::new(failure.or(read.failure)),
        };
        if read.size == 0 || read.damaged {
            pages.count = in_file.max(in_wal);
        }
        pages.find_map();
        pages.find_free();
        pages
    }

    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    /// How many pages the header tells of.
    pub(super) fn told(&self) -> Option<u32> {
        self.read(1).map(|page| be32(&page, 28))
    }

    /// A page, where it can be read whole.
    pub(super) fn read(&self, number: u32) -> Option<Vec<u8>> {
        let mut page = vec![0; PAGE];
        self.read_into(number, 0, &mut page)?;
        Some(page)
    }

    fn read_into(&self, number: u32, offset: u64, bytes: &mut [u8]) -> Option<()> {
        if number == 0 || number > self.count {
            return None;
        }
        if let (Some(at), Some(wal)) = (self.newer.get(&number), &self.wal) {
            return self.kept(read_at(wal, bytes, at + offset));
        }
        let at = u64::from(number - 1) * PAGE as u64 + offset;
        self.kept(read_at(self.file.as_ref()?, bytes, at))
    }

    fn kept(&self, result: io::Result<()>) -> Option<()> {
        keep_failure(result, &mut self.failure.borrow_mut())
    }

    /// Why something could not be read since this was asked last, other than that it is not there.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.failure.borrow_mut().take()
    }

    /// Whether rows of a page count: it is not free and not the middle of a long row.
    pub(super) fn is_live(&mut self, number: u32) -> bool {
        match self.purpose(number) {
            Some(1 | 5) => true,
            Some(_) => false,
            None => !self.free.contains(&number),
        }
    }

    /// Whether it is known which pages are in the middle of long rows.
    pub(super) const fn is_mapped(&self) -> bool {
        self.mapped
    }

    /// The maps are believed if most of each makes sense.
    fn find_map(&mut self) {
        let first = self.read(2).is_some_and(|page| self.makes_sense(2, &page));
        let told = self.read(1).is_some_and(|page| be32(&page, 52) != 0);
        self.has_map = first || told;
        let maps =
            (2..=self.count).step_by(ENTRIES as usize + 1).take_while(|map| *map < self.count);
        self.mapped = self.has_map
            && maps
                .into_iter()
                .all(|n| self.read(n).is_some_and(|page| self.makes_sense(n, &page)));
    }

    fn makes_sense(&self, map: u32, page: &[u8]) -> bool {
        let entries = self.count.saturating_sub(map).min(ENTRIES) as usize;
        let good = page.chunks_exact(5).take(entries).filter(|e| purpose(e).is_some()).count();
        good * 4 >= entries * 3 && entries > 0
    }

    /// What a page is for: 1 and 5 are trees, 2 is free, 3 and 4 are the middle of long rows.
    fn purpose(&mut self, number: u32) -> Option<u8> {
        if !self.has_map || number < 3 {
            return None;
        }
        let map = (number - 2) / (ENTRIES + 1) * (ENTRIES + 1) + 2;
        if map == number {
            return Some(0);
        }
        if self.map.as_ref().is_none_or(|(n, _)| *n != map) {
            let page = self.read(map).filter(|page| self.makes_sense(map, page));
            self.map = Some((map, page.unwrap_or_default()));
        }
        let (_, page) = self.map.as_ref()?;
        let at = (number - map - 1) as usize * 5;
        purpose(page.get(at..at + 5)?)
    }

    fn find_free(&mut self) {
        let Some(header) = self.read(1) else { return };
        let mut trunk = be32(&header, 32);
        let mut seen = HashSet::new();
        while trunk != 0 && seen.insert(trunk) {
            let Some(page) = self.read(trunk) else { break };
            self.free.insert(trunk);
            let leaves = (be32(&page, 4) as usize).min(PAGE / 4 - 2);
            self.free.extend((0..leaves).map(|n| be32(&page, 8 + 4 * n)));
            trunk = be32(&page, 0);
        }
    }

    /// The pages after the first of a long row, in order.
    pub(super) fn overflow(&self, page: &[u8], cell: &Cell) -> Vec<u32> {
        let mut chain = Vec::new();
        let most = cell.payload / (PAGE - 4) + 1;
        let mut next = cell.overflow(page);
        while next != 0 && chain.len() < most {
            chain.push(next);
            let mut bytes = [0; 4];
            if self.read_into(next, 0, &mut bytes).is_none() {
                break;
            }
            next = u32::from_be_bytes(bytes);
        }
        chain
    }

    /// The values of a row, the long way if it needs one.
    pub(super) fn row(&self, page: &[u8], cell: &Cell) -> Option<Vec<Value>> {
        let mut bytes = page.get(cell.start..cell.start + cell.local)?.to_vec();
        let mut next = cell.overflow(page);
        while bytes.len() < cell.payload {
            let part = self.read(next)?;
            let wanted = (cell.payload - bytes.len()).min(PAGE - 4);
            bytes.extend_from_slice(&part[4..4 + wanted]);
            next = be32(&part, 0);
        }
        record(&bytes)
    }
}

/// A row's place in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    /// The number of the row in a table that has one.
    pub(super) rowid: Option<i64>,
    start: usize,
    local: usize,
    payload: usize,
}

impl Cell {
    fn overflow(&self, page: &[u8]) -> u32 {
        if self.local == self.payload { 0 } else { be32(page, self.start + self.local) }
    }

    /// The kinds of the values: as in the format, 0 is NULL, even ones from 12 on are blobs, odd ones
    /// text; and the integers at the start of the row.
    pub(super) fn shape(&self, page: &[u8]) -> Option<(Vec<u64>, Vec<i64>)> {
        let bytes = page.get(self.start..self.start + self.local)?;
        let (length, mut at) = varint(bytes)?;
        let end = usize::try_from(length).ok().filter(|end| *end <= bytes.len())?;
        let mut kinds = Vec::new();
        while at < end {
            let (kind, size) = varint(&bytes[at..end])?;
            kinds.push(kind);
            at += size;
        }
        let mut ints = Vec::new();
        for kind in kinds.iter().take_while(|kind| matches!(kind, 1..=6 | 8 | 9)) {
            let (value, size) = integer(*kind, bytes.get(at..)?)?;
            ints.push(value);
            at += size;
        }
        Some((kinds, ints))
    }
}

/// The rows of a page of a tree, as far as they make sense. `index`: those of a table without row
/// numbers, which has rows in its inner pages as well.
pub(super) fn cells(number: u32, page: &[u8]) -> Vec<(u16, Cell)> {
    let base = if number == 1 { 100 } else { 0 };
    let (header, child, has_rowid) = match page.get(base) {
        Some(13) => (8, 0, true),
        Some(10) => (8, 0, false),
        Some(2) => (12, 4, false),
        _ => return Vec::new(),
    };
    let count = usize::from(be16(page, base + 3)).min((PAGE - base - header) / 2);
    let starts = (0..count).map(|n| usize::from(be16(page, base + header + 2 * n)));
    let cell = |start| cell(page, start, child, has_rowid);
    (0..).zip(starts).filter_map(|(n, start)| Some((n, cell(start)?))).collect()
}

/// The n-th row of a page.
pub(super) fn nth_cell(number: u32, page: &[u8], nth: u16) -> Option<Cell> {
    cells(number, page).into_iter().find(|(n, _)| *n == nth).map(|(_, cell)| cell)
}

fn cell(page: &[u8], start: usize, child: usize, has_rowid: bool) -> Option<Cell> {
    let mut at = start.checked_add(child)?;
    let (payload, size) = varint(page.get(at..)?)?;
    at += size;
    let payload = usize::try_from(payload).ok().filter(|n| (1..MOST_PAYLOAD).contains(n))?;
    let mut rowid = None;
    if has_rowid {
        let (value, size) = varint(page.get(at..)?)?;
        rowid = Some(value.cast_signed());
        at += size;
    }
    let most = if has_rowid { PAGE - 35 } else { (PAGE - 12) * 64 / 255 - 23 };
    let least = (PAGE - 12) * 32 / 255 - 23;
    let local = if payload <= most {
        payload
    } else {
        let some = least + (payload - least) % (PAGE - 4);
        if some <= most { some } else { least }
    };
    let end = at + local + if local == payload { 0 } else { 4 };
    (end <= PAGE).then_some(Cell { rowid, start: at, local, payload })
}

/// The values of a row's bytes.
fn record(bytes: &[u8]) -> Option<Vec<Value>> {
    let (length, mut at) = varint(bytes)?;
    let end = usize::try_from(length).ok().filter(|end| *end <= bytes.len())?;
    let mut values = Vec::new();
    let mut data = end;
    while at < end {
        let (kind, size) = varint(&bytes[at..end])?;
        at += size;
        let rest = bytes.get(data..)?;
        let (value, size) = match kind {
            0 => (Value::Null, 0),
            1..=6 | 8 | 9 => {
                let (value, size) = integer(kind, rest)?;
                (Value::Int(value), size)
            }
            12.. => {
                let size = usize::try_from((kind - 12) / 2).ok()?;
                let content = rest.get(..size)?.to_vec();
                let is_text = kind % 2 == 1;
                let text = || String::from_utf8(content.clone()).ok();
                (if is_text { Value::Text(text()?) } else { Value::Blob(content) }, size)
            }
            // 7 is a fraction, which no column has; 10 and 11 are never in a file.
            _ => return None,
        };
        values.push(value);
        data += size;
    }
    Some(values)
}

fn integer(kind: u64, bytes: &[u8]) -> Option<(i64, usize)> {
    let size = match kind {
        8 | 9 => return Some((i64::from(kind == 9), 0)),
        1..=4 => usize::try_from(kind).ok()?,
        5 => 6,
        6 => 8,
        _ => return None,
    };
    let bytes = bytes.get(..size)?;
    let sign = if bytes[0] & 0x80 == 0 { 0 } else { -1 };
    Some((bytes.iter().fold(sign, |n: i64, b| n << 8 | i64::from(*b)), size))
}

fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (n, byte) in bytes.iter().take(9).enumerate() {
        if n == 8 {
            return Some((value << 8 | u64::from(*byte), 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, n + 1));
        }
    }
    None
}

/// An entry of a map of pages; None when it makes no sense.
fn purpose(entry: &[u8]) -> Option<u8> {
    let parent = be32(entry, 1);
    match entry[0] {
        kind @ (1 | 2) if parent == 0 => Some(kind),
        kind @ 3..=5 if parent != 0 => Some(kind),
        _ => None,
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes)
}

/// What lies under a name is not known: no link is followed, no pipe waited for.
fn open(path: &Path) -> io::Result<File> {
    let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// Gives what there is, and keeps the first error that says nothing about what is on the disk.
fn keep_failure<T>(result: io::Result<T>, failure: &mut Option<io::Error>) -> Option<T> {
    match result {
        Ok(there) => Some(there),
        Err(e) => {
            // What can be read but is no file, and what ends too early, is what it is.
            let is_failure = e.raw_os_error().is_some() && e.kind() != ErrorKind::NotFound;
            if is_failure && e.raw_os_error() != Some(nix::errno::Errno::ELOOP as i32) {
                failure.get_or_insert(e);
            }
            None
        }
    }
}

#[cfg(test)]
thread_local! {
    /// Reads from this one on fail as on a disk that does not answer.
    pub(super) static FAIL_FROM: std::cell::Cell<Option<u32>> = const { std::cell::Cell::new(None) };
}

fn read_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    #[cfg(test)]
    if let Some(left) = FAIL_FROM.get() {
        FAIL_FROM.set(Some(left.saturating_sub(1)));
        if left <= 1 {
            return Err(nix::errno::Errno::EIO.into());
        }
    }
    file.read_exact_at(bytes, at)
}

/// Reads the WAL of a database file; None when there is none, or nothing in it.
pub(super) fn wal_of(path: &Path) -> Option<Wal> {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    let mut failure = None;
    let Some(file) = keep_failure(open(Path::new(&name)), &mut failure) else {
        return failure.map(|e| Wal { failure: Some(e), ..Wal::default() });
    };
    (file.metadata().ok()?.len() > 0).then(|| read_wal(&file))
}

const WAL_HEADER: u64 = 32;
const FRAME: usize = 24 + PAGE;

/// Goes through the frames. The checksum of each goes on from the one before, as that is stored, so
/// that frames behind a damaged one are good again.
fn read_wal(file: &File) -> Wal {
    let mut wal = Wal::default();
    let length = file.metadata().map_or(0, |m| m.len());
    let mut header = [0; 32];
    if length == 0 {
        return wal;
    }
    let is_read = keep_failure(read_at(file, &mut header, 0), &mut wal.failure).is_some();
    let is_good = is_read
        && matches!(be32(&header, 0), 0x377f_0682 | 0x377f_0683)
        && be32(&header, 8) as usize == PAGE;
    let big = be32(&header, 0) & 1 == 1;
    let mut sum = (be32(&header, 24), be32(&header, 28));
    if !is_good || checksum(big, (0, 0), &header[..24]) != sum {
        wal.damaged = header != [0; 32];
        return wal;
    }
    let salt = header[16..24].to_vec();
    let mut frame = vec![0; FRAME];
    // Frames since the last commit, which count only when another one comes.
    let mut open = HashMap::new();
    let (mut broken, mut at) = (false, WAL_HEADER);
    while at + FRAME as u64 <= length
        && keep_failure(read_at(file, &mut frame, at), &mut wal.failure).is_some()
    {
        let stored = (be32(&frame, 16), be32(&frame, 20));
        let is_good = frame[8..16] == salt
            && checksum(big, checksum(big, sum, &frame[..8]), &frame[24..]) == stored
            && be32(&frame, 0) > 0;
        if is_good {
            open.insert(be32(&frame, 0), at + 24);
            if be32(&frame, 4) > 0 {
                wal.newer.extend(open.drain());
                wal.size = be32(&frame, 4);
                wal.damaged |= broken;
            }
        }
        // The end of the WAL, of this round or for want of time when the process was killed; unless
        // a commit comes behind it. Damage to the last frame looks the same.
        broken |= !is_good;
        sum = stored;
        at += FRAME as u64;
    }
    wal
}

fn checksum(big: bool, start: (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let word = |b: &[u8]| {
        let b: [u8; 4] = b.try_into().unwrap_or_default();
        if big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
    };
    bytes.chunks_exact(8).fold(start, |(a, b), pair| {
        let a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
        (a, b.wrapping_add(word(&pair[4..])).wrapping_add(a))
    })
}
