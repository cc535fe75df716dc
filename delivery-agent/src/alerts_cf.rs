//! alerts_cf - who is told: alerts.cf
//!
//! A line is an address, and the kinds of events it wants:
//!
//! ```text
//! root@example.com
//! pager@example.com   only on { disk, raid }
//! log@example.com     but not on { mail }
//! ```
//!
//! Plain mail to a name without a domain (`root`) is an event of the kind `mail`.

use std::ops::Range;

use worker_proto::diagnostic::{Complaints, Diagnostic};
use worker_proto::logical::{self, Logical};

/// The kind of plain mail.
pub const MAIL: &str = "mail";

/// The recipients of events.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AlertsCf {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    address: String,
    mask: Mask,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Mask {
    All,
    Only(Vec<String>),
    ButNot(Vec<String>),
}

impl AlertsCf {
    /// Reads a text. Lines with errors are left out; the rest is of use.
    #[must_use]
    pub fn parse(file: &str, text: &str) -> (Self, Vec<Diagnostic>) {
        let mut alerts = Self::default();
        let mut complaints = Complaints::default();
        for line in logical::lines(text) {
            match rule(&line) {
                Ok(rule) => alerts.rules.push(rule),
                Err((at, message, help)) => {
                    complaints.push(line.error(file, at, message).help(help));
                }
            }
        }
        (alerts, complaints.into_vec())
    }

    /// The addresses that want events of a kind, in the order of the file, each once.
    #[must_use]
    pub fn recipients(&self, kind: &str) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for rule in &self.rules {
            let wanted = match &rule.mask {
                Mask::All => true,
                Mask::Only(kinds) => kinds.iter().any(|k| k == kind),
                Mask::ButNot(kinds) => !kinds.iter().any(|k| k == kind),
            };
            if wanted && !found.contains(&rule.address.as_str()) {
                found.push(&rule.address);
            }
        }
        found
    }
}

type Problem = (Range<usize>, String, &'static str);

const FORM: &str = "write: address [only on { kind, ... } | but not on { kind, ... }]";

fn rule(line: &Logical<'_>) -> Result<Rule, Problem> {
    let text = line.text.as_ref();
    let whole = text.len() - text.trim_start().len()..text.trim_end().len();
    if line.orphan {
        return Err((whole, "a continued line with no address before it".to_owned(), FORM));
    }
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    let address = &text[..end];
    let (local, domain) = address.rsplit_once('@').unwrap_or((address, ""));
    let odd = |c: char| c.is_control() || "<>(),;\"\\[]".contains(c);
    if local.is_empty() || domain.is_empty() || address.contains(odd) {
        let message = format!("not a mail address: {address:?}");
        return Err((0..end, message, "write an address with its domain: name@example.com"));
    }
    let rest = text[end..].trim();
    let mask = if rest.is_empty() {
        Mask::All
    } else if let Some(kinds) = strip_words(rest, &["only", "on"]) {
        Mask::Only(kinds_of(kinds, whole)?)
    } else if let Some(kinds) = strip_words(rest, &["but", "not", "on"]) {
        Mask::ButNot(kinds_of(kinds, whole)?)
    } else {
        let start = end + (text[end..].len() - text[end..].trim_start().len());
        return Err((start..whole.end, format!("cannot make out {rest:?}"), FORM));
    };
    Ok(Rule { address: address.to_owned(), mask })
}

/// What follows these words, if the text begins with them.
fn strip_words<'a>(text: &'a str, words: &[&str]) -> Option<&'a str> {
    words.iter().try_fold(text, |rest, word| {
        let rest = rest.trim_start().strip_prefix(word)?;
        rest.starts_with(|c: char| c.is_whitespace() || c == '{').then_some(rest)
    })
}

fn kinds_of(text: &str, whole: Range<usize>) -> Result<Vec<String>, Problem> {
    let inside = text.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}'));
    let Some(inside) = inside else {
        return Err((whole, "the kinds are not in { }".to_owned(), FORM));
    };
    let kinds = inside.split(|c: char| c == ',' || c.is_whitespace());
    let kinds: Vec<String> = kinds.filter(|k| !k.is_empty()).map(str::to_owned).collect();
    let odd = |k: &&String| !k.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    match kinds.iter().find(odd) {
        _ if kinds.is_empty() => Err((whole, "no kind in { }".to_owned(), FORM)),
        Some(kind) => {
            let help = "a kind has letters, digits, \"-\", \"_\" and \".\"";
            Err((whole, format!("not a kind of event: {kind:?}"), help))
        }
        None => Ok(kinds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e03_masks_choose_recipients() {
        let text = "# who\nroot@x.example\npager@x.example only on { disk,raid }\n\
                    log@x.example but not on{mail}\nroot@x.example\n";
        let (alerts, diagnostics) = AlertsCf::parse("alerts.cf", text);
        assert_eq!(diagnostics, []);
        assert_eq!(alerts.recipients(MAIL), ["root@x.example"]);
        assert_eq!(
            alerts.recipients("disk"),
            ["root@x.example", "pager@x.example", "log@x.example"]
        );
    }

    #[test]
    fn every_bad_line_is_told_and_the_rest_is_used() {
        let text = "  a@x\nroot\na@x sometimes\na@x only on disk\na@x only on { }\n\
                    a@x only on {a b$}\nb@x\n";
        let (alerts, diagnostics) = AlertsCf::parse("alerts.cf", text);
        let lines: Vec<_> = diagnostics.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "alerts.cf:1:3: a continued line with no address before it",
                "alerts.cf:2:1: not a mail address: \"root\"",
                "alerts.cf:3:5: cannot make out \"sometimes\"",
                "alerts.cf:4:1: the kinds are not in { }",
                "alerts.cf:5:1: no kind in { }",
                "alerts.cf:6:1: not a kind of event: \"b$\"",
            ]
        );
        assert_eq!(alerts.recipients(MAIL), ["b@x"]);
    }
}
