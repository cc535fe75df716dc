//! aliases - local names and who gets their mail, in the syntax of aliases(5)
//!
//! `name: address, other, :include:/path`. Commands (`|...`) and files (`/...`) are not supported: a
//! line says so. Names are found whatever their case.

use std::collections::{HashMap, HashSet};

use crate::address;

/// The aliases of all files.
#[derive(Debug, Clone, Default)]
pub struct Aliases {
    targets: HashMap<String, Vec<String>>,
}

/// What an `:include:` file holds, or why it cannot be read.
pub type Include<'a> = dyn Fn(&str) -> Result<String, String> + 'a;

impl Aliases {
    /// Adds the lines of a file; what is wrong with them. The first line for a name counts.
    pub fn add(&mut self, file: &str, text: &str, include: &Include<'_>) -> Vec<String> {
        let mut complaints = Vec::new();
        for (number, line) in logical_lines(text) {
            let mut complain = |what: &str| complaints.push(format!("{file}:{number}: {what}"));
            let Some((name, value)) = split_name(&line) else {
                complain("not of the form \"name: address, address\"");
                continue;
            };
            let mut targets = Vec::new();
            for item in items(value) {
                match item.strip_prefix(":include:") {
                    Some(path) => match include(path.trim()) {
                        Ok(text) => {
                            let lines = logical_lines(&text);
                            let lists = lines.iter().flat_map(|(_, line)| items(line));
                            lists.for_each(|item| take(item, &mut targets, &mut complain));
                        }
                        Err(cause) => complain(&format!("{item}: {cause}")),
                    },
                    None => take(item, &mut targets, &mut complain),
                }
            }
            self.targets.entry(name.to_lowercase()).or_insert(targets);
        }
        complaints
    }

    /// Who gets the mail of a local name; None when it is no alias. Names that are no aliases
    /// themselves, and each address, come once, and a loop ends where it began.
    #[must_use]
    pub fn expand<'a>(&'a self, name: &'a str) -> Option<Vec<&'a str>> {
        if !self.targets.contains_key(&name.to_lowercase()) {
            return None;
        }
        let (mut seen, mut found, mut open) = (HashSet::new(), Vec::new(), vec![name]);
        while let Some(next) = open.pop() {
            let key = next.to_lowercase();
            match self.targets.get(&key) {
                _ if !seen.insert(key) => {}
                Some(targets) => open.extend(targets.iter().rev().map(String::as_str)),
                None => found.push(next),
            }
        }
        Some(found)
    }
}

fn take(item: &str, targets: &mut Vec<String>, complain: &mut impl FnMut(&str)) {
    if item.starts_with(['|', '/']) || item.starts_with("\"|") || item.starts_with("\"/") {
        return complain(&format!("{item}: commands and files are not supported"));
    }
    for address in address::list(item) {
        // A backslash keeps a name from being looked up by others; here it is looked up once anyway.
        let address = address.trim_start_matches('\\');
        match address::check(address) {
            Ok(()) => targets.push(address.to_owned()),
            Err(cause) => complain(&format!("bad address \"{address}\": {cause}")),
        }
    }
}

/// Lines with their continuations, and their numbers; no comments.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        match lines.last_mut() {
            Some((_, last)) if line.starts_with([' ', '\t']) => last.push_str(line),
            _ => lines.push((number, line.to_owned())),
        }
    }
    lines
}

fn split_name(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let (name, value) = match line.strip_prefix('"') {
        Some(rest) => {
            let (name, rest) = rest.split_once('"')?;
            (name, rest.trim_start().strip_prefix(':')?)
        }
        None => line.split_once(':')?,
    };
    let name = name.trim();
    (!name.is_empty()).then_some((name, value))
}

/// The parts between commas outside of quotes.
fn items(value: &str) -> Vec<&str> {
    let mut quoted = false;
    let is_comma = |c: char| {
        quoted ^= c == '"';
        c == ',' && !quoted
    };
    value.split(is_comma).map(str::trim).filter(|item| !item.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aliases(text: &str) -> (Aliases, Vec<String>) {
        let mut aliases = Aliases::default();
        let include = |path: &str| match path {
            "/list" => Ok("# people\nc@x, d@x\ne@x\n".to_owned()),
            _ => Err("No such file or directory".to_owned()),
        };
        let complaints = aliases.add("aliases", text, &include);
        (aliases, complaints)
    }

    #[test]
    fn m3_names_become_addresses() {
        let text = "# comment\nroot: Admin <a@x>,\n\tb@x\nPostmaster: root\n\"two words\": e@x\n\
                    list: :include:/list, a@x\nself: \\self, b@x\nping: pong\npong: ping\nroot: z@x\n";
        let (aliases, complaints) = aliases(text);
        assert_eq!(complaints, [] as [String; 0]);
        let expand = |name| aliases.expand(name);
        assert_eq!(expand("root"), Some(vec!["a@x", "b@x"]));
        assert_eq!(expand("ROOT"), Some(vec!["a@x", "b@x"]));
        assert_eq!(expand("postmaster"), Some(vec!["a@x", "b@x"]));
        assert_eq!(expand("two words"), Some(vec!["e@x"]));
        assert_eq!(expand("list"), Some(vec!["c@x", "d@x", "e@x", "a@x"]));
        assert_eq!(expand("self"), Some(vec!["b@x"]));
        assert_eq!(expand("ping"), Some(Vec::new()), "a loop has no end and no address");
        assert_eq!(expand("nobody"), None);
    }

    #[test]
    fn what_is_wrong_has_a_line_each() {
        let text =
            "no colon\na: |/bin/prog, \"|prog x\", /dev/null, b@x\nc: :include:/gone\nd: e@\n";
        let (aliases, complaints) = aliases(text);
        let want = [
            "aliases:1: not of the form \"name: address, address\"",
            "aliases:2: |/bin/prog: commands and files are not supported",
            "aliases:2: \"|prog x\": commands and files are not supported",
            "aliases:2: /dev/null: commands and files are not supported",
            "aliases:3: :include:/gone: No such file or directory",
            "aliases:4: bad address \"e@\": the domain is missing",
        ];
        assert_eq!(complaints, want);
        assert_eq!(aliases.expand("a"), Some(vec!["b@x"]));
    }
}
