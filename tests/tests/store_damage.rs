//! The queue database under attack: links where it should be, damage of every kind, and what became
//! of the mail that was in it.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use belfry_tests::instance::{Instance, account};
use belfry_tests::net::{free_port, submit};
use belfry_tests::relay::Relay;
use belfry_tests::wait;

/// `alertq list` changed owner and mode of what a compromised worker had linked to.
#[test]
fn alertq_as_root_follows_no_link_of_the_mail_owner() {
    let instance = Instance::new();
    instance.write();
    let target = instance.root().join("secret");
    fs::write(&target, "").unwrap();
    fs::set_permissions(&target, Permissions::from_mode(0o644)).unwrap();
    let before = fs::metadata(&target).unwrap();
    symlink(&target, instance.queue().join("queue/queue.db")).unwrap();
    let output = instance.command("alertq").arg("list").output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    let after = fs::metadata(&target).unwrap();
    assert_eq!((after.mode(), after.len()), (before.mode(), 0), "root followed the link");
    let names = fs::read_dir(instance.root()).unwrap().map(|e| e.unwrap().file_name());
    assert!(!names.into_iter().any(|n| n.to_string_lossy().starts_with("secret-")));
    instance.finish(&[]);
}

fn database(instance: &Instance) -> PathBuf {
    instance.queue().join("queue/queue.db")
}

/// Writes nonsense over a part of a file.
fn garble(path: &Path, from: u64, count: usize) {
    let file = fs::File::options().write(true).open(path).expect("it is there");
    file.write_all_at(&vec![0xa5; count], from).expect("/tmp has room");
}

/// Each recipient, with how often it had mail.
fn arrived(relay: &Relay) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for to in relay.taken().into_iter().flat_map(|t| t.recipients) {
        *count.entry(to).or_default() += 1;
    }
    count
}

fn empty(instance: &Instance) -> Option<()> {
    let list = instance.command("alertq").arg("list").output().ok()?;
    (list.stdout == b"Mail queue is empty\n").then_some(())
}

/// Half of the file gone: fatal for ever, with nothing put aside.
#[test]
fn q8_a_store_of_which_half_is_left_is_put_aside_and_its_mail_is_delivered() {
    let port = free_port();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &format!("[127.0.0.1]:{port}")).start();
    submit(instance.port, 0..100);
    instance.stop();
    let path = database(&instance);
    let size = fs::metadata(&path).unwrap().len();
    fs::File::options().write(true).open(&path).unwrap().set_len(size / 8192 * 4096).unwrap();
    let relay = Relay::on(port);
    instance.start();
    instance.log().wait_for("starting an empty one");
    submit(instance.port, 100..101);
    instance.log().wait_for("messages taken over into the queue");
    wait::until("an empty queue", wait::LONG, || empty(&instance));
    let arrived = arrived(&relay);
    assert!(arrived.contains_key("u100@y.example"), "the fresh store works");
    assert!(arrived.len() > 30, "nearly nothing was salvaged: {arrived:?}");
    assert!(arrived.values().all(|n| *n == 1), "sent again: {arrived:?}");
    assert!(path.with_extension("db.salvaged-1").exists());
    // It is over with it: the next start is as any.
    instance.stop().start();
    submit(instance.port, 101..102);
    assert_eq!(instance.log().count("starting an empty one"), 1);
    instance.finish_with(
        &["starting an empty one", "messages taken over"],
        &[" is down: ", "Connection refused"],
    );
}

/// 418 copies of 400 mails in 25 s: qmgr failed at its commit, and each new one sent them again.
#[test]
fn q8_damage_found_in_use_repeats_nothing() {
    let port = free_port();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &format!("[127.0.0.1]:{port}")).start();
    submit(instance.port, 0..300);
    // Every page but the first few, under the running qmgr: it knows of it when it reads them.
    let path = database(&instance);
    let size = fs::metadata(&path).unwrap().len();
    for page in (20..size / 4096).step_by(9) {
        garble(&path, page * 4096, 4096);
    }
    let relay = Relay::on(port);
    let flush = instance.command("alertq").arg("flush").output().unwrap();
    assert!(flush.status.success());
    wait::until("mail", wait::LONG, || (relay.taken().len() > 20).then_some(()));
    // What is in the caches of the running one need not be read again; the next one finds the rest.
    instance.stop().start();
    submit(instance.port, 300..301);
    wait::until("an empty queue", wait::LONG, || empty(&instance));
    let first = arrived(&relay);
    assert!(first.contains_key("u300@y.example"));
    assert!(first.len() > 150, "nearly nothing was salvaged: {}", first.len());
    assert!(first.values().all(|n| *n == 1), "sent again: {first:?}");
    assert!(instance.log().count("starting an empty one") > 0);
    // 87 messages were said to be held, which came back with the rest a moment later.
    assert_eq!(instance.log().count("cannot be read and is held"), 0);
    instance.finish_with(
        &[],
        &[
            "starting an empty one",
            "messages taken over",
            "queue database",
            " is down: ",
            "delivery agent terminated abnormally",
            "Connection refused",
        ],
    );
}

/// A database that is a directory, or root's, was a loop of restarts; one of 0 bytes lost everything
/// without a line.
#[test]
fn q8_whatever_is_in_the_stores_place_mail_flows() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name());
    type Put = fn(&Path);
    let cases: [(&str, Put); 5] = [
        ("it is a directory", |path| fs::create_dir(path).unwrap()),
        ("it is a symbolic link", |path| symlink("/etc/passwd", path).unwrap()),
        ("it belongs to uid 0", |path| fs::write(path, "x").unwrap()),
        ("it has 0 bytes", |path| {
            fs::write(path, "").unwrap();
            let user = account();
            chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }),
        ("it is no regular file", |path| {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
    ];
    for (n, (cause, put)) in cases.into_iter().enumerate() {
        let path = database(&instance);
        if path.exists() {
            fs::remove_file(&path).unwrap();
            let _ = fs::remove_file(path.with_extension("db-wal"));
        }
        put(&path);
        instance.start();
        submit(instance.port, n..n + 1);
        wait::until("the mail", wait::LONG, || (relay.taken().len() > n).then_some(()));
        assert_eq!(instance.log().count(cause), 1, "{cause}");
        instance.stop();
    }
    instance.finish_with(&["starting an empty one"], &["cannot be read", "taken over"]);
}
