//! Denoising as a decision process (DDPO, arXiv 2305.13301, section 4): what DDPO and D3PO share.
//!
//! | paper | here |
//! |---|---|
//! | state (c, t, x_t), action x_{t-1} | a row of a [`Minibatch`]: an image of the rollout and one of its steps |
//! | π(a \| s) = p_θ(x_{t-1} \| x_t, c) | [`transition`] |
//! | importance ratio | [`Surrogate::ratio`] |

pub mod advantages;
pub mod d3po;
pub mod ddpo;
pub mod rollout;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::noise::{Noise, Purpose};
use vp_core::profile::{self, Stage};
use vp_data::ShuffledOrder;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Guidance, Request, Trainable, predict};
use vp_schedulers::{Scheduler, Transition, by_name, require_stochastic};

use crate::Error;
use crate::environment::Environment;
use crate::policy::rollout::{Rollout, RolloutPlan};
use crate::run::preview::is_finite;
use crate::run::{Observed, Run};
use crate::sections::SchedulerSection;

/// How an epoch's images are walked in training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Images (or pairs) of an epoch.
    pub items: usize,
    /// Of them at once.
    pub batch_size: usize,
    /// Times that an epoch is walked.
    pub inner_epochs: usize,
    /// Steps of each image that are trained on.
    pub steps: usize,
    /// Steps to choose them from.
    pub of_steps: usize,
}

/// Where a micro-batch stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its epoch, counted from 0.
    pub epoch: u64,
    /// Its number in the epoch, counted from 0.
    pub within: usize,
    /// The images (or pairs) it trains on.
    pub items: Vec<usize>,
    /// The step of each: every image has an order of its own.
    pub steps: Vec<usize>,
}

impl Layout {
    /// Micro-batches an epoch.
    pub fn micro_batches(&self) -> usize {
        self.inner_epochs * self.items / self.batch_size * self.steps
    }

    /// Which images and steps micro-batch `index` of the run trains on. Images are shuffled anew for each walk, and so are the steps of
    /// each image; a minibatch stays for all its steps before the next one comes.
    pub fn place(&self, noise: Noise, index: u64) -> Place {
        let per_epoch = self.micro_batches();
        let (epoch, within) = (index / per_epoch as u64, (index % per_epoch as u64) as usize);
        let per_walk = per_epoch / self.inner_epochs;
        let walk = epoch * self.inner_epochs as u64 + (within / per_walk) as u64;
        let (minibatch, step) = (within % per_walk / self.steps, within % self.steps);
        let first = walk * self.items as u64 + (minibatch * self.batch_size) as u64;
        let items = ShuffledOrder::new(self.items, noise, Purpose::MinibatchOrder).entries(first, self.batch_size);
        let mut order = ShuffledOrder::new(self.of_steps, noise, Purpose::TimestepOrder);
        let step_of = |item: &usize| order.entries((walk * self.items as u64 + *item as u64) * self.of_steps as u64 + step as u64, 1)[0];
        let steps = items.iter().map(step_of).collect();
        Place { epoch, within, items, steps }
    }
}

/// Rows of a rollout: images, each at a step.
#[derive(Debug, Clone)]
pub struct Minibatch {
    /// x_t, `[b, c, h, w]`.
    pub sample: Tensor<4>,
    /// x_{t-1}, `[b, c, h, w]`.
    pub prev_sample: Tensor<4>,
    /// log p(x_{t-1} | x_t) of the policy that drew, `[b]`.
    pub log_probs: Tensor<1>,
    /// Scheduler steps.
    pub steps: Vec<usize>,
}

impl Minibatch {
    /// `rows` of `rollout`, each at its own step.
    pub fn of(rollout: &Rollout, rows: &[usize], steps: &[usize]) -> Self {
        let gather = |offset: usize| {
            let one = |(row, step): (&usize, &usize)| rollout.latents[step + offset].clone().narrow(0, *row, 1);
            Tensor::cat(rows.iter().zip(steps).map(one).collect(), 0)
        };
        let log_prob = |(row, step): (&usize, &usize)| rollout.log_probs[*step].clone().narrow(0, *row, 1);
        let log_probs = Tensor::cat(rows.iter().zip(steps).map(log_prob).collect(), 0);
        Self { sample: gather(0), prev_sample: gather(1), log_probs, steps: steps.to_vec() }
    }
}

