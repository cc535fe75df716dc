//! setup - what qmgr does before it gives up its privileges

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;

use nix::sys::stat::{Mode, umask};
use worker_proto::diagnostic::Fault;
use worker_proto::directory::{self, Access};
use worker_proto::files;
use worker_proto::identity;
use worker_proto::jail::mail_owner;
use worker_proto::params::CommonParams;
use worker_proto::server::Configured;

use super::QmgrParams;
use super::in_flight::InFlight;
use crate::alerts_cf::{self, AlertsCf};
use crate::maildrop;
use crate::store::{MessageNo, Store};

/// Where the store is, below the queue directory.
pub(super) const STORE: &str = "queue";

/// User and group of the queue.
pub(super) type Owner = (u32, u32);

/// Makes the queue's directories where they are missing, as under another master than ours.
pub(super) fn directories(common: &CommonParams) -> Result<Owner, Fault> {
    let user = mail_owner(&common.mail_owner)?;
    let owner = (user.uid.as_raw(), user.gid.as_raw());
    for (path, mode) in [(STORE, 0o700), (maildrop::DIRECTORY, 0o1730)] {
        directory::make(Path::new(path), Access { uid: owner.0, gid: owner.1, mode })
            .map_err(|e| Fault::io(format!("make directory {path}"), &e))?;
    }
    Ok(owner)
}

/// Opens the store as the account that will own its files. By path inside the jail it would be
/// another one for SQLite.
pub(super) fn open_store(
    params: &QmgrParams,
    owner: Owner,
) -> Result<(Store, Option<String>), Fault> {
    umask(Mode::from_bits_truncate(0o077));
    // Relative to the queue directory, where the process is now and will be in its jail.
    let open = || Store::open(Path::new(STORE), params.queue_minfree);
    identity::run_as(owner.0.into(), owner.1.into(), open)
}

/// Opens the list of what is in flight, and tells what it holds.
pub(super) fn open_in_flight(owner: Owner) -> (InFlight, Vec<MessageNo>) {
    identity::run_as(owner.0.into(), owner.1.into(), || InFlight::open(Path::new(STORE)))
}

/// Reads alerts.cf. Without one, and with errors in it, mail to local names still has somewhere to
/// go.
pub(super) fn alerts(configured: &Configured) -> AlertsCf {
    let directory = std::env::var_os(worker_proto::abi::CONFIG_ENV)
        .unwrap_or_else(|| worker_proto::server::CONFIG_DIRECTORY.into());
    let path = Path::new(&directory).join("alerts.cf");
    match files::bytes(&path) {
        Ok(bytes) => {
            let name = path.display().to_string();
            let (alerts, diagnostics) = AlertsCf::parse(&name, &String::from_utf8_lossy(&bytes));
            diagnostics.iter().for_each(|d| log::error!("{d}"));
            alerts
        }
        Err(e) => {
            if e.kind() != ErrorKind::NotFound {
                log::error!("{}", Fault::io(format!("open {}", path.display()), &e));
            }
            log::debug!(
                "{}: mail to local names goes to @{}",
                configured.service,
                configured.common.myorigin
            );
            AlertsCf::default()
        }
    }
}

/// Gives recipients without a domain an address: those of alerts.cf that want mail, or their name at
/// this host's domain. Nobody gets a message twice.
pub(super) fn complete(
    recipients: &[String],
    alerts: &AlertsCf,
    common: &CommonParams,
) -> Vec<String> {
    let admins = alerts.recipients(alerts_cf::MAIL);
    let mut seen = HashSet::new();
    let mut complete = Vec::new();
    let mut add = |address: Cow<'_, str>| {
        if !seen.contains(address.as_ref()) {
            seen.insert(address.clone().into_owned());
            complete.push(address.into_owned());
        }
    };
    for recipient in recipients {
        match recipient.contains('@') {
            true => add(Cow::Borrowed(recipient)),
            false if admins.is_empty() => {
                add(Cow::Owned(format!("{recipient}@{}", common.myorigin)));
            }
            false => admins.iter().for_each(|&admin| add(Cow::Borrowed(admin))),
        }
    }
    complete
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use worker_proto::clock::Time;
    use worker_proto::main_cf::MainCf;

    #[test]
    fn m3_names_without_a_domain_go_to_the_administrators() {
        let (mut main_cf, _) = MainCf::parse("main.cf", "myhostname = h.example\n");
        let common = CommonParams::read(&mut main_cf).unwrap();
        let to = |names: &[&str], alerts: &AlertsCf| {
            let names: Vec<_> = names.iter().map(|&n| n.to_owned()).collect();
            complete(&names, alerts, &common)
        };
        let none = AlertsCf::default();
        assert_eq!(to(&["root", "a@x", "a@x"], &none), ["root@h.example", "a@x"]);
        let (some, _) = AlertsCf::parse("alerts.cf", "ops@x\nlog@x but not on {mail}\n");
        assert_eq!(to(&["root", "daemon", "a@x"], &some), ["ops@x", "a@x"]);
    }

    /// It was quadratic: 3.7 s at 60,000 recipients, in which qmgr did nothing else.
    #[test]
    fn many_recipients_take_no_more_time_each_than_few_do() {
        let (mut main_cf, _) = MainCf::parse("main.cf", "myhostname = h.example\n");
        let common = CommonParams::read(&mut main_cf).unwrap();
        let names: Vec<_> = (0..100_000).map(|n| format!("user{n}@x.example")).collect();
        let start = Time::now();
        assert_eq!(complete(&names, &AlertsCf::default(), &common).len(), names.len());
        // Minutes, when it was quadratic.
        assert!(Time::now().since(start) < Duration::from_secs(5));
    }
}
