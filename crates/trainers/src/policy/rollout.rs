//! A rollout: the images of one epoch, with every step of their chains, the log-probabilities of the steps, the rewards and the advantages.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::noise::{Noise, Purpose, chain_step};
use vp_core::profile::{self, Stage};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Chain, Guidance, Request, Taken, Trainable};
use vp_schedulers::Scheduler;

use crate::Error;
use crate::environment::{Environment, ScoredImages};
use crate::optim::{NamedTensors, Workers};
use crate::policy::Minibatch;
use crate::policy::walk::Position;
use crate::run::{Observed, Run, Values, gathered, values};

/// `size` steps in a row within `min_step..=max_step`. Where they begin is drawn for each prompt of each epoch.
///
/// Images that differ in the noise of a few steps alone differ in their rewards because of it, so an advantage says more about the steps
/// that are trained on than where all steps have noise of their own. Flow-GRPO-Fast and MixGRPO (arXiv 2507.21802) take the other steps
/// without noise; here they have it, shared, so that every image is drawn as the policy draws it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoiseWindow {
    /// Steps in the window, at least 1.
    pub size: usize,
    /// The first step that may be in it, counted from 0.
    pub min_step: usize,
    /// The last step that may be in it.
    pub max_step: usize,
}

impl NoiseWindow {
    /// The window's first step for the images of a prompt, the first of which is image `first` of `draw`.
    fn start(self, noise: Noise, draw: u64, first: u64) -> usize {
        noise.integer(WINDOW, draw, first, self.min_step, self.max_step + 1 - self.size)
    }
}

const WINDOW: Purpose = Purpose::named("ddpo.noise_window");

/// The draw of an epoch, counted from 0. Draw 0 belongs to the previews.
fn draw_of(epoch: u64) -> u64 {
    epoch + 1
}

/// The knobs for sampling an epoch.
#[derive(Debug, Clone, Copy)]
pub struct RolloutPlan<'a> {
    /// Images per epoch.
    pub num_images: usize,
    /// Images sampled at once.
    pub batch_size: usize,
    /// Images per prompt; they are adjacent in the epoch.
    pub images_per_prompt: usize,
    /// Whether the images of a prompt start from the same latents.
    pub share_initial_latents: bool,
    /// The steps whose noise is each image's own, if the images of a prompt share the noise of all others.
    pub noise_window: Option<NoiseWindow>,
    /// Classifier-free guidance scale; 1 for no guidance.
    pub guidance_scale: f64,
    /// Prompt that guidance steers away from.
    pub negative_prompt: Option<&'a str>,
}

impl RolloutPlan<'_> {
    /// The batches of images that are sampled together, as ranges of their numbers in the epoch.
    fn batches(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let Self { num_images, batch_size, .. } = *self;
        (0..num_images).step_by(batch_size).map(move |start| start..(start + batch_size).min(num_images))
    }

    /// The first image of the prompt of `image`.
    fn first_of_prompt(&self, image: u64) -> u64 {
        let group = self.images_per_prompt as u64;
        image / group * group
    }

    /// The image whose initial latents each of `images` starts from: itself, or the first image of its prompt.
    fn starts(&self, images: &[u64]) -> Vec<u64> {
        images.iter().map(|image| if self.share_initial_latents { self.first_of_prompt(*image) } else { *image }).collect()
    }

    /// The image whose noise each of `images` gets at `step` of `draw`: itself, or outside of the window the first image of its prompt.
    fn noises(&self, noise: Noise, draw: u64, step: usize, images: &[u64]) -> Vec<u64> {
        let Some(window) = self.noise_window else { return images.to_vec() };
        let of = |image: &u64| {
            let first = self.first_of_prompt(*image);
            let start = window.start(noise, draw, first);
            if (start..start + window.size).contains(&step) { *image } else { first }
        };
        images.iter().map(of).collect()
    }

    /// Turns the steps of `at`, counted within the windows of its images, into steps of the chain.
    pub fn in_windows(&self, at: Position, noise: Noise) -> Position {
        let Some(window) = self.noise_window else { return at };
        let start = |image: &usize| window.start(noise, draw_of(at.epoch), self.first_of_prompt(*image as u64));
        let steps = at.items.iter().zip(&at.steps).map(|(image, step)| start(image) + step).collect();
        Position { steps, ..at }
    }

    /// The guidance for `prompts`, encoded by the model's own text encoders if they train.
    pub fn guidance<D: Denoiser>(&self, model: &Trainable<D>, environment: &Environment<D>, prompts: &[String]) -> Guidance {
        let Self { negative_prompt, guidance_scale, .. } = *self;
        let request = Request { prompts, negative_prompt, guidance_scale, size: environment.size };
        environment.pipeline.encode(&model.text(&environment.pipeline.text), &request)
    }
}

