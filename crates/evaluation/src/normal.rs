//! The standard normal distribution, to full precision in both tails.

use std::f64::consts::TAU;

/// `φ(x) = exp(−x² / 2) / √(2π)`.
fn density(x: f64) -> f64 {
    (-x * x / 2.0).exp() / TAU.sqrt()
}

/// `Φ(x) = P(N(0, 1) ≤ x)`.
///
/// Near 0 by `Φ(x) = ½ + φ(x) (x + x³/3 + x⁵/(3·5) + …)`, in the tails by Laplace's continued fraction
/// `Φ(−x) = φ(x) / (x + 1/(x + 2/(x + 3/(x + …))))`. Source: Marsaglia, Journal of Statistical Software 11 (4), 2004.
pub(crate) fn cdf(x: f64) -> f64 {
    if x.abs() > 3.0 {
        // 120 terms reach the last bit from 3 on.
        let tail = density(x) / (1..=120).rev().fold(x.abs(), |rest, k| x.abs() + f64::from(k) / rest);
        return if x < 0.0 { tail } else { 1.0 - tail };
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > sum.abs() * 1e-18 {
        odd += 2.0;
        term *= x * x / odd;
        sum += term;
    }
    0.5 + density(x) * sum
}

/// The `x` of `Φ(x) = p`; infinite at 0 and 1, NaN outside.
///
/// By Newton's method from 0: in the lower half Φ is convex, so every step falls short of the root or meets it, and none overshoots.
pub(crate) fn quantile(p: f64) -> f64 {
    if p > 0.5 {
        return -quantile(1.0 - p);
    }
    if p == 0.0 {
        return f64::NEG_INFINITY;
    }
    if p.is_nan() || p < 0.0 {
        return f64::NAN;
    }
    let mut x = 0.0;
    // A step into the tail is about 1 / |x|, so that the smallest p takes under 800.
    for _ in 0..1000 {
        let step = (cdf(x) - p) / density(x);
        x -= step;
        if step.abs() <= 1e-15 * x.abs() {
            break;
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_inverts_the_cdf_in_both_tails() {
        for x in [-8.0, -5.0, -3.1, -3.0, -2.9, -1.0, -0.01, 0.0, 0.3, 1.96, 3.0, 3.001, 5.0] {
            assert!((quantile(cdf(x)) - x).abs() < 1e-9, "{x}: {}", quantile(cdf(x)));
        }
        assert_eq!(quantile(0.5), 0.0);
        assert_eq!((quantile(0.0), quantile(1.0)), (f64::NEG_INFINITY, f64::INFINITY));
        assert!(quantile(f64::NAN).is_nan() && quantile(-0.1).is_nan() && quantile(1.1).is_nan());
    }

    #[test]
    fn known_values() {
        // Φ(1.96) from any table; the others from scipy.special.ndtr and ndtri.
        let expected =
            [(1.96, 0.9750021048517795), (-3.0, 0.0013498980316300933), (-3.5, 0.00023262907903552504), (-10.0, 7.61985302416047e-24)];
        for (x, p) in expected {
            assert!((cdf(x) / p - 1.0).abs() < 1e-12, "{x}: {}", cdf(x));
        }
        assert!((quantile(0.975) - 1.959963984540054).abs() < 1e-14);
        assert!((quantile(1e-20) + 9.262340089798409).abs() < 1e-13);
    }
}
