//! Denoising as a Markov decision process (DDPO, arXiv 2305.13301, section 4): the code that DDPO and D3PO share. Their loop is in `epochs`.
//!
//! | paper | here |
//! |---|---|
//! | state (c, t, x_t), action x_{t-1} | a row of a [`Minibatch`]: an image of the [rollout](rollout::Rollout) and one of its steps |
//! | π(a \| s) = p_θ(x_{t-1} \| x_t, c) | [`transition`] |
//! | importance ratio | [`PolicyLoss::ratio`](crate::losses::PolicyLoss::ratio) |
//! | the order in which states are trained on | [`Walk`](walk::Walk) |

pub mod advantages;
pub mod d3po;
pub mod ddpo;
pub(crate) mod epochs;
mod kl;
mod objectives;
mod plan;
pub mod rollout;
pub(crate) mod snapshot;
mod trajectory;
pub mod walk;

use burn::tensor::Tensor;
use vp_core::profile::{self, Stage};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Guidance, Trainable, predict};
use vp_schedulers::{Scheduler, Transition, by_name, require_stochastic};

use crate::Error;
use crate::config::TrainConfig;
use crate::environment::Environment;
use crate::non_finite;
use crate::policy::epochs::Rows;
use crate::policy::rollout::RolloutPlan;
use crate::sections::SchedulerSection;

/// Rows of a rollout: `b` images, each at its own scheduler step.
#[derive(Debug, Clone)]
pub struct Minibatch {
    /// One prompt per row.
    pub prompts: Vec<String>,
    /// x_t, `[b, c, h, w]`.
    pub sample: Tensor<4>,
    /// x_{t-1}, `[b, c, h, w]`.
    pub prev_sample: Tensor<4>,
    /// log p(x_{t-1} | x_t) under the policy that sampled the images, `[b]`.
    pub log_probs: Tensor<1>,
    /// The scheduler step of each row, counted from 0.
    pub steps: Vec<usize>,
}

impl Minibatch {
    /// The network's inputs: the scaled latents `[b, c, h, w]` and the timestep of each row.
    fn model_input(&self, scheduler: &dyn Scheduler) -> (Tensor<4>, Vec<f32>) {
        let timesteps = self.steps.iter().map(|step| scheduler.timesteps()[*step] as f32).collect();
        (scheduler.scale_model_input(self.sample.clone(), &self.steps), timesteps)
    }

    /// p(x_{t-1} | x_t) of these rows under `model`, with the guidance that they were sampled with. On the tape if `model` is, and with it
    /// the embeddings of a text encoder that trains.
    pub fn transition<D: Denoiser>(
        &self,
        model: &Trainable<D>,
        environment: &Environment<D>,
        plan: &RolloutPlan<'_>,
        scheduler: &dyn Scheduler,
    ) -> Transition {
        profile::time(Stage::TrackedStep, || {
            transition(&model.denoiser, scheduler, &plan.guidance(model, environment, &self.prompts), self)
        })
    }

    /// How far one unit of the network's output moves the mean of each row's step, `[b]`, a constant of the schedule. For DDIM and a network that
    /// predicts noise it is `√ᾱ_{t−1} √(1−ᾱ_t) / √ᾱ_t − √(1−ᾱ_{t−1}−σ²)`.
    pub fn output_slope(&self, scheduler: &dyn Scheduler) -> Tensor<1> {
        // The mean is linear in the output, but for x_0 that are clipped; those of a small output are not.
        const SMALL: f64 = 1.0 / 1024.0;
        let rows = self.steps.len();
        let zero = Tensor::<4>::zeros([rows, 1, 1, 1], &self.sample.device().without_autodiff());
        let moved = scheduler.transition(zero.clone() + SMALL, &self.steps, zero).prev_sample_mean;
        moved.abs().reshape([rows]) / SMALL
    }
}

impl<D: Denoiser> Rows<D> for Minibatch {
    fn first_non_finite(&self, model: &Trainable<D>, environment: &Environment<D>, scheduler: &dyn Scheduler) -> Option<String> {
        if ![&self.sample, &self.prev_sample].into_iter().all(non_finite::is_finite) {
            return Some("the latents of the rollout".into());
        }
        let pipeline = &environment.pipeline;
        let conditioning = model.text(&pipeline.text).encode(&self.prompts, environment.size, pipeline.device());
        let (input, timesteps) = self.model_input(scheduler);
        non_finite::in_prediction(&model.denoiser, input, &timesteps, &conditioning)
    }
}

