//! DDPO: denoising diffusion policy optimization (Black et al., arXiv 2305.13301).
//!
//! | paper, ddpo-pytorch | here |
//! |---|---|
//! | `sample.batch_size`, `sample.num_batches_per_epoch` (times GPUs) | `sample_batch_size`, `num_batches_per_epoch` |
//! | `train.batch_size`, `train.gradient_accumulation_steps` | `train_batch_size`, `optimizer.gradient_accumulation_steps` (minibatches, each with all its timesteps) |
//! | DDPO-IS, DDPO-SF | `objective` |
//! | `per_prompt_stat_tracking` | `[algo.ddpo.advantages.per_prompt]` |
//! | DanceGRPO's (2505.07818) groups | `[algo.ddpo.advantages.group]`, `images_per_prompt`, `share_initial_latents` |
//! | DPOK's KL term | `kl_weight` |
//! | the diffusion loss of DDRL (2512.04332) | `[regularizer.images]`, once a minibatch, weighed as if at each timestep |
//!
//! One backward pass per (minibatch, timestep), its gradient added up: memory is that of one denoising step. The log-probability is
//! a mean over channels and pixels, as published; `clip_range` presumes it.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;
use vp_schedulers::Scheduler;

use crate::Error;
use crate::direct::preview_first;
use crate::environment::Environment;
use crate::optim::NamedTensors;
use crate::policy::advantages::{AdvantagesConfig, recall_tracker, save_tracker};
use crate::policy::rollout::{Rollout, RolloutPlan};
use crate::policy::{Layout, Minibatch, Objective, Place, guided_transition, kl_divergence, learn, prompts, sampling_findings, surrogate};
use crate::regularizer::{Regularizer, Trajectory};
use crate::run::{Observed, Run, values};
use crate::sections::SchedulerSection;

/// How far a ratio may be from 1 before the first update of a rollout: float32 leaves about 1e-6.
const ON_POLICY: f64 = 1e-5;

/// The knobs of `[algo.ddpo]`, with ddpo-pytorch's values for one 8-GPU machine where the file is silent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ddpo {
    /// Images drawn at once.
    pub sample_batch_size: usize,
    /// Of those, batches an epoch.
    pub num_batches_per_epoch: usize,
    /// Images of each prompt in an epoch: the group of group-relative advantages.
    pub images_per_prompt: usize,
    /// Whether the images of a prompt start from the same latents (DanceGRPO).
    pub share_initial_latents: bool,
    /// Classifier-free guidance, in rollout and training.
    pub guidance_scale: f64,
    /// What to steer away from, under guidance.
    pub negative_prompt: Option<String>,
    /// `importance_sampling` (DDPO-IS) or `score_function` (DDPO-SF).
    pub objective: Objective,
    /// `[algo.ddpo.advantages.<name>]`.
    pub advantages: AdvantagesConfig,
    /// Images trained on at once, each at one timestep.
    pub train_batch_size: usize,
    /// Times that an epoch's images are walked.
    pub num_inner_epochs: usize,
    /// Share of each image's timesteps that is trained on, drawn anew for each walk.
    pub timestep_fraction: f64,
    /// Ratios are clipped to 1 ± this.
    pub clip_range: f64,
    /// Advantages are clipped to ± this.
    pub adv_clip_max: f64,
    /// Factor of the KL divergence from the base model; 0: it is measured, and not trained on.
    pub kl_weight: f64,
}

impl Default for Ddpo {
    fn default() -> Self {
        Self {
            sample_batch_size: 8,
            num_batches_per_epoch: 32,
            images_per_prompt: 1,
            share_initial_latents: false,
            guidance_scale: 5.0,
            negative_prompt: None,
            objective: Objective::default(),
            advantages: AdvantagesConfig::default(),
            train_batch_size: 4,
            num_inner_epochs: 1,
            timestep_fraction: 1.0,
            clip_range: 1e-4,
            adv_clip_max: 5.0,
            kl_weight: 0.0,
        }
    }
}

impl Ddpo {
    /// Images an epoch.
    pub fn images(&self) -> usize {
        self.sample_batch_size * self.num_batches_per_epoch
    }

    /// Timesteps of each image that are trained on.
    pub fn trained_steps(&self, num_inference_steps: usize) -> usize {
        ((num_inference_steps as f64 * self.timestep_fraction) as usize).max(1)
    }

