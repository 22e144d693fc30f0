//! A rollout: the images of one epoch, with every step of their chains, the log-probabilities of the steps, the rewards and the advantages.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use vp_core::noise::{Purpose, chain_step};
use vp_core::profile::{self, Stage};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;
use vp_schedulers::Scheduler;

use crate::Error;
use crate::environment::{Environment, ScoredImages};
use crate::optim::{NamedTensors, Workers};
use crate::policy::Minibatch;
use crate::policy::plan::draw_of;
pub use crate::policy::plan::{NoiseWindow, RolloutPlan};
use crate::policy::trajectory::DrawChain;
pub use crate::policy::trajectory::{Trajectory, draw_images, draw_trajectory};
use crate::policy::walk::Position;
use crate::ranks::{Ranks, share_of};
use crate::run::{Observed, Run, Values, gathered, values};

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
        let mine: Vec<Range<usize>> = plan.batches_of(&run.ranks).collect();
        for round in 0..plan.most_batches(&run.ranks).div_ceil(workers.count()) {
            run.heed_signals()?;
            let batches = mine.chunks(workers.count()).nth(round).unwrap_or_default();
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
        let (mine, first) = (plan.batches_of(&run.ranks).collect::<Vec<_>>(), run.ranks.share(plan.num_images).start);
        for round in 0..plan.most_batches(&run.ranks) {
            run.heed_signals()?;
            let Some(batch) = mine.get(round).cloned() else { continue };
            let latents = last.clone().narrow(0, batch.start - first, batch.len());
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

    /// Puts together what the ranks have drawn and scored, each its share of the images: the whole epoch on every rank. Latents are `[c, h, w]`.
    ///
    /// # Errors
    /// When a rank ended with an error.
    pub fn gather(&mut self, ranks: &Ranks, [c, h, w]: [usize; 3], device: &Device) -> Result<(), Error> {
        if ranks.are_one() {
            return Ok(());
        }
        let on_host = |tensor: Tensor<1>| tensor.into_data().iter::<f32>().collect::<Vec<f32>>();
        let latents = self.latents.iter().map(|latents| on_host(latents.clone().reshape([latents.shape().num_elements()])));
        let log_probs = self.log_probs.iter().map(|log_probs| on_host(log_probs.clone()));
        let scores = std::iter::once(&self.rewards).chain(self.observed.iter().map(|(_, scores)| scores)).cloned();
        let own: Vec<f32> = latents.chain(log_probs).chain(scores).flatten().collect();
        let all = ranks.gather_values(&own)?;
        let mut rests: Vec<(usize, &[f32])> = all
            .iter()
            .enumerate()
            .map(|(rank, values)| (share_of(self.prompts.len(), rank, ranks.size()).len(), values.as_slice()))
            .collect();
        let mut take = |size: usize| {
            let mut taken = Vec::new();
            for (images, rest) in &mut rests {
                let (first, others) = rest.split_at(*images * size);
                taken.extend_from_slice(first);
                *rest = others;
            }
            taken
        };
        let count = self.prompts.len();
        for latents in &mut self.latents {
            *latents = Tensor::from_data(TensorData::new(take(c * h * w), [count, c, h, w]), device);
        }
        for log_probs in &mut self.log_probs {
            *log_probs = Tensor::from_data(take(1).as_slice(), device);
        }
        self.rewards = take(1);
        self.observed.iter_mut().for_each(|(_, scores)| *scores = take(1));
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
