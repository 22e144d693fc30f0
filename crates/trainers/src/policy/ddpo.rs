//! DDPO: denoising diffusion policy optimization (Black et al., arXiv 2305.13301).
//!
//! | paper, ddpo-pytorch | here |
//! |---|---|
//! | `sample.batch_size`, `sample.num_batches_per_epoch` (times GPUs) | `sample_batch_size`, `num_batches_per_epoch` |
//! | `train.batch_size`, `train.gradient_accumulation_steps` | `train_batch_size`, `optimizer.gradient_accumulation_steps` (minibatches, each with all its timesteps) |
//! | DDPO-IS, DDPO-SF | `objective` |
//! | `per_prompt_stat_tracking` | `[algo.ddpo.advantages.per_prompt]` |
//! | DanceGRPO's (2505.07818) groups | `[algo.ddpo.advantages.group]`, `images_per_prompt`, `share_initial_latents` |
//! | Flow-GRPO-Fast's `sde_window_size`, `sde_window_range` | `noise_window` |
//! | DPOK's KL term | `kl_weight` |
//! | the diffusion loss of DDRL (2512.04332) | `[regularizer.images]`, once per minibatch, with the weight of all its timesteps |
//!
//! Each timestep of a minibatch has its own backward pass, and the gradients are added up, so the memory is that of one denoising step, or
//! of two with a regulariser. The log-probability is a mean over channels and pixels, as in the published code; `clip_range` relies on
//! that. [`Walk`] defines the order of images and timesteps.
//!
//! It differs from ddpo-pytorch in three ways. Prompts come in a shuffled order, each once before any comes again, while `train.py` draws
//! each independently. Training always uses the guidance of sampling (a scale of 1 or less switches it off), while `train.cfg` can switch
//! it off in training alone. The KL from the base model is measured once per update, which takes one more forward pass.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_core::noise::Noise;
use vp_models::NumberFormat;
use vp_models::denoiser::Denoiser;
use vp_models::number_format::is_cpu;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::algorithm::{Algorithm, Driver, Kept, RewardDriven};
use crate::config::TrainConfig;
use crate::environment::Environment;
use crate::losses::{PolicyLoss, ppo_clip_loss, score_function_loss, transition_kl};
use crate::policy::advantages::{AdvantagesConfig, Tracker};
use crate::policy::rollout::{NoiseWindow, Rollout, RolloutPlan};
use crate::policy::walk::{Position, Walk};
use crate::policy::{EpochKnobs, Minibatch, trained_steps};
use crate::regularizer::{Regularizer, RegularizerConfig, SampledBatch};
use crate::run::{Batch, Draw, Observed, Run, Values, values};

/// How far a ratio may be from 1 before the first update of a rollout, on the CPU in f32, where rounding makes about 1e-6.
const ON_POLICY: f64 = 1e-5;

/// The knobs of `[algo.ddpo]`. The defaults are ddpo-pytorch's values for one machine with 8 GPUs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ddpo {
    /// Images sampled at once, at least 1 (8).
    pub sample_batch_size: usize,
    /// Batches of `sample_batch_size` images per epoch, at least 1 (32).
    pub num_batches_per_epoch: usize,
    /// Images per prompt in an epoch, at least 1: the group of group-relative advantages (1).
    pub images_per_prompt: usize,
    /// Whether the images of a prompt start from the same latents, as in DanceGRPO (false).
    pub share_initial_latents: bool,
    /// The steps that are trained on, the only ones with noise of their own: the images of a prompt share the noise of all other steps.
    /// Absent: all steps.
    pub noise_window: Option<NoiseWindow>,
    /// Classifier-free guidance scale in sampling and training, at least 0; 1 for no guidance (5).
    pub guidance_scale: f64,
    /// Prompt that guidance steers away from; absent: no text.
    pub negative_prompt: Option<String>,
    /// The estimator of the policy gradient: `importance_sampling` (DDPO-IS, the default) or `score_function` (DDPO-SF).
    pub objective: Objective,
    /// `[algo.ddpo.advantages.<name>]`, by default `per_prompt`.
    pub advantages: AdvantagesConfig,
    /// Images trained on at once, each at one timestep; at least 1 (4).
    pub train_batch_size: usize,
    /// Number of walks over an epoch's images, at least 1 (1).
    pub num_inner_epochs: usize,
    /// Share of each image's timesteps (with `noise_window`, of those in it) that is trained on, drawn anew for each walk; above 0 and at
    /// most 1 (1).
    pub timestep_fraction: f64,
    /// Probability ratios are clipped to 1 ± this; above 0 (1e-4).
    pub clip_range: f64,
    /// Advantages are clipped to ± this; above 0 (5).
    pub adv_clip_max: f64,
    /// Factor of the KL divergence from the base model, at least 0; at 0 it is only reported (0).
    pub kl_weight: f64,
    /// Whether the log-probabilities of a rollout are computed again as training computes them, by one more forward pass per image and step.
    /// Where sampling and training round differently, the ratios then still start from exactly 1. Absent: everywhere but on the CPU in f32,
    /// which rounds both alike.
    pub recompute_log_probs: Option<bool>,
}

