//! tests of the process creation policy: by example, exhaustively, and at random against a model

use std::time::Duration;

use super::{Rules, ThrottleRule};

mod examples;
mod exhaustive;
mod model;
mod random;
mod regression;
mod story;
mod weaknesses;
mod world;

/// A service as master.cf would have it by default, with room for `max_proc` workers.
fn rules(max_proc: u32) -> Rules {
    Rules {
        ext_name: "smtp".into(),
        name: "25".into(),
        path: "/usr/libexec/belfry/smtpd".into(),
        max_proc: Some(max_proc),
        stressable: false,
        throttle: ThrottleRule { first: Duration::from_secs(1), most: Duration::from_secs(60) },
        start_burst: 1,
        min_spare: 0,
        kill_time: Duration::from_secs(5),
        compat: false,
    }
}
