//! table - master.cf text to service definitions and complaints
//!
//! Reads every line, whatever is wrong with those before, so that one run reports all errors of a
//! file. Pure: names of hosts and ports are asked of a [`Resolver`]. See master(5) for the syntax.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use worker_proto::abi::Transport;
use worker_proto::diagnostic::{Complaints, Diagnostic};
use worker_proto::logical::{self, Logical};
use worker_proto::sys::MAX_LISTEN;

use crate::service::{Endpoint, Key, ServiceDef, Wakeup};

mod disable;
mod inet;
mod words;

pub use disable::Disabled;
pub use inet::Resolver;

/// What the lines are read against.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Name of the file, for complaints.
    pub file: &'a str,
    /// `default_process_limit`; 0 is no limit.
    pub default_process_limit: u32,
    /// What `-` means in the chroot column.
    pub chroot_default: bool,
    /// `master_service_disable`
    pub disabled: &'a Disabled,
    /// Where a service without a host listens.
    pub interfaces: &'a [std::net::IpAddr],
    /// Names of hosts and ports.
    pub resolver: &'a dyn Resolver,
    /// Read numbers as Postfix does, without a word.
    pub compat: bool,
}

/// Reads a table. The definitions are of use only if no complaint is an error.
#[must_use]
pub fn parse(text: &str, context: &Context<'_>) -> (Vec<ServiceDef>, Vec<Diagnostic>) {
    let (defs, complaints) = parse_shared(text, context, &Rc::new);
    (defs.into_iter().map(Rc::unwrap_or_clone).collect(), complaints)
}

/// The same, with each definition as `share` gives it: one that is in memory already need not be
/// there twice.
#[must_use]
pub fn parse_shared(
    text: &str,
    context: &Context<'_>,
    share: &dyn Fn(ServiceDef) -> Rc<ServiceDef>,
) -> (Vec<Rc<ServiceDef>>, Vec<Diagnostic>) {
    let mut complaints = Complaints::default();
    let mut defs: Vec<Rc<ServiceDef>> = Vec::new();
    // Where each is among them, and its line.
    let mut seen: HashMap<Key, (usize, usize)> = HashMap::new();
    let mut commands = HashSet::new();
    for line in logical::lines(text) {
        let (complaints, commands) = (&mut complaints, &mut commands);
        let mut reader = Line { line: &line, context, complaints, commands };
        let Some(def) = reader.service() else {
            continue;
        };
        match seen.get(&def.key) {
            Some(&(at, earlier)) => {
                let message = format!(
                    "duplicate master.cf entry for service \"{}\" ({}) -- using the last entry",
                    def.ext_name, def.key.name
                );
                let help = format!("remove this line or line {earlier}");
                reader.complain(0..def.ext_name.len(), message, help, true);
                defs[at] = share(def);
            }
            None => {
                let line = def.line;
                let def = share(def);
                seen.insert(def.key.clone(), (defs.len(), line));
                defs.push(def);
            }
        }
    }
    (defs, complaints.into_vec())
}

/// A column of master.cf.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its name in messages.
    pub name: &'static str,
    /// What `-` stands for; empty where it stands for nothing.
    pub default: &'static str,
    /// The manual's text.
    pub doc: &'static str,
}

/// The columns, from the left.
pub const COLUMNS: [Column; 8] = [
    Column {
        name: "service name",
        default: "",
        doc: "For inet `port`, `host:port` or `[address]:port`, with names or numbers; without a host it \
              listens where inet_interfaces says. For the other types the name of the socket below \
              `private/` or `public/` in the queue directory.",
    },
    Column { name: "transport type", default: "", doc: "How clients reach it; see below." },
    Column {
        name: "private",
        default: "y",
        doc: "`y`: the socket is below `private/`, for the mail system alone. A service of type inet \
              cannot be private.",
    },
    Column {
        name: "unprivileged",
        default: "y",
        doc: "`y`: its workers give up root for mail_owner before they serve anybody (`-u`).",
    },
    Column {
        name: "chroot",
        default: "n",
        doc: "`y`: its workers see nothing but the queue directory (`-c`).",
    },
    Column {
        name: "wakeup",
        default: "0",
        doc: "It is woken at the start and then in this many seconds, again and again; 0 is never. \
              With `?` at the end only once it has been used.",
    },
    Column {
        name: "process limit",
        default: "default_process_limit",
        doc: "The most workers at a time; 0 is no limit.",
    },
    Column {
        name: "command",
        default: "",
        doc: "The program, below daemon_directory, and its arguments. `-o name=value` sets a parameter \
              for this service alone. An argument in braces may hold blanks: `-o { name = a b }`.",
    },
];
/// The longest path that fits a socket address (unix(7)), without its null byte.
const MAX_PATH: usize = 107;

