//! Every kind of damage to a store of known messages, and what becomes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;

use worker_proto::clock::Time;

use super::*;

/// What a message was, and which of its recipients were delivered to.
#[derive(Debug, Clone)]
struct Known {
    submission: Submission,
    delivered: BTreeSet<i64>,
}

impl Known {
    fn count(&self) -> i64 {
        i64::try_from(self.submission.recipients.len()).unwrap()
    }
}

/// How often each recipient of a message was sent to.
type Sent = BTreeMap<(String, i64), usize>;
type Messages = BTreeMap<String, (MessageNo, Known)>;

fn submission(n: usize) -> Submission {
    let size = [40, 700, 3000, 9000, 40_000][n % 5];
    let text: String =
        (0..size).map(|i| char::from(b"abcdefghijklmnopqrstuvwxyz"[(i * 7 + n) % 26])).collect();
    Submission {
        sender: format!("sender{n}@x.example"),
        recipients: (0..=n % 3).map(|r| format!("r{n}.{r}@y.example")).collect(),
        origin: "uid 0".to_owned(),
        lane: Lane::Normal,
        token: if n.is_multiple_of(4) { format!("token{n}") } else { String::new() },
        body: format!("Subject: {n}\r\n\r\n{text}\r\n").into_bytes(),
    }
}

fn deliver(store: &mut Store, no: MessageNo, position: i64) {
    let _ = store.mark(no, &[(position, RecipientState::Delivered, "250 ok".to_owned())], 50);
}

/// A store with messages in every state; closed, or killed with a WAL.
fn build(directory: &Path, count: usize, closed: bool) -> Messages {
    let (mut store, told) = Store::open(directory, 0).unwrap();
    assert_eq!(told, None);
    let mut messages = Messages::new();
    for n in 0..count {
        let submission = submission(n);
        let Accepted { no, id, .. } = store.accept(&submission, 40).unwrap();
        messages.insert(id, (no, Known { submission, delivered: BTreeSet::new() }));
        if n % 7 == 0 {
            store.commit().unwrap();
        }
    }
    for (no, known) in messages.values_mut() {
        let count = known.count();
        let first = match no.0 % 4 {
            0 => count,
            1 => count - 1,
            _ => 0,
        };
        for position in 0..first {
            deliver(&mut store, *no, position);
            known.delivered.insert(position);
        }
        if no.0 % 5 == 0 {
            store.commit().unwrap();
        }
    }
    store.commit().unwrap();
    if closed {
        drop(store);
    } else {
        let copy = tempfile::tempdir().unwrap();
        for name in ["queue.db", "queue.db-wal"] {
            fs::copy(directory.join(name), copy.path().join(name)).unwrap();
        }
        drop(store);
        for name in ["queue.db", "queue.db-wal"] {
            fs::copy(copy.path().join(name), directory.join(name)).unwrap();
        }
    }
    messages
}