/// p_θ(x_{t-1} | x_t) at each row's own step, with guidance.
pub fn transition<D: Denoiser>(denoiser: &D, scheduler: &dyn Scheduler, guidance: &Guidance, batch: &Minibatch) -> Transition {
    let timesteps: Vec<f32> = batch.steps.iter().map(|step| scheduler.timesteps()[*step] as f32).collect();
    let input = scheduler.scale_model_input(batch.sample.clone(), &batch.steps);
    let output = predict(denoiser, input, &timesteps, guidance);
    scheduler.transition(output, &batch.steps, batch.sample.clone())
}

/// KL(p ‖ q) of two transitions of one schedule, divided by c·h·w as log-probabilities are: `mean (μ − μ_q)² / (2σ²)`, `[b]`.
///
/// Source: DPOK (arXiv 2305.16381) equation 8; d3po `scripts/rm/train_dpok.py`.
pub fn kl_divergence(policy: &Transition, reference: &Transition) -> Tensor<1> {
    let rows = policy.std_dev_t.dims()[0];
    let difference = (policy.prev_sample_mean.clone() - reference.prev_sample_mean.clone()) / policy.std_dev_t.clone();
    difference.square().mean_dims(&[1, 2, 3]).reshape([rows]) * 0.5
}

/// DDPO's two published estimators of the policy gradient.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// DDPO-IS: the clipped ratio of PPO, for any number of updates a rollout.
    #[default]
    ImportanceSampling,
    /// DDPO-SF: REINFORCE, one update a rollout.
    ScoreFunction,
}

/// What is minimised for a minibatch, and what is looked at.
#[derive(Debug, Clone)]
pub struct Surrogate {
    /// One a row, `[b]`.
    pub loss: Tensor<1>,
    /// exp(log π − log π_old), `[b]`, off the tape.
    pub ratio: Tensor<1>,
    /// (log π − log π_old)² / 2, `[b]`, off the tape.
    pub approx_kl: Tensor<1>,
    /// 1 where the ratio is further than `clip_range` from 1, `[b]`, off the tape.
    pub clipped: Tensor<1>,
}

/// The objective for log-probabilities `[b]` (a mean over c, h, w, which `clip_range` presumes) and advantages `[b]`.
///
/// Source: ddpo-pytorch `scripts/train.py`: `max(−A ρ, −A clamp(ρ, 1 − ε, 1 + ε))`; Black et al. (arXiv 2305.13301) equations 4 and 5.
pub fn surrogate(
    objective: Objective,
    log_probs: Tensor<1>,
    old_log_probs: Tensor<1>,
    advantages: Tensor<1>,
    clip_range: f64,
) -> Surrogate {
    let difference = log_probs.clone() - old_log_probs;
    let ratio = difference.clone().exp();
    let loss = match objective {
        Objective::ScoreFunction => -(advantages * log_probs),
        Objective::ImportanceSampling => {
            let clipped = ratio.clone().clamp(1.0 - clip_range, 1.0 + clip_range);
            (-(advantages.clone() * ratio.clone())).max_pair(-(advantages * clipped))
        }
    };
    let (ratio, difference) = (ratio.without_autodiff(), difference.without_autodiff());
    let clipped = (ratio.clone() - 1.0).abs().greater_elem(clip_range).float();
    Surrogate { loss, ratio, approx_kl: difference.square() * 0.5, clipped }
}

/// The transition of the rows of `rollout` that `minibatch` holds, with the prompts and the guidance they were drawn with. On the tape, so
/// are the embeddings of a text encoder that trains.
pub fn guided_transition<D: Denoiser>(
    model: &Trainable<D>,
    environment: &Environment<D>,
    scheduler: &dyn Scheduler,
    plan: &RolloutPlan<'_>,
    (rollout, rows): (&Rollout, &[usize]),
    minibatch: &Minibatch,
) -> Transition {
    let (pipeline, prompts) = (&environment.pipeline, prompts(environment, rollout, rows));
    let RolloutPlan { negative_prompt, guidance_scale, .. } = *plan;
    let request = Request { prompts: &prompts, negative_prompt, guidance_scale, size: environment.size };
    profile::time(Stage::TrackedStep, || {
        transition(&model.unet, scheduler, &pipeline.encode(&model.text(&pipeline.text), &request), minibatch)
    })
}

