//! What the algorithms that differentiate a reward through sampling share: ReFL, DRaFT, AlignProp, DRTune.
//!
//! They differ in where the tape is. Each says of every step it takes how the network is called ([`Call`]), and what is decoded
//! at the end ([`End`]); the rest is the same for all.
//!
//! | algorithm | calls of its steps | end |
//! |---|---|---|
//! | ReFL | off the tape, but for the last, a random late step | the last step's prediction of the clean latents |
//! | DRaFT-K | off the tape, but for the last K of all N | the last sample |
//! | AlignProp | on the tape late, off it early, the border random | the last sample |
//! | DRTune | on the tape with a detached input at K spaced steps | the prediction at a random late step |
//!
//! Whatever the call, the latents' own path through the scheduler's linear update keeps its gradient. Guidance is on the tape
//! wherever the network is.

pub mod align_prop;
pub mod draft;
pub mod drtune;
pub mod refl;

use burn::tensor::{Device, Tensor};
use vp_core::noise::{Noise, Purpose, chain_step};
use vp_core::profile::{self, Stage};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Chain, Guidance, Request, Taken, Trainable, predict};
use vp_models::vae::AutoencoderKL;
use vp_rewards::{Reward, Scored};
use vp_schedulers::Scheduler;

use crate::Error;
use crate::environment::{Environment, observed_rewards};
use crate::regularizer::{Regularizer, Trajectory, Visited};
use crate::run::preview::is_finite;
use crate::run::{Batch, Run, values};

/// How a step calls the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Off the tape: what it predicts is a constant, and nothing is kept of it.
    Off,
    /// On the tape: the gradient reaches the weights, and through the network's input all that came before.
    On,
    /// On the tape with a constant for input: the gradient reaches the weights alone.
    DetachedInput,
}

/// What a chain comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The sampler's own sample after the last step.
    Sample,
    /// The last step's one-step prediction of the clean latents, as where a chain stops early.
    Prediction,
}

/// How a micro-batch is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Drawing<'a> {
    /// Prompts, one image each.
    pub batch_size: usize,
    /// Classifier-free guidance; 1 or less for none.
    pub guidance_scale: f64,
    /// What to steer away from, under guidance.
    pub negative_prompt: Option<&'a str>,
}

impl Drawing<'_> {
    /// Appends what cannot work; `algo` is the section's name.
    pub fn findings(&self, algo: &str, findings: &mut Vec<String>) {
        let Self { batch_size, guidance_scale, .. } = self;
        if *batch_size == 0 {
            findings.push(format!("algo.{algo}.batch_size is 0; expected at least 1"));
        }
        if !(*guidance_scale >= 0.0 && guidance_scale.is_finite()) {
            findings.push(format!("algo.{algo}.guidance_scale is {guidance_scale}; expected a number of at least 0 (1 for none)"));
        }
    }
}

/// What a micro-batch starts from.
#[derive(Debug)]
pub struct Beginning {
    /// One an image.
    pub prompts: Vec<String>,
    /// What they say to the denoiser; on the tape where a text encoder trains.
    pub guidance: Guidance,
    /// Standard normal, `[b, c, h, w]`.
    pub latents: Tensor<4>,
    /// The run's random numbers.
    pub noise: Noise,
    /// Names this micro-batch's.
    pub draw: u64,
    device: Device,
}

impl Beginning {
    /// Prompts to embeddings, and the noise to start from.
    pub fn new<D: Denoiser>(batch: Batch, run: &Run<Trainable<D>>, environment: &mut Environment<D>, drawing: Drawing<'_>) -> Self {
        let Drawing { batch_size, guidance_scale, negative_prompt } = drawing;
        let (draw, noise) = (batch.draw(), run.noise);
        let prompts = environment.prompts(batch, batch_size);
        let Environment { pipeline, size, .. } = &*environment;
        let request = Request { prompts: &prompts, negative_prompt, guidance_scale, size: *size };
        let guidance = pipeline.encode(&run.model.text(&pipeline.text), &request);
        let (samples, device) = (sample_numbers(batch_size), pipeline.device().clone());
        let latents = noise.normal(Purpose::InitialLatents, draw, &samples, pipeline.latent_shape(*size), &device);
        Self { prompts, guidance, latents, noise, draw, device }
    }

    /// The noise of a stochastic scheduler step, `[b, c, h, w]`.
    pub fn step_noise(&self, step: usize) -> Tensor<4> {
        self.normal(Purpose::SamplerStep, step)
    }

