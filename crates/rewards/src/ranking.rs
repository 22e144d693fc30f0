//! How far scores are from a ranking.

use burn::tensor::activation::log_sigmoid;
use burn::tensor::{Int, Tensor};

/// The Bradley–Terry loss of raw `scores` `[k]` against the ranks of the same `k` images of one prompt, 1 the best:
///
/// ```text
/// mean over all pairs with rank[better] < rank[worse] of −log σ(score[better] − score[worse])        [1]
/// ```
///
/// Ties say nothing and are skipped; with nothing but ties the loss is 0. Each image is scored once, however many pairs it is in.
///
/// Source: ImageReward (arXiv 2304.05977) eq. 1, `train/src/train.py`'s `loss_func` over `rank_pair_dataset.py`'s pairs.
///
/// # Panics
/// When there is not one rank for each score.
pub fn ranking_loss(scores: Tensor<1>, ranks: &[u32]) -> Tensor<1> {
    assert_eq!(scores.dims()[0], ranks.len(), "one rank for each score");
    let indices = || 0..ranks.len();
    let pairs = indices().flat_map(|better| indices().map(move |worse| (better, worse)));
    let (better, worse): (Vec<i64>, Vec<i64>) =
        pairs.filter(|(better, worse)| ranks[*better] < ranks[*worse]).map(|(better, worse)| (better as i64, worse as i64)).unzip();
    let device = scores.device().without_autodiff();
    if better.is_empty() {
        return Tensor::zeros([1], &device);
    }
    let pick = |indices: Vec<i64>| scores.clone().select(0, Tensor::<1, Int>::from_data(indices.as_slice(), &device));
    -log_sigmoid(pick(better) - pick(worse)).mean()
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
}
