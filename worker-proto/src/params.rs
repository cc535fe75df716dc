//! params - one declarative table of parameters
//!
//! [`params!`](crate::params!) takes name, kind, default, bounds and the manual's text of each
//! parameter and yields the typed struct, its reader and the listing the manual is made from.

use std::path::PathBuf;
use std::time::Duration;

use crate::diagnostic::Diagnostic;
use crate::main_cf::MainCf;
pub use crate::main_cf::ParamInfo;
use crate::time_value::{self, Unit};

/// A kind of value: how its text is read.
pub trait Kind {
    /// The type in the struct.
    type Value;
    /// Name in the manual.
    const NAME: &'static str;

    /// Reads a text.
    ///
    /// # Errors
    /// What a right value looks like.
    fn parse(text: &str) -> Result<Self::Value, String>;

    /// Whether a value lies within bounds; kinds without an order have none.
    fn within(_value: &Self::Value, _low: &Self::Value, _high: &Self::Value) -> bool {
        true
    }
}

/// Any text.
#[derive(Debug)]
pub struct Text;
/// Words, apart by blanks or commas.
#[derive(Debug)]
pub struct Words;
/// `yes` or `no`.
#[derive(Debug)]
pub struct Flag;
/// A number without a sign.
#[derive(Debug)]
pub struct Count;
/// A path.
#[derive(Debug)]
pub struct Dir;
/// Permissions of a file: `0600`, `0640` or `0644`.
#[derive(Debug)]
pub struct Permissions;
/// A time; a bare number is seconds.
#[derive(Debug)]
pub struct Time;
/// A time; a bare number is minutes.
#[derive(Debug)]
pub struct Minutes;
/// A time; a bare number is hours.
#[derive(Debug)]
pub struct Hours;
/// A time; a bare number is days.
#[derive(Debug)]
pub struct Days;

impl Kind for Text {
    type Value = String;
    const NAME: &'static str = "text";

    fn parse(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }
}

impl Kind for Words {
    type Value = Vec<String>;
    const NAME: &'static str = "list";

    fn parse(text: &str) -> Result<Vec<String>, String> {
        let words = text.split(|c: char| c == ',' || c.is_whitespace());
        Ok(words.filter(|w| !w.is_empty()).map(str::to_owned).collect())
    }
}

impl Kind for Flag {
    type Value = bool;
    const NAME: &'static str = "yes/no";

    fn parse(text: &str) -> Result<bool, String> {
        match text {
            "yes" => Ok(true),
            "no" => Ok(false),
            _ => Err("\"yes\" or \"no\"".to_owned()),
        }
    }
}

impl Kind for Count {
    type Value = u64;
    const NAME: &'static str = "number";

    fn parse(text: &str) -> Result<u64, String> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits
            .then(|| text.parse().ok())
            .flatten()
            .ok_or_else(|| "a whole number without a sign".to_owned())
    }

    fn within(value: &u64, low: &u64, high: &u64) -> bool {
        (low..=high).contains(&value)
    }
}

impl Kind for Dir {
    type Value = PathBuf;
    const NAME: &'static str = "path";

    fn parse(text: &str) -> Result<PathBuf, String> {
        if text.contains('\0') {
            return Err("a path without a null byte".to_owned());
        }
        Ok(PathBuf::from(text))
    }
}

impl Kind for Permissions {
    type Value = u32;
    const NAME: &'static str = "permissions";

    fn parse(text: &str) -> Result<u32, String> {
        match text.strip_prefix('0').unwrap_or(text) {
            "600" => Ok(0o600),
            "640" => Ok(0o640),
            "644" => Ok(0o644),
            _ => Err("0600, 0640 or 0644".to_owned()),
        }
    }
}

macro_rules! time_kind {
    ($kind:ident, $unit:ident) => {
        impl Kind for $kind {
            type Value = Duration;
            const NAME: &'static str = "time";

            fn parse(text: &str) -> Result<Duration, String> {
                time_value::parse(text, Unit::$unit)
            }

            fn within(value: &Duration, low: &Duration, high: &Duration) -> bool {
                (low..=high).contains(&value)
            }
        }
    };
}
time_kind!(Time, Seconds);
time_kind!(Minutes, Minutes);
time_kind!(Hours, Hours);
time_kind!(Days, Days);

