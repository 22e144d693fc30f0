//! Whether two models differ on the same prompts: paired tests, two-sided.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

/// What the sign test found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SignTest {
    /// Pairs of which the first is larger.
    pub wins: usize,
    /// Pairs of which the second is larger.
    pub losses: usize,
    /// Pairs that tie, which the test drops.
    pub ties: usize,
    /// In (0, 1].
    pub p_value: f64,
}

/// The exact sign test: how likely wins and losses as uneven as these are where each is as likely as the other. With `n` pairs that do not
/// tie, `p = min(1, 2 · Σ_{k ≤ min(wins, losses)} C(n, k) / 2ⁿ)`; 1 if all tie. `None` for no pair, or with a NaN.
///
/// Asks for the direction alone, so one prompt of a huge difference is one prompt. Source: SciPy's `binomtest(wins, wins + losses)`.
pub fn sign_test(pairs: &[(f64, f64)]) -> Option<SignTest> {
    if pairs.is_empty() || pairs.iter().any(|(first, second)| first.is_nan() || second.is_nan()) {
        return None;
    }
    let wins = pairs.iter().filter(|(first, second)| first > second).count();
    let losses = pairs.iter().filter(|(first, second)| first < second).count();
    let p_value = (2.0 * binomial_half_below(wins.min(losses), wins + losses)).min(1.0);
    Some(SignTest { wins, losses, ties: pairs.len() - wins - losses, p_value })
}

/// `P(X ≤ k)` of `X ~ Binomial(n, ½)`, for `2k ≤ n`.
fn binomial_half_below(k: usize, n: usize) -> f64 {
    // From the largest term down, C(n, j − 1) = C(n, j) · j / (n − j + 1). The largest in logarithms, for 2ⁿ overflows from n = 1024 on.
    let log_largest: f64 = (1..=k).map(|i| ((n - k + i) as f64 / i as f64).ln()).sum::<f64>() - n as f64 * std::f64::consts::LN_2;
    let (mut term, mut sum) = (1.0, 1.0);
    for j in (1..=k).rev() {
        term *= j as f64 / (n - j + 1) as f64;
        sum += term;
    }
    log_largest.exp() * sum
}

/// What the permutation test found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PermutationTest {
    /// The mean of `first − second`.
    pub mean_difference: f64,
    /// In (0, 1].
    pub p_value: f64,
    /// Over how many assignments of signs it was computed.
    pub permutations: u64,
    /// Whether those were all there are.
    pub exact: bool,
}

/// Up to how many differing pairs all assignments of signs are counted: 2²⁰, some tens of milliseconds.
const EXACT_PAIRS: usize = 20;

