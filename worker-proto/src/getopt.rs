//! getopt - command line options by a string of letters, as getopt(3) has them
//!
//! Letters may share a word (`-vw`), a value may stand in the word or follow it, `--` and the first
//! word without a dash end the options.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Options in order, each with its value, and the operands behind them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parsed {
    /// Letter and value.
    pub options: Vec<(char, Option<OsString>)>,
    /// What follows the options.
    pub operands: Vec<OsString>,
}

/// Reads a command line without the program's name. In `letters` a colon follows each letter that
/// takes a value.
///
/// # Errors
/// An unknown letter, or one whose value is missing, in a sentence.
pub fn parse(letters: &str, words: impl IntoIterator<Item = OsString>) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            break;
        }
        if bytes.len() < 2 || bytes[0] != b'-' {
            parsed.operands.push(word);
            break;
        }
        let mut at = 1;
        while at < bytes.len() {
            let letter = char::from(bytes[at]);
            at += 1;
            let found = (letter != ':').then(|| letters.find(letter)).flatten();
            let Some(place) = found else {
                return Err(format!("invalid option -- '{letter}'"));
            };
            if letters.as_bytes().get(place + 1) != Some(&b':') {
                parsed.options.push((letter, None));
                continue;
            }
            let value = if at < bytes.len() {
                OsStr::from_bytes(&bytes[at..]).to_owned()
            } else {
                words.next().ok_or_else(|| format!("option requires an argument -- '{letter}'"))?
            };
            parsed.options.push((letter, Some(value)));
            break;
        }
    }
    parsed.operands.extend(words);
    Ok(parsed)
}

/// A value as text; bytes that are no UTF-8 become the replacement character.
#[must_use]
pub fn text(value: Option<OsString>) -> String {
    String::from_utf8_lossy(&value.unwrap_or_default().into_vec()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(letters: &str, line: &str) -> Result<String, String> {
        let parsed = parse(letters, line.split_whitespace().map(OsString::from))?;
        let mut words: Vec<_> = parsed
            .options
            .into_iter()
            .map(|(c, v)| if v.is_some() { format!("{c}={}", text(v)) } else { c.to_string() })
            .collect();
        words.extend(parsed.operands.into_iter().map(|o| format!("[{}]", text(Some(o)))));
        Ok(words.join(" "))
    }

    #[test]
    fn letters_values_and_operands() {
        assert_eq!(run("c:dv", "-dv -c x -cy z -v").as_deref(), Ok("d v c=x c=y [z] [-v]"));
        assert_eq!(run("c:dv", "-vc -- -- -d").as_deref(), Ok("v c=-- [-d]"));
        assert_eq!(run("c:", "-").as_deref(), Ok("[-]"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(run("c:", "-x"), Err("invalid option -- 'x'".to_owned()));
        assert_eq!(run("c:", "-:"), Err("invalid option -- ':'".to_owned()));
        assert_eq!(run("c:", "-c"), Err("option requires an argument -- 'c'".to_owned()));
    }
}
