//! Losses from preferred, liked and disliked images.

use burn::tensor::Tensor;
use burn::tensor::activation::{log_sigmoid, sigmoid};

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

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tolerance};

    use crate::run::values;

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
}
