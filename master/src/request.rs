//! request - what an operator asks of the running master
//!
//! Pure: a line of words, nearly those of belfry(8), and what it means.

use std::fmt;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Read the configuration again and say what would change.
    Diff,
    /// The numbers of every service, for a scraper.
    Metrics,
    /// Nothing but metrics on this connection from now on, one report for each further line.
    MetricsFeed,
    /// The process id.
    Pid,
    /// Read the configuration again.
    Reload {
        /// Renew the workers of changed services alone.
        changed: bool,
        /// Also when no service is left.
        allow_empty: bool,
    },
    /// Forget the failures of a service.
    Reset(String),
    /// The state of one service, or of every one.
    Status {
        /// Which.
        name: Option<String>,
        /// For a program.
        json: bool,
    },
    /// Go on with this program; with none, with the one that is installed.
    Upgrade(String),
}

/// The line at the start of what has come so far, once it is whole.
#[must_use]
pub fn line(input: &[u8]) -> Option<String> {
    let end = input.iter().position(|&b| b == b'\n')?;
    Some(String::from_utf8_lossy(&input[..end]).trim().to_owned())
}

impl Request {
    /// Reads a line; None when it asks for nothing that is known.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let status = |name: Option<&str>, json| {
            let name = name.map(str::to_owned);
            Some(Self::Status { name, json })
        };
        match words.as_slice() {
            ["diff"] => Some(Self::Diff),
            ["metrics"] => Some(Self::Metrics),
            ["metrics-feed"] => Some(Self::MetricsFeed),
            ["pid"] => Some(Self::Pid),
            ["reload", options @ ..] => {
                let known = |word: &&str| ["--changed", "--allow-empty"].contains(word);
                let has = |word| options.contains(&word);
                let (changed, allow_empty) = (has("--changed"), has("--allow-empty"));
                options.iter().all(known).then_some(Self::Reload { changed, allow_empty })
            }
            ["reset", name] => Some(Self::Reset((*name).to_owned())),
            ["status"] => status(None, false),
            ["status", "--json"] => status(None, true),
            ["status", "--json", name] | ["status", name, "--json"] => status(Some(name), true),
            ["status", name] => status(Some(name), false),
            // The path of a program may have blanks.
            ["upgrade", ..] => {
                let rest = line.trim_start().strip_prefix("upgrade")?;
                Some(Self::Upgrade(rest.trim().to_owned()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Request {
    /// A line that is read as this.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Diff => f.write_str("diff"),
            Self::Metrics => f.write_str("metrics"),
            Self::MetricsFeed => f.write_str("metrics-feed"),
            Self::Pid => f.write_str("pid"),
            Self::Reload { changed, allow_empty } => {
                f.write_str("reload")?;
                f.write_str(if *changed { " --changed" } else { "" })?;
                f.write_str(if *allow_empty { " --allow-empty" } else { "" })
            }
            Self::Reset(name) => write!(f, "reset {name}"),
            Self::Status { name, json } => {
                f.write_str(if *json { "status --json" } else { "status" })?;
                name.iter().try_for_each(|name| write!(f, " {name}"))
            }
            Self::Upgrade(program) if program.is_empty() => f.write_str("upgrade"),
            Self::Upgrade(program) => write!(f, "upgrade {program}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line() {
        assert_eq!(line(b"status"), None);
        assert_eq!(line(b" status \r\nmore"), Some("status".to_owned()));
        assert_eq!(line(b"\n"), Some(String::new()));
    }

    #[test]
    fn words_have_one_meaning() {
        let all = |json| Some(Request::Status { name: None, json });
        let one = |json| Some(Request::Status { name: Some("smtp".to_owned()), json });
        let upgrade = |program: &str| Some(Request::Upgrade(program.to_owned()));
        for (line, want) in [
            ("status", all(false)),
            ("status --json", all(true)),
            ("status smtp", one(false)),
            ("status smtp --json", one(true)),
            ("status --json smtp", one(true)),
            ("reload --changed", Some(Request::Reload { changed: true, allow_empty: false })),
            ("reload --allow-empty", Some(Request::Reload { changed: false, allow_empty: true })),
            ("upgrade", upgrade("")),
            (" upgrade  /a b/master ", upgrade("/a b/master")),
            ("upgrades", None),
            ("reload now", None),
            ("reset", None),
            ("", None),
        ] {
            assert_eq!(Request::parse(line), want, "{line:?}");
        }
    }
}
