use super::*;
use std::fs;

fn submission() -> Submission {
    Submission {
        sender: "a@x".to_owned(),
        recipients: vec!["b@y".to_owned(), "c@y".to_owned()],
        origin: "uid 0".to_owned(),
        lane: Lane::Normal,
        token: String::new(),
        body: b"Subject: x\r\n\r\ny\r\n".to_vec(),
    }
}

fn open(dir: &Path) -> Store {
    let (store, damage) = Store::open(dir, 0).unwrap();
    assert_eq!(damage, None);
    store
}

#[test]
fn q3_a_message_lives_until_its_last_recipient_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let Accepted { no, id, .. } = store.accept(&submission(), 100).unwrap();
    store.commit().unwrap();
    drop(store);
    let mut store = open(dir.path());
    assert_eq!(store.by_id(&id).unwrap().unwrap().no, no);
    assert_eq!(store.body(no).unwrap(), Some(submission().body));
    let mark = |n, state| vec![(n, state, "250 ok".to_owned())];
    assert!(!store.mark(no, &mark(0, RecipientState::Delivered), 101).unwrap());
    assert!(store.mark(no, &mark(1, RecipientState::Failed), 102).unwrap());
    store.commit().unwrap();
    assert_eq!(store.queued(MessageNo(0), 9).unwrap(), []);
    assert!(store.body(no).unwrap().is_some(), "it can be sent again to the one it failed for");
    assert_eq!(store.failed().unwrap()[0].no, no);
    assert_eq!(store.ended(9).unwrap()[0].done, 102);
    assert_eq!(store.recipients(no).unwrap()[1].state, RecipientState::Failed);
    assert_eq!(store.forget_ended(103).unwrap(), 1);
    store.commit().unwrap();
    assert_eq!(store.by_id(&id).unwrap(), None);
    assert_eq!(store.body(no).unwrap(), None);
    let Accepted { no, .. } = store.accept(&submission(), 100).unwrap();
    let both = [mark(0, RecipientState::Delivered), mark(1, RecipientState::Delivered)].concat();
    assert!(store.mark(no, &both, 101).unwrap());
    assert_eq!((store.body(no).unwrap(), store.failed().unwrap()), (None, vec![]));
}

#[test]
fn q4_what_was_not_committed_is_not_queued() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.accept(&submission(), 100).unwrap();
    store.roll_back();
    store.accept(&submission(), 100).unwrap();
    drop(store);
    assert_eq!(open(dir.path()).queued(MessageNo(0), 9).unwrap(), []);
}

/// An offer that came between a failed commit and the opening again was rolled back there, and the next
/// commit, with nothing to do, told it as queued.
#[test]
fn q4_what_came_before_the_store_was_opened_again_is_not_queued() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.accept(&submission(), 100).unwrap();
    assert_eq!(store.recover().unwrap(), None);
    assert_eq!(store.commit(), Err(StoreError::Reopened));
    assert_eq!(store.queued(MessageNo(0), 9).unwrap(), []);
    store.accept(&submission(), 100).unwrap();
    assert_eq!(store.commit(), Ok(()));
    assert_eq!(store.queued(MessageNo(0), 9).unwrap().len(), 1);
}

/// A message refused with 451 because its commit had failed at the fsync was in the store when that was
/// opened again: listed as queued, never tried, and sent after the next start.
#[test]
fn q8_what_was_refused_is_not_in_the_store_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let kept = store.accept(&submission(), 100).unwrap();
    store.commit().unwrap();
    let refused = store.accept(&submission(), 100).unwrap();
    store.commit().unwrap();
    // As a commit leaves it whose frames are in the WAL, and whose fsync has failed.
    store.refused.push(refused.no.0);
    assert_eq!(store.recover().unwrap(), None);
    let numbers = |store: &Store| -> Vec<_> {
        store.queued(MessageNo(0), 9).unwrap().iter().map(|m| m.no).collect()
    };
    assert_eq!(numbers(&store), [kept.no]);
    let next = store.accept(&submission(), 100).unwrap();
    store.commit().unwrap();
    assert!(next.no > refused.no, "the number is given once");
    assert_eq!(store.recover().unwrap(), None);
    assert_eq!(numbers(&store), [kept.no, next.no]);
    store.refused.push(next.no.0);
    store.report_damage("as if a page could not be read");
    assert!(store.recover().unwrap().is_some());
    while store.is_salvaging() {
        store.salvage().unwrap();
    }
    assert_eq!(numbers(&store), [kept.no]);
}

