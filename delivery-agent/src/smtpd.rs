//! smtpd - takes mail over SMTP and hands it to qmgr
//!
//! A message is acknowledged when qmgr says that it is on disk, and not before.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use log::{debug, info, warn};
use worker_proto::client::{Client, write_within};
use worker_proto::clock::{self, Time};
use worker_proto::diagnostic::Fault;
use worker_proto::server::{self, Configured};
use worker_proto::single::{Others, Single};

use crate::maildrop::{self, Limits, MAX_RECIPIENTS};
use crate::message::Message;
use crate::networks::Networks;
use crate::params::{SmtpdParams, SubmitParams};
use crate::smtp::server::{Answer, Backend, Config, Envelope, Server};
use crate::submission::{Host, Source};

mod conversation;
mod qmgr;

pub use conversation::{Ending, Terms, converse};
pub use qmgr::Qmgr;

/// The daemon.
#[derive(Debug)]
pub struct Smtpd {
    config: Config,
    host: Host,
    networks: Networks,
    timeout: Duration,
    stress_timeout: Duration,
    qmgr: Qmgr,
}

impl Single for Smtpd {
    fn configure(configured: &mut Configured) -> Result<Self, Fault> {
        let params =
            SmtpdParams::read(&mut configured.main_cf).map_err(|errors| server::first(&errors))?;
        let submit =
            SubmitParams::read(&mut configured.main_cf).map_err(|errors| server::first(&errors))?;
        // What a worker that was started before the stress came does when it comes.
        let mut stressed = configured.main_cf.clone();
        stressed.set("stress", "yes");
        let stressed = SmtpdParams::read(&mut stressed).map_err(|errors| server::first(&errors))?;
        let networks = Networks::parse(&params.mynetworks)
            .map_err(|problem| Fault::new("parameter mynetworks", problem))?;
        let limits = Limits::new(submit.message_size_limit);
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Ok(Self {
            config: Config {
                hostname: configured.common.myhostname.clone(),
                banner: params.smtpd_banner.clone(),
                message_size_limit: limits.bytes,
                line_length_limit: count(params.line_length_limit),
                recipient_limit: count(params.smtpd_recipient_limit),
                error_limit: params.smtpd_hard_error_limit,
                junk_limit: params.smtpd_junk_command_limit,
                tokens: false,
                forbidden: params.smtpd_forbidden_commands.clone(),
            },
            host: Host::new(&configured.common, submit.hopcount_limit, limits),
            networks,
            timeout: params.smtpd_timeout,
            stress_timeout: stressed.smtpd_timeout.min(params.smtpd_timeout),
            // Relative to the queue directory, which is the root directory in a jail.
            qmgr: Qmgr::new(PathBuf::from("private/qmgr"), params.ipc_timeout),
        })
    }

    fn serve(&mut self, client: Client) {
        self.talk(client, None);
    }

    fn serve_among(&mut self, client: Client, others: &Others<'_>) {
        self.talk(client, Some(others));
    }
}

impl Smtpd {
    fn talk(&mut self, client: Client, others: Option<&Others<'_>>) {
        // Every read and write has a deadline of its own.
        if let Err(e) = client.set_nonblocking(true) {
            return warn!("{}", Fault::io("prepare a connection", &e));
        }
        let source = match &client {
            Client::Tcp(_, peer) => {
                let address = peer.ip().to_canonical();
                if !self.networks.contains(address) {
                    return self.turn_away(client, address);
                }
                Source::Network { address: literal(address), helo: String::new(), protocol: "SMTP" }
            }
            Client::Unix(_, uid) => Source::User(*uid),
        };
        let name = source.to_string();
        debug!("connect from {name}");
        let mut config = self.config.clone();
        if let Source::User(_) = source {
            // sendmail(1) hands a message in whole or not at all.
            config.recipient_limit = config.recipient_limit.max(MAX_RECIPIENTS);
            config.tokens = true;
        }
        let mut backend = Desk { source, host: &self.host, qmgr: &mut self.qmgr };
        let terms = Terms { timeout: self.timeout, stress_timeout: self.stress_timeout, others };
        match converse(client, Server::new(config), &mut backend, terms) {
            Ending::Closed => debug!("disconnect from {name}"),
            Ending::Lost => info!("lost connection with {name}"),
            Ending::TimedOut => info!("timeout with {name}"),
            Ending::MadeRoom => info!("closed an idle connection with {name}: other clients wait"),
            Ending::Foreign(line) => warn!("non-SMTP command from {name}: {line}"),
        }
    }

    fn turn_away(&self, mut client: Client, address: IpAddr) {
        info!("reject: connect from {address}: not in mynetworks");
        let hostname = &self.config.hostname;
        let text = format!("554 5.7.1 {hostname} access denied for {address}\r\n");
        // A client that cannot be told has gone.
        let _ = write_within(&mut client, text.as_bytes(), Time::now() + self.stress_timeout);
    }
}

fn literal(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => address.to_string(),
        IpAddr::V6(_) => format!("IPv6:{address}"),
    }
}

/// Where messages are handed over.
struct Desk<'a> {
    source: Source,
    host: &'a Host,
    qmgr: &'a mut Qmgr,
}

impl Backend for Desk<'_> {
    fn sender(&mut self, _: &str) -> Result<(), Answer> {
        Ok(())
    }

    fn recipient(&mut self, _: &str) -> Result<(), Answer> {
        Ok(())
    }

    fn message(&mut self, envelope: &Envelope, body: Vec<u8>) -> Answer {
        let mut source = self.source.clone();
        if let Source::Network { helo, protocol, .. } = &mut source {
            helo.clone_from(&envelope.helo);
            *protocol = if envelope.esmtp { "ESMTP" } else { "SMTP" };
        }
        let recipients = envelope.recipients.clone();
        let sender = &envelope.sender;
        let message = Message::parse(&body);
        // It may be large.
        drop(body);
        let submission = self.host.completed(message, sender, recipients, &source, clock::wall());
        let answer = match submission {
            Ok(mut submission) => {
                if !envelope.token.is_empty() {
                    submission.token = maildrop::token(&envelope.token);
                }
                self.qmgr.offer(&submission)
            }
            Err(answer) => answer,
        };
        if !answer.is_positive() {
            info!("reject: message from {source}, from=<{sender}>: {answer}");
        }
        answer
    }
}

#[cfg(test)]
mod tests;
