//! cli - the options of master(8)

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use worker_proto::getopt;

/// Exactly these (A01).
pub const LETTERS: &str = "c:Dde:istvw";

/// The options with the manual's text; `-t` and `-w` exclude what they say.
pub const OPTIONS: &[(&str, &str)] = &[
    ("-c directory", "Read main.cf and master.cf there. Workers find it in MAIL_CONFIG."),
    ("-D", "After initialization run debugger_command on the master itself."),
    (
        "-d",
        "Do not become a session leader and leave standard input, output and error as they are; \
            workers get -d as well.",
    ),
    ("-e seconds", "End after that time. Workers see it and end when idle."),
    ("-i", "Be process 1 of a container: standard output stays open, orphans are reaped."),
    ("-s", "Leave standard output open, for maillog_file = /dev/stdout."),
    (
        "-t",
        "Say whether a master runs: exit status 0 if none does, 1 if one does. Changes nothing.",
    ),
    ("-v", "Log more; workers get -v as well."),
    ("-w", "Wait until the master serves or has failed; reasons are printed on standard error."),
];

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is one letter of the command line")]
pub struct Options {
    /// `-c`
    pub config: Option<PathBuf>,
    /// `-D`
    pub debugger: bool,
    /// `-d`
    pub debug: bool,
    /// `-e`
    pub exit_after: Option<Duration>,
    /// `-i`
    pub init: bool,
    /// `-s`
    pub stdout: bool,
    /// `-t`
    pub test: bool,
    /// `-v`
    pub verbose: bool,
    /// `-w`
    pub wait: bool,
}

impl Options {
    /// Reads the command line without the program's name.
    ///
    /// # Errors
    /// An option or operand that there is not, or options that exclude each other.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let parsed = getopt::parse(LETTERS, words)?;
        if let Some(operand) = parsed.operands.first() {
            return Err(format!("unexpected operand: {}", operand.to_string_lossy()));
        }
        let mut options = Self::default();
        for (letter, value) in parsed.options {
            match letter {
                'c' => options.config = value.map(PathBuf::from),
                'D' => options.debugger = true,
                'd' => options.debug = true,
                'e' => {
                    let text = getopt::text(value);
                    let seconds =
                        text.parse().map_err(|_| format!("-e: not a number of seconds: {text}"))?;
                    options.exit_after = Some(Duration::from_secs(seconds));
                }
                'i' => options.init = true,
                's' => options.stdout = true,
                't' => options.test = true,
                'v' => options.verbose = true,
                _ => options.wait = true,
            }
        }
        if options.test && options.wait {
            return Err("-t and -w exclude each other".to_owned());
        }
        if options.init && (options.debugger || options.debug || options.wait) {
            return Err("-i excludes -D, -d and -w".to_owned());
        }
        Ok(options)
    }

    /// Whether the master is to lead a session of its own (A13).
    #[must_use]
    pub const fn leads_session(&self) -> bool {
        !(self.init || self.debug || self.debugger)
    }

    /// The usage line.
    #[must_use]
    pub fn usage(problem: &str) -> String {
        format!(
            "{problem}; usage: master [-c config_dir] [-D | -d | -i] [-e exit_time] [-s] [-t | -w] [-v]"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a01_a09_options() {
        let o = parse("-vvsc /x -e 5").unwrap();
        assert!(o.verbose && o.stdout && !o.test);
        assert_eq!(o.config, Some(PathBuf::from("/x")));
        assert_eq!(o.exit_after, Some(Duration::from_secs(5)));
        for bad in ["-x", "operand", "-c", "-e x", "-t -w", "-i -d", "-i -w", "-iD"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_letter_is_in_the_manual() {
        for letter in LETTERS.chars().filter(|&c| c != ':') {
            let option = format!("-{letter}");
            assert!(
                OPTIONS.iter().any(|(name, _)| name.split(' ').next() == Some(&option)),
                "{option}"
            );
        }
    }
}
