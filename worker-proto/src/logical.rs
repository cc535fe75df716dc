//! logical - lines of a configuration file joined with their continuations
//!
//! main.cf, master.cf and alerts.cf share these rules (postconf(5), master(5)): an empty line, a
//! blank one and one whose first character other than a blank is `#` do not count, not even inside
//! an entry; a line that starts with a blank continues the entry above it. A [`Logical`] knows the
//! part of the file that it was read from, so that a complaint points there.

use std::borrow::Cow;
use std::ops::Range;

use crate::diagnostic::Diagnostic;

/// An entry of a file: one physical line and those that continue it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logical<'a> {
    /// The entry's text; a continuation keeps its leading blanks, the line end is dropped.
    pub text: Cow<'a, str>,
    /// Whether it starts with a blank although no entry stands above it.
    pub orphan: bool,
    /// Where its first line begins.
    pub offset: usize,
    line: usize,
    /// The file from its first line on.
    source: &'a str,
}

impl Logical<'_> {
    /// Number of the entry's first line, from 1.
    #[must_use]
    pub const fn line(&self) -> usize {
        self.line
    }

    /// An error at a byte range of [`Logical::text`].
    #[must_use]
    pub fn error(&self, file: &str, at: Range<usize>, message: impl Into<String>) -> Diagnostic {
        let (mut found, mut next) = ((0, "", 0), 0);
        for (offset, text) in physical(self.source) {
            // A range that ends where a line does belongs to that line, hence `<` and not `<=`.
            if next >= at.start.max(1) || next >= self.text.len().max(1) {
                break;
            }
            found = (offset, text, next);
            next += text.len();
        }
        let (offset, source, start) = found;
        let line = self.line + self.source[..offset].matches('\n').count();
        Diagnostic::error(file, line, source, at.start - start, at.end - start, message)
    }
}

/// The logical lines of a text, in order.
pub fn lines(text: &str) -> impl Iterator<Item = Logical<'_>> {
    let (mut rest, mut line, mut counted) = (physical(text).peekable(), 1, 0);
    std::iter::from_fn(move || {
        let (offset, first) = rest.next()?;
        line += text[counted..offset].matches('\n').count();
        counted = offset;
        let orphan = starts_blank(first);
        let mut entry = Cow::Borrowed(first);
        while !orphan && let Some((_, more)) = rest.next_if(|(_, l)| starts_blank(l)) {
            entry.to_mut().push_str(more);
        }
        Some(Logical { text: entry, orphan, offset, line, source: &text[offset..] })
    })
}

/// The logical line that was found at an offset, in a line of this number.
#[must_use]
pub fn at(text: &str, offset: usize, line: usize) -> Option<Logical<'_>> {
    lines(&text[offset..]).next().map(|found| Logical { offset, line, ..found })
}

/// The lines that count, with their offsets, without their ends.
fn physical(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let start = text.as_ptr().addr();
    text.split_inclusive('\n')
        .map(move |l| (l.as_ptr().addr() - start, l))
        .map(|(at, l)| (at, l.strip_suffix('\n').unwrap_or(l)))
        .map(|(at, l)| (at, l.strip_suffix('\r').unwrap_or(l)))
        .filter(|(_, l)| !matches!(l.trim_start().chars().next(), None | Some('#')))
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
        let got: Vec<_> = lines(text).map(|l| (l.line(), l.text.into_owned())).collect();
        assert_eq!(got, [(3, "a = 1  2".to_owned()), (7, "b = 3".to_owned())]);
    }

    #[test]
    fn a_continuation_of_nothing_stands_alone() {
        let got: Vec<_> = lines("  x\n  y\nz\n").map(|l| (l.orphan, l.text.into_owned())).collect();
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
