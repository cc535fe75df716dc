//! descriptors - what this process has open, by what it knows
//!
//! Compared with what the kernel says it is a check of the whole program: a descriptor too many is a
//! leak, one too few belongs to nobody.

use worker_proto::abi::Transport;
use worker_proto::log;

use super::Master;
use crate::report::Descriptors;

impl Master {
    pub(super) fn descriptors(&self) -> Descriptors {
        let services = || self.services.values();
        let sockets = |fifo: bool| {
            let kind = services()
                .filter(move |s| (s.configured.def.key.transport == Transport::Fifo) == fifo);
            kind.map(|s| s.listeners.len()).sum()
        };
        Descriptors(vec![
            ("standard", 3),
            ("flow", 2),
            ("poll", 1),
            ("locks", self.birth.locks.len()),
            ("log", log::descriptors()),
            ("signals", self.signals.descriptors()),
            ("control", 1),
            ("operators", self.control.clients().count()),
            ("listen", sockets(false) + self.parting.len()),
            ("fifos", sockets(true)),
            ("workers", services().map(|s| s.workers.len()).sum()),
            ("wakeups", self.triggers.len()),
            ("helpers", self.reloading.iter().count() + self.upgrading.iter().count()),
        ])
    }
}
