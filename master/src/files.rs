//! files - how many open files the master needs, and how many it may have
//!
//! Each service takes a descriptor for each of its sockets, and each worker one more. Where the limit is
//! too low, it is raised if the system lets us; if not, some services stay without sockets, and the
//! others run.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use worker_proto::sys;

use crate::config::Config;

/// What the master has open besides: locks, log, poll, signals, clients of the control socket.
const OWN: u64 = 32;

/// How many open files this configuration needs, with a worker for each service.
#[must_use]
pub fn needed(config: &Config) -> u64 {
    let sockets: usize = config.services.iter().map(|s| s.def.endpoints.len() + 1).sum();
    high(sys::HIGH_FD) + OWN + sockets as u64
}

/// Raises the limit of open files to this number if it is lower and may be raised; the limit.
#[must_use]
pub fn grow(needed: u64) -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return needed;
    };
    if soft >= needed {
        return soft;
    }
    let (most, wanted) = (hard.max(needed), needed.max(soft));
    match setrlimit(Resource::RLIMIT_NOFILE, most, most) {
        Ok(()) => wanted.max(most),
        Err(_) => soft,
    }
}

/// How many of so many descriptors sockets may take: workers and operators need some as well.
#[must_use]
pub fn room(limit: u64) -> usize {
    let left = limit.saturating_sub(high(sys::high_fd()) + OWN.min(limit / 8));
    usize::try_from(left - left / 4).unwrap_or(usize::MAX)
}

fn high(number: i32) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_leaves_room_for_some_sockets_and_their_workers() {
        assert_eq!(room(0), 0);
        assert!(room(1 << 20) > 700_000);
    }
}
