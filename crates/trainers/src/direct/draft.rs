//! DRaFT: direct reward fine-tuning (arXiv 2309.17400, algorithm 1), in the forms DRaFT, DRaFT-K and DRaFT-LV.
//!
//! | paper | here |
//! |---|---|
//! | T, the number of sampling steps | `scheduler.num_inference_steps` |
//! | K, how many of the last ones are differentiated | `k`; DRaFT is `k` = T |
//! | n_LV, how often DRaFT-LV noises a drawn image again | `num_lv_samples`, 0 for none |
//! | r(x_0, c), maximised | loss `−grad_scale · mean(r)` |
//! | x_0 = sample(θ, x_T) | the sampler's own last sample, guidance and all |
//!
//! DRaFT-LV follows FlowBP's `trainers/sd35/draft_lv.py`: the mean over the drawn image and its `num_lv_samples` new ones. All of
//! them are on the tape together: its memory is that of `1 + num_lv_samples` steps.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::noise::Purpose;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::direct::{Beginning, Call, Drawing, End, Judged, Sampled, TapedChain, finish, judge, preview_first, reward_loss};
use crate::environment::Environment;
use crate::regularizer::Regularizer;
use crate::run::Run;
use crate::sections::SchedulerSection;

/// The knobs of `[algo.draft]`, with the paper's values where the file is silent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Draft {
    /// Prompts a micro-batch, one image each (4).
    pub batch_size: usize,
    /// How many of the last steps are on the tape (1).
    pub k: usize,
    /// How often the drawn latents are noised again and denoised in one step, with K = 1 (DRaFT-LV: 2); 0 for plain DRaFT-K.
    pub num_lv_samples: usize,
    /// Factor of the reward's loss (1).
    pub grad_scale: f64,
    /// Classifier-free guidance while training (7.5); 1 for none.
    pub guidance_scale: f64,
    /// What to steer away from while training, under guidance.
    pub negative_prompt: Option<String>,
}

impl Default for Draft {
    fn default() -> Self {
        Self { batch_size: 4, k: 1, num_lv_samples: 0, grad_scale: 1.0, guidance_scale: 7.5, negative_prompt: None }
    }
}

