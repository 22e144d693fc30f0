//! The code that ReFL, DRaFT, AlignProp, DRTune, LeapAlign and SRPO share: they all differentiate a reward through sampling.
//!
//! They differ in which steps are on the tape, that is, recorded for the backward pass, in how these steps call the network ([`Call`]), and
//! in the latents that are decoded at the end ([`End`]). DRaFT, AlignProp and DRTune put steps of the sampler itself on the tape, and pass
//! their calls to one loop, [`through_sampling`]. The others take one or two steps on the tape beside the sampler's, and write them out.
//!
//! | algorithm | calls of the network | latents to decode |
//! |---|---|---|
//! | ReFL | off the tape, except in the last step, a random late one | the last step's prediction of the clean latents |
//! | DRaFT-K | on the tape in the last K steps | the last sample |
//! | AlignProp | on the tape from a fixed or random step on | the last sample |
//! | DRTune | on the tape with a detached input in K evenly spaced steps | the prediction of the clean latents at a random late step |
//! | LeapAlign | off the tape in the whole chain, then on the tape in two leaps along it | the last sample, with the gradient of the leaps |
//! | SRPO | off the tape in the whole chain, then on the tape in one short step from its latents, noised | the latents that follow from that step and the known noise |
//!
//! Whatever the call, the gradient also flows through the scheduler's update, which is linear in the latents. Guidance is on the tape
//! wherever the network is.

pub mod align_prop;
pub mod direct_align;
pub mod draft;
pub mod drtune;
pub mod leap_align;
pub mod leaps;
pub mod refl;
pub mod srpo;
pub mod taped_chain;
pub mod through_sampling;

use burn::tensor::{Device, Tensor};
use vp_core::noise::{Purpose, chain_step};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Guidance, Request, Trainable};
use vp_schedulers::Scheduler;

pub use taped_chain::{Call, End, StepNoise, TapedChain};

use crate::Error;
use crate::config::TrainConfig;
use crate::environment::{Environment, ScoredImages};
use crate::non_finite;
use crate::plan::{AtOnce, Demand};
use crate::regularizer::Visited;
use crate::run::{Batch, Draw, Observed, Run, Values, values};

/// The knobs for sampling a micro-batch.
#[derive(Debug, Clone, Copy)]
pub struct Sampling<'a> {
    /// Prompts per micro-batch, one image each; at least 1.
    pub batch_size: usize,
    /// Classifier-free guidance scale, at least 0; 1 or less for no guidance.
    pub guidance_scale: f64,
    /// Prompt that guidance steers away from.
    pub negative_prompt: Option<&'a str>,
}

impl Sampling<'_> {
    /// Appends a message for each knob that is out of range; `algo` is the algorithm's name in the config.
    pub fn findings(&self, algo: &str, findings: &mut Vec<String>) {
        let Self { batch_size, guidance_scale, .. } = self;
        if *batch_size == 0 {
            findings.push(format!("algo.{algo}.batch_size is 0; expected at least 1"));
        }
        if !(*guidance_scale >= 0.0 && guidance_scale.is_finite()) {
            findings.push(format!("algo.{algo}.guidance_scale is {guidance_scale}; expected a number of at least 0 (1 for none)"));
        }
    }

    /// What `calls` of the network on one tape hold, with `decoded` images for each that is sampled.
    pub fn demand(&self, calls: usize, decoded: usize) -> Demand {
        Demand::through_reward(AtOnce::new("batch_size", self.batch_size, self.guidance_scale), calls, decoded)
    }

    /// A sentence about the images of an update and of the run; `each` says how one image is sampled.
    pub fn arithmetic(&self, config: &TrainConfig, each: &str) -> String {
        let (updates, accumulation) = (config.run.num_train_steps, config.optimizer.gradient_accumulation_steps);
        let batch_size = self.batch_size;
        let images = batch_size * accumulation;
        let total = images as u64 * updates;
        format!("{updates} updates of {images} images ({batch_size} at once, {accumulation} times) = {total} images; each {each}")
    }
}

/// The inputs of a micro-batch of `b` images.
#[derive(Debug)]
pub struct StartingPoint {
    /// One prompt per image.
    pub prompts: Vec<String>,
    /// The prompts' embeddings and the guidance scale; on the tape if a text encoder trains.
    pub guidance: Guidance,
    /// The noise to start from: standard normal, `[b, c, h, w]`.
    pub latents: Tensor<4>,
    /// The random numbers of this micro-batch.
    pub draw: Draw,
    device: Device,
}

impl StartingPoint {
    /// Encodes `prompts` with the text encoder of `model`, if that trains, and draws the noise to start from.
    fn new<D: Denoiser>(
        model: &Trainable<D>,
        environment: &Environment<D>,
        prompts: Vec<String>,
        draw: Draw,
        sampling: Sampling<'_>,
    ) -> Self {
        let Sampling { guidance_scale, negative_prompt, .. } = sampling;
        let Environment { pipeline, size, .. } = environment;
        let request = Request { prompts: &prompts, negative_prompt, guidance_scale, size: *size };
        let guidance = pipeline.encode(&model.text(&pipeline.text), &request);
        let (device, samples) = (pipeline.device().clone(), draw.samples(prompts.len()));
        let latents = draw.noise.normal(Purpose::INITIAL_LATENTS, draw.number, &samples, pipeline.latent_shape(*size), &device);
        Self { prompts, guidance, latents, draw, device }
    }

