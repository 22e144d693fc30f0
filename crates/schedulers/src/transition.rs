//! One reverse step as a distribution, p(x_{t-1} | x_t) = N(μ, σ² I).
//!
//! | here | DDIM (2010.02502) | DDPO (2305.13301) |
//! |---|---|---|
//! | `pred_original_sample` | f_θ(x_t), eq. 9 | |
//! | `prev_sample_mean` | eq. 12 without its last term | μ_θ(x_t, c, t) |
//! | `std_dev_t` | σ_t, eq. 16 | σ_t |
//! | `log_prob` | | log p_θ(x_{t-1} \| x_t, c) |
//!
//! `log_prob` follows ddpo-pytorch's `ddpo_pytorch/diffusers_patch/ddim_with_logprob.py`.

use std::f64::consts::TAU;

use burn::tensor::Tensor;

/// One reverse step p(x_{t-1} | x_t) of a batch of `b` samples.
#[derive(Clone, Debug)]
pub struct Transition {
    /// The x_0 that the network sees in x_t, clipped if the config says so. `[b, c, h, w]`
    pub pred_original_sample: Tensor<4>,
    /// μ. `[b, c, h, w]`
    pub prev_sample_mean: Tensor<4>,
    /// σ, zero where the step is deterministic; a constant of the schedule, without gradient. `[b, 1, 1, 1]`
    pub std_dev_t: Tensor<4>,
}

impl Transition {
    /// μ + σ `noise`, with `noise` of the standard normal distribution.
    ///
    /// # Shapes
    /// - `noise`, output: `[b, c, h, w]`
    pub fn sample(&self, noise: Tensor<4>) -> Tensor<4> {
        self.prev_sample_mean.clone() + self.std_dev_t.clone() * noise
    }

    /// The logarithm of the density at `prev_sample`, *averaged* over channels and pixels.
    ///
    /// An average and not the sum that a density is, as in ddpo-pytorch: DDPO's published `clip_range` of 1e-4 assumes it. Over Stable Diffusion's
    /// 4 x 64 x 64 latents it stands for 1.6 nats of the true log-ratio.
    ///
    /// `prev_sample` counts as a constant: it is the action that was taken, and a gradient through it would cancel the one through μ. Needs σ > 0, which
    /// [`require_stochastic`](crate::require_stochastic) checks once for a whole schedule; with σ = 0 the result is not a number.
    ///
    /// # Shapes
    /// - `prev_sample`: `[b, c, h, w]`
    /// - output: `[b]`
    pub fn log_prob(&self, prev_sample: Tensor<4>) -> Tensor<1> {
        let [batch, channels, height, width] = self.prev_sample_mean.dims();
        let difference = (prev_sample.detach() - self.prev_sample_mean.clone()) / self.std_dev_t.clone();
        let mean_square = difference.square().reshape([batch, channels * height * width]).mean_dim(1).squeeze_dim::<1>(1);
        let log_std = self.std_dev_t.clone().log().reshape([batch]);
        mean_square * -0.5 - log_std - 0.5 * TAU.ln()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn transition(device: &Device) -> Transition {
        Transition {
            pred_original_sample: Tensor::zeros([2, 1, 1, 2], device),
            prev_sample_mean: Tensor::from_data([[[[1.0, -1.0]]], [[[0.5, 2.0]]]], device),
            std_dev_t: Tensor::from_data([[[[0.5]]], [[[2.0]]]], device),
        }
    }

    #[test]
    fn log_prob_is_the_closed_form() {
        let device = Device::flex();
        let x = Tensor::from_data([[[[1.5, -2.0]]], [[[0.5, 0.0]]]], &device);
        let got: Vec<f32> = transition(&device).log_prob(x).into_data().try_to_vec().unwrap();
        let density = |x: f64, mean: f64, std: f64| -(x - mean).powi(2) / (2.0 * std * std) - std.ln() - TAU.sqrt().ln();
        let expected = [(density(1.5, 1.0, 0.5) + density(-2.0, -1.0, 0.5)) / 2.0, (density(0.5, 0.5, 2.0) + density(0.0, 2.0, 2.0)) / 2.0];
        for (got, expected) in got.iter().zip(expected) {
            assert!((*got as f64 - expected).abs() < 1e-6, "{got} != {expected}");
        }
    }

    #[test]
    fn no_noise_is_the_mean_and_noise_is_scaled_per_sample() {
        let device = Device::flex();
        let transition = transition(&device);
        let silent = transition.sample(Tensor::zeros([2, 1, 1, 2], &device));
        assert_eq!(silent.into_data(), transition.prev_sample_mean.to_data());
        let noisy: Vec<f32> = transition.sample(Tensor::ones([2, 1, 1, 2], &device)).into_data().try_to_vec().unwrap();
        assert_eq!(noisy, [1.5, -0.5, 2.5, 4.0]);
    }

    #[test]
    fn gradient_reaches_the_mean_but_not_the_action() {
        let device = Device::flex().autodiff();
        let mean = Tensor::<4>::from_data([[[[1.0, -1.0]]]], &device).require_grad();
        let transition = Transition {
            pred_original_sample: mean.clone(),
            prev_sample_mean: mean.clone(),
            std_dev_t: Tensor::from_data([[[[0.5]]]], &Device::flex()),
        };
        let action = transition.sample(Tensor::ones([1, 1, 1, 2], &device));
        let grads = transition.log_prob(action).sum().backward();
        // d/dμ of -(x - μ)² / (2 σ²) is (x - μ) / σ² = σ / σ², halved by the mean over two entries.
        let grad: Vec<f32> = mean.grad(&grads).unwrap().into_data().try_to_vec().unwrap();
        assert_eq!(grad, [1.0, 1.0]);
    }
}
