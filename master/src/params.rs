//! params - the parameters that the master itself reads

worker_proto::params! {
    /// Parameters of the master; see also [`worker_proto::params::CommonParams`].
    pub struct MasterParams {
        /// The longest pause of a service after failures. The first pause is
        /// service_throttle_start; each further failure in a row doubles it.
        service_throttle_time: Time = "60s", "1s"..="1d";
        /// The first pause of a service after a failure.
        service_throttle_start: Time = "1s", "1s"..="1d";
        /// Services not to run: `type`, or `name/type`; `!` before an item makes it run. The first
        /// item that matches counts. The rest of a disabled line is not looked at.
        master_service_disable: Words = "";
        /// Where services of type inet listen that name no host: `all`, `loopback-only`, or names and
        /// addresses.
        inet_interfaces: Words = "all";
        /// The protocols in use: `all`, or `ipv4` and `ipv6`.
        inet_protocols: Words = "all";
        /// The environment that workers get: names, or `name=value`.
        import_environment: Text = "MAIL_CONFIG MAIL_DEBUG MAIL_LOGTAG TZ XAUTHORITY DISPLAY LANG=C POSTLOG_SERVICE POSTLOG_HOSTNAME XDG_RUNTIME_DIR";
        /// Ports by name, as `name=number`, before /etc/services is asked.
        known_tcp_ports: Words = "lmtp=24, smtp=25, smtps=submissions=465, submission=587";
        /// At the first start an address that is in use stops the start. With "no" that service is
        /// tried again and the others run.
        strict_start: Flag = "yes";
        /// How long the workers of a removed service may take to finish their clients before SIGTERM.
        stop_grace: Time = "0s", "0s"..="1d";
        /// How long a reload waits for the addresses of hosts that master.cf and inet_interfaces name.
        /// Without them nothing changes.
        resolver_timeout: Time = "60s", "1s"..="1h";
        /// How many workers of a service may be on their way up together when clients wait. Set it for
        /// one service with NAME_start_burst.
        start_burst: Count = "1", "1"..="1000";
        /// How many idle workers a service keeps without a client. Set it for one service with
        /// NAME_min_spare.
        min_spare: Count = "0", "0"..="1000";
        /// With "postfix", what differs from Postfix's master in a way that can be seen is as there:
        /// numbers are read as far as they are digits; every pause lasts service_throttle_time, and a
        /// reload does not end it; a worker that ends at once with status 0 makes no pause, and the
        /// end of one that is lost or retired brings no wakeup before its time; a local service at its limit is silent; the
        /// socket of a removed service stays. What would end the master, let it hang or lose clients
        /// there does not come back with it: see tests/DIFFERENCES.md.
        compat: Text = "";
        /// Below which the control groups of services with NAME_cgroup or a cgroup limit are made, such
        /// as /sys/fs/cgroup/system.slice/belfry.service; it must be delegated to the master (systemd:
        /// Delegate=yes), which moves to a group of its own in it. Empty: those limits are not set.
        cgroup_root: Text = "";
        /// Orphans of workers become children of the master (PR_SET_CHILD_SUBREAPER) and end with it,
        /// whatever session they have made for themselves.
        subreaper: Flag = "no";
        /// For trials: an ordinary user may start the master, and every worker then runs as that user.
        /// The columns unpriv and chroot have no effect, and files belong to that user, not to
        /// mail_owner.
        run_unprivileged: Flag = "no";
        /// The command that the master runs with -D, by /bin/sh, when it serves; `$process_name` and
        /// `$process_id` are its own.
        debugger_command: Text = "";
    }
}

impl MasterParams {
    /// Whether Postfix's behaviour is asked for where ours differs.
    #[must_use]
    pub fn postfix_compat(&self) -> bool {
        self.compat == "postfix"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker_proto::main_cf::MainCf;
    use worker_proto::params::CommonParams;

    #[test]
    fn c01_an_empty_main_cf_means_what_it_means_to_postfix() {
        let mut main_cf = MainCf::parse("main.cf", "").0;
        let common = CommonParams::read(&mut main_cf).unwrap();
        let master = MasterParams::read(&mut main_cf).unwrap();
        assert_eq!(common.default_process_limit, 100);
        assert_eq!(master.service_throttle_time.as_secs(), 60);
        assert_eq!(master.inet_interfaces, ["all"]);
        assert!(master.master_service_disable.is_empty() && !master.postfix_compat());
        assert!(common.maillog_file.is_empty(), "syslog it is");
        let mut low = MainCf::parse("main.cf", "service_throttle_time = 0s\n").0;
        assert!(MasterParams::read(&mut low).is_err(), "a second is the least");
    }
}
