//! Losses from a policy's log-probabilities.
//!
//! | papers | here |
//! |---|---|
//! | ρ = π / π_old | [`PolicyLoss::ratio`], the exponential of the difference of two log-probabilities |
//! | A | `advantages` |
//! | μ, μ_old, σ | the means and the standard deviation of a [`Transition`] |
//! | ε of PPO, ξ of PCPO | `clip_range` |
//!
//! Log-probabilities and divergences are means over c, h, w; the published values of `clip_range` and of the threshold rely on that.
//!
//! Where ρ = 1, each of these losses has the gradient of the score function, −A ∇ log π, so that the first update after the images were sampled
//! is the same with all of them; that of the corrected ratio has it times σ / [`Drift::output_slope`]. They differ in the updates after it.

use burn::tensor::Tensor;
use burn::tensor::activation::{log_sigmoid, relu};
use vp_schedulers::Transition;

/// A policy gradient's loss, and figures that show how far the policy has moved; `[b]` each.
#[derive(Debug, Clone)]
pub struct PolicyLoss {
    /// The loss of each image, to be minimised; on the tape.
    pub loss: Tensor<1>,
    /// ρ = exp(log π − log π_old), or the corrected ratio, off the tape.
    pub ratio: Tensor<1>,
    /// (log π − log π_old)² / 2, off the tape.
    pub approx_kl: Tensor<1>,
    /// 1 where ρ is more than `clip_range` away from 1, else 0; of [`kl_mask_loss`], 1 where the term is left out. Off the tape.
    pub clipped: Tensor<1>,
    /// KL(π_old ‖ π), of the losses that compute it; off the tape.
    pub kl_old: Option<Tensor<1>>,
}

/// DDPO-IS, the clipped objective of PPO: `max(−A ρ, −A clamp(ρ, 1 − ε, 1 + ε))` for log-probabilities and advantages `[b]`.
///
/// Source: ddpo-pytorch `scripts/train.py`; Black et al. (arXiv 2305.13301) equation 5.
pub fn ppo_clip_loss(log_probs: Tensor<1>, old_log_probs: Tensor<1>, advantages: Tensor<1>, clip_range: f64) -> PolicyLoss {
    let log_ratio = log_probs - old_log_probs;
    let loss = clipped_surrogate(log_ratio.clone().exp(), advantages, clip_range);
    policy_loss(loss, log_ratio, clip_range)
}

/// DDPO-SF, REINFORCE: `−A log π`, valid only for the first update after the images were sampled. Shapes as in [`ppo_clip_loss`];
/// `clip_range` only decides which ratios count as clipped.
///
/// Source: Black et al. (arXiv 2305.13301) equation 4.
pub fn score_function_loss(log_probs: Tensor<1>, old_log_probs: Tensor<1>, advantages: Tensor<1>, clip_range: f64) -> PolicyLoss {
    let log_ratio = log_probs.clone() - old_log_probs;
    policy_loss(-(advantages * log_probs), log_ratio, clip_range)
}

/// A step of the current policy beside that of the policy that sampled the images; `[b]` each.
#[derive(Debug, Clone)]
pub struct Drift {
    /// KL(π_old ‖ π), a mean over c, h, w as [`transition_kl`] has it; on the tape.
    pub kl: Tensor<1>,
    /// σ of the step.
    pub std_dev_t: Tensor<1>,
    /// How far one unit of the network's output moves μ; a constant of the schedule.
    pub output_slope: Tensor<1>,
}

impl Drift {
    /// From `old`, off the tape, to `policy`.
    pub fn between(policy: &Transition, old: &Transition, output_slope: Tensor<1>) -> Self {
        let rows = output_slope.dims()[0];
        Self { kl: transition_kl(policy, old), std_dev_t: policy.std_dev_t.clone().reshape([rows]), output_slope }
    }
}

/// Flow-DPPO's objective: `−A ρ` without a clip, and nothing for a step that has come `threshold` or more away from the old policy and would go
/// farther, which is where ρ > 1 and A > 0, or ρ < 1 and A < 0. Steps that come back are never left out. Shapes as in [`ppo_clip_loss`]; `kl`
/// is [`Drift::kl`].
///
/// PPO looks at ρ, which for a Gaussian step is the divergence with as much noise on top; this looks at the divergence itself.
///
/// Source: Flow-DPPO (arXiv 2606.11025) equations 14, 17 and 18; UniRL `unirl/algorithms/flowdppo.py` and verl-omni `diffusion_algos.py`,
/// `FlowDPPOLoss`, where the divergence is a mean.
pub fn kl_mask_loss(log_probs: Tensor<1>, old_log_probs: Tensor<1>, advantages: Tensor<1>, kl: Tensor<1>, threshold: f64) -> PolicyLoss {
    let log_ratio = log_probs - old_log_probs;
    let kl = kl.without_autodiff();
    let outward = (advantages.clone() * log_ratio.clone().without_autodiff()).greater_elem(0.0);
    let left_out = kl.clone().greater_equal_elem(threshold).bool_and(outward);
    // Filled, not multiplied: a ratio that has overflowed times 0 is not a number.
    let loss = (-(advantages * log_ratio.clone().exp())).mask_fill(left_out.clone(), 0.0);
    PolicyLoss { clipped: left_out.float(), kl_old: Some(kl), ..policy_loss(loss, log_ratio, f64::INFINITY) }
}

