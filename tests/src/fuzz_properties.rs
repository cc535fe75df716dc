//! fuzz_properties - what holds for every input of the parsers and of the process policy
//!
//! Each function takes any bytes and panics when a property does not hold. The fuzz targets in
//! tests/fuzz call them with what a fuzzer makes up, a test of this crate with what proptest does.

use worker_proto::diagnostic::Diagnostic;

mod control;
mod main_cf;
mod master_cf;
mod smtp;
mod status;

pub use control::control;
pub use main_cf::main_cf;
pub use master_cf::master_cf;
pub use smtp::{dot, reply};
pub use status::status;

/// A property's name, which is that of its fuzz target, and the property.
pub type Property = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Property; 6] = [
    ("control", control),
    ("dot", dot),
    ("main_cf", main_cf),
    ("master_cf", master_cf),
    ("reply", reply),
    ("status", status),
];

/// Complaints about a file point into it, are one line in the log, and come with a cure.
fn complaints_are_sound(file: &str, text: &str, complaints: &[Diagnostic]) {
    for complaint in complaints {
        let Diagnostic { line, column, width, source, .. } = complaint;
        if complaint.file == file {
            let there = text.split('\n').nth(line - 1).expect("the line is in the file");
            let there = there.strip_suffix('\r').unwrap_or(there);
            let shown = source.strip_prefix("...").unwrap_or(source);
            let shown = shown.strip_suffix("...").unwrap_or(shown);
            assert!(there == source || there.contains(shown), "{complaint}");
            assert!(there != source || complaint.lead == column - 1, "{complaint:?}");
        }
        assert!(*column >= 1 && complaint.lead + width <= source.chars().count(), "{complaint:?}");
        assert!(complaint.message.len() < 500 && source.len() < 1000, "{complaint:?}");
        let log_line = complaint.to_string();
        assert!(!log_line.contains(char::is_control), "{log_line:?}");
        let picture = format!("{complaint:#}");
        assert!(picture.starts_with(&log_line), "{picture:?}");
        assert!(!picture.contains(|c: char| c.is_control() && c != '\n' && c != '\t'));
        assert_eq!(picture.lines().count(), 5, "place, picture and cure: {picture:?}");
    }
}

/// Cuts an input: its first byte says into how many pieces, of about what size.
fn pieces(bytes: &[u8]) -> (&[u8], impl Iterator<Item = &[u8]>) {
    let (size, rest) = bytes.split_first().map_or((1, bytes), |(n, rest)| (usize::from(*n), rest));
    (rest, rest.chunks(size.max(1)))
}