    /// Standard normal `[b, c, h, w]` for one place of this micro-batch.
    pub fn normal(&self, purpose: Purpose, place: usize) -> Tensor<4> {
        let [b, c, h, w] = self.latents.dims();
        self.noise.normal(purpose, chain_step(self.draw, place), &sample_numbers(b), [c, h, w], &self.device)
    }
}

fn sample_numbers(count: usize) -> Vec<u64> {
    (0..count as u64).collect()
}

/// A chain of reverse steps, some of them on the tape.
pub struct TapedChain<'a, D> {
    /// The trained network, on the tape.
    pub denoiser: &'a D,
    /// Steps.
    pub scheduler: &'a mut dyn Scheduler,
    /// What is wanted.
    pub guidance: &'a Guidance,
    /// Standard normal noise `[b, c, h, w]` of a step, asked for where the scheduler draws any.
    pub noise: &'a mut dyn FnMut(usize) -> Tensor<4>,
}

/// Where a chain has been, and what it came to.
#[derive(Debug)]
pub struct Sampled {
    /// What is decoded, `[b, c, h, w]`, on the tape.
    pub latents: Tensor<4>,
    /// The points from which a step was taken, in order, off the tape.
    pub visited: Vec<Visited>,
}

impl<D: Denoiser> TapedChain<'_, D> {
    /// Takes the steps `0..calls.len()` from unit noise `[b, c, h, w]`.
    ///
    /// # Panics
    /// When no call is on the tape: there would be nothing to differentiate.
    pub fn run(&mut self, unit: Tensor<4>, calls: &[Call], end: End) -> Sampled {
        let first = calls.iter().position(|call| *call != Call::Off).expect("a step is on the tape");
        let plain = self.guidance.without_autodiff();
        let mut visited = roll_out(&self.denoiser.valid(), self.scheduler, &plain, unit, first, self.noise);
        let mut latents = visited[first].latents.clone();
        for (step, call) in calls.iter().enumerate().skip(first) {
            let output = self.model_output(*call, step, &latents);
            let last = step + 1 == calls.len();
            if last && end == End::Prediction {
                let steps = vec![step; latents.dims()[0]];
                latents = self.scheduler.transition(output, &steps, latents).pred_original_sample;
                break;
            }
            let noise = (self.scheduler.std_dev_t(step) > 0.0).then(|| (self.noise)(step));
            latents = self.scheduler.step(output, step, latents, noise);
            if !last {
                visited.push(Visited { step: step + 1, latents: latents.clone().without_autodiff() });
            }
        }
        Sampled { latents, visited }
    }

    /// The prediction at a step, with guidance.
    pub fn model_output(&self, call: Call, step: usize, latents: &Tensor<4>) -> Tensor<4> {
        let rows = latents.dims()[0];
        let timesteps = vec![self.scheduler.timesteps()[step] as f32; rows];
        let input = match call {
            Call::On => latents.clone(),
            Call::Off | Call::DetachedInput => latents.clone().without_autodiff(),
        };
        let input = self.scheduler.scale_model_input(input, &vec![step; rows]);
        match call {
            Call::Off => {
                profile::time(Stage::Rollout, || predict(&self.denoiser.valid(), input, &timesteps, &self.guidance.without_autodiff()))
            }
            Call::On | Call::DetachedInput => {
                profile::time(Stage::TrackedStep, || predict(self.denoiser, input, &timesteps, self.guidance))
            }
        }
    }
}

/// Steps `0..steps` from unit noise, off the tape; where the chain has been, one entry a step and the last one where it stands.
pub fn roll_out<D: Denoiser>(
    denoiser: &D,
    scheduler: &mut dyn Scheduler,
    guidance: &Guidance,
    latents: Tensor<4>,
    steps: usize,
    noise: &mut dyn FnMut(usize) -> Tensor<4>,
) -> Vec<Visited> {
    let start = latents * scheduler.init_noise_sigma();
    let mut visited = vec![Visited { step: 0, latents: start.clone() }];
    let mut observe = |taken: &Taken<'_>| visited.push(Visited { step: taken.step + 1, latents: taken.prev_sample.clone() });
    Chain { denoiser, sampler: scheduler, guidance, noise, observe: &mut observe }.run(start, 0..steps);
    visited
}

/// Images and what the reward says of them, on the tape.
#[derive(Debug)]
pub struct Judged {
    /// `[b, 3, H, W]` in [0, 1].
    pub images: Tensor<4>,
    /// `[b]`.
    pub rewards: Tensor<1>,
    /// Of a sum, what each term said, `[b]`.
    pub terms: Vec<(String, Tensor<1>)>,
}

