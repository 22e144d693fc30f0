//! The losses of reinforcement learning on the forward process: AWM, NFT and DGPO.

use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;
use serde::{Deserialize, Serialize};

use super::{row_means, squared_errors};

/// AWM's weight w of a denoising loss ℓ in `log π(x_0) := −w(ℓ)`. t is the noise's share, 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// ℓ: every timestep counts alike.
    Uniform,
    /// t ℓ.
    T,
    /// t² ℓ.
    TSquared,
    /// t √ℓ.
    Huber,
    /// (t / q) ℓ^q, with q below 1: timesteps whose loss is small, the noisy ones, count more.
    #[default]
    Ghuber,
}

/// Keeps roots of ℓ differentiable at 0.
const TINY: f64 = 1e-10;

impl Weighting {
    /// `−w(ℓ)` of denoising losses `errors` at `times`, the noise's shares; `[b]` each. `power` is q.
    ///
    /// Source: Advantage Weighted Matching (arXiv 2509.25050), `scripts/train_sd3_awm.py`.
    pub fn log_probs(self, errors: Tensor<1>, times: Tensor<1>, power: f64) -> Tensor<1> {
        match self {
            Self::Uniform => -errors,
            Self::T => -(errors * times),
            Self::TSquared => -(errors * times.square()),
            Self::Huber => -(((errors + TINY).sqrt() - TINY.sqrt()) * times),
            Self::Ghuber => -(((errors + TINY).powf_scalar(power) - TINY.powf(power)) * times / power),
        }
    }
}

/// DiffusionNFT's loss of each row, `[b]`: the implicit positive policy `v⁺ = β v + (1 − β) v_old` should denoise the image with the
/// probability r that it is a good one, and the implicit negative policy `v⁻ = (1 + β) v_old − β v` with 1 − r.
///
/// ```text
/// w (r ℓ⁺ + (1 − r) ℓ⁻) / β      ℓ± = mean (v± − v)² / sg(max(mean |v± − v|, 1e-5))
/// ```
///
/// `prediction`, `old` and `target` are `[b, c, h, w]`; `optimality`, r, and `weights`, w, are `[b]`.
///
/// Source: Zheng et al. (arXiv 2509.16117), `scripts/train_nft_sd3.py`, whose errors are those of x̂_0. As ℓ± grows with its errors, w is t, by which a
/// velocity moves x̂_0.
pub fn nft_loss(prediction: Tensor<4>, old: Tensor<4>, target: Tensor<4>, [optimality, weights]: [Tensor<1>; 2], beta: f64) -> Tensor<1> {
    let old = old.without_autodiff();
    let positive = prediction.clone() * beta + old.clone() * (1.0 - beta);
    let negative = old * (1.0 + beta) - prediction * beta;
    let normalised = |implicit: Tensor<4>| {
        let size = row_means((implicit.clone() - target.clone()).abs()).without_autodiff().clamp_min(1e-5);
        squared_errors(implicit, target.clone()) / size
    };
    let losses = normalised(positive) * optimality.clone() + normalised(negative) * (-optimality + 1.0);
    losses * weights / beta
}

/// DGPO's weight of each row, `[b]`, the same for the rows of a group: `σ(Σ_group β A (ℓ_θ − ℓ_ref) / group)`. The groups are adjacent. Near
/// ½ while the policy is close to the reference, and smaller once it prefers the group's better images.
///
/// `changes` are ℓ_θ − ℓ_ref, off the tape, and `advantages` A; `[b]` each.
///
/// Source: DGPO (arXiv 2510.08425); Flow-Factory `trainers/dgpo.py`.
pub fn dgpo_weights(changes: Tensor<1>, advantages: Tensor<1>, group: usize, beta: f64) -> Tensor<1> {
    let rows = changes.dims()[0];
    let terms = (changes * advantages * (beta / group as f64)).reshape([rows / group, group]);
    sigmoid(terms.sum_dim(1)).repeat_dim(1, group).reshape([rows])
}

