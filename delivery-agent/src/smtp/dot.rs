//! dot - how a message travels inside DATA
//!
//! A line that begins with a dot gets another one, and a lone dot ends the message. Only
//! CR LF dot CR LF ends it: a server that also took bare line ends for it would let one message
//! carry a second one past a filter ("SMTP smuggling").

/// Writes a message in its wire form, with the final dot. Bare CR and LF become line ends, so that
/// no receiver, however lax, can find an end inside.
pub fn stuff(message: &[u8], out: &mut Vec<u8>) {
    out.reserve(message.len() + message.len() / 64 + 8);
    let mut rest = message;
    while !rest.is_empty() {
        let end = rest.iter().position(|&b| b == b'\n' || b == b'\r');
        let line = &rest[..end.unwrap_or(rest.len())];
        if line.first() == Some(&b'.') {
            out.push(b'.');
        }
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
        rest = match end {
            None => &[],
            Some(at) if rest[at..].starts_with(b"\r\n") => &rest[at + 2..],
            Some(at) => &rest[at + 1..],
        };
    }
    out.extend_from_slice(b".\r\n");
}

/// Reads the wire form.
#[derive(Debug, Default)]
pub struct Unstuffer {
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start, or behind CR LF.
    #[default]
    LineStart,
    InLine,
    /// Behind a CR in a line.
    Cr,
    /// Behind a dot at the start of a line.
    Dot,
    /// Behind such a dot and a CR.
    DotCr,
    Done,
}

impl Unstuffer {
    /// Takes bytes up to the end of the message and hands the message's own to `out`. Says how many
    /// it took and whether the message is whole; what follows are commands.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> (usize, bool) {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            if self.state == State::InLine {
                let run = bytes[at..].iter().position(|&b| b == b'\r');
                let end = run.map_or(bytes.len(), |n| at + n);
                out.extend_from_slice(&bytes[at..end]);
                at = end;
            }
            if let Some(&byte) = bytes.get(at) {
                self.state = self.step(byte, out);
                at += 1;
            }
        }
        (at, self.state == State::Done)
    }

    fn step(&self, byte: u8, out: &mut Vec<u8>) -> State {
        match (self.state, byte) {
            (State::LineStart, b'.') => return State::Dot,
            (State::Dot, b'\r') => return State::DotCr,
            (State::DotCr, b'\n') => return State::Done,
            // Not the end after all: the dot was stuffing, the CR belongs to the message.
            (State::DotCr, _) => out.push(b'\r'),
            (State::LineStart | State::InLine | State::Cr | State::Dot | State::Done, _) => {}
        }
        out.push(byte);
        match (self.state, byte) {
            (State::Cr, b'\n') => State::LineStart,
            (_, b'\r') => State::Cr,
            _ => State::InLine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stuffed(message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        stuff(message, &mut out);
        out
    }

    fn unstuffed(wire: &[u8]) -> (Vec<u8>, usize, bool) {
        let mut out = Vec::new();
        let (taken, done) = Unstuffer::default().feed(wire, &mut out);
        (out, taken, done)
    }

    #[test]
    fn s10_dots_are_doubled_and_bare_ends_mended() {
        for (message, wire) in [
            ("", ".\r\n"),
            ("a\r\n", "a\r\n.\r\n"),
            ("a", "a\r\n.\r\n"),
            (".\r\n", "..\r\n.\r\n"),
            ("a\r\n.b\r\n", "a\r\n..b\r\n.\r\n"),
            ("a\n.\nQUIT\n", "a\r\n..\r\nQUIT\r\n.\r\n"),
            ("a\r.\rQUIT\r", "a\r\n..\r\nQUIT\r\n.\r\n"),
        ] {
            assert_eq!(stuffed(message.as_bytes()), wire.as_bytes(), "{message:?}");
        }
    }

    #[test]
    fn m4_only_crlf_dot_crlf_ends_a_message() {
        for open in [
            "a\n.\n",
            "a\n.\r\n",
            "a\r\n.\n",
            "a\r\n.\r",
            "a\r.\r",
            "a\r.\r\n",
            "a\r\n.\r\r\n",
            "a\r\n..\r\n",
            "a\r\n.\r.\r\n",
            "a\r\r\n.\n\r\n",
        ] {
            let (_, taken, done) = unstuffed(open.as_bytes());
            assert_eq!((taken, done), (open.len(), false), "{open:?}");
        }
        let (message, taken, done) = unstuffed(b"a\r\n.b\r\n..\r\n.\r\nQUIT\r\n");
        assert_eq!((taken, done), (14, true));
        assert_eq!(message, b"a\r\nb\r\n.\r\n");
        assert_eq!(unstuffed(b".\r\n"), (Vec::new(), 3, true));
    }

    proptest! {
        #[test]
        fn what_is_stuffed_comes_back_whole(
            message in prop::collection::vec(prop::sample::select(b".\r\nab\0\xff".to_vec()), 0..200),
            cuts in prop::collection::vec(1_usize..7, 1..40),
        ) {
            let wire = stuffed(&message);
            // No line end in the wire form is bare, so every receiver sees the same end.
            for (i, &b) in wire.iter().enumerate() {
                prop_assert!(b != b'\n' || wire[i - 1] == b'\r');
                prop_assert!(b != b'\r' || wire[i + 1] == b'\n');
            }
            let mut unstuffer = Unstuffer::default();
            let mut got = Vec::new();
            let mut rest = wire.as_slice();
            let mut cuts = cuts.iter().cycle();
            let mut finished = false;
            while !rest.is_empty() {
                prop_assert!(!finished, "an end inside the message");
                let n = (*cuts.next().unwrap()).min(rest.len());
                let (taken, done) = unstuffer.feed(&rest[..n], &mut got);
                prop_assert_eq!(taken, n);
                finished = done;
                rest = &rest[n..];
            }
            prop_assert!(finished);
            let mut normal = stuffed(&message);
            normal.truncate(normal.len() - 3);
            let mut again = stuffed(&got);
            again.truncate(again.len() - 3);
            prop_assert_eq!(again, normal);
        }
    }
}
