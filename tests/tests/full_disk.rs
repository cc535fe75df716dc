//! A full disk: 452 and exit status 75, and nothing that was taken is lost.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Stdio;

use belfry_tests::instance::{Instance, account};
use belfry_tests::net::{Client, free_port};
use belfry_tests::peer;
use belfry_tests::relay::Relay;
use belfry_tests::wait;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A file system of a few megabytes at an instance's queue/ or maildrop/.
struct Small {
    at: std::path::PathBuf,
}

impl Small {
    /// None where nothing may be mounted, such as in a container without the right to; the gate
    /// insists on it.
    fn mount(instance: &Instance, name: &str, mode: u32, size: &str) -> Option<Self> {
        let at = instance.queue().join(name);
        let options = format!("size={size},mode={mode:o}");
        let mounted = mount(
            Some("belfry-test"),
            &at,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        );
        assert!(mounted.is_ok() || !peer::required(), "mount a tmpfs: {mounted:?}");
        mounted.ok()?;
        let user = account();
        chown(&at, Some(user.uid.as_raw()), Some(user.gid.as_raw())).ok()?;
        fs::set_permissions(&at, Permissions::from_mode(mode)).ok()?;
        Some(Self { at })
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

/// Fills a file system to the last byte.
fn fill(small: &Small) {
    let mut file = File::create(small.at.join("filler")).expect("there is room for a name");
    let block = [0; 4096];
    while file.write_all(&block).is_ok() {}
    let mut byte = || file.write_all(&block[..1]);
    while byte().is_ok() {}
}

fn sendmail(instance: &Instance, to: &str) -> (i32, String) {
    let mut command = instance.command("sendmail");
    command.args(["-i", to]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("sendmail was built");
    let text = format!("Subject: x\n\n{}", "0123456789\n".repeat(1000));
    let _ = child.stdin.take().expect("it is a pipe").write_all(text.as_bytes());
    let output = child.wait_with_output().expect("it is our child");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn submit(instance: &Instance, to: &str) -> u16 {
    let mut client = Client::tcp(instance.port).expect("smtpd serves");
    let text = format!("Subject: x\r\n\r\n{}", "0123456789\r\n".repeat(1000));
    client.send("a@x.example", &[to], &text).expect("smtpd answers").code
}

#[test]
fn q9_below_queue_minfree_nothing_is_taken() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    // More than any disk has.
    instance
        .parameter("relayhost", &relay.name())
        .parameter("queue_minfree", "1000000000000000000");
    instance.start();
    assert_eq!(submit(&instance, "b@y.example"), 452);
    assert_eq!(submit(&instance, "b@y.example"), 452);
    assert_eq!(relay.taken(), []);
    assert_eq!(instance.log().count("insufficient disk space"), 1, "told once");
    instance.finish(&["insufficient disk space"]);
}

#[test]
fn q9_a_full_disk_refuses_and_loses_nothing() {
    let port = free_port();
    let mut instance = Instance::new();
    // No relay yet: what is taken stays in the queue.
    instance.parameter("relayhost", &format!("[127.0.0.1]:{port}")).parameter("queue_minfree", "0");
    let Some(small) = Small::mount(&instance, "queue", 0o700, "8m") else {
        return instance.finish(&[]);
    };
    let drops = Small::mount(&instance, "maildrop", 0o1730, "64k").unwrap();
    instance.start();
    let mut taken = BTreeSet::new();
    for n in 0..20 {
        let to = format!("u{n}@y.example");
        assert_eq!(submit(&instance, &to), 250);
        taken.insert(to);
    }
    fill(&small);
    fill(&drops);
    // What the store had set aside is used up first; then there is an end.
    let mut refused = 0;
    for n in 20..2000 {
        let to = format!("u{n}@y.example");
        match submit(&instance, &to) {
            250 => assert!(taken.insert(to)),
            code => {
                assert_eq!(code, 452);
                refused += 1;
                if refused == 3 {
                    break;
                }
            }
        }
    }
    assert_eq!(refused, 3, "the disk did not become full");
    let (status, said) = sendmail(&instance, "last@y.example");
    assert_eq!(status, 75, "{said}");
    assert!(said.starts_with("sendmail: fatal: ") && said.lines().count() == 1, "{said}");

    // What was taken goes out although the disk is still full.
    let relay = Relay::on(port);
    wait::until("all that was taken", wait::LONG * 2, || {
        let arrived: BTreeSet<_> = relay.taken().into_iter().flat_map(|t| t.recipients).collect();
        taken.is_subset(&arrived).then_some(())
    });
    fs::remove_file(small.at.join("filler")).unwrap();
    wait::until("the store to take mail again", wait::LONG, || {
        (submit(&instance, "again@y.example") == 250).then_some(())
    });
    wait::until("an empty queue", wait::LONG, || {
        let list = instance.command("alertq").arg("list").output().ok()?;
        (list.stdout == b"Mail queue is empty\n").then_some(())
    });
    let arrived: Vec<_> = relay.taken().into_iter().flat_map(|t| t.recipients).collect();
    let distinct: BTreeSet<_> = arrived.iter().cloned().collect();
    assert_eq!(arrived.len(), distinct.len(), "sent again: {arrived:?}");
    instance.stop();
    drop((small, drops));
    instance
        .finish_with(&["insufficient disk space", " is down: "], &["messages stay in maildrop"]);
}

#[test]
fn q9_a_full_drop_directory_is_75() {
    let mut instance = Instance::new();
    instance.parameter("relayhost", "[127.0.0.1]:9");
    let Some(drops) = Small::mount(&instance, "maildrop", 0o1730, "64k") else {
        return instance.finish(&[]);
    };
    instance.write();
    fill(&drops);
    let (status, said) = sendmail(&instance, "b@y.example");
    assert_eq!(status, 75, "{said}");
    assert!(said.contains("No space left on device") && said.lines().count() == 1, "{said}");
    let left: Vec<_> = fs::read_dir(&drops.at).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["filler"], "half a message is left");
    drop(drops);
    instance.finish(&[]);
}

/// Time of a processor that a process has used, in clock ticks (proc_pid_stat(5)).
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

/// 700 drop files on a full disk took 80 % of a processor: they were read again and again.
#[test]
fn drop_files_wait_without_work_while_the_disk_is_full() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).parameter("queue_minfree", "4000000");
    let Some(small) = Small::mount(&instance, "queue", 0o700, "16m") else {
        return instance.finish(&[]);
    };
    instance.write();
    fill(&small);
    for n in 0..300 {
        assert_eq!(sendmail(&instance, &format!("u{n}@y.example")), (0, String::new()));
    }
    // The store itself needs some room.
    let filler = small.at.join("filler");
    File::options().write(true).open(&filler).unwrap().set_len(14_000_000).unwrap();
    instance.start();
    instance.log().wait_for("messages stay in maildrop, retrying in 1s: the disk is full");
    let qmgr = instance.workers("qmgr").first().expect("it runs").pid;
    let before = ticks(qmgr);
    std::thread::sleep(std::time::Duration::from_secs(4));
    let used = ticks(qmgr) - before;
    // A twentieth of the time, at 100 ticks a second.
    assert!(used < 20, "{used} ticks in 4 s");
    fs::remove_file(filler).unwrap();
    wait::until("all messages", wait::LONG * 2, || (relay.taken().len() == 300).then_some(()));
    wait::until("an empty queue", wait::LONG, || {
        let list = instance.command("alertq").arg("list").output().ok()?;
        (list.stdout == b"Mail queue is empty\n").then_some(())
    });
    instance.stop();
    drop(small);
    instance.finish(&["messages stay in maildrop"]);
}