/// Decodes latents `[b, c, h, w]` and asks the reward.
///
/// # Errors
/// As the reward.
pub fn judge(latents: Tensor<4>, vae: &AutoencoderKL, reward: &dyn Reward, prompts: &[String]) -> Result<Judged, Error> {
    let images = profile::time(Stage::Decode, || vae.decode_to_images(latents));
    let Scored { scores: rewards, terms } = profile::time(Stage::Reward, || reward.score_with_terms(images.clone(), prompts))?;
    Ok(Judged { images, rewards, terms })
}

/// `−grad_scale · mean(r)`, `[b]` → `[1]`.
///
/// Source: DRaFT (arXiv 2309.17400) equation 1; AlignProp (2310.03739) equation 2.
pub fn reward_loss(rewards: Tensor<1>, grad_scale: f64) -> Tensor<1> {
    rewards.mean() * -grad_scale
}

/// The preview that a run begins with.
///
/// # Errors
/// As [`Environment::preview`] and [`Run::preview`].
pub fn preview_first<D: Denoiser>(run: &mut Run<Trainable<D>>, environment: &Environment<D>) -> Result<(), Error> {
    if run.is_at_the_beginning() {
        run.preview(&environment.preview(&environment.base, 0)?)?;
    }
    Ok(())
}

/// The end of a micro-batch: adds the regulariser to `loss` `[1]`, goes backward, and after the last micro-batch of an update
/// updates, follows with the moving average, writes down, and looks where that is due.
///
/// # Errors
/// When something is not finite, a reward fails, or the run's folder cannot be written.
pub fn finish<D: Denoiser>(
    run: &mut Run<Trainable<D>>,
    environment: &Environment<D>,
    (regularizer, scheduler): (&mut Regularizer, &dyn Scheduler),
    beginning: &Beginning,
    (sampled, judged): (&Sampled, &Judged),
    loss: Tensor<1>,
) -> Result<(), Error> {
    let Beginning { prompts, noise, draw, .. } = beginning;
    let trajectory = Trajectory { visited: &sampled.visited, prompts, size: environment.size };
    let regularize = || regularizer.loss(&run.model, environment, scheduler, trajectory, (noise, *draw));
    let regularization = profile::time(Stage::TrackedStep, regularize)?;
    let mut observed = observed_rewards(&judged.rewards, &judged.terms);
    observed.extend(environment.watch(judged.images.clone(), prompts)?);
    observed.push(("regularizer".into(), regularization.as_ref().map_or(vec![0.0], values)));
    let loss = match regularization {
        Some(regularization) => loss + regularization,
        None => loss,
    };
    run.count_images(prompts.len());
    let plain = beginning.guidance.without_autodiff();
    let blame = |model: &Trainable<D>| first_non_finite(&model.unet, scheduler, &plain, sampled, judged);
    let updated = run.backward(loss, observed, &blame)?;
    if let Some(step) = updated.filter(|step| run.preview_is_due(*step)) {
        run.preview(&environment.preview(&run.tuned(), step)?)?;
    }
    Ok(())
}

/// The first tensor of a micro-batch that is not finite.
fn first_non_finite<D: Denoiser>(
    denoiser: &D,
    scheduler: &dyn Scheduler,
    guidance: &Guidance,
    sampled: &Sampled,
    judged: &Judged,
) -> Option<String> {
    if let Some(Visited { step, .. }) = sampled.visited.iter().find(|visited| !is_finite(&visited.latents)) {
        return Some(format!("the latents before scheduler step {step}"));
    }
    let Visited { step, latents } = sampled.visited.last()?;
    let rows = latents.dims()[0];
    let input = scheduler.scale_model_input(latents.clone(), &vec![*step; rows]);
    let timesteps = vec![scheduler.timesteps()[*step] as f32; rows];
    if let Some(part) = denoiser.first_non_finite(input, &timesteps, &guidance.conditional) {
        return Some(format!("unet.{part}"));
    }
    if !is_finite(&sampled.latents) {
        return Some("the latents that are decoded".into());
    }
    if !is_finite(&judged.images) {
        return Some("the decoded images".into());
    }
    let rewards = values(&judged.rewards);
    (!rewards.iter().all(|reward| reward.is_finite())).then(|| format!("the reward ({rewards:?})"))
}

#[cfg(test)]
mod tests;
