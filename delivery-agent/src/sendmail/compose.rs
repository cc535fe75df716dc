//! compose - from standard input to a letter with its envelope (M3)

use std::rc::Rc;
use std::time::Duration;

use mail_parser::{Address, HeaderName, HeaderValue, MessageParser};
use worker_proto::clock;
use worker_proto::params::CommonParams;
use worker_proto::sys::LocalTime;

use super::options::Options;
use super::{EX_DATAERR, EX_NOINPUT, Failure};

/// A message with its envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Letter {
    pub(super) sender: String,
    pub(super) recipients: Vec<String>,
    /// With CRLF line ends.
    pub(super) body: Rc<[u8]>,
}

/// Makes the letter out of the options and the input.
pub(super) fn letter(
    options: &Options,
    common: &CommonParams,
    login: &str,
    full_name: Option<&str>,
    input: &[u8],
) -> Result<Letter, Failure> {
    let mut text = lines(input, options.ignore_dots);
    if !begins_with_header(&text) {
        text.splice(..0, *b"\r\n");
    }
    let mut recipients: Vec<String> = Vec::new();
    for word in &options.recipients {
        // Several may stand in one word, as in a header.
        let found = addresses_in(word);
        let found = if found.is_empty() { vec![word.trim().to_owned()] } else { found };
        recipients.extend(found);
    }
    if options.from_header {
        recipients.extend(header_recipients(&text));
        remove_header(&mut text, "Bcc");
        remove_header(&mut text, "Resent-Bcc");
    }
    let mut seen = std::collections::HashSet::new();
    recipients.retain(|r| !r.is_empty() && seen.insert(r.clone()));
    if recipients.is_empty() {
        let cause =
            if options.from_header { "in the header or on the command line" } else { "; see -t" };
        return Err(Failure::new(EX_NOINPUT, format!("no recipients {cause}")));
    }
    if let Some(bad) =
        recipients.iter().find(|r| r.contains(|c: char| c.is_control() || "<> ".contains(c)))
    {
        return Err(Failure::new(EX_DATAERR, format!("not an address: {bad:?}")));
    }
    let complete = |address: &str| match address.contains('@') || address.is_empty() {
        true => address.to_owned(),
        false => format!("{address}@{}", common.myorigin),
    };
    let sender = complete(options.sender.as_deref().unwrap_or(login));
    if sender.contains(|c: char| c.is_control() || "<> ".contains(c)) {
        return Err(Failure::new(EX_DATAERR, format!("not an address: {sender:?}")));
    }
    let name = options.full_name.as_deref().or(full_name);
    let from = if sender.is_empty() { complete(login) } else { sender.clone() };
    add_headers(&mut text, common, &from, name);
    Ok(Letter { sender, recipients, body: text.into() })
}

/// The input with CRLF line ends, up to a line with a single dot unless that is ignored.
fn lines(input: &[u8], ignore_dots: bool) -> Vec<u8> {
    let mut text = Vec::with_capacity(input.len() + input.len() / 40);
    for line in input.split_inclusive(|&b| b == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line == b"." && !ignore_dots {
            break;
        }
        text.extend_from_slice(line);
        text.extend_from_slice(b"\r\n");
    }
    text
}

/// Whether the first line can be a header's: otherwise all of it is the body.
fn begins_with_header(text: &[u8]) -> bool {
    let line = text.split(|&b| b == b'\r').next().unwrap_or(&[]);
    let name = line.iter().position(|&b| b == b':').map(|end| &line[..end]);
    // A mailbox's "From " line is dropped by whoever reads it as a header; mutt and git send none.
    line.is_empty() || name.is_some_and(|n| !n.is_empty() && n.iter().all(u8::is_ascii_graphic))
}

/// To, Cc and Bcc; or, if there is any of them, only Resent-To, Resent-Cc and Resent-Bcc.
fn header_recipients(text: &[u8]) -> Vec<String> {
    let Some(message) = MessageParser::default().parse(text) else { return Vec::new() };
    let collect = |names: [HeaderName<'static>; 3]| {
        let headers = message.headers().iter().filter(|h| names.contains(&h.name));
        headers.flat_map(|h| addresses_of(&h.value)).collect::<Vec<_>>()
    };
    let resent = collect([HeaderName::ResentTo, HeaderName::ResentCc, HeaderName::ResentBcc]);
    if resent.is_empty() {
        collect([HeaderName::To, HeaderName::Cc, HeaderName::Bcc])
    } else {
        resent
    }
}

