//! How mail comes in when clients are idle, hostile, or too many.

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use belfry_tests::instance::{Instance, account};
use belfry_tests::net::Client;
use belfry_tests::relay::Relay;
use belfry_tests::wait;
use delivery_agent::maildrop;
use delivery_agent::wire::{Lane, Submission};
use worker_proto::clock::Time;

/// 200 idle connections made a good client wait for 599 s: nobody told a worker that was there before
/// the stress, and each new one had the full time for its idle client.
#[test]
fn a_good_client_is_served_within_seconds_while_every_worker_has_an_idle_one() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).parameter("default_process_limit", "10").start();
    let idle: Vec<_> = (0..30)
        .map(|n| {
            let mut stream = TcpStream::connect(("127.0.0.1", instance.port)).unwrap();
            // Some introduce themselves first.
            if n % 3 == 0 {
                stream.write_all(b"EHLO idle\r\n").unwrap();
            }
            stream
        })
        .collect();
    let start = Time::now();
    let mut client = Client::tcp(instance.port).unwrap();
    let reply = client.send("a@x.example", &["b@y.example"], "Subject: x\r\n\r\nx\r\n").unwrap();
    assert_eq!(reply.code, 250, "{}", reply.text);
    let waited = Time::now().since(start);
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    println!("waited {waited:?}");
    drop((idle, client));
    wait::until("the message", wait::LONG, || (!relay.taken().is_empty()).then_some(()));
    instance.finish(&[]);
}

/// The header lines of an HTTP POST were bad commands, then its body spoke SMTP.
#[test]
fn a_web_page_cannot_hand_in_mail() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).start();
    let mut stream = TcpStream::connect(("127.0.0.1", instance.port)).unwrap();
    let body = "HELO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y>\r\nDATA\r\n\r\nx\r\n.\r\nQUIT\r\n";
    let length = body.len();
    // The server may have closed before all of it is written.
    let _ = write!(stream, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}");
    instance.log().wait_for("non-SMTP command from smtp 127.0.0.1: POST / HTTP/1.1");
    let mut client = Client::tcp(instance.port).unwrap();
    let reply = client.send("a@x.example", &["last@y.example"], "Subject: x\r\n\r\nx\r\n").unwrap();
    assert_eq!(reply.code, 250, "{}", reply.text);
    wait::until("the message", wait::LONG, || (!relay.taken().is_empty()).then_some(()));
    assert_eq!(relay.taken()[0].recipients, ["last@y.example"]);
    instance.finish(&["non-SMTP command"]);
}