    /// How an epoch is walked.
    pub fn layout(&self, num_inference_steps: usize) -> Layout {
        Layout {
            items: self.images(),
            batch_size: self.train_batch_size,
            inner_epochs: self.num_inner_epochs,
            steps: self.trained_steps(num_inference_steps),
            of_steps: num_inference_steps,
        }
    }

    /// Appends what cannot work together with the scheduler's section and `accumulation` minibatches an update.
    pub fn findings(&self, scheduler: &SchedulerSection, accumulation: usize, findings: &mut Vec<String>) {
        let counts = [
            ("sample_batch_size", self.sample_batch_size),
            ("num_batches_per_epoch", self.num_batches_per_epoch),
            ("images_per_prompt", self.images_per_prompt),
            ("train_batch_size", self.train_batch_size),
            ("num_inner_epochs", self.num_inner_epochs),
        ];
        let fine = counts.iter().all(|(_, count)| *count > 0);
        sampling_findings("ddpo", &counts, (self.guidance_scale, self.timestep_fraction), scheduler, findings);
        let positive = [("clip_range", self.clip_range), ("adv_clip_max", self.adv_clip_max)];
        for (name, value) in positive.into_iter().filter(|(_, value)| !(*value > 0.0 && value.is_finite())) {
            findings.push(format!("algo.ddpo.{name} is {value}; expected a number above 0"));
        }
        if !(self.kl_weight >= 0.0 && self.kl_weight.is_finite()) {
            findings.push(format!("algo.ddpo.kl_weight is {}; expected a number of at least 0", self.kl_weight));
        }
        self.advantages.findings(findings);
        if fine && accumulation > 0 {
            self.division_findings(accumulation, findings);
        }
    }

    fn division_findings(&self, accumulation: usize, findings: &mut Vec<String>) {
        let images = self.images();
        let epoch = format!(
            "an epoch has {images} images (sample_batch_size {} x num_batches_per_epoch {})",
            self.sample_batch_size, self.num_batches_per_epoch
        );
        let update = self.train_batch_size * accumulation;
        if !images.is_multiple_of(self.images_per_prompt) {
            findings.push(format!("{epoch}, which algo.ddpo.images_per_prompt {} does not divide", self.images_per_prompt));
        }
        if !images.is_multiple_of(update) {
            findings.push(format!(
                "{epoch}, which an update of {update} (algo.ddpo.train_batch_size {} x optimizer.gradient_accumulation_steps {accumulation}) does not divide",
                self.train_batch_size
            ));
        } else if self.objective == Objective::ScoreFunction && self.num_inner_epochs * images != update {
            findings.push(format!(
                "algo.ddpo.objective score_function makes one update a rollout, and here are {}: {epoch}, an update {update}; raise \
                 optimizer.gradient_accumulation_steps, or take importance_sampling",
                self.num_inner_epochs * images / update
            ));
        }
        if matches!(self.advantages, AdvantagesConfig::Group(_)) && self.images_per_prompt < 2 {
            findings.push("algo.ddpo.advantages.group compares images of one prompt; images_per_prompt is 1, expected at least 2".into());
        }
        if self.share_initial_latents && self.images_per_prompt < 2 {
            findings.push("algo.ddpo.share_initial_latents needs images_per_prompt of at least 2".into());
        }
    }