/// Serves a store as qmgr does, and delivers all of it. Gives what went out, by queue id and position,
/// and the lines that were told.
fn drain(directory: &Path, messages: &Messages) -> (Sent, Vec<Tally>, Vec<String>) {
    let mut sent = Sent::new();
    let (mut tallies, mut lines) = (Vec::new(), Vec::new());
    let (mut store, told) = Store::open(directory, 0).unwrap();
    lines.extend(told);
    let mut waiting: BTreeSet<MessageNo> = BTreeSet::new();
    let mut load = true;
    for turn in 0.. {
        assert!(turn < 5000, "no end of it: {lines:?}");
        if std::mem::take(&mut load) {
            let mut last = MessageNo(0);
            while let Ok(page) = store.queued(last, 10) {
                let Some(end) = page.last() else { break };
                last = end.no;
                waiting.extend(page.iter().map(|m| m.no));
            }
        }
        for no in waiting.iter().copied().take(3).collect::<Vec<_>>() {
            let read =
                || Ok::<_, StoreError>((store.by_no(no)?, store.body(no)?, store.recipients(no)?));
            let Ok((Some(summary), body, recipients)) = read() else {
                // It comes back.
                waiting.remove(&no);
                continue;
            };
            let Some(body) = body else {
                store.report_damage("a queued message has no body");
                continue;
            };
            waiting.remove(&no);
            let (_, known) = &messages[&summary.id];
            let whole = &known.submission;
            assert_eq!(
                (&body, &summary.sender),
                (&whole.body, &whole.sender),
                "not what was stored"
            );
            for r in recipients.iter().filter(|r| r.state == RecipientState::Queued) {
                let at = usize::try_from(r.position).unwrap();
                assert_eq!(r.address, whole.recipients[at], "to somebody else");
                *sent.entry((summary.id.clone(), r.position)).or_default() += 1;
                deliver(&mut store, no, r.position);
            }
        }
        let committed = store.commit();
        assert!(
            !matches!(committed, Err(StoreError::Failed(_) | StoreError::Full)),
            "{committed:?}"
        );
        if store.is_damaged() {
            let told = store.recover().unwrap();
            assert!(told.is_some());
            lines.extend(told);
            waiting.clear();
            load = true;
        } else if store.is_salvaging() {
            match store.salvage() {
                Ok(Salvaged::Nothing) => {}
                Ok(Salvaged::Queued(found)) => waiting.extend(found.iter().map(|m| m.no)),
                Ok(Salvaged::Finished(tally, line)) => {
                    tallies.push(tally);
                    lines.push(line);
                }
                Err(StoreError::Damaged(_)) => {}
                Err(e) => panic!("{e}"),
            }
        } else if waiting.is_empty() {
            break;
        }
    }
    // The store is usable, and stays so.
    let fresh = store.accept(&submission(1), 60).unwrap();
    assert!(!messages.contains_key(&fresh.id));
    store.commit().unwrap();
    drop(store);
    let (store, told) = Store::open(directory, 0).unwrap();
    assert_eq!(told, None);
    assert_eq!(store.queued(MessageNo(0), 9).unwrap().len(), 1);
    assert!(!store.is_salvaging(), "begun again");
    (sent, tallies, lines)
}

/// What must hold whatever was damaged.
fn check(directory: &Path, messages: &Messages, may_be_silent: bool, what: &str) -> usize {
    let (sent, tallies, lines) = drain(directory, messages);
    let told = lines.join("\n");
    for ((id, position), times) in &sent {
        assert_eq!(*times, 1, "{what}: {id} was sent {times} times to {position}: {told}");
    }
    let repeated = |(id, (_, known)): (&String, &(MessageNo, Known))| {
        known.delivered.iter().filter(|p| sent.contains_key(&(id.clone(), **p))).count()
    };
    let repeated: usize = messages.iter().map(repeated).sum();
    let is_lost = |(id, (_, known)): (&String, &(MessageNo, Known))| {
        (0..known.count())
            .any(|p| !known.delivered.contains(&p) && !sent.contains_key(&(id.clone(), p)))
    };
    let lost = messages.iter().filter(|m| is_lost(*m)).count() as u64;
    let counted = |t: &Tally| t.damaged.len() as u64 + t.missing + t.recipients;
    let counted: u64 = tallies.iter().map(counted).sum();
    let open_end =
        tallies.iter().any(|t| t.open_end) || told.contains("newer") || told.contains("0 bytes");
    assert!(
        lost <= counted || open_end || may_be_silent,
        "{what}: {lost} lost, {counted} counted: {told}"
    );
    if lost + repeated as u64 > 0 && !may_be_silent {
        assert!(told.contains("is kept as"), "{what}: without a word");
    }
    repeated
}

/// Numbers below a bound, always the same for a seed (splitmix64).
fn random(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |below| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % below.max(1) as u64).unwrap()
    }
}

fn garble(path: &Path, from: usize, count: usize, random: &mut impl FnMut(usize) -> usize) {
    let mut bytes = fs::read(path).unwrap();
    let end = (from + count).min(bytes.len());
    for byte in &mut bytes[from.min(end)..end] {
        *byte = u8::try_from(random(256)).unwrap();
    }
    fs::write(path, bytes).unwrap();
}

/// Each page in turn: a damaged root or leaf was fatal for ever, or had the same mails sent again by
/// each new qmgr.
#[test]
fn q8_any_page_garbled_nothing_is_repeated_and_what_can_be_read_is_delivered() {
    let original = tempfile::tempdir().unwrap();
    let messages = build(original.path(), 40, true);
    let size = fs::metadata(original.path().join(NAME)).unwrap().len();
    for page in 0..usize::try_from(size).unwrap() / pages::PAGE {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        fs::copy(original.path().join(NAME), &path).unwrap();
        garble(&path, page * pages::PAGE, pages::PAGE, &mut random(page as u64));
        check(dir.path(), &messages, false, &format!("page {}", page + 1));
    }
}

