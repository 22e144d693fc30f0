//! Reinforcement learning on the forward process: the code that AWM, NFT and DGPO share.
//!
//! DDPO asks how likely the *steps* of a sampled chain are, and so keeps whole chains of a sampler that draws noise. These algorithms ask how
//! well the policy denoises the finished *images*: they noise the clean latents again, as in pre-training, and an image's advantage decides
//! whether its denoising loss is lowered or raised. Any sampler serves, nothing but the last latents is kept, and an image is trained on at
//! as few noise levels as one likes.
//!
//! | papers (for flow models) | here |
//! |---|---|
//! | x_0, the clean latents that were sampled | [`Rollout::latents`](crate::policy::rollout::Rollout::latents), the only entry |
//! | x_t = (1 − t) x_0 + t ε, target v = ε − x_0 | the model's own forward process and target (ε, v or x_0), [`Noised`] |
//! | ℓ_θ = ‖v_θ(x_t) − v‖² | the mean over c, h, w of the squared error of the network's own prediction |
//! | K timesteps per image | `train.num_timesteps`: one uniform timestep from each of K equal parts of `train.timestep_range` |
//! | v_old, the policy that drew the images | [`Role::Sampler`] |
//! | a moving average of the policy | [`Role::Average`], which follows after each epoch as [`Decay`] says |
//! | v_ref | the base model: the frozen weights without the factors |
//! | A, clipped to ± A_max | from the rewards of a prompt's images, [`GroupStatistics`] |
//!
//! Predictions carry the guidance of `train.guidance_scale`, 1 in the papers. The images are drawn with that of `sample.guidance_scale`: models
//! that draw badly without guidance, as those of Stable Diffusion's class do, learn nothing good from what they draw without it.

pub mod awm;
pub mod dgpo;
pub mod nft;
mod policies;
mod sections;

use burn::module::Module;
use burn::tensor::Tensor;
use vp_core::noise::{Noise, Purpose};
use vp_core::profile::{self, Stage};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Request, Trainable, predict};
use vp_schedulers::Scheduler;

use crate::Error;
use crate::algorithm::{Kept, RewardDriven};
use crate::config::TrainConfig;
use crate::denoising::{Noised, Rows};
use crate::environment::Environment;
use crate::losses::squared_errors;
use crate::non_finite;
use crate::policy::advantages::{AdvantagesConfig, GroupStatistics, Tracker};
use crate::policy::rollout::Rollout;
use crate::policy::snapshot;
use crate::policy::walk::{Position, Walk};
use crate::regularizer::{Regularizer, RegularizerConfig, SampledBatch};
use crate::run::{Batch, Draw, Observed, Run, Values};

pub use policies::{Decay, Policies, Role};
pub use sections::{SampleSection, TrainSection};

/// The random place of a timestep in its part of the range.
const TIMESTEP: Purpose = Purpose::named("forward.timestep");

/// An algorithm on the forward process: its knobs, the policies that it compares, and its loss.
pub trait ForwardProcess: Sync {
    /// The algorithm's name in the config.
    fn name(&self) -> &'static str;

    /// `[algo.<name>.sample]`.
    fn sample(&self) -> &SampleSection;

    /// `[algo.<name>.train]`.
    fn train_section(&self) -> &TrainSection;

    /// `[algo.<name>.advantages]`.
    fn advantages(&self) -> &GroupStatistics;

    /// The policies whose predictions the loss needs besides the trained one's.
    fn compares_with(&self) -> &'static [Role];

    /// How the moving average follows the policy; `None` if there is none.
    fn average(&self) -> Option<Decay> {
        None
    }

    /// Whether the moving average draws the images, rather than the policy itself.
    fn average_samples(&self) -> bool {
        false
    }

    /// Whether the images of a prompt are trained on together, at one timestep and with one noise.
    fn trains_on_groups(&self) -> bool {
        false
    }

    /// The loss of each row, `[b]`, on the tape, and values for the journal.
    fn loss(&self, noised: &Compared) -> (Tensor<1>, Observed);
}

