//! logical - lines of a configuration file joined with their continuations
//!
//! main.cf, master.cf and alerts.cf share these rules (postconf(5), master(5)): an empty line, a
//! blank one and one whose first character other than a blank is `#` do not count, not even inside
//! an entry; a line that starts with a blank continues the entry above it. A [`Logical`] remembers
//! where each of its bytes stands in the file, so that a complaint points there.

use std::ops::Range;

use crate::diagnostic::Diagnostic;

/// An entry of a file: one physical line and those that continue it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logical<'a> {
    /// The entry's text; a continuation keeps its leading blanks, the line end is dropped.
    pub text: String,
    /// Whether it starts with a blank although no entry stands above it.
    pub orphan: bool,
    pieces: Vec<Piece<'a>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece<'a> {
    start: usize,
    line: usize,
    source: &'a str,
}

impl Logical<'_> {
    /// Number of the entry's first line, from 1.
    #[must_use]
    pub fn line(&self) -> usize {
        self.pieces.first().map_or(0, |p| p.line)
    }

    /// An error at a byte range of [`Logical::text`].
    #[must_use]
    pub fn error(&self, file: &str, at: Range<usize>, message: impl Into<String>) -> Diagnostic {
        // A range that ends where a line does belongs to that line, hence `<` and not `<=`.
        let piece = self.pieces.iter().rev().find(|p| p.start < at.start.max(1));
        let (line, source, start) = piece.map_or((0, "", 0), |p| (p.line, p.source, p.start));
        Diagnostic::error(file, line, source, at.start - start, at.end - start, message)
    }
}

/// The logical lines of a text, in order.
pub fn lines(text: &str) -> impl Iterator<Item = Logical<'_>> {
    let mut rest = text
        .split_inclusive('\n')
        .map(|l| l.strip_suffix('\n').unwrap_or(l))
        .map(|l| l.strip_suffix('\r').unwrap_or(l))
        .zip(1..)
        .filter(|(l, _)| !matches!(l.trim_start().chars().next(), None | Some('#')))
        .peekable();
    std::iter::from_fn(move || {
        let (first, line) = rest.next()?;
        let mut entry = Logical {
            text: first.to_owned(),
            orphan: starts_blank(first),
            pieces: vec![Piece { start: 0, line, source: first }],
        };
        if !entry.orphan {
            while let Some((more, line)) = rest.next_if(|(l, _)| starts_blank(l)) {
                entry.pieces.push(Piece { start: entry.text.len(), line, source: more });
                entry.text.push_str(more);
            }
        }
        Some(entry)
    })
}

fn starts_blank(line: &str) -> bool {
    line.starts_with(|c: char| c.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blank_lines_do_not_end_an_entry() {
        let text = "# head\n\na = 1\n# inside\n \n  2\r\nb = 3";
        let got: Vec<_> = lines(text).map(|l| (l.line(), l.text)).collect();
        assert_eq!(got, [(3, "a = 1  2".to_owned()), (7, "b = 3".to_owned())]);
    }

    #[test]
    fn a_continuation_of_nothing_stands_alone() {
        let got: Vec<_> = lines("  x\n  y\nz\n").map(|l| (l.orphan, l.text)).collect();
        assert_eq!(
            got,
            [(true, "  x".to_owned()), (true, "  y".to_owned()), (false, "z".to_owned())]
        );
    }

    #[test]
    fn an_error_points_into_the_continued_line() {
        let entry = lines("a\n  bad c\n").next().unwrap();
        let start = entry.text.find("bad").unwrap();
        let d = entry.error("f", start..start + 3, "no");
        assert_eq!((d.line, d.column, d.width, d.source.as_str()), (2, 3, 3, "  bad c"));
        let d = entry.error("f", 0..1, "no");
        assert_eq!((d.line, d.column), (1, 1));
        let d = entry.error("f", entry.text.len()..entry.text.len(), "missing");
        assert_eq!((d.line, d.column), (2, 8));
    }
}
