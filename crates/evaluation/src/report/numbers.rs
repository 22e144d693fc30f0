//! Numbers as people read them: as many digits as the uncertainty leaves, a true minus sign, and an interval beside every estimate.

use crate::comparison::Difference;
use crate::interval::Interval;

/// What stands for a number that there is none of.
pub(super) const NONE: &str = "–";

/// Beyond that, powers of ten are easier to read.
const DECIMALS: usize = 6;

/// So many decimals that a number of this size has three digits.
fn decimals(size: f64) -> usize {
    if size > 0.0 { (2.0 - size.log10().floor()).clamp(0.0, DECIMALS as f64) as usize } else { 3 }
}

fn fixed(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return NONE.into();
    }
    let far_out = value.abs() >= 1e7 || (value != 0.0 && value.abs() < 1e-5 && decimals >= DECIMALS);
    let shown = if far_out { format!("{value:.2e}") } else { format!("{value:.decimals$}") };
    // −0.00 is 0.00.
    let is_zero = !shown.contains('e') && shown.chars().all(|digit| "-0.".contains(digit));
    if is_zero { shown.replace('-', "") } else { shown.replace('-', "\u{2212}") }
}

/// With three digits or four.
pub(super) fn plain(value: f64) -> String {
    fixed(value, decimals(value.abs().max(0.01)))
}

fn signed(value: f64, decimals: usize) -> String {
    let shown = fixed(value, decimals);
    if value > 0.0 && shown.chars().any(|digit| ('1'..='9').contains(&digit)) { format!("+{shown}") } else { shown }
}

/// `95 %`
pub(super) fn percent(level: f64) -> String {
    format!("{} %", (level * 1e8).round() / 1e6)
}

/// A mean, with the digits that the interval of its difference leaves.
pub(super) fn mean(value: f64, of: &Difference) -> String {
    fixed(value, digits_of(of))
}

fn digits_of(difference: &Difference) -> usize {
    let width = difference.interval.map_or(0.0, |interval| interval.high - interval.low);
    // Where no width, or next to none, is left, it has no digits to give.
    let size = difference.difference.abs();
    decimals(if width > size / 1000.0 { width } else { size })
}

/// `+0.123 [+0.050, +0.196]`, or why there is no interval.
pub(super) fn difference(difference: &Difference) -> String {
    let digits = digits_of(difference);
    let estimate = signed(difference.difference, digits);
    match difference.interval {
        Some(Interval { low, high, .. }) => format!("{estimate} [{}, {}]", signed(low, digits), signed(high, digits)),
        None if difference.prompts < 2 => format!("{estimate} (one prompt, no interval)"),
        None => format!("{estimate} (no interval)"),
    }
}

/// A share in percent: `62.5 % [50.1, 73.4]`
pub(super) fn share(interval: &Interval) -> String {
    let Interval { estimate, low, high, .. } = interval;
    format!("{:.1} % [{:.1}, {:.1}]", 100.0 * estimate, 100.0 * low, 100.0 * high)
}

/// A rating: `1532 [1501, 1566]`
pub(super) fn rating(estimate: f64, interval: Option<Interval>) -> String {
    interval.map_or_else(|| format!("{estimate:.0}"), |interval| format!("{estimate:.0} [{:.0}, {:.0}]", interval.low, interval.high))
}

/// A change between two scores of an image, which has no interval.
pub(super) fn change(from: f64, to: f64) -> String {
    signed(to - from, decimals((to - from).abs().max(0.001)))
}

/// `0.031`, `< 0.0001`
pub(super) fn p_value(p: f64) -> String {
    match p {
        p if p < 0.0001 => "< 0.0001".into(),
        p if p < 0.01 => format!("{p:.4}"),
        p if p < 0.1 => format!("{p:.3}"),
        p => format!("{p:.2}"),
    }
}

/// With fewer prompts than this, a bootstrap interval is too narrow to decide by.
pub(super) const FEW_PROMPTS: usize = 10;

/// What an interval says of a difference.
pub(super) fn verdict(difference: &Difference) -> &'static str {
    match difference.interval {
        Some(_) if difference.prompts < FEW_PROMPTS => "too few prompts",
        Some(interval) if interval.low > 0.0 => "higher",
        Some(interval) if interval.high < 0.0 => "lower",
        Some(interval) if interval.low == 0.0 && interval.high == 0.0 => "equal",
        Some(_) => "not told apart",
        None => "unknown",
    }
}

/// `1 prompt`, `2 prompts`
pub(super) fn counted(count: usize, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(estimate: f64, low: f64, high: f64) -> Difference {
        let interval = Some(Interval { estimate, low, high, level: 0.95 });
        Difference { prompts: 10, baseline: 1.0, candidate: 1.0 + estimate, difference: estimate, interval }
    }

    #[test]
    fn digits_follow_the_uncertainty() {
        assert_eq!(difference(&of(0.0123456, -0.001, 0.0257)), "+0.0123 [\u{2212}0.0010, +0.0257]");
        assert_eq!(difference(&of(-12.3456, -20.0, -4.0)), "\u{2212}12.3 [\u{2212}20.0, \u{2212}4.0]");
        assert_eq!(mean(1.23456, &of(0.5, 0.1, 0.9)), "1.235");
        assert_eq!(difference(&of(0.0, 0.0, 0.0)), "0.000 [0.000, 0.000]");
        assert_eq!(difference(&of(-0.04, -0.04000000001, -0.04)), "\u{2212}0.0400 [\u{2212}0.0400, \u{2212}0.0400]");
        assert_eq!(difference(&Difference { prompts: 1, interval: None, ..of(0.25, 0.0, 0.0) }), "+0.250 (one prompt, no interval)");
        assert_eq!(plain(1234567.0), "1234567");
        assert_eq!(plain(2e9), "2.00e9");
        assert_eq!(plain(f64::NAN), NONE);
        assert_eq!(change(0.5, 0.49999), "\u{2212}0.00001");
        assert_eq!(difference(&of(1e-8, -1e-8, 3e-8)), "+1.00e\u{2212}8 [\u{2212}1.00e\u{2212}8, +3.00e\u{2212}8]");
        assert_eq!(difference(&of(0.01, -1e-8, 0.02)), "+0.0100 [0.0000, +0.0200]");
    }

    #[test]
    fn verdicts_look_at_the_interval() {
        assert_eq!(
            [of(1.0, 0.5, 2.0), of(-1.0, -2.0, -0.5), of(1.0, -0.5, 2.0)].map(|d| verdict(&d)),
            ["higher", "lower", "not told apart"]
        );
        assert_eq!(verdict(&of(0.0, 0.0, 0.0)), "equal");
        assert_eq!(verdict(&Difference { prompts: 9, ..of(1.0, 0.5, 2.0) }), "too few prompts");
        assert_eq!(verdict(&Difference { interval: None, ..of(1.0, 0.5, 2.0) }), "unknown");
    }

    #[test]
    fn p_values_keep_what_counts() {
        assert_eq!([0.00001, 0.0012, 0.0312, 0.5].map(p_value), ["< 0.0001", "0.0012", "0.031", "0.50"]);
    }
}
