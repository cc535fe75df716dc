//! manual - the pages master(8), master.cf(5) and belfry(8), made from the tables the code uses
//!
//! The texts of options, commands, columns, parameters and log lines stand where the code has them;
//! here is only what joins them. A test compares the result with what is shipped.

use std::collections::HashSet;

use worker_proto::abi::Transport;
use worker_proto::params::{CommonParams, ParamInfo};

use crate::belfry;
use crate::cli;
use crate::control;
use crate::limits;
use crate::notice::{Notice, Severity};
use crate::params::MasterParams;
use crate::table::COLUMNS;

mod roff;

pub use roff::Page;

/// master(8).
#[must_use]
pub fn master() -> String {
    let mut page = Page::new("master", 8, "start workers when clients knock");
    page.heading("SYNOPSIS");
    page.say("`master` [-c directory] [-D | -d | -i] [-e seconds] [-s] [-t | -w] [-v]");
    page.heading("DESCRIPTION")
        .say(
            "The master reads master.cf(5), opens the sockets named there, and starts a worker when \
             a client connects and no worker is idle, up to the service's process limit. It never \
             accepts a connection itself and reads nothing a client has sent. Workers tell it when \
             they are busy and when they are idle; they end by themselves after max_use clients or \
             after max_idle without one.",
        )
        .say(
            "belfry(8) is the command to start and stop it with. Workers made for Postfix run under \
             it, and its workers run under Postfix's.",
        );
    page.heading("OPTIONS");
    for (option, doc) in cli::OPTIONS {
        page.item(option, doc);
    }
    page.heading("SIGNALS")
        .item("SIGHUP", "Read main.cf and master.cf again, as `belfry reload` does.")
        .item("SIGTERM, SIGINT, SIGQUIT", "End, and all workers with it.");
    page.heading("RELOAD").say(
        "Both files are read and checked before anything changes. With an error the running table \
         stays in force and every error is logged. A socket that cannot be opened, such as a port that \
         is in use, is the trouble of its service alone: `belfry status` shows it as bind-failed, and it \
         is tried again. Workers of the old table finish the client they have and end; no connection that was \
         accepted is lost, and clients of a service that stays see no closed socket.",
    );
    page.heading("FAILING WORKERS").say(
        "A worker that ends badly before it has served a client makes its service pause: for \
         service_throttle_start at first, twice as long with each further failure, and never longer \
         than service_throttle_time. A client that was served ends the count. A reload of a changed \
         line and `belfry reset` end the pause.",
    );
    page.heading("STRESS").say(
        "When a public service starts the last worker it may have, its workers are renewed and get \
         `stress=yes`, for 1000 seconds after it last happened. Parameters with the form \
         `${stress?{10}:{300}}s` then have their first value: short timeouts, so that more clients \
         are served.",
    );
    parameters(&mut page, MasterParams::TABLE);
    page.say("Parameters of every program, and of the workers, are told in main.cf(5).");
    page.heading("LIMITS OF A SERVICE").say(
        "Each is set in main.cf by a name that begins with the first column of the service's line, \
         with `_` for every character that is neither a letter nor a digit: \
         `127_0_0_1_2525_rlimit_nofile = 256`. Resource limits are `number` or `soft:hard`, with k, \
         m, g for units, or `unlimited`.",
    );
    for (_, name, doc) in limits::SETTINGS {
        page.item(&format!("NAME_{name}"), doc);
    }
    page.heading("DIAGNOSTICS").say(
        "Lines in the log, each behind the name of the program and its process id. Paths, names and \
         numbers are examples.",
    );
    for (notice, doc) in Notice::all() {
        page.item(&format!("{}{notice}", word(notice.severity())), &doc.join(" "));
    }
    page.heading("EXIT STATUS").say(
        "0 with option -e or in a container; 1 if it cannot start, with the reasons in the log and, \
         until it serves, on standard error. Otherwise it ends by the signal it was ended with.",
    );
    page.heading("FILES")
        .item("pid/master.pid", "Process id; the lock on it says that a master runs.")
        .item("$data_directory/master.lock", "The second lock, for instances that share it.")
        .item(control::PATH, "The socket of belfry(8), for root alone.")
        .item("private/, public/", "The sockets of services, below the queue directory.");
    page.see_also(&[("belfry", 8), ("master.cf", 5), ("main.cf", 5)]);
    page.finish()
}

/// master.cf(5).
#[must_use]
pub fn master_cf() -> String {
    let mut page = Page::new("master.cf", 5, "the services that the master runs");
    page.heading("DESCRIPTION").say(
        "A line defines a service. It has eight columns apart by blanks, and the arguments of its \
         command. A line that begins with a blank continues the line above it. Empty lines, and lines \
         whose first character that is not a blank is #, are left out; a # further on is an \
         argument like any other. `-` stands for a column's default.",
    );
    page.say(
        "A file with errors is not used. `belfry check` prints every error with its place; a reload \
         does so too and leaves what runs as it is.",
    );
    page.heading("COLUMNS");
    for column in &COLUMNS {
        let doc = match column.default {
            "" => column.doc.to_owned(),
            default => format!("{} Default: `{default}`.", column.doc),
        };
        page.item(column.name, &doc);
    }
    page.heading("TYPES");
    for transport in Transport::ALL {
        page.item(transport.name(), transport_doc(transport));
    }
    page.heading("EXAMPLE");
    page.example(include_str!("../../etc/master.cf"));
    page.see_also(&[("master", 8), ("belfry", 8), ("main.cf", 5)]);
    page.finish()
}