/// The distribution p_θ(x_{t-1} | x_t) of each row at its own step, with guidance.
pub fn transition<D: Denoiser>(denoiser: &D, scheduler: &dyn Scheduler, guidance: &Guidance, batch: &Minibatch) -> Transition {
    let (input, timesteps) = batch.model_input(scheduler);
    let noise_pred = predict(denoiser, input, &timesteps, guidance);
    scheduler.transition(noise_pred, &batch.steps, batch.sample.clone())
}

/// The most images per epoch. Published recipes have a few hundred.
pub const MOST_IMAGES: usize = 1_000_000;

/// The knobs that DDPO and D3PO share, for their checks and for the arithmetic that is printed before a run.
#[derive(Debug, Clone, Copy)]
struct EpochKnobs<'a> {
    /// The algorithm's name in the config.
    algo: &'static str,
    /// The counts that must be at least 1, by name.
    counts: &'a [(&'static str, usize)],
    guidance_scale: f64,
    timestep_fraction: f64,
    counts_of_epoch: EpochCounts,
}

impl EpochKnobs<'_> {
    /// Appends a message for each knob that is out of range, and one if the scheduler is deterministic.
    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        let Self { algo, counts, guidance_scale, timestep_fraction, counts_of_epoch: EpochCounts { num_images, .. } } = *self;
        if num_images > MOST_IMAGES {
            findings.push(format!(
                "algo.{algo}: an epoch has {num_images} images (sample_batch_size x num_batches_per_epoch), all kept until they are trained on; \
                 expected at most {MOST_IMAGES}"
            ));
        }
        let zeros = counts.iter().filter(|(_, count)| *count == 0);
        findings.extend(zeros.map(|(name, _)| format!("algo.{algo}.{name} is 0; expected at least 1")));
        if let Some(scheduler) = &config.scheduler {
            stochastic_findings(algo, scheduler, findings);
        }
        if !(guidance_scale >= 0.0 && guidance_scale.is_finite()) {
            findings.push(format!("algo.{algo}.guidance_scale is {guidance_scale}; expected a number of at least 0"));
        }
        if !(timestep_fraction > 0.0 && timestep_fraction <= 1.0) {
            findings.push(format!("algo.{algo}.timestep_fraction is {timestep_fraction}; expected above 0 and at most 1"));
        }
    }

    /// A sentence about the size of the run. Each image is trained on at `trained` timesteps.
    fn arithmetic(&self, config: &TrainConfig, trained: usize) -> String {
        self.counts_of_epoch.arithmetic(config, &format!("{trained} of {} timesteps", config.num_inference_steps()))
    }
}

/// The images of an epoch, and of an update.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EpochCounts {
    /// Images per epoch.
    pub num_images: usize,
    /// Images per update.
    pub images_per_update: usize,
    /// Walks over the images of an epoch.
    pub num_inner_epochs: usize,
}

impl EpochCounts {
    /// A sentence with the images and updates per epoch, the epochs of the run, and the backward passes per update. `trained` says at which
    /// timesteps an image is trained on.
    pub fn arithmetic(self, config: &TrainConfig, trained: &str) -> String {
        let Self { num_images, images_per_update, num_inner_epochs } = self;
        let updates_per_epoch = num_inner_epochs * num_images / images_per_update;
        let (updates, backwards) = (config.run.num_train_steps, config.settings().micro_batches);
        let epochs = updates as f64 / updates_per_epoch as f64;
        format!(
            "{updates} updates = {epochs:.1} epochs of {num_images} images and {updates_per_epoch} updates; an update takes {images_per_update} \
             images at {trained}, {backwards} backward passes; {} images in all",
            epochs.ceil() as usize * num_images
        )
    }
}

/// Timesteps of each image that are trained on per walk over the epoch, at least 1.
fn trained_steps(num_steps: usize, timestep_fraction: f64) -> usize {
    ((num_steps as f64 * timestep_fraction) as usize).max(1)
}

/// Appends a message if the scheduler that the section describes draws no noise. Unknown names and schedulers that keep history are left to
/// the section's own checks.
fn stochastic_findings(algo: &str, scheduler: &SchedulerSection, findings: &mut Vec<String>) {
    let SchedulerSection { name, eta, .. } = scheduler;
    let deterministic = by_name(name).is_ok_and(|entry| entry.is_single_step() && !entry.is_stochastic(*eta));
    if deterministic {
        findings.push(format!(
            "algo.{algo} needs random steps, and scheduler.name {name} with scheduler.eta {eta} draws no noise; expected ddim with eta above 0 \
             (published: 1)"
        ));
    }
}

