//! snapshot - what a master hands over to the program that goes on in its place
//!
//! An upgrade keeps the process: its number, its children, its open files. What it knows about them
//! goes through this text (JSON in a memfd), written by the program that ends and read by the one
//! that begins, which may be a later version. A field that a later version adds has a default there.
//!
//! Descriptors are named by number and are open, without close-on-exec, when the new program starts.
//! Times are on the monotonic clock, which goes on through exec(2).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use worker_proto::abi::Generation;
use worker_proto::clock::Time;
use worker_proto::diagnostic::Fault;
use worker_proto::sys;

use crate::avail::{Pool, WorkerId};
use crate::control::SavedClient;
use crate::jobs::Job;
use crate::limits::Limit;
use crate::service::{Endpoint, ServiceDef};
use crate::wakeup::Alarm;

/// Version of the text. A program reads its own and, by the defaults, those before it.
const FORMAT: u32 = 1;

/// A running master.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    /// Version of this text.
    pub format: u32,
    /// Version of the program that wrote it.
    pub version: String,
    /// The configuration directory.
    pub directory: PathBuf,
    /// The text of the main.cf in force.
    pub main_cf: String,
    /// What a running master keeps whatever main.cf says (C02).
    pub queue_directory: PathBuf,
    /// The same.
    pub data_directory: PathBuf,
    /// Limit of open files for workers (soft, hard).
    pub files: (u64, u64),
    /// When option `-e` ends the master.
    pub exit_at: Option<Time>,
    /// Generation of the last worker.
    pub generation: Generation,
    /// The last number given to a service, a client or a trigger.
    pub last_number: u64,
    /// The lock files.
    pub locks: Vec<RawFd>,
    /// The control socket.
    pub control: RawFd,
    /// Its clients.
    pub clients: Vec<SavedClient>,
    /// Which of them asked for the upgrade: what a version without `jobs` needs to know.
    pub asker: u64,
    /// What was asked for and is not done: the upgrade, and what waits for its end.
    #[serde(default)]
    pub jobs: Vec<Job>,
    /// The services, those that are being stopped as well.
    pub services: Vec<SavedService>,
}

/// A service.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of event_loop::service::Service")]
pub struct SavedService {
    pub id: u64,
    pub def: Rc<ServiceDef>,
    pub limits: Vec<Limit>,
    pub pool: Pool,
    pub alarm: Alarm,
    pub listeners: Vec<(Endpoint, RawFd)>,
    #[serde(default)]
    pub files: Vec<Option<(u64, u64)>>,
    pub workers: Vec<SavedWorker>,
    pub unbound: Option<SavedUnbound>,
    #[serde(default)]
    pub group: Option<PathBuf>,
}

/// A worker's process.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of event_loop::service::Live")]
pub struct SavedWorker {
    pub id: WorkerId,
    pub pid: i32,
    pub generation: Generation,
    pub channel: RawFd,
}

/// Why a service has no sockets.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of event_loop::service::Unbound")]
pub struct SavedUnbound {
    pub reason: String,
    pub pause: Duration,
    pub next: Time,
}

impl Snapshot {
    /// The format that this program writes.
    pub const FORMAT: u32 = FORMAT;