/// The noised latents of `b` images, and what the policies predict from them.
#[derive(Debug)]
pub struct Compared {
    /// The trained policy's prediction, `[b, c, h, w]`, on the tape.
    pub prediction: Tensor<4>,
    /// What it should be: ε, v or x_0, `[b, c, h, w]`.
    pub target: Tensor<4>,
    /// Each image's advantage, clipped, `[b]`.
    pub advantages: Tensor<1>,
    /// Each row's timestep as a share of the schedule: near 0 without noise, near 1 with nothing but noise; `[b]`.
    pub times: Tensor<1>,
    /// The predictions of the policies that the algorithm compares with, off the tape.
    others: Vec<(Role, Tensor<4>)>,
}

impl Compared {
    /// The prediction of another policy, `[b, c, h, w]`, off the tape.
    ///
    /// # Panics
    /// When the algorithm does not say that it compares with it.
    pub fn of(&self, role: Role) -> Tensor<4> {
        let found = self.others.iter().find(|(known, _)| *known == role);
        found.map(|(_, prediction)| prediction.clone()).unwrap_or_else(|| panic!("{role:?} is not among compares_with"))
    }
}

impl<A: ForwardProcess, D: Denoiser> RewardDriven<D> for A {
    fn train(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>, regularizer: &mut Regularizer) -> Result<(), Error> {
        train(self, run, environment, regularizer)
    }

    fn backwards_per_minibatch(&self, _: usize) -> usize {
        self.train_section().num_timesteps
    }

    fn kept(&self) -> Kept {
        Kept::Images(self.sample().num_images())
    }

    fn needs_terms(&self) -> Option<String> {
        self.advantages().per_reward.then(|| format!("algo.{}.advantages.per_reward", self.name()))
    }

    fn policies_kept(&self) -> usize {
        self.compares_with().iter().filter(|role| **role != Role::Base).count()
    }

    fn default_regularizer(&self) -> RegularizerConfig {
        RegularizerConfig::None(Default::default())
    }

    fn arithmetic(&self, config: &TrainConfig) -> String {
        let (sample, train) = (self.sample(), self.train_section());
        let (images, update) = (sample.num_images(), train.batch_size * config.optimizer.gradient_accumulation_steps);
        let updates_per_epoch = train.num_inner_epochs * images / update;
        let (updates, backwards) = (config.run.num_train_steps, config.settings().micro_batches);
        let epochs = updates as f64 / updates_per_epoch as f64;
        format!(
            "{updates} updates = {epochs:.1} epochs of {images} images and {updates_per_epoch} updates; an update takes {update} images at {} \
             timesteps, {backwards} backward passes; {} images in all",
            train.num_timesteps,
            epochs.ceil() as usize * images
        )
    }

    fn learning_test(&self) -> &'static [&'static str] {
        // Four steps, 32x32 pixels, and factors near the output, so that few images are enough to learn from.
        &[
            "run.num_train_steps=16",
            "model.size=[32, 32]",
            r"lora.targets=^unet\.(up_blocks\.3|conv_out)",
            "lora.alpha=16.0",
            "scheduler.num_inference_steps=4",
            "optimizer.learning_rate=1e-2",
            "preview.num_inference_steps=4",
        ]
    }
}

