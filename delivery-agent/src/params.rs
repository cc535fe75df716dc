//! params - the parameters of smtpd, the delivery agent, sendmail and the sink

use worker_proto::params;

params! {
    /// Parameters of the delivery agent.
    pub struct SmtpParams {
        /// The relays mail is sent to, in order of preference: `[host]:port` or `host:port`, apart by
        /// blanks or commas. When one fails, the next one takes over in the same delivery cycle.
        /// Square brackets keep Postfix from asking for MX hosts; here names are always taken as
        /// addresses.
        relayhost: Words = "";
        /// The port of a relay that is written without one.
        smtp_tcp_port: Count = "25", "1"..="65535";
        /// The name given in EHLO.
        smtp_helo_name: Text = "$myhostname";
        /// How long connecting to one address of a relay may take.
        smtp_connect_timeout: Time = "10s", "1s"..="1h";
        /// How long the greeting and the answer to EHLO may take, each.
        smtp_helo_timeout: Time = "60s", "1s"..="1h";
        /// How long the answer to MAIL may take.
        smtp_mail_timeout: Time = "300s", "1s"..="1h";
        /// How long the answer to each RCPT may take.
        smtp_rcpt_timeout: Time = "300s", "1s"..="1h";
        /// How long the answer to DATA may take.
        smtp_data_init_timeout: Time = "120s", "1s"..="1h";
        /// How long the relay may take to accept each 64 kilobytes of a message.
        smtp_data_xfer_timeout: Time = "180s", "1s"..="1h";
        /// How long the answer to the end of a message may take. A relay that is given up too early
        /// here gets the message twice.
        smtp_data_done_timeout: Time = "600s", "1s"..="1h";
        /// How long the answer to RSET may take.
        smtp_rset_timeout: Time = "20s", "1s"..="1h";
        /// How long one session with a relay may last; messages that wait then get another one.
        smtp_connection_reuse_time_limit: Time = "300s", "1s"..="1d";
    }
}