struct Line<'a, 'b> {
    line: &'a Logical<'a>,
    context: &'a Context<'a>,
    complaints: &'b mut Complaints,
    /// Those of the lines before: most tables have few.
    commands: &'b mut HashSet<Rc<str>>,
}

/// A field was wrong and the complaint is made.
struct Bad;

impl Line<'_, '_> {
    fn service(&mut self) -> Option<ServiceDef> {
        let text = self.text().to_owned();
        if self.line.orphan {
            let start = text.chars().take(30).collect::<String>();
            let more = if start.len() < text.len() { "..." } else { "" };
            let message = format!("logical line must not start with whitespace: \"{start}{more}\"");
            let at = text.len() - text.trim_start().len()..text.trim_end().len();
            self.complain(
                at,
                message,
                "remove the blanks before the service name".to_owned(),
                true,
            );
            return None;
        }
        let (fields, rest) = words::fields(&text, COLUMNS.len());
        // A disabled line is not looked at, whatever is wrong with the rest of it (C04).
        if let [name, transport, ..] = fields.as_slice()
            && self.context.disabled.matches(&text[name.clone()], &text[transport.clone()])
        {
            return None;
        }
        if let Some(Column { name: missing, .. }) = COLUMNS.get(fields.len()) {
            self.complain(
                text.trim_end().len()..text.trim_end().len(),
                format!("missing \"{missing}\" field"),
                format!(
                    "a line has {} fields, then arguments; write - for a default",
                    COLUMNS.len()
                ),
                false,
            );
            return None;
        }
        let at = |column: usize| fields[column].clone();
        let transport = self.transport(&text, at(1)).ok();
        // Each field is read whatever became of the others, so that all are reported.
        let private = self.flag(&text, at(2), 2, true);
        let unprivileged = self.flag(&text, at(3), 3, true);
        let chroot = self.flag(&text, at(4), 4, self.context.chroot_default);
        let wakeup = self.wakeup(&text, at(5));
        let max_proc = self.max_proc(&text, at(6));
        let command = self.command(&text, at(7));
        let args = self.args(&text, rest);
        let (transport, private) = (transport?, private.ok()?);
        let (name, endpoints) = if transport == Transport::Inet {
            if private {
                let help = "write n in the third column: anybody can reach a TCP port".to_owned();
                self.complain(at(2), "inet service cannot be private".to_owned(), help, false);
            }
            self.inet(&text, at(0)).ok().filter(|_| !private)?
        } else {
            self.path(&text, at(0), private).ok()?
        };
        Some(ServiceDef {
            key: Key { transport, name },
            ext_name: text[at(0)].into(),
            private,
            unprivileged: unprivileged.ok()?,
            chroot: chroot.ok()?,
            wakeup: wakeup.ok()?,
            max_proc: max_proc.ok()?,
            command: command.ok()?,
            args: args.ok()?,
            endpoints,
            line: self.line.line(),
        })
    }

    /// The entry up to a null byte, as far as Postfix reads it (D05).
    fn text(&mut self) -> &str {
        let text = self.line.text.as_ref();
        let Some(end) = text.find('\0') else {
            return text;
        };
        let message = "text after null byte may be ignored".to_owned();
        self.complain(end..end + 1, message, "remove the null byte".to_owned(), true);
        &self.line.text[..end]
    }

    fn transport(&mut self, text: &str, at: Range<usize>) -> Result<Transport, Bad> {
        let word = &text[at.clone()];
        if word == "-" {
            return self.no_default(at, 1);
        }
        word.parse().map_err(|help| {
            self.complain(at, format!("bad transport type: {word}"), format!("{help}"), false);
            Bad
        })
    }

    fn flag(
        &mut self,
        text: &str,
        at: Range<usize>,
        column: usize,
        default: bool,
    ) -> Result<bool, Bad> {
        match &text[at.clone()] {
            "-" => Ok(default),
            "y" => Ok(true),
            "n" => Ok(false),
            word => {
                let message = bad_value(column, word);
                self.complain(at, message, "y, n, or - for the default".to_owned(), false);
                Err(Bad)
            }
        }
    }

    fn wakeup(&mut self, text: &str, at: Range<usize>) -> Result<Option<Wakeup>, Bad> {
        let word = &text[at.clone()];
        if word == "-" {
            return Ok(None);
        }
        let help = "a number of seconds, with \"?\" to wait for the first use";
        let digits = word.strip_suffix('?').unwrap_or(word);
        let seconds = self.number(at, 5, word, digits, help)?;
        Ok((seconds > 0).then(|| Wakeup {
            period: Duration::from_secs(seconds.into()),
            conditional: word.ends_with('?'),
        }))
    }

