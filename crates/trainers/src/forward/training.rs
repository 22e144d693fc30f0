//! The loop that AWM, NFT and DGPO share.

use burn::module::Module;
use burn::tensor::Tensor;
use vp_core::noise::{Noise, Purpose};
use vp_core::profile::{self, Stage};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Request, Trainable, predict};
use vp_schedulers::{Scheduler, TrainingLevel};

use crate::Error;
use crate::denoising::{self, Noised};
use crate::environment::Environment;
use crate::forward::policies::{self, Policies, Role};
use crate::forward::{ForwardProcess, Predictions, Shared, velocity_scale};
use crate::losses::squared_errors;
use crate::non_finite;
use crate::optim::Workers;
use crate::policy::epochs::{Epochs, Rows, regularization};
use crate::policy::rollout::{Rollout, RolloutPlan};
use crate::policy::snapshot;
use crate::policy::walk::{Position, Walk};
use crate::regularizer::Regularizer;
use crate::run::{Batch, Draw, Run, Values};

/// The random place of a timestep in its part of the range.
const TIMESTEP: Purpose = Purpose::named("forward.timestep");

/// Trains until the run has made all its updates.
///
/// # Errors
/// When the run is interrupted, a value is not finite, a reward fails, or the run's folder cannot be written.
pub(super) fn train<A: ForwardProcess, D: Denoiser>(
    algorithm: &A,
    run: &mut Run<Trainable<D>>,
    environment: &mut Environment<D>,
    regularizer: &Regularizer,
) -> Result<(), Error> {
    let Shared { sample, train, advantages, .. } = algorithm.shared();
    let (walk, kl_weight) = (walk(algorithm, run.noise), train.kl_weight);
    let mut epochs = Epochs::begin(run, environment, sample.plan(), walk)?;
    let mut policies = Policies::recall(run);
    let weigh = |rollout: &mut Rollout, _: &mut Run<Trainable<D>>, environment: &Environment<D>| {
        rollout.advantages = advantages.of_rollout(rollout, &environment.reward.term_weights(), sample.images_per_prompt);
        Ok(())
    };

    // 1. Sample images with the policy or its average. 2. Score them. 3. Turn rewards into advantages.
    while let Some(due) = epochs.next(
        run,
        environment,
        |run, environment, plan, workers, epoch| draw(algorithm, &mut policies, run, environment, (plan, workers), epoch),
        weigh,
    )? {
        let due = due.into_iter().map(|(batch, at)| (batch, at.of_groups(group(algorithm)))).collect();
        // Before the first update of an epoch, the trained policy is still the one that began it, and is not called twice.
        let (noise, unchanged) = (run.noise, epochs.rollout.updates == Some(run.updates()));
        let (shared, policies) = (&*environment, &policies);
        let loss = |model: &Trainable<D>, rollout: &Rollout, batch: Batch, at: &Position| {
            // 4. Noise the clean latents again, each image's to a timestep of its own, or each group's to one.
            let scheduler = shared.scheduler()?;
            let rows = NoisedImages::new(algorithm, shared, &*scheduler, rollout, at, Draw::new(noise, batch.draw()));

            // 5. What the policy predicts, and the policies that it is held against.
            let base_counts = batch.begins_update || kl_weight > 0.0;
            let predictions = rows.predictions(algorithm, model, shared, policies, (unchanged, base_counts));

            // 6. The algorithm's loss, and the distance from the base model.
            let (losses, mut told) = algorithm.loss(&predictions);
            let mut loss = losses.mean();
            if base_counts {
                let kl = squared_errors(predictions.prediction.clone(), predictions.of(Role::Base));
                told.push(("kl".into(), Values::from(&kl)));
                if kl_weight > 0.0 {
                    loss = loss + kl.mean() * kl_weight;
                }
            }

            // 7. The regulariser, once per minibatch, but with the weight of all its timesteps.
            let minibatch_of = (batch, at, &rows.prompts[..]);
            if let Some(regularization) = regularization(regularizer, model, shared, &*scheduler, minibatch_of, (walk, noise))? {
                told.push(("regularizer".into(), Values::from(&regularization)));
                loss = loss + regularization * walk.num_trained_steps as f64;
            }
            if batch.begins_update {
                told.extend(rollout.observed());
            }
            Ok((loss, told, rows))
        };

        // 8. Backward, accumulated over timesteps and minibatches; after the last micro-batch of an update: clip, step, moving average of
        //    the result, journal, and a preview if one is due.
        let updated = epochs.backward(run, shared, due, loss)?;
        if let Some(decay) = algorithm.average().filter(|_| epochs.rollout.epoch.is_none()) {
            snapshot::follow(run, policies::AVERAGE, decay.after(run.updates()));
        }
        environment.preview_if_due(run, updated)?;
    }
    Ok(())
}

