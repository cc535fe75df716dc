//! input - the message on standard input, piece by piece

use std::io::{self, BufRead, Read};
use std::os::fd::AsFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{fstat, major, minor};

/// The longest piece.
const PIECE: usize = 64 << 10;

/// What is read up to its end, or to a line with a single dot.
#[derive(Debug)]
pub(super) struct Input<R> {
    reader: R,
    ignores_dots: bool,
    at_line_start: bool,
    ended: bool,
}

impl<R: BufRead> Input<R> {
    pub(super) const fn new(reader: R, ignores_dots: bool) -> Self {
        Self { reader, ignores_dots, at_line_start: true, ended: false }
    }

    /// Adds the next piece. False: there was none.
    pub(super) fn next(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let before = out.len();
        let mut piece = self.reader.by_ref().take(PIECE as u64);
        if self.ignores_dots {
            let bytes = piece.fill_buf()?;
            out.extend_from_slice(bytes);
            let count = bytes.len();
            piece.consume(count);
        } else {
            piece.read_until(b'\n', out)?;
            let line = &out[before..];
            if self.at_line_start && line.starts_with(b".") && line.trim_ascii_end() == b"." {
                out.truncate(before);
            } else {
                self.at_line_start = line.ends_with(b"\n");
            }
        }
        self.ended = out.len() == before;
        Ok(!self.ended)
    }
}

/// Whether there is no standard input. The language's start-up puts /dev/null, for reading and
/// writing, in the place of a descriptor that was closed; whoever means an empty message opens it for
/// reading.
pub(super) fn is_closed(stdin: impl AsFd) -> bool {
    let is_null = fstat(&stdin).is_ok_and(|s| (major(s.st_rdev), minor(s.st_rdev)) == (1, 3));
    let flags = fcntl(&stdin, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate);
    is_null && flags.is_ok_and(|flags| flags & OFlag::O_ACCMODE == OFlag::O_RDWR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, ignores_dots: bool) -> String {
        let mut input = Input::new(io::BufReader::with_capacity(3, text.as_bytes()), ignores_dots);
        let mut out = Vec::new();
        while input.next(&mut out).unwrap() {}
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_single_dot_ends_the_message_unless_ignored() {
        for (text, want) in [
            ("a\n.\nb\n", "a\n"),
            ("a\n.\r\nb\n", "a\n"),
            ("a\n.", "a\n"),
            (".\n", ""),
            ("a.\n.b\n..\nb", "a.\n.b\n..\nb"),
            ("", ""),
        ] {
            assert_eq!(read(text, false), want, "{text:?}");
            assert_eq!(read(text, true), text);
        }
        let long = format!("{}.\nb\n", "x".repeat(PIECE));
        assert_eq!(read(&long, false), long, "a dot where a piece ends is no line");
    }
}
