//! The properties that the fuzzer looks for, with inputs that proptest and the seeds make.
//!
//! An input that was found to break one goes to tests/fuzz/seeds.

use std::fs;
use std::path::Path;

use belfry_tests::fuzz_properties::{self as properties, ALL};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

fn fuzz() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
}

/// The files of a directory.
fn files(directory: &Path) -> Vec<Vec<u8>> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.map(|path| fs::read(path).expect("it can be read")).collect()
}

/// Words of a language, in any order, with some bytes that are none.
fn text(words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        30 => select(words).prop_map(|word| word.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 1..4),
    ];
    vec(word, 0..120).prop_map(|words| words.concat())
}

/// The same behind a byte that says into what pieces it is cut.
fn pieces(words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    (any::<u8>(), text(words)).prop_map(|(size, text)| [&[size], text.as_slice()].concat())
}

const MASTER_CF: &[&str] = &[
    "smtp inet n - - - - smtpd\n",
    "[::1]:25 inet n n y 1? 0 p -o {a = b}\n",
    "x unix - - n 60 5 p",
    "kept fifo - - - 10? 1 p ",
    " pass n n n 0 1 sub/p -v\n",
    " - - - - - ",
    " y n - 5x ",
    "y unix - - - - - /bin/sh -c id\n",
    "localhost:smtp",
    "127.0.0.1:2525",
    "[ipv6:",
    "inet",
    "unix-dgram",
    "fifo",
    "-",
    "/",
    "..",
    "../",
    "{",
    "}",
    "{ ",
    " }",
    "?",
    "#",
    " ",
    "  ",
    "\t",
    "\r",
    "\n",
    "\n ",
    "\r\n",
    "\x0b",
    "\0",
    "ü",
    "\u{2028}",
    "\u{85}",
    "a",
    "0",
    "99999999999",
];

const MAIN_CF: &[&str] = &[
    "a = ",
    "b = $a\n",
    "a = $b$b\n",
    "c=${a?{$b}:{x}}\n",
    "mydomain = ",
    "myhostname = host.$mydomain\n",
    "max_idle = ",
    "smtp_rlimit_nofile = ",
    "smtp_nice = 5\n",
    "import_environment = A=b ",
    "relayhost = ",
    "compat = postfix\n",
    "$",
    "$$",
    "${",
    "$(",
    "}",
    ")",
    "{",
    "?",
    ":",
    "=",
    "a",
    "myhostname",
    "mydomain",
    "stress",
    "5m",
    "1k:unlimited",
    "100",
    " ",
    ",",
    "\t",
    "\n",
    "\n ",
    "\r\n",
    "#",
    "\0",
    "ü",
    "\u{85}",
];

const SMTP: &[&str] = &[
    "250-",
    "250 ",
    "250",
    "354 go\r\n",
    "550 5.1.1 no\n",
    "599",
    "199 ",
    ".",
    "..",
    "\r\n.\r\n",
    "\n.\n",
    "\r\n",
    "\n",
    "\r",
    "a",
    "\0",
    "\u{1b}",
    "ü",
    "0123456789012345678901234567890123456789012345678901234567890123456789",
];

const CONTROL: &[&str] = &[
    "status smtp",
    "reset smtp\n",
    "\n",
    "\n",
    "status",
    "--json",
    "reload",
    "--changed",
    "upgrade",
    "reset",
    "diff",
    "pid",
    "metrics",
    "smtp",
    "/usr/libexec/belfry/master",
    " ",
    "\t",
    "\u{a0}",
    "\u{2003}",
    "\r",
    "\n",
    "\0",
    "ü",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn d_e_f_master_cf(bytes in text(MASTER_CF)) {
        properties::master_cf(&bytes);
    }

    #[test]
    fn main_cf(bytes in text(MAIN_CF)) {
        properties::main_cf(&bytes);
    }

    #[test]
    fn i_j_k_status_records_and_the_process_policy(bytes in vec(any::<u8>(), 0..1500)) {
        properties::status(&bytes);
    }

    #[test]
    fn control(bytes in pieces(CONTROL)) {
        properties::control(&bytes);
    }

    #[test]
    fn s4_replies(bytes in pieces(SMTP)) {
        properties::reply(&bytes);
    }

    #[test]
    fn m4_s10_messages_in_their_wire_form(bytes in pieces(SMTP)) {
        properties::dot(&bytes);
    }
}

#[test]
fn every_seed_of_the_fuzzer() {
    for (name, property) in ALL {
        let seeds = files(&fuzz().join("seeds").join(name));
        assert!(!seeds.is_empty(), "{name}");
        seeds.iter().for_each(|seed| property(seed));
    }
}

#[test]
fn the_shipped_files() {
    let etc = Path::new(env!("CARGO_MANIFEST_DIR")).join("../etc");
    properties::master_cf(&fs::read(etc.join("master.cf")).unwrap());
    properties::main_cf(&fs::read(etc.join("main.cf")).unwrap());
}

#[test]
fn every_property_has_a_fuzz_target() {
    for (name, _) in ALL {
        let target = fs::read_to_string(fuzz().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(target.contains(&format!("fuzz_properties::{name}(")), "{target}");
        let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not built");
    }
}