/// The `n` images of one epoch.
#[derive(Debug, Clone, Default)]
pub struct Rollout {
    /// The epoch, counted from 0; `None` before anything has been sampled.
    pub epoch: Option<u64>,
    /// The number of updates made before the rollout was sampled; `None` in a checkpoint of a version that did not record it.
    pub updates: Option<u64>,
    /// The index of each image's prompt in the list of prompts.
    pub prompts: Vec<usize>,
    /// The latents before each step and after the last, `[n, c, h, w]` each; those after the last alone, if only the images are kept.
    pub latents: Vec<Tensor<4>>,
    /// log p(x_{t-1} | x_t) under the policy that sampled the images, as a mean over c, h, w; `[n]` per step.
    pub log_probs: Vec<Tensor<1>>,
    /// The trained reward of each image; empty until [`score`](Self::score).
    pub rewards: Vec<f32>,
    /// The weight of each image in the loss, which the algorithm computes from the rewards: DDPO's advantages or D3PO's preferences h.
    pub advantages: Vec<f32>,
    /// Further scores for the journal, by name: terms of the reward and watched rewards; one value per image.
    pub observed: Vec<(String, Vec<f32>)>,
}

/// Draws a batch of chains: [`draw_trajectory`] or [`draw_images`].
type DrawChain<D> = fn(&D, &mut dyn Scheduler, &Guidance, Tensor<4>, &mut dyn FnMut(usize) -> Tensor<4>) -> Trajectory;

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

impl Rollout {
    /// Samples an epoch's images with the current model, off the tape. An image depends on its number in the epoch, not on the batch that
    /// it is sampled in.
    ///
    /// # Errors
    /// When the run is interrupted between two batches.
    pub fn sample<D: Denoiser>(
        run: &mut Run<Trainable<D>>,
        environment: &mut Environment<D>,
        plan: &RolloutPlan<'_>,
        workers: &Workers,
        epoch: u64,
    ) -> Result<Self, Error> {
        let model = run.model.valid();
        Self::drawn(run, environment, plan, workers, epoch, &model, draw_trajectory)
    }

    /// As [`sample`](Self::sample), but with `model` for the policy, and nothing but the last latents of each chain.
    ///
    /// # Errors
    /// When the run is interrupted between two batches.
    pub fn sample_images<D: Denoiser>(
        run: &mut Run<Trainable<D>>,
        environment: &mut Environment<D>,
        plan: &RolloutPlan<'_>,
        workers: &Workers,
        epoch: u64,
        model: &Trainable<D>,
    ) -> Result<Self, Error> {
        Self::drawn(run, environment, plan, workers, epoch, model, draw_images)
    }

    fn drawn<D: Denoiser>(
        run: &mut Run<Trainable<D>>,
        environment: &mut Environment<D>,
        plan: &RolloutPlan<'_>,
        workers: &Workers,
        epoch: u64,
        model: &Trainable<D>,
        draw_chain: DrawChain<D>,
    ) -> Result<Self, Error> {
        let (noise, draw) = (run.noise, draw_of(epoch));
        let num_prompts = plan.num_images / plan.images_per_prompt;
        let prompts = environment.prompts.entries(epoch * num_prompts as u64, num_prompts);
        let prompts = prompts.into_iter().flat_map(|prompt| std::iter::repeat_n(prompt, plan.images_per_prompt)).collect();
        let mut rollout = Self { epoch: Some(epoch), updates: Some(run.updates()), prompts, ..Self::default() };
        let (mut latents, mut log_probs) = (Vec::<Vec<Tensor<4>>>::new(), Vec::<Vec<Tensor<1>>>::new());
        let environment = &*environment;
        let (shape, device) = (environment.latent_shape(), environment.pipeline.device());
        let one = |(model, batch): (Trainable<D>, Range<usize>)| -> Result<Trajectory, Error> {
            let images: Vec<u64> = batch.clone().map(|image| image as u64).collect();
            let guidance = plan.guidance(&model, environment, &rollout.texts(environment, batch));
            let unit = noise.normal(Purpose::INITIAL_LATENTS, draw, &plan.starts(&images), shape, device);
            let mut step_noise = |step| {
                let of = plan.noises(noise, draw, step, &images);
                noise.normal(Purpose::SAMPLER_STEP, chain_step(draw, step), &of, shape, device)
            };
            Ok(draw_chain(&model.denoiser, &mut *environment.scheduler()?, &guidance, unit, &mut step_noise))
        };
        for batches in plan.batches().collect::<Vec<_>>().chunks(workers.count()) {
            run.heed_signals()?;
            let items = batches.iter().map(|batch| (model.clone(), batch.clone())).collect();
            for trajectory in profile::time(Stage::Rollout, || workers.map(items, one)) {
                let Trajectory { latents: visited, log_probs: taken } = trajectory?;
                latents.resize(visited.len(), Vec::new());
                log_probs.resize(taken.len(), Vec::new());
                latents.iter_mut().zip(visited).for_each(|(all, part)| all.push(part));
                log_probs.iter_mut().zip(taken).for_each(|(all, part)| all.push(part));
            }
        }
        // Step by step, so that the memory of the parts is freed as they are put together.
        rollout.latents = latents.into_iter().map(|parts| Tensor::cat(parts, 0)).collect();
        rollout.log_probs = log_probs.into_iter().map(|parts| Tensor::cat(parts, 0)).collect();
        Ok(rollout)
    }

