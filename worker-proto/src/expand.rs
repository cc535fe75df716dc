//! expand - `$name`, `${name}`, `$(name)`, `${name?x}`, `${name:x}`, `${name?{x}:{y}}`
//!
//! `?` gives its text when the parameter has a value, `:` when it has none; `$$` is a dollar sign.
//! What a name stands for is expanded in turn, to a bounded depth.

/// Why a text could not be expanded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExpandError {
    pub(crate) message: String,
    pub(crate) help: &'static str,
}

/// Parameters that refer to each other deeper than this refer to themselves.
const MAX_DEPTH: usize = 50;
/// No value of use is longer; nested doubling must not fill the memory of the root process.
const MAX_LENGTH: usize = 1 << 20;
/// No value of use refers to more; nested doubling of nothing must not hold up the root process.
const MAX_REFERENCES: u32 = 1000;

/// Replaces what `text` refers to; `lookup` gives the unexpanded value of a name.
pub(crate) fn expand(
    text: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let mut out = String::new();
    Expansion { lookup, references: 0 }.expand(text, 0, &mut out)?;
    Ok(out)
}

struct Expansion<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    /// How many there were.
    references: u32,
}

impl Expansion<'_> {
    fn expand(&mut self, text: &str, depth: usize, out: &mut String) -> Result<(), ExpandError> {
        if depth > MAX_DEPTH || out.len() > MAX_LENGTH || self.references > MAX_REFERENCES {
            return Err(ExpandError {
                message: "its \"$name\" parts refer to each other without end".to_owned(),
                help: "break the circle",
            });
        }
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            out.push_str(&rest[..dollar]);
            rest = &rest[dollar + 1..];
            let open = rest.chars().next();
            if open == Some('$') {
                out.push('$');
                rest = &rest[1..];
            } else if let Some(close) = open.and_then(closing) {
                let end = matching(rest, close)?;
                self.reference(&rest[1..end], depth, out)?;
                rest = &rest[end + 1..];
            } else {
                let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                if end == 0 {
                    return Err(ExpandError {
                        message: "\"$\" without a name".to_owned(),
                        help: "write \"$$\" for a dollar sign",
                    });
                }
                self.named(&rest[..end], depth, out)?;
                rest = &rest[end..];
            }
        }
        out.push_str(rest);
        Ok(())
    }

    /// The inside of `${...}`.
    fn reference(
        &mut self,
        inside: &str,
        depth: usize,
        out: &mut String,
    ) -> Result<(), ExpandError> {
        let inside = inside.trim();
        let end = inside.find(|c| !is_name(c)).unwrap_or(inside.len());
        let (name, rest) = (&inside[..end], inside[end..].trim_start());
        if name.is_empty() {
            return Err(bad_reference(inside));
        }
        let mut value = String::new();
        let Some(operator) = rest.chars().next() else {
            return self.named(name, depth, out);
        };
        self.named(name, depth, &mut value)?;
        let (chosen, other) = match operator {
            '?' => branches(rest[1..].trim_start())?,
            ':' => (None, Some(branch(rest[1..].trim())?)),
            _ => return Err(bad_reference(inside)),
        };
        match if value.is_empty() { other } else { chosen } {
            Some(text) => self.expand(text, depth + 1, out),
            None => Ok(()),
        }
    }

    fn named(&mut self, name: &str, depth: usize, out: &mut String) -> Result<(), ExpandError> {
        self.references += 1;
        match (self.lookup)(name) {
            Some(text) => self.expand(&text, depth + 1, out),
            None => Ok(()),
        }
    }
}

type Branches<'a> = (Option<&'a str>, Option<&'a str>);

/// `{x}:{y}`, `{x}` or `x`, behind a question mark.
fn branches(text: &str) -> Result<Branches<'_>, ExpandError> {
    if !text.starts_with('{') {
        return Ok((Some(text), None));
    }
    let end = matching(text, '}')?;
    let yes = text[1..end].trim();
    let rest = text[end + 1..].trim();
    match rest.strip_prefix(':') {
        Some(no) => Ok((Some(yes), Some(branch(no.trim())?))),
        None if rest.is_empty() => Ok((Some(yes), None)),
        None => Err(bad_reference(text)),
    }
}

/// `{x}` or `x`.
fn branch(text: &str) -> Result<&str, ExpandError> {
    if !text.starts_with('{') {
        return Ok(text);
    }
    match matching(text, '}')? {
        end if end + 1 == text.len() => Ok(text[1..end].trim()),
        _ => Err(bad_reference(text)),
    }
}

/// Offset of the character that closes the one at the start of `text`.
fn matching(text: &str, close: char) -> Result<usize, ExpandError> {
    let open = text.chars().next();
    let mut level = 0_usize;
    for (at, c) in text.char_indices() {
        if Some(c) == open {
            level += 1;
        } else if c == close {
            level -= 1;
            if level == 0 {
                return Ok(at);
            }
        }
    }
    Err(ExpandError {
        message: format!("missing {close:?} in {text:?}"),
        help: "close every \"${\" with \"}\"",
    })
}

const fn closing(open: char) -> Option<char> {
    match open {
        '{' => Some('}'),
        '(' => Some(')'),
        _ => None,
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn bad_reference(text: &str) -> ExpandError {
    ExpandError {
        message: format!("cannot make out {text:?}"),
        help: "write ${name}, ${name?text}, ${name:text} or ${name?{text}:{text}}",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ex(text: &str) -> Result<String, String> {
        let lookup = |name: &str| match name {
            "a" => Some("1".to_owned()),
            "empty" => Some(String::new()),
            "b" => Some("<$a>".to_owned()),
            "loop" => Some("$loop2".to_owned()),
            "loop2" => Some("x$loop".to_owned()),
            "double" => Some("$twice$twice".to_owned()),
            "twice" => Some("$double$double".to_owned()),
            _ => None,
        };
        expand(text, &lookup).map_err(|e| e.message)
    }

    #[test]
    fn every_form() {
        for (text, want) in [
            ("plain", "plain"),
            ("$a-$b", "1-<1>"),
            ("${a}$(a)", "11"),
            ("$none.", "."),
            ("$$a", "$a"),
            ("${a?yes}${a:no}", "yes"),
            ("${none?yes}${none:no}", "no"),
            ("${empty?yes}${empty:no}", "no"),
            ("${a?{yes}:{no}}", "yes"),
            ("${none?{yes}:{no}}", "no"),
            ("${ a ? { y } : { n } }", "y"),
            ("${none:{$b}}", "<1>"),
            ("${none?{a}:${a?{x}:{y}}}", "x"),
            ("${a?{}:{n}}", ""),
        ] {
            assert_eq!(ex(text).as_deref(), Ok(want), "{text}");
        }
    }

    /// It took 2^40 steps.
    #[test]
    fn doubling_of_nothing_comes_to_an_end() {
        let lookup = |name: &str| {
            let n: u32 = name.strip_prefix('x')?.parse().ok()?;
            let next = if n < 40 { format!("$x{0}$x{0}", n + 1) } else { String::new() };
            Some(next)
        };
        assert!(expand("$x0", &lookup).is_err());
        assert_eq!(expand("$x34", &lookup), Ok(String::new()));
    }

    #[test]
    fn what_cannot_be_expanded() {
        for bad in
            ["$", "$ a", "${a", "${}", "${a!b}", "${a?{x}y}", "${a:{x}y}", "$loop", "$double"]
        {
            assert!(ex(bad).is_err(), "{bad}");
        }
    }
}
