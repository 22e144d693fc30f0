//! The two leaps of [LeapAlign](super::leap_align): the path of a whole chain, with the gradient of two long steps along it.
//!
//! | paper (arXiv 2604.15311) | here |
//! |---|---|
//! | v_θ, the velocity of rectified flow | the velocity of a variance-preserving path, v = α ε − σ x_0 |
//! | x̂_j\|k = x_k − (k − j) v_θ(x_k) (equation 4) | DDIM's step from k to j: cos δ x_k − sin δ v_θ(x_k), δ the angle between the levels |
//! | x_j = x̂_j\|k + sg(x_j − x̂_j\|k) (equations 6 and 7) | `connected` |
//! | x̂_0\|j = x_j − j v_θ(α x_j + (1 − α) sg(x_j)) (equation 9) | f_θ(x̃) + (x_j − x̃) / (α_j + σ_j), with `nested_grad_scale` for the factor α |
//! | d_j, d_0 (section 4.5) | `distances` |
//!
//! Rectified flow's x at the same share of noise is x / (α + σ), so that the second leap has the paper's gradient and the distances are the paper's. x̃ =
//! α x_j + (1 − α) sg(x_j), and f_θ is the scheduler's prediction of x_0.
//! This is the same whether the network predicts noise, v or x_0. In terms of predicted noise, the factor would act on one of two large terms
//! that all but cancel at a high noise level, 1 / α_j and the network's derivative.

use burn::tensor::Tensor;
use vp_models::denoiser::Denoiser;

use crate::direct::{Call, TapedChain};
use crate::losses::absolute_errors;

/// The latents of a whole chain, with the gradient of two leaps.
#[derive(Debug, Clone)]
pub struct Leaps {
    /// The chain's last sample, `[b, c, h, w]`, on the tape.
    pub latents: Tensor<4>,
    /// d_j and d_0, the mean absolute distances of the two leaps' ends from the real latents, `[b]` each, off the tape.
    pub distances: [Tensor<1>; 2],
}

/// Samples the whole chain off the tape from standard normal noise `unit`, `[b, c, h, w]`, then leaps on the tape from step `k` to the later
/// step `j`, and from there to the end. `nested_grad_scale` is the factor of the gradient that passes through the network at step `j`.
pub fn leap_trajectory<D: Denoiser>(chain: &mut TapedChain<'_, D>, unit: Tensor<4>, [k, j]: [usize; 2], nested_grad_scale: f64) -> Leaps {
    let x_0 = chain.rollout(unit);
    let [x_k, x_j] = [k, j].map(|step| chain.visited[step].latents.clone());
    // Samplers that step along σ scale the network's input down; levels are those of the input.
    let scaled = |step: usize, latents: Tensor<4>| {
        let steps = vec![step; latents.dims()[0]];
        chain.scheduler.scale_model_input(latents, &steps)
    };
    let [level_k, level_j] = [k, j].map(|step| chain.scheduler.level(step));

    // k → j. What the network sees is a constant.
    let noise_pred = chain.noise_pred(Call::DetachedInput, k, &x_k);
    let seen = chain.pred_original_sample(k, noise_pred, x_k.clone());
    let leap = level_k.step_to(level_j, scaled(k, x_k), seen) / scaled(j, x_j.ones_like());
    let flow = 1.0 / (level_j.signal + level_j.noise);
    let first = absolute_errors(scaled(j, leap.clone().without_autodiff()), scaled(j, x_j.clone())) * flow;
    let x_j = connected(x_j, leap);

    // j → 0. Without a nested gradient the network's derivative is not needed.
    let input = with_gradient_scaled(&x_j, nested_grad_scale);
    let call = if nested_grad_scale > 0.0 { Call::On } else { Call::DetachedInput };
    let noise_pred = chain.noise_pred(call, j, &input);
    let leap = chain.pred_original_sample(j, noise_pred, input.clone()) + scaled(j, x_j - input) * flow;
    let second = absolute_errors(leap.clone().without_autodiff(), x_0.clone());
    Leaps { latents: connected(x_0, leap), distances: [first, second] }
}

/// The value of `real`, to the bit, with the gradient of `leap`; `[b, c, h, w]` each.
fn connected(real: Tensor<4>, leap: Tensor<4>) -> Tensor<4> {
    real + (leap.clone() - leap.without_autodiff())
}

/// The value of `latents`, `[b, c, h, w]`, to the bit, with `factor` times its gradient.
fn with_gradient_scaled(latents: &Tensor<4>, factor: f64) -> Tensor<4> {
    let constant = latents.clone().without_autodiff();
    (latents.clone() - constant.clone()) * factor + constant
}
