//! smtpd - takes mail over SMTP and hands it to qmgr
//!
//! A message is acknowledged when qmgr says that it is on disk, and not before.

use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use log::{debug, info, warn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use worker_proto::client::Client;
use worker_proto::clock::{self, Time};
use worker_proto::diagnostic::Fault;
use worker_proto::server::{self, Configured};
use worker_proto::single::Single;
use worker_proto::sys::errno_text;

use crate::networks::Networks;
use crate::params::SmtpdParams;
use crate::smtp::server::{Answer, Backend, Config, Envelope, Server};
use crate::submission::{Host, Source};
use crate::wire::{self, OfferReply, Submission};

/// The daemon.
#[derive(Debug)]
pub struct Smtpd {
    config: Config,
    host: Host,
    networks: Networks,
    timeout: Duration,
    qmgr: Qmgr,
}

impl Single for Smtpd {
    fn configure(configured: &mut Configured) -> Result<Self, Fault> {
        let params =
            SmtpdParams::read(&mut configured.main_cf).map_err(|errors| server::first(&errors))?;
        let networks = Networks::parse(&params.mynetworks)
            .map_err(|problem| Fault::new("parameter mynetworks", problem))?;
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Ok(Self {
            config: Config {
                hostname: configured.common.myhostname.clone(),
                banner: params.smtpd_banner.clone(),
                message_size_limit: params.message_size_limit,
                line_length_limit: count(params.line_length_limit),
                recipient_limit: count(params.smtpd_recipient_limit),
                error_limit: params.smtpd_hard_error_limit,
            },
            host: Host::new(&configured.common, params.hopcount_limit),
            networks,
            timeout: params.smtpd_timeout,
            // Relative to the queue directory, which is the root directory in a jail.
            qmgr: Qmgr::new(PathBuf::from("private/qmgr"), params.ipc_timeout),
        })
    }

    fn serve(&mut self, client: Client) {
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
        let mut backend = Desk { source, host: &self.host, qmgr: &mut self.qmgr };
        let ending = converse(client, Server::new(self.config.clone()), &mut backend, self.timeout);
        match ending {
            Ending::Closed => debug!("disconnect from {name}"),
            Ending::Lost => info!("lost connection with {name}"),
            Ending::TimedOut => info!("timeout with {name}"),
        }
    }
}

impl Smtpd {
    fn turn_away(&self, mut client: Client, address: IpAddr) {
        info!("reject: connect from {address}: not in mynetworks");
        let hostname = &self.config.hostname;
        let text = format!("554 5.7.1 {hostname} takes no mail from {address}\r\n");
        // A client that cannot be told has gone.
        let _ = client.set_timeout(self.timeout);
        let _ = client.write_all(text.as_bytes());
    }
}

fn literal(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => address.to_string(),
        IpAddr::V6(_) => format!("IPv6:{address}"),
    }
}

/// How a conversation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With QUIT, or by the server's will.
    Closed,
    /// The client has gone.
    Lost,
    /// The client said nothing, or too little, for too long.
    TimedOut,
}

/// Bytes of a message that count as a sign of life.
const BLOCK: usize = 64 * 1024;

/// Has a conversation with one client. Each command, and each block of a message, has the time of
/// `timeout`, however slowly it drips in.
pub fn converse<S, B>(
    mut stream: S,
    mut server: Server,
    backend: &mut B,
    timeout: Duration,
) -> Ending
where
    S: Read + Write + AsFd,
    B: Backend,
{
    let mut bytes = vec![0; 32 * 1024];
    let mut since_life = 0;
    let mut deadline = Time::now() + timeout;
    loop {
        if !server.output().is_empty() {
            let output = server.output();
            let count = output.len();
            if stream.write_all(output).and_then(|()| stream.flush()).is_err() {
                return Ending::Lost;
            }
            server.wrote(count);
            since_life = BLOCK;
        }
        if server.is_closing() {
            return Ending::Closed;
        }
        let now = Time::now();
        if since_life >= BLOCK {
            since_life = 0;
            deadline = now + timeout;
        }
        if !readable(&stream, deadline.since(now)) {
            server.close("4.4.2", "timeout exceeded");
            let _ = stream.write_all(server.output());
            return Ending::TimedOut;
        }
        worker_proto::watchdog::feed();
        match stream.read(&mut bytes) {
            Ok(0) => return Ending::Lost,
            Ok(count) => {
                server.input(&bytes[..count], backend);
                since_life += if server.is_in_message() { count } else { 0 };
            }
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(_) => return Ending::Lost,
        }
    }
}

fn readable(stream: &impl AsFd, within: Duration) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(n) => n > 0,
        Err(errno) => errno == Errno::EINTR,
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
        let submission = self.host.submission(&body, sender, recipients, &source, clock::wall());
        let answer = match submission {
            Ok(submission) => self.qmgr.offer(&submission),
            Err(answer) => answer,
        };
        if !answer.is_positive() {
            info!("reject: message from {source}, from=<{sender}>: {answer}");
        }
        answer
    }
}

/// The connection to qmgr; it is kept.
#[derive(Debug)]
pub struct Qmgr {
    path: PathBuf,
    timeout: Duration,
    stream: Option<UnixStream>,
}

impl Qmgr {
    /// Connects when there is something to say.
    #[must_use]
    pub const fn new(path: PathBuf, timeout: Duration) -> Self {
        Self { path, timeout, stream: None }
    }

    /// Offers a message and gives the answer for the client.
    pub fn offer(&mut self, submission: &Submission) -> Answer {
        let mut result = self.try_offer(submission);
        // A qmgr that ended in the middle is started again. Whether it had queued the message, its
        // successor knows by the token, so the client need not come again and nothing is doubled.
        for _ in 1..OFFERS {
            if !result.as_ref().is_err_and(is_cut) {
                break;
            }
            result = self.try_offer(submission);
        }
        match result {
            Ok(OfferReply::Queued { id }) => {
                Answer::new(250, "2.0.0", format!("Ok: queued as {id}"))
            }
            Ok(OfferReply::Refused { code, enhanced, text }) => Answer::new(code, enhanced, text),
            Err(e) => {
                warn!("{}", Fault::io(format!("offer to {}", self.path.display()), &e));
                Answer::new(451, "4.3.0", format!("queue not available: {}", errno_text(&e)))
            }
        }
    }

    fn try_offer(&mut self, submission: &Submission) -> std::io::Result<OfferReply> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream = UnixStream::connect(&self.path)?;
                stream.set_read_timeout(Some(self.timeout))?;
                stream.set_write_timeout(Some(self.timeout))?;
                stream
            }
        };
        let reply = wire::offer(&mut stream, submission.clone())?;
        self.stream = Some(stream);
        Ok(reply)
    }
}

/// How often a message is offered when the connection is cut.
const OFFERS: usize = 4;

/// Whether the other end has gone, as against not being there or not answering.
fn is_cut(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

#[cfg(test)]
mod tests;