/// Reads the rows of one table and gathers what is wrong with them; used by [`params!`](crate::params!).
#[derive(Debug)]
pub struct Reader<'a> {
    main_cf: &'a MainCf,
    /// Every complaint so far.
    pub errors: Vec<Diagnostic>,
}

impl<'a> Reader<'a> {
    /// A reader without complaints.
    #[must_use]
    pub const fn new(main_cf: &'a MainCf) -> Self {
        Self { main_cf, errors: Vec::new() }
    }

    /// The value of a row; None after a complaint about it.
    pub fn take<K: Kind>(&mut self, info: &ParamInfo) -> Option<K::Value> {
        match read_one::<K>(self.main_cf, info) {
            Ok(value) => Some(value),
            Err(error) => {
                self.errors.push(*error);
                None
            }
        }
    }
}

fn read_one<K: Kind>(main_cf: &MainCf, info: &ParamInfo) -> Result<K::Value, Box<Diagnostic>> {
    let name = info.name;
    let value = main_cf
        .value(name)
        .map_err(Box::new)?
        .expect("the table was defined, so every row has at least its default");
    let bad = |help: String| {
        let message = format!("parameter {name}: bad value: \"{}\"", value.text);
        Box::new(value.error(message).help(help))
    };
    let parsed = K::parse(&value.text).map_err(&bad)?;
    let Some((low, high)) = info.bounds else {
        return Ok(parsed);
    };
    match (K::parse(low), K::parse(high)) {
        (Ok(least), Ok(most)) if !K::within(&parsed, &least, &most) => {
            Err(bad(format!("a {} from {low} to {high}", K::NAME)))
        }
        _ => Ok(parsed),
    }
}