    fn plan(&self) -> RolloutPlan<'_> {
        RolloutPlan {
            images: self.images(),
            batch_size: self.sample_batch_size,
            images_per_prompt: self.images_per_prompt,
            share_initial_latents: self.share_initial_latents,
            guidance_scale: self.guidance_scale,
            negative_prompt: self.negative_prompt.as_deref(),
        }
    }

    /// Trains to the end.
    ///
    /// # Errors
    /// When the run is interrupted, something is not finite, the ratios are not 1 before the first update, or the run's folder cannot
    /// be written.
    pub fn train<D: Denoiser>(
        &self,
        run: &mut Run<Trainable<D>>,
        environment: &mut Environment<D>,
        regularizer: &mut Regularizer,
    ) -> Result<(), Error> {
        let scheduler = environment.scheduler()?;
        let layout = self.layout(scheduler.timesteps().len());
        preview_first(run, environment)?;
        let mut rollout = Rollout::recall(&run.memory, environment.pipeline.latent_shape(environment.size));
        while let Some(batch) = run.next_batch()? {
            let place = layout.place(run.noise, batch.index);

            // 1. Once an epoch: images of the policy as it is, off the tape; 2. their rewards; 3. their advantages.
            let (device, plan) = (environment.pipeline.device().clone(), (&self.plan(), place.epoch));
            let advantages = |rollout: &Rollout, memory: &mut NamedTensors| self.advantages(rollout, memory, &device);
            let Some(current) = Rollout::of_epoch(rollout.take(), run, environment, plan, advantages)? else { continue };

            // 4. The objective of a minibatch, each image at a timestep of its own.
            let (mut loss, mut observed) = self.objective(run, environment, &*scheduler, &current, &place)?;

            // 5. The regulariser beside a minibatch's first timestep, for all of them.
            if place.within.is_multiple_of(layout.steps) {
                let prompts = prompts(environment, &current, &place.items);
                let nowhere = Trajectory { visited: &[], prompts: &prompts, size: environment.size };
                let draw = batch.index / layout.steps as u64 + 1;
                if let Some(regularization) = regularizer.loss(&run.model, environment, &*scheduler, nowhere, (&run.noise, draw))? {
                    observed.push(("regularizer".into(), values(&regularization)));
                    loss = loss + regularization * layout.steps as f64;
                }
            }

            // 6. Backward, accumulated over timesteps and minibatches; update, look, and save where that is due.
            rollout = learn(run, environment, &*scheduler, (current, &layout, &place), (loss, observed))?;
        }
        Ok(())
    }

    /// The advantages of a rollout; `memory` learns of its rewards.
    fn advantages(&self, rollout: &Rollout, memory: &mut NamedTensors, device: &Device) -> Vec<f32> {
        let mut tracker = recall_tracker(memory);
        let advantages = self.advantages.advantages(&rollout.rewards, &rollout.prompts, self.images_per_prompt, &mut tracker);
        save_tracker(&tracker, memory, device);
        advantages
    }

    /// The loss `[1]` of a micro-batch on the tape, and what the journal is told.
    fn objective<D: Denoiser>(
        &self,
        run: &Run<Trainable<D>>,
        environment: &Environment<D>,
        scheduler: &dyn Scheduler,
        rollout: &Rollout,
        place: &Place,
    ) -> Result<(Tensor<1>, Observed), Error> {
        let minibatch = Minibatch::of(rollout, &place.items, &place.steps);
        let guided =
            |model: &Trainable<D>| guided_transition(model, environment, scheduler, &self.plan(), (rollout, &place.items), &minibatch);
        let policy = guided(&run.model);
        let clipped = |row: &usize| rollout.advantages[*row].clamp(-self.adv_clip_max as f32, self.adv_clip_max as f32);
        let advantages: Vec<f32> = place.items.iter().map(clipped).collect();
        let advantages = Tensor::from_data(advantages.as_slice(), environment.pipeline.device());
        let log_probs = policy.log_prob(minibatch.prev_sample.clone());
        let surrogate = surrogate(self.objective, log_probs, minibatch.log_probs.clone(), advantages, self.clip_range);
        let deviations: Vec<f64> = values(&surrogate.ratio).iter().map(|ratio| (ratio - 1.0).abs()).collect();
        if place.within < run.settings.micro_batches {
            check_on_policy(&deviations, place)?;
        }
        let mut observed = vec![
            ("approx_kl".to_string(), values(&surrogate.approx_kl)),
            ("clipfrac".into(), values(&surrogate.clipped)),
            ("ratio_max_deviation".into(), deviations),
        ];
        let mut loss = surrogate.loss.mean();
        let begins_an_update = place.within.is_multiple_of(run.settings.micro_batches);
        if begins_an_update || self.kl_weight > 0.0 {
            let kl = kl_divergence(&policy, &guided(&environment.base));
            observed.push(("kl".into(), values(&kl)));
            if self.kl_weight > 0.0 {
                loss = loss + kl.mean() * self.kl_weight;
            }
        }
        if begins_an_update {
            observed.extend(rollout.scores());
        }
        Ok((loss, observed))
    }
}

/// Before the first update the policy is the one that drew: anything else is a fault in the model or the machine, and would train on
/// a fiction. A ratio that is not finite is the loss's to report.
fn check_on_policy(deviations: &[f64], place: &Place) -> Result<(), Error> {
    let worst = (0..deviations.len()).max_by(|a, b| deviations[*a].total_cmp(&deviations[*b])).unwrap_or(0);
    let deviation = deviations.get(worst).copied().unwrap_or(0.0);
    if deviation <= ON_POLICY || !deviation.is_finite() {
        return Ok(());
    }
    Err(Error::OffPolicy { image: place.items[worst], epoch: place.epoch + 1, step: place.steps[worst], deviation })
}
