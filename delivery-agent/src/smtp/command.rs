//! command - a client's line, parsed
//!
//! Either a command in full or the one line that tells the client what is wrong with it.

use super::backend::Answer;
use crate::address;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Helo(String),
    Ehlo(String),
    Mail(String, MailParameters),
    Rcpt(String),
    Data,
    Bdat { size: u64, last: bool },
    Rset,
    Noop,
    Vrfy,
    Help,
    Quit,
}

/// What may follow the address in MAIL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MailParameters {
    pub(super) size: u64,
    pub(super) smtputf8: bool,
    /// The name that the client gives the message, so that it is known when it comes again.
    pub(super) token: String,
}

impl Command {
    /// Parses a line without its end.
    pub(super) fn parse(line: &[u8]) -> Result<Self, Answer> {
        let line = std::str::from_utf8(line)
            .map_err(|_| Answer::new(500, "5.5.2", "the command is not UTF-8"))?;
        if line.chars().any(|c| c.is_control() && c != '\t') {
            return Err(Answer::new(500, "5.5.2", "control character in the command"));
        }
        let line = line.trim_end();
        let (verb, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let rest = rest.trim_start();
        match verb.to_ascii_uppercase().as_str() {
            "HELO" => name("HELO", rest).map(Self::Helo),
            "EHLO" => name("EHLO", rest).map(Self::Ehlo),
            "MAIL" => mail(rest),
            "RCPT" => rcpt(rest),
            "DATA" => bare("DATA", rest, Self::Data),
            "BDAT" => bdat(rest),
            "RSET" => bare("RSET", rest, Self::Rset),
            "NOOP" => Ok(Self::Noop),
            "VRFY" => Ok(Self::Vrfy),
            "HELP" => Ok(Self::Help),
            "QUIT" => bare("QUIT", rest, Self::Quit),
            _ => Err(Answer::new(500, "5.5.1", "unknown command")),
        }
    }
}

/// Commands of SMTP and its extensions that this server does not have.
const OTHER: [&str; 10] =
    ["STARTTLS", "AUTH", "EXPN", "ETRN", "TURN", "LHLO", "SEND", "SAML", "XCLIENT", "XFORWARD"];

/// Commands that are served.
const SERVED: [&str; 11] =
    ["HELO", "EHLO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "VRFY", "HELP", "QUIT"];

/// What a line is, before it is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    /// It may be SMTP.
    Smtp,
    /// Its first word is no command of SMTP.
    Unknown,
    /// It is another protocol's, such as a request of HTTP.
    Forbidden,
}

/// What a line is; `forbidden` are words that no SMTP client begins a line with.
pub(super) fn speech(line: &[u8], forbidden: &[String]) -> Speech {
    let end = line.iter().position(|&b| b == b' ' || b == b'\t').unwrap_or(line.len());
    let verb = &line[..end];
    let is = |word: &str| verb.eq_ignore_ascii_case(word.as_bytes());
    if line.first().is_some_and(|b| !b.is_ascii_alphabetic()) || forbidden.iter().any(|w| is(w)) {
        Speech::Forbidden
    } else if line.is_empty() || SERVED.iter().chain(&OTHER).any(|w| is(w)) {
        Speech::Smtp
    } else {
        Speech::Unknown
    }
}

fn syntax(text: impl Into<String>) -> Answer {
    Answer::new(501, "5.5.4", text)
}

fn bare(verb: &str, rest: &str, command: Command) -> Result<Command, Answer> {
    if rest.is_empty() { Ok(command) } else { Err(syntax(format!("nothing may follow {verb}"))) }
}

fn name(verb: &str, rest: &str) -> Result<String, Answer> {
    match rest.split_whitespace().next() {
        Some(name) => Ok(name.chars().take(255).collect()),
        None => Err(syntax(format!("write: {verb} your.host.name"))),
    }
}

fn mail(rest: &str) -> Result<Command, Answer> {
    let (address, parameters) = path("MAIL FROM", rest)?;
    let mut known = MailParameters::default();
    for word in parameters.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match (key.to_ascii_uppercase().as_str(), value.to_ascii_uppercase().as_str()) {
            ("SIZE", digits) => {
                known.size =
                    number(digits).ok_or_else(|| syntax("SIZE is a number of bytes: SIZE=1000"))?;
            }
            ("BODY", "7BIT" | "8BITMIME") => {}
            ("BODY", _) => return Err(syntax("BODY is 7BIT or 8BITMIME")),
            ("SMTPUTF8", "") => known.smtputf8 = true,
            ("XTOKEN", _) if crate::message::is_unique(value) => value.clone_into(&mut known.token),
            _ => return Err(unknown_parameter(key)),
        }
    }
    if !address.is_ascii() && !known.smtputf8 {
        let text = "an address with other than ASCII letters needs SMTPUTF8 in MAIL";
        return Err(Answer::new(553, "5.6.7", text));
    }
    Ok(Command::Mail(address, known))
}