    /// Decodes the last latents and scores the images with every reward, in the batches in which they were sampled.
    ///
    /// # Errors
    /// When a reward fails or the run is interrupted between two batches.
    pub fn score<D: Denoiser>(
        &mut self,
        run: &mut Run<Trainable<D>>,
        environment: &Environment<D>,
        plan: &RolloutPlan<'_>,
    ) -> Result<(), Error> {
        let last = self.latents.last().expect("a chain has a start").clone();
        for batch in plan.batches() {
            run.heed_signals()?;
            let latents = last.clone().narrow(0, batch.start, batch.len());
            let ScoredImages { rewards, observed, .. } = environment.decode_and_score(latents, &self.texts(environment, batch))?;
            self.rewards.extend(values(&rewards).into_iter().map(|reward| reward as f32));
            for (name, scores) in gathered(observed).into_iter().filter(|(name, _)| name != "reward") {
                let scores = scores.into_iter().map(|score| score as f32);
                match self.observed.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, seen)) => seen.extend(scores),
                    None => self.observed.push((name, scores.collect())),
                }
            }
        }
        environment.pipeline.release_memory();
        Ok(())
    }

    /// Replaces the log-probabilities by those that training computes, with `batch_size` images at once. Returns the largest difference.
    ///
    /// # Errors
    /// When the run is interrupted between two batches.
    pub fn recompute_log_probs<D: Denoiser>(
        &mut self,
        run: &mut Run<Trainable<D>>,
        environment: &Environment<D>,
        plan: &RolloutPlan<'_>,
        scheduler: &dyn Scheduler,
        batch_size: usize,
    ) -> Result<f64, Error> {
        let (model, images) = (run.model.valid(), (0..plan.num_images).collect::<Vec<_>>());
        let mut differences = Vec::new();
        for step in 0..self.log_probs.len() {
            let mut again = Vec::new();
            for items in images.chunks(batch_size) {
                run.heed_signals()?;
                let minibatch = self.rows(environment, items, &vec![step; items.len()]);
                let policy = minibatch.transition(&model, environment, plan, scheduler);
                again.push(policy.log_prob(minibatch.prev_sample));
            }
            let again = Tensor::cat(again, 0);
            differences.push((again.clone() - self.log_probs[step].clone()).abs().max());
            self.log_probs[step] = again;
        }
        Ok(values(&Tensor::cat(differences, 0)).into_iter().fold(0.0, f64::max))
    }

    /// The rows of a micro-batch: the images and steps at `at`, with their prompts.
    pub fn minibatch<D: Denoiser>(&self, environment: &Environment<D>, at: &Position) -> Minibatch {
        self.rows(environment, &at.items, &at.steps)
    }

    fn rows<D: Denoiser>(&self, environment: &Environment<D>, items: &[usize], steps: &[usize]) -> Minibatch {
        let rows = || items.iter().zip(steps);
        let latents = |offset: usize| {
            let one = |(row, step): (&usize, &usize)| self.latents[step + offset].clone().narrow(0, *row, 1);
            Tensor::cat(rows().map(one).collect(), 0)
        };
        let log_probs = Tensor::cat(rows().map(|(row, step)| self.log_probs[*step].clone().narrow(0, *row, 1)).collect(), 0);
        let prompts = self.texts(environment, items.iter().copied());
        Minibatch { prompts, sample: latents(0), prev_sample: latents(1), log_probs, steps: steps.to_vec() }
    }

    /// The last latents of these images, `[b, c, h, w]`.
    pub fn images(&self, items: &[usize]) -> Tensor<4> {
        let last = self.latents.last().expect("a chain has an end");
        Tensor::cat(items.iter().map(|row| last.clone().narrow(0, *row, 1)).collect(), 0)
    }

    /// The prompts of these images.
    pub fn prompts_of<D: Denoiser>(&self, environment: &Environment<D>, items: &[usize]) -> Vec<String> {
        self.texts(environment, items.iter().copied())
    }

    fn texts<D: Denoiser>(&self, environment: &Environment<D>, rows: impl Iterator<Item = usize>) -> Vec<String> {
        rows.map(|row| environment.prompts.text(self.prompts[row]).to_string()).collect()
    }

    /// A phrase that names the first reward that is not finite, if there is one.
    pub fn first_non_finite(&self) -> Option<String> {
        let bad = self.rewards.iter().position(|reward| !reward.is_finite())?;
        Some(format!("the reward of image {bad} of epoch {} ({})", self.number(), self.rewards[bad]))
    }

    /// The epoch, counted from 1.
    fn number(&self) -> u64 {
        self.epoch.map_or(0, |epoch| epoch + 1)
    }

    /// The rewards and the further scores of the images, for the journal.
    pub fn observed(&self) -> Observed {
        let widened = |scores: &[f32]| Values::Known(scores.iter().map(|score| f64::from(*score)).collect());
        let others = self.observed.iter().map(|(name, scores)| (name.clone(), widened(scores)));
        std::iter::once(("reward".to_string(), widened(&self.rewards))).chain(others).collect()
    }

    /// The scores of the reward's term of this name, one per image; `None` if the reward has no such term.
    pub fn term(&self, name: &str) -> Option<&[f32]> {
        let found = self.observed.iter().find(|(observed, _)| observed.strip_prefix("reward/") == Some(name));
        found.map(|(_, scores)| scores.as_slice())
    }

    /// The scores of each watched reward, one per image.
    pub fn watched(&self) -> Vec<&[f32]> {
        self.observed.iter().filter(|(name, _)| name.starts_with("watch/")).map(|(_, scores)| scores.as_slice()).collect()
    }

    /// Bytes that [`save`](Self::save) needs for this many images with latents `[c, h, w]` and this many steps.
    pub fn bytes(images: usize, [c, h, w]: [usize; 3], steps: usize) -> u64 {
        4 * (images * ((steps + 1) * c * h * w + steps + 8)) as u64
    }

    /// Puts the rollout into a run's `memory`, in place of an earlier one, so that a resumed run can go on in the middle of the epoch.
    pub fn save(&self, memory: &mut NamedTensors, device: &Device) {
        Self::forget(memory);
        let mut put = |name: String, tensor: Tensor<1>| drop(memory.insert(format!("{PREFIX}{name}"), tensor));
        let host = |values: &[f32]| Tensor::<1>::from_data(values, device);
        put("epoch".into(), host(&[self.epoch.expect("a rollout is saved after it was sampled") as f32]));
        if let Some(updates) = self.updates {
            put("updates".into(), host(&[updates as f32]));
        }
        put("prompts".into(), host(&self.prompts.iter().map(|prompt| *prompt as f32).collect::<Vec<_>>()));
        put("rewards".into(), host(&self.rewards));
        put("advantages".into(), host(&self.advantages));
        self.observed.iter().enumerate().for_each(|(place, (name, scores))| put(format!("observed.{place:02}.{name}"), host(scores)));
        for (step, latents) in self.latents.iter().enumerate() {
            let count = latents.shape().num_elements();
            put(format!("latents.{step:04}"), latents.clone().reshape([count]));
        }
        self.log_probs.iter().enumerate().for_each(|(step, log_probs)| put(format!("log_probs.{step:04}"), log_probs.clone()));
    }

    /// The rollout that [`save`](Self::save) put into `memory`, with latents `[c, h, w]`, if there is one.
    pub fn recall(memory: &NamedTensors, [c, h, w]: [usize; 3]) -> Option<Self> {
        let get = |name: &str| memory.get(&format!("{PREFIX}{name}")).cloned();
        let host = |name: &str| Some(get(name)?.to_data().iter::<f32>().collect::<Vec<f32>>());
        let listed = |kind: &str| -> Vec<(String, Tensor<1>)> {
            let prefix = format!("{PREFIX}{kind}.");
            memory.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_string(), tensor.clone()))).collect()
        };
        let prompts: Vec<usize> = host("prompts")?.into_iter().map(|prompt| prompt as usize).collect();
        let n = prompts.len();
        let observed = listed("observed").into_iter().filter_map(|(name, scores)| {
            let (_, name) = name.split_once('.')?;
            Some((name.to_string(), scores.to_data().iter::<f32>().collect()))
        });
        Some(Self {
            epoch: Some(host("epoch")?[0] as u64),
            updates: host("updates").map(|updates| updates[0] as u64),
            prompts,
            latents: listed("latents").into_iter().map(|(_, latents)| latents.reshape([n, c, h, w])).collect(),
            log_probs: listed("log_probs").into_iter().map(|(_, log_probs)| log_probs).collect(),
            rewards: host("rewards")?,
            advantages: host("advantages")?,
            observed: observed.collect(),
        })
    }

    /// Removes the rollout from `memory`, when its epoch is over.
    pub fn forget(memory: &mut NamedTensors) {
        memory.retain(|name, _| !name.starts_with(PREFIX));
    }
}

const PREFIX: &str = "rollout.";
