//! options - the command line that forty years of programs use (M1)
//!
//! Options may follow recipients, and some have a value that may or may not be attached. What asks
//! for something that this system does otherwise is taken and ignored; what it cannot do is refused.

use super::{EX_USAGE, Failure};

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    /// Take a message from standard input.
    Deliver,
    /// Speak SMTP on standard input and output.
    Smtp,
    /// List the queue.
    List,
    /// Try a message, or every message, now.
    Flush(Option<String>),
    /// newaliases: there are none.
    Aliases,
}

/// The command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) mode: Mode,
    /// `-C`
    pub(super) config: Option<String>,
    /// `-f`, `-r`; empty is the null sender.
    pub(super) sender: Option<String>,
    /// `-F`
    pub(super) full_name: Option<String>,
    /// `-t`
    pub(super) from_header: bool,
    /// `-i`: a line with a single dot does not end the message.
    pub(super) ignore_dots: bool,
    pub(super) recipients: Vec<String>,
}

/// Letters whose value follows, attached or as the next word.
const WITH_VALUE: &str = "BCFLNORVXfhprDM";
/// Letters whose value is attached if it is there at all.
const ATTACHED: &str = "Aedo";
/// Letters without a value that change nothing here.
const IGNORED: &str = "GUnxmsv";

/// Reads the command line of a program of this name.
pub(super) fn parse(
    name: &str,
    words: impl IntoIterator<Item = String>,
) -> Result<Options, Failure> {
    let mode = match name {
        "mailq" => Mode::List,
        "newaliases" => Mode::Aliases,
        _ => Mode::Deliver,
    };
    let mut options = Options {
        mode,
        config: None,
        sender: None,
        full_name: None,
        from_header: false,
        ignore_dots: false,
        recipients: Vec::new(),
    };
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == "--" {
            options.recipients.extend(words);
            break;
        }
        let Some(letters) = word.strip_prefix('-').filter(|l| !l.is_empty()) else {
            options.recipients.push(word);
            continue;
        };
        cluster(&mut options, letters, &mut words)?;
    }
    Ok(options)
}

/// The letters of one word.
fn cluster(
    options: &mut Options,
    letters: &str,
    words: &mut impl Iterator<Item = String>,
) -> Result<(), Failure> {
    let mut rest = letters;
    while let Some(letter) = rest.chars().next() {
        rest = &rest[letter.len_utf8()..];
        if WITH_VALUE.contains(letter) {
            let value = if rest.is_empty() { words.next() } else { Some(rest.to_owned()) };
            let missing = || usage(format!("option -{letter} requires an argument"));
            value_of(options, letter, value.ok_or_else(missing)?);
            return Ok(());
        }
        match letter {
            'b' => return mode_of(options, rest),
            'q' => return queue_of(options, rest),
            'i' => options.ignore_dots = true,
            't' => options.from_header = true,
            'o' if rest.starts_with('i') => {
                options.ignore_dots = true;
                return Ok(());
            }
            _ if ATTACHED.contains(letter) => return Ok(()),
            _ if IGNORED.contains(letter) => {}
            _ => return Err(usage(format!("invalid option -{letter}"))),
        }
    }
    Ok(())
}

fn value_of(options: &mut Options, letter: char, value: String) {
    match letter {
        'C' => options.config = Some(value),
        'F' => options.full_name = Some(value),
        'f' | 'r' => {
            let bare = value.trim().trim_start_matches('<').trim_end_matches('>');
            options.sender = Some(bare.to_owned());
        }
        // -B, -N, -O, -R, -V, -X and the like: what they tune is tuned in main.cf.
        _ => {}
    }
}

fn mode_of(options: &mut Options, what: &str) -> Result<(), Failure> {
    options.mode = match what {
        "m" | "" => Mode::Deliver,
        "s" => Mode::Smtp,
        "p" => Mode::List,
        "i" => Mode::Aliases,
        "d" | "D" | "l" => {
            return Err(usage(format!("-b{what}: the daemons are started with \"belfry start\"")));
        }
        _ => return Err(usage(format!("-b{what}: this mode is not supported"))),
    };
    Ok(())
}

fn queue_of(options: &mut Options, what: &str) -> Result<(), Failure> {
    options.mode = match what.strip_prefix('I') {
        Some(id) if !id.is_empty() => Mode::Flush(Some(id.to_owned())),
        None if what.is_empty() => Mode::Flush(None),
        None if what.starts_with(|c: char| c.is_ascii_digit()) => {
            let cure = "the running system tries by itself; -q tries every message now";
            return Err(usage(format!("-q{what}: {cure}")));
        }
        _ => return Err(usage(format!("-q{what}: write -q or -qIqueue_id"))),
    };
    Ok(())
}

fn usage(problem: String) -> Failure {
    Failure::new(EX_USAGE, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Options {
        let words = line.split(' ').filter(|w| !w.is_empty());
        parse("sendmail", words.map(|w| w.trim_matches('\'').to_owned())).unwrap()
    }

    #[test]
    fn m1_real_callers_are_understood() {
        for (line, sender, header, dots, to) in [
            ("-FCronDaemon -i -odi -oem -oi -t -f u", Some("u"), true, true, ""),
            ("-i -FCronDaemon -B8BITMIME -oem u", None, false, true, "u"),
            ("-i u", None, false, true, "u"),
            ("-t", None, true, false, ""),
            ("-f s d", Some("s"), false, false, "d"),
            ("-f x -i r1 r2", Some("x"), false, true, "r1 r2"),
            ("-oem -oi -f me@h -- a b", Some("me@h"), false, true, "a b"),
            ("-t -i", None, true, true, ""),
            ("a -f s -i b", Some("s"), false, true, "a b"),
            ("-f <> a", Some(""), false, false, "a"),
            ("-f '' a", Some(""), false, false, "a"),
            (
                "-ti -Am -G -U -n -v -N never -R hdrs -V x -h 3 -O a=b -x -em a",
                None,
                true,
                true,
                "a",
            ),
            ("-bm -- -a", None, false, false, "-a"),
        ] {
            let options = run(line);
            assert_eq!(options.mode, Mode::Deliver, "{line}");
            assert_eq!(options.sender.as_deref(), sender, "{line}");
            assert_eq!((options.from_header, options.ignore_dots), (header, dots), "{line}");
            assert_eq!(options.recipients.join(" "), to, "{line}");
        }
        assert_eq!(run("-FCron -t").full_name.as_deref(), Some("Cron"));
    }

    #[test]
    fn m1_modes() {
        assert_eq!(run("-bs").mode, Mode::Smtp);
        assert_eq!(run("-bp").mode, Mode::List);
        assert_eq!(run("-bi").mode, Mode::Aliases);
        assert_eq!(run("-q").mode, Mode::Flush(None));
        assert_eq!(run("-qIABC").mode, Mode::Flush(Some("ABC".to_owned())));
        assert_eq!(parse("mailq", []).unwrap().mode, Mode::List);
        assert_eq!(parse("newaliases", []).unwrap().mode, Mode::Aliases);
    }

    #[test]
    fn m2_what_cannot_be_done_is_a_usage_error() {
        for bad in ["-bd", "-bv", "-q30m", "-qR", "-f", "-Z", "-F"] {
            let failure = parse("sendmail", [bad.to_owned()]).unwrap_err();
            assert_eq!(failure.status, EX_USAGE, "{bad}");
        }
    }
}
