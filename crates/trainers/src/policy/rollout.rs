//! What a policy did: whole chains of denoising steps, with the density of each step and the reward of what was drawn.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use vp_core::noise::{Purpose, chain_step};
use vp_core::profile::{self, Stage};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Chain, Guidance, Request, Taken, Trainable};
use vp_schedulers::Scheduler;

use crate::Error;
use crate::environment::Environment;
use crate::optim::NamedTensors;
use crate::run::{Observed, Run, values};

/// The images of one epoch, `n` of them.
#[derive(Debug, Clone)]
pub struct Rollout {
    /// Which epoch, counted from 0.
    pub epoch: u64,
    /// Where each image's prompt stands in the list.
    pub prompts: Vec<usize>,
    /// The latents before each step and after the last: `[n, c, h, w]` each.
    pub latents: Vec<Tensor<4>>,
    /// log p(x_{t-1} | x_t) under the policy that drew, a mean over c, h, w: `[n]` a step.
    pub log_probs: Vec<Tensor<1>>,
    /// One an image.
    pub rewards: Vec<f32>,
    /// One an image.
    pub advantages: Vec<f32>,
    /// Scores for the journal, by name, one an image.
    pub observed: Vec<(String, Vec<f32>)>,
}

/// What an epoch draws.
#[derive(Debug, Clone, Copy)]
pub struct RolloutPlan<'a> {
    /// Images.
    pub images: usize,
    /// Images drawn at once.
    pub batch_size: usize,
    /// Images of each prompt, which stand together.
    pub images_per_prompt: usize,
    /// Whether the images of a prompt start from the same latents.
    pub share_initial_latents: bool,
    /// Classifier-free guidance.
    pub guidance_scale: f64,
    /// What to steer away from.
    pub negative_prompt: Option<&'a str>,
}

/// A chain of a batch: latents `[b, c, h, w]` before each of its steps and after the last, and the log-probability `[b]` of each step.
#[derive(Debug, Clone)]
pub struct Trajectory {
    /// One more than steps.
    pub latents: Vec<Tensor<4>>,
    /// One a step.
    pub log_probs: Vec<Tensor<1>>,
}

/// Draws a whole chain from unit noise and keeps it.
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
        // From the latents as they were stored, so that training, which has only those, finds the same.
        scheduler.transition(output, &vec![step; rows], visited[step].clone()).log_prob(visited[step + 1].clone())
    };
    let log_probs = outputs.into_iter().enumerate().map(log_prob).collect();
    Trajectory { latents: visited, log_probs }
}

