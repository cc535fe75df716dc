//! observation - what was seen of a master, as lines of a name and a value

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::Difference;

/// What was seen of a master.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation(BTreeMap<String, String>);

const ARROW: &str = " -> ";

impl Observation {
    /// The value of a line that is not there.
    pub const NOTHING: &'static str = "nothing";

    /// Writes a line down.
    ///
    /// # Panics
    /// There is one of that name already.
    pub fn note(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        let before = self.0.insert(name.clone(), value);
        assert_eq!(before, None, "{name} is noted twice");
    }

    /// The value of a line.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or(Self::NOTHING, String::as_str)
    }

    /// Takes in all lines of another one.
    pub fn extend(&mut self, other: Self) {
        for (name, value) in other.0 {
            self.note(name, value);
        }
    }

    /// Reads what [`fmt::Display`] has written.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.split_once(ARROW));
        Self(lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// What ours must show when Postfix's has shown this.
    ///
    /// # Errors
    /// Differences that are none, or are declared twice.
    pub fn with(mut self, differences: &[Difference]) -> Result<Self, Vec<String>> {
        let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
        for &Difference { place, ours, why } in differences {
            if self.get(place) == ours || !seen.insert(place) {
                faults.push(format!("{}: no difference at \"{place}\": {ours}", why.id));
            }
            if ours == Self::NOTHING {
                self.0.remove(place);
            } else {
                self.0.insert(place.to_owned(), ours.to_owned());
            }
        }
        if faults.is_empty() { Ok(self) } else { Err(faults) }
    }

    /// Where another one differs, a line each.
    #[must_use]
    pub fn against(&self, other: &Self) -> Vec<String> {
        let names: BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let differ = names.into_iter().filter(|n| self.get(n) != other.get(n));
        differ
            .map(|n| format!("{n}\n    wanted: {}\n    seen:   {}", self.get(n), other.get(n)))
            .collect()
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| writeln!(f, "{name}{ARROW}{value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::differential::Decision;

    static WHY: Decision = Decision { id: "W99", title: "", postfix: "", ours: "", tests: &[] };

    fn seen(lines: &[(&str, &str)]) -> Observation {
        let mut observation = Observation::default();
        lines.iter().for_each(|(name, value)| observation.note(*name, *value));
        observation
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let seen = seen(&[("a b", "1 -> 2"), ("c", "")]);
        assert_eq!(seen.to_string(), "a b -> 1 -> 2\nc -> \n");
        assert_eq!(Observation::parse(&seen.to_string()), seen);
    }

    #[test]
    fn declared_differences_are_applied_and_all_others_seen() {
        let theirs = seen(&[("a", "1"), ("b", "2")]);
        let differences = [WHY.at("a", "3"), WHY.at("b", Observation::NOTHING), WHY.at("c", "4")];
        let wanted = theirs.clone().with(&differences).unwrap();
        assert_eq!(wanted, seen(&[("a", "3"), ("c", "4")]));
        assert_eq!(wanted.against(&wanted), [] as [&str; 0]);
        assert_eq!(theirs.against(&wanted).len(), 3);
    }

    #[test]
    fn a_difference_that_is_none_is_a_fault() {
        let theirs = seen(&[("a", "1")]);
        assert_eq!(theirs.clone().with(&[WHY.at("a", "1")]).unwrap_err().len(), 1);
        let nothing = WHY.at("b", Observation::NOTHING);
        assert_eq!(theirs.clone().with(&[nothing]).unwrap_err().len(), 1);
        assert_eq!(theirs.with(&[WHY.at("a", "2"), WHY.at("a", "3")]).unwrap_err().len(), 1);
    }
}
