//! The manual pages in etc/man are what the tables of the code say.
//!
//! After a change: `BELFRY_BLESS=1 cargo test -p belfry-tests --test man`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use belfry_tests::peer;

use delivery_agent::manager::QmgrParams;
use delivery_agent::params::{SinkParams, SmtpParams, SmtpdParams, SubmitParams};
use worker_proto::params::ParamInfo;

/// Every table of the package delivery-agent, under the programs it is for.
const TABLES: &[(&str, &[ParamInfo])] = &[
    ("qmgr", QmgrParams::TABLE),
    ("the delivery agent", SmtpParams::TABLE),
    ("smtpd, sendmail and qmgr", SubmitParams::TABLE),
    ("smtpd", SmtpdParams::TABLE),
    ("sinkd", SinkParams::TABLE),
];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../etc/man")
}

fn pages() -> [(&'static str, String); 4] {
    [
        ("master.8", master::manual::master()),
        ("master.cf.5", master::manual::master_cf()),
        ("belfry.8", master::manual::belfry()),
        ("main.cf.5", master::manual::main_cf(TABLES)),
    ]
}

#[test]
fn the_pages_are_fresh() {
    let bless = env::var_os("BELFRY_BLESS").is_some_and(|v| v == "1");
    for (name, page) in pages() {
        let path = directory().join(name);
        if bless {
            fs::create_dir_all(directory()).unwrap();
            fs::write(&path, &page).unwrap();
        }
        let shipped = fs::read_to_string(&path).unwrap_or_default();
        assert!(shipped == page, "etc/man/{name} is not what the tables say: see this file's head");
    }
}

#[test]
fn no_table_is_left_out() {
    let listed: Vec<_> = TABLES.iter().flat_map(|(_, table)| table.iter()).collect();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../delivery-agent/src");
    for entry in fs::read_dir(source).unwrap().map(Result::unwrap) {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        for table in text.split("params! {").skip(1) {
            let rows = table.split("\n}").next().unwrap_or_default().lines();
            let rows = rows.filter(|line| line.starts_with("        ") && line.contains(" = \""));
            for name in rows.filter_map(|line| line.trim().split_once(':').map(|(name, _)| name)) {
                assert!(listed.iter().any(|info| info.name == name), "{name} is in no table here");
            }
        }
    }
}

#[test]
fn man_has_nothing_to_complain_about() {
    // groff is part of every Debian with man; without it there is nothing to ask.
    let Some(groff) = peer::find("groff") else { return };
    for (name, _) in pages() {
        let path = directory().join(name);
        let output = Command::new(&groff)
            .args(["-man", "-Tutf8", "-ww", "-rCHECKSTYLE=0"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.is_empty(), "{name}: {said}");
    }
}