fn rcpt(rest: &str) -> Result<Command, Answer> {
    let (address, parameters) = path("RCPT TO", rest)?;
    if let Some(word) = parameters.split_whitespace().next() {
        return Err(unknown_parameter(word.split('=').next().unwrap_or(word)));
    }
    if address.is_empty() {
        return Err(Answer::new(501, "5.1.3", "a recipient cannot be empty"));
    }
    Ok(Command::Rcpt(address))
}

fn unknown_parameter(key: &str) -> Answer {
    Answer::new(555, "5.5.4", format!("unsupported parameter {key}"))
}

/// Digits alone: other programs take `+5` for an error, and what follows for something else.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

fn bdat(rest: &str) -> Result<Command, Answer> {
    let mut words = rest.split_whitespace();
    let size = words.next().and_then(number);
    let last = words.next().map(str::to_ascii_uppercase);
    match (size, last.as_deref(), words.next()) {
        (Some(size), None, None) => Ok(Command::Bdat { size, last: false }),
        (Some(size), Some("LAST"), None) => Ok(Command::Bdat { size, last: true }),
        _ => Err(syntax("write: BDAT size [LAST]")),
    }
}

/// Reads `FROM:<address> parameters`. Blanks around the colon are let pass: many scripts write them.
fn path<'a>(what: &str, rest: &'a str) -> Result<(String, &'a str), Answer> {
    let word = what.split(' ').nth(1).unwrap_or_default();
    let form = || syntax(format!("write the address in angle brackets: {what}:<user@example.com>"));
    let (head, tail) = rest.split_once(':').ok_or_else(form)?;
    if !head.trim_end().eq_ignore_ascii_case(word) {
        return Err(form());
    }
    let inside = tail.trim_start().strip_prefix('<').ok_or_else(form)?;
    let (address, parameters) = inside.split_at(closing(inside).ok_or_else(form)?);
    let parameters = &parameters[1..];
    if !parameters.is_empty() && !parameters.starts_with([' ', '\t']) {
        return Err(form());
    }
    // RFC 5321 appendix C: a source route is to be stripped.
    let address = match address.starts_with('@') {
        true => address.split_once(':').ok_or_else(form)?.1,
        false => address,
    };
    if !address.is_empty()
        && let Err(cause) = address::check(address)
    {
        let text = format!("bad address syntax: {what}:<{address}>: {cause}");
        return Err(Answer::new(501, "5.1.3", text));
    }
    Ok((address.to_owned(), parameters))
}