impl Rollout {
    /// Draws an epoch's images with the model as it is, off the tape, and scores them. What an image becomes depends on its number in the
    /// epoch, not on the batch it is drawn in. Advantages are left empty.
    ///
    /// # Errors
    /// When a reward fails or the run is interrupted between two batches.
    pub fn draw<D: Denoiser>(
        run: &mut Run<Trainable<D>>,
        environment: &mut Environment<D>,
        plan: &RolloutPlan<'_>,
        epoch: u64,
    ) -> Result<Self, Error> {
        let mut scheduler = environment.scheduler()?;
        let steps = scheduler.timesteps().len();
        let model = run.model.valid();
        let (noise, draw) = (run.noise, epoch + 1);
        let groups = plan.images / plan.images_per_prompt;
        let groups = environment.prompt_entries(epoch * groups as u64, groups);
        let prompts: Vec<usize> = groups.into_iter().flat_map(|prompt| std::iter::repeat_n(prompt, plan.images_per_prompt)).collect();
        let (mut latents, mut log_probs) = (vec![Vec::new(); steps + 1], vec![Vec::new(); steps]);
        let (mut rewards, mut observed): (Vec<f32>, Vec<(String, Vec<f32>)>) = (Vec::new(), Vec::new());
        for start in (0..plan.images).step_by(plan.batch_size) {
            run.heed_signals()?;
            let samples: Vec<u64> = (start..(start + plan.batch_size).min(plan.images)).map(|sample| sample as u64).collect();
            let texts: Vec<String> = samples.iter().map(|sample| environment.prompt(prompts[*sample as usize]).to_string()).collect();
            let Environment { pipeline, size, .. } = &*environment;
            let (negative_prompt, guidance_scale) = (plan.negative_prompt, plan.guidance_scale);
            let request = Request { prompts: &texts, negative_prompt, guidance_scale, size: *size };
            let guidance = pipeline.encode(&model.text(&pipeline.text), &request);
            let (shape, device) = (pipeline.latent_shape(*size), pipeline.device());
            let first_of_group = |sample: &u64| sample / plan.images_per_prompt as u64 * plan.images_per_prompt as u64;
            let starts: Vec<u64> =
                samples.iter().map(|sample| if plan.share_initial_latents { first_of_group(sample) } else { *sample }).collect();
            let unit = noise.normal(Purpose::InitialLatents, draw, &starts, shape, device);
            let mut step_noise = |step| noise.normal(Purpose::SamplerStep, chain_step(draw, step), &samples, shape, device);
            let drawn = || draw_trajectory(&model.denoiser, &mut *scheduler, &guidance, unit, &mut step_noise);
            let trajectory = profile::time(Stage::Rollout, drawn);
            let last = trajectory.latents.last().expect("a chain has a start").clone();
            let images = profile::time(Stage::Decode, || pipeline.vae.decode_to_images(last));
            let (scores, looked_at) = environment.judge(images, &texts)?;
            rewards.extend(values(&scores).into_iter().map(|reward| reward as f32));
            for (name, scores) in looked_at {
                let scores = scores.into_iter().map(|score| score as f32);
                match observed.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, seen)) => seen.extend(scores),
                    None => observed.push((name, scores.collect())),
                }
            }
            latents.iter_mut().zip(trajectory.latents).for_each(|(all, part)| all.push(part));
            log_probs.iter_mut().zip(trajectory.log_probs).for_each(|(all, part)| all.push(part));
        }
        Ok(Self {
            epoch,
            prompts,
            latents: latents.into_iter().map(|parts| Tensor::cat(parts, 0)).collect(),
            log_probs: log_probs.into_iter().map(|parts| Tensor::cat(parts, 0)).collect(),
            rewards,
            advantages: Vec::new(),
            observed,
        })
    }

    /// The rollout of `epoch`: the one at hand if it is that epoch's, else a new one, to which `valued` gives its advantages and which the
    /// run remembers. `None` where a reward was not finite and the update is left out.
    ///
    /// # Errors
    /// As [`draw`](Self::draw), and when no more updates may be left out.
    pub fn of_epoch<D: Denoiser>(
        at_hand: Option<Self>,
        run: &mut Run<Trainable<D>>,
        environment: &mut Environment<D>,
        (plan, epoch): (&RolloutPlan<'_>, u64),
        valued: impl FnOnce(&Self, &mut NamedTensors) -> Vec<f32>,
    ) -> Result<Option<Self>, Error> {
        if let Some(rollout) = at_hand.filter(|rollout| rollout.epoch == epoch) {
            return Ok(Some(rollout));
        }
        let mut drawn = Self::draw(run, environment, plan, epoch)?;
        if let Some(what) = drawn.first_non_finite() {
            run.leave_out(what)?;
            return Ok(None);
        }
        drawn.advantages = valued(&drawn, &mut run.memory);
        drawn.save(&mut run.memory, environment.pipeline.device());
        Ok(Some(drawn))
    }

    /// The first reward that is not finite.
    pub fn first_non_finite(&self) -> Option<String> {
        let bad = self.rewards.iter().position(|reward| !reward.is_finite())?;
        Some(format!("the reward of image {bad} of epoch {} ({})", self.epoch + 1, self.rewards[bad]))
    }

    /// The rewards, and what else was observed, for the journal.
    pub fn scores(&self) -> Observed {
        let widened = |scores: &[f32]| scores.iter().map(|score| f64::from(*score)).collect();
        let others = self.observed.iter().map(|(name, scores)| (name.clone(), widened(scores)));
        std::iter::once(("reward".to_string(), widened(&self.rewards))).chain(others).collect()
    }

    /// Bytes of [`save`](Self::save) for `images` of latents `[c, h, w]` over `steps`.
    pub fn bytes(images: usize, [c, h, w]: [usize; 3], steps: usize) -> u64 {
        4 * (images * ((steps + 1) * c * h * w + steps + 8)) as u64
    }

    /// Puts the rollout into `memory`, in place of the last one.
    pub fn save(&self, memory: &mut NamedTensors, device: &Device) {
        Self::forget(memory);
        let mut put = |name: String, tensor: Tensor<1>| drop(memory.insert(format!("{PREFIX}{name}"), tensor));
        let host = |values: &[f32]| Tensor::<1>::from_data(values, device);
        put("epoch".into(), host(&[self.epoch as f32]));
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

    /// The rollout in `memory`, of latents `[c, h, w]`, if one is there.
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
            epoch: host("epoch")?[0] as u64,
            prompts,
            latents: listed("latents").into_iter().map(|(_, latents)| latents.reshape([n, c, h, w])).collect(),
            log_probs: listed("log_probs").into_iter().map(|(_, log_probs)| log_probs).collect(),
            rewards: host("rewards")?,
            advantages: host("advantages")?,
            observed: observed.collect(),
        })
    }

    /// Takes the rollout out of `memory`: its epoch is over.
    pub fn forget(memory: &mut NamedTensors) {
        memory.retain(|name, _| !name.starts_with(PREFIX));
    }
}

const PREFIX: &str = "rollout.";