/// A file of 1 GB rolled back every batch at every wakeup: no mail left maildrop any more.
#[test]
fn no_file_in_maildrop_keeps_another_one_waiting() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name());
    instance.write();
    let maildrop = instance.queue().join("maildrop");
    let drop_message = |to: &str| {
        let submission = Submission {
            sender: "a@x.example".to_owned(),
            recipients: vec![to.to_owned()],
            origin: String::new(),
            lane: Lane::Normal,
            token: String::new(),
            body: b"Subject: x\r\n\r\nx\r\n".to_vec(),
        };
        maildrop::drop_message(&maildrop, &submission).unwrap();
        fs::read_dir(&maildrop).unwrap().for_each(|entry| {
            let path = entry.unwrap().path();
            let _ = chown(&path, Some(account().uid.as_raw()), Some(account().gid.as_raw()));
        });
    };
    let name = |n: &str| maildrop.join(format!("new.{n}"));
    File::create(name("sparse")).unwrap().set_len(1 << 30).unwrap();
    fs::write(name(&"x".repeat(251)), "long name").unwrap();
    fs::write(name("unreadable"), "secret").unwrap();
    fs::set_permissions(name("unreadable"), fs::Permissions::from_mode(0o000)).unwrap();
    nix::unistd::mkfifo(&name("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    drop_message("good@y.example");
    drop_message("\"a\"@b> X=Y");
    drop_message("last@y.example");
    instance.start();
    wait::until("two messages", wait::LONG, || (relay.taken().len() == 2).then_some(()));
    instance.log().wait_for_count("moved to corrupt/", 5);
    assert_eq!(fs::read_dir(maildrop.join("corrupt")).unwrap().count(), 5);
    instance.log().wait_for_count(": removed", 2);
    assert_eq!(fs::read_dir(&maildrop).unwrap().count(), 1, "the directory corrupt alone");
    instance.finish(&["moved to corrupt/"]);
}

/// sendmail as an ordinary user has it: with the group of maildrop, which may not read that directory.
fn as_user(instance: &Instance, words: &[&str], text: &str) -> (i32, String) {
    let mut command = instance.command("sendmail");
    command.uid(65534).gid(account().gid.as_raw()).args(words);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("sendmail was built");
    let _ = child.stdin.take().expect("it is a pipe").write_all(text.as_bytes());
    let output = child.wait_with_output().expect("it is our child");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Its header grew by the domains it was given. sendmail had said that it is stored; qmgr then put it
/// aside as too large.
#[test]
fn a_message_that_grows_beyond_the_limit_is_refused_whether_the_system_is_up_or_down() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).parameter("message_size_limit", "20000");
    instance.parameter("myorigin", "a-domain-of-some-length.example");
    instance.write();
    let names = format!("To: {}b\nSubject: x\n\nx\n", "a, ".repeat(5000));
    let lines = format!("Subject: x\n{}", "\n".repeat(19_000));
    let chunk = format!(
        "EHLO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@y.example>\r\nBDAT {} LAST\r\n{lines}QUIT\r\n",
        lines.len()
    );
    for up in [false, true] {
        if up {
            instance.start();
        }
        let (status, said) = as_user(&instance, &["b@y.example"], &names);
        assert!(status == 69 && said.contains("larger than"), "{status} {said}");
        as_user(&instance, &["-bs"], &chunk);
        let dropped = fs::read_dir(instance.queue().join("maildrop")).unwrap().count();
        assert_eq!(dropped, 0, "nothing was taken");
    }
    let fits = format!("To: {}b\nSubject: x\n\nx\n", "a, ".repeat(200));
    assert_eq!(as_user(&instance, &["last@y.example"], &fits), (0, String::new()));
    wait::until("the message", wait::LONG, || (!relay.taken().is_empty()).then_some(()));
    assert_eq!(relay.taken()[0].recipients, ["last@y.example"]);
    instance.finish(&[]);
}

/// smtpd ended between the message and its answer: sendmail stored it in maildrop, and it was sent twice.
#[test]
fn a_message_that_smtpd_and_maildrop_both_hand_over_is_queued_once() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).start();
    let token = "0123456789abcdef0123456789abcdef";
    let socket = instance.queue().join("public/submit");
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    let text = format!(
        "EHLO x\r\nMAIL FROM:<a@x.example> XTOKEN={token}\r\nRCPT TO:<b@y.example>\r\nDATA\r\n\
         Subject: x\r\n\r\nx\r\n.\r\nQUIT\r\n"
    );
    stream.write_all(text.as_bytes()).unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut stream, &mut said).unwrap();
    assert!(said.contains("queued as"), "{said}");
    for (to, token) in [("b@y.example", token), ("last@y.example", "")] {
        let submission = Submission {
            sender: "a@x.example".to_owned(),
            recipients: vec![to.to_owned()],
            origin: String::new(),
            lane: Lane::Normal,
            token: token.to_owned(),
            body: b"Subject: x\r\n\r\nx\r\n".to_vec(),
        };
        maildrop::drop_message(&instance.queue().join("maildrop"), &submission).unwrap();
    }
    for entry in fs::read_dir(instance.queue().join("maildrop")).unwrap().flatten() {
        let _ = chown(entry.path(), Some(account().uid.as_raw()), Some(account().gid.as_raw()));
    }
    wait::until("the last", wait::LONG, || {
        relay.taken().iter().any(|mail| mail.recipients == ["last@y.example"]).then_some(())
    });
    wait::until("an empty maildrop", wait::LONG, || {
        (fs::read_dir(instance.queue().join("maildrop")).unwrap().count() == 0).then_some(())
    });
    assert_eq!(relay.taken().len(), 2);
    instance.finish(&[]);
}