fn train<A: ForwardProcess, D: Denoiser>(
    algorithm: &A,
    run: &mut Run<Trainable<D>>,
    environment: &mut Environment<D>,
    regularizer: &Regularizer,
) -> Result<(), Error> {
    let (sample, train) = (algorithm.sample(), algorithm.train_section());
    let (plan, walk) = (sample.plan(), walk(algorithm, run.noise));
    let device = environment.pipeline.device().clone();
    let workers = run.workers(&device)?;
    environment.preview_at_start(run)?;
    let mut rollout = Rollout::recall(&run.memory, environment.latent_shape()).unwrap_or_default();
    let mut policies = Policies::recall(run);

    while let Some(batches) = run.next_batches(workers.count())? {
        // An update's micro-batches are of one epoch.
        let places: Vec<Position> = batches.iter().map(|batch| walk.at(batch.index)).collect();
        let (epoch, ends_epoch) = (places[0].epoch, places.iter().any(|at| at.ends_epoch));

        if rollout.epoch != Some(epoch) {
            // 1. The moving average follows the policy, once per epoch. One of the two draws the epoch's images.
            if let Some(decay) = algorithm.average() {
                policies::follow(run, decay, &device);
            }
            if algorithm.compares_with().contains(&Role::Sampler) {
                snapshot::keep(run, policies::SAMPLER);
            }
            policies = Policies::recall(run);
            let sampler = policies.average.clone().filter(|_| algorithm.average_samples()).unwrap_or_else(|| run.model.valid());
            rollout = Rollout::sample_images(run, environment, &plan, &workers, epoch, &sampler)?;

            // 2. Score them.
            rollout.score(run, environment, &plan)?;
            if let Some(what) = rollout.first_non_finite() {
                rollout = Rollout::default();
                run.leave_out(what)?;
                continue;
            }

            // 3. Turn rewards into advantages. The rollout is saved with the run, so that a resumed run goes on from here.
            let advantages = AdvantagesConfig::Group(algorithm.advantages().clone());
            let weights = environment.reward.term_weights();
            rollout.advantages = advantages.of_rollout(&rollout, &weights, sample.images_per_prompt, &mut Tracker::default());
            rollout.save(&mut run.memory, &device);
        }

        run.count_images(places.iter().filter(|at| at.begins_minibatch).map(|at| at.items.len() * group(algorithm)).sum());
        // Before the first update the trained policy is still the one that drew the images, and is not called twice.
        let (noise, on_policy) = (run.noise, rollout.updates == Some(run.updates()));
        let (shared, rolled_out, policies) = (&*environment, &rollout, &policies);
        let compute = |model: &Trainable<D>, (batch, at): (Batch, Position)| {
            let scheduler = shared.scheduler()?;

            // 4. Noise the clean latents again, each image's to a timestep of its own, or each group's to one.
            let draw = Draw { noise, number: batch.draw() };
            let (images, noised) = noised(algorithm, shared, &*scheduler, rolled_out, &at, draw);
            let prompts = rolled_out.prompts_of(shared, &images);

            // 5. What the policy predicts, and the policies that it is held against.
            let predicted =
                |policy: &Trainable<D>| profile::time(Stage::TrackedStep, || predicted(algorithm, policy, shared, &noised, &prompts));
            let prediction = predicted(model);
            let base_counts = batch.begins_update || train.kl_weight > 0.0;
            let roles = algorithm.compares_with().iter().copied();
            let roles = roles.chain((base_counts && !algorithm.compares_with().contains(&Role::Base)).then_some(Role::Base));
            let other = |role| match role {
                Role::Sampler if on_policy => prediction.clone().without_autodiff(),
                role => predicted(policies.get(role).unwrap_or(&shared.base)),
            };
            let others = roles.map(|role| (role, other(role))).collect();
            let device = prediction.device().without_autodiff();
            let advantages: Vec<f32> = images.iter().map(|image| train.clipped(rolled_out.advantages[*image])).collect();
            let last = (scheduler.num_train_timesteps() - 1).max(1) as f64;
            let times: Vec<f32> = noised.timesteps.iter().map(|timestep| (timestep / last) as f32).collect();
            let compared = Compared {
                prediction,
                target: noised.target.clone(),
                advantages: Tensor::from_data(advantages.as_slice(), &device),
                times: Tensor::from_data(times.as_slice(), &device),
                others,
            };

            // 6. The algorithm's loss, and the distance from the base model.
            let (losses, mut told) = algorithm.loss(&compared);
            let mut loss = losses.mean();
            if compared.others.iter().any(|(role, _)| *role == Role::Base) {
                let kl = squared_errors(compared.prediction.clone(), compared.of(Role::Base));
                told.push(("kl".into(), Values::from(&kl)));
                if train.kl_weight > 0.0 {
                    loss = loss + kl.mean() * train.kl_weight;
                }
            }

            // 7. The regulariser, once per minibatch, but with the weight of all its timesteps.
            if at.begins_minibatch {
                let sampled = SampledBatch { visited: &[], prompts: &prompts, size: shared.size };
                let draw = Draw { noise, number: batch.index / walk.num_trained_steps as u64 + 1 };
                if let Some(regularization) = regularizer.loss(model, shared, &*scheduler, sampled, draw)? {
                    told.push(("regularizer".into(), Values::from(&regularization)));
                    loss = loss + regularization * walk.num_trained_steps as f64;
                }
            }
            if batch.begins_update {
                told.extend(rolled_out.observed());
            }
            Ok((loss, told, (noised, prompts)))
        };

        // 8. Backward, accumulated over timesteps and minibatches; after the last micro-batch of an update: clip, step, moving average of
        //    the result, journal, and a preview if one is due.
        let blame = |model: &Trainable<D>, (noised, prompts): &(Noised, Vec<String>)| first_non_finite(model, shared, noised, prompts);
        let updated = run.backward_side_by_side(&workers, batches.into_iter().zip(places).collect(), compute, blame)?;
        if ends_epoch {
            rollout = Rollout::default();
            Rollout::forget(&mut run.memory);
        }
        environment.preview_if_due(run, updated)?;
    }
    Ok(())
}

