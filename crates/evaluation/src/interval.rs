//! Intervals for proportions, and the win rate.

use std::fmt;

use serde::Serialize;

use crate::normal;

/// An estimate with a confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The statistic of the data themselves.
    pub estimate: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// The confidence level, in (0, 1).
    pub level: f64,
}

impl fmt::Display for Interval {
    /// `0.6630 [0.6513, 0.6745] 95 %`; a precision applies to the three numbers: `{:.2}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(4);
        let Self { estimate, low, high, level } = self;
        // Rounded, for 100 · 0.57 is 56.99999999999999.
        write!(f, "{estimate:.digits$} [{low:.digits$}, {high:.digits$}] {} %", (level * 1e8).round() / 1e6)
    }
}

/// Whether a confidence level means anything.
pub(crate) fn is_level(level: f64) -> bool {
    level > 0.0 && level < 1.0
}

/// Wilson's score interval of a proportion `p̂ = k / n`, in [0, 1]. With `z = Φ⁻¹((1 + level) / 2)`,
///
/// `(p̂ + z²/2n ± z √(p̂ (1 − p̂) / n + z²/4n²)) / (1 + z²/n)`.
///
/// Unlike the normal approximation it has a width at 0 and n successes too. `successes` may be fractional (ties as halves). `None` for no trial,
/// `successes` outside `0..=trials`, or a level outside (0, 1).
///
/// Source: Wilson, Journal of the American Statistical Association 22 (1927); SciPy's `binomtest(…).proportion_ci(method="wilson")`.
pub fn wilson(successes: f64, trials: usize, level: f64) -> Option<Interval> {
    let n = trials as f64;
    if trials == 0 || !(0.0..=n).contains(&successes) || !is_level(level) {
        return None;
    }
    let estimate = successes / n;
    let z = -normal::quantile((1.0 - level) / 2.0);
    let centre = estimate + z * z / (2.0 * n);
    let reach = z * (estimate * (1.0 - estimate) / n + z * z / (4.0 * n * n)).sqrt();
    let shrink = 1.0 + z * z / n;
    // At the ends of the range the interval reaches them exactly; rounding would not.
    let low = if successes == 0.0 { 0.0 } else { (centre - reach) / shrink };
    let high = if successes == n { 1.0 } else { (centre + reach) / shrink };
    Some(Interval { estimate, low, high, level })
}

/// How often one of two models wins.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WinRate {
    /// Prompts on which the first is better.
    pub wins: usize,
    /// Prompts on which both are equally good.
    pub ties: usize,
    /// Prompts on which the second is better.
    pub losses: usize,
    /// Prompts left out because a score is NaN.
    pub incomparable: usize,
    /// `(wins + ties / 2) / (wins + ties + losses)` and its interval.
    pub rate: Interval,
}

impl fmt::Display for WinRate {
    /// `0.6250 [0.3900, 0.8130] 95 % (4 won, 2 tied, 2 lost)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.rate, f)?;
        write!(f, " ({} won, {} tied, {} lost)", self.wins, self.ties, self.losses)
    }
}

/// The share of prompts on which the first score of a pair is larger, a tie counting one half, in [0, 1], with [`wilson`]'s interval of
/// `wins + ties / 2` successes.
///
/// That interval is exact in its variance without ties and too wide with them: an outcome in {0, ½, 1} of mean `p` has variance
/// `p (1 − p) − P(tie) / 4`, and Wilson's formula has `p (1 − p)`. For an interval that uses the ties, bootstrap the outcomes.
/// `None` if no prompt is comparable, or for a level outside (0, 1).
pub fn win_rate(pairs: &[(f64, f64)], level: f64) -> Option<WinRate> {
    let count = |order| pairs.iter().filter(|(first, second)| first.partial_cmp(second) == order).count();
    use std::cmp::Ordering::{Equal, Greater, Less};
    let [wins, ties, losses, incomparable] = [Some(Greater), Some(Equal), Some(Less), None].map(count);
    let rate = wilson(wins as f64 + ties as f64 / 2.0, wins + ties + losses, level)?;
    Some(WinRate { wins, ties, losses, incomparable, rate })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_has_a_width_at_the_ends_and_stays_inside() {
        for trials in (1..100).chain([100_000]) {
            let (none, all) = (wilson(0.0, trials, 0.95).unwrap(), wilson(trials as f64, trials, 0.95).unwrap());
            // z² / (n + z²) by the formula at k = 0.
            let z2 = 1.959963984540054f64.powi(2);
            assert!((none.high - z2 / (trials as f64 + z2)).abs() < 1e-14);
            assert_eq!((none.low, all.high), (0.0, 1.0));
            assert!((all.low + none.high - 1.0).abs() < 1e-14);
        }
    }

    #[test]
    fn ties_are_halves_and_nan_is_left_out() {
        let pairs = [(2.0, 1.0), (2.0, 2.0), (1.0, 2.0), (3.0, 2.0), (f64::NAN, 0.0), (0.0, f64::NAN)];
        let found = win_rate(&pairs, 0.95).unwrap();
        assert_eq!((found.wins, found.ties, found.losses, found.incomparable), (2, 1, 1, 2));
        assert_eq!(found.rate.estimate, 0.625);
        let turned: Vec<_> = pairs.map(|(a, b)| (b, a)).to_vec();
        let other = win_rate(&turned, 0.95).unwrap().rate;
        assert!((other.low + found.rate.high - 1.0).abs() < 1e-15 && other.estimate == 0.375);
    }

    #[test]
    fn impossible_proportions_are_none() {
        assert_eq!(wilson(0.0, 0, 0.95), None);
        assert_eq!(wilson(3.0, 2, 0.95), None);
        assert_eq!(wilson(-1.0, 2, 0.95), None);
        assert_eq!(wilson(f64::NAN, 2, 0.95), None);
        for level in [0.0, 1.0, 95.0, f64::NAN] {
            assert_eq!(wilson(1.0, 2, level), None);
        }
        assert_eq!(win_rate(&[(f64::NAN, 1.0)], 0.95), None);
    }

    #[test]
    fn intervals_read_well() {
        let interval = Interval { estimate: 0.663, low: 0.65126, high: 0.6745, level: 0.57 };
        assert_eq!(interval.to_string(), "0.6630 [0.6513, 0.6745] 57 %");
        assert_eq!(format!("{interval:.1}"), "0.7 [0.7, 0.7] 57 %");
        assert_eq!(Interval { level: 0.999, ..interval }.to_string(), "0.6630 [0.6513, 0.6745] 99.9 %");
        let found = win_rate(&[(2.0, 1.0), (2.0, 2.0)], 0.95).unwrap();
        assert!(found.to_string().ends_with("95 % (1 won, 1 tied, 0 lost)"), "{found}");
    }
}