/// Images that are trained on as one item.
fn group(algorithm: &impl ForwardProcess) -> usize {
    if algorithm.trains_on_groups() { algorithm.shared().sample.images_per_prompt } else { 1 }
}

/// The order in which an epoch's images, or its groups, are trained on.
fn walk(algorithm: &impl ForwardProcess, noise: Noise) -> Walk {
    let (Shared { sample, train, .. }, group) = (algorithm.shared(), group(algorithm));
    Walk {
        noise,
        num_items: sample.num_images() / group,
        batch_size: train.batch_size / group,
        num_inner_epochs: train.num_inner_epochs,
        num_trained_steps: train.num_timesteps,
        num_steps: train.num_timesteps,
    }
}

/// Draws an epoch's images with the policy or its moving average, which begins as the policy.
fn draw<A: ForwardProcess, D: Denoiser>(
    algorithm: &A,
    policies: &mut Policies<D>,
    run: &mut Run<Trainable<D>>,
    environment: &mut Environment<D>,
    (plan, workers): (&RolloutPlan<'_>, &Workers),
    epoch: u64,
) -> Result<Rollout, Error> {
    if algorithm.average().is_some() && policies.average.is_none() {
        snapshot::keep(run, policies::AVERAGE);
    }
    if algorithm.compares_with().contains(&Role::Sampler) {
        snapshot::keep(run, policies::SAMPLER);
    }
    *policies = Policies::recall(run);
    let sampler = policies.average.clone().filter(|_| algorithm.average_samples()).unwrap_or_else(|| run.model.valid());
    Rollout::sample_images(run, environment, plan, workers, epoch, &sampler)
}

/// Images of a rollout, noised anew.
struct NoisedImages {
    noised: Noised,
    prompts: Vec<String>,
    advantages: Vec<f32>,
    /// The noise's share of each image's level, as in [`Predictions::times`].
    times: Vec<f32>,
    /// What makes errors of the prediction those of a velocity.
    scales: Vec<f32>,
}

impl NoisedImages {
    /// The images at `at`. The images of an item have the item's random numbers: one timestep and one noise.
    fn new<A: ForwardProcess, D: Denoiser>(
        algorithm: &A,
        environment: &Environment<D>,
        scheduler: &dyn Scheduler,
        rollout: &Rollout,
        at: &Position,
        draw: Draw,
    ) -> Self {
        let (group, train, count) = (group(algorithm), algorithm.shared().train, scheduler.num_train_timesteps());
        let items: Vec<u64> = at.items.iter().map(|image| (image / group) as u64).collect();
        let timestep = |(item, part): (&u64, &usize)| train.timestep(*part, draw.noise.uniform(TIMESTEP, draw.number, *item), count);
        let timesteps: Vec<f64> = items.iter().zip(&at.steps).map(timestep).collect();
        let rows = denoising::Rows { draw, samples: &items };
        let levels: Vec<TrainingLevel> = timesteps.iter().map(|timestep| scheduler.training_level(*timestep)).collect();
        let time = |level: &TrainingLevel| level.noise / (level.signal + level.noise);
        let scale = |level: &TrainingLevel| velocity_scale(scheduler.prediction_type().slope_of_original(*level), time(level)) as f32;
        let latents = rollout.images(&at.items);
        let epsilon = rows.normal(Purpose::DENOISING_NOISE, environment.latent_shape(), environment.pipeline.device());
        let sample = scheduler.add_noise(latents.clone(), epsilon.clone(), &timesteps);
        let target = scheduler.training_target(latents, epsilon, &timesteps);
        Self {
            noised: Noised { sample, target, timesteps },
            prompts: rollout.prompts_of(environment, &at.items),
            advantages: at.items.iter().map(|image| train.clipped(rollout.advantages[*image])).collect(),
            times: levels.iter().map(|level| time(level) as f32).collect(),
            scales: levels.iter().map(scale).collect(),
        }
    }

    /// What `model` predicts, on its tape, and the policies that the algorithm compares it with, off the tape. If `unchanged`, the model is still
    /// the policy at the beginning of the epoch. The base model is among them if `base_counts`.
    fn predictions<A: ForwardProcess, D: Denoiser>(
        &self,
        algorithm: &A,
        model: &Trainable<D>,
        environment: &Environment<D>,
        policies: &Policies<D>,
        (unchanged, base_counts): (bool, bool),
    ) -> Predictions {
        let device = environment.pipeline.device().clone().without_autodiff();
        let scales = Tensor::<1>::from_data(self.scales.as_slice(), &device).reshape([self.scales.len(), 1, 1, 1]);
        let predicted = |policy: &Trainable<D>| {
            let prediction = profile::time(Stage::TrackedStep, || self.predicted(algorithm, policy, environment));
            prediction * scales.clone()
        };
        let prediction = predicted(model);
        let other = |role| match role {
            Role::Sampler if unchanged => prediction.clone().without_autodiff(),
            role => predicted(policies.get(role).unwrap_or(&environment.base)),
        };
        let roles = algorithm.compares_with();
        let base = (base_counts && !roles.contains(&Role::Base)).then_some(Role::Base);
        let others = roles.iter().copied().chain(base).map(|role| (role, other(role))).collect();
        Predictions {
            prediction,
            target: self.noised.target.clone() * scales,
            advantages: Tensor::from_data(self.advantages.as_slice(), &device),
            times: Tensor::from_data(self.times.as_slice(), &device),
            others,
        }
    }

    /// What `policy` predicts, `[b, c, h, w]`; on the tape if the policy is.
    fn predicted<A: ForwardProcess, D: Denoiser>(&self, algorithm: &A, policy: &Trainable<D>, environment: &Environment<D>) -> Tensor<4> {
        let (Environment { pipeline, size, .. }, Shared { sample, train, .. }) = (environment, algorithm.shared());
        let (negative_prompt, guidance_scale) = (sample.negative_prompt.as_deref(), train.guidance_scale);
        let request = Request { prompts: &self.prompts, negative_prompt, guidance_scale, size: *size };
        let guidance = pipeline.encode(&policy.text(&pipeline.text), &request);
        predict(&policy.denoiser, self.noised.sample.clone(), &self.noised.model_timesteps(), &guidance)
    }
}

impl<D: Denoiser> Rows<D> for NoisedImages {
    fn first_non_finite(&self, model: &Trainable<D>, environment: &Environment<D>, _: &dyn Scheduler) -> Option<String> {
        if !non_finite::is_finite(&self.noised.sample) {
            return Some("the latents of the rollout".into());
        }
        let pipeline = &environment.pipeline;
        let conditioning = model.text(&pipeline.text).encode(&self.prompts, environment.size, pipeline.device());
        self.noised.first_non_finite(&model.denoiser, &conditioning)
    }
}
