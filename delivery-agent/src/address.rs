//! address - what may stand in an envelope, and the addresses in a field such as To
//!
//! [`check`] is the one rule for addresses, however they came: over SMTP, on a command line, in a
//! header (RFC 5322 section 3.4) or in a drop file. In a field, names, comments and groups are skipped;
//! what is left are addresses as an envelope has them. A word without a domain is an address too:
//! `To: root`.

mod qualify;

pub use qualify::qualify;

/// The longest address, in bytes. RFC 5321 wants 254.
const MAX_ADDRESS: usize = 512;

/// Whether an address, without brackets, can stand in an envelope: then it is exactly one word of an
/// SMTP command.
///
/// # Errors
/// What is wrong with it.
pub fn check(address: &str) -> Result<(), &'static str> {
    if address.contains(char::REPLACEMENT_CHARACTER) {
        return Err("it is not UTF-8");
    }
    if address.chars().any(char::is_control) {
        return Err("it holds a control character");
    }
    if address.len() > MAX_ADDRESS {
        return Err("it is too long");
    }
    let rest = match address.strip_prefix('"') {
        Some(quoted) => {
            let end = closing_quote(quoted).ok_or("a quotation mark is missing")?;
            &quoted[end + 1..]
        }
        None => {
            let end = address.find('@').unwrap_or(address.len());
            if end == 0 {
                return Err("the part before the \"@\" is missing");
            }
            if address[..end].contains(is_special) {
                return Err("a special character is not quoted");
            }
            &address[end..]
        }
    };
    match rest.strip_prefix('@') {
        Some(domain) => check_domain(domain),
        None if rest.is_empty() => Ok(()),
        None => Err("text after a quotation mark"),
    }
}

/// Where a quoted string ends that was begun.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at),
            _ => {}
        }
    }
    None
}

fn is_special(c: char) -> bool {
    c.is_whitespace() || "()<>[]:;,\\\"".contains(c)
}

fn check_domain(domain: &str) -> Result<(), &'static str> {
    if let Some(literal) = domain.strip_prefix('[') {
        let inside = literal.strip_suffix(']').ok_or("a bracket is missing in the domain")?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".:-".contains(c);
        return if !inside.is_empty() && inside.chars().all(is_plain) {
            Ok(())
        } else {
            Err("bad address literal in the domain")
        };
    }
    let is_plain = |c: char| match c.is_ascii() {
        true => c.is_ascii_alphanumeric() || c == '-' || c == '_',
        false => !c.is_whitespace(),
    };
    let is_label = |label: &str| !label.is_empty() && label.chars().all(is_plain);
    match domain {
        "" => Err("the domain is missing"),
        _ if domain.split('.').all(is_label) => Ok(()),
        _ => Err("bad domain"),
    }
}

/// The addresses of a field's value, in order.
#[must_use]
pub fn list(value: &str) -> Vec<String> {
    let mut reader = Reader::default();
    for c in value.chars() {
        reader.take(c);
    }
    reader.end();
    reader.found
}

#[derive(Default)]
struct Reader {
    found: Vec<String>,
    /// What was read outside of brackets: a bare address, or somebody's name.
    plain: String,
    /// What stands in the angle brackets.
    angle: Option<String>,
    in_angle: bool,
    comments: usize,
    quoted: bool,
    escaped: bool,
}

impl Reader {
    fn take(&mut self, c: char) {
        let was_escaped = std::mem::take(&mut self.escaped);
        if self.comments > 0 {
            match c {
                _ if was_escaped => {}
                '\\' => self.escaped = true,
                '(' => self.comments += 1,
                ')' => self.comments -= 1,
                _ => {}
            }
            return;
        }
        if self.quoted {
            self.escaped = c == '\\' && !was_escaped;
            self.quoted = was_escaped || c != '"';
            return self.keep(c);
        }
        match c {
            '"' => {
                self.quoted = true;
                self.keep(c);
            }
            '(' => self.comments = 1,
            '<' => {
                self.in_angle = true;
                self.angle = Some(String::new());
            }
            '>' if self.in_angle => self.in_angle = false,
            // A comma or colon inside brackets is that of a source route.
            ',' | ';' if !self.in_angle => self.end(),
            // The name of a group, unless a domain is an address in brackets.
            ':' if !self.in_angle && !self.plain.contains('@') => self.plain.clear(),
            _ => self.keep(c),
        }
    }