/// belfry(8).
#[must_use]
pub fn belfry() -> String {
    let mut page = Page::new("belfry", 8, "start, stop, reload and look at the mail system");
    page.heading("SYNOPSIS").say("`belfry` [-c directory] [-v] command [arguments]");
    page.heading("OPTIONS")
        .item(
            "-c directory",
            "The instance whose main.cf is there; otherwise the environment variable MAIL_CONFIG \
             tells, or it is /etc/belfry.",
        )
        .item("-v", "With `start`: the master logs more.");
    page.heading("COMMANDS");
    for (command, doc) in belfry::COMMANDS {
        page.item(command, doc);
    }
    page.heading("STATES").say("What `status` shows of a service:");
    for (state, doc) in STATES {
        page.item(state, doc);
    }
    page.heading("EXIT STATUS").say(
        "0 if it was done. 1 if not, with the reason on standard error; `status` exits with 1 when \
         nothing runs.",
    );
    page.see_also(&[("master", 8), ("master.cf", 5), ("main.cf", 5)]);
    page.finish()
}

/// main.cf(5), with the parameters of other programs: a title and a table each.
#[must_use]
pub fn main_cf(more: &[(&str, &[ParamInfo])]) -> String {
    let mut page = Page::new("main.cf", 5, "parameters of Belfry");
    page.heading("DESCRIPTION").say(
        "A line is `name = value`. One that begins with a blank continues the line above it. Empty \
         lines, and lines whose first character that is not a blank is #, are left out. Of several \
         lines with one name the last counts. What is not set has its default.",
    );
    page.say("In a value other parameters can be used, wherever they are set:");
    page.item("$name, ${name}", "The value of that parameter; nothing if there is none.")
        .item("${name?text}, ${name?{text}}", "The text, if that parameter is not empty.")
        .item("${name:text}, ${name:{text}}", "The text, if that parameter is empty.")
        .item("${name?{text}:{other}}", "One or the other.")
        .item("$$", "A dollar sign.");
    page.say(
        "A time is a number with a unit: `s` seconds, `m` minutes, `h` hours, `d` days, `w` weeks. \
         Lists are apart by blanks or commas.",
    );
    let common = [("every program", CommonParams::TABLE), ("the master", MasterParams::TABLE)];
    let mut told = HashSet::new();
    for (title, table) in common.iter().chain(more) {
        page.heading(&format!("PARAMETERS OF {}", title.to_uppercase()));
        // Programs that share a parameter have it in their own tables each.
        let rows: Vec<_> = table.iter().filter(|info| told.insert(info.name)).copied().collect();
        list(&mut page, &rows);
    }
    page.see_also(&[("master", 8), ("master.cf", 5), ("belfry", 8)]);
    page.finish()
}

const STATES: &[(&str, &str)] = &[
    ("up", "All is well."),
    ("stress", "Its workers are told of stress; see master(8)."),
    ("at-limit", "All workers it may have are busy."),
    ("throttled", "Its workers fail; the note says when the next one is tried."),
    ("bind-failed", "A socket could not be opened; the note says why and when it is tried again."),
    ("stopping", "It was removed and its last workers are ending."),
];

const fn transport_doc(transport: Transport) -> &'static str {
    match transport {
        Transport::Inet => "A TCP socket.",
        Transport::Unix => "A stream socket in the file system.",
        Transport::UnixDgram => {
            "A datagram socket in the file system. It cannot be woken by a timer."
        }
        Transport::Fifo => "A named pipe.",
        Transport::Pass => {
            "A stream socket in the file system over which another worker passes connections that \
             are open already."
        }
    }
}

const fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Debug | Severity::Info => "",
        Severity::Warning => "warning: ",
        Severity::Error => "error: ",
        Severity::Fatal => "fatal: ",
    }
}

fn parameters(page: &mut Page, table: &[ParamInfo]) {
    page.heading("PARAMETERS");
    list(page, table);
}

fn list(page: &mut Page, table: &[ParamInfo]) {
    for info in table {
        let default = if info.default.is_empty() { "empty" } else { info.default };
        let bounds =
            info.bounds.map_or(String::new(), |(low, high)| format!(", from {low} to {high}"));
        let term = format!("{} ({}{bounds}; default: {default})", info.name, info.kind);
        page.item(&term, &info.doc.join(" "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::State;

    #[test]
    fn every_state_of_a_service_is_explained() {
        let states = [
            State::Up,
            State::Stress,
            State::AtLimit,
            State::Throttled(1),
            State::BindFailed(String::new(), 1),
            State::Stopping,
        ];
        let words: Vec<_> = states.iter().map(State::word).collect();
        let told: Vec<_> = STATES.iter().map(|(word, _)| *word).collect();
        assert_eq!(told, words);
    }

    #[test]
    fn a_page_has_every_row_of_its_tables() {
        let page = master();
        for info in MasterParams::TABLE {
            assert!(page.contains(&format!("\\fB{} (", info.name)), "{}", info.name);
        }
        for (_, name, _) in limits::SETTINGS {
            assert!(page.contains(&format!("NAME_{name}")), "{name}");
        }
        assert_eq!(page.matches("\n.SH \"DIAGNOSTICS\"").count(), 1);
    }
}
