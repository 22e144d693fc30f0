//! Losses, as pure functions of tensors whose shapes are given. The files of the algorithms compute the inputs.

mod forward;
mod policy;

use burn::tensor::activation::{log_sigmoid, relu, sigmoid};
use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

pub use forward::{Weighting, dgpo_kept, dgpo_weights, nft_loss};
pub use policy::{
    Drift, PolicyLoss, corrected_ratio_loss, d3po_loss, kl_mask_loss, log_hinge_loss, ppo_clip_loss, score_function_loss, transition_kl,
};

// From a reward's gradient.

/// ReFL's loss: `grad_scale · mean(relu(margin − r))`, `[b]` → `[1]`. An image whose reward is above the margin gives no gradient.
///
/// Source: ImageReward (arXiv 2304.05977) equation 4 with φ = relu(margin − ·); ImageReward `ReFL.py`, where margin = 2 and
/// grad_scale = 1e-3.
pub fn refl_loss(rewards: Tensor<1>, margin: f64, grad_scale: f64) -> Tensor<1> {
    hinge(rewards, margin).mean() * grad_scale
}

/// `relu(margin − r)`, `[b]`.
fn hinge(rewards: Tensor<1>, margin: f64) -> Tensor<1> {
    relu(-rewards + margin)
}

/// LeapAlign's loss: `grad_scale · mean(w · relu(margin − r))`, `[b]` → `[1]`; the weights are constants.
///
/// Source: LeapAlign (arXiv 2604.15311) equations 11 and 13; FlowBP `trainers/sd35/leapalign.py`.
pub fn leap_align_loss(rewards: Tensor<1>, weights: Tensor<1>, margin: f64, grad_scale: f64) -> Tensor<1> {
    (hinge(rewards, margin) * weights.without_autodiff()).mean() * grad_scale
}

/// LeapAlign's weight of a trajectory, `1 / (max(d_j, τ) + max(d_0, τ))`, `[b]` each: the closer its two leaps end to the real path, the more
/// it counts.
///
/// Source: LeapAlign (arXiv 2604.15311) equation 12.
pub fn trajectory_similarity([first, second]: [Tensor<1>; 2], min_distance: f64) -> Tensor<1> {
    (first.clamp_min(min_distance) + second.clamp_min(min_distance)).recip()
}

/// SRPO's semantic relative preference of an image, `(1 + k) r₊ − r₋`, `[b]` each: its rewards under two texts against each other.
///
/// Source: SRPO (arXiv 2509.06942) equation 8, in the form of `SRP_cfg` in `fastvideo/SRPO.py`.
pub fn semantic_relative_preference(positive: Tensor<1>, negative: Tensor<1>, k: f64) -> Tensor<1> {
    positive * (1.0 + k) - negative
}

/// The loss of DRaFT, AlignProp and DRTune: `−grad_scale · mean(r)`, `[b]` → `[1]`.
///
/// Source: DRaFT (arXiv 2309.17400) equation 1; AlignProp (2310.03739) equation 2.
pub fn reward_loss(rewards: Tensor<1>, grad_scale: f64) -> Tensor<1> {
    rewards.mean() * -grad_scale
}

// From given images.

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

/// The argument of Diffusion-DPO's σ, `[b]`: how much more than the reference the model prefers the chosen images. It is 0 for the
/// reference itself.
///
/// ```text
/// inside = −0.5 β [(ℓ_θ(chosen) − ℓ_ref(chosen)) − (ℓ_θ(rejected) − ℓ_ref(rejected))]
/// ```
///
/// The arguments are the two differences of denoising losses, which are means over c, h, w; `[b]` each.
///
/// Source: Wallace et al. (arXiv 2311.12908) equation 14, with `train.py`'s 0.5 β for β T ω(λ_t) and means for squared norms. `train.py`
/// pairs the same four losses the other way round.
pub fn dpo_inside(chosen_change: Tensor<1>, rejected_change: Tensor<1>, beta: f64) -> Tensor<1> {
    (chosen_change - rejected_change) * (-0.5 * beta)
}

