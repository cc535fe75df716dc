//! Clients of the operator's socket who misbehave, and those who must not notice it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use belfry_tests::process::Process;
use belfry_tests::{Instance, wait};
use nix::sys::signal::Signal;
use worker_proto::clock::Time;

/// How long a good client may wait beside bad ones: most of it is for a machine that does much else.
const SOON: Duration = Duration::from_secs(5);

fn connect(instance: &Instance) -> UnixStream {
    let stream = UnixStream::connect(instance.queue().join("pid/control")).expect("it listens");
    stream.set_read_timeout(Some(wait::LONG)).expect("a timeout can be set");
    stream
}

fn answer(stream: &mut UnixStream) -> String {
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

/// A good client asks for the status; how long that takes.
fn status(instance: &Instance) -> Duration {
    let start = Time::now();
    let mut stream = connect(instance);
    stream.write_all(b"status\n").expect("it listens");
    let answer = answer(&mut stream);
    assert!(answer.starts_with("0\nSERVICE"), "{answer:?}");
    Time::now().since(start)
}

/// Runs some bad clients beside a test.
fn beside(bad: &[&(dyn Fn() + Sync)], test: impl FnOnce()) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in bad {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    client();
                }
            });
        }
        // Also when the test fails: the others would go on for ever.
        let _over = Over(&over);
        test();
    });
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn stops(mut instance: Instance) {
    let start = Time::now();
    Process::read(instance.master_pid()).expect("it runs").signal(Signal::SIGTERM);
    instance.ends_by(Signal::SIGTERM);
    assert!(Time::now().since(start) < SOON, "it took {:?}", Time::now().since(start));
    instance.finish(&[]);
}

/// Each request that came while the answer to the one before was written was served inside of that
/// one, until the stack was full.
#[test]
fn metrics_requests_in_any_rhythm_do_not_end_the_master() {
    let mut instance = Instance::bare();
    // With a small stack it takes less time; the report of these takes some, and fits into a socket.
    instance.started_by(&["/bin/sh", "-c", "ulimit -s 256; exec \"$@\"", "sh"]);
    for n in 0..10 {
        instance.service(&format!("service-{n} unix n n n - 3 probe_worker"));
    }
    instance.start();
    let mut feed = connect(&instance);
    feed.write_all(b"metrics-feed\n").unwrap();
    let asking = feed.try_clone().unwrap();
    let reading = feed.try_clone().unwrap();
    reading.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let ask = || {
        let _ = (&asking).write(b"m\n");
        thread::sleep(Duration::from_micros(50));
    };
    let read = || drop((&reading).read(&mut [0; 1 << 17]));
    beside(&[&ask, &read], || {
        let end = Time::now() + Duration::from_secs(3);
        while Time::now() < end {
            assert!(status(&instance) < SOON);
        }
    });
    stops(instance);
}

/// Whoever left let the next one in from inside of itself: a client that came and went in a loop
/// filled the stack, and nobody else had a turn meanwhile.
#[test]
fn clients_that_come_and_go_in_a_loop_stop_nobody() {
    let mut instance = Instance::bare();
    instance.service("a unix n n n - 3 probe_worker").start();
    let pid = || drop(connect(&instance).write(b"pid\n"));
    let empty = || drop(connect(&instance));
    beside(&[&pid, &pid, &empty, &empty], || {
        let end = Time::now() + Duration::from_secs(3);
        while Time::now() < end {
            let took = status(&instance);
            assert!(took < SOON, "the status took {took:?}");
        }
        assert!(instance.belfry(&["reload"]).status.success());
    });
    stops(instance);
}

/// Clients who did not read kept their places for ever, and a thousand of them made all others wait.
#[test]
fn clients_that_never_ask_or_never_read_do_not_keep_others_out() {
    let mut instance = Instance::bare();
    // An answer that does not fit into the buffers of a socket.
    for n in 0..1500 {
        instance.service(&format!("service-{n} unix n n n - 3 probe_worker"));
    }
    instance.start();
    let deaf: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = connect(&instance);
            stream.write_all(b"status --json\n").unwrap();
            stream
        })
        .collect();
    let took = status(&instance);
    assert!(took < SOON, "beside clients who do not read it took {took:?}");
    let mute: Vec<_> = (0..1000).map(|_| connect(&instance)).collect();
    let took = status(&instance);
    assert!(took < SOON, "beside clients who do not ask it took {took:?}");
    let start = Time::now();
    assert!(instance.belfry(&["reload"]).status.success());
    assert!(Time::now().since(start) < SOON);
    // A client that asks before the next thousand come is not dropped for one of them.
    drop((deaf, mute));
    stops(instance);
}

/// A client that did not read its answer had no deadline.
#[test]
fn a_client_that_does_not_read_its_answer_is_dropped_in_time() {
    let mut instance = Instance::bare();
    for n in 0..1500 {
        instance.service(&format!("service-{n} unix n n n - 3 probe_worker"));
    }
    instance.start();
    let mut deaf = connect(&instance);
    deaf.write_all(b"status --json\n").unwrap();
    let mute = connect(&instance);
    let operators = || {
        let mut stream = connect(&instance);
        stream.write_all(b"status --json\n").unwrap();
        let answer = answer(&mut stream);
        let line = answer.lines().nth(1).expect("it answers");
        let row: serde_json::Value = serde_json::from_str(line).expect("it is an object");
        row["descriptors"]["operators"].as_u64()
    };
    assert_eq!(operators(), Some(3), "they, and who asks");
    wait::until("both to be dropped", wait::LONG, || (operators() == Some(1)).then_some(()));
    let text = answer(&mut deaf);
    assert!(text.starts_with("0\n") && !text.ends_with("}\n"), "it was cut off");
    drop(mute);
    instance.finish(&[]);
}