/// N random damages: bytes flipped anywhere, pages swapped, zeroed, the end cut off, in the file and
/// in its WAL.
#[test]
fn q8_random_damage_is_survived() {
    let (closed, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let origins =
        [(&closed, build(closed.path(), 60, true)), (&killed, build(killed.path(), 60, false))];
    let rounds =
        std::env::var("BELFRY_DAMAGE_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    for round in 0..rounds {
        let mut random = random(1000 + round);
        let (origin, messages) = &origins[random(2)];
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(origin.path()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_name() != "ballast" {
                fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
            }
        }
        let wal = dir.path().join("queue.db-wal");
        let is_wal = wal.exists() && random(3) == 0;
        let path = if is_wal { wal } else { dir.path().join(NAME) };
        let size = usize::try_from(fs::metadata(&path).unwrap().len()).unwrap();
        let what = random(6);
        match what {
            0 => (0..200).for_each(|_| {
                let at = random(size);
                garble(&path, at, 1, &mut random);
            }),
            1 => {
                let at = random(size);
                garble(&path, at, 200, &mut random);
            }
            2 => {
                let mut bytes = fs::read(&path).unwrap();
                bytes.truncate(random(size));
                fs::write(&path, bytes).unwrap();
            }
            3 => {
                let mut bytes = fs::read(&path).unwrap();
                let page = random(size / pages::PAGE) * pages::PAGE;
                bytes[page..page + pages::PAGE].fill(0);
                fs::write(&path, bytes).unwrap();
            }
            4 => {
                let mut bytes = fs::read(&path).unwrap();
                let [a, b] = [0, 1].map(|_| random(size / pages::PAGE) * pages::PAGE);
                let page = bytes[a..a + pages::PAGE].to_vec();
                bytes.copy_within(b..b + pages::PAGE, a);
                bytes[b..b + pages::PAGE].copy_from_slice(&page);
                fs::write(&path, bytes).unwrap();
            }
            _ => (0..1 + random(3)).for_each(|_| {
                let at = random(size);
                garble(&path, at, 1, &mut random);
            }),
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // A WAL that ends early is what a crash leaves: nothing in it tells of what came after.
        let is_seen = pages::wal_of(&dir.path().join(NAME)).is_some_and(|wal| wal.damaged);
        let may_be_silent = is_wal && !is_seen;
        check(
            dir.path(),
            messages,
            may_be_silent,
            &format!("round {round}, kind {what} in {name}"),
        );
    }
}

/// What is in the way is put aside with a line, and qmgr runs.
#[test]
fn q8_whatever_has_the_stores_name_a_store_is_opened() {
    let target = tempfile::tempdir().unwrap();
    type Put = Box<dyn Fn(&Path)>;
    let version = |version: i64| -> Put {
        Box::new(move |path| {
            build(path.parent().unwrap(), 3, true);
            let db = Connection::open(path).unwrap();
            db.pragma_update(None, "user_version", version).unwrap();
        })
    };
    let link = target.path().join("x");
    let cases: Vec<(&str, Put)> = vec![
        ("it has 0 bytes", Box::new(|path| fs::write(path, "").unwrap())),
        ("file is not a database", Box::new(|path| fs::write(path, vec![b'x'; 9000]).unwrap())),
        ("it is a directory", Box::new(|path| fs::create_dir(path).unwrap())),
        ("it is a symbolic link", Box::new(move |path| symlink(&link, path).unwrap())),
        (
            "it is no regular file",
            Box::new(|path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap()),
        ),
        ("its version 3 is of a later program", version(3)),
        ("its version is 12345", version(12345)),
        ("its WAL is there", Box::new(|path| fs::write(damage::with(path, "-wal"), "x").unwrap())),
    ];
    for (cause, put) in cases {
        let dir = tempfile::tempdir().unwrap();
        put(&dir.path().join(NAME));
        let begun = Time::now();
        let (mut store, told) = Store::open(dir.path(), 0).unwrap();
        assert!(Time::now().since(begun).as_secs() < 1);
        let told = told.unwrap();
        assert!(told.contains(cause) && told.contains("is kept as"), "{told}");
        store.accept(&submission(0), 1).unwrap();
        store.commit().unwrap();
    }
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0, "the link was followed");
}

/// A store of a later program keeps its messages for that, and nothing in it is changed.
#[test]
fn q8_a_store_of_a_later_version_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 5, true);
    let path = dir.path().join(NAME);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 3).unwrap();
    let before = fs::read(&path).unwrap();
    let (store, told) = Store::open(dir.path(), 0).unwrap();
    assert!(told.unwrap().contains("rename it back"));
    assert!(!store.is_salvaging());
    assert_eq!(fs::read(dir.path().join("queue.db.newer-1")).unwrap(), before);
}

