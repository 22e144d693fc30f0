//! Reinforcement learning on the forward process: the code that AWM, NFT and DGPO share.
//!
//! DDPO asks how likely the *steps* of a sampled chain are, and so keeps whole chains of a sampler that draws noise. These algorithms ask how
//! well the policy denoises the finished *images*: they noise the clean latents again, as in pre-training, and an image's advantage decides
//! whether its denoising loss is lowered or raised. Any single-step sampler serves, with or without noise; only the last latents are kept; and
//! an image is trained on at as few noise levels as one likes.
//!
//! | papers (for flow models) | here |
//! |---|---|
//! | x_0, the clean latents that were sampled | [`Rollout::latents`](crate::policy::rollout::Rollout::latents), the only entry |
//! | x_t = (1 − t) x_0 + t ε | the model's own forward process |
//! | t | [`Predictions::times`], σ / (α + σ): the flow model's time with as much noise for the signal |
//! | target v = ε − x_0, and v_θ | [`Predictions::target`] and [`Predictions::prediction`]: what the network predicts (ε, v or x_0), times what makes its error that of a velocity (`velocity_scale`) |
//! | ℓ_θ = ‖v_θ(x_t) − v‖² | the mean over c, h, w of their squared difference |
//! | K timesteps per image | `train.num_timesteps`: one uniform timestep from each of K equal parts of `train.timestep_range` |
//! | v_old, the policy that drew the images | [`Role::Sampler`]; in NFT, whose average draws them, [`Role::Average`] |
//! | a moving average of the policy | [`Role::Average`], which follows after each epoch as [`Decay`] says |
//! | v_ref | the base model: the frozen weights without the factors |
//! | A, clipped to ± A_max | from the rewards of a prompt's images, [`GroupStatistics`] |
//!
//! Predictions carry the guidance of `train.guidance_scale`, 1 in the papers. The images are drawn with that of `sample.guidance_scale`: models
//! that draw badly without guidance, as those of Stable Diffusion's class do, learn nothing good from what they draw without it.

pub mod awm;
pub mod dgpo;
pub mod nft;
mod policies;
mod sections;
mod training;

use burn::tensor::Tensor;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::algorithm::{Kept, RewardDriven};
use crate::config::TrainConfig;
use crate::environment::Environment;
use crate::plan::{AtOnce, Demand};
use crate::policy::EpochCounts;
use crate::policy::advantages::GroupStatistics;
use crate::ranks::Items;
use crate::regularizer::{Regularizer, RegularizerConfig};
use crate::run::{Observed, Run};

pub use policies::{Decay, Role};
pub use sections::{SampleSection, TrainSection};

/// An algorithm on the forward process: its knobs, the policies that it compares, and its loss.
pub trait ForwardProcess: Sync {
    /// The knobs that all of them have.
    fn shared(&self) -> Shared<'_>;

    /// The policies whose predictions the loss needs besides the trained one's.
    fn compares_with(&self) -> &'static [Role];

    /// How the moving average follows the policy; `None` if there is none.
    fn average(&self) -> Option<Decay> {
        None
    }

    /// Whether the moving average draws the images, rather than the policy itself.
    fn average_samples(&self) -> bool {
        false
    }

    /// Whether the images of a prompt are trained on together, at one timestep and with one noise.
    fn trains_on_groups(&self) -> bool {
        false
    }

    /// The loss of each row, `[b]`, on the tape, and values for the journal.
    fn loss(&self, noised: &Predictions) -> (Tensor<1>, Observed);
}

/// The knobs that all algorithms on the forward process have.
#[derive(Debug, Clone, Copy)]
pub struct Shared<'a> {
    /// The algorithm's name in the config.
    pub algo: &'static str,
    /// `[algo.<name>.sample]`.
    pub sample: &'a SampleSection,
    /// `[algo.<name>.train]`.
    pub train: &'a TrainSection,
    /// `[algo.<name>.advantages]`.
    pub advantages: &'a GroupStatistics,
}

/// The most that one unit of a network's prediction counts for the clean image x̂_0, lest the noisiest rows drown the others. For ε the factor is √(1 − ᾱ_t) / √ᾱ_t, which grows to 14.6 at the end of
/// Stable Diffusion's schedule; it passes 5 at 0.8 of it.
const MOST: f64 = 5.0;

/// What a network's predictions are multiplied by, so that their errors are those of a flow model's velocity at the `time` with as much noise for the
/// signal: 1 / (1 − t) for ε. `slope` is how far one unit of the prediction moves x̂_0, of which at most [`MOST`] counts; a velocity moves it by t.
fn velocity_scale(slope: f64, time: f64) -> f64 {
    slope.min(MOST) / time
}

/// The noised latents of `b` images, and what the policies predict from them. All predictions are scaled to the errors of a velocity.
#[derive(Debug)]
pub struct Predictions {
    /// The trained policy's prediction, `[b, c, h, w]`, on the tape.
    pub prediction: Tensor<4>,
    /// What it should be, `[b, c, h, w]`.
    pub target: Tensor<4>,
    /// Each image's advantage, clipped, `[b]`.
    pub advantages: Tensor<1>,
    /// t of each row, the noise's share σ / (α + σ): 0 is no noise, 1 pure noise; `[b]`.
    pub times: Tensor<1>,
    /// The predictions of the policies that the algorithm compares with, off the tape.
    others: Vec<(Role, Tensor<4>)>,
}