    fn keep(&mut self, c: char) {
        match &mut self.angle {
            Some(angle) if self.in_angle => angle.push(c),
            // What follows the brackets belongs to nothing.
            Some(_) => {}
            None => self.plain.push(c),
        }
    }

    fn end(&mut self) {
        let plain = std::mem::take(&mut self.plain);
        let angle = self.angle.take();
        self.in_angle = false;
        let is_angle = angle.is_some();
        let text = angle.unwrap_or(plain);
        // A source route: the address is what follows its colon.
        let text = match text.trim_start().starts_with('@') {
            true => text.split_once(':').map_or("", |(_, t)| t),
            false => &text,
        };
        // `a@b c@d` is two addresses whose comma is missing, `a @ b` is one with blanks.
        let several = text.split_whitespace().filter(|w| w.contains('@')).count() > 1;
        if is_angle || text.contains('"') || (text.contains('@') && !several) {
            let address = squeeze(text);
            if !address.is_empty() {
                self.found.push(address);
            }
        } else {
            self.found.extend(text.split_whitespace().map(str::to_owned));
        }
    }
}

/// Without blanks outside of quotes.
fn squeeze(text: &str) -> String {
    let (mut quoted, mut escaped) = (false, false);
    let keep = |c: &char| {
        let blank = c.is_whitespace() && !quoted;
        quoted ^= *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        !blank
    };
    text.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m3_what_an_envelope_can_hold() {
        for good in [
            "root",
            "a@b",
            "a.b+c=d/e'f@x-y_z.example",
            "\"a b\"@c",
            "\"a > b, \\\" c\"@d",
            "\"quoted\"",
            "a@[192.0.2.1]",
            "a@[IPv6:::1]",
            "\u{e4}@b\u{fc}cher.example",
            "a..b@c",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "@b",
            "a@",
            "a@b@c",
            "a b",
            "a b@c",
            "a@b c",
            "<a@b>",
            "\"a\"@b> X=Y",
            "\"a\"@b\"c",
            "\"a\"b@c",
            "\"a@b",
            "a\"b\"@c",
            "a@b>",
            "a\0@b",
            "a@b\r\nDATA",
            "a\u{9b}2J@b",
            "a@b..c",
            "a@.b",
            "a@[x y]",
            "a@[1",
            "a,b@c",
            "a:b@c",
            "a@b\u{a0}c",
            "M\u{fffd}ller@b",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        assert!(check(&format!("{}@b", "x".repeat(600))).is_err());
    }

    #[test]
    fn m3_addresses_of_a_field() {
        for (value, want) in [
            ("a@b", vec!["a@b"]),
            ("a@b, c@d", vec!["a@b", "c@d"]),
            ("root", vec!["root"]),
            ("root, admin", vec!["root", "admin"]),
            ("root admin", vec!["root", "admin"]),
            ("The Boss <a@b>, \"Doe, Jane\" <c@d>", vec!["a@b", "c@d"]),
            ("a@b (the, boss <x@y>), c@d", vec!["a@b", "c@d"]),
            ("(nested (comment\\)) here) a@b", vec!["a@b"]),
            ("team: a@b, Jane <c@d>;, e@f", vec!["a@b", "c@d", "e@f"]),
            ("undisclosed-recipients:;", vec![]),
            ("\"a b\"@c", vec!["\"a b\"@c"]),
            ("\"a, b\"@c, d@e", vec!["\"a, b\"@c", "d@e"]),
            ("a @ b", vec!["a@b"]),
            ("a@b c@d", vec!["a@b", "c@d"]),
            ("<@x,@y:a@b>", vec!["a@b"]),
            ("a@[IPv6:::1]", vec!["a@[IPv6:::1]"]),
            ("<>", vec![]),
            ("", vec![]),
            (" , ,", vec![]),
            ("<a@b", vec!["a@b"]),
            ("\"open", vec!["\"open"]),
        ] {
            assert_eq!(list(value), want, "{value:?}");
        }
    }
}
