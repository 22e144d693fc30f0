//! Losses, as pure functions of tensors whose shapes are given. The files of the algorithms compute the inputs.

mod autoencoder;
mod direct;
mod forward;
mod policy;
mod preferences;

use burn::tensor::{Int, Tensor};

pub use autoencoder::{AutoencoderLoss, AutoencoderWeights, Distance, autoencoder_loss};
pub use direct::{leap_align_loss, refl_loss, reward_loss, semantic_relative_preference, trajectory_similarity};
pub use forward::{Weighting, dgpo_kept, dgpo_weights, nft_loss};
pub use policy::{
    Drift, PolicyLoss, corrected_ratio_loss, d3po_loss, kl_mask_loss, log_hinge_loss, ppo_clip_loss, score_function_loss, transition_kl,
};
pub use preferences::{dpo_inside, dpo_loss, kto_inside, kto_loss, kto_reference_point, smpo_inside};

/// The mean squared error of a prediction, `[b, c, h, w]` → `[1]`: the denoising loss.
pub fn mean_squared_error(prediction: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
    (prediction - target).square().mean()
}

/// The mean squared error of each row, `[b, c, h, w]` → `[b]`.
pub fn squared_errors(prediction: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
    row_means((prediction - target).square())
}

/// The mean absolute error of each row, `[b, c, h, w]` → `[b]`.
pub fn absolute_errors(prediction: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
    row_means((prediction - target).abs())
}

/// The mean squared error of each row minus that of its reference, `[b, c, h, w]` → `[b]`. Computed as
/// `(p − t)² − (r − t)² = (p − r)(p + r − 2t)`, since in single precision the difference of the two squares is mere rounding error while p
/// and r are close.
pub fn squared_error_changes(prediction: Tensor<4>, reference: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
    row_means((prediction.clone() - reference.clone()) * (prediction + reference - target * 2.0))
}

/// The mean of each row, `[b, c, h, w]` → `[b]`.
fn row_means(values: Tensor<4>) -> Tensor<1> {
    let rows = values.dims()[0];
    values.mean_dims(&[1, 2, 3]).reshape([rows])
}

/// `(score − rating)²` of each rating, `[ratings]`. `scores` are `[images]`; each rating comes with the row of its image.
///
/// Source: HelpSteer (arXiv 2311.09528), which regresses on ratings.
pub fn rating_errors(scores: Tensor<1>, ratings: &[(usize, f64)]) -> Tensor<1> {
    let device = scores.device().without_autodiff();
    let (images, values): (Vec<i64>, Vec<f32>) = ratings.iter().map(|(image, rating)| (*image as i64, *rating as f32)).unzip();
    let rated = scores.select(0, Tensor::<1, Int>::from_data(&images[..], &device));
    (rated - Tensor::from_data(&values[..], &device)).square()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    use crate::run::values;

    #[test]
    fn an_absolute_error_is_a_mean_per_row() {
        let rows = |values: [[f32; 2]; 2]| Tensor::<2>::from_data(values, &Device::flex()).reshape([2, 1, 1, 2]);
        assert_eq!(values(&absolute_errors(rows([[1.0, -2.0], [0.0, 0.0]]), rows([[0.0, 1.0], [0.0, 0.5]]))), [2.0, 0.25]);
    }

    #[test]
    fn a_rating_error_is_of_the_rated_image_alone() {
        let scores = Tensor::<1>::from_data([1.0, -1.0, 0.5], &Device::flex());
        assert_eq!(values(&rating_errors(scores, &[(2, 2.0), (0, 1.0)])), [2.25, 0.0]);
    }
}