/// Diffusion-DPO's loss, `[b]` → `[1]`: the mean of −log σ(inside), without overflow on either side. Source as for [`dpo_inside`].
pub fn dpo_loss(inside: Tensor<1>) -> Tensor<1> {
    -log_sigmoid(inside).mean()
}

/// SmPO's argument of σ, `[b]`: `scale (2p − 1) · inside`, with [`dpo_inside`] and the probability p that the chosen image is the better
/// one, `[b]`. A pair whose images are equally good teaches nothing; one with p below one half is turned round.
///
/// Source: SmPO-Diffusion (arXiv 2506.02698) equation 9, where `scale` is γ and p is α / γ; `train.py`, where γ = 10. The factor stands
/// within σ, beside β, and not before the logarithm.
pub fn smpo_inside(inside: Tensor<1>, probabilities: Tensor<1>, scale: f64) -> Tensor<1> {
    inside * ((probabilities * 2.0 - 1.0) * scale)
}

/// Diffusion-KTO's reference point z, `[b]` → `[1]`, off the tape: `max(mean(g), 0)` of how much more than the reference the model likes
/// each image, `g = ℓ_ref − ℓ_θ`.
///
/// Source: Li et al. (arXiv 2404.04465) section 4.1, Q_ref; `train_kto_sd_v1.5.py`, whose default takes the mean over the batch itself.
pub fn kto_reference_point(gains: Tensor<1>) -> Tensor<1> {
    gains.without_autodiff().mean().clamp_min(0.0)
}

/// The argument of Diffusion-KTO's utility, `[b]`: `± β (g − z)`. The gains g are `[b]`, the reference point z is `[1]`, and the signs are
/// `[b]`: +1 for a liked image, −1 for a disliked one.
///
/// Source: Li et al. (arXiv 2404.04465) equation 8, where w is the sign.
pub fn kto_inside(gains: Tensor<1>, reference_point: Tensor<1>, signs: Tensor<1>, beta: f64) -> Tensor<1> {
    (gains - reference_point) * signs * beta
}

/// Diffusion-KTO's loss, `[b]` → `[1]`: the mean of `λ (1 − σ(inside))`, for the weights λ `[b]`. The utility σ is that of Kahneman and
/// Tversky's model.
///
/// Source: Li et al. (arXiv 2404.04465) section 4.2; `train_kto_sd_v1.5.py` with `--halo sigmoid`.
pub fn kto_loss(inside: Tensor<1>, weights: Tensor<1>) -> Tensor<1> {
    // 1 − σ(x) = σ(−x), which does not round a small remainder away.
    (sigmoid(-inside) * weights).mean()
}

// From ratings.

/// `(score − rating)²` of each rating, `[ratings]`. `scores` are `[images]`; each rating comes with the row of its image.
///
/// Source: HelpSteer (arXiv 2311.09528), which regresses on ratings.
pub fn rating_errors(scores: Tensor<1>, ratings: &[(usize, f64)]) -> Tensor<1> {
    let device = scores.device().without_autodiff();
    let (images, values): (Vec<i64>, Vec<f32>) = ratings.iter().map(|(image, rating)| (*image as i64, *rating as f32)).unzip();
    let rated = scores.select(0, Tensor::<1, Int>::from_data(&images[..], &device));
    (rated - Tensor::from_data(&values[..], &device)).square()
}

// Of the autoencoder.

/// The distance between a reconstruction and its image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Mean absolute error, which gives sharper images.
    L1,
    /// Mean squared error.
    #[default]
    L2,
}

/// The distance and the weights of the parts of [`autoencoder_loss`].
#[derive(Debug, Clone, Copy)]
pub struct AutoencoderWeights {
    /// The distance between a reconstruction and its image.
    pub reconstruction: Distance,
    /// How much more the pixels count that differ from the image's mean colour; 0 for equal weights. A pixel has the weight
    /// `1 + foreground_weight · d / mean(d)`, where `d` is its mean absolute difference from the mean colour.
    pub foreground_weight: f64,
    /// Factor of the mean absolute difference of the error between neighbouring pixels.
    pub edge_weight: f64,
    /// Factor of the KL divergence.
    pub kl_weight: f64,
}