impl Default for Ddpo {
    fn default() -> Self {
        Self {
            sample_batch_size: 8,
            num_batches_per_epoch: 32,
            images_per_prompt: 1,
            share_initial_latents: false,
            noise_window: None,
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
            recompute_log_probs: None,
        }
    }
}

impl<D: Denoiser> RewardDriven<D> for Ddpo {
    fn train(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>, regularizer: &mut Regularizer) -> Result<(), Error> {
        let (scheduler, plan) = (environment.scheduler()?, self.plan());
        let walk = self.walk(run.noise, scheduler.timesteps().len());
        let device = environment.pipeline.device().clone();
        // Whether sampling and training round alike.
        let exact = is_cpu(&device) && environment.pipeline.formats.model == NumberFormat::F32;
        let (mut warned, workers) = (false, run.workers(&device)?);
        environment.preview_at_start(run)?;
        let mut rollout = Rollout::recall(&run.memory, environment.latent_shape()).unwrap_or_default();

        while let Some(batches) = run.next_batches(workers.count())? {
            // An update's micro-batches are of one epoch.
            let places: Vec<Position> = batches.iter().map(|batch| plan.in_windows(walk.at(batch.index), run.noise)).collect();
            let epoch = places[0].epoch;
            let ends_epoch = places.iter().any(|at| at.ends_epoch);

            if rollout.epoch != Some(epoch) {
                // 1. Sample images with the current policy, off the tape; keep every step's latents and log-probability.
                rollout = Rollout::sample(run, environment, &plan, &workers, epoch)?;
                if self.recompute_log_probs.unwrap_or(!exact) {
                    let apart = rollout.recompute_log_probs(run, environment, &plan, &*scheduler, self.train_batch_size)?;
                    if apart > self.clip_range / 2.0 && !warned {
                        warned = true;
                        run.journal.warn(format_args!("{}", self.too_coarse(apart)));
                    }
                }

                // 2. Score them.
                rollout.score(run, environment, &plan)?;
                if let Some(what) = rollout.first_non_finite() {
                    rollout = Rollout::default();
                    run.leave_out(what)?;
                    continue;
                }

                // 3. Turn rewards into advantages. Both are saved with the run, so that a resumed run goes on from here.
                let mut tracker = Tracker::recall(&run.memory);
                rollout.advantages = self.advantages.compute(&rollout.rewards, &rollout.prompts, self.images_per_prompt, &mut tracker);
                tracker.save(&mut run.memory, &device);
                rollout.save(&mut run.memory, &device);
            }

            run.count_images(places.iter().filter(|at| at.begins_minibatch).map(|at| at.items.len()).sum());
            let (noise, on_policy) = (run.noise, exact && rollout.updates == Some(run.updates()));
            let (shared, rolled_out, regularizer) = (&*environment, &rollout, &*regularizer);
            let compute = |model: &Trainable<D>, (batch, at): (Batch, Position)| {
                let scheduler = shared.scheduler()?;

                // 4. The log-probability of the sampled steps under the current policy, each image at its own timestep.
                let minibatch = rolled_out.minibatch(shared, &at);
                let policy = minibatch.transition(model, shared, &plan, &*scheduler);
                let log_probs = policy.log_prob(minibatch.prev_sample.clone());

                // 5. The clipped objective.
                let advantages = self.clipped_advantages(rolled_out, &at);
                let advantages = Tensor::from_data(advantages.as_slice(), &minibatch.log_probs.device());
                let policy_loss = self.objective.loss(log_probs, minibatch.log_probs.clone(), advantages, self.clip_range);
                if on_policy {
                    check_on_policy(&policy_loss, &at)?;
                }
                let mut told = told(&policy_loss);
                let mut loss = policy_loss.loss.mean();

                // 6. The KL from the base model, which is measured once per update even if it is not trained on.
                if batch.begins_update || self.kl_weight > 0.0 {
                    let base = minibatch.transition(&shared.base, shared, &plan, &*scheduler);
                    let kl = transition_kl(&policy, &base);
                    told.push(("kl".into(), Values::from(&kl)));
                    if self.kl_weight > 0.0 {
                        loss = loss + kl.mean() * self.kl_weight;
                    }
                }

                // 7. The regulariser, once per minibatch, but with the weight of all its timesteps.
                if at.begins_minibatch {
                    let sampled = SampledBatch { visited: &[], prompts: &minibatch.prompts, size: shared.size };
                    let draw = Draw { noise, number: batch.index / walk.num_trained_steps as u64 + 1 };
                    if let Some(regularization) = regularizer.loss(model, shared, &*scheduler, sampled, draw)? {
                        told.push(("regularizer".into(), Values::from(&regularization)));
                        loss = loss + regularization * walk.num_trained_steps as f64;
                    }
                }
                if batch.begins_update {
                    told.extend(rolled_out.observed());
                }
                Ok((loss, told, minibatch))
            };

            // 8. Backward, accumulated over timesteps and minibatches; after the last micro-batch of an update: clip, step, moving
            //    average, journal, and a preview if one is due.
            let blame = |model: &Trainable<D>, minibatch: &Minibatch| minibatch.first_non_finite(model, shared, &*scheduler);
            let updated = run.backward_side_by_side(&workers, batches.into_iter().zip(places).collect(), compute, blame)?;
            if ends_epoch {
                rollout = Rollout::default();
                Rollout::forget(&mut run.memory);
            }
            environment.preview_if_due(run, updated)?;
        }
        Ok(())
    }