    fn max_proc(&mut self, text: &str, at: Range<usize>) -> Result<Option<u32>, Bad> {
        let word = &text[at.clone()];
        let limit = match word {
            "-" => self.context.default_process_limit,
            _ => self.number(at, 6, word, word, "a number of processes, 0 for no limit")?,
        };
        Ok((limit > 0).then_some(limit))
    }

    /// A number as Postfix reads it: as far as it is digits (E04, E06). What it would drop is worth a
    /// word (W21): `1h` is one second.
    fn number(
        &mut self,
        at: Range<usize>,
        column: usize,
        word: &str,
        digits: &str,
        help: &str,
    ) -> Result<u32, Bad> {
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let Some(number) = digits[..end].parse::<i32>().ok().and_then(|n| u32::try_from(n).ok())
        else {
            self.complain(at, bad_value(column, word), help.to_owned(), false);
            return Err(Bad);
        };
        if end < digits.len() && !self.context.compat {
            let message =
                format!("field \"{}\": \"{word}\" is read as {number}", COLUMNS[column].name);
            self.complain(at, message, help.to_owned(), true);
        }
        Ok(number)
    }

    fn command(&mut self, text: &str, at: Range<usize>) -> Result<Rc<str>, Bad> {
        match &text[at.clone()] {
            "-" => self.no_default(at, 7),
            word if word.starts_with('/') || climbs(word) => {
                let message = format!("field \"command\": \"{word}\" leaves the daemon directory");
                self.complain(at, message, "a program below daemon_directory".to_owned(), false);
                Err(Bad)
            }
            word => {
                if !self.commands.contains(word) {
                    self.commands.insert(word.into());
                }
                self.commands.get(word).cloned().ok_or(Bad)
            }
        }
    }

    fn args(&mut self, text: &str, rest: usize) -> Result<Vec<String>, Bad> {
        words::arguments(text, rest).map_err(|error| {
            let help = "close { with }, and write a blank behind }".to_owned();
            self.complain(error.at, error.message, help, false);
            Bad
        })
    }

    fn inet(&mut self, text: &str, at: Range<usize>) -> Result<(Rc<str>, Vec<Endpoint>), Bad> {
        let found = inet::read(&text[at.clone()], self.context.interfaces, self.context.resolver);
        let problem = match found {
            Ok((name, endpoints)) if endpoints.len() > MAX_LISTEN => {
                let count = endpoints.len();
                let message = format!(
                    "service {name} has {count} addresses to listen on, the most is {MAX_LISTEN}"
                );
                (message, "name fewer in inet_interfaces, or write lines with host:port for parts")
            }
            Ok((name, endpoints)) => return Ok((name.into(), endpoints)),
            Err(problem) => problem,
        };
        let (message, help) = problem;
        self.complain(at, message, help.to_owned(), false);
        Err(Bad)
    }

    fn path(
        &mut self,
        text: &str,
        at: Range<usize>,
        private: bool,
    ) -> Result<(Rc<str>, Vec<Endpoint>), Bad> {
        let word = &text[at.clone()];
        let name: Rc<str> = format!("{}/{word}", if private { "private" } else { "public" }).into();
        let problem = if climbs(word) {
            Some((format!("service name \"{word}\" leaves the queue directory"), "a plain name"))
        } else if name.len() > MAX_PATH {
            let message = format!("service name \"{word}\" is too long for a socket");
            Some((message, "at most 99 characters"))
        } else {
            None
        };
        match problem {
            Some((message, help)) => {
                self.complain(at, message, help.to_owned(), false);
                Err(Bad)
            }
            None => Ok((name.clone(), vec![Endpoint::Path(name)])),
        }
    }

    fn no_default<T>(&mut self, at: Range<usize>, column: usize) -> Result<T, Bad> {
        let name = COLUMNS[column].name;
        let help = format!("write the {name}");
        self.complain(at, format!("field \"{name}\" has no default value"), help, false);
        Err(Bad)
    }

    fn complain(&mut self, at: Range<usize>, message: String, help: String, warning: bool) {
        let error = self.line.error(self.context.file, at, message).help(help);
        self.complaints.push(if warning { error.warning() } else { error });
    }
}

fn bad_value(column: usize, word: &str) -> String {
    format!("field \"{}\": bad value: \"{word}\"", COLUMNS[column].name)
}

/// Whether a relative name leaves the directory it is meant for.
fn climbs(name: &str) -> bool {
    name.split('/').any(|part| part == "..")
}

#[cfg(test)]
mod tests;
