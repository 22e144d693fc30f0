//! Whether two orders of the same items agree: Kendall's tau-b, Spearman's rho. `None` with fewer than 2 items, with a NaN among them, and
//! where one side is constant, for that orders nothing.

use crate::agreement::has_nan;

/// Kendall's `τ_b = (P − Q) / √((n₀ − n₁) (n₀ − n₂))`, in [−1, 1]: `P` pairs of items ordered alike, `Q` ordered oppositely, `n₀ = n (n − 1) / 2`,
/// `n₁` and `n₂` pairs tied on the first and on the second side.
///
/// In O(n log n): Q is the number of exchanges of a merge sort. Source: Knight, Journal of the American Statistical Association 61 (1966);
/// `scipy.stats.kendalltau`.
pub fn kendall_tau_b(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.len() < 2 || has_nan(pairs) {
        return None;
    }
    let mut sorted = pairs.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).expect("no NaN"));
    let tied = |run: usize| (run * (run - 1) / 2) as i64;
    let tied_first: i64 = sorted.chunk_by(|a, b| a.0 == b.0).map(|run| tied(run.len())).sum();
    let tied_both: i64 = sorted.chunk_by(|a, b| a == b).map(|run| tied(run.len())).sum();
    let mut second: Vec<_> = sorted.iter().map(|pair| pair.1).collect();
    let discordant = sort_counting_exchanges(&mut second);
    let tied_second: i64 = second.chunk_by(|a, b| a == b).map(|run| tied(run.len())).sum();

    let all = tied(pairs.len());
    // P + Q are the pairs tied on neither side.
    let difference = all - tied_first - tied_second + tied_both - 2 * discordant;
    // One root of the product, for √(a·a) is a to the last bit: full agreement is 1.
    let scale = ((all - tied_first) as f64 * (all - tied_second) as f64).sqrt();
    (scale > 0.0).then(|| (difference as f64 / scale).clamp(-1.0, 1.0))
}

/// Merge-sorts and counts pairs that stood in descending order.
fn sort_counting_exchanges(values: &mut [f64]) -> i64 {
    let n = values.len();
    if n < 2 {
        return 0;
    }
    let (left, right) = values.split_at_mut(n / 2);
    let mut exchanges = sort_counting_exchanges(left) + sort_counting_exchanges(right);
    let mut merged = Vec::with_capacity(n);
    let (mut i, mut j) = (0, 0);
    while i < left.len() && j < right.len() {
        if right[j] < left[i] {
            exchanges += (left.len() - i) as i64;
            merged.push(right[j]);
            j += 1;
        } else {
            merged.push(left[i]);
            i += 1;
        }
    }
    merged.extend_from_slice(&left[i..]);
    merged.extend_from_slice(&right[j..]);
    values.copy_from_slice(&merged);
    exchanges
}

/// Spearman's rho, in [−1, 1]: Pearson's correlation of the ranks, ties sharing the mean of theirs.
///
/// Source: Spearman, American Journal of Psychology 15 (1904); `scipy.stats.spearmanr`.
pub fn spearman_rho(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.len() < 2 || has_nan(pairs) {
        return None;
    }
    // The mean of ranks 1 … n is (n + 1) / 2 whatever the ties; doubled, all sums are of whole numbers.
    let centred = |values: Vec<f64>| mean_ranks(&values).into_iter().map(|rank| 2.0 * rank - (values.len() + 1) as f64).collect::<Vec<_>>();
    let first = centred(pairs.iter().map(|pair| pair.0).collect());
    let second = centred(pairs.iter().map(|pair| pair.1).collect());
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = (product(&first, &first) * product(&second, &second)).sqrt();
    (scale > 0.0).then(|| (product(&first, &second) / scale).clamp(-1.0, 1.0))
}

/// Ranks from 1, the smallest value first; ties share the mean of their ranks.
fn mean_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<_> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].partial_cmp(&values[*b]).expect("no NaN"));
    let mut ranks = vec![0.0; values.len()];
    let mut below = 0;
    for run in order.chunk_by(|a, b| values[*a] == values[*b]) {
        run.iter().for_each(|index| ranks[*index] = below as f64 + (run.len() + 1) as f64 / 2.0);
        below += run.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in O(n²).
    fn tau_by_definition(pairs: &[(f64, f64)]) -> f64 {
        let (mut difference, mut first, mut second) = (0.0, 0.0, 0.0);
        for (i, a) in pairs.iter().enumerate() {
            for b in &pairs[..i] {
                let signs = [a.0.partial_cmp(&b.0).unwrap() as i8, a.1.partial_cmp(&b.1).unwrap() as i8].map(f64::from);
                difference += signs[0] * signs[1];
                first += signs[0] * signs[0];
                second += signs[1] * signs[1];
            }
        }
        difference / (first * second).sqrt()
    }

    #[test]
    fn knights_count_is_the_definition() {
        for n in [2, 3, 7, 64, 301] {
            for levels in [2, 5, 1000] {
                let pairs: Vec<_> = (0..n).map(|i| (f64::from(i * i % 37 % levels), f64::from((i * 7919 + 13) % 101 % levels))).collect();
                let expected = tau_by_definition(&pairs);
                assert!(expected.is_finite());
                assert!((kendall_tau_b(&pairs).unwrap() - expected).abs() < 1e-12, "{n} items of {levels} levels");
            }
        }
    }

    #[test]
    fn a_shift_of_one_place_by_hand() {
        // 2, 3, 1 of 1, 2, 3: one pair alike, two opposite; Σd² = 6, ρ = 1 − 6·6 / (3·8).
        let pairs = [(1.0, 2.0), (2.0, 3.0), (3.0, 1.0)];
        assert!((kendall_tau_b(&pairs).unwrap() + 1.0 / 3.0).abs() < 1e-15);
        assert!((spearman_rho(&pairs).unwrap() + 0.5).abs() < 1e-15);
    }

    #[test]
    fn ties_share_the_mean_rank() {
        assert_eq!(mean_ranks(&[5.0, 1.0, 5.0, 0.0, 5.0]), [4.0, 2.0, 4.0, 1.0, 4.0]);
    }

    #[test]
    fn what_orders_nothing_is_none() {
        for statistic in [kendall_tau_b, spearman_rho] {
            assert_eq!(statistic(&[]), None);
            assert_eq!(statistic(&[(1.0, 2.0)]), None);
            assert_eq!(statistic(&[(1.0, 2.0), (1.0, 3.0)]), None);
            assert_eq!(statistic(&[(1.0, 2.0), (2.0, 2.0)]), None);
            assert_eq!(statistic(&[(1.0, 2.0), (2.0, f64::NAN)]), None);
            assert_eq!(statistic(&[(1.0, 2.0), (2.0, f64::INFINITY)]), Some(1.0));
        }
    }
}