/// Images that are trained on as one item.
fn group(algorithm: &impl ForwardProcess) -> usize {
    if algorithm.trains_on_groups() { algorithm.sample().images_per_prompt } else { 1 }
}

/// The order in which an epoch's images, or its groups, are trained on.
fn walk(algorithm: &impl ForwardProcess, noise: Noise) -> Walk {
    let (sample, train, group) = (algorithm.sample(), algorithm.train_section(), group(algorithm));
    Walk {
        noise,
        num_items: sample.num_images() / group,
        batch_size: train.batch_size / group,
        num_inner_epochs: train.num_inner_epochs,
        num_trained_steps: train.num_timesteps,
        num_steps: train.num_timesteps,
    }
}

/// The images at `at` by their numbers in the epoch, and their clean latents, noised anew.
fn noised<A: ForwardProcess, D: Denoiser>(
    algorithm: &A,
    environment: &Environment<D>,
    scheduler: &dyn Scheduler,
    rollout: &Rollout,
    at: &Position,
    draw: Draw,
) -> (Vec<usize>, Noised) {
    let group = group(algorithm);
    // Each item has random numbers of its own, which its images share.
    let of_items = at.items.iter().zip(&at.steps).flat_map(|(item, part)| std::iter::repeat_n((*item, *part), group));
    let (items, parts): (Vec<u64>, Vec<usize>) = of_items.map(|(item, part)| (item as u64, part)).unzip();
    let images: Vec<usize> = at.items.iter().flat_map(|item| item * group..(item + 1) * group).collect();
    let place = |(item, part): (&u64, &usize)| {
        let within = draw.noise.uniform(TIMESTEP, draw.number, *item);
        algorithm.train_section().timestep(*part, within, scheduler.num_train_timesteps())
    };
    let timesteps: Vec<f64> = items.iter().zip(&parts).map(place).collect();
    let latents = rollout.images(&images);
    let rows = Rows { draw, samples: &items };
    let epsilon = rows.normal(Purpose::DENOISING_NOISE, environment.latent_shape(), environment.pipeline.device());
    let sample = scheduler.add_noise(latents.clone(), epsilon.clone(), &timesteps);
    (images, Noised { sample, target: scheduler.training_target(latents, epsilon, &timesteps), timesteps })
}

/// What `policy` predicts, `[b, c, h, w]`; on the tape if the policy is.
fn predicted<A: ForwardProcess, D: Denoiser>(
    algorithm: &A,
    policy: &Trainable<D>,
    environment: &Environment<D>,
    noised: &Noised,
    prompts: &[String],
) -> Tensor<4> {
    let Environment { pipeline, size, .. } = environment;
    let (negative_prompt, guidance_scale) = (algorithm.sample().negative_prompt.as_deref(), algorithm.train_section().guidance_scale);
    let request = Request { prompts, negative_prompt, guidance_scale, size: *size };
    let guidance = pipeline.encode(&policy.text(&pipeline.text), &request);
    predict(&policy.denoiser, noised.sample.clone(), &noised.model_timesteps(), &guidance)
}

/// The first tensor that is not finite in the predictions of a micro-batch, by name.
fn first_non_finite<D: Denoiser>(
    model: &Trainable<D>,
    environment: &Environment<D>,
    noised: &Noised,
    prompts: &[String],
) -> Option<String> {
    if !non_finite::is_finite(&noised.sample) {
        return Some("the latents of the rollout".into());
    }
    let pipeline = &environment.pipeline;
    let conditioning = model.text(&pipeline.text).encode(prompts, environment.size, pipeline.device());
    noised.first_non_finite(&model.denoiser, &conditioning)
}