/// Broken off at any moment, searching begins again and takes nothing over twice.
#[test]
fn q8_salvage_goes_on_after_a_restart_and_repeats_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let messages = build(dir.path(), 130, true);
    garble(&dir.path().join(NAME), pages::PAGE, pages::PAGE, &mut random(1));
    let mut sent: BTreeSet<(String, i64)> = BTreeSet::new();
    for _ in 0..100 {
        let (mut store, _) = Store::open(dir.path(), 0).unwrap();
        if !store.is_salvaging() {
            break;
        }
        // Each process delivers what two steps have brought, and is killed.
        let mut found = 0;
        while found < 2 && store.is_salvaging() {
            let Salvaged::Queued(queued) = store.salvage().unwrap() else { continue };
            found += usize::from(!queued.is_empty());
            for m in queued {
                for r in store.recipients(m.no).unwrap() {
                    if r.state == RecipientState::Queued {
                        assert!(sent.insert((m.id.clone(), r.position)), "{} was sent again", m.id);
                        deliver(&mut store, m.no, r.position);
                    }
                }
            }
            store.commit().unwrap();
        }
    }
    for (id, (_, known)) in &messages {
        for position in 0..known.count() {
            let was_sent = sent.contains(&(id.clone(), position));
            assert_ne!(was_sent, known.delivered.contains(&position), "{id} to {position}");
        }
    }
}

/// 418 copies of 400 mails: what was delivered could not be marked, and each new qmgr sent it again.
#[test]
fn q8_what_was_delivered_and_cannot_be_marked_is_not_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let messages = build(dir.path(), 60, true);
    let (mut store, _) = Store::open(dir.path(), 0).unwrap();
    // In use: the pages are damaged under the open store, without its knowledge.
    let unmarked: Vec<_> = messages
        .iter()
        .filter(|(_, (_, k))| k.delivered.is_empty())
        .map(|(id, (no, _))| (id, *no))
        .collect();
    for (_, no) in &unmarked[..10] {
        deliver(&mut store, *no, 0);
    }
    store.report_damage("as if a page could not be read");
    for (_, no) in &unmarked[10..20] {
        deliver(&mut store, *no, 0);
    }
    store.roll_back();
    assert!(store.recover().unwrap().is_some());
    // While the old one is being searched a report comes in, and qmgr is killed.
    deliver(&mut store, unmarked[20].1, 0);
    store.commit().unwrap();
    drop(store);
    let (sent, ..) = drain(dir.path(), &messages);
    for (id, _) in &unmarked[..21] {
        assert!(!sent.contains_key(&((*id).clone(), 0)), "{id} was sent again");
    }
    for (id, _) in &unmarked[21..] {
        assert!(sent.contains_key(&((*id).clone(), 0)), "{id} was lost");
    }
}

/// The disk does not answer: not a word about damage, and nothing is put aside.
#[test]
fn q8_a_disk_that_does_not_answer_is_no_damage() {
    use rusqlite::ffi;
    for code in [
        ffi::SQLITE_IOERR,
        ffi::SQLITE_NOMEM,
        ffi::SQLITE_BUSY,
        ffi::SQLITE_CANTOPEN,
        ffi::SQLITE_READONLY,
    ] {
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        assert!(matches!(StoreError::from(error), StoreError::Failed(_)), "{code}");
    }
    for code in [ffi::SQLITE_CORRUPT, ffi::SQLITE_NOTADB] {
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        assert!(matches!(StoreError::from(error), StoreError::Damaged(_)), "{code}");
    }
    // Locked by somebody else for a while.
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 3, true);
    let other = Connection::open(dir.path().join(NAME)).unwrap();
    other.execute_batch("PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
    assert!(Store::open(dir.path(), 0).is_err());
    drop(other);
    assert_eq!(Store::open(dir.path(), 0).unwrap().1, None);
}

