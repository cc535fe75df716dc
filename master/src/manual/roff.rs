//! roff - text to a manual page in man(7)

use std::fmt::Write;

/// A page under construction.
#[derive(Debug)]
pub struct Page {
    text: String,
}

impl Page {
    /// The head of a page and its NAME section.
    #[must_use]
    pub fn new(name: &str, section: u8, summary: &str) -> Self {
        let mut text = ".\\\" made from the program's own tables; do not edit\n".to_owned();
        let title = name.to_uppercase();
        let _ = writeln!(text, ".TH \"{title}\" \"{section}\" \"\" \"Belfry\" \"Belfry\"");
        let mut page = Self { text };
        page.heading("NAME");
        let _ = writeln!(page.text, "{} \\- {}", escape(name), escape(summary));
        page
    }

    /// A section.
    pub fn heading(&mut self, title: &str) -> &mut Self {
        let _ = writeln!(self.text, ".SH \"{title}\"");
        self
    }

    /// A part of a section.
    pub fn part(&mut self, title: &str) -> &mut Self {
        let _ = writeln!(self.text, ".SS \"{}\"", escape(title));
        self
    }

    /// A paragraph. `Words` in backquotes are set in bold.
    pub fn say(&mut self, text: &str) -> &mut Self {
        let _ = writeln!(self.text, ".PP\n{}", prose(text));
        self
    }

    /// A term with what it means.
    pub fn item(&mut self, term: &str, text: &str) -> &mut Self {
        let _ = writeln!(self.text, ".TP\n\\fB{}\\fR\n{}", escape(term), prose(text));
        self
    }

    /// Lines that stay as they are.
    pub fn example(&mut self, lines: &str) -> &mut Self {
        self.text.push_str(".PP\n.nf\n");
        for line in lines.lines() {
            let _ = writeln!(self.text, "    {}", escape(line));
        }
        self.text.push_str(".fi\n");
        self
    }

    /// The other pages to read.
    pub fn see_also(&mut self, pages: &[(&str, u8)]) -> &mut Self {
        self.heading("SEE ALSO");
        let pages: Vec<_> =
            pages.iter().map(|(name, section)| format!("{}({section})", escape(name))).collect();
        let _ = writeln!(self.text, "{}", pages.join(", "));
        self
    }

    /// The page.
    #[must_use]
    pub fn finish(&self) -> String {
        self.text.clone()
    }
}

/// Running text, a line each sentence or clause as it comes.
fn prose(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    let mut lines = vec![String::new()];
    for word in words {
        let last = lines.len() - 1;
        if lines[last].chars().count() + word.chars().count() > 95 {
            lines.push(word.to_owned());
        } else {
            if !lines[last].is_empty() {
                lines[last].push(' ');
            }
            lines[last].push_str(word);
        }
    }
    let mut bold = false;
    let mut out = String::new();
    for line in lines {
        let mut set = String::new();
        for (n, piece) in escape(&line).split('`').enumerate() {
            if n > 0 {
                bold = !bold;
                set.push_str(if bold { "\\fB" } else { "\\fR" });
            }
            set.push_str(piece);
        }
        out.push_str(&set);
        out.push('\n');
    }
    out.trim_end().to_owned()
}

/// What roff would take for its own is made plain.
fn escape(text: &str) -> String {
    let plain = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    if plain.starts_with('.') { format!("\\&{plain}") } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_a_request() {
        let mut page = Page::new("x", 8, "a - b");
        page.say(".so /etc/passwd with `-c dir` and a\\b").example("'quoted'\n.x");
        let text = page.finish();
        assert!(text.contains("x \\- a \\- b\n"));
        assert!(text.contains("\\&.so /etc/passwd with \\fB\\-c dir\\fR and a\\eb\n"), "{text}");
        assert!(text.contains("    \\(aqquoted\\(aq\n    \\&.x\n"), "{text}");
    }

    #[test]
    fn long_text_is_broken_between_words() {
        let text = prose(&"word ".repeat(100));
        assert!(text.lines().all(|line| line.len() <= 96));
        assert_eq!(text.split_whitespace().count(), 100);
    }
}