/// The parts of [`autoencoder_loss`], one value per image, `[b]`.
#[derive(Debug, Clone)]
pub struct AutoencoderLoss {
    /// The reconstruction's mean distance per pixel, for pixels in [−1, 1].
    pub reconstruction: Tensor<1>,
    /// The mean absolute difference of the error between neighbouring pixels, across plus down.
    pub edge: Tensor<1>,
    /// The KL divergence of the latents, summed over an image's latents.
    pub kl: Tensor<1>,
    /// The weighted sum of the three parts.
    pub total: Tensor<1>,
}

/// The autoencoder's loss: reconstruction, edges and KL. `reconstructed` and `pixels` are `[b, 3, h, w]` in [−1, 1]; `kl` is `[b]`.
///
/// Source: Rombach et al. (arXiv 2112.10752) section 3.1 and appendix G, without the discriminator and the perceptual network.
pub fn autoencoder_loss(reconstructed: Tensor<4>, pixels: Tensor<4>, kl: Tensor<1>, weights: AutoencoderWeights) -> AutoencoderLoss {
    let [_, _, height, width] = pixels.dims();
    let pixel_weights = (weights.foreground_weight != 0.0).then(|| foreground_weights(&pixels, weights.foreground_weight));
    let error = reconstructed - pixels;
    let distance = match weights.reconstruction {
        Distance::L1 => error.clone().abs(),
        Distance::L2 => error.clone().square(),
    };
    let reconstruction = row_means(match pixel_weights {
        Some(pixel_weights) => distance * pixel_weights,
        None => distance,
    });
    let across = error.clone().narrow(3, 1, width - 1) - error.clone().narrow(3, 0, width - 1);
    let down = error.clone().narrow(2, 1, height - 1) - error.narrow(2, 0, height - 1);
    let edge = row_means(across.abs()) + row_means(down.abs());
    let total = reconstruction.clone() + edge.clone() * weights.edge_weight + kl.clone() * weights.kl_weight;
    AutoencoderLoss { reconstruction, edge, kl, total }
}