fn addresses_of(value: &HeaderValue<'_>) -> Vec<String> {
    let HeaderValue::Address(address) = value else { return Vec::new() };
    let all: Vec<_> = match address {
        Address::List(list) => list.iter().collect(),
        Address::Group(groups) => groups.iter().flat_map(|g| &g.addresses).collect(),
    };
    // A word alone (`root`) is an address here, and a name to the parser.
    let text = |a: &mail_parser::Addr<'_>| {
        a.address.as_ref().or(a.name.as_ref()).map(|t| t.trim().to_owned())
    };
    all.into_iter().filter_map(text).filter(|a| !a.is_empty()).collect()
}

fn addresses_in(word: &str) -> Vec<String> {
    let header = format!("To: {word}\r\n\r\n");
    header_recipients(header.as_bytes())
}

/// The header's end: where its last line has ended.
fn header_end(text: &[u8]) -> usize {
    if text.starts_with(b"\r\n") {
        return 0;
    }
    text.windows(4).position(|w| w == b"\r\n\r\n").map_or(text.len(), |at| at + 2)
}

/// Removes a header with its continuation lines, as often as it is there.
fn remove_header(text: &mut Vec<u8>, name: &str) {
    let end = header_end(text);
    let mut kept = Vec::with_capacity(text.len());
    let mut removing = false;
    for line in text[..end].split_inclusive(|&b| b == b'\n') {
        if !matches!(line.first(), Some(b' ' | b'\t')) {
            removing = is_header(line, name);
        }
        if !removing {
            kept.extend_from_slice(line);
        }
    }
    kept.extend_from_slice(&text[end..]);
    *text = kept;
}

fn is_header(line: &[u8], name: &str) -> bool {
    line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
        && line[name.len()..].trim_ascii_start().first() == Some(&b':')
}

fn has_header(text: &[u8], name: &str) -> bool {
    text[..header_end(text)].split(|&b| b == b'\n').any(|line| is_header(line, name))
}

/// What a message must have (RFC 5322 section 3.6) and does not.
fn add_headers(text: &mut Vec<u8>, common: &CommonParams, from: &str, name: Option<&str>) {
    let wall = clock::wall();
    let mut missing = String::new();
    if !has_header(text, "From") {
        missing += &match name {
            Some(name) => format!("From: {} <{from}>\r\n", phrase(name)),
            None => format!("From: {from}\r\n"),
        };
    }
    if !has_header(text, "Date") {
        missing += &format!("Date: {}\r\n", LocalTime::at(wall).date_header());
    }
    if !has_header(text, "Message-ID") {
        missing += &format!("Message-ID: {}\r\n", message_id(wall, &common.myhostname));
    }
    let end = header_end(text);
    if end == text.len() {
        // A header and nothing else: the empty line that ends it.
        missing += "\r\n";
    }
    text.splice(end..end, missing.into_bytes());
}

/// Unique: nobody else has this process id at this nanosecond on this host.
fn message_id(wall: Duration, host: &str) -> String {
    format!("<{}.{:09}.{}@{host}>", wall.as_secs(), wall.subsec_nanos(), std::process::id())
}

/// A display name: quoted, or encoded when it is not ASCII (RFC 2047).
fn phrase(name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    if name.is_ascii() {
        return format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
    }
    let encoded: String = name.bytes().map(|b| format!("={b:02X}")).collect();
    format!("=?utf-8?Q?{encoded}?=")
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
        letter(&options, &common, "joe", Some("Joe \"J\" Doe"), input.as_bytes())
    }

    fn text(letter: &Letter) -> String {
        String::from_utf8(letter.body.to_vec()).unwrap()
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
    fn a_single_dot_ends_the_message_unless_ignored() {
        let input = "S: x\n\na\n.\nb\n";
        assert!(text(&compose("a@x", input).unwrap()).ends_with("a\r\n"));
        assert!(text(&compose("-i a@x", input).unwrap()).ends_with("a\r\n.\r\nb\r\n"));
    }

    #[test]
    fn m2_without_recipients_or_with_bad_ones_nothing_is_sent() {
        assert_eq!(compose("-t", "Subject: s\n\n").unwrap_err().status, EX_NOINPUT);
        assert_eq!(compose("", "x\n").unwrap_err().status, EX_NOINPUT);
        assert_eq!(compose("-f a>b c@x", "x\n").unwrap_err().status, EX_DATAERR);
    }

    #[test]
    fn names_beyond_ascii_are_encoded() {
        assert_eq!(phrase("Jö\r\nX: y"), "=?utf-8?Q?=4A=C3=B6=58=3A=20=79?=");
    }
}