/// The prompts of images of a rollout.
pub fn prompts<D: Denoiser>(environment: &Environment<D>, rollout: &Rollout, rows: &[usize]) -> Vec<String> {
    rows.iter().map(|row| environment.prompt(rollout.prompts[*row]).to_string()).collect()
}

/// The end of a micro-batch: goes backward, after the last one of an update updates, follows with the moving average and writes down,
/// and looks where that is due. Gives the rollout back until its epoch is over; then the run forgets it.
///
/// # Errors
/// When something is not finite, a reward fails, or the run's folder cannot be written.
pub fn learn<D: Denoiser>(
    run: &mut Run<Trainable<D>>,
    environment: &Environment<D>,
    scheduler: &dyn Scheduler,
    (rollout, layout, place): (Rollout, &Layout, &Place),
    (loss, observed): (Tensor<1>, Observed),
) -> Result<Option<Rollout>, Error> {
    if place.within.is_multiple_of(layout.steps) {
        run.count_images(place.items.len());
    }
    let blame = |model: &Trainable<D>| first_non_finite(model, environment, scheduler, &rollout, place);
    let updated = run.backward(loss, observed, &blame)?;
    let over = place.within + 1 == layout.micro_batches();
    if over {
        Rollout::forget(&mut run.memory);
    }
    if let Some(step) = updated.filter(|step| run.preview_is_due(*step)) {
        run.preview(&environment.preview(&run.tuned(), step)?)?;
    }
    Ok((!over).then_some(rollout))
}

/// Appends what cannot be among the knobs that DDPO and D3PO share: `counts` must be at least 1.
pub fn sampling_findings(
    algo: &str,
    counts: &[(&str, usize)],
    (guidance_scale, timestep_fraction): (f64, f64),
    scheduler: &SchedulerSection,
    findings: &mut Vec<String>,
) {
    let zeros = counts.iter().filter(|(_, count)| *count == 0);
    findings.extend(zeros.map(|(name, _)| format!("algo.{algo}.{name} is 0; expected at least 1")));
    stochastic_findings(algo, scheduler, findings);
    if !(guidance_scale >= 0.0 && guidance_scale.is_finite()) {
        findings.push(format!("algo.{algo}.guidance_scale is {guidance_scale}; expected a number of at least 0"));
    }
    if !(timestep_fraction > 0.0 && timestep_fraction <= 1.0) {
        findings.push(format!("algo.{algo}.timestep_fraction is {timestep_fraction}; expected above 0 and at most 1"));
    }
}

/// The first tensor that is not finite in the transition of the images at `place`.
fn first_non_finite<D: Denoiser>(
    model: &Trainable<D>,
    environment: &Environment<D>,
    scheduler: &dyn Scheduler,
    rollout: &Rollout,
    place: &Place,
) -> Option<String> {
    let batch = Minibatch::of(rollout, &place.items, &place.steps);
    if !is_finite(&batch.sample) || !is_finite(&batch.prev_sample) {
        return Some("the latents of the rollout".into());
    }
    let (pipeline, prompts) = (&environment.pipeline, prompts(environment, rollout, &place.items));
    let conditioning = model.text(&pipeline.text).encode(&prompts, environment.size, pipeline.device()).without_autodiff();
    if !conditioning.encoder_hidden_states.clone().sum().into_scalar::<f32>().is_finite() {
        return Some("the text encoder's output".into());
    }
    let timesteps: Vec<f32> = batch.steps.iter().map(|step| scheduler.timesteps()[*step] as f32).collect();
    let input = scheduler.scale_model_input(batch.sample.clone(), &batch.steps);
    model.unet.first_non_finite(input, &timesteps, &conditioning).map(|part| format!("unet.{part}"))
}

/// Appends that the scheduler draws no noise, where its section says so. Unknown names and schedulers that keep history are findings of
/// the section itself.
fn stochastic_findings(algo: &str, scheduler: &SchedulerSection, findings: &mut Vec<String>) {
    let deterministic = by_name(&scheduler.name).is_ok_and(|entry| entry.is_single_step() && !entry.is_stochastic(scheduler.eta));
    if deterministic {
        findings.push(format!(
            "algo.{algo} needs a density for each step, and scheduler.name {} with scheduler.eta {} draws none; expected ddim with eta above 0 \
             (published: 1)",
            scheduler.name, scheduler.eta
        ));
    }
}

/// Refuses a schedule of which a step has no density.
///
/// # Errors
/// The step, and what would have one.
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
    use super::*;

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
