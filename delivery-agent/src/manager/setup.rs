//! setup - what qmgr does before it gives up its privileges

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
use crate::alerts_cf::AlertsCf;
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
