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

use serde::{Deserialize, Serialize};
use vp_core::noise::Purpose;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::direct::{Beginning, Call, Drawing, End, TapedChain, finish, judge, preview_first};
use crate::environment::Environment;
use crate::losses::refl_loss;
use crate::regularizer::Regularizer;
use crate::run::Run;
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

    fn drawing(&self) -> Drawing<'_> {
        let Self { batch_size, guidance_scale, negative_prompt, .. } = self;
        Drawing { batch_size: *batch_size, guidance_scale: *guidance_scale, negative_prompt: negative_prompt.as_deref() }
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
        preview_first(run, environment)?;
        while let Some(batch) = run.next_batch()? {
            // 1. Prompts to embeddings, and the noise to start from.
            let beginning = Beginning::new(batch, run, environment, self.drawing());
            let Beginning { prompts, guidance, noise, draw, .. } = &beginning;

            // 2. From noise to a random late step off the tape, and that step on it, to its prediction of the clean latents.
            let mid_step = noise.integer(Purpose::MidTimestep, *draw, 0, self.min_mid_step, self.max_mid_step);
            let mut step_noise = |step| beginning.step_noise(step);
            let mut chain = TapedChain { denoiser: &run.model.denoiser, scheduler: &mut *scheduler, guidance, noise: &mut step_noise };
            let sampled = chain.run(beginning.latents.clone(), &Self::calls(mid_step), End::Prediction);

            // 3. Decoded and rewarded.
            let judged = judge(sampled.latents.clone(), &environment.pipeline.vae, &*environment.reward, prompts)?;
            let loss = refl_loss(judged.rewards.clone(), self.margin, self.grad_scale);

            // 4. The regulariser on the same tape; backward, update, look.
            finish(run, environment, (regularizer, &*scheduler), &beginning, (&sampled, &judged), loss)?;
        }
        Ok(())
    }

    /// The steps `0..=mid_step`, the last of them on the tape. The latents before it are a constant: the only path of the
    /// gradient is through this one prediction.
    pub fn calls(mid_step: usize) -> Vec<Call> {
        let mut calls = vec![Call::Off; mid_step];
        calls.push(Call::On);
        calls
    }
}
