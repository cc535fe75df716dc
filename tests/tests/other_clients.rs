//! swaks and Python's smtplib hand in mail.

use std::process::{Command, Stdio};

use belfry_tests::instance::Instance;
use belfry_tests::peer;
use belfry_tests::relay::Relay;
use belfry_tests::wait;

fn instance(relay: &Relay) -> Instance {
    let mut instance = Instance::new();
    instance.parameter("relayhost", &relay.name()).start();
    instance
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("the peer can be run");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

#[test]
#[cfg_attr(not(peer_swaks), ignore = "swaks is not installed")]
fn swaks() {
    let relay = Relay::kind();
    let instance = instance(&relay);
    let swaks = peer::find("swaks").unwrap();
    let said = run(Command::new(&swaks)
        .args(["--server", "127.0.0.1", "--port", &instance.port.to_string()])
        .args(["--from", "a@x.example", "--to", "b@y.example,c@y.example"])
        .args(["--helo", "swaks.example", "--header", "Subject: by swaks", "--body", "Hello."]));
    assert!(said.contains("250 2.0.0 ") && said.contains("queued as "), "{said}");
    run(Command::new(&swaks)
        .args(["--server", "127.0.0.1", "--port", &instance.port.to_string(), "--pipeline"])
        .args(["--from", "<>", "--to", "d@y.example", "--helo", "swaks.example"]));
    wait::until("both messages", wait::LONG, || (relay.taken().len() == 2).then_some(()));
    let taken = relay.taken();
    let first = taken.iter().find(|t| t.sender == "a@x.example").unwrap();
    assert_eq!(first.recipients, ["b@y.example", "c@y.example"]);
    assert!(
        first.text.contains("\r\nSubject: by swaks\r\n") && first.text.contains("\r\nHello.\r\n")
    );
    assert!(taken.iter().any(|t| t.sender.is_empty() && t.recipients == ["d@y.example"]));
    instance.finish(&[]);
}

const SCRIPT: &str = r#"
import smtplib, sys
from email.message import EmailMessage
with smtplib.SMTP('127.0.0.1', int(sys.argv[1]), timeout=30) as client:
    for n in range(3):
        message = EmailMessage()
        message['From'] = 'a@x.example'
        message['To'] = 'u%d@y.example' % n
        message['Subject'] = 'by smtplib, gr\u00fc\u00dfe'
        message.set_content('Hello.\n.\n..\n')
        assert client.send_message(message) == {}
    for line in 'MAIL FROM:a@x.example', 'RCPT TO:<b@y.example>', 'DATA', 'SING':
        code = client.docmd(line)[0]
        assert 500 <= code < 600, (line, code)
"#;

#[test]
#[cfg_attr(not(peer_python), ignore = "python3 is not installed")]
fn pythons_smtplib() {
    let relay = Relay::kind();
    let instance = instance(&relay);
    let python = peer::find("python3").unwrap();
    run(Command::new(python).args(["-c", SCRIPT, &instance.port.to_string()]));
    wait::until("three messages", wait::LONG, || (relay.taken().len() == 3).then_some(()));
    let mut to: Vec<_> = relay.taken().into_iter().flat_map(|t| t.recipients).collect();
    to.sort();
    assert_eq!(to, ["u0@y.example", "u1@y.example", "u2@y.example"]);
    let bodies = relay.taken();
    assert!(
        bodies.iter().all(|t| t.text.ends_with("\r\n\r\nHello.\r\n.\r\n..\r\n")),
        "{bodies:#?}"
    );
    instance.finish(&[]);
}
