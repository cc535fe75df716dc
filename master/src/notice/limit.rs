//! limit - how many lines of one kind about one source go into the log
//!
//! A worker that writes garbage, or a service whose workers end at once, must not fill the disk. In
//! each period the first lines are logged; the rest are counted, and the count is logged when the
//! period is over. Pure: it is told what time it is.

use std::collections::HashMap;
use std::time::Duration;

use worker_proto::clock::Time;
use worker_proto::diagnostic::cut;

/// The lines that are logged in a period.
const BURST: u32 = 50;
/// The length of a period.
const PERIOD: Duration = Duration::from_secs(10);
/// How much is kept of the first line that was not logged.
const MAX_EXAMPLE: usize = 200;

/// What is known of the lines of the running periods.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    periods: HashMap<(&'static str, String), Period>,
    /// When the first of them ends.
    first_end: Option<Time>,
}

#[derive(Debug)]
struct Period {
    end: Time,
    logged: u32,
    suppressed: u64,
    example: String,
}

/// Lines that were not logged.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) count: u64,
    pub(super) example: String,
}

impl Limiter {
    /// Whether a line of this kind about this source is to be logged.
    pub(super) fn admit(
        &mut self,
        now: Time,
        kind: &'static str,
        source: &str,
        line: &dyn ToString,
    ) -> bool {
        let end = now + PERIOD;
        let new = || Period { end, logged: 0, suppressed: 0, example: String::new() };
        let period = self.periods.entry((kind, source.to_owned())).or_insert_with(new);
        self.first_end = Some(self.first_end.map_or(period.end, |first| first.min(period.end)));
        if period.logged < BURST {
            period.logged += 1;
            return true;
        }
        period.suppressed += 1;
        if period.suppressed == 1 {
            period.example = cut(line.to_string(), MAX_EXAMPLE);
        }
        false
    }

    /// Ends the periods that are over; what was suppressed in them.
    pub(super) fn end(&mut self, now: Time) -> Vec<Summary> {
        if self.first_end.is_none_or(|first| now < first) {
            return Vec::new();
        }
        let over = self.periods.extract_if(|_, period| period.end <= now);
        let told = over.filter(|(_, period)| period.suppressed > 0);
        let mut told: Vec<_> = told.collect();
        told.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        self.first_end = self.periods.values().map(|period| period.end).min();
        let summary = |(_, p): (_, Period)| Summary { count: p.suppressed, example: p.example };
        told.into_iter().map(summary).collect()
    }

    /// When [`Limiter::end`] has something to do.
    pub(super) const fn next(&self) -> Option<Time> {
        self.first_end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Time {
        Time::from_start(Duration::from_millis(milliseconds))
    }

    /// A worker's garbage made 38 MB of log in a second.
    #[test]
    fn a_flood_is_a_burst_and_one_summary_a_period() {
        let mut limiter = Limiter::default();
        let (mut logged, mut summaries) = (0, Vec::new());
        for now in 0..30_000 {
            summaries.extend(limiter.end(at(now)));
            logged += u32::from(limiter.admit(at(now), "garbage", "smtp", &"text"));
        }
        assert_eq!(logged, 3 * BURST);
        assert_eq!(summaries.len(), 2);
        assert_eq!(summaries[0].example, "text");
        // The flood ends, and its rest is told in time.
        let next = limiter.next().unwrap();
        assert!(next <= at(40_000));
        summaries.extend(limiter.end(next));
        let suppressed: u64 = summaries.iter().map(|s| s.count).sum();
        assert_eq!(suppressed + u64::from(logged), 30_000, "every line is counted");
        assert_eq!((limiter.next(), limiter.periods.len()), (None, 0), "nothing is kept");
    }

    #[test]
    fn a_flood_hides_no_line_of_another_source_or_kind() {
        let mut limiter = Limiter::default();
        for _ in 0..1000 {
            limiter.admit(at(0), "garbage", "smtp", &"x");
        }
        assert!(limiter.admit(at(0), "garbage", "qmgr", &"x"));
        assert!(limiter.admit(at(0), "exit", "smtp", &"x"));
        assert!(!limiter.admit(at(0), "garbage", "smtp", &"x"));
    }
}
