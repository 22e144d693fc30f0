//! Sampling chains, whole or their ends alone.

use burn::tensor::Tensor;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Chain, Guidance, Taken};
use vp_schedulers::Scheduler;

/// Draws a batch of chains: [`draw_trajectory`] or [`draw_images`].
pub(super) type DrawChain<D> = fn(&D, &mut dyn Scheduler, &Guidance, Tensor<4>, &mut dyn FnMut(usize) -> Tensor<4>) -> Trajectory;

/// The sampling chains of a batch of `b` images.
#[derive(Debug, Clone)]
pub struct Trajectory {
    /// The latents before each step and after the last, `[b, c, h, w]` each.
    pub latents: Vec<Tensor<4>>,
    /// The log-probability of each step, `[b]` each.
    pub log_probs: Vec<Tensor<1>>,
}

/// Samples a whole chain from standard normal noise `latents`, `[b, c, h, w]`, and keeps every step.
pub fn draw_trajectory<D: Denoiser>(
    denoiser: &D,
    scheduler: &mut dyn Scheduler,
    guidance: &Guidance,
    latents: Tensor<4>,
    noise: &mut dyn FnMut(usize) -> Tensor<4>,
) -> Trajectory {
    let start = latents * scheduler.init_noise_sigma();
    let (mut visited, mut outputs) = (vec![start.clone()], Vec::new());
    let mut observe = |taken: &Taken<'_>| {
        visited.push(taken.prev_sample.clone());
        outputs.push(taken.model_output.clone());
    };
    let steps = 0..scheduler.timesteps().len();
    Chain { denoiser, sampler: scheduler, guidance, noise, observe: &mut observe }.run(start, steps);
    let rows = visited[0].dims()[0];
    let log_prob = |(step, output): (usize, Tensor<4>)| {
        // Computed from the latents as they are stored, so that training, which has only those, finds the same value.
        scheduler.transition(output, &vec![step; rows], visited[step].clone()).log_prob(visited[step + 1].clone())
    };
    let log_probs = outputs.into_iter().enumerate().map(log_prob).collect();
    Trajectory { latents: visited, log_probs }
}

/// Samples a whole chain as [`draw_trajectory`] does, and keeps the last latents alone.
pub fn draw_images<D: Denoiser>(
    denoiser: &D,
    scheduler: &mut dyn Scheduler,
    guidance: &Guidance,
    latents: Tensor<4>,
    noise: &mut dyn FnMut(usize) -> Tensor<4>,
) -> Trajectory {
    let (start, steps) = (latents * scheduler.init_noise_sigma(), 0..scheduler.timesteps().len());
    let last = Chain { denoiser, sampler: scheduler, guidance, noise, observe: &mut |_: &Taken<'_>| {} }.run(start, steps);
    Trajectory { latents: vec![last], log_probs: Vec::new() }
}
