//! control - what comes over the master's control socket

use master::request::{self, Request};

use super::pieces;

/// A request is the first line, however it comes; what is read is written and read again as the same.
///
/// # Panics
/// It is not.
pub fn control(bytes: &[u8]) {
    let (whole, pieces) = pieces(bytes);
    let mut input = Vec::new();
    let mut first = None;
    for piece in pieces {
        input.extend_from_slice(piece);
        first = first.or_else(|| request::line(&input));
    }
    assert_eq!(first, request::line(whole));
    assert_eq!(first.is_some(), whole.contains(&b'\n'));
    let Some(line) = first else {
        return;
    };
    assert!(!line.contains('\n'));
    if let Some(request) = Request::parse(&line) {
        if let Request::Status { json, .. } = request {
            assert_eq!(json, line.split_whitespace().any(|word| word == "--json"));
        }
        let written = format!("{request}\n");
        let again = request::line(written.as_bytes()).and_then(|line| Request::parse(&line));
        assert_eq!(again, Some(request));
    }
}
