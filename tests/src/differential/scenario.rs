//! scenario - one story, told under both masters, and the verdict

use std::env;
use std::fs;
use std::path::PathBuf;
use std::thread;

use super::{Difference, Kind, Observation};

/// A story.
#[derive(Debug)]
pub struct Scenario {
    /// Its name, which names the file with what Postfix's master shows.
    pub name: &'static str,
    /// Runs it and looks.
    pub look: fn(Kind) -> Observation,
    /// Where ours shows something else.
    pub differences: &'static [Difference],
}

/// Where tables and records are.
#[must_use]
pub fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

impl Scenario {
    /// Runs it under every master that was asked for.
    ///
    /// # Panics
    /// A master shows something that is neither recorded nor declared.
    pub fn check(&self) {
        let kinds = Kind::under_test();
        let seen: Vec<(Kind, Observation)> = thread::scope(|scope| {
            let runs: Vec<_> =
                kinds.iter().map(|&kind| (kind, scope.spawn(move || (self.look)(kind)))).collect();
            let ends = runs.into_iter().map(|(kind, run)| (kind, run.join()));
            ends.map(|(kind, end)| {
                (kind, end.unwrap_or_else(|_| panic!("{}: {kind:?}: see above", self.name)))
            })
            .collect()
        });
        let path = corpus().join(format!("{}.expected", self.name));
        let bless = env::var_os("BELFRY_BLESS").is_some_and(|v| v == "1");
        if bless && let Some((_, theirs)) = seen.iter().find(|(kind, _)| *kind == Kind::Postfix) {
            fs::write(&path, theirs.to_string()).expect("the corpus can be written");
        }
        let recorded = fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}; see the head of this test", path.display()));
        let recorded = Observation::parse(&recorded);
        let mut faults = Vec::new();
        for (kind, seen) in seen {
            let wanted = match kind {
                Kind::Postfix => Ok(recorded.clone()),
                Kind::Ours => recorded.clone().with(self.differences),
            };
            let found = match wanted {
                Ok(wanted) => wanted.against(&seen),
                Err(faults) => faults,
            };
            faults.extend(found.into_iter().map(|fault| format!("{kind:?}: {fault}")));
        }
        assert!(faults.is_empty(), "{}:\n{}", self.name, faults.join("\n"));
    }
}
