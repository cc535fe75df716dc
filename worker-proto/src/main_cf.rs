//! main_cf - parameter files: `name = value`, with `$name` in the values
//!
//! Reading keeps the text and where each entry begins in it; a value is taken from there and expanded
//! when it is asked for, so that an override (`-o name=value`) and a default take part in it. A name that nothing
//! defines expands to nothing (postconf(5)).

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use nix::unistd::gethostname;

use crate::diagnostic::{Complaints, Diagnostic, Fault};
use crate::expand::expand;
use crate::files;
use crate::logical::{self, Logical};

/// A row of a table of parameters; see [`mod@crate::params`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamInfo {
    /// Name in main.cf.
    pub name: &'static str,
    /// Kind of value, for the manual.
    pub kind: &'static str,
    /// Default, as main.cf would spell it.
    pub default: &'static str,
    /// Least and greatest value, as main.cf would spell them.
    pub bounds: Option<(&'static str, &'static str)>,
    /// The manual's text, a line each.
    pub doc: &'static [&'static str],
}

impl fmt::Display for ParamInfo {
    /// As postconf prints it: `name = default`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}", self.name, self.default)
    }
}

/// The parameters of an instance: file, overrides and defaults.
#[derive(Debug, Clone, Default)]
pub struct MainCf {
    file: String,
    text: Arc<str>,
    entries: HashMap<Box<str>, Entry>,
    overrides: HashMap<String, String>,
    builtins: HashMap<&'static str, String>,
    defaults: HashMap<&'static str, &'static ParamInfo>,
}

/// Where an entry begins: its offset and the number of its line. A file may have millions.
#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: u32,
    line: u32,
}

/// A value as asked for, with its place for a complaint about it.
#[derive(Debug, Clone)]
pub struct Value {
    /// The expanded text.
    pub text: String,
    place: Diagnostic,
}

impl Value {
    /// An error about this value.
    #[must_use]
    pub fn error(&self, message: impl Into<String>) -> Diagnostic {
        self.place.clone().message(message)
    }
}

