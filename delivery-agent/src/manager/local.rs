//! local - whose mail stays on this host, and who gets it instead (M3)
//!
//! A name without a domain, or at a domain of `mydestination`, is looked up in `alias_maps`, then goes
//! to the addresses of alerts.cf; without any there, a name without a domain gets `myorigin`.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;

use worker_proto::files;
use worker_proto::identity;
use worker_proto::server::Configured;
use worker_proto::sys::errno_text;

use super::QmgrParams;
use super::setup::{self, Owner};
use crate::alerts_cf::{self, AlertsCf};
use crate::aliases::Aliases;

/// What is known of local names.
#[derive(Debug, Default)]
pub(super) struct Local {
    pub(super) alerts: AlertsCf,
    pub(super) aliases: Aliases,
    /// In lower case.
    pub(super) domains: HashSet<String>,
    pub(super) origin: String,
}

impl Local {
    /// Reads alerts.cf and the files of `alias_maps`. With errors in them, mail to local names still
    /// has somewhere to go.
    pub(super) fn configure(configured: &Configured, params: &QmgrParams, owner: Owner) -> Self {
        let mut aliases = Aliases::default();
        // Such a file may belong to anybody: it is read with no more rights than the queue's.
        let include = |path: &str| {
            let read = || read(path);
            identity::run_as(owner.0.into(), owner.1.into(), read)
        };
        for name in &params.alias_maps {
            // Postfix has the kind of the map before it.
            let path = name.split_once(':').map_or(name.as_str(), |(_, path)| path);
            match read(path) {
                Ok(text) => {
                    for complaint in aliases.add(path, &text, &include) {
                        log::warn!("{complaint}");
                    }
                }
                Err(cause) => log::error!("alias_maps: {path}: {cause}"),
            }
        }
        Self {
            alerts: setup::alerts(configured),
            aliases,
            domains: params.mydestination.iter().map(|domain| domain.to_lowercase()).collect(),
            origin: configured.common.myorigin.clone(),
        }
    }

    /// The addresses for recipients. Nobody gets a message twice.
    pub(super) fn complete(&self, recipients: &[String]) -> Vec<String> {
        let admins = self.alerts.recipients(alerts_cf::MAIL);
        let mut seen = HashSet::new();
        let mut complete = Vec::new();
        let mut add = |address: Cow<'_, str>| {
            if !seen.contains(address.as_ref()) {
                seen.insert(address.clone().into_owned());
                complete.push(address.into_owned());
            }
        };
        for recipient in recipients {
            let Some(name) = self.local_part(recipient) else {
                add(Cow::Borrowed(recipient));
                continue;
            };
            let targets = self.aliases.expand(name).filter(|targets| !targets.is_empty());
            for target in targets.unwrap_or_else(|| vec![recipient]) {
                match self.local_part(target) {
                    Some(_) if !admins.is_empty() => {
                        admins.iter().for_each(|&admin| add(Cow::Borrowed(admin)));
                    }
                    Some(name) if name.len() == target.len() => {
                        add(Cow::Owned(format!("{name}@{}", self.origin)));
                    }
                    _ => add(Cow::Borrowed(target)),
                }
            }
        }
        complete
    }

    /// The name at this host, if it is one.
    fn local_part<'a>(&self, address: &'a str) -> Option<&'a str> {
        match address.rsplit_once('@') {
            None => Some(address),
            Some((name, domain)) => self.domains.contains(&domain.to_lowercase()).then_some(name),
        }
    }
}

fn read(path: &str) -> Result<String, String> {
    let bytes = files::bytes(Path::new(path)).map_err(|e| errno_text(&e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use worker_proto::clock::Time;

    fn local(alerts: &str, aliases: &str) -> Local {
        let mut local = Local {
            alerts: AlertsCf::parse("alerts.cf", alerts).0,
            domains: HashSet::from(["localhost".to_owned(), "h.example".to_owned()]),
            origin: "h.example".to_owned(),
            ..Local::default()
        };
        let complaints = local.aliases.add("aliases", aliases, &|_| Err(String::new()));
        assert_eq!(complaints, [] as [String; 0]);
        local
    }

    fn complete(local: &Local, names: &[&str]) -> Vec<String> {
        local.complete(&names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn m3_names_without_a_domain_go_to_the_administrators() {
        let names = ["root", "a@x", "a@x"];
        assert_eq!(complete(&local("", ""), &names), ["root@h.example", "a@x"]);
        let some = local("ops@x\nlog@x but not on {mail}\n", "");
        assert_eq!(complete(&some, &["root", "daemon", "a@x"]), ["ops@x", "a@x"]);
    }

    #[test]
    fn m3_aliases_come_before_the_administrators() {
        let aliases = "root: joe, a@x\njoe: joe@y\nlost: gone\n";
        let names = ["root", "ROOT@LocalHost", "other@h.example", "root@x", "lost", "a@x"];
        let some = local("ops@x\n", aliases);
        assert_eq!(complete(&some, &names), ["joe@y", "a@x", "ops@x", "root@x"]);
        let none = local("", aliases);
        let want = ["joe@y", "a@x", "other@h.example", "root@x", "gone@h.example"];
        assert_eq!(complete(&none, &names), want);
    }

    /// It was quadratic: 3.7 s at 60,000 recipients, in which qmgr did nothing else.
    #[test]
    fn many_recipients_take_no_more_time_each_than_few_do() {
        let names: Vec<_> = (0..100_000).map(|n| format!("user{n}@x.example")).collect();
        let start = Time::now();
        assert_eq!(local("", "").complete(&names).len(), names.len());
        // Minutes, when it was quadratic.
        assert!(Time::now().since(start) < Duration::from_secs(5));
    }
}
