//! DRaFT: direct reward fine-tuning (arXiv 2309.17400, algorithm 1), in the forms DRaFT, DRaFT-K and DRaFT-LV.
//!
//! | paper | here |
//! |---|---|
//! | T, the number of sampling steps | `scheduler.num_inference_steps` |
//! | K, how many of the last ones are differentiated | `k`; DRaFT is `k` = T |
//! | n_LV, how many times DRaFT-LV noises a drawn image again | `num_lv_samples`, 0 for none |
//! | r(x_0, c), maximised | loss `−grad_scale · mean(r)` |
//! | x_0 = sample(θ, x_T) | the sampler's own last sample, guidance and all |
//!
//! DRaFT-LV follows FlowBP's `trainers/sd35/draft_lv.py`: its loss is the mean over the drawn image and `num_lv_samples` new ones. All of
//! them are on the tape at once, so it needs the memory of `1 + num_lv_samples` steps.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::noise::Purpose;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::algorithm::{Algorithm, Driver, RewardDriven};
use crate::config::TrainConfig;
use crate::direct::through_sampling::{self, ThroughSampling};
use crate::direct::{Call, Sampling, StartingPoint, TapedChain};
use crate::environment::Environment;
use crate::plan::Demand;
use crate::ranks::Items;
use crate::regularizer::Regularizer;
use crate::run::{Draw, Run};

/// The noise that is added to drawn latents.
pub(super) const LOW_VARIANCE: Purpose = Purpose::numbered(17);

/// The knobs of `[algo.draft]`. The defaults are the paper's values.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Draft {
    /// Prompts per micro-batch, one image each; at least 1 (4).
    pub batch_size: usize,
    /// K, the number of last steps on the tape, 1 to `scheduler.num_inference_steps` (1).
    pub k: usize,
    /// How many times the drawn latents are noised again and denoised in one step; needs K = 1. 0 for plain DRaFT-K (2 for DRaFT-LV).
    pub num_lv_samples: usize,
    /// Factor of the reward's loss (1).
    pub grad_scale: f64,
    /// Classifier-free guidance scale while training, at least 0; 1 for no guidance (7.5).
    pub guidance_scale: f64,
    /// Prompt that guidance steers away from while training; absent: no text.
    pub negative_prompt: Option<String>,
}

impl Default for Draft {
    fn default() -> Self {
        Self { batch_size: 4, k: 1, num_lv_samples: 0, grad_scale: 1.0, guidance_scale: 7.5, negative_prompt: None }
    }
}

impl ThroughSampling for Draft {
    fn sampling(&self) -> Sampling<'_> {
        let Self { batch_size, guidance_scale, negative_prompt, .. } = self;
        Sampling { batch_size: *batch_size, guidance_scale: *guidance_scale, negative_prompt: negative_prompt.as_deref() }
    }

    /// A whole chain, the last K steps on the tape.
    fn calls(&self, num_inference_steps: usize, _: Draw) -> Vec<Call> {
        let mut calls = vec![Call::Off; num_inference_steps - self.k];
        calls.resize(num_inference_steps, Call::On);
        calls
    }

    fn grad_scale(&self) -> f64 {
        self.grad_scale
    }

    /// DRaFT-LV: the drawn latents, noised and denoised again.
    fn further_samples<D: Denoiser>(&self, chain: &TapedChain<'_, D>, latents: &Tensor<4>, start: &StartingPoint) -> Vec<Tensor<4>> {
        (0..self.num_lv_samples).map(|sample| renoised_sample(chain, latents, start.normal(LOW_VARIANCE, sample))).collect()
    }
}

impl<D: Denoiser> RewardDriven<D> for Draft {
    fn train(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>, regularizer: &mut Regularizer) -> Result<(), Error> {
        through_sampling::train(self, run, environment, regularizer)
    }

    fn arithmetic(&self, config: &TrainConfig) -> String {
        let (steps, samples) = (config.num_inference_steps(), self.num_lv_samples);
        let each = match samples {
            0 => format!("takes {steps} steps, the last {} of them on the tape", self.k),
            _ => format!("takes {steps} steps and the last one {samples} times more, {} on the tape", samples + 1),
        };
        self.sampling().arithmetic(config, &each)
    }

    fn demand(&self, _: &TrainConfig) -> Demand {
        self.sampling().demand(self.k + self.num_lv_samples, 1 + self.num_lv_samples)
    }

    fn needs_gradient(&self) -> bool {
        true
    }

    fn items(&self) -> Items {
        Items::of("algo.draft.batch_size", self.batch_size)
    }

    fn learning_test(&self) -> &'static [&'static str] {
        &["run.num_train_steps=5", "scheduler.num_inference_steps=6", "optimizer.learning_rate=1e-2", "preview.num_inference_steps=6"]
    }
}

impl Algorithm for Draft {
    fn driver(&self) -> Driver<'_> {
        Driver::Reward(self)
    }

    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        let Self { k, num_lv_samples, grad_scale, .. } = self;
        let steps = config.num_inference_steps();
        self.sampling().findings("draft", findings);
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
}

/// Noises x_0 to the last timestep, `√ᾱ sg(x_0) + √(1 − ᾱ) ε`, and returns the mean of the last step from there, `[b, c, h, w]`. Only this
/// one step is on the tape.
pub fn renoised_sample<D: Denoiser>(chain: &TapedChain<'_, D>, original: &Tensor<4>, epsilon: Tensor<4>) -> Tensor<4> {
    let last = chain.scheduler.timesteps().len() - 1;
    let rows = original.dims()[0];
    // Euler's continuous time is negative where σ < 1.
    let (steps, timestep) = (vec![last; rows], chain.scheduler.timesteps()[last].max(0.0));
    let noised = chain.scheduler.add_noise(original.clone().without_autodiff(), epsilon, &vec![timestep; rows]);
    // `add_noise` gives the network's input; samplers that step along σ work on the same latents before scaling.
    let scale = chain.scheduler.scale_model_input(noised.ones_like(), &steps);
    let sample = noised / scale;
    let output = chain.noise_pred(Call::On, last, &sample);
    chain.scheduler.transition(output, &steps, sample).prev_sample_mean
}

#[cfg(test)]
mod tests {
    use vp_core::noise::Noise;

    use super::*;
    use crate::config::AlgorithmConfig;

    fn findings(draft: &Draft, steps: usize) -> Vec<String> {
        let config = TrainConfig::with_steps(AlgorithmConfig::Draft(draft.clone()), steps);
        let mut findings = Vec::new();
        draft.findings(&config, &mut findings);
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
        let draw = Draw::new(Noise::new(0), 1);
        assert_eq!(draft.calls(4, draw), [Call::Off, Call::Off, Call::On, Call::On]);
        assert_eq!(draft.calls(2, draw), [Call::On; 2]);
    }
}