/// Reads that failed were taken for damage: a perfect store was put aside, and searched while the disk
/// did not answer, so that of 47 messages "nothing was left".
#[test]
fn q8_a_disk_that_cannot_be_read_for_a_while_is_no_damage() {
    for closed in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let messages = build(dir.path(), 60, closed);
        for nth in 1..12 {
            pages::FAIL_FROM.set(Some(nth));
            let opened = Store::open(dir.path(), 0);
            let all_were_read = pages::FAIL_FROM.take().is_some_and(|left| left > 0);
            match opened {
                Err(_) => {}
                Ok((_, told)) => assert_eq!((told, all_were_read), (None, true), "read {nth}"),
            }
        }
        let (mut store, told) = Store::open(dir.path(), 0).unwrap();
        assert_eq!(told, None);
        store.report_damage("as if a page could not be read");
        assert!(store.recover().unwrap().is_some());
        for nth in [1, 2, 5, 9, 14] {
            pages::FAIL_FROM.set(Some(nth));
            while !matches!(store.salvage(), Err(StoreError::Failed(_))) {
                assert!(store.is_salvaging(), "read {nth}");
            }
            pages::FAIL_FROM.set(None);
        }
        drop(store);
        let (sent, tallies, lines) = drain(dir.path(), &messages);
        assert!(tallies.iter().all(|t| t.damaged.is_empty() && t.recipients == 0), "{lines:?}");
        for (id, (_, known)) in &messages {
            for position in 0..known.count() {
                let was_sent = sent.contains_key(&(id.clone(), position));
                assert_ne!(was_sent, known.delivered.contains(&position), "{id} to {position}");
            }
        }
    }
}

/// A page that can never be read ends the search after some attempts, and what is left of the store
/// is told.
#[test]
fn q8_a_page_that_can_never_be_read_does_not_hold_up_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 10, true);
    let (mut store, _) = Store::open(dir.path(), 0).unwrap();
    store.report_damage("as if a page could not be read");
    assert!(store.recover().unwrap().is_some());
    pages::FAIL_FROM.set(Some(3));
    let mut line = String::new();
    for _ in 0..200 {
        if let Ok(Salvaged::Finished(_, told)) = store.salvage() {
            line = told;
        }
    }
    pages::FAIL_FROM.set(None);
    assert!(!store.is_salvaging() && line.contains("rename it to queue.db.damaged-1"), "{line}");
}

/// What a kill leaves at the end of the WAL is no damage, wherever it was cut: nothing is put aside.
#[test]
fn q8_a_kill_at_any_moment_is_no_damage() {
    let origin = tempfile::tempdir().unwrap();
    build(origin.path(), 16, false);
    let wal = fs::read(origin.path().join("queue.db-wal")).unwrap();
    let frame = pages::PAGE + 24;
    let mut random = random(5);
    for round in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        fs::copy(origin.path().join(NAME), &path).unwrap();
        let mut bytes = wal.clone();
        // A WAL that is begun has its header.
        bytes.truncate(32 + random(wal.len() - 31));
        if round % 2 == 0 && bytes.len() > 32 + frame {
            // The frame's header was written and its page was not.
            let whole = (bytes.len() - 32) / frame;
            bytes.truncate(32 + whole * frame);
            let page = bytes.len() - pages::PAGE;
            bytes[page..].fill(0);
        }
        fs::write(damage::with(&path, "-wal"), bytes).unwrap();
        let (store, told) = Store::open(dir.path(), 0).unwrap();
        assert_eq!(told, None);
        assert!(store.queued(MessageNo(0), 99).is_ok());
    }
}

/// Pages that are free keep what was in them; deleted messages are not in the queue again for that.
#[test]
fn q8_what_was_deleted_does_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path(), 0).unwrap();
    let mut messages = Messages::new();
    for n in 0..80 {
        let submission = submission(n);
        let Accepted { no, id, .. } = store.accept(&submission, 40).unwrap();
        messages.insert(id, (no, Known { submission, delivered: BTreeSet::new() }));
    }
    store.commit().unwrap();
    let deleted: Vec<_> = messages
        .iter()
        .filter(|(_, (no, _))| no.0 < 70)
        .map(|(id, (no, _))| (id.clone(), *no))
        .collect();
    deleted.iter().for_each(|(_, no)| store.delete(*no).unwrap());
    store.commit().unwrap();
    drop(store);
    // The header is gone, and with it the list of free pages.
    garble(&dir.path().join(NAME), 0, pages::PAGE, &mut random(3));
    let (sent, ..) = drain(dir.path(), &messages);
    for (id, _) in deleted {
        assert!(!sent.keys().any(|(sent, _)| *sent == id), "{id} was deleted");
    }
    let ids: BTreeSet<_> = sent.keys().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 11, "and the others are there");
}
