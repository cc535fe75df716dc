//! qmgr - the connection to the queue manager

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use log::warn;
use worker_proto::diagnostic::Fault;
use worker_proto::sys::errno_text;

use crate::smtp::server::Answer;
use crate::wire::{self, OfferReply, Submission};

/// The connection to qmgr; it is kept.
#[derive(Debug)]
pub struct Qmgr {
    path: PathBuf,
    timeout: Duration,
    pub(super) stream: Option<UnixStream>,
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
            if !result.as_ref().is_err_and(wire::is_cut) {
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
        let reply = wire::offer(&mut stream, submission)?;
        self.stream = Some(stream);
        Ok(reply)
    }
}

/// How often a message is offered when the connection is cut.
const OFFERS: usize = 4;