/// It said "Permission denied" (77) for mail that it had stored: the caller tried again and doubled it.
#[test]
fn a_user_whose_mail_is_stored_while_the_system_is_down_is_told_so() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name());
    instance.write();
    let text = "From: root (Cron Daemon)\nTo: root\nSubject: x\n\nx\n";
    assert_eq!(as_user(&instance, &["b@y.example"], text), (0, String::new()));
    let large = "0123456789\n".repeat(200_000);
    assert_eq!(as_user(&instance, &["c@y.example"], &large), (0, String::new()));
    // It said that the queue is empty.
    let list = instance.command("alertq").arg("list").output().unwrap();
    let want = "-- 2 messages in maildrop, not yet in the queue.\n";
    assert_eq!(String::from_utf8_lossy(&list.stdout), want);
    let (status, said) = as_user(&instance, &["-bp"], "");
    assert_eq!((status, said.matches("fatal: ").count()), (77, 1), "{said}");
    instance.start();
    wait::until("two messages", wait::LONG, || (relay.taken().len() == 2).then_some(()));
    instance.log().wait_for("origin=uid 65534 by maildrop");
    let taken = relay.taken();
    let text = taken.iter().find(|t| t.recipients == ["b@y.example"]).map(|t| t.text.clone());
    let from = "\r\nFrom: root@test.example (Cron Daemon)\r\nTo: root@test.example\r\n";
    assert!(text.as_ref().is_some_and(|text| text.contains(from)), "{text:?}");
    instance.log().wait_for_count(": removed", 2);
    instance.finish(&[]);
}

/// More than 1,000 recipients were queued in part, with exit status 75; now they are one message.
#[test]
fn a_message_to_many_is_handed_in_whole() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).start();
    let to: Vec<_> = (0..5000).map(|n| format!("user{n}@y.example")).collect();
    let text = format!("To: {}\nSubject: x\n\nx\n", to.join(",\n "));
    assert_eq!(as_user(&instance, &["-t"], &text), (0, String::new()));
    instance.log().wait_for("nrcpt=5000");
    assert_eq!(instance.log().count("lost connection"), 0);
    // Whole, and what a user hands in cannot be more than that.
    let (status, said) = as_user(&instance, &["-f", "a@x.example", "b@"], "x\n");
    assert_eq!(status, 65, "{said}");
    let (status, said) = as_user(&instance, &["b@y.example"], &"0123456789\n".repeat(1_000_000));
    assert_eq!(status, 69, "{said}");
    wait::until("all recipients", wait::LONG * 2, || {
        (relay.taken().iter().map(|t| t.recipients.len()).sum::<usize>() >= 5000).then_some(())
    });
    instance.log().wait_for(": removed");
    instance.finish(&[]);
}

/// With smtpd's configuration bad, every mail waited for a minute.
#[test]
fn mail_is_taken_within_seconds_while_smtpd_cannot_start() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).parameter("smtpd_timeout", "soon").start();
    let start = Time::now();
    assert_eq!(as_user(&instance, &["b@y.example"], "Subject: x\n\nx\n"), (0, String::new()));
    assert!(Time::now().since(start) < Duration::from_secs(20));
    instance.log().wait_for("smtpd_timeout");
    instance.finish_with(&["smtpd"], &["bad command startup", "process ", "configuration"]);
}

#[test]
fn m3_mail_to_a_local_name_goes_where_its_alias_points() {
    let relay = Relay::kind();
    let mut instance = Instance::new();
    let aliases = instance.config().join("aliases");
    fs::write(&aliases, "root: joe\njoe: joe@y.example, |/bin/prog\n").unwrap();
    instance
        .parameter("relayhost", &relay.name())
        .parameter("alias_maps", &format!("texthash:{}", aliases.display()))
        .start();
    let to = ["root", "Root@test.example", "other@localhost"];
    assert_eq!(as_user(&instance, &to, "Subject: x\n\nx\n"), (0, String::new()));
    wait::until("the message", wait::LONG, || (!relay.taken().is_empty()).then_some(()));
    assert_eq!(relay.taken()[0].recipients, ["joe@y.example", "admin@test.example"]);
    instance.log().wait_for(": removed");
    instance.finish(&["commands and files are not supported"]);
}
