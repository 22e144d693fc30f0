//! The sampling loop: the only one in the project.

use std::ops::Range;

use burn::tensor::Tensor;
use vp_core::profile::{self, Stage};
use vp_schedulers::Sampler;

use crate::denoiser::{Conditioning, Denoiser};

/// The conditioning of a batch of images, and the strength of classifier-free guidance.
#[derive(Debug, Clone)]
pub struct Guidance {
    /// The prompts' conditioning, `[b, ..]`.
    pub conditional: Conditioning,
    /// The negative prompts' conditioning, `[b, ..]`; `None` predicts without guidance.
    pub unconditional: Option<Conditioning>,
    /// The prediction is `ε_u + scale (ε_c − ε_u)`.
    pub scale: f64,
}

impl Guidance {
    /// The same values as constants to the tape.
    pub fn without_autodiff(&self) -> Self {
        Self {
            conditional: self.conditional.without_autodiff(),
            unconditional: self.unconditional.as_ref().map(Conditioning::without_autodiff),
            scale: self.scale,
        }
    }

    /// The prompts alone, without guidance.
    pub fn none(conditional: Conditioning) -> Self {
        Self { conditional, unconditional: None, scale: 1.0 }
    }
}

/// The prediction for `[b, c, h, w]` with classifier-free guidance (arXiv 2207.12598), both branches in one call, unconditional
/// rows first. `sample` is the scaled model input.
pub fn predict<D: Denoiser>(denoiser: &D, sample: Tensor<4>, timesteps: &[f32], guidance: &Guidance) -> Tensor<4> {
    let Some(unconditional) = &guidance.unconditional else {
        return denoiser.forward(sample, timesteps, &guidance.conditional);
    };
    let b = timesteps.len();
    let both = Conditioning::cat(unconditional, &guidance.conditional);
    let output = denoiser.forward(Tensor::cat(vec![sample.clone(), sample], 0), &[timesteps, timesteps].concat(), &both);
    let (uncond, cond) = (output.clone().narrow(0, 0, b), output.narrow(0, b, b));
    uncond.clone() + (cond - uncond) * guidance.scale
}

/// A chain of reverse steps, from noise towards an image.
pub struct Chain<'a, D> {
    /// Predicts the noise (or v, or x0) at each step.
    pub denoiser: &'a D,
    /// Takes each step, given the prediction.
    pub sampler: &'a mut dyn Sampler,
    /// The conditioning of every prediction.
    pub guidance: &'a Guidance,
    /// Gives the standard normal noise `[b, c, h, w]` of a step; called only where the sampler draws noise.
    pub noise: &'a mut dyn FnMut(usize) -> Tensor<4>,
    /// Called after each step.
    pub observe: &'a mut dyn FnMut(&Taken<'_>),
}

/// One step of a chain, after it was taken.
#[derive(Debug, Clone, Copy)]
pub struct Taken<'a> {
    /// Its index into the sampler's timesteps.
    pub step: usize,
    /// The prediction, guidance included, `[b, c, h, w]`.
    pub model_output: &'a Tensor<4>,
    /// The latents after the step, `[b, c, h, w]`.
    pub prev_sample: &'a Tensor<4>,
}

impl<D: Denoiser> Chain<'_, D> {
    /// Runs `steps` (indices into the sampler's timesteps) on `latents` `[b, c, h, w]`, which stand where the first of them begins.
    pub fn run(&mut self, latents: Tensor<4>, steps: Range<usize>) -> Tensor<4> {
        profile::time(Stage::Rollout, || self.steps(latents, steps))
    }

    fn steps(&mut self, mut latents: Tensor<4>, steps: Range<usize>) -> Tensor<4> {
        let [b, ..] = latents.dims();
        self.sampler.reset();
        let draws = self.sampler.needs_noise();
        for step in steps {
            let timesteps = vec![self.sampler.timesteps()[step] as f32; b];
            let input = self.sampler.scale_model_input(latents.clone(), &vec![step; b]);
            let output = predict(self.denoiser, input, &timesteps, self.guidance);
            let noise = draws.then(|| (self.noise)(step));
            latents = self.sampler.step(output.clone(), step, latents, noise);
            (self.observe)(&Taken { step, model_output: &output, prev_sample: &latents });
        }
        latents
    }
}
