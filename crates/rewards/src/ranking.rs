//! Losses of scores against a ranking, for training reward models.

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Int, Tensor};

/// The Bradley–Terry loss of raw `scores` `[k]` against the ranks of the same `k` images of one prompt, 1 the best:
///
/// ```text
/// mean over all pairs with rank[better] < rank[worse] of −log σ(score[better] − score[worse])        [1]
/// ```
///
/// Ties are skipped; if all pairs are ties, the loss is 0. Each image is scored once, however many pairs it is in.
///
/// Source: ImageReward (arXiv 2304.05977) eq. 1; `loss_func` in `train/src/train.py`, over the pairs of `rank_pair_dataset.py`.
///
/// # Panics
/// When there is not one rank for each score.
pub fn ranking_loss(scores: Tensor<1>, ranks: &[u32]) -> Tensor<1> {
    assert_eq!(scores.dims()[0], ranks.len(), "one rank for each score");
    let indices = || 0..ranks.len();
    let pairs = indices().flat_map(|better| indices().map(move |worse| (better, worse)));
    let pairs: Vec<(usize, usize)> = pairs.filter(|(better, worse)| ranks[*better] < ranks[*worse]).collect();
    if pairs.is_empty() {
        return Tensor::zeros([1], &scores.device().without_autodiff());
    }
    pair_losses(scores, &pairs).mean()
}

/// `−log σ(score[better] − score[worse])` for each pair of indices `(better, worse)` into `scores` `[k]`; shape `[number of pairs]`.
///
/// # Panics
/// When there is no pair, or an index is out of range.
pub fn pair_losses(scores: Tensor<1>, pairs: &[(usize, usize)]) -> Tensor<1> {
    -log_sigmoid(differences(scores, pairs))
}

/// The loss of each pair that is tied: 0 where both scores are equal, larger the further apart they are.
///
/// ```text
/// −½ log σ(d) − ½ log σ(−d) + ln ½,   d = score[a] − score[b]
/// ```
///
/// Source: PickScore (arXiv 2305.01569), `trainer/criterions/clip_criterion.py` with both labels ½.
///
/// # Panics
/// As [`pair_losses`].
pub fn tie_losses(scores: Tensor<1>, ties: &[(usize, usize)]) -> Tensor<1> {
    let difference = differences(scores, ties);
    (log_sigmoid(difference.clone()) + log_sigmoid(-difference)) * -0.5 - std::f64::consts::LN_2
}

/// `score[a] − score[b]` of each pair.
fn differences(scores: Tensor<1>, pairs: &[(usize, usize)]) -> Tensor<1> {
    let device = scores.device().without_autodiff();
    let pick = |indices: Vec<i64>| scores.clone().select(0, Tensor::<1, Int>::from_data(indices.as_slice(), &device));
    let (first, second) = pairs.iter().map(|(a, b)| (*a as i64, *b as i64)).unzip();
    pick(first) - pick(second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tolerance};

    #[test]
    fn ties_are_skipped() {
        let scores = Tensor::<1>::from_data([1.0, 5.0, 0.0], &Device::flex());
        // Two pairs, (0, 1) and (0, 2): ln(1 + e⁴) = 4.018150, ln(1 + e⁻¹) = 0.313262.
        let loss = ranking_loss(scores.clone(), &[1, 2, 2]);
        loss.into_data().assert_approx_eq::<f32>(&[2.165706].into(), Tolerance::default());
        ranking_loss(scores, &[3, 3, 3]).into_data().assert_eq(&[0.0f32].into(), true);
    }

    #[test]
    fn a_tie_costs_what_tells_its_images_apart() {
        let scores = Tensor::<1>::from_data([1.0, 1.0, 3.0], &Device::flex());
        // ½ ln(1 + e²) + ½ ln(1 + e⁻²) − ln 2 = 0.433781.
        tie_losses(scores, &[(0, 1), (0, 2), (2, 0)])
            .into_data()
            .assert_approx_eq::<f32>(&[0.0, 0.433781, 0.433781].into(), Tolerance::default());
    }
}