    /// Writes it into a file without a name, close-on-exec, to be read from its start.
    ///
    /// # Errors
    /// No memory, or no descriptor, is to be had.
    pub fn write(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(memfd_create(c"belfry-master", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        file.seek(SeekFrom::Start(0))?;
        sys::set_high(file.into())
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is none, or of a later version.
    pub fn read(mut file: impl Read) -> Result<Self, Fault> {
        let fault = |cause: String| Fault::new("state of the running master", cause);
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(|e| fault(sys::errno_text(&e)))?;
        /// The one field that every version has.
        #[derive(Deserialize)]
        struct Head {
            format: u32,
            version: String,
        }
        let head: Head = serde_json::from_slice(&text).map_err(|e| fault(e.to_string()))?;
        if head.format > FORMAT {
            let (format, version) = (head.format, head.version);
            return Err(fault(format!(
                "format {format} of version {version}; this program knows up to {FORMAT}"
            )));
        }
        serde_json::from_slice(&text).map_err(|e| fault(e.to_string()))
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.services.iter().map(|s| s.workers.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use worker_proto::abi::Transport;
    use worker_proto::status::Availability;

    use crate::avail::{Action, Event, Exit, Rules, ThrottleRule};
    use crate::service::{Key, Wakeup};

    fn at(seconds: u64) -> Time {
        Time::from_start(Duration::from_secs(seconds))
    }

    fn rules() -> Rules {
        Rules {
            ext_name: "smtp".into(),
            name: "25".into(),
            path: "/x/smtpd".into(),
            max_proc: Some(3),
            stressable: true,
            throttle: ThrottleRule { first: at(1).since_start(), most: at(60).since_start() },
            start_burst: 1,
            min_spare: 0,
            kill_time: at(5).since_start(),
            compat: false,
        }
    }

    fn snapshot(pool: Pool) -> Snapshot {
        let def = ServiceDef {
            key: Key { transport: Transport::Inet, name: "25".into() },
            ext_name: "smtp".into(),
            private: false,
            unprivileged: true,
            chroot: false,
            wakeup: Some(Wakeup { period: at(60).since_start(), conditional: false }),
            max_proc: Some(3),
            command: "smtpd".into(),
            args: vec!["-o".to_owned(), "x=y".to_owned()],
            endpoints: vec![Endpoint::Inet("127.0.0.1:25".parse().unwrap())],
            line: 4,
        };
        let service = SavedService {
            id: 7,
            alarm: Alarm::new(at(3), def.wakeup),
            def: def.into(),
            limits: Vec::new(),
            pool,
            listeners: vec![(Endpoint::Path("private/x".into()), 600)],
            files: vec![Some((1, 2))],
            workers: vec![SavedWorker {
                id: WorkerId(0),
                pid: 77,
                generation: Generation(9),
                channel: 601,
            }],
            unbound: None,
            group: None,
        };
        Snapshot {
            format: FORMAT,
            version: "0.1.0".to_owned(),
            directory: "/etc/belfry".into(),
            main_cf: "a = b\n".to_owned(),
            queue_directory: "/q".into(),
            data_directory: "/d".into(),
            files: (1024, 4096),
            exit_at: None,
            generation: Generation(9),
            last_number: 12,
            locks: vec![610, 611],
            control: 612,
            clients: Vec::new(),
            asker: 5,
            jobs: Vec::new(),
            services: vec![service],
        }
    }

    #[test]
    fn w22_what_is_written_is_read_again() {
        let written = snapshot(Pool::new(rules()));
        let read = Snapshot::read(File::from(written.write().unwrap())).unwrap();
        assert_eq!(serde_json::to_value(&written).unwrap(), serde_json::to_value(&read).unwrap());
        assert_eq!(read.workers(), 1);
    }

    #[test]
    fn w22_a_later_format_is_refused_and_a_later_field_is_not() {
        let mut value = serde_json::to_value(snapshot(Pool::new(rules()))).unwrap();
        value["something_new"] = 1.into();
        assert!(Snapshot::read(value.to_string().as_bytes()).is_ok());
        value["format"] = (FORMAT + 1).into();
        value["version"] = "9.0".into();
        let fault = Snapshot::read(value.to_string().as_bytes()).unwrap_err().to_string();
        assert!(fault.contains("of version 9.0"), "{fault}");
        assert!(Snapshot::read(b"{}".as_slice()).is_err());
    }

    /// A pool goes on where it was: the same events have the same answers afterwards.
    #[test]
    fn w22_a_pool_that_was_handed_over_decides_as_before() {
        let events = [
            Event::Knock,
            Event::Started(WorkerId(0), 10),
            Event::Status(WorkerId(0), Availability::Taken),
            Event::Knock,
            Event::Ended(WorkerId(1), Exit::Status(1)),
            Event::Tick,
            Event::Status(WorkerId(0), Availability::Available),
            Event::Ended(WorkerId(0), Exit::Status(0)),
            Event::Remove(Duration::from_secs(2)),
        ];
        for cut in 0..events.len() {
            let mut whole = Pool::new(rules());
            let mut expected = Vec::new();
            whole.start(at(1), &mut Vec::new());
            for (event, now) in events.iter().take(cut).zip(2..) {
                whole.on(at(now), event.clone(), &mut Vec::new());
            }
            let text = serde_json::to_string(&whole).unwrap();
            let mut later: Pool = serde_json::from_str(&text).unwrap();
            assert!(!Rc::ptr_eq(whole.rules(), later.rules()));
            later.start(at(1), &mut Vec::new());
            let mut got = Vec::new();
            for (event, now) in events.iter().zip(2..).skip(cut) {
                whole.on(at(now), event.clone(), &mut expected);
                later.on(at(now), event.clone(), &mut got);
            }
            assert_eq!(got, expected, "handed over after {cut} events");
            assert!(expected.contains(&Action::Gone), "the story is told to its end");
        }
    }
}