/// The paired permutation test of the mean difference: if the models do not differ, every difference might as well have the opposite sign, and
/// `p` is the share of the `2ⁿ` assignments of signs of which the mean is as far from 0 as the mean observed, or farther.
///
/// Counts all of them for up to 20 pairs that differ (pairs that do not change nothing); for more it draws `resamples` with `seed` and gives
/// `(1 + #{as far}) / (1 + resamples)`, which is never 0 (Phipson and Smyth, Statistical Applications in Genetics and Molecular Biology 9,
/// 2010). `None` for no pair, or if a difference is not finite.
///
/// Source: Fisher, The Design of Experiments (1935), section 21; `scipy.stats.permutation_test` with `permutation_type="samples"`.
pub fn permutation_test(pairs: &[(f64, f64)], resamples: u64, seed: u64) -> Option<PermutationTest> {
    let differences: Vec<_> = pairs.iter().map(|(first, second)| first - second).collect();
    if pairs.is_empty() || differences.iter().any(|difference| !difference.is_finite()) {
        return None;
    }
    let observed: f64 = differences.iter().sum();
    let mean_difference = observed / differences.len() as f64;
    let sizes: Vec<_> = differences.iter().map(|difference| difference.abs()).filter(|size| *size > 0.0).collect();
    // Sums that are equal but for the order of their rounding count as equal.
    let as_far = observed.abs() - 1e-14 * sizes.iter().sum::<f64>();
    if sizes.len() <= EXACT_PAIRS {
        let permutations = 1u64 << sizes.len();
        let extreme = (0..permutations).filter(|signs| signed_sum(&sizes, *signs).abs() >= as_far).count();
        return Some(PermutationTest { mean_difference, p_value: extreme as f64 / permutations as f64, permutations, exact: true });
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || sizes.chunks(64).map(|sizes| signed_sum(sizes, random.next_u64())).sum::<f64>();
    let extreme = (0..resamples).filter(|_| draw().abs() >= as_far).count();
    let p_value = (1 + extreme) as f64 / (resamples as f64 + 1.0);
    Some(PermutationTest { mean_difference, p_value, permutations: resamples, exact: false })
}

/// The sum with the sign of size `i` taken from bit `i`.
fn signed_sum(sizes: &[f64], signs: u64) -> f64 {
    sizes.iter().enumerate().map(|(i, size)| if signs >> i & 1 == 1 { -size } else { *size }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn against_zero(differences: &[f64]) -> Vec<(f64, f64)> {
        differences.iter().map(|difference| (*difference, 0.0)).collect()
    }

    #[test]
    fn five_wins_of_five_are_one_in_sixteen() {
        // Both tests: two of 2⁵ assignments are as extreme.
        let pairs = against_zero(&[1.0, 2.0, 0.5, 3.0, 1.5, 0.0]);
        assert_eq!(sign_test(&pairs).unwrap().p_value, 0.0625);
        let found = permutation_test(&pairs, 0, 0).unwrap();
        assert_eq!((found.p_value, found.permutations, found.exact), (0.0625, 32, true));
        assert_eq!(found.mean_difference, 8.0 / 6.0);
    }

    #[test]
    fn the_order_of_a_pair_does_not_matter() {
        let pairs = against_zero(&[1.0, -0.3, 0.7, 0.1, 0.2, -0.1, 0.0]);
        let turned: Vec<_> = pairs.iter().map(|(a, b)| (*b, *a)).collect();
        assert_eq!(sign_test(&pairs).unwrap().p_value, sign_test(&turned).unwrap().p_value);
        let (found, other) = (permutation_test(&pairs, 0, 0).unwrap(), permutation_test(&turned, 0, 0).unwrap());
        assert_eq!((found.p_value, found.mean_difference), (other.p_value, -other.mean_difference));
    }

    #[test]
    fn equal_sums_count_though_they_round_differently() {
        // 0.1 + 0.2 − 0.3 is not 0 in floating point; |±0.1 ± 0.2 ± 0.3| is at least that in all 8 cases, and 0.6 in two.
        assert_eq!(permutation_test(&against_zero(&[0.1, 0.2, -0.3]), 0, 0).unwrap().p_value, 1.0);
        assert_eq!(permutation_test(&against_zero(&[0.3, 0.1, 0.2]), 0, 0).unwrap().p_value, 0.25);
    }

    #[test]
    fn drawn_signs_agree_with_counted_ones() {
        // 20 pairs are counted. The same with a 21st so small that it changes little are drawn.
        let mut differences: Vec<_> = (0..20).map(|i| f64::from(i * 7 % 11) - 3.6).collect();
        let counted = permutation_test(&against_zero(&differences), 0, 0).unwrap();
        differences.push(1e-9);
        let drawn = permutation_test(&against_zero(&differences), 40_000, 3).unwrap();
        assert!(counted.exact && !drawn.exact);
        assert_eq!((counted.permutations, drawn.permutations), (1 << 20, 40_000));
        // Standard deviation of a share of 40 000: at most 0.0025.
        assert!((counted.p_value - drawn.p_value).abs() < 0.01, "{} and {}", counted.p_value, drawn.p_value);
        assert_eq!(Some(drawn), permutation_test(&against_zero(&differences), 40_000, 3));
        // Of differences of one size only the signs are left: 55 against 45, more than one draw of 64 bits.
        let even: Vec<_> = (0..100).map(|i| if i < 45 { -1.0 } else { 1.0 }).collect();
        let (drawn, counted) = (permutation_test(&against_zero(&even), 40_000, 0).unwrap(), sign_test(&against_zero(&even)).unwrap());
        assert!((drawn.p_value - counted.p_value).abs() < 0.01, "{} and {}", drawn.p_value, counted.p_value);
        let certain = permutation_test(&against_zero(&[1.0; 100]), 999, 0).unwrap();
        assert_eq!(certain.p_value, 0.001);
    }

    #[test]
    fn no_difference_is_no_evidence_and_no_data_is_none() {
        assert_eq!(sign_test(&[(1.0, 1.0); 4]).unwrap().p_value, 1.0);
        assert_eq!(permutation_test(&[(1.0, 1.0); 4], 10, 0).unwrap().p_value, 1.0);
        for pairs in [vec![], vec![(f64::NAN, 1.0), (2.0, 1.0)]] {
            assert_eq!(sign_test(&pairs), None);
            assert_eq!(permutation_test(&pairs, 10, 0), None);
        }
        assert_eq!(permutation_test(&[(f64::INFINITY, 1.0)], 10, 0), None);
    }
}