    fn backwards_per_minibatch(&self, num_inference_steps: usize) -> usize {
        self.trained_steps(num_inference_steps)
    }

    fn kept(&self) -> Kept {
        Kept::Trajectories(self.num_images())
    }

    fn default_regularizer(&self) -> RegularizerConfig {
        RegularizerConfig::None(Default::default())
    }

    fn arithmetic(&self, config: &TrainConfig) -> String {
        self.epoch_knobs(config, &[]).arithmetic(config, self.trained_steps(config.num_inference_steps()))
    }

    fn learning_test(&self) -> &'static [&'static str] {
        // Four steps, 32x32 pixels, and factors near the output, so that few images are enough to learn from.
        &[
            "run.num_train_steps=24",
            "model.size=[32, 32]",
            r"lora.targets=^unet\.(up_blocks\.3|conv_out)",
            "lora.alpha=16.0",
            "scheduler.num_inference_steps=4",
            "algo.ddpo.sample_batch_size=64",
            "algo.ddpo.num_batches_per_epoch=1",
            "algo.ddpo.train_batch_size=64",
            "optimizer.gradient_accumulation_steps=1",
            "optimizer.learning_rate=2e-2",
            "preview.num_inference_steps=4",
        ]
    }
}

/// DDPO's two published estimators of the policy gradient.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// DDPO-IS: the clipped ratio of PPO, valid for any number of updates per rollout.
    #[default]
    ImportanceSampling,
    /// DDPO-SF: REINFORCE, valid for one update per rollout.
    ScoreFunction,
}

impl Objective {
    /// The loss for log-probabilities and advantages, `[b]` each.
    pub fn loss(self, log_probs: Tensor<1>, old_log_probs: Tensor<1>, advantages: Tensor<1>, clip_range: f64) -> PolicyLoss {
        match self {
            Self::ImportanceSampling => ppo_clip_loss(log_probs, old_log_probs, advantages, clip_range),
            Self::ScoreFunction => score_function_loss(log_probs, old_log_probs, advantages, clip_range),
        }
    }
}