/// The weight of each pixel's error, `[b, 1, h, w]`.
fn foreground_weights(pixels: &Tensor<4>, weight: f64) -> Tensor<4> {
    let difference = (pixels.clone() - pixels.clone().mean_dims(&[2, 3])).abs().mean_dim(1);
    // An image of one colour has no foreground.
    let mean = difference.clone().mean_dims(&[2, 3]).clamp_min(1e-6);
    difference / mean * weight + 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tolerance};

    use crate::run::values;

    #[test]
    fn rewards_above_the_margin_give_no_gradient() {
        let rewards = Tensor::<1>::from_data([1.5, 3.0], &Device::flex().autodiff()).require_grad();
        let loss = refl_loss(rewards.clone(), 2.0, 0.1);
        // mean(0.5, 0) · 0.1
        assert!((loss.clone().into_scalar::<f32>() - 0.025).abs() < 1e-7);
        let gradient: Vec<f32> = rewards.grad(&loss.backward()).expect("tracked").into_data().try_to_vec().expect("f32");
        assert_eq!(gradient, [-0.05, 0.0]);
    }

    #[test]
    fn a_leap_counts_by_its_weight_and_gives_the_weight_no_gradient() {
        let device = Device::flex().autodiff();
        let tracked = |values: [f32; 3]| Tensor::<1>::from_data(values, &device).require_grad();
        let (rewards, distances) = (tracked([0.05, 0.75, -0.45]), [tracked([0.02, 0.3, 0.5]), tracked([0.06, 0.05, 0.3])]);
        // 1 / (0.1 + 0.1), 1 / (0.3 + 0.1), 1 / (0.5 + 0.3).
        let weights = trajectory_similarity(distances.clone(), 0.1);
        assert!(values(&weights).iter().zip([5.0, 2.5, 1.25]).all(|(a, b)| (a - b).abs() < 1e-5), "{:?}", values(&weights));
        let loss = leap_align_loss(rewards.clone(), weights, 0.55, 0.3);
        // 0.1 · (5 · 0.5 + 0 + 1.25 · 1)
        assert!((values(&loss)[0] - 0.375).abs() < 1e-6, "{:?}", values(&loss));
        let gradients = loss.backward();
        let gradient: Vec<f32> = rewards.grad(&gradients).expect("tracked").into_data().try_to_vec().expect("f32");
        assert!(gradient.iter().zip([-0.5, 0.0, -0.125]).all(|(a, b)| (a - b).abs() < 1e-6), "{gradient:?}");
        assert!(distances.iter().all(|distance| distance.grad(&gradients).is_none()));
    }

    #[test]
    fn an_absolute_error_is_a_mean_per_row() {
        let rows = |values: [[f32; 2]; 2]| Tensor::<2>::from_data(values, &Device::flex()).reshape([2, 1, 1, 2]);
        assert_eq!(values(&absolute_errors(rows([[1.0, -2.0], [0.0, 0.0]]), rows([[0.0, 1.0], [0.0, 0.5]]))), [2.0, 0.25]);
    }

    #[test]
    fn a_relative_preference_pulls_to_one_text_and_away_from_the_other() {
        let device = Device::flex().autodiff();
        let tracked = |value: f32| Tensor::<1>::from_data([value], &device).require_grad();
        let (positive, negative) = (tracked(2.0), tracked(3.0));
        let preference = semantic_relative_preference(positive.clone(), negative.clone(), 0.25);
        assert_eq!(values(&preference), [-0.5]);
        let gradients = preference.backward();
        let gradient = |rewards: Tensor<1>| values(&rewards.grad(&gradients).expect("tracked"));
        assert_eq!((gradient(positive), gradient(negative)), (vec![1.25], vec![-1.0]));
        // The same text twice: the reward, discounted.
        let (reward, k) = (tracked(2.0), 0.25);
        assert_eq!(values(&semantic_relative_preference(reward.clone(), reward, k)), [0.5]);
    }

    #[test]
    fn dpo_of_the_reference_itself_is_ln_2() {
        let change = Tensor::<1>::zeros([2], &Device::flex());
        let loss = dpo_loss(dpo_inside(change.clone(), change, 5000.0));
        loss.into_data().assert_approx_eq::<f32>(&[std::f32::consts::LN_2].into(), Tolerance::default());
    }

    #[test]
    fn dpo_by_hand_and_its_gradient() {
        let device = Device::flex().autodiff();
        let change = |values: [f32; 2]| Tensor::<1>::from_data(values, &device).require_grad();
        let (chosen, rejected) = (change([0.0, -0.5]), change([-0.25, 0.5]));
        // −0.5 · 4 · (0 + 0.25) and −0.5 · 4 · (−0.5 − 0.5).
        let inside = dpo_inside(chosen.clone(), rejected.clone(), 4.0);
        inside.clone().into_data().assert_eq(&[-0.5f32, 2.0].into(), true);
        // Twice the β, twice the inside.
        dpo_inside(chosen.clone(), rejected.clone(), 8.0).into_data().assert_eq(&[-1.0f32, 4.0].into(), true);
        // (ln(1 + e^0.5) + ln(1 + e^−2)) / 2
        let loss = dpo_loss(inside);
        loss.clone().into_data().assert_approx_eq::<f32>(&[0.550502].into(), Tolerance::default());
        // ∂L/∂ℓ(chosen) = 0.5 β σ(−inside) / b, and its opposite: descent lowers the chosen losses and raises the rejected.
        let gradients = loss.backward();
        for (losses, sign) in [(chosen, 1.0), (rejected, -1.0)] {
            let gradient: Vec<f32> = losses.grad(&gradients).expect("tracked").into_data().try_to_vec().expect("f32");
            for (found, expected) in gradient.iter().zip([0.6224593, 0.11920292]) {
                assert!((found - sign * expected).abs() < 1e-6, "{gradient:?}");
            }
        }
    }

    #[test]
    fn dpo_is_finite_however_far_the_model_has_gone() {
        let inside = Tensor::<1>::from_data([1e4, -1e4], &Device::flex().autodiff()).require_grad();
        let loss = dpo_loss(inside.clone());
        assert_eq!(loss.clone().into_scalar::<f32>(), 5e3);
        let gradient: Vec<f32> = inside.grad(&loss.backward()).expect("tracked").into_data().try_to_vec().expect("f32");
        assert_eq!(gradient, [0.0, -0.5]);
    }

    #[test]
    fn smpo_by_hand_and_of_certain_pairs_dpo_itself() {
        let device = Device::flex();
        let inside = || Tensor::<1>::from_data([-0.5f32, 2.0, 3.0, 1.0], &device);
        let weighted = |probabilities: [f32; 4], scale| smpo_inside(inside(), Tensor::from_data(probabilities, &device), scale);
        // 10 · (2 · 0.75 − 1) = 5, 10 · 0 = 0, 10 · −1 = −10 and 10 · 1 = 10.
        weighted([0.75, 0.5, 0.0, 1.0], 10.0).into_data().assert_eq(&[-2.5f32, 0.0, -30.0, 10.0].into(), true);
        weighted([1.0; 4], 1.0).into_data().assert_eq(&inside().into_data(), true);
        dpo_loss(weighted([1.0; 4], 1.0)).into_data().assert_eq(&dpo_loss(inside()).into_data(), true);
    }

    #[test]
    fn an_undecided_pair_gives_no_gradient() {
        let inside = Tensor::<1>::from_data([0.3f32, 0.3], &Device::flex().autodiff()).require_grad();
        let loss = dpo_loss(smpo_inside(inside.clone(), Tensor::from_data([0.5f32, 0.75], &Device::flex()), 10.0));
        let gradient: Vec<f32> = inside.grad(&loss.backward()).expect("tracked").into_data().try_to_vec().expect("f32");
        // −5 σ(−1.5) / 2 for the second.
        assert!(gradient[0] == 0.0 && (gradient[1] + 5.0 * 0.18242552 / 2.0).abs() < 1e-6, "{gradient:?}");
    }

    /// Gains of three images of which two are liked, in eighths, so that sums are exact.
    const GAINS: [f32; 3] = [0.75, -0.125, 0.5];

    #[test]
    fn the_reference_point_is_the_mean_gain_and_never_below_nothing() {
        let point = |gains: [f32; 3]| kto_reference_point(Tensor::from_data(gains, &Device::flex())).into_scalar::<f32>();
        assert_eq!(point(GAINS), 0.375);
        assert_eq!(point(GAINS.map(|gain| -gain)), 0.0);
        assert_eq!(point([0.0; 3]), 0.0);
    }

    /// The loss of the three gains at β = 4, with the weights 1, 1 and 2, and what is to be differentiated.
    fn kto(gains: [f32; 3], reference_point: f32) -> (Tensor<1>, Tensor<1>) {
        let device = Device::flex();
        let gains = Tensor::<1>::from_data(gains, &Device::flex().autodiff()).require_grad();
        let (point, signs) = (Tensor::from_data([reference_point], &device), Tensor::from_data([1.0f32, 1.0, -1.0], &device));
        let inside = kto_inside(gains.clone(), point, signs, 4.0);
        (kto_loss(inside, Tensor::from_data([1.0f32, 1.0, 2.0], &device)), gains)
    }

    #[test]
    fn kto_by_hand_and_its_gradient() {
        let (loss, gains) = kto(GAINS, 0.375);
        // ± 4 (g − 0.375) = 1.5, −2 and −0.5: (σ(−1.5) + σ(2) + 2 σ(0.5)) / 3.
        let expected = (0.18242552 + 0.88079708 + 2.0 * 0.62245933) / 3.0;
        assert!((values(&loss)[0] - expected).abs() < 1e-6, "{:?}", values(&loss));
        // ∂L/∂g = ∓ λ β σ(x) σ(−x) / b: descent raises the gains of liked images and lowers those of disliked ones.
        let gradient: Vec<f32> = gains.grad(&loss.backward()).expect("tracked").into_data().try_to_vec().expect("f32");
        let slope = |sigma: f64| sigma * (1.0 - sigma);
        let expected = [-4.0 * slope(0.18242552) / 3.0, -4.0 * slope(0.88079708) / 3.0, 8.0 * slope(0.62245933) / 3.0];
        assert!(gradient.iter().zip(expected).all(|(found, expected)| (f64::from(*found) - expected).abs() < 1e-6), "{gradient:?}");
    }

    #[test]
    fn the_gradient_of_kto_is_that_of_finite_differences_with_the_reference_point_held() {
        let device = Device::flex().autodiff();
        let gains = Tensor::<1>::from_data(GAINS, &device).require_grad();
        let (signs, weights) = (Tensor::<1>::from_data([1.0f32, 1.0, -1.0], &device), Tensor::<1>::from_data([1.0f32, 1.0, 2.0], &device));
        let loss = kto_loss(kto_inside(gains.clone(), kto_reference_point(gains.clone()), signs, 4.0), weights);
        let gradient: Vec<f32> = gains.grad(&loss.backward()).expect("tracked").into_data().try_to_vec().expect("f32");
        const STEP: f32 = 1.0 / 64.0;
        for (index, found) in gradient.into_iter().enumerate() {
            let at = |step: f32| {
                let mut gains = GAINS;
                gains[index] += step;
                values(&kto(gains, 0.375).0)[0]
            };
            let expected = (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP);
            assert!((f64::from(found) - expected).abs() < 1e-3, "{index}: {found} and {expected}");
        }
    }

    #[test]
    fn kto_of_the_reference_itself_is_half_the_weights_and_finite_however_far_the_model_has_gone() {
        let loss = |gain: f32| values(&kto([gain, gain, -gain], 0.0).0)[0];
        // Halves of the weights 1, 1 and 2; then nothing, and then all of them.
        for (gain, expected) in [(0.0, 2.0 / 3.0), (1e4, 0.0), (-1e4, 4.0 / 3.0)] {
            assert!((loss(gain) - expected).abs() < 1e-6, "{gain}: {}", loss(gain));
        }
        let (loss, gains) = kto([-1e4, 1e4, 1e4], 0.0);
        let gradient: Vec<f32> = gains.grad(&loss.backward()).expect("tracked").into_data().try_to_vec().expect("f32");
        assert!(gradient.iter().all(|gradient| gradient.is_finite()), "{gradient:?}");
    }

    #[test]
    fn the_loss_is_the_mean_rewards_negative() {
        let rewards = Tensor::<1>::from_data([1.0, 2.0], &Device::flex().autodiff()).require_grad();
        let loss = reward_loss(rewards.clone(), 0.1);
        assert!((values(&loss)[0] + 0.15).abs() < 1e-7);
        let gradient: Vec<f32> = rewards.grad(&loss.backward()).expect("tracked").into_data().try_to_vec().expect("f32");
        assert_eq!(gradient, [-0.05, -0.05]);
    }

    #[test]
    fn the_autoencoders_loss_by_hand() {
        let device = Device::flex();
        let zeros = || Tensor::<4>::zeros([1, 1, 2, 2], &device);
        let one_pixel = || Tensor::<4>::from_data([[[[1.0, 0.0], [0.0, 0.0]]]], &device);
        let kl = |value: f32| Tensor::<1>::from_data([value], &device);
        let weights = AutoencoderWeights { reconstruction: Distance::L2, foreground_weight: 0.0, edge_weight: 0.1, kl_weight: 0.5 };
        let loss = autoencoder_loss(one_pixel(), zeros(), kl(2.0), weights);
        // One pixel of four is off by 1; one of two differences along each axis is 1.
        assert_eq!((values(&loss.reconstruction), values(&loss.edge)), (vec![0.25], vec![1.0]));
        assert!((values(&loss.total)[0] - (0.25 + 0.1 + 1.0)).abs() < 1e-6);
        // One white pixel of four has the mean 1/4, from which it is 3/4 away and the others 1/4: 2 and 2/3 of their mean, 3/8.
        let weighted = AutoencoderWeights { foreground_weight: 3.0, edge_weight: 0.0, ..weights };
        let loss = autoencoder_loss(zeros(), one_pixel(), kl(0.0), weighted);
        assert!((values(&loss.reconstruction)[0] - (1.0 + 3.0 * 2.0) / 4.0).abs() < 1e-6);
    }

    #[test]
    fn a_rating_error_is_of_the_rated_image_alone() {
        let scores = Tensor::<1>::from_data([1.0, -1.0, 0.5], &Device::flex());
        assert_eq!(values(&rating_errors(scores, &[(2, 2.0), (0, 1.0)])), [2.25, 0.0]);
    }
}