impl Draft {
    /// Appends what cannot work together with the scheduler's section.
    pub fn findings(&self, scheduler: &SchedulerSection, findings: &mut Vec<String>) {
        let Self { k, num_lv_samples, grad_scale, .. } = self;
        let steps = scheduler.num_inference_steps;
        self.drawing().findings("draft", findings);
        if *k == 0 || (steps > 0 && *k > steps) {
            findings.push(format!("algo.draft.k is {k}; expected 1 to {steps}, the steps there are (scheduler.num_inference_steps)"));
        }
        if *num_lv_samples > 0 && *k != 1 {
            findings.push(format!(
                "algo.draft.num_lv_samples is {num_lv_samples} with k = {k}; DRaFT-LV differentiates one step: expected k = 1, or num_lv_samples = 0"
            ));
        }
        if !grad_scale.is_finite() {
            findings.push(format!("algo.draft.grad_scale is {grad_scale}; expected a number"));
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
        let calls = self.calls(scheduler.timesteps().len());
        preview_first(run, environment)?;
        while let Some(batch) = run.next_batch()? {
            // 1. Prompts to embeddings, and the noise to start from.
            let beginning = Beginning::new(batch, run, environment, self.drawing());
            let Beginning { prompts, guidance, .. } = &beginning;
            let Environment { pipeline, reward, .. } = &*environment;

            // 2. From noise to an image's latents, the last K steps on the tape.
            let mut step_noise = |step| beginning.step_noise(step);
            let mut chain = TapedChain { denoiser: &run.model.unet, scheduler: &mut *scheduler, guidance, noise: &mut step_noise };
            let sampled = chain.run(beginning.latents.clone(), &calls, End::Sample);

            // 3. Decoded and rewarded; with DRaFT-LV also the same latents, noised and denoised anew.
            let judge = |latents| judge(latents, &pipeline.vae, &**reward, prompts);
            let epsilon = |sample| beginning.normal(Purpose::LowVariance, sample);
            let (judged, loss) = self.loss(&chain, &sampled, &epsilon, &judge)?;

            // 4. The regulariser on the same tape; backward, update, look.
            finish(run, environment, (regularizer, &*scheduler), &beginning, (&sampled, &judged), loss)?;
        }
        Ok(())
    }

    /// What the drawn images are worth, and the loss `[1]`: theirs, or with DRaFT-LV the mean of theirs and of those renoised from
    /// their latents, with the standard normal `[b, c, h, w]` of each time.
    ///
    /// # Errors
    /// As `judge`.
    pub fn loss<D: Denoiser>(
        &self,
        chain: &TapedChain<'_, D>,
        sampled: &Sampled,
        epsilon: &dyn Fn(usize) -> Tensor<4>,
        judge: &dyn Fn(Tensor<4>) -> Result<Judged, Error>,
    ) -> Result<(Judged, Tensor<1>), Error> {
        let judged = judge(sampled.latents.clone())?;
        let mut losses = vec![reward_loss(judged.rewards.clone(), self.grad_scale)];
        for sample in 0..self.num_lv_samples {
            let renoised = renoised_sample(chain, &sampled.latents, epsilon(sample));
            losses.push(reward_loss(judge(renoised)?.rewards, self.grad_scale));
        }
        Ok((judged, Tensor::cat(losses, 0).mean()))
    }

    /// A whole chain of `steps`, the last K on the tape.
    pub fn calls(&self, steps: usize) -> Vec<Call> {
        let mut calls = vec![Call::Off; steps - self.k];
        calls.resize(steps, Call::On);
        calls
    }
}

/// `√ᾱ sg(x_0) + √(1 − ᾱ) ε` at the last timestep, and the mean of the last step from there: `[b, c, h, w]`, on the tape through
/// this one step alone.
pub fn renoised_sample<D: Denoiser>(chain: &TapedChain<'_, D>, original: &Tensor<4>, epsilon: Tensor<4>) -> Tensor<4> {
    let last = chain.scheduler.timesteps().len() - 1;
    let rows = original.dims()[0];
    // Euler's continuous time is negative where σ < 1.
    let (steps, timestep) = (vec![last; rows], chain.scheduler.timesteps()[last].max(0.0));
    let noised = chain.scheduler.add_noise(original.clone().without_autodiff(), epsilon, &vec![timestep; rows]);
    // `add_noise` gives what the network sees; samplers that step along σ hold the same unscaled.
    let scale = chain.scheduler.scale_model_input(noised.ones_like(), &steps);
    let sample = noised / scale;
    let output = chain.model_output(Call::On, last, &sample);
    chain.scheduler.transition(output, &steps, sample).prev_sample_mean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(draft: &Draft, steps: usize) -> Vec<String> {
        let section = serde_json::json!({ "name": "ddim", "num_inference_steps": steps });
        let mut findings = Vec::new();
        draft.findings(&serde_json::from_value(section).unwrap(), &mut findings);
        findings
    }

    #[test]
    fn published_defaults_are_fine_and_what_is_out_of_range_is_named() {
        let whole = Draft { k: 20, ..Draft::default() };
        let low_variance = Draft { num_lv_samples: 2, ..Draft::default() };
        for fine in [&Draft::default(), &whole, &low_variance] {
            assert!(findings(fine, 20).is_empty(), "{fine:?}");
        }
        let one = |draft: Draft, steps: usize| {
            let found = findings(&draft, steps);
            assert_eq!(found.len(), 1, "{found:?}");
            found.into_iter().next().unwrap()
        };
        assert!(one(whole, 19).contains("algo.draft.k is 20; expected 1 to 19"));
        assert!(one(Draft { k: 0, ..Draft::default() }, 20).contains("algo.draft.k is 0"));
        assert!(one(Draft { k: 2, ..low_variance }, 20).contains("num_lv_samples is 2 with k = 2"));
        assert!(one(Draft { batch_size: 0, ..Draft::default() }, 20).contains("algo.draft.batch_size is 0"));
        assert!(one(Draft { grad_scale: f64::NAN, ..Draft::default() }, 20).contains("algo.draft.grad_scale is NaN"));
        assert!(one(Draft { guidance_scale: -1.0, ..Draft::default() }, 20).contains("algo.draft.guidance_scale is -1"));
    }

    #[test]
    fn the_last_k_steps_are_on_the_tape() {
        let draft = Draft { k: 2, ..Draft::default() };
        assert_eq!(draft.calls(4), [Call::Off, Call::Off, Call::On, Call::On]);
        assert_eq!(draft.calls(2), [Call::On; 2]);
    }
}
