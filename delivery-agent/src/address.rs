//! address - the addresses in a field such as To (RFC 5322 section 3.4)
//!
//! Names, comments and groups are skipped; what is left are addresses as an envelope has them. A
//! word without a domain is an address too: `To: root`.

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
            '>' => self.in_angle = false,
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