/// GRPO-Guard's objective: PPO's clipped one with a corrected ratio, divided by C. Shapes as in [`ppo_clip_loss`].
///
/// ```text
/// ρ̂ = exp(σ (log π − log π_old + mean (μ − μ_old)² / (2σ²)))        loss = max(−A ρ̂, −A clamp(ρ̂, 1 − ε, 1 + ε)) / C
/// ```
///
/// With x' = μ_old + σ z, log ρ̂ is the mean of z (μ − μ_old): on average 0 and as wide at every step as μ has moved there, while log ρ is on
/// average −KL, so that PPO clips too few good steps and too many bad ones.
///
/// The published objective is of flow models, whose σ is a diffusion coefficient times √dt, and is divided by dt. There dt is how far one unit
/// of the network's output moves μ, but for a factor that all steps have in common (1 + a²/2 in Flow-GRPO's sampler), and dividing by it gives every
/// step the same pull on the output. C is that distance in any sampler, [`Drift::output_slope`]: of DDIM that predicts noise,
/// `√ᾱ_{t−1} √(1−ᾱ_t) / √ᾱ_t − √(1−ᾱ_{t−1}−σ²)`.
///
/// Source: GRPO-Guard (arXiv 2510.22319); verl-omni `diffusion_algos.py`, `GRPOGuardLoss`. C is C(t) of PCPO (arXiv 2509.25774), proposition 1.
pub fn corrected_ratio_loss(
    log_probs: Tensor<1>,
    old_log_probs: Tensor<1>,
    advantages: Tensor<1>,
    drift: Drift,
    clip_range: f64,
) -> PolicyLoss {
    let log_ratio = log_probs - old_log_probs;
    let ratio = ((log_ratio.clone() + drift.kl.clone()) * drift.std_dev_t).exp();
    let loss = clipped_surrogate(ratio.clone(), advantages, clip_range) / drift.output_slope;
    let ratio = ratio.without_autodiff();
    let kl_old = Some(drift.kl.without_autodiff());
    PolicyLoss { clipped: beyond(&ratio, clip_range), ratio, kl_old, ..policy_loss(loss, log_ratio, clip_range) }
}

/// PCPO's log-hinge objective: `max(0, ξ |A| − A log ρ)`, with `clip_range` for ξ. Shapes as in [`ppo_clip_loss`].
///
/// PPO's clipped objective has the gradient of `max(0, ξ |A| − A (ρ − 1))`; in its place, log ρ has no difference of two numbers close to 1.
///
/// Source: PCPO (arXiv 2509.25774), the objective without its sampler, in which σ_t gives every timestep the same weight.
pub fn log_hinge_loss(log_probs: Tensor<1>, old_log_probs: Tensor<1>, advantages: Tensor<1>, clip_range: f64) -> PolicyLoss {
    let log_ratio = log_probs - old_log_probs;
    let loss = relu(advantages.clone().abs() * clip_range - advantages * log_ratio.clone());
    policy_loss(loss, log_ratio, clip_range)
}

/// `max(−A ρ, −A clamp(ρ, 1 − ε, 1 + ε))`.
fn clipped_surrogate(ratio: Tensor<1>, advantages: Tensor<1>, clip_range: f64) -> Tensor<1> {
    let clamped = ratio.clone().clamp(1.0 - clip_range, 1.0 + clip_range);
    (-(advantages.clone() * ratio)).max_pair(-(advantages * clamped))
}

fn policy_loss(loss: Tensor<1>, log_ratio: Tensor<1>, clip_range: f64) -> PolicyLoss {
    let log_ratio = log_ratio.without_autodiff();
    let ratio = log_ratio.clone().exp();
    PolicyLoss { loss, clipped: beyond(&ratio, clip_range), ratio, approx_kl: log_ratio.square() * 0.5, kl_old: None }
}

/// 1 where `ratio` is more than `clip_range` away from 1, else 0.
fn beyond(ratio: &Tensor<1>, clip_range: f64) -> Tensor<1> {
    (ratio.clone() - 1.0).abs().greater_elem(clip_range).float()
}

/// KL(p ‖ q) of two transitions of the same schedule, divided by c·h·w as the log-probabilities are: `mean (μ − μ_q)² / (2σ²)`, `[b]`.
///
/// Source: DPOK (arXiv 2305.16381) equation 8; d3po `scripts/rm/train_dpok.py`.
pub fn transition_kl(policy: &Transition, reference: &Transition) -> Tensor<1> {
    let rows = policy.std_dev_t.dims()[0];
    let difference = (policy.prev_sample_mean.clone() - reference.prev_sample_mean.clone()) / policy.std_dev_t.clone();
    difference.square().mean_dims(&[1, 2, 3]).reshape([rows]) * 0.5
}

/// D3PO's loss of each pair, `[b]`: `−log σ(β Σ_k h_k log clamp(ρ_k, 1 − ε, 1 + ε))`, with log ρ = log π − log π_ref. `log_ratios` and
/// the preferences h (+1, −1 or 0) are `[b, 2]`.
///
/// Source: Yang et al. (arXiv 2311.13231); d3po `scripts/rm/train_d3po.py`.
pub fn d3po_loss(log_ratios: Tensor<2>, preferences: Tensor<2>, beta: f64, clip_range: f64) -> Tensor<1> {
    // Clamping the ratio is the same as clamping its logarithm.
    let clamped = log_ratios.clamp((1.0 - clip_range).ln(), (1.0 + clip_range).ln());
    -log_sigmoid((clamped * preferences).sum_dim(1).squeeze_dim::<1>(1) * beta)
}

#[cfg(test)]
mod tests;
