//! open_metrics - a strict reader of the OpenMetrics text format, as far as the master uses it
//!
//! What a scraper might forgive is an error here: a series that comes twice, samples outside of their
//! family, a family that comes twice, an escape that the format does not know.

use std::collections::{BTreeMap, BTreeSet};

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// A sample: its name, its labels, its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// With the suffix.
    pub name: String,
    /// By name.
    pub labels: Labels,
    /// The number.
    pub value: f64,
}

/// Reads a text.
///
/// # Errors
/// The first thing that is wrong, and its line.
pub fn read(text: &str) -> Result<Vec<Sample>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("it does not end with # EOF")?;
    let (mut families, mut series, mut samples) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    // Name, type, and whether its help was there.
    let mut family: Option<(String, String, bool)> = None;
    for (number, line) in body.lines().enumerate() {
        let fault = |what: &str| format!("line {}: {what}: {line}", number + 1);
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| fault("no type"))?;
            if !is_name(name) || !matches!(kind, "gauge" | "counter") {
                return Err(fault("bad name or type"));
            }
            if !families.insert(name.to_owned()) {
                return Err(fault("a family that was there already"));
            }
            family = Some((name.to_owned(), kind.to_owned(), false));
            continue;
        }
        let (name, kind, helped) = family.as_mut().ok_or_else(|| fault("outside of a family"))?;
        if let Some(rest) = line.strip_prefix("# HELP ") {
            if rest.split_once(' ').is_none_or(|(of, help)| of != name || help.is_empty())
                || *helped
            {
                return Err(fault("bad help"));
            }
            *helped = true;
            continue;
        }
        let sample = sample(line).ok_or_else(|| fault("no sample"))?;
        let suffix = if kind == "counter" { "_total" } else { "" };
        if sample.name != format!("{name}{suffix}") {
            return Err(fault("not of this family"));
        }
        if !sample.value.is_finite() || kind == "counter" && sample.value < 0.0 {
            return Err(fault("bad value"));
        }
        if !series.insert((sample.name.clone(), sample.labels.clone())) {
            return Err(fault("a series that was there already"));
        }
        samples.push(sample);
    }
    Ok(samples)
}

fn is_name(name: &str) -> bool {
    let head = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(head) && name.chars().all(|c| head(c) || c.is_ascii_digit())
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = line.split_once('{')?;
    let mut labels = Labels::new();
    let mut rest = rest;
    loop {
        let (label, after) = rest.split_once("=\"")?;
        let (value, after) = value(after)?;
        if !is_name(label) || labels.insert(label.to_owned(), value).is_some() {
            return None;
        }
        match after.split_at_checked(1)? {
            (",", after) => rest = after,
            ("}", after) => {
                let value = after.strip_prefix(' ')?.parse().ok()?;
                return is_name(name).then(|| Sample { name: name.to_owned(), labels, value });
            }
            _ => return None,
        }
    }
}

/// The value of a label up to its closing quote, and what follows.
fn value(text: &str) -> Option<(String, &str)> {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                c @ ('"' | '\\') => c,
                _ => return None,
            }),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_found() {
        let head = "# TYPE a gauge\n# HELP a Text.\n";
        assert_eq!(read(&format!("{head}a{{x=\"\\\"\\\\\\n\"}} 1\n# EOF\n")).unwrap().len(), 1);
        for bad in [
            "a{x=\"1\"} 1\na{x=\"1\"} 2\n",
            "a{x=\"1\",y=\"2\"} 1\na{y=\"2\",x=\"1\"} 1\n",
            "a{x=\"1\",x=\"1\"} 1\n",
            "a_total{x=\"1\"} 1\n",
            "a{x=\"\\u0001\"} 1\n",
            "a{x=\"1\"} one\n",
            "a 1 2 3\n",
            "# TYPE a gauge\n",
            "# HELP a Again.\n",
            "\n",
        ] {
            assert!(read(&format!("{head}{bad}# EOF\n")).is_err(), "{bad}");
        }
        assert!(read(head).is_err(), "no end");
    }
}
