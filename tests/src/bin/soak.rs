//! soak - our master over a long life
//!
//! `cargo run --release -p belfry-tests --bin soak [SPAWNS]` starts so many workers (100,000) one
//! after the other, with reloads in between that add, change and remove services, and prints resident
//! memory and open descriptors on the way. It fails when memory has grown after the first tenth, when
//! a descriptor or a worker stays, or when the log has a complaint. Needs root.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;

use belfry_tests::bench::{Kind, Master};
use belfry_tests::{end_of_test, process};
use worker_proto::clock::Time;

/// Starts, when the command line does not say how many.
const SPAWNS: u64 = 100_000;
/// Two reloads come after this many starts: to another table, and back.
const RELOAD_EVERY: u64 = 500;
/// The memory that may be gained after the first tenth, in KiB: what an allocator rounds up.
const GROWTH: u64 = 256;
/// Services that take turns; each reload changes the last and adds or removes another.
const SERVICES: [&str; 4] = ["a", "b", "c", "changing"];

/// What was seen at one moment.
#[derive(Clone, Copy)]
struct Seen {
    resident: u64,
    descriptors: usize,
}

fn main() -> ExitCode {
    let spawns = env::args().nth(1).map_or(Some(SPAWNS), |n| n.parse().ok()).filter(|&n| n >= 10);
    let outcome = match spawns {
        Some(spawns) => run(spawns),
        None => Err(io::Error::other("usage: soak [SPAWNS], 10 or more")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "soak: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(spawns: u64) -> io::Result<()> {
    let mut out = io::stdout();
    let master = Master::start(Kind::Ours, "", &table(false))?;
    // The start has knocked and gone; that worker's end is not the first thing to be measured.
    SERVICES.iter().try_for_each(|service| master.knock(service).map(drop))?;
    let begin = Time::now();
    writeln!(out, "{:>9} {:>8} {:>12} {:>12}", "spawns", "seconds", "resident KiB", "descriptors")?;
    let mut tell = |done: u64| -> io::Result<Seen> {
        let seen = look(&master)?;
        let seconds = Time::now().since(begin).as_secs();
        writeln!(out, "{done:9} {seconds:8} {:12} {:12}", seen.resident, seen.descriptors)?;
        Ok(seen)
    };
    let mut reloads = 0;
    let mut warm = tell(0)?;
    let mut last = warm;
    for done in 1..=spawns {
        let service = SERVICES[usize::try_from(done % 4).unwrap_or(0)];
        master.knock(service)?;
        if done % RELOAD_EVERY == 0 {
            for other in [true, false] {
                reloads += 1;
                reload(&master, other, reloads)?;
            }
        }
        if done == spawns / 10 {
            warm = tell(done)?;
        } else if done % (spawns / 4) == 0 || done == spawns {
            last = tell(done)?;
        }
    }
    writeln!(out, "{reloads} reloads")?;
    judge(warm, last, &master)
}

/// The table; the other one has a service more, and another limit for the last.
fn table(other: bool) -> String {
    let [first @ .., last] = SERVICES;
    let line = |name: &str, limit: &str| format!("{name} unix n n n - {limit} bench_worker once\n");
    let mut text: String = first.iter().map(|name| line(name, "-")).collect();
    text += &if other { line("more", "-") } else { String::new() };
    text + &line(last, if other { "7" } else { "-" })
}

/// Reloads and waits until that is done.
fn reload(master: &Master, other: bool, number: usize) -> io::Result<()> {
    fs::write(master.table(), table(other))?;
    master.hang_up()?;
    master.wait("a reload", || master.log().count("reload done: ") == number)
}

/// Waits until no worker is left, dead or alive, and the master has noticed, and looks.
fn look(master: &Master) -> io::Result<Seen> {
    let nobody = || process::children(master.pid()).is_empty();
    master.wait("the workers to be gone", nobody)?;
    end_of_test::no_stray_descriptor(master.pid(), &master.queue());
    Ok(Seen { resident: master.resident()?, descriptors: master.descriptors()? })
}

fn judge(warm: Seen, last: Seen, master: &Master) -> io::Result<()> {
    let growth = last.resident.saturating_sub(warm.resident);
    if growth > GROWTH {
        return Err(io::Error::other(format!("memory has grown by {growth} KiB")));
    }
    if last.descriptors != warm.descriptors {
        let text = format!("{} descriptors were {}", last.descriptors, warm.descriptors);
        return Err(io::Error::other(text));
    }
    match master.log().complaints().as_slice() {
        [] => Ok(()),
        [first, ..] => Err(io::Error::other(format!("in the log: {first}"))),
    }
}
