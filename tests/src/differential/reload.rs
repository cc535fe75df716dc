//! reload - a master gets another table

use nix::sys::signal::Signal;

use super::{Kind, Master, Place};
use crate::probe::Probe;
use crate::wait;

/// How a reload went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// The new table is in force.
    Done,
    /// The old one is.
    Refused,
    /// The master has ended.
    Died,
}

impl Master {
    /// Gives it a new table and waits until that is in force, is refused, or has killed it. A service
    /// behind all others tells: it answers when everything before it is done.
    ///
    /// # Panics
    /// None of these happens.
    pub fn reload(&mut self, table: &str) -> Reloaded {
        self.reloads += 1;
        let last = format!("reloaded{}", self.reloads);
        let line = format!("{last} unix n n n - - probe_worker\n");
        let socket = self.path("q/public").join(last);
        self.reload_until(&format!("{table}{line}"), |_| {
            Probe::unix(&socket).and_then(|mut probe| probe.report()).is_ok()
        })
    }

    /// The same with a table that is left as it is. Ours says when it is in force; Postfix's last
    /// closes the sockets of removed services, of which `gone` is the last.
    ///
    /// # Panics
    /// None of these happens.
    pub fn reload_without(&mut self, gone: &Place, table: &str) -> Reloaded {
        self.reload_until(table, |master| match master.kind {
            Kind::Ours => master.log().count("reload done") > 0,
            // In this order: one that ends has no descriptors left.
            Kind::Postfix => !master.listens().contains(gone) && master.has_descriptors(),
        })
    }

    fn reload_until(&mut self, table: &str, done: impl Fn(&Self) -> bool) -> Reloaded {
        self.table(table);
        let before = self.log().count("reload refused");
        self.signal(Signal::SIGHUP);
        wait::until("the reload", wait::LONG, || {
            if self.has_ended() {
                return Some(Reloaded::Died);
            }
            if self.log().count("reload refused") > before {
                return Some(Reloaded::Refused);
            }
            done(self).then_some(Reloaded::Done)
        })
    }
}
