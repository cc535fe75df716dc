//! report - the state of every service, for a person, a program and a scraper
//!
//! Pure: rows in, text out. The table fits a terminal and says why a service does not work and until
//! when.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write;

use crate::avail::Exit;

/// A service at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Name in master.cf.
    pub name: String,
    /// Canonical name.
    pub key: String,
    /// Type in master.cf.
    pub transport: &'static str,
    /// What it is doing.
    pub state: State,
    /// Workers with a client.
    pub busy: usize,
    /// Workers without one.
    pub idle: usize,
    /// Workers that were told to end.
    pub retired: usize,
    /// The most workers; None is no limit.
    pub max: Option<u32>,
    /// Clients that wait in the kernel's queue and how many may, where it can be told.
    pub queue: Option<(u32, u32)>,
    /// Workers started.
    pub spawned: u64,
    /// Clients served.
    pub served: u64,
    /// Workers that failed.
    pub failed: u64,
    /// How the last worker ended.
    pub last_exit: Option<Exit>,
    /// Its workers.
    pub workers: Vec<WorkerRow>,
}

/// How many descriptors the master has open, by what they are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptors(pub Vec<(&'static str, usize)>);

/// What a service is doing; times are seconds from now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// All is well.
    Up,
    /// Workers are started with `stress=yes`.
    Stress,
    /// All workers are busy.
    AtLimit,
    /// It pauses after failures.
    Throttled(u64),
    /// Its sockets cannot be bound, why, and when that is tried again.
    BindFailed(String, u64),
    /// No client can connect, and why.
    Unreachable(String),
    /// All workers that it may have were told to end and have not.
    Retiring(usize),
    /// It was removed and waits for its workers to end.
    Stopping,
}

/// A worker at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerRow {
    /// Process id.
    pub pid: i32,
    /// `busy`, `idle` or `retired`.
    pub state: &'static str,
    /// Clients served.
    pub served: u64,
    /// Age in seconds.
    pub age: u64,
}

impl State {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Stress => "stress",
            Self::AtLimit => "at-limit",
            Self::Throttled(_) => "throttled",
            Self::BindFailed(..) => "bind-failed",
            Self::Unreachable(_) => "unreachable",
            Self::Retiring(_) => "retiring",
            Self::Stopping => "stopping",
        }
    }

    fn note(&self) -> String {
        match self {
            Self::Throttled(seconds) => format!("workers fail; next try in {seconds}s"),
            Self::BindFailed(reason, seconds) => format!("{reason}; next try in {seconds}s"),
            Self::AtLimit => "all workers busy".to_owned(),
            Self::Unreachable(reason) => format!("{reason}; reload or reset binds it again"),
            Self::Retiring(count) => {
                format!("waiting for {count} retired to end; reload or reset kills idle ones")
            }
            Self::Up | Self::Stress | Self::Stopping => String::new(),
        }
    }
}

fn exit_text(exit: Option<Exit>) -> String {
    match exit {
        None => "-".to_owned(),
        Some(Exit::Status(status)) => format!("status {status}"),
        Some(Exit::Signal(signal)) => format!("signal {signal}"),
    }
}

/// One line for a service manager: how many services, and which are in trouble.
#[must_use]
pub fn summary(rows: &[Row]) -> String {
    const NAMED: usize = 5;
    let troubled: Vec<_> = rows
        .iter()
        .filter(|row| {
            let state = &row.state;
            matches!(state, State::Throttled(_) | State::BindFailed(..) | State::Unreachable(_))
        })
        .map(|row| format!("{} {}", row.name, row.state.word()))
        .collect();
    let services = format!("{} services", rows.len());
    match troubled.len() {
        0 => services,
        n if n <= NAMED => format!("{services}; {}", troubled.join(", ")),
        n => format!("{services}; {}, {} more", troubled[..NAMED].join(", "), n - NAMED),
    }
}

