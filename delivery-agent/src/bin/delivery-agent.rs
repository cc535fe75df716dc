//! delivery-agent - sends what qmgr feeds to the first relay that works
#![forbid(unsafe_code)]

use std::process::ExitCode;

use delivery_agent::agent::Agent;
use delivery_agent::params::SmtpParams;
use delivery_agent::relay;
use delivery_agent::smtp::stream::Timeouts;
use worker_proto::client::Client;
use worker_proto::diagnostic::Fault;
use worker_proto::server::{self, Configured};
use worker_proto::single::{self, Single};
use worker_proto::sys::errno_text;

struct Delivery {
    agent: Agent,
    unresolved: bool,
    served: bool,
}

impl Single for Delivery {
    const FINISHES: bool = true;

    fn configure(configured: &mut Configured) -> Result<Self, Fault> {
        let params =
            SmtpParams::read(&mut configured.main_cf).map_err(|errors| server::first(&errors))?;
        let port = u16::try_from(params.smtp_tcp_port).unwrap_or(25);
        let mut relays = relay::parse_list(&params.relayhost, port)
            .map_err(|problem| Fault::new("parameter relayhost", problem))?;
        for relay in &mut relays {
            relay.resolve();
            if relay.addresses.is_empty() {
                // qmgr says so once; each new process would say it again.
                log::debug!("relay {}: {}", relay.name, relay.problem);
            }
        }
        if relays.is_empty() {
            log::warn!("parameter relayhost is empty: mail waits until it names a relay");
        }
        let unresolved = relays.iter().any(|relay| relay.addresses.is_empty());
        let timeouts = Timeouts {
            connect: params.smtp_connect_timeout,
            helo: params.smtp_helo_timeout,
            mail: params.smtp_mail_timeout,
            rcpt: params.smtp_rcpt_timeout,
            data_init: params.smtp_data_init_timeout,
            data_xfer: params.smtp_data_xfer_timeout,
            data_done: params.smtp_data_done_timeout,
            rset: params.smtp_rset_timeout,
        };
        let agent = Agent {
            relays,
            helo: params.smtp_helo_name,
            timeouts,
            session_limit: params.smtp_connection_reuse_time_limit,
            // From the queue directory, which is the root directory in a jail.
            qmgr: Some("private/qmgr".into()),
            stall: params.relay_stall_time,
        };
        Ok(Self { agent, unresolved, served: false })
    }

    fn serve(&mut self, client: Client) {
        self.served = true;
        match client.set_nonblocking(true) {
            Ok(()) => self.agent.serve(client),
            Err(e) => log::warn!("connection of qmgr: {}", errno_text(&e)),
        }
    }

    /// Names are looked up before the jail, where the resolver's files are: the next process may
    /// find what this one has not.
    fn wants_to_end(&self) -> bool {
        self.unresolved && self.served
    }
}

fn main() -> ExitCode {
    single::main::<Delivery>("delivery-agent")
}