impl Predictions {
    /// The prediction of another policy, `[b, c, h, w]`, off the tape.
    ///
    /// # Panics
    /// When the algorithm does not say that it compares with it.
    pub fn of(&self, role: Role) -> Tensor<4> {
        let found = self.others.iter().find(|(known, _)| *known == role);
        found.map(|(_, prediction)| prediction.clone()).unwrap_or_else(|| panic!("{role:?} is not among compares_with"))
    }
}

impl<A: ForwardProcess, D: Denoiser> RewardDriven<D> for A {
    fn train(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>, regularizer: &mut Regularizer) -> Result<(), Error> {
        training::train(self, run, environment, regularizer)
    }

    fn backwards_per_minibatch(&self, _: usize) -> usize {
        self.shared().train.num_timesteps
    }

    fn items(&self) -> Items {
        let Shared { algo, sample, train, .. } = self.shared();
        let size = if self.trains_on_groups() { sample.images_per_prompt.max(1) } else { 1 };
        Items { count: train.batch_size / size, size, key: format!("algo.{algo}.train.batch_size") }
    }

    fn kept(&self) -> Kept {
        Kept::Images(self.shared().sample.num_images())
    }

    fn demand(&self, _: &TrainConfig) -> Demand {
        let Shared { sample, train, .. } = self.shared();
        let drawn = AtOnce::new("sample.batch_size", sample.batch_size, sample.guidance_scale);
        Demand::through_steps(drawn, AtOnce::new("train.batch_size", train.batch_size, train.guidance_scale), train.num_inner_epochs)
    }

    fn needs_terms(&self) -> Option<String> {
        let Shared { algo, advantages, .. } = self.shared();
        advantages.per_reward.then(|| format!("algo.{algo}.advantages.per_reward"))
    }

    fn policies_kept(&self) -> usize {
        self.compares_with().iter().filter(|role| **role != Role::Base).count()
    }

    fn default_regularizer(&self) -> RegularizerConfig {
        RegularizerConfig::None(Default::default())
    }

    fn arithmetic(&self, config: &TrainConfig) -> String {
        let Shared { sample, train, .. } = self.shared();
        let images_per_update = train.batch_size * config.optimizer.gradient_accumulation_steps;
        let counts = EpochCounts { num_images: sample.num_images(), images_per_update, num_inner_epochs: train.num_inner_epochs };
        counts.arithmetic(config, &format!("{} timesteps", train.num_timesteps))
    }

    fn learning_test(&self) -> &'static [&'static str] {
        // On a trained model: what is learnt is how well it denoises its own images, and random weights denoise none. Few steps, to take
        // seconds.
        &[
            "run.num_train_steps=8",
            "model.path=embedded:shapes",
            r#"prompts.list=["a red circle", "two blue squares", "a green triangle", "three yellow crosses"]"#,
            r"lora.targets=^unet\.",
            "scheduler.num_inference_steps=4",
            "optimizer.learning_rate=5e-3",
            r#"preview.prompts=["a blue circle", "two red triangles"]"#,
            "preview.num_inference_steps=4",
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vp_schedulers::{PredictionType, TrainingLevel};

    /// A prediction that is off by δ implies another clean image and other noise, and with them another velocity ε − x_0 of the flow model.
    #[test]
    fn scaled_errors_are_those_of_a_velocity() {
        let (x_0, noise, delta) = (0.7, -0.4, 0.01);
        for signal in [0.98f64, 0.6, 0.28] {
            let level = (1.0 - signal * signal).sqrt();
            let x_t = signal * x_0 + level * noise;
            let implied = |kind| match kind {
                PredictionType::Epsilon => ((x_t - level * (noise + delta)) / signal, noise + delta),
                PredictionType::Sample => (x_0 + delta, (x_t - signal * (x_0 + delta)) / level),
                PredictionType::VPrediction => {
                    let v = signal * noise - level * x_0 + delta;
                    (signal * x_t - level * v, level * x_t + signal * v)
                }
            };
            let time = level / (signal + level);
            for kind in [PredictionType::Epsilon, PredictionType::Sample, PredictionType::VPrediction] {
                let scale = velocity_scale(kind.slope_of_original(TrainingLevel { signal, noise: level }), time);
                let (clean, drawn) = implied(kind);
                let error = ((drawn - clean) - (noise - x_0)).abs();
                assert!((error / delta - scale).abs() < 1e-9, "{kind:?} at {signal}: {} and {scale}", error / delta);
            }
            assert!((velocity_scale(level / signal, time) - 1.0 / (1.0 - time)).abs() < 1e-12);
        }
        // The noisiest rows count no more than an error that moves the clean image five times as far.
        assert_eq!(velocity_scale(14.6, 0.936), 5.0 / 0.936);
    }
}