/// The table for a person.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut cells = vec![
        [
            "SERVICE",
            "TYPE",
            "STATE",
            "BUSY",
            "IDLE",
            "MAX",
            "QUEUE",
            "SPAWNED",
            "SERVED",
            "LAST EXIT",
            "NOTE",
        ]
        .map(str::to_owned),
    ];
    cells.extend(rows.iter().map(|row| {
        [
            row.name.clone(),
            row.transport.to_owned(),
            row.state.word().to_owned(),
            row.busy.to_string(),
            row.idle.to_string(),
            row.max.map_or_else(|| "-".to_owned(), |m| m.to_string()),
            row.queue.map_or_else(|| "-".to_owned(), |(waiting, _)| waiting.to_string()),
            row.spawned.to_string(),
            row.served.to_string(),
            exit_text(row.last_exit),
            row.state.note(),
        ]
    }));
    columns(&cells)
}

/// The workers of one service, for a person.
#[must_use]
pub fn workers(row: &Row) -> String {
    let mut cells = vec![["PID", "STATE", "SERVED", "AGE"].map(str::to_owned)];
    cells.extend(row.workers.iter().map(|w| {
        [w.pid.to_string(), w.state.to_owned(), w.served.to_string(), format!("{}s", w.age)]
    }));
    columns(&cells)
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The master itself, as a JSON object in a line.
#[must_use]
pub fn master_json(pid: u32, descriptors: &Descriptors) -> String {
    let counts: Vec<_> = descriptors.0.iter().map(|(name, n)| format!("\"{name}\":{n}")).collect();
    format!("{{\"master\":{pid},\"descriptors\":{{{}}}}}\n", counts.join(","))
}

/// One JSON object a service, a line each.
#[must_use]
pub fn json(rows: &[Row]) -> String {
    rows.iter().map(|row| format!("{}\n", object(row))).collect()
}

fn object(row: &Row) -> String {
    let optional = |n: Option<u32>| n.map_or_else(|| "null".to_owned(), |n| n.to_string());
    let workers: Vec<String> = row
        .workers
        .iter()
        .map(|w| {
            let (pid, state, served, age) = (w.pid, w.state, w.served, w.age);
            format!("{{\"pid\":{pid},\"state\":\"{state}\",\"served\":{served},\"age\":{age}}}")
        })
        .collect();
    let retry = match row.state {
        State::Throttled(seconds) | State::BindFailed(_, seconds) => seconds.to_string(),
        State::Up
        | State::Stress
        | State::AtLimit
        | State::Unreachable(_)
        | State::Retiring(_)
        | State::Stopping => "null".to_owned(),
    };
    format!(
        "{{\"service\":{},\"key\":{},\"type\":\"{}\",\"state\":\"{}\",\"note\":{},\"retry_in\":{retry},\
         \"busy\":{},\"idle\":{},\"retired\":{},\"max\":{},\"queue\":{},\"backlog\":{},\
         \"spawned\":{},\"served\":{},\"failed\":{},\"last_exit\":{},\"workers\":[{}]}}",
        quoted(&row.name),
        quoted(&row.key),
        row.transport,
        row.state.word(),
        quoted(&row.state.note()),
        row.busy,
        row.idle,
        row.retired,
        optional(row.max),
        optional(row.queue.map(|q| q.0)),
        optional(row.queue.map(|q| q.1)),
        row.spawned,
        row.served,
        row.failed,
        row.last_exit.map_or_else(|| "null".to_owned(), |e| quoted(&exit_text(Some(e)))),
        workers.join(","),
    )
}

/// A JSON string (RFC 8259 section 7).
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A family of metrics: name, type, help, and what it is of a row.
type Metric = (&'static str, &'static str, &'static str, fn(&Row) -> Option<u64>);

const METRICS: &[Metric] = &[
    ("belfry_service_up", "gauge", "1 if the service has its sockets and is not paused.", |r| {
        Some(u64::from(matches!(r.state, State::Up | State::Stress | State::AtLimit)))
    }),
    ("belfry_service_throttled", "gauge", "1 while the service pauses after failures.", |r| {
        Some(u64::from(matches!(r.state, State::Throttled(_))))
    }),
    ("belfry_workers_busy", "gauge", "Workers with a client.", |r| Some(r.busy as u64)),
    ("belfry_workers_idle", "gauge", "Workers without a client.", |r| Some(r.idle as u64)),
    ("belfry_workers_max", "gauge", "The process limit; absent without one.", |r| {
        r.max.map(u64::from)
    }),
    ("belfry_queue_clients", "gauge", "Clients waiting in the kernel's queue.", |r| {
        r.queue.map(|q| q.0.into())
    }),
    ("belfry_workers_spawned", "counter", "Workers started.", |r| Some(r.spawned)),
    ("belfry_clients_served", "counter", "Clients served.", |r| Some(r.served)),
    ("belfry_workers_failed", "counter", "Workers that ended badly or without work.", |r| {
        Some(r.failed)
    }),
];

/// The OpenMetrics text. A series is named by the service's name, its canonical name and its type,
/// which no two services of a table share.
#[must_use]
pub fn metrics(rows: &[Row]) -> String {
    let rows = distinct(rows);
    let mut text = String::new();
    for (name, kind, help, value) in METRICS {
        let _ = writeln!(text, "# TYPE {name} {kind}\n# HELP {name} {help}");
        let suffix = if *kind == "counter" { "_total" } else { "" };
        for row in rows.values() {
            if let Some(value) = value(row) {
                let (service, key) = (label(&row.name), label(&row.key));
                let labels = format!("service={service},key={key},type=\"{}\"", row.transport);
                let _ = writeln!(text, "{name}{suffix}{{{labels}}} {value}");
            }
        }
    }
    text.push_str("# EOF\n");
    text
}

/// One row for what has the same labels: a removed service whose workers have not ended is counted
/// with the one that came back under its name.
fn distinct(rows: &[Row]) -> BTreeMap<(&str, &str, &str), Row> {
    let mut rows_by_labels = BTreeMap::new();
    for row in rows {
        let labels = (row.key.as_str(), row.transport, row.name.as_str());
        match rows_by_labels.entry(labels) {
            Entry::Vacant(place) => drop(place.insert(Row { workers: Vec::new(), ..row.clone() })),
            Entry::Occupied(mut place) => {
                let known: &mut Row = place.get_mut();
                let (busy, idle) = (known.busy + row.busy, known.idle + row.idle);
                if known.state == State::Stopping {
                    *known = Row { workers: Vec::new(), ..row.clone() };
                }
                (known.busy, known.idle) = (busy, idle);
            }
        }
    }
    rows_by_labels
}

/// A label's value (OpenMetrics, "escaped-string").
fn label(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            name: "25".to_owned(),
            key: "25".to_owned(),
            transport: "inet",
            state: State::Throttled(7),
            busy: 1,
            idle: 0,
            retired: 0,
            max: Some(100),
            queue: Some((3, 100)),
            spawned: 9,
            served: 8,
            failed: 1,
            last_exit: Some(Exit::Status(1)),
            workers: vec![WorkerRow { pid: 77, state: "busy", served: 2, age: 60 }],
        }
    }

    #[test]
    fn the_table_says_why_and_until_when() {
        assert_eq!(
            table(&[row()]),
            "SERVICE  TYPE  STATE      BUSY  IDLE  MAX  QUEUE  SPAWNED  SERVED  LAST EXIT  NOTE\n\
             25       inet  throttled  1     0     100  3      9        8       status 1   workers \
             fail; next try in 7s\n"
        );
        assert_eq!(workers(&row()), "PID  STATE  SERVED  AGE\n77   busy   2       60s\n");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let odd = Row { name: "a\"\\\n".to_owned(), ..row() };
        let text = json(&[odd]);
        assert!(text.starts_with("{\"service\":\"a\\\"\\\\\\u000a\",\"key\":\"25\","), "{text}");
        assert!(text.contains("\"state\":\"throttled\""));
        assert!(
            text.contains("\"workers\":[{\"pid\":77,\"state\":\"busy\",\"served\":2,\"age\":60}]")
        );
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn json_of_the_master_counts_its_descriptors() {
        assert_eq!(
            master_json(77, &Descriptors(vec![("standard", 3), ("poll", 1)])),
            "{\"master\":77,\"descriptors\":{\"standard\":3,\"poll\":1}}\n"
        );
    }

    #[test]
    fn metrics_end_with_eof_and_count_with_total() {
        let text = metrics(&[row()]);
        assert!(
            text.contains(
                "belfry_workers_spawned_total{service=\"25\",key=\"25\",type=\"inet\"} 9\n"
            )
        );
        assert!(text.contains("belfry_service_up{service=\"25\",key=\"25\",type=\"inet\"} 0\n"));
        assert!(text.ends_with("# EOF\n"));
    }
}
