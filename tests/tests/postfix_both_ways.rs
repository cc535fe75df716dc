//! Debian's Postfix runs under our master, and our workers run under Debian's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use belfry_tests::logbook::Logbook;
use belfry_tests::smtp_sink::{SmtpSink, smtp_source};
use belfry_tests::{binaries, net, peer, process, wait};
use nix::sys::signal::Signal;
use nix::unistd::User;
use tempfile::TempDir;

/// A private copy of Debian's Postfix.
struct Postfix {
    dir: TempDir,
    port: u16,
}

impl Postfix {
    fn new(relay: &str) -> Self {
        let dir =
            tempfile::Builder::new().prefix("bfpf").tempdir_in("/tmp").expect("/tmp has room");
        let root = dir.path();
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).expect("it is ours");
        for sub in ["etc", "libexec", "q", "d"] {
            fs::create_dir(root.join(sub)).expect("the directory is new");
        }
        let owner =
            User::from_name("postfix").ok().flatten().expect("Debian's postfix has its user");
        chown(root.join("d"), Some(owner.uid.as_raw()), None).expect("we are root");
        copy_files(Path::new("/usr/lib/postfix/sbin"), &root.join("libexec"));
        copy_files(Path::new("/etc/postfix"), &root.join("etc"));
        let (at, port) = (root.display(), net::free_port());
        let main_cf = format!(
            "compatibility_level = 3.6\nqueue_directory = {at}/q\ndata_directory = {at}/d\n\
             daemon_directory = {at}/libexec\nmail_owner = postfix\nsetgid_group = postdrop\n\
             maillog_file = {at}/log\nmaillog_file_prefixes = /tmp\ninet_interfaces = 127.0.0.1\n\
             inet_protocols = ipv4\nmynetworks = 127.0.0.0/8\nmyhostname = pf.example\n\
             mydestination =\nalias_maps =\nalias_database =\nrelayhost = {relay}\n"
        );
        fs::write(root.join("etc/main.cf"), main_cf).expect("/tmp has room");
        Self { dir, port }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> Logbook {
        Logbook::at(&self.path("log"))
    }

    fn table(&self, text: &str) {
        fs::write(self.path("etc/master.cf"), text).expect("/tmp has room");
    }

    fn use_program(&self, program: &str, name: &str) {
        let target = self.path("libexec").join(name);
        let _ = fs::remove_file(&target);
        fs::copy(binaries::directory().join(program), target).expect("the program was built");
    }

    /// Runs Debian's own `postfix` command, or another one, on the copy.
    fn run(&self, program: &str, words: &[&str]) -> Output {
        let program = peer::find(program).expect("Debian's postfix is installed");
        Command::new(program)
            .env("MAIL_CONFIG", self.path("etc"))
            .args(words)
            .stdin(Stdio::null())
            .output()
            .expect("it was found")
    }

    fn postfix(&self, word: &str) {
        let done = self.run("postfix", &[word]);
        assert!(done.status.success(), "postfix {word}: {done:?}\n{}", self.log().text());
    }

    /// Hands in messages and waits until each has arrived exactly once.
    fn carries(&self, sink: &SmtpSink, count: usize) {
        let source = smtp_source(self.port, count);
        assert!(source.status.success(), "{source:?}\n{}", self.log().text());
        self.log().wait_for_count("status=sent", count);
        let arrived = sink.messages();
        assert_eq!(arrived.len(), count);
        assert!(arrived.values().all(|&n| n == 1), "a message came twice");
    }

    fn nobody_is_left(&self) {
        wait::until("everybody to end", wait::LONG, || {
            process::below(self.dir.path()).is_empty().then_some(())
        });
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        process::below(self.dir.path()).iter().for_each(|p| p.signal(Signal::SIGKILL));
    }
}

/// Copies the files of a directory, and what links point to.
fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("Debian's postfix is installed").flatten() {
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("/tmp has room");
        }
    }
}

/// Debian's table on our port, with chroot off.
fn debians_table(port: u16) -> String {
    let shipped =
        fs::read_to_string("/usr/share/postfix/master.cf.dist").expect("Debian ships its table");
    let mut table = String::new();
    for line in shipped.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_entry = !line.starts_with([' ', '\t', '#']) && fields.len() >= 8;
        if !is_entry {
            table += &format!("{line}\n");
            continue;
        }
        let name = if fields[0] == "smtp" && fields[1] == "inet" {
            format!("127.0.0.1:{port}")
        } else {
            fields[0].to_owned()
        };
        table += &format!("{name} {} n {}\n", fields[1..4].join(" "), fields[5..].join(" "));
    }
    table
}

