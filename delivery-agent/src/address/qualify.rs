//! qualify - gives addresses in a field their domain (M3)
//!
//! `root (Cron Daemon)` becomes `root@example.com (Cron Daemon)`, `<root>` becomes
//! `<root@example.com>`; all else stays byte for byte, also what is not UTF-8.

use super::check;

/// The value of a field with `@origin` behind each address that has no domain; None when there is none
/// such.
#[must_use]
pub fn qualify(value: &[u8], origin: &str) -> Option<Vec<u8>> {
    let mut scan = Scan::default();
    for (at, &byte) in value.iter().enumerate() {
        scan.take(value, at, byte);
    }
    scan.end(value);
    if scan.places.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(value.len() + scan.places.len() * (origin.len() + 1));
    let mut from = 0;
    for at in scan.places {
        out.extend_from_slice(&value[from..at]);
        out.push(b'@');
        out.extend_from_slice(origin.as_bytes());
        from = at;
    }
    out.extend_from_slice(&value[from..]);
    Some(out)
}

#[derive(Default)]
struct Scan {
    /// Where a domain is missing.
    places: Vec<usize>,
    plain: Words,
    angle: Option<Words>,
    in_angle: bool,
    comments: usize,
    quoted: bool,
    escaped: bool,
}

/// The words of an address, or of somebody's name.
#[derive(Default)]
struct Words {
    count: usize,
    start: usize,
    end: usize,
    in_word: bool,
    has_domain: bool,
}

impl Scan {
    fn take(&mut self, value: &[u8], at: usize, byte: u8) {
        let was_escaped = std::mem::take(&mut self.escaped);
        if self.comments > 0 {
            match byte {
                _ if was_escaped => {}
                b'\\' => self.escaped = true,
                b'(' => self.comments += 1,
                b')' => self.comments -= 1,
                _ => {}
            }
            return;
        }
        if self.quoted {
            self.escaped = byte == b'\\' && !was_escaped;
            self.quoted = was_escaped || byte != b'"';
            return self.words().letter(at);
        }
        match byte {
            b'"' => {
                self.quoted = true;
                self.words().letter(at);
            }
            b'(' => {
                self.comments = 1;
                self.words().in_word = false;
            }
            b'<' => {
                self.in_angle = true;
                self.angle = Some(Words::default());
            }
            b'>' if self.in_angle => self.in_angle = false,
            b',' | b';' if !self.in_angle => self.end(value),
            // The name of a group.
            b':' if !self.in_angle && !self.plain.has_domain => self.plain = Words::default(),
            b'@' => {
                let words = self.words();
                words.has_domain = true;
                words.letter(at);
            }
            b' ' | b'\t' | b'\r' | b'\n' => self.words().in_word = false,
            _ => self.words().letter(at),
        }
    }

    /// What a byte belongs to.
    fn words(&mut self) -> &mut Words {
        match &mut self.angle {
            // What follows the brackets belongs to nothing, and changes nothing.
            Some(angle) => angle,
            None => &mut self.plain,
        }
    }

    fn end(&mut self, value: &[u8]) {
        let plain = std::mem::take(&mut self.plain);
        let words = self.angle.take().unwrap_or(plain);
        self.in_angle = false;
        let text = std::str::from_utf8(&value[words.start..words.end]);
        if words.count == 1 && !words.has_domain && text.is_ok_and(|text| check(text).is_ok()) {
            self.places.push(words.end);
        }
    }
}

impl Words {
    fn letter(&mut self, at: usize) {
        if !self.in_word {
            self.in_word = true;
            self.count += 1;
            self.start = at;
        }
        self.end = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn qualified(value: &str) -> String {
        let bytes = qualify(value.as_bytes(), "o.example");
        bytes.map_or_else(|| value.to_owned(), |bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn m3_names_without_a_domain_get_one() {
        for (value, want) in [
            (" root (Cron Daemon)", " root@o.example (Cron Daemon)"),
            (" mdadm monitoring <root>", " mdadm monitoring <root@o.example>"),
            (" <root>", " <root@o.example>"),
            (" root", " root@o.example"),
            (" root, a@b,\r\n admin", " root@o.example, a@b,\r\n admin@o.example"),
            (" \"Doe, Jane\" <jane>", " \"Doe, Jane\" <jane@o.example>"),
            (" \"a b\"", " \"a b\"@o.example"),
            (" (first) root (last)", " (first) root@o.example (last)"),
            (" team: root, a@b;", " team: root@o.example, a@b;"),
        ] {
            assert_eq!(qualified(value), want);
            assert_eq!(qualified(want), want);
        }
        for same in [
            "",
            " a@b",
            " Jane <a@b>",
            " undisclosed-recipients:;",
            " <>",
            " Jane Doe",
            " (only a comment)",
            " \"open",
            " a@b (root)",
            " <@x,@y:a@b>",
            " J\u{e4}ne <a@b>",
        ] {
            assert_eq!(qualified(same), same);
        }
        assert_eq!(qualify(b" M\xfcller <root>", "o"), Some(b" M\xfcller <root@o>".to_vec()));
    }

    proptest! {
        #[test]
        fn nothing_but_domains_is_added(value in "[ab@,;:<>()\"\\\\ \r\n.]{0,20}") {
            let got = qualified(&value);
            prop_assert_eq!(got.replace("@o.example", ""), value);
            prop_assert_eq!(qualified(&got), got);
        }
    }
}