impl Ddpo {
    /// The advantages of the images at `at`, clipped to ± `adv_clip_max`.
    fn clipped_advantages(&self, rollout: &Rollout, at: &Position) -> Vec<f32> {
        let most = self.adv_clip_max as f32;
        at.items.iter().map(|image| rollout.advantages[*image].clamp(-most, most)).collect()
    }

    /// A warning that rounding is coarse beside `clip_range`.
    fn too_coarse(&self, apart: f64) -> String {
        format!(
            "sampling and training find log-probabilities that differ by up to {apart:.1e} here, by rounding alone, and algo.ddpo.clip_range is \
             {:.0e}; the ratios use training's, but a change of that size is noise: raise clip_range, or choose model.dtype = \"f32\"",
            self.clip_range
        )
    }

    fn num_images(&self) -> usize {
        self.sample_batch_size * self.num_batches_per_epoch
    }

    /// Of `num_inference_steps`, those with noise that the images of a prompt do not share.
    fn steps_with_noise(&self, num_inference_steps: usize) -> usize {
        self.noise_window.map_or(num_inference_steps, |window| window.size)
    }

    /// Timesteps of each image that are trained on per walk.
    fn trained_steps(&self, num_inference_steps: usize) -> usize {
        trained_steps(self.steps_with_noise(num_inference_steps), self.timestep_fraction)
    }

    /// The order in which an epoch's images, sampled in `num_inference_steps`, are trained on.
    fn walk(&self, noise: Noise, num_inference_steps: usize) -> Walk {
        Walk {
            noise,
            num_items: self.num_images(),
            batch_size: self.train_batch_size,
            num_inner_epochs: self.num_inner_epochs,
            num_trained_steps: self.trained_steps(num_inference_steps),
            num_steps: self.steps_with_noise(num_inference_steps),
        }
    }