/// A WAL that could not be written was a crash loop.
#[test]
fn q8_files_that_may_not_be_written_are_made_so_and_a_foreign_wal_is_put_aside() {
    use std::os::unix::fs::PermissionsExt;
    for name in ["queue.db", "queue.db-wal"] {
        let (killed, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut store = open(killed.path());
        store.accept(&submission(), 100).unwrap();
        store.commit().unwrap();
        for name in ["queue.db", "queue.db-wal"] {
            fs::copy(killed.path().join(name), dir.path().join(name)).unwrap();
        }
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o400)).unwrap();
        let store = open(dir.path());
        assert_eq!(store.queued(MessageNo(0), 9).unwrap().len(), 1, "{name}");
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let _ = fs::remove_file(dir.path().join("queue.db-wal"));
    fs::create_dir(dir.path().join("queue.db-wal")).unwrap();
    let (mut store, told) = Store::open(dir.path(), 0).unwrap();
    assert!(told.unwrap().contains("its WAL is a directory"));
    store.accept(&submission(), 1).unwrap();
    store.commit().unwrap();
}

#[test]
fn q8_a_damaged_store_is_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("queue.db"), "this is no database, whatever it looks like").unwrap();
    let (mut store, damage) = Store::open(dir.path(), 0).unwrap();
    assert!(damage.unwrap().contains("queue.db.damaged-1"));
    store.accept(&submission(), 1).unwrap();
    store.commit().unwrap();
}

#[test]
fn q9_without_free_space_nothing_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(dir.path(), u64::MAX / 2).unwrap();
    assert_eq!(store.accept(&submission(), 1), Err(StoreError::Full));
}

#[test]
fn q9_a_full_store_can_still_mark_what_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let no = store.accept(&submission(), 1).unwrap().no;
    store.commit().unwrap();
    let pages: i64 = store.db().unwrap().query_row("PRAGMA page_count", [], |r| r.get(0)).unwrap();
    store.db().unwrap().pragma_update(None, "max_page_count", pages).unwrap();
    let big = Submission { body: vec![b'x'; 1 << 20], ..submission() };
    assert_eq!(store.accept(&big, 2), Err(StoreError::Full));
    assert_eq!(store.commit(), Err(StoreError::Full));
    let marks: Vec<_> = [0, 1].map(|n| (n, RecipientState::Delivered, "250 ok".to_owned())).into();
    assert!(store.mark(no, &marks, 3).unwrap());
    store.commit().unwrap();
}

#[test]
fn q9_what_goes_down_with_a_transaction_is_told_or_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let no = store.accept(&submission(), 1).unwrap().no;
    store.commit().unwrap();
    let pages: i64 = store.db().unwrap().query_row("PRAGMA page_count", [], |r| r.get(0)).unwrap();
    store.db().unwrap().pragma_update(None, "max_page_count", pages + 1).unwrap();
    let marks: Vec<_> = [0, 1].map(|n| (n, RecipientState::Delivered, "250 ok".to_owned())).into();
    assert!(store.mark(no, &marks, 3).unwrap());
    store.accept(&submission(), 4).unwrap();
    let big = Submission { body: vec![b'x'; 1 << 20], ..submission() };
    assert_eq!(store.accept(&big, 5), Err(StoreError::Full));
    assert_eq!(store.commit(), Err(StoreError::Full), "the small one is not queued either");
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.queued(MessageNo(0), 9).unwrap(), [], "and the mark is on disk");
    assert_eq!(store.by_no(no).unwrap().unwrap().done, 3);
}

