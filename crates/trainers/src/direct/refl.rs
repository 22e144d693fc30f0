//! ReFL: reward feedback learning (ImageReward, arXiv 2304.05977, algorithm 1).
//!
//! | paper | here |
//! |---|---|
//! | T, the number of denoising steps | `scheduler.num_inference_steps` |
//! | \[T1, T2\], the range of the step on the tape, counted from the end | `min_mid_step..=max_mid_step`, counted from the start |
//! | λ | `grad_scale` |
//! | φ(r) | `relu(margin − r)` |
//! | L_pre | `[regularizer.<name>]` |
//!
//! It differs from the released `ReFL.py` where that hurt its users: a regulariser is on by default, other rewards are watched, optional
//! guidance makes training draw as inference does, and the image size is the model's own. `ReFL.py` gives the network the index of the step
//! on the tape as its timestep, and the scheduler the timestep of the step before; here both get the step's own timestep. L_pre is added to
//! the reward's loss, in the same update.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::noise::Purpose;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::algorithm::{Algorithm, Driver, RewardDriven};
use crate::config::TrainConfig;
use crate::direct::{self, Call, Sampling, ScoredBatch, TapedChain};
use crate::environment::Environment;
use crate::losses::refl_loss;
use crate::plan::Demand;
use crate::ranks::Items;
use crate::regularizer::{Regularizer, SampledBatch};
use crate::run::Run;

/// The random late step that ReFL puts on the tape.
const MID_TIMESTEP: Purpose = Purpose::numbered(4);

/// The knobs of `[algo.refl]`. The defaults are those of `ReFL.py`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Refl {
    /// Prompts per micro-batch, one image each; at least 1 (2).
    pub batch_size: usize,
    /// First step that may be the one on the tape, counted from 0 (30 of 40).
    pub min_mid_step: usize,
    /// Last step that may be the one on the tape, counted from 0 (39 of 40).
    pub max_mid_step: usize,
    /// Rewards above this value give no gradient; in the reward's own units (2 for ImageReward).
    pub margin: f64,
    /// Factor of the reward's loss (1e-3).
    pub grad_scale: f64,
    /// Classifier-free guidance scale while training, at least 0; 1 for no guidance, as in the paper (1).
    pub guidance_scale: f64,
    /// Prompt that guidance steers away from while training; absent: no text.
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

impl<D: Denoiser> RewardDriven<D> for Refl {
    /// Algorithm 1.
    fn train(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>, regularizer: &mut Regularizer) -> Result<(), Error> {
        let regularizer = &*regularizer;
        direct::train(run, environment, self.sampling(), |model, environment, scheduler, start| {
            // 1. `start` has prompts, their embeddings, and the noise x_T to start from.

            // 2. A random late step t: the steps before it without gradient, step t with gradient, to its prediction of the clean latents
            // x_0.
            let mid_step = start.draw.integer(MID_TIMESTEP, self.min_mid_step, self.max_mid_step);
            let mut chain = start.chain(&model.denoiser, scheduler);
            let latents = predict_clean_latents(&mut chain, start.latents.clone(), mid_step);
            let visited = chain.visited;

            // 3. Decode to an image and compute its reward r(y, z); the loss is λ φ(r).
            let scored = environment.decode_and_score(latents.clone(), &start.prompts)?;
            let loss = refl_loss(scored.rewards.clone(), self.margin, self.grad_scale);

            // 4. L_pre, on the same tape.
            let sampled = SampledBatch { visited: &visited, prompts: &start.prompts, size: environment.size };
            let regularization = regularizer.loss(model, environment, scheduler, sampled, start.draw)?;

            // 5. Then `train` goes backward.
            Ok(ScoredBatch { start, visited, latents, scored, loss, regularization })
        })
    }

    fn arithmetic(&self, config: &TrainConfig) -> String {
        let (first, last, steps) = (self.min_mid_step + 1, self.max_mid_step + 1, config.num_inference_steps());
        self.sampling().arithmetic(config, &format!("takes {first} to {last} of {steps} steps, one of them on the tape"))
    }

    fn demand(&self, _: &TrainConfig) -> Demand {
        self.sampling().demand(1, 1)
    }

    fn needs_gradient(&self) -> bool {
        true
    }

    fn items(&self) -> Items {
        Items::of("algo.refl.batch_size", self.batch_size)
    }

    fn learning_test(&self) -> &'static [&'static str] {
        &[
            "run.num_train_steps=16",
            "scheduler.num_inference_steps=10",
            "algo.refl.min_mid_step=6",
            "algo.refl.max_mid_step=8",
            "algo.refl.batch_size=4",
            // Brightness varies by about 0.01. The published grad_scale of 1e-3 is for rewards with a standard deviation of 1; with
            // brightness, the regulariser would outweigh the reward.
            "algo.refl.grad_scale=1.0",
            "optimizer.gradient_accumulation_steps=1",
            "optimizer.learning_rate=5e-3",
            "preview.guidance_scale=1.0",
        ]
    }
}

/// The sampling of algorithm 1: from standard normal noise x_T to the predicted x_0, both `[b, c, h, w]`. Only one step is on the tape.
pub fn predict_clean_latents<D: Denoiser>(chain: &mut TapedChain<'_, D>, unit: Tensor<4>, mid_step: usize) -> Tensor<4> {
    // T..t without gradient: the latents before step t are a constant.
    let latents = chain.without_gradient(unit, mid_step);
    // t with gradient: the one prediction through which the reward reaches the weights.
    let noise_pred = chain.noise_pred(Call::On, mid_step, &latents);
    // x_0 as predicted at step t; `pred_original_sample` in diffusers.
    chain.pred_original_sample(mid_step, noise_pred, latents)
}

impl Algorithm for Refl {
    fn driver(&self) -> Driver<'_> {
        Driver::Reward(self)
    }

    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        let Self { min_mid_step, max_mid_step, margin, grad_scale, .. } = self;
        let steps = config.num_inference_steps();
        self.sampling().findings("refl", findings);
        if steps > 0 && (min_mid_step > max_mid_step || *max_mid_step >= steps) {
            findings.push(format!(
                "algo.refl draws the step on the tape from {min_mid_step}..={max_mid_step}; expected min_mid_step <= max_mid_step <= {}, the last of {steps} steps",
                steps - 1
            ));
        }
        for (name, value) in [("margin", margin), ("grad_scale", grad_scale)] {
            if !value.is_finite() {
                findings.push(format!("algo.refl.{name} is {value}; expected a number"));
            }
        }
    }

    fn default_preset(&self) -> &'static str {
        "shapes"
    }
}

impl Refl {
    fn sampling(&self) -> Sampling<'_> {
        let Self { batch_size, guidance_scale, negative_prompt, .. } = self;
        Sampling { batch_size: *batch_size, guidance_scale: *guidance_scale, negative_prompt: negative_prompt.as_deref() }
    }
}
