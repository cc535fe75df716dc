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
        /// A message that waits longer than this for a relay's answer goes to the next relay, if
        /// there is one that works, and the relay counts as failing. Once its text is being sent it
        /// waits as long as the deadline of the stage says, so that it does not arrive twice; the relay counts
        /// as slow then, and other messages go to the next one as long as that lasts.
        relay_stall_time: Time = "10s", "1s"..="1h";
    }
}

params! {
    /// Parameters of all that takes mail: smtpd, sendmail, and qmgr for the drop directory.
    pub struct SubmitParams {
        /// The largest message, in bytes; 0 for 500 megabytes, which no message may exceed.
        message_size_limit: Count = "10240000", "0"..="500000000";
        /// How many Received fields a message may have before it is taken for a mail loop.
        hopcount_limit: Count = "50", "1"..="10000";
    }
}

params! {
    /// Parameters of smtpd.
    pub struct SmtpdParams {
        /// The greeting, behind its code.
        smtpd_banner: Text = "$myhostname ESMTP $mail_name";
        /// How long a client may take for a command, or for each 64 kilobytes of a message. Under
        /// stress, when every process is busy, it is shorter.
        smtpd_timeout: Time = "${stress?{10}:{300}}s", "1s"..="1d";
        /// How many recipients a message may have.
        smtpd_recipient_limit: Count = "1000", "1"..="1000000";
        /// After this many refused commands the session ends.
        smtpd_hard_error_limit: Count = "${stress?{1}:{20}}", "1"..="1000000";
        /// How many commands without a message, such as NOOP and RSET, a client may send; each one
        /// beyond that counts as a refused command.
        smtpd_junk_command_limit: Count = "${stress?{1}:{100}}", "1"..="1000000";
        /// Commands that no SMTP client sends: the session ends at once, so that a web page cannot make
        /// a browser hand in mail. So does one whose first line is not SMTP, and any line that does not
        /// begin with a letter.
        smtpd_forbidden_commands: Words = "CONNECT GET POST";
        /// The longest command line, in bytes.
        line_length_limit: Count = "2048", "512"..="1000000";
        /// The networks whose clients may hand in mail over TCP. A client on a socket in the file
        /// system needs none of it: the directory's mode decides who can reach it.
        mynetworks: Words = "127.0.0.0/8 [::1]/128";
        /// How long a process waits for another one of this instance.
        ipc_timeout: Time = "30s", "1s"..="1d";
    }
}

params! {
    /// Parameters of sinkd, which is for tests alone.
    pub struct SinkParams {
        /// The Maildir for all mail. A relative path begins at queue_directory.
        sink_maildir: Text = "sink";
        /// Recipients that are refused for good (550).
        sink_reject: Words = "";
        /// Recipients that are put off (450).
        sink_defer: Words = "";
        /// Whether a message is on disk before it is acknowledged.
        sink_sync: Flag = "yes";
    }
}