impl MainCf {
    /// Reads `main.cf` in a configuration directory. The complaints are about lines that were left
    /// out or overridden; see [`crate::diagnostic::any_error`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn load(directory: &Path) -> Result<(Self, Vec<Diagnostic>), Fault> {
        Ok(Self::of(directory, &Self::text(directory)?))
    }

    /// The text of `main.cf` in a configuration directory.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn text(directory: &Path) -> Result<String, Fault> {
        files::read(&directory.join("main.cf"))
    }

    /// Reads a text as that of `main.cf` in a configuration directory; the rest is as for
    /// [`MainCf::load`].
    #[must_use]
    pub fn of(directory: &Path, text: &str) -> (Self, Vec<Diagnostic>) {
        let (mut main_cf, diagnostics) =
            Self::parse(&directory.join("main.cf").display().to_string(), text);
        main_cf.builtins.insert("config_directory", directory.display().to_string());
        (main_cf, diagnostics)
    }

    /// Reads a text; `file` is the name for complaints.
    #[must_use]
    pub fn parse(file: &str, text: &str) -> (Self, Vec<Diagnostic>) {
        let text: Arc<str> = text.into();
        let mut main_cf = Self { file: file.to_owned(), text: text.clone(), ..Self::default() };
        main_cf.builtins.insert("myhostname", host_name());
        main_cf.builtins.insert("process_id", std::process::id().to_string());
        main_cf.builtins.insert("process_name", program_name());
        let mut complaints = Complaints::default();
        for line in logical::lines(&text) {
            match main_cf.entry(&line) {
                Ok(None) => {}
                Ok(Some(warning)) | Err(warning) => complaints.push(warning),
            }
        }
        (main_cf, complaints.into_vec())
    }

    /// Name of the file, for messages.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Makes a table's defaults known to `$name`.
    pub fn define(&mut self, table: &'static [ParamInfo]) {
        self.defaults.extend(table.iter().map(|info| (info.name, info)));
    }

    /// Overrides a value, as `-o name=value` does.
    pub fn set(&mut self, name: &str, value: &str) {
        self.overrides.insert(name.to_owned(), value.to_owned());
    }

    /// The expanded value of a parameter; None when nothing defines it or its expansion fails.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<String> {
        self.value(name).ok().flatten().map(|v| v.text)
    }

    /// Names that the file sets, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(AsRef::as_ref)
    }

    /// The expanded value of a parameter, with its place.
    ///
    /// # Errors
    /// Its text has a broken or circular `$name`.
    pub fn value(&self, name: &str) -> Result<Option<Value>, Diagnostic> {
        let Some(raw) = self.raw(name) else {
            return Ok(None);
        };
        let place = self.place(name, &raw);
        let text = expand(&raw, &|n| self.raw(n)).map_err(|e| {
            place.clone().message(format!("parameter {name}: {}", e.message)).help(e.help)
        })?;
        Ok(Some(Value { text, place }))
    }

    /// The unexpanded text: override, file, what the system knows, default.
    fn raw(&self, name: &str) -> Option<String> {
        if let Some(value) = self.overrides.get(name) {
            return Some(value.clone());
        }
        if let Some((line, value)) = self.found(name) {
            return Some(line.text[value].to_owned());
        }
        if name == "mydomain" {
            return Some(self.domain());
        }
        let builtin = self.builtins.get(name).cloned();
        builtin.or_else(|| self.defaults.get(name).map(|info| info.default.to_owned()))
    }

    /// The domain of the host's name. A name that asks for the domain in turn is a circle, which the
    /// text that is returned passes on to whoever expands it.
    fn domain(&self) -> String {
        let circle = Cell::new(false);
        let lookup = |name: &str| match name {
            "mydomain" => {
                circle.set(true);
                None
            }
            _ => self.raw(name),
        };
        let host = expand(&self.raw("myhostname").unwrap_or_default(), &lookup);
        match host.unwrap_or_default().split_once('.') {
            _ if circle.get() => "$mydomain".to_owned(),
            Some((_, domain)) => domain.to_owned(),
            None => "localdomain".to_owned(),
        }
    }

    fn place(&self, name: &str, raw: &str) -> Diagnostic {
        let (file, source) = if self.overrides.contains_key(name) {
            ("command line", format!("-o {name}={raw}"))
        } else if let Some((line, value)) = self.found(name) {
            return line.error(&self.file, value, "");
        } else {
            ("default value", format!("{name} = {raw}"))
        };
        Diagnostic::error(file, 1, &source, source.len() - raw.len(), source.len(), "")
    }

    /// The entry of a name in the file, and where its value is in it.
    fn found(&self, name: &str) -> Option<(Logical<'_>, Range<usize>)> {
        let Entry { offset, line } = *self.entries.get(name)?;
        let line = logical::at(&self.text, offset as usize, line as usize)?;
        let value = trimmed(&line.text, line.text.find('=')? + 1..line.text.len());
        Some((line, value))
    }

    fn entry(&mut self, line: &Logical<'_>) -> Result<Option<Diagnostic>, Diagnostic> {
        if line.orphan {
            let at = trimmed(&line.text, 0..line.text.len());
            return Err(line
                .error(&self.file, at, "a continued line with no entry before it")
                .help("remove the blanks before the parameter name"));
        }
        // Neither a path nor a worker's environment can carry one.
        if let Some(at) = line.text.find('\0') {
            return Err(line
                .error(&self.file, at..at + 1, "a null byte")
                .help("remove the null byte"));
        }
        let Some(equals) = line.text.find('=') else {
            let at = trimmed(&line.text, 0..line.text.len());
            return Err(line
                .error(&self.file, at, format!("missing \"=\" after {:?}", line.text.trim()))
                .help("write: name = value"));
        };
        let name = trimmed(&line.text, 0..equals);
        let bad =
            line.text[name.clone()].find(|c: char| !(c.is_alphanumeric() || "_-./".contains(c)));
        if name.is_empty() || bad.is_some() {
            let message = format!("bad parameter name: {:?}", &line.text[name.clone()]);
            return Err(line
                .error(&self.file, name, message)
                .help("a name has letters, digits, \"_\", \"-\", \".\" and \"/\""));
        }
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let entry = Entry { offset: number(line.offset), line: number(line.line()) };
        let earlier = self.entries.insert(line.text[name.clone()].into(), entry);
        Ok(earlier.map(|old| {
            let key = &line.text[name.clone()];
            let message =
                format!("parameter {key} overrides the earlier entry in line {}", old.line);
            line.error(&self.file, name, message).warning().help("keep one of the two")
        }))
    }
}

