//! ReFL: reward feedback learning (ImageReward, arXiv 2304.05977, algorithm 1).
//!
//! | paper | here |
//! |---|---|
//! | T, the number of denoising steps | `scheduler.num_inference_steps` |
//! | \[T1, T2\], the window of the last tracked step, counted from the end | `min_mid_step..=max_mid_step`, counted from the start |
//! | λ | `grad_scale` |
//! | φ(r) | `relu(margin − r)` |
//! | L_pre | `[regularizer.<name>]` |
//!
//! Differs from the released `ReFL.py` where its users were hurt: a regulariser is on by default, other rewards are watched, an
//! optional guidance makes training draw as inference does, and the size is the model's own.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::noise::{Purpose, chain_step};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;
use vp_models::pipeline::{Chain, Guidance, Request, Taken, predict};
use vp_models::vae::AutoencoderKL;
use vp_rewards::{Judgement, Reward};
use vp_schedulers::Scheduler;

use crate::Error;
use crate::environment::{Environment, observed_rewards};
use crate::losses::refl_loss;
use crate::preview::is_finite;
use crate::regularizer::{Regularizer, Trajectory, Visited};
use crate::run::{Run, values};
use crate::sections::SchedulerSection;

/// The knobs of `[algo.refl]`, with ReFL.py's values where the file is silent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Refl {
    /// Prompts a micro-batch, one image each.
    pub batch_size: usize,
    /// First step that may be the tracked one (30 of 40).
    pub min_mid_step: usize,
    /// Last step that may be the tracked one, inclusive (39 of 40).
    pub max_mid_step: usize,
    /// Rewards above this give no gradient, in the reward's own units (2 for ImageReward).
    pub margin: f64,
    /// Factor of the reward's loss (1e-3).
    pub grad_scale: f64,
    /// Classifier-free guidance while training; 1 for none, as the paper.
    pub guidance_scale: f64,
    /// What to steer away from while training, under guidance.
    pub negative_prompt: Option<String>,
}

impl Default for Refl {
    fn default() -> Self {
        Self {
            batch_size: 2,
            min_mid_step: 30,
            max_mid_step: 39,
            margin: 2.0,
            grad_scale: 1e-3,
            guidance_scale: 1.0,
            negative_prompt: None,
        }
    }
}

/// What one tracked step yields, up to the loss.
#[derive(Debug)]
pub struct TrackedStep {
    /// The one-step prediction of the clean latents, `[b, c, h, w]`.
    pub pred_original_sample: Tensor<4>,
    /// Decoded, `[b, 3, H, W]` in [0, 1].
    pub images: Tensor<4>,
    /// `[b]`.
    pub rewards: Tensor<1>,
    /// Of a sum, what each term said, `[b]`.
    pub terms: Vec<(String, Tensor<1>)>,
    /// `[1]`.
    pub loss: Tensor<1>,
}

impl Refl {
    /// Appends what cannot work together with the scheduler's section.
    pub fn findings(&self, scheduler: &SchedulerSection, findings: &mut Vec<String>) {
        let Self { batch_size, min_mid_step, max_mid_step, margin, grad_scale, guidance_scale, .. } = self;
        let steps = scheduler.num_inference_steps;
        if *batch_size == 0 {
            findings.push("algo.refl.batch_size is 0; expected at least 1".into());
        }
        if steps > 0 && (min_mid_step > max_mid_step || *max_mid_step >= steps) {
            findings.push(format!(
                "algo.refl draws its tracked step from {min_mid_step}..={max_mid_step}; expected min_mid_step <= max_mid_step <= {}, the last of {steps} steps",
                steps - 1
            ));
        }
        for (name, value) in [("margin", margin), ("grad_scale", grad_scale), ("guidance_scale", guidance_scale)] {
            if !value.is_finite() {
                findings.push(format!("algo.refl.{name} is {value}; expected a number"));
            }
        }
        if *guidance_scale < 0.0 {
            findings.push(format!("algo.refl.guidance_scale is {guidance_scale}; expected at least 0 (1 for none)"));
        }
    }

