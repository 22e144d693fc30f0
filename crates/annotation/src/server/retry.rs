//! How long to wait before a request is sent again.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, SystemTime};

use jiff::fmt::rfc2822::DateTimeParser;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// The longest pause that a server may ask for.
pub(crate) const LONGEST_ASKED: Duration = Duration::from_secs(600);

/// Exponential backoff with full jitter: `unit · min(60 s, 2^retry · 1 s)`, `unit` uniform in `[0, 1)`, `retry` from 0.
/// Clients that were cut off together do not come back together (Brooker, "Exponential Backoff And Jitter", 2015).
pub(crate) fn backoff(retry: u32, unit: f64) -> Duration {
    FIRST.saturating_mul(1 << retry.min(16)).min(LONGEST).mul_f64(unit)
}

/// A number in `[0, 1)` for jitter. It decides nothing but when something is asked, so it need not be repeatable; the standard library's
/// only source of randomness is the seed of its hash maps.
pub(crate) fn jitter() -> f64 {
    let word = RandomState::new().build_hasher().finish();
    (word >> 11) as f64 / (1u64 << 53) as f64
}

/// What a server said about when to come back.
#[derive(Debug, Default)]
pub(crate) struct Advice {
    /// `retry-after`, `retry-after-ms`: at the earliest.
    pub(crate) retry_after: Option<Duration>,
    /// An allowance is used up and comes back after this.
    pub(crate) exhausted_for: Option<Duration>,
}

impl Advice {
    /// The longer of both pauses.
    pub(crate) fn longest(&self) -> Option<Duration> {
        self.retry_after.max(self.exhausted_for)
    }
}

/// A duration in the largest unit of which it has two: `90 seconds`, `31 years`.
pub(crate) fn spelt_out(duration: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(365 * 24 * 3600, "years"), (24 * 3600, "days"), (3600, "hours"), (60, "minutes")];
    let seconds = duration.as_secs();
    let unit = UNITS.into_iter().find(|(unit, _)| seconds >= 2 * unit);
    unit.map_or_else(|| format!("{seconds} seconds"), |(unit, name)| format!("{} {name}", seconds / unit))
}

/// Reads `retry-after` (seconds, or an HTTP date), `retry-after-ms`, and `x-ratelimit-{remaining,reset}-{requests,tokens}`.
pub(crate) fn advice<'a>(header: impl Fn(&str) -> Option<&'a str>, now: SystemTime) -> Advice {
    let milliseconds = || header("retry-after-ms")?.trim().parse().ok().map(|ms: f64| ms / 1000.0).and_then(seconds);
    let retry_after = milliseconds().or_else(|| header("retry-after").and_then(|text| retry_after(text.trim(), now)));
    let exhausted = ["requests", "tokens"].into_iter().filter_map(|what| {
        let remaining: f64 = header(&format!("x-ratelimit-remaining-{what}"))?.trim().parse().ok()?;
        let reset = duration(header(&format!("x-ratelimit-reset-{what}"))?.trim())?;
        (remaining <= 0.0).then_some(reset)
    });
    Advice { retry_after, exhausted_for: exhausted.max() }
}

fn seconds(value: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(value).ok()
}

fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(value) = text.parse() {
        return seconds(value);
    }
    let date = DateTimeParser::new().relaxed_weekday(true).parse_zoned(text).ok()?;
    let date = SystemTime::from(date.timestamp());
    Some(date.duration_since(now).unwrap_or_default())
}

/// `6m0s`, `1h30m`, `59.56s`, `20ms` as OpenAI writes them, or plain seconds.
fn duration(text: &str) -> Option<Duration> {
    if let Ok(value) = text.parse() {
        return seconds(value);
    }
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let value: f64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].split(|c: char| c.is_ascii_digit()).next()?;
        total += value
            * match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                _ => return None,
            };
        rest = &rest[digits + unit.len()..];
    }
    seconds(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn advised(headers: &[(&str, &str)], now: u64) -> (Option<f64>, Option<f64>) {
        let header = |name: &str| headers.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
        let advice = advice(header, UNIX_EPOCH + Duration::from_secs(now));
        (advice.retry_after.map(|d| d.as_secs_f64()), advice.exhausted_for.map(|d| d.as_secs_f64()))
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(advised(&[("retry-after", "20")], 0).0, Some(20.0));
        assert_eq!(advised(&[("retry-after", "20"), ("retry-after-ms", "1500")], 0).0, Some(1.5));
        // RFC 9110's own example, 784111777 seconds after 1970.
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(advised(&[("retry-after", date)], 784_111_777 - 42).0, Some(42.0));
        assert_eq!(advised(&[("retry-after", date)], 784_111_777 + 42).0, Some(0.0));
        assert_eq!(advised(&[("retry-after", "1e300")], 0).0, None);
        assert_eq!(advised(&[("retry-after", "soon")], 0).0, None);
        assert_eq!(advised(&[("retry-after", "-3")], 0).0, None);
    }

    #[test]
    fn durations_are_spelt_out_in_the_largest_unit() {
        let told = [10, 119, 120, 3 * 3600, 50 * 3600, 1_000_000_000].map(|seconds| spelt_out(Duration::from_secs(seconds)));
        assert_eq!(told, ["10 seconds", "119 seconds", "2 minutes", "3 hours", "2 days", "31 years"]);
        let asked = advised(&[("retry-after", "1000000000")], 0).0;
        assert_eq!(asked, Some(1e9));
    }

    #[test]
    fn an_allowance_that_is_used_up_is_waited_for() {
        let used_up = |reset| [("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", reset)];
        for (text, seconds) in
            [("6m0s", 360.0), ("0h59m", 3540.0), ("30h", 108_000.0), ("59.5s", 59.5), ("20ms", 0.02), ("2m1.5s", 121.5), ("7", 7.0)]
        {
            assert_eq!(advised(&used_up(text), 0).1, Some(seconds), "{text}");
        }
        for text in ["", "s", "5x", "5s5", "."] {
            assert_eq!(advised(&used_up(text), 0).1.filter(|s| *s > 0.0), None, "{text:?}");
        }
        assert_eq!(advised(&[("x-ratelimit-remaining-tokens", "3"), ("x-ratelimit-reset-tokens", "9s")], 0).1, None);
    }

    #[test]
    fn backoff_doubles_to_a_minute_and_jitter_fills_it() {
        assert_eq!([0, 1, 5, 6, 60].map(|retry| backoff(retry, 1.0).as_secs()), [1, 2, 32, 60, 60]);
        assert_eq!(backoff(3, 0.25), Duration::from_secs(2));
        let units: Vec<f64> = (0..64).map(|_| jitter()).collect();
        assert!(
            units.iter().all(|unit| (0.0..1.0).contains(unit))
                && units.iter().any(|unit| *unit < 0.5)
                && units.iter().any(|unit| *unit > 0.5)
        );
    }
}
