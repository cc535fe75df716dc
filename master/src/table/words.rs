//! words - splitting a line of master.cf

use std::ops::Range;

/// The first `count` words, and where the text behind them begins.
pub(super) fn fields(text: &str, count: usize) -> (Vec<Range<usize>>, usize) {
    let mut fields = Vec::with_capacity(count);
    let mut at = 0;
    while fields.len() < count {
        let Some(skip) = text[at..].find(|c: char| !is_blank(c)) else {
            break;
        };
        let start = at + skip;
        let end = text[start..].find(is_blank).map_or(text.len(), |n| start + n);
        fields.push(start..end);
        at = end;
    }
    (fields, at)
}

/// What is wrong with the arguments, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ArgumentError {
    pub(super) at: Range<usize>,
    pub(super) message: String,
}

/// The arguments from `start` on. One that begins with `{` goes to the matching `}` and loses both
/// and the blanks inside them (D09); braces further on in a word only keep its blanks together (D10).
pub(super) fn arguments(text: &str, start: usize) -> Result<Vec<String>, ArgumentError> {
    let mut arguments = Vec::new();
    let mut at = start;
    while let Some(skip) = text[at..].find(|c: char| !is_blank(c)) {
        let start = at + skip;
        let end = word_end(text, start);
        let word = &text[start..end];
        at = end;
        if !word.starts_with('{') {
            arguments.push(word.to_owned());
            continue;
        }
        let fail = |message| Err(ArgumentError { at: start..end, message });
        match closing(word) {
            Some(close) if close + 1 == word.len() => {
                arguments.push(word[1..close].trim_matches(is_blank).to_owned());
            }
            Some(_) => return fail(format!("syntax error after '}}' in \"{word}\"")),
            None => return fail(format!("missing '}}' in \"{word}\"")),
        }
    }
    Ok(arguments)
}

/// End of the word at `start`: the first blank outside braces.
fn word_end(text: &str, start: usize) -> usize {
    let mut depth = 0_usize;
    for (at, c) in text[start..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            c if depth == 0 && is_blank(c) => return start + at,
            _ => {}
        }
    }
    text.len()
}

/// Where the brace at the start of a word is closed.
fn closing(word: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in word.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

const fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n' | '\x0b' | '\x0c')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d06_fields_are_words() {
        let (fields, rest) = fields(" a\tbc  d e", 3);
        assert_eq!(fields, [1..2, 3..5, 7..8]);
        assert_eq!(rest, 8);
    }

    #[test]
    fn d04_d09_d11_arguments() {
        for (text, want) in [
            ("a b", vec!["a", "b"]),
            ("# not a comment", vec!["#", "not", "a", "comment"]),
            ("-o { x = y  z }", vec!["-o", "x = y  z"]),
            ("{} {{}} { {a b} }", vec!["", "{}", "{a b}"]),
            ("a{b c}d e", vec!["a{b c}d", "e"]),
            ("a}b", vec!["a}b"]),
            ("", vec![]),
        ] {
            assert_eq!(arguments(text, 0).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn d10_broken_braces() {
        let error = |text| arguments(text, 0).unwrap_err();
        assert_eq!(error("a {x").message, "missing '}' in \"{x\"");
        assert_eq!(error("a {x").at, 2..4);
        assert_eq!(error("{x}y").message, "syntax error after '}' in \"{x}y\"");
    }
}
