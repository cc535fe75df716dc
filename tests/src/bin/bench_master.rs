//! bench_master - our master and Debian's Postfix master side by side
//!
//! `cargo run --release -p belfry-tests --bin bench_master [SERVICES...]` runs both masters with the
//! same worker on tables of 10, 1,000 and 5,000 services, in turns, and prints ratios: ours divided by
//! Postfix's, so that less is better. It fails when our master has more memory than Postfix's after
//! a hundred reloads. Needs root, Debian's postfix, and a quiet machine.

use std::fs;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use belfry_tests::bench::{Kind, Master};
use worker_proto::clock::Time;

/// How many knocks are measured for each master and size, in rounds that take turns.
const ROUNDS: usize = 10;
const KNOCKS: usize = 40;
/// Clients that knock together, and how long their worker takes to come up.
const BURST: usize = 8;
const SLOW_START: Duration = Duration::from_millis(250);
/// Reloads before memory is looked at again.
const RELOADS: usize = 100;

/// What was measured of one master at one size.
#[derive(Default)]
struct Measured {
    start: f64,
    reload: f64,
    rss: f64,
    rss_later: f64,
    fds: f64,
    cold: Vec<f64>,
    warm: f64,
    burst: f64,
}

fn main() -> ExitCode {
    let given: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let sizes = if given.is_empty() { vec![10, 1000, 5000] } else { given };
    match run(&sizes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "bench_master: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(sizes: &[usize]) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "ratios, ours / Postfix's (less is better); in brackets ours and Postfix's")?;
    let mut ours_at_first = None;
    let mut more_memory = Vec::new();
    for &size in sizes {
        let (ours, theirs) = measure(size)?;
        let cold = |m: &Measured, at: f64| quantile(&m.cold, at);
        writeln!(out, "\n{size} services")?;
        let mut row = |name: &str, a: f64, b: f64, unit: &str| {
            writeln!(out, "  {name:34} {:6.2}   ({a:.3} {unit}, {b:.3} {unit})", a / b)
        };
        row("connect to reply, new worker, p50", cold(&ours, 0.5), cold(&theirs, 0.5), "ms")?;
        row("connect to reply, new worker, p99", cold(&ours, 0.99), cold(&theirs, 0.99), "ms")?;
        row("idle worker, each connection", ours.warm, theirs.warm, "ms")?;
        row("start", ours.start, theirs.start, "ms")?;
        row("reload", ours.reload, theirs.reload, "ms")?;
        row("resident memory", ours.rss, theirs.rss, "MiB")?;
        row("resident memory, 100 reloads later", ours.rss_later, theirs.rss_later, "MiB")?;
        row("open descriptors", ours.fds, theirs.fds, "")?;
        row("8 clients, worker starts in 250 ms", ours.burst, theirs.burst, "ms")?;
        if ours.rss_later > theirs.rss_later {
            more_memory.push(size.to_string());
        }
        let first = *ours_at_first.get_or_insert(cold(&ours, 0.5));
        row("ours against ours at the first size", cold(&ours, 0.5), first, "ms")?;
    }
    if more_memory.is_empty() {
        return Ok(());
    }
    let sizes = more_memory.join(" and ");
    Err(io::Error::other(format!("after reloads more memory than Postfix's at {sizes} services")))
}

fn measure(size: usize) -> io::Result<(Measured, Measured)> {
    let (mut ours, mut theirs) = (Measured::default(), Measured::default());
    let mut pair = [(Kind::Ours, &mut ours), (Kind::Postfix, &mut theirs)];
    let mut masters = Vec::new();
    for (kind, measured) in &mut pair {
        let before = Time::now();
        let master = start(*kind, size)?;
        measured.start = milliseconds(Time::now().since(before));
        masters.push(master);
    }
    // Taking turns: what else the machine does falls on both.
    for _ in 0..ROUNDS {
        for (master, (_, measured)) in masters.iter().zip(&mut pair) {
            for _ in 0..KNOCKS {
                measured.cold.push(milliseconds(master.knock("cold")?));
            }
        }
    }
    for (master, (_, measured)) in masters.iter().zip(&mut pair) {
        master.knock("warm")?;
        let before = Time::now();
        for _ in 0..1000 {
            master.knock("warm")?;
        }
        measured.warm = milliseconds(Time::now().since(before)) / 1000.0;
        measured.burst = burst(master)?;
        measured.rss = number(master.resident()?) / 1024.0;
        measured.fds = number(master.descriptors()? as u64);
        measured.reload = reload(master, true)?;
        for _ in 1..RELOADS {
            reload_unchanged(master)?;
        }
        measured.rss_later = number(master.resident()?) / 1024.0;
    }
    Ok((ours, theirs))
}

fn start(kind: Kind, size: usize) -> io::Result<Master> {
    let slow = SLOW_START.as_millis();
    let mut table = format!(
        "cold unix n n n - - bench_worker once\nwarm unix n n n - - bench_worker\n\
         burst unix n n n - - bench_worker hold slow={slow}\n"
    );
    for n in 4..=size {
        table += &format!("s{n} unix n n n - - bench_worker\n");
    }
    let master = Master::start(kind, &format!("burst_start_burst = {BURST}\n"), &table)?;
    master.knock("cold")?;
    Ok(master)
}

/// Milliseconds until the last of several clients that knock together is answered.
fn burst(master: &Master) -> io::Result<f64> {
    let before = Time::now();
    let mut clients = Vec::new();
    for _ in 0..BURST {
        clients.push(master.connect("burst")?);
    }
    for client in &mut clients {
        client.read_exact(&mut [0; 1])?;
    }
    Ok(milliseconds(Time::now().since(before)))
}

/// Milliseconds until a reload that adds a service has brought it up, or one that removes it has ended
/// it.
fn reload(master: &Master, add: bool) -> io::Result<f64> {
    const LINE: &str = "added unix n n n - - bench_worker\n";
    let text = fs::read_to_string(master.table())?;
    let text = if add { text + LINE } else { text.replace(LINE, "") };
    fs::write(master.table(), text)?;
    let before = Time::now();
    master.hang_up()?;
    master.wait("a reload", || master.connect("added").is_ok() == add)?;
    Ok(milliseconds(Time::now().since(before)))
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "a few ten thousand")]
fn number(n: u64) -> f64 {
    n as f64
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a position in a short list"
)]
fn quantile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * at).round() as usize]
}

/// A reload of the same table. Postfix's master can hang when it removes a service whose worker has
/// just been started, so that a hundred reloads that remove one would measure that.
fn reload_unchanged(master: &Master) -> io::Result<()> {
    let before = master.log().count("reload -- ");
    master.hang_up()?;
    master.wait("a reload", || master.log().count("reload -- ") > before)
}