/// The part of a range without the blanks at its ends.
fn trimmed(text: &str, range: Range<usize>) -> Range<usize> {
    let part = &text[range.clone()];
    let start = range.start + (part.len() - part.trim_start().len());
    start..start + part.trim().len()
}

/// The program's name, without its directory.
fn program_name() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    Path::new(&path).file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

/// The host's name, with a domain (RFC 5321 section 2.3.5 wants one in EHLO).
fn host_name() -> String {
    let name = gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_default();
    match name.as_str() {
        "" => "localhost.localdomain".to_owned(),
        n if n.contains('.') => name,
        _ => format!("{name}.localdomain"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> MainCf {
        let (main_cf, diagnostics) = MainCf::parse("main.cf", text);
        assert_eq!(diagnostics, []);
        main_cf
    }

    #[test]
    fn values_are_trimmed_and_continued() {
        let m = read("a =  1 \nb = x\n # note\n  y\nc =\n");
        assert_eq!(m.get("a").as_deref(), Some("1"));
        assert_eq!(m.get("b").as_deref(), Some("x  y"));
        assert_eq!(m.get("c").as_deref(), Some(""));
        assert_eq!(m.get("d"), None);
    }

    #[test]
    fn an_override_takes_part_in_expansion() {
        let mut m = read("t = ${stress?10}${stress:300}s\n");
        assert_eq!(m.get("t").as_deref(), Some("300s"));
        m.set("stress", "yes");
        assert_eq!(m.get("t").as_deref(), Some("10s"));
    }

    #[test]
    fn mydomain_follows_myhostname() {
        let m = read("myhostname = a.b.example\n");
        assert_eq!(m.get("mydomain").as_deref(), Some("b.example"));
    }

    /// The stack overflowed.
    #[test]
    fn a_myhostname_in_terms_of_mydomain_is_a_circle() {
        let m = read("myhostname = host.$rest\nrest = $mydomain\nx = $mydomain\n");
        for name in ["myhostname", "mydomain", "rest", "x"] {
            let message = m.value(name).unwrap_err().message;
            assert!(message.contains("refer to each other"), "{name}: {message}");
        }
        let m = read("myhostname = host.$mydomain\nmydomain = b.example\n");
        assert_eq!(m.get("myhostname").as_deref(), Some("host.b.example"));
    }

    #[test]
    fn all_bad_lines_are_reported_and_the_rest_is_read() {
        let (m, d) = MainCf::parse("main.cf", " x = 1\nno equals\nb@d = 2\na = 1\na = 2\n");
        let lines: Vec<_> = d.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "main.cf:1:2: a continued line with no entry before it",
                "main.cf:2:1: missing \"=\" after \"no equals\"",
                "main.cf:3:1: bad parameter name: \"b@d\"",
                "main.cf:5:1: warning: parameter a overrides the earlier entry in line 4",
            ]
        );
        assert_eq!(m.get("a").as_deref(), Some("2"));
    }

    /// In import_environment it kept every worker from being started.
    #[test]
    fn a_null_byte_is_reported_at_its_place() {
        let (m, d) = MainCf::parse("main.cf", "a = 1\nb = x\n y\0z\n");
        assert_eq!(
            d.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["main.cf:3:3: a null byte"]
        );
        assert_eq!((m.get("a").as_deref(), m.get("b")), (Some("1"), None));
    }

    #[test]
    fn a_broken_value_points_at_itself() {
        let m = read("a = 1\nb = ${a\n");
        let e = m.value("b").unwrap_err();
        assert_eq!((e.line, e.column, e.width), (2, 5, 3));
    }
}