/// 1 for the rows that DGPO trains on, 0 for those whose loss has moved further than `clip_range` in the direction that their advantage asks
/// for; `[b]`. `changes` are ℓ_θ − ℓ_old, off the tape; the ratio is `exp(−changes)`.
///
/// Source: as for [`dgpo_weights`].
pub fn dgpo_kept(changes: Tensor<1>, advantages: Tensor<1>, clip_range: f64) -> Tensor<1> {
    let ratio = (-changes).exp();
    let good = advantages.greater_elem(0.0);
    let too_far = ratio.clone().greater_elem(1.0 + clip_range).bool_and(good.clone());
    let too_far = too_far.bool_or(ratio.lower_elem(1.0 - clip_range).bool_and(good.bool_not()));
    -too_far.float() + 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::losses::{ppo_clip_loss, squared_error_changes};
    use crate::run::values;
    use burn::tensor::Device;

    fn host(tensor: Tensor<1>) -> Vec<f64> {
        values(&tensor)
    }

    fn vector(values: &[f32]) -> Tensor<1> {
        Tensor::from_data(values, &Device::flex())
    }

    /// Three rows of two values.
    fn rows(values: [f32; 6], device: &Device) -> Tensor<4> {
        Tensor::<1>::from_data(values, device).reshape([3, 1, 1, 2])
    }

    const PREDICTION: [f32; 6] = [0.3, -0.2, 1.1, 0.4, -0.7, 0.9];
    const OLD: [f32; 6] = [0.1, 0.2, 0.8, 0.5, -0.5, 0.6];
    const TARGET: [f32; 6] = [0.5, -1.0, 0.2, 0.3, -0.1, 0.1];

    fn gradient(loss: impl Fn(Tensor<4>) -> Tensor<1>, at: [f32; 6]) -> Vec<f64> {
        let prediction = rows(at, &Device::flex().autodiff()).require_grad();
        let gradients = loss(prediction.clone()).sum().backward();
        values(&prediction.grad(&gradients).expect("tracked").reshape([6]))
    }

    /// The gradient against central differences of the loss. What the loss detaches is held at its value at `at`, so `frozen` gets that point.
    fn assert_gradient(loss: impl Fn(Tensor<4>) -> Tensor<1>, frozen: impl Fn(Tensor<4>, Tensor<4>) -> Tensor<1>, at: [f32; 6]) {
        let (device, step) = (Device::flex(), 1e-2f32);
        let here = rows(at, &device);
        for (i, found) in gradient(loss, at).into_iter().enumerate() {
            let moved = |by: f32| {
                let mut values = at;
                values[i] += by;
                host(frozen(rows(values, &device), here.clone()).sum())[0]
            };
            let expected = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            assert!((found - expected).abs() < 2e-3 * expected.abs().max(1.0), "value {i}: {found} against {expected}");
        }
    }

    #[test]
    fn weights_by_hand() {
        let of = |weighting: Weighting| host(weighting.log_probs(vector(&[4.0, 0.25]), vector(&[0.5, 1.0]), 0.25));
        assert_eq!(of(Weighting::Uniform), [-4.0, -0.25]);
        assert_eq!(of(Weighting::T), [-2.0, -0.25]);
        assert_eq!(of(Weighting::TSquared), [-1.0, -0.25]);
        let near = |found: Vec<f64>, expected: [f64; 2]| assert!((0..2).all(|i| (found[i] - expected[i]).abs() < 1e-5), "{found:?}");
        near(of(Weighting::Huber), [-0.5 * (2.0 - 1e-5), -(0.5 - 1e-5)]);
        // 4^¼ = √2 and 0.25^¼ = 1/√2, minus (1e-10)^¼, times t / q.
        let root = std::f64::consts::SQRT_2;
        let least = 1e-10f64.powf(0.25);
        near(of(Weighting::Ghuber), [-(root - least) * 2.0, -(1.0 / root - least) * 4.0]);
    }

    /// AWM's law: while the policy is the one that sampled, the gradient is the denoising loss's, weighed by the advantages.
    #[test]
    fn at_ratio_1_awm_is_the_denoising_gradient_weighed_by_advantages() {
        let advantages = || vector(&[0.8, -0.4, 1.0]);
        let target = || rows(TARGET, &Device::flex());
        let awm = gradient(
            |prediction| {
                let log_probs = Weighting::Uniform.log_probs(squared_errors(prediction, target()), vector(&[0.1, 0.5, 0.9]), 0.25);
                ppo_clip_loss(log_probs.clone(), log_probs.without_autodiff(), advantages(), 1.0).loss
            },
            PREDICTION,
        );
        let weighed = gradient(|prediction| squared_errors(prediction, target()) * advantages(), PREDICTION);
        assert!(awm.iter().zip(&weighed).all(|(a, b)| (a - b).abs() < 1e-6), "{awm:?} against {weighed:?}");
        assert!(weighed.iter().any(|value| value.abs() > 0.1));
    }

    #[test]
    fn every_weight_has_the_gradient_of_its_differences() {
        for weighting in [Weighting::Uniform, Weighting::T, Weighting::TSquared, Weighting::Huber, Weighting::Ghuber] {
            let loss =
                |prediction| weighting.log_probs(squared_errors(prediction, rows(TARGET, &Device::flex())), vector(&[0.1, 0.5, 0.9]), 0.5);
            assert_gradient(loss, |prediction, _| loss(prediction), PREDICTION);
        }
    }

    /// NFT's law: an image that is as likely good as bad pulls the policy nowhere from where it was.
    #[test]
    fn with_r_one_half_nft_has_no_gradient_at_the_old_policy() {
        let (device, at) = (Device::flex(), OLD);
        let of = |r: f32| {
            let loss =
                |prediction| nft_loss(prediction, rows(OLD, &device), rows(TARGET, &device), [vector(&[r; 3]), vector(&[1.0; 3])], 0.7);
            gradient(loss, at)
        };
        assert!(of(0.5).iter().all(|value| value.abs() < 1e-6), "{:?}", of(0.5));
        // A good image pulls towards its target, and a bad one away from it, as strongly.
        let (good, bad) = (of(1.0), of(0.0));
        for i in 0..6 {
            assert!((good[i] + bad[i]).abs() < 1e-6 && (good[i] * f64::from(at[i] - TARGET[i])) > 0.0, "{good:?} {bad:?}");
        }
    }

    /// One row of one value: v = 2, v_old = 1, target 0, β = ½, r = ¾, w = 4. v⁺ = 1.5 and v⁻ = 0.5, so ℓ⁺ = 1.5² / 1.5 and ℓ⁻ = 0.5² / 0.5.
    #[test]
    fn nft_by_hand_and_its_gradient() {
        let device = Device::flex();
        let one = |value: f32| Tensor::<4>::from_data([[[[value]]]], &device);
        let loss = host(nft_loss(one(2.0), one(1.0), one(0.0), [vector(&[0.75]), vector(&[4.0])], 0.5));
        assert!((loss[0] - 4.0 * (0.75 * 1.5 + 0.25 * 0.5) / 0.5).abs() < 1e-6, "{loss:?}");
        let (old, target, r, w) = (rows(OLD, &device), rows(TARGET, &device), [0.9, 0.2, 0.6], [0.5, 1.0, 1.5]);
        let beta = 0.4;
        let loss = |prediction| nft_loss(prediction, old.clone(), target.clone(), [vector(&r), vector(&w)], beta);
        // The same with the sizes of the errors as constants.
        let frozen = |prediction: Tensor<4>, here: Tensor<4>| {
            let size = |implicit: Tensor<4>| row_means((implicit - target.clone()).abs());
            let positive = |v: Tensor<4>| v * beta + old.clone() * (1.0 - beta);
            let negative = |v: Tensor<4>| old.clone() * (1.0 + beta) - v * beta;
            let plus = squared_errors(positive(prediction.clone()), target.clone()) / size(positive(here.clone())) * vector(&r);
            let minus = squared_errors(negative(prediction), target.clone()) / size(negative(here)) * (-vector(&r) + 1.0);
            (plus + minus) * vector(&w) / beta
        };
        assert_gradient(loss, frozen, PREDICTION);
    }

    #[test]
    fn dgpo_by_hand() {
        // Two groups of two; β / group = 5. Sums: 5 · (0.1 · 1 + 0.2 · −1) = −0.5 and 5 · (−0.4 · −2) = 4.
        let weights = host(dgpo_weights(vector(&[0.1, 0.2, -0.4, 0.0]), vector(&[1.0, -1.0, -2.0, 3.0]), 2, 10.0));
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (found, expected) in weights.iter().zip([-0.5, -0.5, 4.0, 4.0].map(sigmoid)) {
            assert!((found - expected).abs() < 1e-6, "{weights:?}");
        }
        // At the reference itself every group counts one half.
        assert_eq!(host(dgpo_weights(vector(&[0.0; 4]), vector(&[1.0, -1.0, 2.0, 0.5]), 2, 10.0)), [0.5; 4]);
        // exp(0.1) > 1.05: clipped if the image is good, not if it is bad; exp(−0.1) < 0.95 the other way round.
        let kept = host(dgpo_kept(vector(&[-0.1, -0.1, 0.1, 0.1, 0.01]), vector(&[1.0, -1.0, 1.0, -1.0, 1.0]), 0.05));
        assert_eq!(kept, [0.0, 1.0, 1.0, 0.0, 1.0]);
    }

    /// With detached weights DGPO's gradient is the denoising loss's, weighed by W and A.
    #[test]
    fn dgpo_has_the_gradient_of_its_differences() {
        let device = Device::flex();
        let (target, reference) = (rows(TARGET, &device), rows(OLD, &device));
        let advantages = || vector(&[1.2, -0.3, -0.9]);
        let weights = |prediction: Tensor<4>| {
            let changes = squared_error_changes(prediction.without_autodiff(), reference.clone(), target.clone());
            dgpo_weights(changes, advantages(), 3, 4.0)
        };
        let loss = |prediction: Tensor<4>| weights(prediction.clone()) * advantages() * squared_errors(prediction, target.clone());
        let frozen = |prediction: Tensor<4>, here: Tensor<4>| weights(here) * advantages() * squared_errors(prediction, target.clone());
        assert_gradient(loss, frozen, PREDICTION);
    }
}