/// A mail of 100 kB.
fn submit_large(instance: &Instance, to: &str) -> u16 {
    let mut client = Client::tcp(instance.port).expect("smtpd serves");
    let text = format!("Subject: x\r\n\r\n{}", "0123456789\r\n".repeat(8500));
    client.send("a@x.example", &[to], &text).expect("smtpd answers").code
}

/// Mails of 100 kB until the disk is full.
fn submit_until_full(instance: &Instance) -> BTreeSet<String> {
    let mut taken = BTreeSet::new();
    let mut refused = 0;
    for n in 0..2000 {
        let to = format!("u{n}@y.example");
        match submit_large(instance, &to) {
            250 => assert!(taken.insert(to)),
            code => {
                assert_eq!(code, 452);
                refused += 1;
                if refused == 3 {
                    return taken;
                }
            }
        }
    }
    panic!("the disk did not become full");
}

/// With queue_minfree = 0 no mark was ever saved, and a restart repeated 184 mails of 186.
#[test]
fn q9_marks_are_saved_on_a_full_disk_and_a_restart_repeats_nothing() {
    let port = free_port();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &format!("[127.0.0.1]:{port}")).parameter("queue_minfree", "0");
    let Some(small) = Small::mount(&instance, "queue", 0o700, "24m") else {
        return instance.finish(&[]);
    };
    instance.start();
    let taken = submit_until_full(&instance);
    fill(&small);
    let relay = Relay::on(port);
    wait::until("all that was taken", wait::LONG * 2, || {
        (relay.taken().len() >= taken.len()).then_some(())
    });
    instance.log().wait_for_count(": removed", taken.len());
    instance.kill().start();
    wait::until("an empty queue", wait::LONG, || {
        let list = instance.command("alertq").arg("list").output().ok()?;
        (list.stdout == b"Mail queue is empty\n").then_some(())
    });
    let arrived: Vec<_> = relay.taken().into_iter().flat_map(|t| t.recipients).collect();
    let distinct: BTreeSet<_> = arrived.iter().cloned().collect();
    assert_eq!(distinct, taken);
    assert_eq!(arrived.len(), taken.len(), "sent again");
    instance.stop();
    drop(small);
    instance.finish_with(&["insufficient disk space"], &[" is down: ", "No space left"]);
}

/// The file never shrank and its free pages were no room: after a full disk it was 452 for ever.
#[test]
fn q9_after_a_full_disk_mail_is_accepted_again_and_the_file_shrinks() {
    let port = free_port();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &format!("[127.0.0.1]:{port}"));
    let Some(small) = Small::mount(&instance, "queue", 0o700, "32m") else {
        return instance.finish(&[]);
    };
    instance.start();
    let taken = submit_until_full(&instance);
    let file = small.at.join("queue.db");
    let size = fs::metadata(&file).unwrap().len();
    let relay = Relay::on(port);
    wait::until("all that was taken", wait::LONG * 2, || {
        (relay.taken().len() >= taken.len()).then_some(())
    });
    instance.log().wait_for("disk space available, accepting mail again");
    assert_eq!(submit_large(&instance, "again@y.example"), 250);
    wait::until("the file to shrink", wait::LONG, || {
        (fs::metadata(&file).unwrap().len() < size / 2).then_some(())
    });
    assert_eq!(instance.log().count("insufficient disk space"), 1);
    assert_eq!(instance.log().count("accepting mail again"), 1);
    instance.stop();
    drop(small);
    instance.finish_with(&["insufficient disk space"], &[" is down: "]);
}