#[test]
fn q4_a_submission_offered_again_is_queued_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let again = Submission { token: "t".to_owned(), ..submission() };
    let first = store.accept(&again, 100).unwrap();
    assert!(first.fresh);
    store.commit().unwrap();
    drop(store);
    let mut store = open(dir.path());
    assert_eq!(store.accept(&again, 101).unwrap(), Accepted { fresh: false, ..first });
    store.accept(&submission(), 102).unwrap();
    store.accept(&submission(), 103).unwrap();
    store.commit().unwrap();
    assert_eq!(store.queued(MessageNo(0), 9).unwrap().len(), 3, "without a token all differ");
}

#[test]
fn ids_are_short_and_differ() {
    assert_eq!(queue_id(1, 0), "000000001");
    assert_ne!(queue_id(1, 5), queue_id(1, 6));
    assert_ne!(queue_id(1, 5), queue_id(2, 5));
    assert_eq!(queue_id(i64::MAX, 5).len(), 5 + 13);
}

#[test]
fn q9_full_in_the_middle_of_a_turn_what_was_told_is_what_is_on_disk() {
    // SQLite gave up the transaction by itself, and what followed was on disk at once while its
    // client was told that it was not.
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let first = store.accept(&submission(), 1).unwrap().no;
    store.commit().unwrap();
    let pages: i64 = store.db().unwrap().query_row("PRAGMA page_count", [], |r| r.get(0)).unwrap();
    store.db().unwrap().pragma_update(None, "max_page_count", pages + 4).unwrap();
    let big = Submission { body: vec![b'x'; 1 << 20], ..submission() };
    let results = [submission(), big, submission()].map(|s| store.accept(&s, 2));
    let commit = store.commit();
    assert!(!matches!(commit, Err(StoreError::Failed(_))), "{commit:?} would end qmgr");
    let told = results.into_iter().filter_map(|r| commit.clone().and(r).ok()).map(|a| a.no);
    let told: Vec<_> = std::iter::once(first).chain(told).collect();
    drop(store);
    let on_disk = open(dir.path()).queued(MessageNo(0), 99).unwrap();
    assert_eq!(on_disk.iter().map(|m| m.no).collect::<Vec<_>>(), told);
}

/// Names and contents of what is in a directory.
fn snapshot(dir: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let entries = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> =
        entries.map(|p| (p.file_name().unwrap().to_owned(), fs::read(&p).unwrap())).collect();
    files.sort();
    files
}

/// A look as root left files behind and changed what it found.
#[test]
fn a_look_at_the_store_changes_nothing_and_follows_no_link() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let id = store.accept(&submission(), 1).unwrap().id;
    store.commit().unwrap();
    // As after a kill: the message is in the WAL.
    let killed = tempfile::tempdir().unwrap();
    for (name, bytes) in snapshot(dir.path()) {
        fs::write(killed.path().join(name), bytes).unwrap();
    }
    drop(store);
    for place in [&dir, &killed] {
        let before = snapshot(place.path());
        let looked = Store::look(place.path()).unwrap();
        assert!(looked.by_id(&id).unwrap().is_some());
        drop(looked);
        assert_eq!(snapshot(place.path()), before);
    }
    let other = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(dir.path().join("queue.db"), other.path().join("queue.db")).unwrap();
    assert!(Store::look(other.path()).is_err());
    let none = tempfile::tempdir().unwrap();
    assert!(Store::look(none.path()).is_err());
    assert_eq!(snapshot(none.path()), [], "looking must not make a store");
}

/// What followed an automatic rollback was on disk at once, while its client was told that it was not
/// queued.
#[test]
fn a_submission_after_an_automatic_rollback_is_refused_and_not_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.accept(&submission(), 1).unwrap();
    // As SQLite does by itself, in an operation that tells nobody.
    store.db().unwrap().execute_batch("ROLLBACK").unwrap();
    assert!(store.accept(&submission(), 2).is_err());
    assert!(store.accept(&submission(), 3).is_err());
    assert!(store.commit().is_err());
    let Accepted { no, .. } = store.accept(&submission(), 4).unwrap();
    store.commit().unwrap();
    drop(store);
    let queued = open(dir.path()).queued(MessageNo(0), 9).unwrap();
    assert_eq!(queued.iter().map(|m| m.no).collect::<Vec<_>>(), [no]);
}

