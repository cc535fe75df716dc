//! server - the server's side of ESMTP, without a socket or a clock
//!
//! Bytes that were read go in, answers come out; what to do with an envelope and a message is the
//! [`Backend`]'s to say. Lines end in CR LF and nothing else, so that no two programs can disagree
//! on where a message ends.

use super::command::{Command, MailParameters, Speech, speech};
use super::dot::Unstuffer;

pub use super::backend::{Answer, Backend, Config, Envelope};

#[derive(Debug)]
enum Input {
    Command,
    /// What is left of an overlong line.
    Rest,
    Data(Unstuffer),
    Chunk {
        left: u64,
        last: bool,
        refused: Option<Answer>,
    },
}

/// The state machine.
#[derive(Debug)]
pub struct Server {
    config: Config,
    input: Input,
    line: Vec<u8>,
    envelope: Envelope,
    has_sender: bool,
    body: Vec<u8>,
    body_size: u64,
    in_bdat: bool,
    errors: u64,
    junk: u64,
    /// Messages that were taken.
    messages: u64,
    /// A command of SMTP came.
    has_spoken: bool,
    /// The line that was not SMTP.
    foreign: Option<String>,
    output: Vec<u8>,
    closing: bool,
}

impl Server {
    /// A session that begins with the greeting.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let output = format!("220 {}\r\n", config.banner).into_bytes();
        Self {
            config,
            input: Input::Command,
            line: Vec::new(),
            envelope: Envelope::default(),
            has_sender: false,
            body: Vec::new(),
            body_size: 0,
            in_bdat: false,
            errors: 0,
            junk: 0,
            messages: 0,
            has_spoken: false,
            foreign: None,
            output,
            closing: false,
        }
    }

    /// Bytes to write.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// This many bytes of the output were written.
    pub fn wrote(&mut self, count: usize) {
        self.output.drain(..count);
    }

    /// Whether the connection is to be closed once the output is written.
    #[must_use]
    pub const fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether a message is on its way in.
    #[must_use]
    pub const fn is_in_message(&self) -> bool {
        matches!(self.input, Input::Data(_) | Input::Chunk { .. })
    }

    /// How many messages were taken.
    #[must_use]
    pub const fn messages(&self) -> u64 {
        self.messages
    }

    /// Whether the client has begun to hand in a message.
    #[must_use]
    pub const fn is_in_transaction(&self) -> bool {
        self.has_sender
    }

    /// The line that ended the session because it was not SMTP.
    #[must_use]
    pub fn foreign(&self) -> Option<&str> {
        self.foreign.as_deref()
    }

    /// Ends the session with a reply, such as that the time is up.
    pub fn close(&mut self, enhanced: &str, text: &str) {
        let text = format!("{} {text}", self.config.hostname);
        self.say(&Answer::new(421, enhanced, text));
        self.closing = true;
    }

    /// Takes bytes that were read.
    pub fn input<B: Backend>(&mut self, mut bytes: &[u8], backend: &mut B) {
        while !bytes.is_empty() && !self.closing {
            let taken = match &mut self.input {
                Input::Command | Input::Rest => self.command_bytes(bytes, backend),
                Input::Data(_) => self.data_bytes(bytes, backend),
                Input::Chunk { .. } => self.chunk_bytes(bytes, backend),
            };
            bytes = &bytes[taken..];
        }
    }

    fn command_bytes<B: Backend>(&mut self, bytes: &[u8], backend: &mut B) -> usize {
        let end = bytes.iter().position(|&b| b == b'\n');
        let piece = &bytes[..end.map_or(bytes.len(), |at| at + 1)];
        if matches!(self.input, Input::Rest) {
            if end.is_some() {
                self.input = Input::Command;
                let limit = self.config.line_length_limit;
                self.fail(&Answer::new(500, "5.5.2", format!("line longer than {limit} bytes")));
            }
            return piece.len();
        }
        self.line.extend_from_slice(piece);
        // A client that begins to speak TLS may never send a line end.
        let is_foreign = !self.has_spoken
            && self.line.first().is_some_and(|b| !b.is_ascii_alphabetic() && !b"\r\n".contains(b));
        if is_foreign {
            let line = std::mem::take(&mut self.line);
            self.hang_up(&line);
            return piece.len();
        }
        if self.line.len() > self.config.line_length_limit + 2 {
            self.line.clear();
            self.input = Input::Rest;
            // The end of the line, if it is here, is for the next turn.
            return piece.len() - usize::from(end.is_some());
        }
        if end.is_some() {
            let line = std::mem::take(&mut self.line);
            match line.strip_suffix(b"\r\n") {
                Some(line) => self.command(line, backend),
                None => {
                    let text = "bare LF received; CRLF required";
                    self.say(&Answer::new(500, "5.5.2", text));
                    self.closing = true;
                }
            }
        }
        piece.len()
    }

    fn command<B: Backend>(&mut self, line: &[u8], backend: &mut B) {
        match speech(line, &self.config.forbidden) {
            Speech::Smtp => self.has_spoken |= !line.is_empty(),
            // A browser can be made to send anything behind such a line.
            Speech::Unknown if !self.has_spoken => return self.hang_up(line),
            Speech::Forbidden => return self.hang_up(line),
            Speech::Unknown => {}
        }
        match Command::parse(line) {
            Ok(command) => self.obey(command, backend),
            Err(answer) => self.fail(&answer),
        }
    }

    /// Ends a session that is not SMTP.
    fn hang_up(&mut self, line: &[u8]) {
        let shown = &line[..line.len().min(100)];
        self.foreign = Some(String::from_utf8_lossy(shown).trim_end().to_owned());
        self.say(&Answer::new(221, "2.7.0", "Error: not an SMTP command; closing connection"));
        self.closing = true;
    }

    /// Counts a command that brings no message nearer. True: the session is over.
    fn is_too_much(&mut self) -> bool {
        self.junk += 1;
        if self.junk > self.config.junk_limit {
            self.errors += 1;
        }
        let over = self.errors >= self.config.error_limit;
        if over {
            self.close("4.7.0", "too many errors");
        }
        over
    }

    fn obey<B: Backend>(&mut self, command: Command, backend: &mut B) {
        let is_junk = matches!(
            command,
            Command::Helo(_)
                | Command::Ehlo(_)
                | Command::Rset
                | Command::Noop
                | Command::Vrfy
                | Command::Help
        );
        if is_junk && self.is_too_much() {
            return;
        }
        match command {
            Command::Helo(name) => {
                self.hello(name, false);
                self.say(&Answer::new(250, "", self.config.hostname.clone()));
            }
            Command::Ehlo(name) => {
                self.hello(name, true);
                self.say_extensions();
            }
            Command::Mail(sender, parameters) => self.mail(sender, &parameters, backend),
            Command::Rcpt(recipient) => self.rcpt(recipient, backend),
            Command::Data => self.data(),
            Command::Bdat { size, last } => self.bdat(size, last, backend),
            Command::Rset => {
                self.reset();
                self.ok();
            }
            Command::Noop => self.ok(),
            Command::Vrfy => {
                let text = "cannot verify, but will take the message and try to deliver it";
                self.say(&Answer::new(252, "2.5.1", text));
            }
            Command::Help => {
                let text = "EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT";
                self.say(&Answer::new(214, "2.0.0", text));
            }
            Command::Quit => {
                self.say(&Answer::new(221, "2.0.0", "Bye"));
                self.closing = true;
            }
        }
    }

    fn hello(&mut self, name: String, esmtp: bool) {
        self.reset();
        self.envelope.helo = name;
        self.envelope.esmtp = esmtp;
    }

    fn say_extensions(&mut self) {
        let Config { hostname, message_size_limit: size, .. } = &self.config;
        let text = format!(
            "250-{hostname}\r\n250-PIPELINING\r\n250-SIZE {size}\r\n250-8BITMIME\r\n\
             250-ENHANCEDSTATUSCODES\r\n250-SMTPUTF8\r\n{}250 CHUNKING\r\n",
            if self.config.tokens { "250-XTOKEN\r\n" } else { "" }
        );
        self.output.extend_from_slice(text.as_bytes());
    }

    fn mail<B: Backend>(&mut self, sender: String, with: &MailParameters, backend: &mut B) {
        if self.envelope.helo.is_empty() {
            return self.fail(&Answer::new(503, "5.5.1", "say EHLO or HELO first"));
        }
        if self.has_sender {
            return self.fail(&Answer::new(503, "5.5.1", "sender already specified"));
        }
        if self.exceeds(with.size) {
            return self.fail(&self.too_big());
        }
        if !with.token.is_empty() && !self.config.tokens {
            return self.fail(&Answer::new(555, "5.5.4", "unsupported parameter XTOKEN"));
        }
        match backend.sender(&sender) {
            Ok(()) => {
                self.has_sender = true;
                self.envelope.token.clone_from(&with.token);
                self.envelope.sender = sender;
                self.envelope.smtputf8 = with.smtputf8;
                self.say(&Answer::new(250, "2.1.0", "Ok"));
            }
            Err(answer) => self.fail(&answer),
        }
    }

    fn rcpt<B: Backend>(&mut self, recipient: String, backend: &mut B) {
        if !self.has_sender || self.in_bdat {
            return self.fail(&Answer::new(503, "5.5.1", "RCPT comes after MAIL"));
        }
        if self.envelope.recipients.len() >= self.config.recipient_limit {
            return self.say(&Answer::new(452, "4.5.3", "too many recipients"));
        }
        if !recipient.is_ascii() && !self.envelope.smtputf8 {
            let text = "an address with other than ASCII letters needs SMTPUTF8 in MAIL";
            return self.fail(&Answer::new(553, "5.6.7", text));
        }
        match backend.recipient(&recipient) {
            Ok(()) => {
                self.envelope.recipients.push(recipient);
                self.say(&Answer::new(250, "2.1.5", "Ok"));
            }
            Err(answer) => self.fail(&answer),
        }
    }

    /// Why no message can follow now.
    fn not_now(&self) -> Option<Answer> {
        if !self.has_sender {
            Some(Answer::new(503, "5.5.1", "a message comes after MAIL and RCPT"))
        } else if self.envelope.recipients.is_empty() {
            Some(Answer::new(554, "5.5.1", "no valid recipients"))
        } else {
            None
        }
    }

    fn data(&mut self) {
        if self.in_bdat {
            return self.fail(&Answer::new(503, "5.5.1", "DATA cannot follow BDAT"));
        }
        match self.not_now() {
            Some(answer) => self.fail(&answer),
            None => {
                self.input = Input::Data(Unstuffer::default());
                self.say(&Answer::new(354, "", "End data with <CR><LF>.<CR><LF>"));
            }
        }
    }

    fn data_bytes<B: Backend>(&mut self, bytes: &[u8], backend: &mut B) -> usize {
        let Input::Data(unstuffer) = &mut self.input else {
            return 0;
        };
        let before = self.body.len();
        let (taken, done) = unstuffer.feed(bytes, &mut self.body);
        self.body_size += (self.body.len() - before) as u64;
        self.drop_excess();
        if done {
            self.input = Input::Command;
            self.message(backend);
        }
        taken
    }

    /// The chunk follows whatever the answer is, so it is read even when it is refused.
    fn bdat<B: Backend>(&mut self, size: u64, last: bool, backend: &mut B) {
        let refused = self.not_now();
        self.in_bdat = refused.is_none();
        self.input = Input::Chunk { left: size, last, refused };
        if size == 0 {
            self.chunk_end(backend);
        }
    }

    fn chunk_bytes<B: Backend>(&mut self, bytes: &[u8], backend: &mut B) -> usize {
        let Input::Chunk { left, refused, .. } = &mut self.input else {
            return 0;
        };
        let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
        *left -= taken as u64;
        let at_end = *left == 0;
        if refused.is_none() {
            self.body.extend_from_slice(&bytes[..taken]);
            self.body_size += taken as u64;
            self.drop_excess();
        }
        if at_end {
            self.chunk_end(backend);
        }
        taken
    }

    fn chunk_end<B: Backend>(&mut self, backend: &mut B) {
        match std::mem::replace(&mut self.input, Input::Command) {
            Input::Chunk { refused: Some(answer), .. } => self.fail(&answer),
            Input::Chunk { last: true, .. } => self.message(backend),
            Input::Chunk { .. } if self.exceeds(self.body_size) => {
                let answer = self.too_big();
                self.fail(&answer);
            }
            Input::Chunk { .. } => self.say(&Answer::new(250, "2.0.0", "chunk received")),
            Input::Command | Input::Rest | Input::Data(_) => {}
        }
    }

    fn message<B: Backend>(&mut self, backend: &mut B) {
        if self.exceeds(self.body_size) {
            let answer = self.too_big();
            self.reset();
            return self.fail(&answer);
        }
        let body = std::mem::take(&mut self.body);
        let answer = backend.message(&self.envelope, body);
        self.junk = 0;
        self.messages += u64::from(answer.is_positive());
        self.reset();
        self.say(&answer);
    }

    const fn exceeds(&self, size: u64) -> bool {
        self.config.message_size_limit > 0 && size > self.config.message_size_limit
    }

    /// Frees a body that will be refused at its end.
    fn drop_excess(&mut self) {
        if self.exceeds(self.body_size) {
            self.body = Vec::new();
        }
    }

    fn too_big(&self) -> Answer {
        let limit = self.config.message_size_limit;
        Answer::new(552, "5.3.4", format!("message is larger than {limit} bytes"))
    }

    fn reset(&mut self) {
        self.has_sender = false;
        self.in_bdat = false;
        self.envelope.smtputf8 = false;
        self.envelope.sender.clear();
        self.envelope.recipients.clear();
        self.envelope.token.clear();
        self.body = Vec::new();
        self.body_size = 0;
    }

    fn ok(&mut self) {
        self.say(&Answer::new(250, "2.0.0", "Ok"));
    }

    /// Says no, and ends a session that gets to hear it too often.
    fn fail(&mut self, answer: &Answer) {
        self.say(answer);
        self.errors += 1;
        if self.errors >= self.config.error_limit {
            self.close("4.7.0", "too many errors");
        }
    }

    fn say(&mut self, answer: &Answer) {
        self.output.extend_from_slice(answer.to_string().as_bytes());
        self.output.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Inbox(Vec<(Envelope, Vec<u8>)>);

    impl Backend for Inbox {
        fn sender(&mut self, sender: &str) -> Result<(), Answer> {
            match sender {
                "bad@x" => Err(Answer::new(550, "5.7.1", "not you")),
                _ => Ok(()),
            }
        }

        fn recipient(&mut self, recipient: &str) -> Result<(), Answer> {
            match recipient {
                "bad@x" => Err(Answer::new(550, "5.1.1", "no such user")),
                _ => Ok(()),
            }
        }

        fn message(&mut self, envelope: &Envelope, body: Vec<u8>) -> Answer {
            self.0.push((envelope.clone(), body));
            Answer::new(250, "2.0.0", format!("Ok: queued as {}", self.0.len()))
        }
    }

    fn server() -> Server {
        let mut server = Server::new(Config {
            hostname: "h.example".to_owned(),
            banner: "h.example ESMTP".to_owned(),
            message_size_limit: 100,
            line_length_limit: 80,
            recipient_limit: 3,
            error_limit: 5,
            junk_limit: 100,
            tokens: false,
            forbidden: vec!["GET".to_owned(), "POST".to_owned()],
        });
        server.wrote(server.output().len());
        server
    }

    /// Feeds the text whole and byte by byte; both must give the same answers and messages.
    fn talk(text: &[u8]) -> (String, Vec<(Envelope, Vec<u8>)>, bool) {
        let (mut whole, mut inbox) = (server(), Inbox::default());
        whole.input(text, &mut inbox);
        let (mut split, mut second) = (server(), Inbox::default());
        for byte in text {
            split.input(&[*byte], &mut second);
        }
        assert_eq!(whole.output(), split.output());
        assert_eq!(inbox.0, second.0);
        let output = String::from_utf8(whole.output().to_vec()).unwrap();
        (output, inbox.0, whole.is_closing())
    }

    /// The codes of the answers to a text behind EHLO.
    fn codes(text: &str) -> Vec<String> {
        let (output, _, _) = talk(format!("HELO c\r\n{text}").as_bytes());
        output
            .lines()
            .skip(1)
            .map(|l| l.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn only_a_client_that_may_gives_a_message_a_name() {
        let mail = format!("HELO c\r\nMAIL FROM:<a@x> XTOKEN={}\r\n", "0123456789abcdef".repeat(2));
        for (tokens, answer) in [(false, "555 "), (true, "250 ")] {
            let mut server = server();
            server.config.tokens = tokens;
            server.config.line_length_limit = 200;
            server.input(mail.as_bytes(), &mut Inbox::default());
            let output = String::from_utf8_lossy(server.output()).into_owned();
            assert!(output.lines().nth(1).is_some_and(|l| l.starts_with(answer)), "{output}");
        }
    }

    #[test]
    fn m4_a_pipelined_session() {
        let (output, inbox, closing) = talk(
            b"EHLO c.example\r\nMAIL FROM:<a@x> SIZE=20\r\nRCPT TO:<b@x>\r\nRCPT TO:<bad@x>\r\n\
              DATA\r\nSubject: x\r\n\r\n..dot\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<c@x>\r\n\
              BDAT 5\r\nab.\r\nBDAT 3 LAST\r\nc\r\nQUIT\r\n",
        );
        let want = "250-h.example\r\n250-PIPELINING\r\n250-SIZE 100\r\n250-8BITMIME\r\n\
            250-ENHANCEDSTATUSCODES\r\n250-SMTPUTF8\r\n250 CHUNKING\r\n\
            250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n550 5.1.1 no such user\r\n\
            354 End data with <CR><LF>.<CR><LF>\r\n250 2.0.0 Ok: queued as 1\r\n\
            250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n250 2.0.0 chunk received\r\n\
            250 2.0.0 Ok: queued as 2\r\n221 2.0.0 Bye\r\n";
        assert_eq!(output, want);
        assert!(closing);
        assert_eq!(inbox[0].0.sender, "a@x");
        assert_eq!(inbox[0].0.recipients, ["b@x"]);
        assert_eq!(inbox[0].1, b"Subject: x\r\n\r\n.dot\r\n");
        assert_eq!(inbox[1].0.recipients, ["c@x"]);
        assert_eq!(inbox[1].1, b"ab.\r\nc\r\n");
    }

    #[test]
    fn m4_order_and_limits() {
        let to = "MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\n";
        let long = "x".repeat(81);
        let big = "x".repeat(101);
        for (text, want) in [
            ("RCPT TO:<b@x>\r\n".to_owned(), vec!["503 5.5.1"]),
            ("DATA\r\n".to_owned(), vec!["503 5.5.1"]),
            ("MAIL FROM:<a@x>\r\nDATA\r\n".to_owned(), vec!["250 2.1.0", "554 5.5.1"]),
            ("MAIL FROM:<a@x>\r\nMAIL FROM:<a@x>\r\n".to_owned(), vec!["250 2.1.0", "503 5.5.1"]),
            ("MAIL FROM:<a@x> SIZE=101\r\n".to_owned(), vec!["552 5.3.4"]),
            ("MAIL FROM:<bad@x>\r\n".to_owned(), vec!["550 5.7.1"]),
            (
                format!("{to}{}", "RCPT TO:<c@x>\r\n".repeat(3)),
                vec!["250 2.1.0", "250 2.1.5", "250 2.1.5", "250 2.1.5", "452 4.5.3"],
            ),
            (format!("{long}\r\nNOOP\r\n"), vec!["500 5.5.2", "250 2.0.0"]),
            (
                format!("{to}DATA\r\n{big}\r\n.\r\nNOOP\r\n"),
                vec!["250 2.1.0", "250 2.1.5", "354 End", "552 5.3.4", "250 2.0.0"],
            ),
            (
                format!("{to}BDAT 101\r\n{big}NOOP\r\n"),
                vec!["250 2.1.0", "250 2.1.5", "552 5.3.4", "250 2.0.0"],
            ),
            ("BDAT 6 LAST\r\nQUIT\r\nNOOP\r\n".to_owned(), vec!["503 5.5.1", "250 2.0.0"]),
            (
                format!("{to}BDAT 0\r\nDATA\r\nRSET\r\nVRFY x\r\nHELP\r\n"),
                vec![
                    "250 2.1.0",
                    "250 2.1.5",
                    "250 2.0.0",
                    "503 5.5.1",
                    "250 2.0.0",
                    "252 2.5.1",
                    "214 2.0.0",
                ],
            ),
            (
                "X\r\n".repeat(9),
                vec!["500 5.5.1", "500 5.5.1", "500 5.5.1", "500 5.5.1", "500 5.5.1", "421 4.7.0"],
            ),
        ] {
            assert_eq!(codes(&text), want, "{text:?}");
        }
    }

    #[test]
    fn m4_a_bare_line_feed_ends_the_session() {
        let (output, inbox, closing) = talk(b"EHLO c\nMAIL FROM:<a@x>\r\n");
        assert_eq!(output, "500 5.5.2 bare LF received; CRLF required\r\n");
        assert!(inbox.is_empty() && closing);
    }

    #[test]
    fn m4_a_message_cannot_smuggle_another_one() {
        let inner = "\n.\r\nMAIL FROM:<evil@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n";
        let text =
            format!("HELO c\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\nx{inner}y\r\n.\r\n");
        let (_, inbox, _) = talk(text.as_bytes());
        assert_eq!(inbox.len(), 1);
        assert_eq!(inbox[0].1, format!("x{inner}y\r\n").as_bytes());
    }

    #[test]
    fn mail_needs_a_hello() {
        let (output, _, _) = talk(b"MAIL FROM:<a@x>\r\n");
        assert_eq!(output, "503 5.5.1 say EHLO or HELO first\r\n");
    }

    #[test]
    fn only_junk_is_not_a_conversation() {
        let (output, _, closing) = talk("HELO c\r\nNOOP\r\n".repeat(80).as_bytes());
        assert!(closing && output.ends_with("421 4.7.0 h.example too many errors\r\n"), "{output}");
    }

    /// A web page could make a browser on this host hand in mail.
    #[test]
    fn what_is_not_smtp_ends_the_session() {
        for (text, foreign) in [
            ("GET / HTTP/1.0\r\nEHLO c\r\n", Some("GET / HTTP/1.0")),
            ("SPOON\r\nEHLO c\r\n", Some("SPOON")),
            ("EHLO c\r\npost x\r\n", Some("post x")),
            ("EHLO c\r\n:x\r\n", Some(":x")),
            ("EHLO c\r\nSPOON\r\n", None),
            ("\r\nEHLO c\r\n", None),
            ("STARTTLS\r\nEHLO c\r\n", None),
        ] {
            let (mut server, mut inbox) = (server(), Inbox::default());
            server.input(text.as_bytes(), &mut inbox);
            assert_eq!(server.foreign(), foreign, "{text}");
            assert_eq!(server.is_closing(), foreign.is_some(), "{text}");
        }
    }
}
