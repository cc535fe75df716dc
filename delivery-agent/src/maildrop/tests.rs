//! The drop directory and who may write to it.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use super::*;
use crate::wire::{Header, Lane};

fn submission() -> Submission {
    Submission {
        sender: "a@x".to_owned(),
        recipients: vec!["b@y".to_owned()],
        origin: String::new(),
        lane: Lane::Normal,
        token: String::new(),
        body: b"A: b\r\n\r\nx\r\n".to_vec(),
    }
}

fn collector(directory: &Path) -> Collector {
    Collector::new(directory.to_path_buf(), Limits { bytes: 100_000, recipients: 100 })
}

/// Everything that a pass over the directory finds.
fn all(collector: &mut Collector) -> Found {
    let mut all = Found::default();
    loop {
        let found = collector.step(0).unwrap();
        all.messages.extend(found.messages);
        all.complaints.extend(found.complaints);
        if !found.more {
            return all;
        }
    }
}

#[test]
fn q11_what_was_dropped_is_found_with_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let forged = Submission { origin: "uid 0\u{1b}[2J".to_owned(), ..submission() };
    drop_message(dir.path(), &forged).unwrap();
    let found = all(&mut collector(dir.path()));
    let [Dropped { path, submission: got }] = found.messages.as_slice() else {
        panic!("{found:?}")
    };
    let uid = fs::metadata(path).unwrap().uid();
    let origin = format!("uid {uid} by maildrop (uid 0[2J)");
    assert!(got.token.starts_with("new."), "a file that is found again is known");
    assert_eq!(*got, Submission { origin, token: got.token.clone(), ..submission() });
}

/// Each file its own fate: a 1 GB file rolled back every batch at every wakeup, a name of 255 bytes
/// could not be renamed to a longer one.
#[test]
fn whatever_lies_in_the_directory_a_message_in_it_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let name = |n: &str| dir.path().join(format!("new.{n}"));
    let put =
        |n: &str, s: &Submission| fs::write(name(n), Header::Offer(s.clone()).encode()).unwrap();
    let with =
        |recipient: &str| Submission { recipients: vec![recipient.to_owned()], ..submission() };
    fs::write(name("garbage"), "W").unwrap();
    fs::write(name("empty"), "").unwrap();
    fs::write(name(&"x".repeat(251)), "long name").unwrap();
    fs::write(dir.path().join("other"), "not ours").unwrap();
    put("parameters", &with("\"a\"@b> X=Y"));
    put("null", &with("a\0@b"));
    put("nobody", &Submission { recipients: Vec::new(), ..submission() });
    put("many", &Submission { recipients: vec!["a@b".to_owned(); 101], ..submission() });
    put("sender", &Submission { sender: "a b@c".to_owned(), ..submission() });
    put("large", &Submission { body: vec![b'x'; 200_000], ..submission() });
    let sparse = fs::File::create(name("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    put("linked", &submission());
    fs::hard_link(name("linked"), name("link")).unwrap();
    symlink("/etc/passwd", name("symlink")).unwrap();
    nix::unistd::mkfifo(&name("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(name("directory")).unwrap();
    let bad = fs::read_dir(dir.path()).unwrap().count();
    put("good", &submission());
    let mut collector = collector(dir.path());
    let found = all(&mut collector);
    assert_eq!(found.messages.len(), 1, "{:#?}", found.complaints);
    assert_eq!(found.messages[0].path, name("good"));
    assert_eq!(found.complaints.len(), bad, "{:#?}", found.complaints);
    assert_eq!(fs::read_dir(dir.path().join("corrupt")).unwrap().count(), bad);
    let again = all(&mut collector);
    assert_eq!((again.messages.len(), again.complaints), (1, Vec::new()));
}

#[test]
fn what_cannot_be_put_aside_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing can be moved into it, and it can be replaced by a directory.
    symlink("/nonexistent", dir.path().join("corrupt")).unwrap();
    fs::write(dir.path().join("new.x"), "W").unwrap();
    let mut collector = collector(dir.path());
    let complaints = all(&mut collector).complaints;
    assert!(complaints[0].ends_with("new.x: not a message; moved to corrupt/"), "{complaints:?}");
    all(&mut collector);
    assert_eq!(all(&mut collector).complaints, [] as [String; 0]);
}

/// Line ends and null bytes in a file are put right as sendmail does it, and are no reason to refuse it.
#[test]
fn a_message_in_a_file_is_made_fit() {
    let dir = tempfile::tempdir().unwrap();
    let raw = Submission { body: b"A: b\n\nx\0y\rz\n".to_vec(), ..submission() };
    drop_message(dir.path(), &raw).unwrap();
    let found = all(&mut collector(dir.path()));
    assert_eq!(found.messages[0].submission.body, b"A: b\r\n\r\nxy z\r\n");
}

#[test]
fn a_full_directory_is_taken_in_part_by_part() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..700 {
        let bytes = Header::Offer(submission()).encode();
        fs::write(dir.path().join(format!("new.{n}")), bytes).unwrap();
    }
    let mut collector = collector(dir.path());
    let (mut names, mut steps) = (Vec::<PathBuf>::new(), 0);
    loop {
        let found = collector.step(0).unwrap();
        assert!(found.messages.len() <= 200);
        names.extend(found.messages.into_iter().map(|m| m.path));
        steps += 1;
        if !found.more {
            break;
        }
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 700);
    assert!(steps >= 4);
}

#[test]
fn a_stale_partial_file_is_removed_and_a_fresh_one_left() {
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join("tmp.1.x");
    fs::write(&partial, "half").unwrap();
    let written = fs::metadata(&partial).unwrap().mtime().unsigned_abs();
    collector(dir.path()).step(written + 5).unwrap();
    assert!(partial.exists());
    collector(dir.path()).step(written + 36 * 3600 + 1).unwrap();
    assert!(!partial.exists());
}

#[test]
fn a_message_that_comes_in_pieces_is_whole_and_one_that_is_given_up_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut draft = Draft::new(dir.path(), &submission()).unwrap();
    draft.write(b"more\r\n").unwrap();
    let mut bytes = [0; 20];
    let count = draft.read(0, &mut bytes).unwrap();
    assert_eq!(&bytes[..count], b"more\r\n");
    draft.finish().unwrap();
    let found = all(&mut collector(dir.path()));
    assert_eq!(found.messages[0].submission.body, b"A: b\r\n\r\nx\r\nmore\r\n");
    drop(Draft::new(dir.path(), &submission()).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