/// Refuses a schedule with a step that draws next to no noise and so has no density.
///
/// # Errors
/// Names the step, and a scheduler without such a step.
pub fn require_density(scheduler: &dyn Scheduler) -> Result<(), Error> {
    let (with_density, timesteps) = (require_stochastic(scheduler)?, scheduler.timesteps());
    match timesteps.get(with_density) {
        None => Ok(()),
        Some(timestep) => Err(Error::Config(format!(
            "the last scheduler step (timestep {timestep}) has the standard deviation {:e}, so what it draws has no density; expected ddim with \
             eta above 0 and scheduler.set_alpha_to_one = false",
            scheduler.std_dev_t(with_density)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use vp_schedulers::{SchedulerConfig, build_scheduler};

    use super::*;
    use crate::run::values;

    /// Of Stable Diffusion's schedule, by the formula; as the mean is linear, a whole unit moves it as far.
    #[test]
    fn the_slope_of_the_output_is_that_of_ddims_mean() {
        let config = serde_json::json!({
            "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "steps_offset": 1, "set_alpha_to_one": false, "clip_sample": false,
        });
        let config: SchedulerConfig = serde_json::from_value(config).unwrap();
        let (device, steps) = (Device::flex(), vec![0, 20, 49]);
        let sample = Tensor::<4>::full([3, 1, 1, 2], 0.3, &device);
        let batch = Minibatch { prompts: Vec::new(), prev_sample: sample.clone(), log_probs: Tensor::zeros([3], &device), sample, steps };
        for eta in [0.5, 1.0] {
            let scheduler = build_scheduler(&config, Some(by_name("ddim").unwrap()), 50, eta).unwrap();
            let alphas = |timestep: f64| {
                let beta = |i: f64| (0.00085f64.sqrt() + (0.012f64.sqrt() - 0.00085f64.sqrt()) * i / 999.0).powi(2);
                (0..=timestep as usize).map(|i| 1.0 - beta(i as f64)).product::<f64>()
            };
            let slope = |step: usize| {
                let timestep = scheduler.timesteps()[step];
                let (now, then, sigma) = (alphas(timestep), alphas((timestep - 20.0).max(0.0)), scheduler.std_dev_t(step));
                then.sqrt() * (1.0 - now).sqrt() / now.sqrt() - (1.0 - then - sigma * sigma).sqrt()
            };
            let found = batch.output_slope(&*scheduler);
            let output = Tensor::<4>::full([3, 1, 1, 2], 0.1, &device);
            let mean = |output| scheduler.transition(output, &batch.steps, batch.sample.clone()).prev_sample_mean;
            let moved = (mean(output.clone() + 1.0) - mean(output)).abs().mean_dims(&[1, 2, 3]).reshape([3]);
            for ((found, moved), step) in values(&found).into_iter().zip(values(&moved)).zip(&batch.steps) {
                let expected = slope(*step);
                assert!((found - expected).abs() < 1e-4 * expected, "step {step}: {found}, by the formula {expected}");
                assert!((moved - expected).abs() < 1e-3 * expected, "step {step}: {moved}, by the formula {expected}");
            }
        }
    }

    /// The findings about a scheduler whose name is written as a user might write it.
    fn findings(name: &str, eta: f64) -> Vec<String> {
        let section = serde_json::json!({ "name": name, "num_inference_steps": 10, "eta": eta });
        let mut findings = Vec::new();
        stochastic_findings("ddpo", &serde_json::from_value(section).unwrap(), &mut findings);
        findings
    }

    #[test]
    fn a_scheduler_without_noise_is_found_however_its_name_is_written() {
        for (name, eta) in
            [("DDIM", 1.0), ("euler a", 0.0), ("Euler-Ancestral", 0.0), ("EulerAncestralDiscreteScheduler", 0.0), ("DDPM", 0.0)]
        {
            assert!(findings(name, eta).is_empty(), "{name}");
        }
        for (name, eta) in
            [("ddim", 0.0), ("DDIM", 0.0), ("DDIMScheduler", 0.0), ("Euler", 1.0), ("Euler Karras", 1.0), ("euler_karras", 0.0)]
        {
            let found = findings(name, eta);
            assert!(found.len() == 1 && found[0].contains(&format!("scheduler.name {name} with scheduler.eta {eta}")), "{name}: {found:?}");
        }
        // The section itself refuses these.
        assert!(findings("dpmpp_2m", 0.0).is_empty() && findings("dimm", 0.0).is_empty());
    }
}