#[test]
#[cfg_attr(not(peer_postfix), ignore = "Debian's postfix is not installed")]
fn debians_daemons_and_scripts_run_unchanged_with_our_master() {
    let sink = SmtpSink::start();
    let postfix = Postfix::new(&sink.name());
    postfix.table(&debians_table(postfix.port));
    postfix.use_program("master", "master");
    postfix.postfix("start");
    postfix.carries(&sink, 2000);
    postfix.postfix("status");
    postfix.postfix("reload");
    postfix.log().wait_for("reload done: 0 added, 0 removed, 0 changed");
    let queue = postfix.run("mailq", &[]);
    assert_eq!(String::from_utf8_lossy(&queue.stdout), "Mail queue is empty\n");
    // sendmail(1), postdrop, pickup, cleanup, qmgr, smtp: the whole way by the drop directory.
    let sent = postfix.run("sendmail", &["-f", "a@source.example", "local@sink.example"]);
    assert!(sent.status.success(), "{sent:?}");
    postfix.log().wait_for("to=<local@sink.example>");
    postfix.postfix("stop");
    postfix.nobody_is_left();
    let master: Vec<_> = postfix.log().lines("/master[");
    let complaints = master
        .iter()
        .filter(|l| ["warning:", "error:", "fatal:", "panic:"].iter().any(|w| l.contains(w)));
    assert_eq!(complaints.collect::<Vec<_>>(), Vec::<&String>::new());
}

/// postscreen(8) looks at a client first and passes its connection on to smtpd(8), which is a service
/// of type `pass`.
#[test]
#[cfg_attr(not(peer_postfix), ignore = "Debian's postfix is not installed")]
fn postscreen_passes_connections_to_smtpd_under_our_master() {
    const MESSAGES: usize = 300;
    let sink = SmtpSink::start();
    let postfix = Postfix::new(&sink.name());
    // Nobody is let through unseen: the greeting test is gone through.
    let main_cf = postfix.path("etc/main.cf");
    let parameters = fs::read_to_string(&main_cf).expect("it was written")
        + "postscreen_access_list =\npostscreen_greet_wait = 1s\npostscreen_greet_action = enforce\n";
    fs::write(&main_cf, parameters).expect("/tmp has room");
    let smtp = format!("127.0.0.1:{}", postfix.port);
    let mut table = String::new();
    for line in debians_table(postfix.port).lines() {
        if line.starts_with(&smtp) {
            table += &format!("{smtp} inet n - n - 1 postscreen\nsmtpd pass - - n - - smtpd\n");
            table += "dnsblog unix - - n - 0 dnsblog\ntlsproxy unix - - n - 0 tlsproxy\n";
        } else {
            table += &format!("{line}\n");
        }
    }
    postfix.table(&table);
    postfix.use_program("master", "master");
    postfix.postfix("start");
    postfix.carries(&sink, MESSAGES);
    postfix.log().wait_for("PASS NEW [127.0.0.1]");
    let passed = process::below(&postfix.path("q"));
    let smtpd = passed.iter().find(|p| p.name == "smtpd").expect("it waits for the next one");
    assert!(smtpd.command.starts_with("smtpd -t pass -u -o stress="), "{}", smtpd.command);
    // postscreen finishes what it has in hand, and the next one goes on with its cache.
    postfix.postfix("reload");
    let source = smtp_source(postfix.port, 100);
    assert!(source.status.success(), "{source:?}");
    postfix.log().wait_for_count("status=sent", MESSAGES + 100);
    postfix.log().wait_for("PASS OLD [127.0.0.1]");
    postfix.postfix("stop");
    postfix.nobody_is_left();
    let words = ["fatal:", "panic:", "bad command startup", "killed by signal"];
    let complaints: Vec<_> = words.iter().flat_map(|w| postfix.log().lines(w)).collect();
    assert_eq!(complaints, Vec::<String>::new());
}

#[test]
#[cfg_attr(not(peer_postfix), ignore = "Debian's postfix is not installed")]
fn our_workers_run_unchanged_under_debians_master() {
    let sink = SmtpSink::start();
    let postfix = Postfix::new(&sink.name());
    for program in ["smtpd", "qmgr", "delivery-agent"] {
        postfix.use_program(program, &format!("our-{program}"));
    }
    postfix.table(&format!(
        "127.0.0.1:{} inet n - y - - our-smtpd\nsubmit unix n - y - - our-smtpd\n\
         qmgr unix - - y 300 1 our-qmgr\ndelivery unix - - y - 20 our-delivery-agent\n\
         postlog unix-dgram n - n - 1 postlogd\n",
        postfix.port
    ));
    postfix.postfix("start");
    postfix.carries(&sink, 1000);
    // Workers are retired, and the next ones carry on.
    postfix.postfix("reload");
    let source = smtp_source(postfix.port, 100);
    assert!(source.status.success(), "{source:?}");
    postfix.log().wait_for_count("status=sent", 1100);
    postfix.postfix("stop");
    postfix.nobody_is_left();
    let words = ["fatal:", "panic:", "bad command startup", "killed by signal"];
    let complaints: Vec<_> = words.iter().flat_map(|w| postfix.log().lines(w)).collect();
    assert_eq!(complaints, Vec::<String>::new());
}
