//! Every way in which our master is meant to differ from Postfix's, as far as a user can see it.

use belfry_tests::differential::Decision;

macro_rules! decisions {
    ($($name:ident $id:literal: $title:literal; $postfix:literal; $ours:literal; [$($test:literal),*])+) => {
        $(pub(crate) static $name: Decision = Decision {
            id: $id,
            title: $title,
            postfix: $postfix,
            ours: $ours,
            tests: &[$($test),*],
        };)+

        /// All of them, in the order of the document.
        pub(crate) static ALL: &[&Decision] = &[$(&$name),+];
    };
}

decisions! {
    W01 "W01": "Errors in the configuration";
    "The first error in main.cf or master.cf ends the master, also at a reload, when half of the new table may be in force.";
    "All errors of both files are told at once. At a reload the running table stays in force as a whole.";
    ["w01_a_bad_line_at_reload_changes_nothing_and_belfry_prints_it"]

    EMPTY "empty": "A table without services at a reload";
    "All services are removed.";
    "The reload is refused, since the file was more often cut short than emptied on purpose; `belfry reload --allow-empty` accepts it.";
    ["a_table_without_services_is_refused_at_reload_unless_it_is_wanted"]

    W02 "W02": "An address that cannot be bound";
    "The master ends, also at a reload.";
    "At a reload, and at the start with `strict_start = no`, that service alone is without its socket, and is tried again and again.";
    ["w02_a_busy_port_at_reload_stops_one_service_which_is_tried_again"]

    W03 "W03": "A removed service whose worker ignores SIGTERM";
    "The master spins until the worker ends, and serves nobody meanwhile.";
    "The others are served; after `stop_kill_time` the worker gets SIGKILL.";
    ["w03_a_removed_worker_that_ignores_sigterm_stops_nobody_and_is_killed"]

    W04 "W04": "A worker that ends with status 0 and has served nobody";
    "The next one is started at once, as long as a client waits: a thousand starts in a second, without a word.";
    "The service pauses as after a failure. `compat = postfix` does as Postfix.";
    ["w04_a_worker_that_ends_at_once_without_work_is_not_started_in_a_frenzy"]

    W05 "W05": "A worker that writes another one's process id";
    "All workers of a service share one stream socket. The process id of a worker of another service makes the master panic.";
    "Each worker has a channel of its own (SOCK_SEQPACKET), and is known by it. What it says of others is ignored, with a line in the log.";
    ["j02_j03_j04_j06_j07_w05_a_worker_that_lies_harms_nobody"]

    W06 "W06": "The pause after a failure";
    "Always `service_throttle_time`; neither a reload nor a worker that works ends it.";
    "The first lasts `service_throttle_start`, each further one in a row twice as long, up to `service_throttle_time`. A worker that has served a client, a reload that changes the service, and `belfry reset` end the row. `compat = postfix` does as Postfix.";
    ["w06_pauses_grow_and_a_served_client_a_change_or_the_operator_ends_them"]

    W07 "W07": "Workers that come up slowly";
    "One is started after the other.";
    "The same, unless `start_burst` or `min_spare` is set.";
    ["w07_with_a_burst_clients_do_not_wait_for_each_others_workers", "w07_spare_workers_wait_for_clients"]

    W08 "W08": "Workers that a reload or stress has told to end";
    "They count as free for clients while they last, and what they still write is lost: a client can wait until such a worker ends.";
    "They are not counted on, and what they write arrives.";
    ["w08_a_worker_between_accept_and_its_word_does_not_stall_the_service", "m01_m02_the_last_worker_but_one_brings_stress"]

    W09 "W09": "inet_interfaces and inet_protocols at a reload";
    "A change is ignored with a warning.";
    "It takes effect; queue_directory alone needs a stop and a start.";
    ["w09_inet_interfaces_changes_at_reload"]

    W10 "W10": "Clients of a removed service";
    "Its workers get SIGTERM at once.";
    "The same, unless `stop_grace` gives them time.";
    ["w03_w10_a_removed_service_goes_from_grace_to_sigterm_to_sigkill_to_gone"]

    W11 "W11": "Status";
    "Only the log.";
    "`belfry status` and `belfry metrics`, by the control socket pid/control.";
    ["i01_i03_a_worker_serves_one_client_after_the_other"]

    W12 "W12": "A signal for a worker between fork and exec";
    "The master's own handler runs in the worker.";
    "Signals are blocked until the worker's own program runs.";
    []

    W13 "W13": "Checking a table";
    "`postfix check` does not read master.cf.";
    "`belfry check` and `belfry diff` read it as the master does.";
    ["every_error_is_told_at_start_and_nothing_is_started"]

    W14 "W14": "The end of a process that the master has not started";
    "A panic, but for process 1.";
    "It is ignored. With `subreaper = yes` what workers have left behind is the master's, and ends with it.";
    ["w14_with_a_subreaper_nothing_that_workers_have_started_outlives_the_master"]

    W15 "W15": "Workers at a reload";
    "Every worker of every service is told to end.";
    "The same; with `belfry reload --changed` only those of changed services.";
    ["w15_reload_changed_renews_only_workers_of_changed_services"]

    W16 "W16": "Steps of the clock";
    "They stretch and cut pauses and wakeups.";
    "Time is counted by the monotonic clock.";
    ["w16_time_enters_in_one_place_and_is_monotonic"]

    W17 "W17": "What is said before the master serves";
    "It goes to syslog alone. What is said while the master has the mail owner's rights is lost when only the master may write to the log file.";
    "It is in the log, and on standard error, with `-w` as well.";
    ["a10_w17_dash_w_waits_and_prints_the_reason_of_a_failure"]

    W18 "W18": "Wakeups";
    "The master waits for the connection, up to a second for each.";
    "It waits for none.";
    []

    W19 "W19": "Many services";
    "Three descriptors each, and time that grows with their number.";
    "One descriptor each.";
    []

    W20 "W20": "What a start costs when many descriptors are open";
    "All of them are copied.";
    "Only those that the worker gets: see \"Measured\" in README.md.";
    []

    W21 "W21": "Numbers, names and what is left behind";
    "A number is read as far as it is digits and may wrap around (`1h` is 1, 99999999999 is 1215752191, port 70000 is 4464). Names may hold `..`. The socket of a removed service stays in the file system.";
    "What follows the digits is told; a number that is too large, and `..`, are errors. The socket is removed. With `compat = postfix` the digits are read without a word.";
    ["d03_d05_d07_e01_e04_e08_e09_e13_every_kind_of_bad_line"]

    W22 "W22": "A new version of the master";
    "Stop and start.";
    "`belfry upgrade`: in the same process, with all sockets and workers.";
    ["w22_an_upgrade_keeps_the_process_the_sockets_and_every_client"]

    W23 "W23": "Stopping";
    "`postfix stop` kills the process group after 5 seconds; who has left it stays.";
    "The master ends its workers itself, and with a control group all they have started.";
    ["w23_a_service_with_a_control_group_ends_with_all_it_has_started"]

    W24 "W24": "Clients that wait";
    "Not to be seen.";
    "`belfry status` and `belfry metrics` tell how many there are.";
    []

    W25 "W25": "A service at its limit";
    "Silent if only this host reaches it.";
    "One line without a severity, at most every 1000 seconds, also for a service that only this host reaches.";
    []

    STOP "stop": "SIGTERM to the master";
    "It passes the signal on and ends at once. A worker that ignores it stays.";
    "It ends after its workers; one that is there after `stop_kill_time` gets SIGKILL.";
    []

    REUSEPORT "reuseport": "SO_REUSEPORT";
    "Set on every TCP socket: another program of the same user may listen at the same address.";
    "Not set.";
    []

    LOG "log": "The way to the log";
    "With `maillog_file` the workers' lines go through postlogd, which POSTLOG_SERVICE and POSTLOG_HOSTNAME in their environment name.";
    "Each program writes to the file itself. The two are passed on if the master has them, and not made.";
    []

    EXEC "exec": "A program that is not there";
    "The forked process says so, as `fatal:`, and ends a second later.";
    "The master says so, as `warning:`. What follows is the same.";
    ["f04_a_program_that_is_not_there_is_told_and_paused"]

    WORDS "words": "Other words in the log";
    "The stress warning names a page of the Postfix project. A change that takes effect only with a new start is told in three lines. In the line about an unknown status the process id and the status have changed places. A generation is told in decimal.";
    "The warning names master(8). The change is told in one line. They have not. It is told in octal, as in GENERATION.";
    ["the_lines_are_as_they_were"]

    PLACES "places": "Where a complaint is made";
    "The first line of the entry; a warning has no line; a port that nobody knows neither. A duplicate is told by the name of the earlier entry.";
    "File, line and column of the word in question; a duplicate is told by the name of the later entry.";
    ["d03_d05_d07_e01_e04_e08_e09_e13_every_kind_of_bad_line"]

    NEWER "newer": "What Debian's version does not have yet";
    "3.7 has it not.";
    "As Postfix 3.12: a null byte in master.cf is warned of.";
    ["d03_d05_d07_e01_e04_e08_e09_e13_every_kind_of_bad_line"]
}
