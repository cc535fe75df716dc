//! compose - from standard input to a letter with its envelope (M3)

use worker_proto::clock;
use worker_proto::params::CommonParams;
use worker_proto::sys::LocalTime;

use super::options::Options;
use super::{EX_DATAERR, EX_NOINPUT, Failure};
use crate::address;
use crate::maildrop::MAX_RECIPIENTS;
use crate::message::{self, Message};

/// A message with its envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Letter {
    pub(super) sender: String,
    pub(super) recipients: Vec<String>,
    /// The message, with or without its body.
    pub(super) message: Message,
}

/// Makes the letter out of the options and what was read.
pub(super) fn letter(
    options: &Options,
    common: &CommonParams,
    login: &str,
    full_name: Option<&str>,
    mut message: Message,
) -> Result<Letter, Failure> {
    // Several recipients may stand in one word, as in a header.
    let mut recipients: Vec<String> =
        options.recipients.iter().flat_map(|word| address::list(word)).collect();
    if options.from_header {
        recipients.extend(header_recipients(&message));
    }
    let mut seen = std::collections::HashSet::new();
    recipients.retain(|r| seen.insert(r.clone()));
    if recipients.len() > MAX_RECIPIENTS {
        let text = format!("more than {MAX_RECIPIENTS} recipients; send the message in parts");
        return Err(Failure::new(EX_DATAERR, text));
    }
    if recipients.is_empty() {
        let cause = match options.from_header {
            true => "no recipients in the header or on the command line",
            false => "no recipients on the command line; -t takes them from the header",
        };
        return Err(Failure::new(EX_NOINPUT, cause));
    }
    let complete = |address: &str| match address.contains('@') || address.is_empty() {
        true => address.to_owned(),
        false => format!("{address}@{}", common.myorigin),
    };
    let sender = complete(options.sender.as_deref().unwrap_or(login));
    let envelope = recipients.iter().chain(Some(&sender).filter(|s| !s.is_empty()));
    for address in envelope {
        if let Err(cause) = address::check(address) {
            let text = format!("bad address \"{}\": {cause}", address.escape_debug());
            return Err(Failure::new(EX_DATAERR, text));
        }
    }
    let from = if sender.is_empty() { complete(login) } else { sender.clone() };
    let from = match options.full_name.as_deref().or(full_name) {
        Some(name) => format!("{} <{from}>", phrase(name)),
        None => from,
    };
    let now = clock::wall();
    message.drop_private();
    let date = LocalTime::at(now).date_header();
    message.complete(&from, &date, &message::message_id(now, &common.myhostname));
    Ok(Letter { sender, recipients, message })
}

/// To, Cc and Bcc; or, if there is any of them, only Resent-To, Resent-Cc and Resent-Bcc.
fn header_recipients(message: &Message) -> Vec<String> {
    let collect = |names: [&str; 3]| {
        let values = names.into_iter().flat_map(|name| message.values(name));
        values.flat_map(|value| address::list(&value)).collect::<Vec<_>>()
    };
    let resent = collect(["Resent-To", "Resent-Cc", "Resent-Bcc"]);
    if resent.is_empty() { collect(["To", "Cc", "Bcc"]) } else { resent }
}

/// A display name: quoted, or encoded when it is not ASCII (RFC 2047).
fn phrase(name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    if name.is_ascii() {
        return format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
    }
    // At most 75 characters in a word, and no character of UTF-8 in two of them.
    let mut words = vec![String::new()];
    for c in name.chars() {
        let code: String =
            c.encode_utf8(&mut [0; 4]).bytes().map(|b| format!("={b:02X}")).collect();
        match words.last_mut() {
            Some(word) if word.len() + code.len() <= 60 => word.push_str(&code),
            _ => words.push(code),
        }
    }
    let words: Vec<_> = words.iter().map(|w| format!("=?utf-8?Q?{w}?=")).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::options;
    use super::*;
    use worker_proto::main_cf::MainCf;

    fn compose(line: &str, input: &str) -> Result<Letter, Failure> {
        let (mut main_cf, _) = MainCf::parse("main.cf", "myhostname = h.example\n");
        let common = CommonParams::read(&mut main_cf).unwrap();
        let words = line.split(' ').filter(|w| !w.is_empty()).map(str::to_owned);
        let options = options::parse("sendmail", words).unwrap();
        let message = Message::parse(input.as_bytes());
        letter(&options, &common, "joe", Some("Joe \"J\" Doe"), message)
    }

    fn text(letter: &Letter) -> String {
        String::from_utf8(letter.message.to_bytes()).unwrap()
    }

    #[test]
    fn m3_header_and_command_line_recipients_unite_and_bcc_goes() {
        let input =
            "To: root, \"A B\" <a@x>,\n b@x\nbCC: c@x,\n\td@x\nCc: a@x\nSubject: s\n\nbody\n";
        let letter = compose("-t e@x", input).unwrap();
        assert_eq!(letter.recipients, ["e@x", "root", "a@x", "b@x", "c@x", "d@x"]);
        assert_eq!(letter.sender, "joe@h.example");
        let text = text(&letter);
        assert!(!text.to_lowercase().contains("bcc") && !text.contains("d@x"), "{text}");
        assert!(text.contains("Subject: s\r\n") && text.ends_with("\r\n\r\nbody\r\n"), "{text}");
    }

    #[test]
    fn m3_resent_headers_come_before_the_others() {
        let letter = compose("-t", "Resent-To: r@x\nTo: t@x\n\n").unwrap();
        assert_eq!(letter.recipients, ["r@x"]);
    }

    #[test]
    fn m3_missing_headers_are_added_and_present_ones_kept() {
        let letter = compose("a@x", "Subject: s\n\nb\n").unwrap();
        let got = text(&letter);
        assert!(got.contains("\r\nFrom: \"Joe \\\"J\\\" Doe\" <joe@h.example>\r\n"), "{got}");
        assert!(got.contains("\r\nDate: ") && got.contains("\r\nMessage-ID: <"), "{got}");
        let full = "From: x\nDate: y\nMessage-ID: z\n\nb\n";
        assert_eq!(text(&compose("a@x", full).unwrap()), full.replace('\n', "\r\n"));
    }

    #[test]
    fn text_without_a_header_is_a_body() {
        let letter = compose("-f <> a@x", "hello there\nx: y\n").unwrap();
        assert_eq!(letter.sender, "");
        assert!(text(&letter).ends_with("\r\n\r\nhello there\r\nx: y\r\n"));
        let empty = compose("a@x", "").unwrap();
        assert!(text(&empty).ends_with(">\r\n\r\n"), "{:?}", text(&empty));
    }

    #[test]
    fn m2_without_recipients_or_with_bad_ones_nothing_is_sent() {
        assert_eq!(compose("-t", "Subject: s\n\n").unwrap_err().status, EX_NOINPUT);
        assert_eq!(compose("", "x\n").unwrap_err().status, EX_NOINPUT);
        for bad in ["-f a>b c@x", "a@", "\"a\"@b>", "M\u{fffd}ller@x"] {
            assert_eq!(compose(bad, "x\n").unwrap_err().status, EX_DATAERR, "{bad}");
        }
        let header = compose("-t", "To: a@x, \"b\"@c> X=Y\n\n").unwrap_err();
        assert_eq!(header.status, EX_DATAERR, "{}", header.text);
    }

    #[test]
    fn names_beyond_ascii_are_encoded() {
        assert_eq!(phrase("Jö\r\nX: y"), "=?utf-8?Q?=4A=C3=B6=58=3A=20=79?=");
    }
}
