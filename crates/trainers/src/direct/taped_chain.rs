//! A chain of denoising steps that is on the tape in part.

use burn::tensor::Tensor;
use vp_core::profile::{self, Stage};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Chain, Guidance, Taken, predict};
use vp_schedulers::Scheduler;

use crate::regularizer::Visited;

/// How a step calls the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Off the tape: the prediction is a constant, and no intermediate values are kept.
    Off,
    /// On the tape: the gradient reaches the weights, and through the network's input all earlier steps.
    On,
    /// On the tape with a constant input: the gradient reaches only the weights.
    DetachedInput,
}

/// The latents that a chain ends with, to be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The sampler's own sample after the last step.
    Sample,
    /// The last step's prediction of the clean latents, for chains that stop early.
    Prediction,
}

/// A chain of denoising steps, some of them on the tape.
pub struct TapedChain<'a, D> {
    /// The trained network, on the tape.
    pub denoiser: &'a D,
    /// The scheduler that turns predictions into steps.
    pub scheduler: &'a mut dyn Scheduler,
    /// The prompts' embeddings and the guidance scale.
    pub guidance: &'a Guidance,
    /// The points at which a step was taken, in order, off the tape.
    pub visited: Vec<Visited>,
    noise: &'a dyn StepNoise,
}

/// The source of the noise in a stochastic scheduler's steps.
pub trait StepNoise {
    /// The noise of scheduler step `step`: standard normal, `[b, c, h, w]`.
    fn step_noise(&self, step: usize) -> Tensor<4>;
}

impl<F: Fn(usize) -> Tensor<4>> StepNoise for F {
    fn step_noise(&self, step: usize) -> Tensor<4> {
        self(step)
    }
}

impl<'a, D> TapedChain<'a, D> {
    /// A chain with no step taken yet.
    pub fn new(denoiser: &'a D, scheduler: &'a mut dyn Scheduler, guidance: &'a Guidance, noise: &'a dyn StepNoise) -> Self {
        Self { denoiser, scheduler, guidance, visited: Vec::new(), noise }
    }
}

impl<D: Denoiser> TapedChain<'_, D> {
    /// Takes the steps `0..calls.len()` from standard normal noise `unit`, `[b, c, h, w]`, calling the network in each as `calls` says.
    /// Returns the latents that `end` names, `[b, c, h, w]`.
    ///
    /// # Panics
    /// When no call is on the tape, because then there is nothing to differentiate.
    pub fn run(&mut self, unit: Tensor<4>, calls: &[Call], end: End) -> Tensor<4> {
        let first = calls.iter().position(|call| *call != Call::Off).expect("a step is on the tape");
        let mut latents = self.without_gradient(unit, first);
        for (step, call) in calls.iter().enumerate().skip(first) {
            let noise_pred = self.noise_pred(*call, step, &latents);
            if step + 1 == calls.len() && end == End::Prediction {
                return self.pred_original_sample(step, noise_pred, latents);
            }
            let noise = (self.scheduler.std_dev_t(step) > 0.0).then(|| self.noise.step_noise(step));
            latents = self.scheduler.step(noise_pred, step, latents, noise);
            if step + 1 < calls.len() {
                self.visited.push(Visited { step: step + 1, latents: latents.clone().without_autodiff() });
            }
        }
        latents
    }

    /// Takes the steps `0..steps` off the tape, from standard normal noise `unit`, `[b, c, h, w]`. Returns the latents before step `steps`,
    /// or the chain's last sample if there is no such step; a constant.
    pub fn without_gradient(&mut self, unit: Tensor<4>, steps: usize) -> Tensor<4> {
        let (start, all) = (unit * self.scheduler.init_noise_sigma(), self.scheduler.timesteps().len());
        self.visited.push(Visited { step: 0, latents: start.clone() });
        let mut observe = |taken: &Taken<'_>| {
            // No step is taken at the end of the chain.
            if taken.step + 1 < all {
                self.visited.push(Visited { step: taken.step + 1, latents: taken.prev_sample.clone() });
            }
        };
        let (denoiser, guidance) = (self.denoiser.valid(), self.guidance.without_autodiff());
        let (sampler, mut noise) = (&mut *self.scheduler, |step| self.noise.step_noise(step));
        Chain { denoiser: &denoiser, sampler, guidance: &guidance, noise: &mut noise, observe: &mut observe }.run(start, 0..steps)
    }

    /// Takes the whole chain off the tape, from standard normal noise `unit`, `[b, c, h, w]`. Returns the last sample, a constant.
    pub fn rollout(&mut self, unit: Tensor<4>) -> Tensor<4> {
        self.without_gradient(unit, self.scheduler.timesteps().len())
    }

    /// The network's prediction at a step, with guidance, `[b, c, h, w]`.
    pub fn noise_pred(&self, call: Call, step: usize, latents: &Tensor<4>) -> Tensor<4> {
        let rows = latents.dims()[0];
        let timesteps = vec![self.scheduler.timesteps()[step] as f32; rows];
        let input = match call {
            Call::On => latents.clone(),
            Call::Off | Call::DetachedInput => latents.clone().without_autodiff(),
        };
        let input = self.scheduler.scale_model_input(input, &vec![step; rows]);
        match call {
            Call::Off => {
                profile::time(Stage::Rollout, || predict(&self.denoiser.valid(), input, &timesteps, &self.guidance.without_autodiff()))
            }
            Call::On | Call::DetachedInput => {
                profile::time(Stage::TrackedStep, || predict(self.denoiser, input, &timesteps, self.guidance))
            }
        }
    }

    /// The clean latents that follow from the prediction at a step, `[b, c, h, w]`.
    pub fn pred_original_sample(&self, step: usize, noise_pred: Tensor<4>, latents: Tensor<4>) -> Tensor<4> {
        let steps = vec![step; latents.dims()[0]];
        self.scheduler.transition(noise_pred, &steps, latents).pred_original_sample
    }
}