    /// A chain from this starting point, with no step taken yet.
    pub fn chain<'a, D>(&'a self, denoiser: &'a D, scheduler: &'a mut dyn Scheduler) -> TapedChain<'a, D> {
        TapedChain::new(denoiser, scheduler, &self.guidance, self)
    }

    /// Standard normal noise `[b, c, h, w]`; `place` numbers the draws of this micro-batch for one purpose.
    pub fn normal(&self, purpose: Purpose, place: usize) -> Tensor<4> {
        let ([b, c, h, w], Draw { noise, number, .. }) = (self.latents.dims(), self.draw);
        noise.normal(purpose, chain_step(number, place), &self.draw.samples(b), [c, h, w], &self.device)
    }
}

impl StepNoise for StartingPoint {
    fn step_noise(&self, step: usize) -> Tensor<4> {
        self.normal(Purpose::SAMPLER_STEP, step)
    }
}

/// A micro-batch that has been sampled and scored, with its losses.
#[derive(Debug)]
pub struct ScoredBatch {
    /// The inputs of the micro-batch.
    pub start: StartingPoint,
    /// The points at which the chain took a step.
    pub visited: Vec<Visited>,
    /// The latents that were decoded, `[b, c, h, w]`.
    pub latents: Tensor<4>,
    /// The decoded images, their rewards, and the values for the journal.
    pub scored: ScoredImages,
    /// The algorithm's loss without the regulariser, `[1]`.
    pub loss: Tensor<1>,
    /// The regulariser's loss, `[1]`, if there is a regulariser.
    pub regularization: Option<Tensor<1>>,
}

/// Trains until the run has made all its updates. `compute` samples and scores a micro-batch with the given model; those of one update are
/// computed side by side. After an update's last: clip, step, moving average, journal, and a preview if one is due.
///
/// # Errors
/// When the run is interrupted, a value is not finite, a reward fails, or the run's folder cannot be written.
pub fn train<D: Denoiser>(
    run: &mut Run<Trainable<D>>,
    environment: &mut Environment<D>,
    sampling: Sampling<'_>,
    compute: impl Fn(&Trainable<D>, &Environment<D>, &mut dyn Scheduler, StartingPoint) -> Result<ScoredBatch, Error> + Sync,
) -> Result<(), Error> {
    let (scheduler, workers) = (environment.scheduler()?, run.workers(environment.pipeline.device())?);
    environment.preview_at_start(run)?;
    while let Some(batches) = run.next_batches(workers.count())? {
        let prompts =
            |batch: &Batch| environment.prompts.of_batch(batch.index, sampling.batch_size)[batch.rows(sampling.batch_size)].to_vec();
        let prompts: Vec<Vec<String>> = batches.iter().map(prompts).collect();
        let items: Vec<(Draw, Vec<String>)> = batches.iter().map(|batch| run.draw(*batch)).zip(prompts).collect();
        run.count_images(items.iter().map(|(_, prompts)| prompts.len()).sum());
        let shared = &*environment;
        let compute = |model: &Trainable<D>, (draw, prompts): (Draw, Vec<String>)| {
            let start = StartingPoint::new(model, shared, prompts, draw, sampling);
            let batch = compute(model, shared, &mut *shared.scheduler()?, start)?;
            Ok((batch.total(), batch.observed(), batch))
        };
        let blame = |model: &Trainable<D>, batch: &ScoredBatch| batch.first_non_finite(model, &*scheduler);
        let updated = run.backward_side_by_side(&workers, items, compute, blame)?;
        environment.preview_if_due(run, updated)?;
    }
    Ok(())
}

impl ScoredBatch {
    /// The loss that is back-propagated, `[1]`.
    fn total(&self) -> Tensor<1> {
        match &self.regularization {
            Some(regularization) => self.loss.clone() + regularization.clone(),
            None => self.loss.clone(),
        }
    }

    /// The values for the journal.
    fn observed(&self) -> Observed {
        let mut observed = self.scored.observed.clone();
        observed.push(("regularizer".into(), self.regularization.as_ref().map_or_else(|| vec![0.0].into(), Values::from)));
        observed
    }

    /// The first tensor that is not finite, in the order in which they were computed.
    fn first_non_finite<D: Denoiser>(&self, model: &Trainable<D>, scheduler: &dyn Scheduler) -> Option<String> {
        if let Some(Visited { step, .. }) = self.visited.iter().find(|visited| !non_finite::is_finite(&visited.latents)) {
            return Some(format!("the latents before scheduler step {step}"));
        }
        let Visited { step, latents } = self.visited.last()?;
        let rows = latents.dims()[0];
        let input = scheduler.scale_model_input(latents.clone(), &vec![*step; rows]);
        let timesteps = vec![scheduler.timesteps()[*step] as f32; rows];
        let in_network = non_finite::in_prediction(&model.denoiser, input, &timesteps, &self.start.guidance.conditional);
        let decoded = [("the latents to decode", &self.latents), ("the decoded images", &self.scored.images)];
        in_network.or_else(|| non_finite::first_of(decoded)).or_else(|| {
            let rewards = values(&self.scored.rewards);
            (!rewards.iter().all(|reward| reward.is_finite())).then(|| format!("the reward ({rewards:?})"))
        })
    }
}

#[cfg(test)]
mod tests;
