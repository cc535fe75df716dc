//! status - the 12-byte record a worker writes to the master
//!
//! Three native-endian 32-bit integers: process id, generation, availability, in one write(2).
//! The master treats what it reads as gossip: a decoded record is data, never a promise.

use crate::abi::Generation;

/// Size of a record on the status channel, in bytes.
pub const RECORD_SIZE: usize = 12;

/// Whether a worker can take another client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// It has a client (0 on the wire).
    Taken,
    /// It waits for one (1 on the wire).
    Available,
}

/// What a worker says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRecord {
    /// Process id, as the worker sees it.
    pub pid: i32,
    /// The generation the worker was started with.
    pub generation: Generation,
    /// Raw availability; see [`StatusRecord::availability`].
    pub state: i32,
}

impl StatusRecord {
    /// The record a worker sends.
    #[must_use]
    pub const fn new(pid: i32, generation: Generation, availability: Availability) -> Self {
        let state = match availability {
            Availability::Taken => 0,
            Availability::Available => 1,
        };
        Self { pid, generation, state }
    }

    /// The availability it tells, or None for a value no version defines.
    #[must_use]
    pub const fn availability(&self) -> Option<Availability> {
        match self.state {
            0 => Some(Availability::Taken),
            1 => Some(Availability::Available),
            _ => None,
        }
    }

    /// The bytes to write, in one write(2).
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_SIZE] {
        let mut bytes = [0; RECORD_SIZE];
        bytes[..4].copy_from_slice(&self.pid.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.generation.0.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.state.to_ne_bytes());
        bytes
    }

    /// The record in a datagram of exactly [`RECORD_SIZE`] bytes; None when it has another size.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (pid, rest) = bytes.split_first_chunk::<4>()?;
        let (generation, rest) = rest.split_first_chunk::<4>()?;
        let state: [u8; 4] = rest.try_into().ok()?;
        Some(Self {
            pid: i32::from_ne_bytes(*pid),
            generation: Generation(u32::from_ne_bytes(*generation)),
            state: i32::from_ne_bytes(state),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h05_a_record_is_twelve_native_bytes() {
        let record = StatusRecord::new(77, Generation(9), Availability::Available);
        let bytes = record.encode();
        assert_eq!(bytes[..4], 77_i32.to_ne_bytes());
        assert_eq!(bytes[8..], 1_i32.to_ne_bytes());
        assert_eq!(StatusRecord::decode(&bytes), Some(record));
    }

    #[test]
    fn another_size_or_state_is_no_record() {
        assert_eq!(StatusRecord::decode(&[0; 11]), None);
        assert_eq!(StatusRecord::decode(&[0; 13]), None);
        let mut bytes = [0; RECORD_SIZE];
        bytes[8..].copy_from_slice(&2_i32.to_ne_bytes());
        assert_eq!(StatusRecord::decode(&bytes).unwrap().availability(), None);
    }
}
