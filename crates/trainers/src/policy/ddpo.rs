//! DDPO: denoising diffusion policy optimization (Black et al., arXiv 2305.13301).
//!
//! | paper, ddpo-pytorch | here |
//! |---|---|
//! | `sample.batch_size`, `sample.num_batches_per_epoch` (times GPUs) | `sample_batch_size`, `num_batches_per_epoch` |
//! | `train.batch_size`, `train.gradient_accumulation_steps` | `train_batch_size`, `optimizer.gradient_accumulation_steps` (minibatches, each with all its timesteps) |
//! | DDPO-IS, DDPO-SF | `objective` |
//! | the objectives of Flow-DPPO (2606.11025), GRPO-Guard (2510.22319) and PCPO (2509.25774) | `objective`: `kl_mask`, `corrected_ratio`, `hinge` |
//! | `per_prompt_stat_tracking` | `[algo.ddpo.advantages.per_prompt]` |
//! | DanceGRPO's (2505.07818) groups | `[algo.ddpo.advantages.group]`, `images_per_prompt`, `share_initial_latents` |
//! | GDPO's (2601.05242) normalisation of each reward by itself | `[algo.ddpo.advantages.group]`, `per_reward` |
//! | Flow-GRPO-Fast's `sde_window_size`, `sde_window_range` | `noise_window` |
//! | DPOK's KL term | `kl_weight` |
//! | GARDO's (2512.24138) gated KL and moving reference | `[algo.ddpo.kl]` |
//! | the diffusion loss of DDRL (2512.04332) | `[regularizer.images]`, once per minibatch, with the weight of all its timesteps |
//!
//! Each timestep of a minibatch has its own backward pass, and the gradients are added up, so the memory is that of one denoising step, or
//! of two with a regulariser. The log-probability is a mean over channels and pixels, as in the published code; `clip_range` relies on
//! that. [`Walk`] defines the order of images and timesteps.
//!
//! It differs from ddpo-pytorch in three ways. Prompts come in a shuffled order, each once before any comes again, while `train.py` draws
//! each independently. Training always uses the guidance of sampling (a scale of 1 or less switches it off), while `train.cfg` can switch
//! it off in training alone. The KL from the base model is measured once per update, which takes one more forward pass.
//!
//! Two objectives compare the means of a step with those of the policy that sampled the images. That policy's trained parameters are kept for the
//! epoch, and after its first update each micro-batch takes one more forward pass with them, as in flow_grpo's GRPO-Guard.

mod epoch;
mod figures;
mod findings;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::algorithm::{Kept, RewardDriven};
use crate::config::TrainConfig;
use crate::environment::Environment;
use crate::losses::{Drift, transition_kl};
use crate::plan::{AtOnce, Demand};
use crate::policy::advantages::{AdvantagesConfig, Tracker};
use crate::policy::epochs::{Epochs, regularization};
use crate::policy::kl::KlTerm;
use crate::policy::rollout::{NoiseWindow, Rollout};
use crate::policy::snapshot;
use crate::policy::walk::Position;
use crate::ranks::Items;
use crate::regularizer::{Regularizer, RegularizerConfig};
use crate::run::{Batch, Run, Values};

use figures::{check_on_policy, is_exact, off_the_tape, told, too_coarse};

pub use crate::policy::kl::Kl;
pub use crate::policy::objectives::{KlMask, Objective};

/// The policy that sampled the epoch's images, in the run's memory.
const OLD: &str = "policy.old";

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
    /// The estimator of the policy gradient: `importance_sampling` (DDPO-IS, the default), `score_function` (DDPO-SF),
    /// `{ kl_mask = { threshold = 1e-5 } }` (Flow-DPPO), `corrected_ratio` (GRPO-Guard) or `hinge` (PCPO).
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
    /// `[algo.ddpo.kl]`: the images that the KL counts for, and what it is measured from. Absent: every image, and the base model.
    pub kl: Option<Kl>,
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
            kl: None,
            recompute_log_probs: None,
        }
    }
}

