//! bench_worker - the least a worker can be: answers each client with one byte
//!
//! `once` ends it after a client, `slow=MS` makes it slow to come up, `hold` keeps it busy until its
//! client goes.

use std::env;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{self, ExitCode};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;
use worker_proto::abi::{GENERATION_ENV, Generation, LISTEN_FD, STATUS_FD, Transport};
use worker_proto::client::Client;
use worker_proto::status::{Availability, StatusRecord};
use worker_proto::sys;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().collect();
    if let Some(ms) = args.iter().find_map(|a| a.strip_prefix("slow=")?.parse().ok()) {
        std::thread::sleep(Duration::from_millis(ms));
    }
    let hold = args.iter().any(|a| a == "hold");
    let once = args.iter().any(|a| a == "once");
    let status = sys::take_fd(STATUS_FD).expect("a master passes it");
    let listen = sys::take_fd(LISTEN_FD).expect("a master passes it");
    let generation: Generation =
        env::var(GENERATION_ENV).unwrap_or_default().parse().expect("a master sets it");
    let pid = i32::try_from(process::id()).unwrap_or(0);
    let tell = |a| write(&status, &StatusRecord::new(pid, generation, a).encode()).is_ok();
    loop {
        let mut fds = [
            PollFd::new(status.as_fd(), PollFlags::POLLIN),
            PollFd::new(listen.as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut fds, PollTimeout::NONE).is_err() {
            continue;
        }
        if fds[0].any().unwrap_or(false) {
            return ExitCode::SUCCESS;
        }
        if let Ok(Some(mut client)) = Client::accept(listen.as_fd(), Transport::Unix) {
            tell(Availability::Taken);
            let _ = client.write_all(b"!");
            if hold {
                let _ = client.read(&mut [0; 1]);
            }
            drop(client);
            if !tell(Availability::Available) || once {
                return ExitCode::SUCCESS;
            }
        }
    }
}