    fn plan(&self) -> RolloutPlan<'_> {
        RolloutPlan {
            num_images: self.num_images(),
            batch_size: self.sample_batch_size,
            images_per_prompt: self.images_per_prompt,
            share_initial_latents: self.share_initial_latents,
            noise_window: self.noise_window,
            guidance_scale: self.guidance_scale,
            negative_prompt: self.negative_prompt.as_deref(),
        }
    }

    fn counts(&self) -> [(&'static str, usize); 5] {
        [
            ("sample_batch_size", self.sample_batch_size),
            ("num_batches_per_epoch", self.num_batches_per_epoch),
            ("images_per_prompt", self.images_per_prompt),
            ("train_batch_size", self.train_batch_size),
            ("num_inner_epochs", self.num_inner_epochs),
        ]
    }

    fn epoch_knobs<'a>(&self, config: &TrainConfig, counts: &'a [(&'static str, usize)]) -> EpochKnobs<'a> {
        EpochKnobs {
            algo: "ddpo",
            counts,
            guidance_scale: self.guidance_scale,
            timestep_fraction: self.timestep_fraction,
            num_images: self.num_images(),
            images_per_update: self.train_batch_size * config.optimizer.gradient_accumulation_steps,
            num_inner_epochs: self.num_inner_epochs,
        }
    }

    fn division_findings(&self, accumulation: usize, findings: &mut Vec<String>) {
        let images = self.num_images();
        let epoch = format!(
            "an epoch has {images} images (sample_batch_size {} x num_batches_per_epoch {})",
            self.sample_batch_size, self.num_batches_per_epoch
        );
        let update = self.train_batch_size * accumulation;
        if !images.is_multiple_of(self.images_per_prompt) {
            findings
                .push(format!("{epoch}, which algo.ddpo.images_per_prompt {} does not divide; change one of them", self.images_per_prompt));
        }
        if !images.is_multiple_of(update) {
            findings.push(format!(
                "{epoch}, which an update of {update} (algo.ddpo.train_batch_size {} x optimizer.gradient_accumulation_steps {accumulation}) does not divide; change one of them",
                self.train_batch_size
            ));
        } else if self.objective == Objective::ScoreFunction && self.num_inner_epochs.saturating_mul(images) != update {
            findings.push(format!(
                "algo.ddpo.objective score_function allows one update per rollout, and there are {}: {epoch}, an update takes {update}; raise \
                 optimizer.gradient_accumulation_steps, or choose importance_sampling",
                self.num_inner_epochs * images / update
            ));
        }
        if matches!(self.advantages, AdvantagesConfig::Group(_)) && self.images_per_prompt < 2 {
            findings.push("algo.ddpo.advantages.group compares images of one prompt; images_per_prompt is 1, expected at least 2".into());
        }
        if self.share_initial_latents && self.images_per_prompt < 2 {
            findings.push(
                "algo.ddpo.share_initial_latents needs several images per prompt; images_per_prompt is 1, expected at least 2".into(),
            );
        }
    }

    fn window_findings(&self, steps: usize, findings: &mut Vec<String>) {
        let Some(NoiseWindow { size, min_step, max_step }) = self.noise_window else { return };
        if min_step > max_step || max_step >= steps || !(1..=max_step - min_step + 1).contains(&size) {
            findings.push(format!(
                "algo.ddpo.noise_window is {size} of the steps {min_step}..={max_step}; expected min_step <= max_step <= {}, the last of {steps} \
                 steps, and a size of 1 to max_step - min_step + 1",
                steps.saturating_sub(1)
            ));
        }
        if !self.share_initial_latents {
            findings.push(
                "algo.ddpo.noise_window lets the images of a prompt differ in the noise of its steps alone, so they have to start alike; \
                 expected share_initial_latents = true"
                    .into(),
            );
        }
    }
}

impl Algorithm for Ddpo {
    fn driver(&self) -> Driver<'_> {
        Driver::Reward(self)
    }

    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        let counts = self.counts();
        self.epoch_knobs(config, &counts).findings(config, findings);
        let positive = [("clip_range", self.clip_range), ("adv_clip_max", self.adv_clip_max)];
        for (name, value) in positive.into_iter().filter(|(_, value)| !(*value > 0.0 && value.is_finite())) {
            findings.push(format!("algo.ddpo.{name} is {value}; expected a number above 0"));
        }
        if !(self.kl_weight >= 0.0 && self.kl_weight.is_finite()) {
            findings.push(format!("algo.ddpo.kl_weight is {}; expected a number of at least 0", self.kl_weight));
        }
        self.advantages.findings(findings);
        self.window_findings(config.num_inference_steps(), findings);
        let accumulation = config.optimizer.gradient_accumulation_steps;
        if counts.iter().all(|(_, count)| *count > 0) && accumulation > 0 {
            self.division_findings(accumulation, findings);
        }
        if let Some(regularizer @ RegularizerConfig::BasePredictions(_)) = &config.regularizer {
            findings.push(regularizer.unused_by("ddpo"));
        }
    }

    fn default_preset(&self) -> &'static str {
        "shapes"
    }
}

/// The values of a micro-batch's loss for the journal.
fn told(loss: &PolicyLoss) -> Observed {
    vec![
        ("approx_kl".to_string(), Values::from(&loss.approx_kl)),
        ("clipfrac".into(), Values::from(&loss.clipped)),
        ("ratio_max_deviation".into(), Values::from(&(loss.ratio.clone() - 1.0).abs())),
    ]
}

/// Checks that before the first update the policy is still the one that sampled the images. A deviation would be a fault of the model or
/// the machine, and training would go wrong. A ratio that is not finite is left to the check of the loss.
fn check_on_policy(loss: &PolicyLoss, at: &Position) -> Result<(), Error> {
    let deviations: Vec<f64> = values(&loss.ratio).iter().map(|ratio| (ratio - 1.0).abs()).collect();
    let worst = (0..deviations.len()).max_by(|a, b| deviations[*a].total_cmp(&deviations[*b])).unwrap_or(0);
    let deviation = deviations.get(worst).copied().unwrap_or(0.0);
    if deviation <= ON_POLICY || !deviation.is_finite() {
        return Ok(());
    }
    Err(Error::OffPolicy { image: at.items[worst], epoch: at.epoch + 1, step: at.steps[worst], deviation })
}