/// Where the bracket closes, quoted strings left aside.
fn closing(text: &str) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '>' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        Command::parse(line.as_bytes()).map_err(|a| a.to_string())
    }

    fn from(address: &str) -> Result<Command, String> {
        Ok(Command::Mail(address.to_owned(), MailParameters::default()))
    }

    #[test]
    fn m4_commands_in_any_case() {
        assert_eq!(parse("ehlo a.example"), Ok(Command::Ehlo("a.example".to_owned())));
        assert_eq!(parse("Helo [::1]"), Ok(Command::Helo("[::1]".to_owned())));
        assert_eq!(parse("data "), Ok(Command::Data));
        assert_eq!(parse("noop anything"), Ok(Command::Noop));
        assert_eq!(parse("BDAT 10 last"), Ok(Command::Bdat { size: 10, last: true }));
        assert_eq!(parse("BDAT 0"), Ok(Command::Bdat { size: 0, last: false }));
    }

    #[test]
    fn m4_addresses() {
        assert_eq!(parse("MAIL FROM:<>"), from(""));
        assert_eq!(parse("MAIL FROM:<a@b>"), from("a@b"));
        assert_eq!(parse("mail from: <a@b>"), from("a@b"));
        assert_eq!(parse("MAIL FROM:<@x,@y:a@b>"), from("a@b"));
        assert_eq!(parse(r#"MAIL FROM:<"a > b"@c>"#), from(r#""a > b"@c"#));
        assert_eq!(parse("RCPT TO:<root>"), Ok(Command::Rcpt("root".to_owned())));
        let full = parse("MAIL FROM:<ä@b> SIZE=12 BODY=8BITMIME SMTPUTF8");
        let parameters = MailParameters { size: 12, smtputf8: true, token: String::new() };
        assert_eq!(full, Ok(Command::Mail("ä@b".to_owned(), parameters)));
    }

    #[test]
    fn m4_bad_syntax_gets_one_clear_line() {
        for (line, answer) in [
            ("", "500 5.5.1 unknown command"),
            ("GET / HTTP/1.1", "500 5.5.1 unknown command"),
            ("NO\u{1}OP", "500 5.5.2 control character in the command"),
            ("EHLO", "501 5.5.4 write: EHLO your.host.name"),
            ("DATA now", "501 5.5.4 nothing may follow DATA"),
            (
                "MAIL a@b",
                "501 5.5.4 write the address in angle brackets: MAIL FROM:<user@example.com>",
            ),
            (
                "MAIL FROM:a@b",
                "501 5.5.4 write the address in angle brackets: MAIL FROM:<user@example.com>",
            ),
            (
                "RCPT FROM:<a@b>",
                "501 5.5.4 write the address in angle brackets: RCPT TO:<user@example.com>",
            ),
            (
                "RCPT TO:<a@b",
                "501 5.5.4 write the address in angle brackets: RCPT TO:<user@example.com>",
            ),
            ("RCPT TO:<>", "501 5.1.3 a recipient cannot be empty"),
            (
                "RCPT TO:<a b@c>",
                "501 5.1.3 bad address syntax: RCPT TO:<a b@c>: a special character is not quoted",
            ),
            (
                "RCPT TO:<@b>",
                "501 5.5.4 write the address in angle brackets: RCPT TO:<user@example.com>",
            ),
            ("RCPT TO:<a@>", "501 5.1.3 bad address syntax: RCPT TO:<a@>: the domain is missing"),
            ("RCPT TO:<a@b> NOTIFY=NEVER", "555 5.5.4 unsupported parameter NOTIFY"),
            ("MAIL FROM:<a@b> SIZE=x", "501 5.5.4 SIZE is a number of bytes: SIZE=1000"),
            (
                "MAIL FROM:<ä@b>",
                "553 5.6.7 an address with other than ASCII letters needs SMTPUTF8 in MAIL",
            ),
            ("MAIL FROM:<a@b> SIZE=+1", "501 5.5.4 SIZE is a number of bytes: SIZE=1000"),
            ("MAIL FROM:<a@b> XTOKEN=guess", "555 5.5.4 unsupported parameter XTOKEN"),
            ("BDAT +5 LAST", "501 5.5.4 write: BDAT size [LAST]"),
            ("BDAT x", "501 5.5.4 write: BDAT size [LAST]"),
            ("BDAT 1 LAST 2", "501 5.5.4 write: BDAT size [LAST]"),
        ] {
            assert_eq!(parse(line), Err(answer.to_owned()), "{line:?}");
        }
        assert!(Command::parse(b"NOOP \xe4").is_err());
    }

    proptest::proptest! {
        /// An address from a drop file went to the relay as RCPT parameters.
        #[test]
        fn an_address_that_passes_the_check_is_one_word_of_a_command(
            address in "[a-c\"\\\\<>@ \t\r\n.\\[\\]=:;,\u{e4}\0]{1,12}",
        ) {
            let line = format!("RCPT TO:<{address}>");
            if address::check(&address).is_ok() {
                proptest::prop_assert_eq!(parse(&line), Ok(Command::Rcpt(address)));
            }
        }
    }
}
