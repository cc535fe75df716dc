//! time_value - durations as main.cf writes them: `30s`, `5m`, `1h`, `4d`, `1w`
//!
//! A bare number takes the unit its parameter names (postconf(5), "time units").

use std::time::Duration;

/// The unit of a number without a suffix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// `s`
    Seconds,
    /// `m`
    Minutes,
    /// `h`
    Hours,
    /// `d`
    Days,
    /// `w`
    Weeks,
}

impl Unit {
    const fn seconds(self) -> u64 {
        match self {
            Self::Seconds => 1,
            Self::Minutes => 60,
            Self::Hours => 3600,
            Self::Days => 86_400,
            Self::Weeks => 604_800,
        }
    }

    const fn of_suffix(suffix: u8) -> Option<Self> {
        match suffix {
            b's' | b'S' => Some(Self::Seconds),
            b'm' | b'M' => Some(Self::Minutes),
            b'h' | b'H' => Some(Self::Hours),
            b'd' | b'D' => Some(Self::Days),
            b'w' | b'W' => Some(Self::Weeks),
            _ => None,
        }
    }
}

/// Reads a duration; `default` is the unit of a bare number.
///
/// # Errors
/// The text is not digits with at most one unit letter, or is more than 100 years.
pub fn parse(text: &str, default: Unit) -> Result<Duration, String> {
    let (digits, unit) = match text.as_bytes().last().copied().and_then(Unit::of_suffix) {
        Some(unit) => (&text[..text.len() - 1], unit),
        None => (text, default),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("a number with a unit: s, m, h, d or w".to_owned());
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(unit.seconds()))
        .filter(|&seconds| seconds <= 100 * 366 * 86_400)
        .map(Duration::from_secs)
        .ok_or_else(|| "a time of at most 100 years".to_owned())
}

/// Writes a duration in the largest unit that leaves a whole number.
#[must_use]
pub fn format(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (unit, letter) = [(604_800, 'w'), (86_400, 'd'), (3600, 'h'), (60, 'm')]
        .into_iter()
        .find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit))
        .unwrap_or((1, 's'));
    format!("{}{letter}", seconds / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_the_default_unit() {
        assert_eq!(parse("60s", Unit::Hours), Ok(Duration::from_secs(60)));
        assert_eq!(parse("5m", Unit::Seconds), Ok(Duration::from_secs(300)));
        assert_eq!(parse("1w", Unit::Seconds), Ok(Duration::from_secs(604_800)));
        assert_eq!(parse("4", Unit::Days), Ok(Duration::from_secs(345_600)));
    }

    #[test]
    fn nonsense_and_overflow_are_refused() {
        for bad in ["", "s", "1x", "-1", "1.5s", "1 s", "5mm", "99999999999999999999d"] {
            assert!(parse(bad, Unit::Seconds).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn format_is_read_back() {
        for seconds in [0, 1, 60, 90, 3600, 86_400, 604_800, 604_801] {
            let d = Duration::from_secs(seconds);
            assert_eq!(parse(&format(d), Unit::Weeks), Ok(d));
        }
    }
}
