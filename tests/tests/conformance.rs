//! Every line of the table of behaviours, and every known weakness, has a test that names it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The last number of each section of the table.
const LINES: &[(char, u32)] = &[
    ('a', 18),
    ('b', 4),
    ('c', 6),
    ('d', 12),
    ('e', 14),
    ('f', 4),
    ('g', 8),
    ('h', 7),
    ('i', 8),
    ('j', 7),
    ('k', 6),
    ('l', 5),
    ('m', 2),
    ('n', 4),
    ('o', 7),
    ('p', 8),
    ('q', 11),
    ('w', 25),
];

/// Lines without a test, and why.
const WITHOUT: &[(&str, &str)] = &[
    ("p06", "our workers end at once: the throttle paces failures, under both masters"),
    ("p07", "the master's own watchdog waits 1000 seconds; that its loop turns is seen everywhere"),
    ("q09", "our workers take no lock around accept(2): being late costs them EAGAIN (q01)"),
];

fn names(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).expect("the workspace is there").flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            names(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(path).expect("it was listed");
            let after = text.split("#[test]").skip(1);
            let tests = after.filter_map(|rest| rest.split_once("fn ")?.1.split_once('('));
            tests.for_each(|(name, _)| found.extend(name.split('_').map(str::to_owned)));
        }
    }
}

#[test]
fn every_line_has_a_test_that_names_it() {
    let mut found = BTreeSet::new();
    for package in ["worker-proto", "master", "delivery-agent", "tests"] {
        names(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(package), &mut found);
    }
    let all = LINES.iter().flat_map(|(c, last)| (1..=*last).map(move |n| format!("{c}{n:02}")));
    let excused = |id: &String| WITHOUT.iter().any(|(without, _)| without == id);
    let (excused, tested): (Vec<_>, Vec<_>) = all.partition(excused);
    let missing: Vec<_> = tested.iter().filter(|id| !found.contains(*id)).collect();
    assert!(missing.is_empty(), "no test names {missing:?}");
    let needless: Vec<_> = excused.iter().filter(|id| found.contains(*id)).collect();
    assert!(needless.is_empty(), "they have a test after all: {needless:?}");
}