    /// Algorithm 1.
    ///
    /// # Errors
    /// When the run is interrupted, something is not finite, or the run's folder cannot be written.
    pub fn train<D: Denoiser>(
        &self,
        run: &mut Run<Trainable<D>>,
        environment: &mut Environment<D>,
        regularizer: &mut Regularizer,
    ) -> Result<(), Error> {
        let mut scheduler = environment.scheduler()?;
        let noise = run.noise;
        if run.is_at_the_beginning() {
            run.preview(&environment.preview(&environment.base, 0)?)?;
        }
        while let Some(batch) = run.next_batch()? {
            let draw = batch.draw();
            let samples: Vec<u64> = (0..self.batch_size as u64).collect();

            // 1. Prompts to embeddings.
            let prompts = environment.prompts(batch, self.batch_size);
            let Environment { pipeline, size, .. } = &*environment;
            let negative_prompt = self.negative_prompt.as_deref();
            let request = Request { prompts: &prompts, negative_prompt, guidance_scale: self.guidance_scale, size: *size };
            let guidance = pipeline.encode(&run.model.text(&pipeline.text), &request);

            // 2. From noise to a random late step, off the tape.
            let mid_step = noise.integer(Purpose::MidTimestep, draw, 0, self.min_mid_step, self.max_mid_step);
            let (shape, device) = (pipeline.latent_shape(*size), pipeline.device());
            let latents = noise.normal(Purpose::InitialLatents, draw, &samples, shape, device);
            let mut step_noise = |step| noise.normal(Purpose::SamplerStep, chain_step(draw, step), &samples, shape, device);
            let plain = guidance.without_autodiff();
            let visited = roll_out(&run.model.unet.valid(), &mut *scheduler, &plain, latents, mid_step, &mut step_noise);

            // 3. One step on the tape, its prediction of the clean latents decoded and rewarded.
            let latents = visited[mid_step].latents.clone();
            let place = (mid_step, latents.clone());
            let tracked =
                self.tracked_step(&run.model.unet, &*scheduler, &guidance, place, &pipeline.vae, &*environment.reward, &prompts)?;

            // 4. The regulariser, on the same tape.
            let trajectory = Trajectory { visited: &visited, prompts: &prompts, size: *size };
            let regularization = regularizer.loss(&run.model, environment, &*scheduler, trajectory, (&noise, draw))?;

            // 5. Backward, accumulated; after the last micro-batch clip, update, follow with the moving average, write down.
            let mut observed = observed_rewards(&tracked.rewards, &tracked.terms);
            observed.extend(environment.watch(tracked.images.clone(), &prompts)?);
            observed.push(("regularizer".into(), regularization.as_ref().map_or(vec![0.0], values)));
            let loss = regularization.map_or(tracked.loss.clone(), |regularization| tracked.loss.clone() + regularization);
            run.count_images(self.batch_size);
            let updated = run.backward(loss, observed, &|model: &Trainable<D>| {
                first_non_finite(&model.unet, &*scheduler, &plain, (mid_step, &latents), &tracked)
            })?;

            // 6. Look.
            if let Some(step) = updated.filter(|step| run.preview_is_due(*step)) {
                run.preview(&environment.preview(&run.tuned(), step)?)?;
            }
        }
        Ok(())
    }

    /// One tracked denoising step from `latents` at scheduler step `mid_step`, to the loss. The latents are a constant: the only
    /// path of the gradient is through this one prediction.
    ///
    /// # Errors
    /// As the reward.
    #[allow(clippy::too_many_arguments)]
    pub fn tracked_step<D: Denoiser>(
        &self,
        denoiser: &D,
        scheduler: &dyn Scheduler,
        guidance: &Guidance,
        (mid_step, latents): (usize, Tensor<4>),
        vae: &AutoencoderKL,
        reward: &dyn Reward,
        prompts: &[String],
    ) -> Result<TrackedStep, Error> {
        let steps = vec![mid_step; latents.dims()[0]];
        let timesteps = vec![scheduler.timesteps()[mid_step] as f32; steps.len()];
        let input = scheduler.scale_model_input(latents.clone(), &steps);
        let model_output = predict(denoiser, input, &timesteps, guidance);
        let pred_original_sample = scheduler.transition(model_output, &steps, latents).pred_original_sample;
        let images = vae.decode_to_images(pred_original_sample.clone());
        let Judgement { scores: rewards, terms } = reward.judge(images.clone(), prompts)?;
        let loss = refl_loss(rewards.clone(), self.margin, self.grad_scale);
        Ok(TrackedStep { pred_original_sample, images, rewards, terms, loss })
    }
}

/// The first tensor of a tracked step that is not finite.
fn first_non_finite<D: Denoiser>(
    denoiser: &D,
    scheduler: &dyn Scheduler,
    guidance: &Guidance,
    (mid_step, latents): (usize, &Tensor<4>),
    tracked: &TrackedStep,
) -> Option<String> {
    if !is_finite(latents) {
        return Some(format!("the latents before scheduler step {mid_step}"));
    }
    let rows = latents.dims()[0];
    let input = scheduler.scale_model_input(latents.clone(), &vec![mid_step; rows]);
    let timesteps = vec![scheduler.timesteps()[mid_step] as f32; rows];
    if let Some(part) = denoiser.first_non_finite(input, &timesteps, &guidance.conditional) {
        return Some(format!("unet.{part}"));
    }
    if !is_finite(&tracked.pred_original_sample) {
        return Some("pred_original_sample".into());
    }
    if !is_finite(&tracked.images) {
        return Some("the decoded images".into());
    }
    let rewards = values(&tracked.rewards);
    (!rewards.iter().all(|reward| reward.is_finite())).then(|| format!("the reward ({rewards:?})"))
}

/// Steps `0..mid_step` from unit noise; where the chain has been, one entry a step and the last one where it stands.
pub fn roll_out<D: Denoiser>(
    denoiser: &D,
    scheduler: &mut dyn Scheduler,
    guidance: &Guidance,
    latents: Tensor<4>,
    mid_step: usize,
    noise: &mut dyn FnMut(usize) -> Tensor<4>,
) -> Vec<Visited> {
    let start = latents * scheduler.init_noise_sigma();
    let mut visited = vec![Visited { step: 0, latents: start.clone() }];
    let mut observe = |taken: &Taken<'_>| visited.push(Visited { step: taken.step + 1, latents: taken.prev_sample.clone() });
    Chain { denoiser, sampler: scheduler, guidance, noise, observe: &mut observe }.run(start, 0..mid_step);
    visited
}
