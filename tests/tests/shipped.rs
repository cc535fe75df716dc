//! The configuration in etc/ is right as it is shipped.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use belfry_tests::Instance;
use delivery_agent::alerts_cf::AlertsCf;
use delivery_agent::manager::QmgrParams;
use delivery_agent::params::{SmtpParams, SmtpdParams, SubmitParams};
use master::params::MasterParams;
use worker_proto::params::CommonParams;

fn etc() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../etc")
}

#[test]
fn belfry_check_has_nothing_to_say() {
    let mut instance = Instance::bare();
    instance.write();
    // Where the queue is differs from machine to machine; all other lines are as shipped.
    let shipped = fs::read_to_string(etc().join("main.cf")).unwrap();
    let ours = fs::read_to_string(instance.config().join("main.cf")).unwrap();
    fs::write(instance.config().join("main.cf"), shipped + &ours).unwrap();
    fs::copy(etc().join("master.cf"), instance.config().join("master.cf")).unwrap();
    let output = instance.belfry(&["check"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    // The two halves set the directories twice, and nothing else may be odd.
    let odd = said.lines().filter(|l| l.contains("main.cf:") || l.contains("master.cf:"));
    let odd: Vec<_> =
        odd.filter(|l| !l.contains("_directory") && !l.contains("mail_owner")).collect();
    assert_eq!(odd, [] as [&str; 0]);
    instance.parameter("unused", "x");
    instance.finish(&[]);
}

#[test]
fn alerts_cf_is_read_without_a_word() {
    let text = fs::read_to_string(etc().join("alerts.cf")).unwrap();
    let (alerts, complaints) = AlertsCf::parse("alerts.cf", &text);
    assert_eq!(complaints, []);
    assert_eq!(alerts.recipients("mail"), [] as [&str; 0]);
    // The examples in its comments are right as well.
    let examples: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("#     "))
        .map(|line| format!("{line}\n"))
        .collect();
    let (alerts, complaints) = AlertsCf::parse("alerts.cf", &examples);
    assert_eq!(complaints, []);
    assert_eq!(alerts.recipients("raid").len(), 3, "{examples}");
}

/// A commented line `# name = value` shows the default, or an example for what has none.
#[test]
fn main_cf_shows_the_defaults_that_the_code_has() {
    let tables = [
        CommonParams::TABLE,
        MasterParams::TABLE,
        QmgrParams::TABLE,
        SmtpParams::TABLE,
        SubmitParams::TABLE,
        SmtpdParams::TABLE,
    ];
    let defaults: HashMap<_, _> =
        tables.iter().flat_map(|t| t.iter()).map(|info| (info.name, info.default)).collect();
    let text = fs::read_to_string(etc().join("main.cf")).unwrap();
    let mut seen = 0;
    for line in text.lines() {
        let (comment, line) = line.strip_prefix("# ").map_or((false, line), |line| (true, line));
        let Some((name, value)) = line.split_once(" = ").or_else(|| line.split_once(" =")) else {
            continue;
        };
        if name.contains(' ') || name.contains('`') || name.starts_with("delivery_") {
            continue;
        }
        let default = defaults.get(name).unwrap_or_else(|| panic!("nobody reads {name}"));
        let example =
            ["relayhost", "myhostname", "maillog_file", "alias_maps"].contains(&name) && comment;
        assert!(example || *default == value, "{name}: {value} is not the default {default}");
        seen += 1;
    }
    assert!(seen > 10, "only {seen} parameters were found");
}