impl<D: Denoiser> RewardDriven<D> for Ddpo {
    fn train(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>, regularizer: &mut Regularizer) -> Result<(), Error> {
        let plan = self.plan();
        let walk = self.walk(run.noise, environment.scheduler()?.timesteps().len());
        let device = environment.pipeline.device().clone();
        let mut epochs = Epochs::begin(run, environment, plan, walk)?;
        let (old, kl) = (snapshot::recall(run, OLD), KlTerm::recall(self.kl, run, &epochs.rollout));
        let mut carried = Carried { old, kl, warned: false };

        // 1. Sample images with the current policy, off the tape; keep every step's latents and log-probability. 2. Score them. 3. Turn rewards
        //    into advantages.
        while let Some(due) = epochs
            .next(run, environment, Rollout::sample, |rollout, run, environment| self.weigh(&mut carried, rollout, run, environment))?
        {
            // Up to the first update of an epoch, the policy is the one that sampled its images.
            let unchanged = epochs.rollout.updates == Some(run.updates());
            let (noise, on_policy) = (run.noise, unchanged && is_exact(environment));
            let (shared, kept, regularizer) = (&*environment, &carried, &*regularizer);
            let loss = |model: &Trainable<D>, rollout: &Rollout, batch: Batch, at: &Position| {
                let scheduler = shared.scheduler()?;

                // 4. The log-probability of the sampled steps under the current policy, each image at its own timestep.
                let minibatch = rollout.minibatch(shared, at);
                let policy = minibatch.transition(model, shared, &plan, &*scheduler);
                let log_probs = policy.log_prob(minibatch.prev_sample.clone());

                // 5. The objective; some compare the steps with those of the policy that sampled the images.
                let advantages = self.clipped_advantages(rollout, at);
                let advantages = Tensor::from_data(advantages.as_slice(), &minibatch.log_probs.device());
                let drift = || {
                    let old = if unchanged {
                        off_the_tape(&policy)
                    } else {
                        let old = kept.old.as_ref().expect("kept when the images were sampled");
                        minibatch.transition(old, shared, &plan, &*scheduler)
                    };
                    Drift::between(&policy, &old, minibatch.output_slope(&*scheduler))
                };
                let policy_loss = self.objective.loss(log_probs, minibatch.log_probs.clone(), advantages, self.clip_range, drift);
                if on_policy {
                    check_on_policy(&policy_loss, at)?;
                }
                let mut told = told(&policy_loss);
                let mut loss = policy_loss.loss.mean();

                // 6. The KL from the reference, which is measured once per update even if it is not trained on.
                if batch.begins_update || self.kl_weight > 0.0 {
                    let reference = minibatch.transition(kept.kl.reference(&shared.base), shared, &plan, &*scheduler);
                    let kl = transition_kl(&policy, &reference);
                    told.push(("kl".into(), Values::from(&kl)));
                    if self.kl_weight > 0.0 {
                        loss = loss + kept.kl.mean(kl, &at.items) * self.kl_weight;
                    }
                }

                // 7. The regulariser, once per minibatch, but with the weight of all its timesteps.
                let minibatch_of = (batch, at, &minibatch.prompts[..]);
                if let Some(regularization) = regularization(regularizer, model, shared, &*scheduler, minibatch_of, (walk, noise))? {
                    told.push(("regularizer".into(), Values::from(&regularization)));
                    loss = loss + regularization * walk.num_trained_steps as f64;
                }
                if batch.begins_update {
                    told.extend(rollout.observed());
                }
                Ok((loss, told, minibatch))
            };

            // 8. Backward, accumulated over timesteps and minibatches; after the last micro-batch of an update: clip, step, moving
            //    average, journal, and a preview if one is due.
            let updated = epochs.backward(run, shared, due, loss)?;
            if updated.is_some() {
                carried.kl.after_update(run, &device);
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

    fn demand(&self, _: &TrainConfig) -> Demand {
        let drawn = AtOnce::new("sample_batch_size", self.sample_batch_size, self.guidance_scale);
        Demand::through_steps(drawn, AtOnce::new("train_batch_size", self.train_batch_size, self.guidance_scale), self.num_inner_epochs)
    }

    fn needs_terms(&self) -> Option<String> {
        self.advantages.needs_terms().then(|| "algo.ddpo.advantages.group.per_reward".into())
    }

    fn policies_kept(&self) -> usize {
        usize::from(self.objective.needs_old_policy()) + usize::from(self.kl.is_some_and(|kl| kl.resets()))
    }

    fn default_regularizer(&self) -> RegularizerConfig {
        RegularizerConfig::None(Default::default())
    }

    fn arithmetic(&self, config: &TrainConfig) -> String {
        self.epoch_knobs(config, &[]).arithmetic(config, self.trained_steps(config.num_inference_steps()))
    }

    fn items(&self) -> Items {
        Items::of("algo.ddpo.train_batch_size", self.train_batch_size)
    }

    fn learning_test(&self) -> &'static [&'static str] {
        // Four steps, 32x32 pixels, and factors near the output, so that few images are enough to learn from.
        &[
            "run.num_train_steps=32",
            "model.size=[32, 32]",
            r"lora.targets=^unet\.(up_blocks\.3|conv_out)",
            "lora.alpha=16.0",
            "scheduler.num_inference_steps=4",
            "algo.ddpo.sample_batch_size=64",
            "algo.ddpo.num_batches_per_epoch=1",
            "algo.ddpo.train_batch_size=64",
            "optimizer.gradient_accumulation_steps=1",
            "optimizer.learning_rate=6e-3",
            "preview.num_inference_steps=4",
        ]
    }
}

/// What a run carries from epoch to epoch.
struct Carried<D> {
    /// The policy that sampled the epoch's images, if the objective needs it.
    old: Option<Trainable<D>>,
    kl: KlTerm<D>,
    /// Whether the user was told that rounding is coarse.
    warned: bool,
}

impl Ddpo {
    /// Turns the rewards of a rollout into advantages, and keeps of the policy that sampled it what the epoch's updates need.
    fn weigh<D: Denoiser>(
        &self,
        carried: &mut Carried<D>,
        rollout: &mut Rollout,
        run: &mut Run<Trainable<D>>,
        environment: &Environment<D>,
    ) -> Result<(), Error> {
        let device = environment.pipeline.device();
        if self.recompute_log_probs.unwrap_or(!is_exact(environment)) {
            let scheduler = environment.scheduler()?;
            let apart = rollout.recompute_log_probs(run, environment, &self.plan(), &*scheduler, self.train_batch_size)?;
            if self.objective.clips_ratios() && apart > self.clip_range / 2.0 && !carried.warned {
                carried.warned = true;
                run.journal.warn(format_args!("{}", too_coarse(apart, self.clip_range)));
            }
        }
        if self.objective.needs_old_policy() {
            carried.old = Some(snapshot::keep(run, OLD));
        }
        carried.kl.begin_epoch(run, rollout, device);
        let (mut tracker, weights) = (Tracker::recall(&run.memory), environment.reward.term_weights());
        rollout.advantages = self.advantages.of_rollout(rollout, &weights, self.images_per_prompt, &mut tracker);
        tracker.save(&mut run.memory, device);
        Ok(())
    }

    /// The advantages of the images at `at`, clipped to ± `adv_clip_max`.
    fn clipped_advantages(&self, rollout: &Rollout, at: &Position) -> Vec<f32> {
        let most = self.adv_clip_max as f32;
        at.items.iter().map(|image| rollout.advantages[*image].clamp(-most, most)).collect()
    }
}