/// A clock that was ahead has left times in the future: they are put right, and what has ended is
/// forgotten in the end.
#[test]
fn times_of_a_wrong_clock_are_put_right() {
    const YEAR: u64 = 365 * 86400;
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let [waiting, ended] = [0, 1].map(|_| store.accept(&submission(), 2 * YEAR).unwrap().no);
    store.defer(waiting, 1, 2 * YEAR + 60, "451 later", false).unwrap();
    let marks: Vec<_> = [0, 1].map(|n| (n, RecipientState::Delivered, "250 ok".to_owned())).into();
    assert!(store.mark(ended, &marks, 2 * YEAR).unwrap());
    store.commit().unwrap();
    // A year is behind us.
    assert!(store.ends_after(YEAR).unwrap());
    store.clamp_times(YEAR, 1800).unwrap();
    store.commit().unwrap();
    let m = store.by_no(waiting).unwrap().unwrap();
    assert_eq!((m.arrived, m.next_try), (YEAR, YEAR + 1800));
    assert_eq!(store.by_no(ended).unwrap().unwrap().done, YEAR);
    assert!(!store.ends_after(YEAR).unwrap());
    assert_eq!(store.forget_ended(YEAR + 1).unwrap(), 1);
    // And forward again: what this process has stored moves along.
    store.move_times(MessageNo(0), i64::try_from(YEAR).unwrap()).unwrap();
    store.commit().unwrap();
    let m = store.by_no(waiting).unwrap().unwrap();
    assert_eq!((m.arrived, m.next_try), (2 * YEAR, 2 * YEAR + 1800));
}

/// A store of the first version goes on, with what is in it, and can shrink from then on.
#[test]
fn a_store_of_the_first_version_is_taken_over_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let db = Connection::open(dir.path().join(NAME)).unwrap();
    db.execute_batch(
        "PRAGMA journal_mode=WAL;
        CREATE TABLE message(
            no INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, arrived INTEGER NOT NULL,
            sender TEXT NOT NULL, size INTEGER NOT NULL, origin TEXT NOT NULL, lane INTEGER NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0, next_try INTEGER NOT NULL,
            why TEXT NOT NULL DEFAULT '', held INTEGER NOT NULL DEFAULT 0,
            done INTEGER NOT NULL DEFAULT 0, token TEXT);
        CREATE UNIQUE INDEX message_token ON message(token);
        CREATE INDEX message_done ON message(done);
        CREATE TABLE recipient(
            message INTEGER NOT NULL REFERENCES message(no) ON DELETE CASCADE,
            position INTEGER NOT NULL, address TEXT NOT NULL, state INTEGER NOT NULL DEFAULT 0,
            reply TEXT NOT NULL DEFAULT '', PRIMARY KEY(message, position)) WITHOUT ROWID;
        CREATE TABLE body(
            message INTEGER PRIMARY KEY REFERENCES message(no) ON DELETE CASCADE, bytes BLOB NOT NULL);
        INSERT INTO message(id, arrived, sender, size, origin, lane, next_try)
            VALUES('X1', 5, 'a@x', 3, 'uid 0', 1, 5);
        INSERT INTO recipient(message, position, address) VALUES(1, 0, 'b@y');
        INSERT INTO body VALUES(1, x'616263');
        PRAGMA user_version=1;",
    )
    .unwrap();
    drop(db);
    let mut store = open(dir.path());
    let m = store.by_id("X1").unwrap().unwrap();
    assert_eq!(store.body(m.no).unwrap().unwrap(), b"abc");
    assert_eq!(store.recipients(m.no).unwrap()[0].address, "b@y");
    store.accept(&submission(), 6).unwrap();
    store.commit().unwrap();
    let vacuum = |row: &Row<'_>| row.get::<_, i64>(0);
    assert_eq!(store.db().unwrap().query_row("PRAGMA auto_vacuum", [], vacuum), Ok(2));
    drop(store);
    assert_eq!(open(dir.path()).queued(MessageNo(0), 9).unwrap().len(), 2);
}
