//! sum - checksums of rows
//!
//! Of what never changes in a row: SQLite does not notice when the bytes of a message are damaged on
//! the disk, and a mail of garbage to a garbled address is worse than none. 64 bits of FNV-1a, with
//! the length of each part in it.

struct Sum(u64);

impl Sum {
    fn new(table: &[u8]) -> Self {
        Self(0xcbf2_9ce4_8422_2325).bytes(table)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        for byte in bytes.iter().chain(&(bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self
    }

    fn int(self, value: i64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    const fn end(self) -> i64 {
        self.0.cast_signed()
    }
}

/// Times may be put right and are not in it.
pub(super) fn message_sum(
    no: i64,
    id: &str,
    sender: &str,
    size: i64,
    origin: &str,
    lane: i64,
    recipients: i64,
) -> i64 {
    let sum = Sum::new(b"message").int(no).bytes(id.as_bytes());
    let sum = sum.bytes(sender.as_bytes()).int(size).bytes(origin.as_bytes());
    sum.int(lane).int(recipients).end()
}

pub(super) fn recipient_sum(no: i64, position: i64, address: &str) -> i64 {
    Sum::new(b"recipient").int(no).int(position).bytes(address.as_bytes()).end()
}

pub(super) fn body_sum(no: i64, bytes: &[u8]) -> i64 {
    Sum::new(b"body").int(no).bytes(bytes).end()
}