/// Declares a struct of parameters.
///
/// Each row is the manual's text, then `name: Kind = "default";` or, with bounds,
/// `name: Kind = "default", "least"..="most";`. Kinds are the unit structs of [`mod@crate::params`].
/// The struct gets `TABLE` and `read`.
#[macro_export]
macro_rules! params {
    (
        $(#[doc = $struct_doc:literal])+
        $vis:vis struct $name:ident {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $kind:ident = $default:literal $(, $low:literal ..= $high:literal)?;
            )+
        }
    ) => {
        $(#[doc = $struct_doc])+
        #[derive(Debug, Clone)]
        $vis struct $name {
            $(
                $(#[doc = $doc])+
                pub $field: <$crate::params::$kind as $crate::params::Kind>::Value,
            )+
        }

        impl $name {
            /// The rows, in the order of the source.
            $vis const TABLE: &'static [$crate::params::ParamInfo] = &[
                $($crate::params::ParamInfo {
                    name: stringify!($field),
                    kind: <$crate::params::$kind as $crate::params::Kind>::NAME,
                    default: $default,
                    bounds: $crate::params!(@bounds $($low, $high)?),
                    doc: &[$($doc),+],
                }),+
            ];

            /// Makes the table's defaults known and reads every row.
            ///
            /// # Errors
            /// Every value that is not of its kind or out of bounds.
            $vis fn read(
                main_cf: &mut $crate::main_cf::MainCf,
            ) -> Result<Self, Vec<$crate::diagnostic::Diagnostic>> {
                main_cf.define(Self::TABLE);
                let mut reader = $crate::params::Reader::new(main_cf);
                let mut rows = Self::TABLE.iter();
                $(
                    let $field = rows
                        .next()
                        .and_then(|info| reader.take::<$crate::params::$kind>(info));
                )+
                match ($($field,)+) {
                    ($(Some($field),)+) => Ok(Self { $($field),+ }),
                    _ => Err(reader.errors),
                }
            }
        }
    };
    (@bounds) => { None };
    (@bounds $low:literal, $high:literal) => { Some(($low, $high)) };
}

params! {
    /// Parameters of every program.
    pub struct CommonParams {
        /// Directory of main.cf, master.cf and alerts.cf. Set by the option `-c` or the environment
        /// variable MAIL_CONFIG; setting it in main.cf has no effect.
        config_directory: Dir = "/etc/belfry";
        /// Working directory of the master and its workers: the sockets, the queue, the drop
        /// directory. It is also the root directory of chrooted workers.
        queue_directory: Dir = "/var/spool/belfry";
        /// Files that belong to mail_owner and that only daemons use: the second lock.
        data_directory: Dir = "/var/lib/belfry";
        /// Where the daemons named in master.cf are.
        daemon_directory: Dir = "/usr/libexec/belfry";
        /// Where belfry, sendmail and alertq are.
        command_directory: Dir = "/usr/sbin";
        /// The unprivileged account that workers run as and that owns the queue.
        mail_owner: Text = "belfry";
        /// The name of this host, with its domain. By default what gethostname(2) tells, with
        /// ".localdomain" behind it when that has no domain.
        myhostname: Text = "localhost.localdomain";
        /// The domain of this host. By default myhostname without its first part.
        mydomain: Text = "localdomain";
        /// The domain of sender addresses that have none.
        myorigin: Text = "$myhostname";
        /// The name of the mail system in greetings and Received headers.
        mail_name: Text = "Belfry";
        /// What comes before the slash in each log line.
        syslog_name: Text = "belfry";
        /// The syslog facility.
        syslog_facility: Text = "mail";
        /// Log to this file, or to /dev/stdout; empty: to syslog. Every worker opens it for itself
        /// before it drops its privileges. Rotate it with a reload.
        maillog_file: Text = "";
        /// The permissions of maillog_file when it is made: 0600, 0640 or 0644.
        maillog_file_permissions: Permissions = "0600";
        /// How many clients a worker serves before it ends; 0 for no limit.
        max_use: Count = "100", "0"..="1000000000";
        /// How long a worker waits for a client before it ends; 0 for no limit.
        max_idle: Time = "100s", "0s"..="365d";
        /// A worker that makes no progress for longer than this is taken for stuck and ends itself.
        daemon_timeout: Time = "18000s", "1s"..="365d";
        /// How many workers a service may have when its line in master.cf does not say.
        default_process_limit: Count = "100", "1"..="100000";
        /// At a stop, how long workers have from SIGTERM to SIGKILL. Deliveries under way are finished
        /// in this time, or are made again after the next start.
        stop_kill_time: Time = "5s", "1s"..="1h";
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    crate::params! {
        /// For the tests.
        struct Sample {
            /// A limit.
            limit: Count = "10", "1"..="20";
            /// A pause.
            pause: Time = "${stress?{1}:{60}}s", "1s"..="1h";
            /// Networks.
            networks: Words = "127.0.0.0/8, [::1]/128";
            /// A switch.
            strict: Flag = "yes";
        }
    }

    #[test]
    fn defaults_are_read_like_values() {
        let (mut m, _) = MainCf::parse("main.cf", "");
        let s = Sample::read(&mut m).unwrap();
        assert_eq!((s.limit, s.pause.as_secs(), s.strict), (10, 60, true));
        assert_eq!(s.networks, ["127.0.0.0/8", "[::1]/128"]);
        assert_eq!(Sample::TABLE[0].to_string(), "limit = 10");
        m.set("stress", "yes");
        assert_eq!(Sample::read(&mut m).unwrap().pause.as_secs(), 1);
    }

    #[test]
    fn every_bad_value_is_reported_at_its_place() {
        let (mut m, _) = MainCf::parse("main.cf", "limit = 21\npause = soon\nstrict = Yes\n");
        let errors = Sample::read(&mut m).unwrap_err();
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "main.cf:1:9: parameter limit: bad value: \"21\"",
                "main.cf:2:9: parameter pause: bad value: \"soon\"",
                "main.cf:3:10: parameter strict: bad value: \"Yes\"",
            ]
        );
        assert_eq!(errors[0].help.as_deref(), Some("a number from 1 to 20"));
    }

    #[test]
    fn a_bad_override_shows_the_option() {
        let (mut m, _) = MainCf::parse("main.cf", "");
        m.set("limit", "x");
        let errors = Sample::read(&mut m).unwrap_err();
        assert_eq!(errors[0].to_string(), "command line:1:10: parameter limit: bad value: \"x\"");
    }

    #[test]
    fn the_common_table_is_sound() {
        let (mut m, _) = MainCf::parse("main.cf", "");
        let common = CommonParams::read(&mut m).unwrap();
        assert_eq!(common.myorigin, common.myhostname);
        let names: HashSet<_> = CommonParams::TABLE.iter().map(|i| i.name).collect();
        assert_eq!(names.len(), CommonParams::TABLE.len());
        assert!(CommonParams::TABLE.iter().all(|i| !i.doc.concat().trim().is_empty()));
    }
}
