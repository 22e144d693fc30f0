//! SRPO: one short step from a known noise, and a reward that holds two texts against each other (arXiv 2509.06942).
//!
//! | paper and code (`fastvideo/SRPO.py`) | here |
//! |---|---|
//! | Direct-Align (section 3.1) | [`recovered`](super::direct_align::recovered) |
//! | `train_timestep` 5 25 of 50 steps, before the time shift | `min_time`, `max_time`: the last and the first of these as shares of time |
//! | `timestep_length`, 1000 levels between the two | the training timesteps between the two |
//! | `groundtruth_ratio`; `mid_timestep`, the random level at which both branches end | `groundtruth_ratio`; [`Times::steps`] |
//! | `discount_pos`, `discount_inv`, k in `SRP_cfg` | `denoise_discount`, `inversion_discount` |
//! | control words, one of a list at each update | `positive_words`, `negative_words`, one of a list at each micro-batch |
//! | `SRP_cfg(p₊, p₋)` = (1 + k) r(p₊) − r(p₋) | `semantic_relative_preference` |
//! | denoising branch: `SRP_cfg(p₊, p₋)`; inversion branch: `SRP_cfg(p₋, p₊)` | steps 3 and 4 of the loop |
//! | relu(0.7 − r), mean over both branches | `refl_loss`, `margin` |
//!
//! What the network predicts has the opposite effect on the image in the inversion. With the two texts exchanged there, both branches push
//! it the same way, the first mostly to the positive text, the second mostly away from the negative one. The released code has CLIP's
//! similarity for a reward, encodes the image once, and holds differences of text features against it; here the reward is asked twice, and
//! may be any. The code's noise levels are those of a flow model; the shares of time are the same, the noise at them is not. The code divides
//! the loss by `gradient_accumulation_steps`, 2 in the script: one for each branch. It gives all images of an update one noise; here each has its own.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::algorithm::{Algorithm, Driver, RewardDriven};
use crate::config::TrainConfig;
use crate::direct::direct_align::{Times, recovered};
use crate::direct::{self, Sampling, ScoredBatch};
use crate::environment::Environment;
use crate::losses::{refl_loss, semantic_relative_preference};
use crate::plan::Demand;
use crate::ranks::Items;
use crate::regularizer::{Regularizer, SampledBatch};
use crate::run::{Run, Values};

/// The knobs of `[algo.srpo]`. The defaults are those of `SRPO_training_hpsv2.sh`, for the reward HPS v2.1.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Srpo {
    /// Prompts per micro-batch, one image each; at least 1 (1 on each of 32 GPUs).
    pub batch_size: usize,
    /// The cleanest noise level that trains, as a share of the training timesteps, from 0; 0 is the clean image (0.5).
    pub min_time: f64,
    /// The noisiest level that trains, up to 1; 1 is pure noise. At least 0.02 above `min_time` (0.9).
    pub max_time: f64,
    /// Share of the range of times that the known noise recovers, 0 to 1; the network's step has the length of the rest (0.9).
    pub groundtruth_ratio: f64,
    /// k of the denoising branch at `min_time` and at `max_time`, linear between; at least 0 (0.1 and 0.25).
    pub denoise_discount: [f64; 2],
    /// Whether an inversion is trained on as well. Without words, it works against the reward (true).
    pub inversion: bool,
    /// k of the inversion branch at `min_time` and at `max_time`, linear between; at least 0 (0.3 and 0.01).
    pub inversion_discount: [f64; 2],
    /// Words before the prompt that the image should fit, as `word. prompt`; none: the prompt alone. If both lists are empty, the reward is
    /// k times the plain one (Natural-lighting, Detail, Detailed, Real).
    pub positive_words: Vec<String>,
    /// Words before the prompt that the image should not fit; none: the prompt alone (Concept art, Painting, Anime, Flat, Oil).
    pub negative_words: Vec<String>,
    /// Preferences above this value give no gradient; in the reward's own units (0.7 for HPS v2.1, far above what it reaches).
    pub margin: f64,
    /// Factor of the reward's loss (1).
    pub grad_scale: f64,
    /// Classifier-free guidance scale while training, at least 0; 1 for no guidance (1 to sample and 3.5 in the step, for FLUX).
    pub guidance_scale: f64,
    /// Prompt that guidance steers away from while training; absent: no text.
    pub negative_prompt: Option<String>,
}

impl Default for Srpo {
    fn default() -> Self {
        let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect();
        Self {
            batch_size: 1,
            min_time: 0.5,
            max_time: 0.9,
            groundtruth_ratio: 0.9,
            denoise_discount: [0.1, 0.25],
            inversion: true,
            inversion_discount: [0.3, 0.01],
            positive_words: words(&["Natural-lighting", "Detail", "Detailed", "Real"]),
            negative_words: words(&["Concept art", "Painting", "Anime", "Flat", "Oil"]),
            margin: 0.7,
            grad_scale: 1.0,
            guidance_scale: 3.5,
            negative_prompt: None,
        }
    }
}

impl<D: Denoiser> RewardDriven<D> for Srpo {
    fn train(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>, regularizer: &mut Regularizer) -> Result<(), Error> {
        let regularizer = &*regularizer;
        direct::train(run, environment, self.sampling(), |model, environment, scheduler, start| {
            // 1. `start` has prompts, their embeddings, and the noise ε_gt to start from, which stays known. The two texts that each image is
            // scored by.
            let lists = [&self.positive_words, &self.negative_words];
            let [positive, negative] = &lists.map(|words| with_word(words, &start.prompts, start.draw.number));

            // 2. Sample the clean latents x_0 without gradient.
            let mut chain = start.chain(&model.denoiser, scheduler);
            let clean = chain.rollout(start.latents.clone());
            let timesteps = chain.scheduler.num_train_timesteps();
            let [denoise, invert] = self.times().steps(timesteps, start.draw);

            // 3. Denoising: noise x_0, take one short step with gradient, recover, decode, and hold the two texts against each other.
            let latents = recovered(&chain, &clean, &start.latents, denoise);
            let images = environment.decode(latents.clone());
            let k = self.times().discount(self.denoise_discount, denoise, timesteps);
            let preference = relative_preference(environment, images.clone(), [positive, negative], k)?;
            let mut losses = vec![refl_loss(preference.clone(), self.margin, self.grad_scale)];

            // 4. Inversion: the same in the direction of the noise, with the texts exchanged.
            if self.inversion {
                let images = environment.decode(recovered(&chain, &clean, &start.latents, invert));
                let k = self.times().discount(self.inversion_discount, invert, timesteps);
                let preference = relative_preference(environment, images, [negative, positive], k)?;
                losses.push(refl_loss(preference, self.margin, self.grad_scale));
            }
            let (loss, visited) = (Tensor::cat(losses, 0).mean(), chain.visited);

            // 5. The journal has the rewards of the prompts themselves; then the regulariser, on the same tape.
            let mut scored = environment.score(images.without_autodiff(), &start.prompts)?;
            scored.observed.push(("relative_preference".into(), Values::from(&preference)));
            let sampled = SampledBatch { visited: &visited, prompts: &start.prompts, size: environment.size };
            let regularization = regularizer.loss(model, environment, scheduler, sampled, start.draw)?;

            // 6. Then `train` goes backward.
            Ok(ScoredBatch { start, visited, latents, scored, loss, regularization })
        })
    }

    fn arithmetic(&self, config: &TrainConfig) -> String {
        let branches = if self.inversion { "two short ones" } else { "one short one" };
        self.sampling().arithmetic(config, &format!("takes {} steps, then {branches} on the tape", config.num_inference_steps()))
    }

    fn demand(&self, _: &TrainConfig) -> Demand {
        let branches = if self.inversion { 2 } else { 1 };
        // Each decoded image is scored for two texts.
        Demand { scored: 2, ..self.sampling().demand(branches, branches) }
    }

    fn needs_gradient(&self) -> bool {
        true
    }

    fn items(&self) -> Items {
        Items::of("algo.srpo.batch_size", self.batch_size)
    }

    fn learning_test(&self) -> &'static [&'static str] {
        &[
            "run.num_train_steps=8",
            "scheduler.num_inference_steps=6",
            // Brightness knows no text: an inversion would only work against it.
            "algo.srpo.inversion=false",
            "algo.srpo.min_time=0.1",
            // A short step at a discount moves an image little.
            "algo.srpo.grad_scale=10.0",
            "optimizer.learning_rate=1e-2",
            "preview.num_inference_steps=6",
        ]
    }
}

/// (1 + k) times the reward `[b]` of `images` under the first texts, minus that under the second; one text per image.
fn relative_preference<D: Denoiser>(
    environment: &Environment<D>,
    images: Tensor<4>,
    [first, second]: [&Vec<String>; 2],
    k: f64,
) -> Result<Tensor<1>, Error> {
    let of_first = environment.reward_of_images(images.clone(), first)?;
    let of_second = if first == second { of_first.clone() } else { environment.reward_of_images(images, second)? };
    Ok(semantic_relative_preference(of_first, of_second, k))
}

/// The prompts with one of `words` before each, the next one at the next micro-batch `number`; the prompts alone if there are no words.
fn with_word(words: &[String], prompts: &[String], number: u64) -> Vec<String> {
    if words.is_empty() {
        return prompts.to_vec();
    }
    let word = &words[(number % words.len() as u64) as usize];
    prompts.iter().map(|prompt| format!("{word}. {prompt}")).collect()
}

impl Algorithm for Srpo {
    fn driver(&self) -> Driver<'_> {
        Driver::Reward(self)
    }

    fn findings(&self, _: &TrainConfig, findings: &mut Vec<String>) {
        let Self { min_time, max_time, groundtruth_ratio, margin, grad_scale, .. } = self;
        self.sampling().findings("srpo", findings);
        // Of numbers that are none, no comparison holds.
        if !(*min_time >= 0.0 && *max_time <= 1.0 && max_time - min_time >= Times::MIN_RANGE - 1e-9) {
            findings.push(format!(
                "algo.srpo trains at times from min_time {min_time} to max_time {max_time}; expected 0 <= min_time, max_time <= 1, and at least \
                 {} between them",
                Times::MIN_RANGE
            ));
        }
        if !(0.0..=1.0).contains(groundtruth_ratio) {
            findings.push(format!("algo.srpo.groundtruth_ratio is {groundtruth_ratio}; expected 0 to 1, a share of the range of times"));
        }
        for (name, ends) in [("denoise_discount", self.denoise_discount), ("inversion_discount", self.inversion_discount)] {
            if !ends.iter().all(|k| *k >= 0.0 && k.is_finite()) {
                findings.push(format!("algo.srpo.{name} is {ends:?}; expected two numbers of at least 0, at min_time and at max_time"));
            }
        }
        for (name, words) in [("positive_words", &self.positive_words), ("negative_words", &self.negative_words)] {
            if words.iter().any(|word| word.trim().is_empty()) {
                findings.push(format!("algo.srpo.{name} has an empty word; expected words, or an empty list for the prompt alone"));
            }
        }
        for (name, value) in [("margin", margin), ("grad_scale", grad_scale)] {
            if !value.is_finite() {
                findings.push(format!("algo.srpo.{name} is {value}; expected a number"));
            }
        }
    }

    fn default_preset(&self) -> &'static str {
        "shapes"
    }
}

impl Srpo {
    fn sampling(&self) -> Sampling<'_> {
        let Self { batch_size, guidance_scale, negative_prompt, .. } = self;
        Sampling { batch_size: *batch_size, guidance_scale: *guidance_scale, negative_prompt: negative_prompt.as_deref() }
    }

    fn times(&self) -> Times {
        Times { min: self.min_time, max: self.max_time, length: 1.0 - self.groundtruth_ratio }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AlgorithmConfig;

    fn findings(srpo: &Srpo) -> Vec<String> {
        let config = TrainConfig::with_steps(AlgorithmConfig::Srpo(srpo.clone()), 25);
        let mut findings = Vec::new();
        srpo.findings(&config, &mut findings);
        findings
    }

    #[test]
    fn published_defaults_are_fine_and_what_is_out_of_range_is_named() {
        let default = Srpo::default;
        let plain = Srpo { positive_words: Vec::new(), negative_words: Vec::new(), ..default() };
        for fine in [default(), plain, Srpo { min_time: 0.98, max_time: 1.0, ..default() }, Srpo { min_time: 0.0, ..default() }] {
            assert!(findings(&fine).is_empty(), "{fine:?}");
        }
        let bad = [
            (Srpo { min_time: -0.1, ..default() }, "from min_time -0.1 to max_time 0.9"),
            (Srpo { max_time: 1.1, ..default() }, "from min_time 0.5 to max_time 1.1"),
            (Srpo { max_time: 0.51, ..default() }, "at least 0.02 between them"),
            (Srpo { min_time: f64::NAN, ..default() }, "from min_time NaN"),
            (Srpo { groundtruth_ratio: 1.5, ..default() }, "algo.srpo.groundtruth_ratio is 1.5"),
            (Srpo { denoise_discount: [-0.1, 0.2], ..default() }, "algo.srpo.denoise_discount is [-0.1, 0.2]"),
            (Srpo { inversion_discount: [0.1, f64::INFINITY], ..default() }, "algo.srpo.inversion_discount is [0.1, inf]"),
            (Srpo { negative_words: vec![" ".into()], ..default() }, "algo.srpo.negative_words has an empty word"),
            (Srpo { margin: f64::NAN, ..default() }, "algo.srpo.margin is NaN"),
            (Srpo { grad_scale: f64::INFINITY, ..default() }, "algo.srpo.grad_scale is inf"),
            (Srpo { batch_size: 0, ..default() }, "algo.srpo.batch_size is 0"),
            (Srpo { guidance_scale: -1.0, ..default() }, "algo.srpo.guidance_scale is -1"),
        ];
        for (bad, expected) in bad {
            let found = findings(&bad);
            assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
        }
    }

    #[test]
    fn the_words_take_turns_and_no_words_leave_the_prompt() {
        let (words, prompts) = (["Flat", "Oil"].map(String::from), ["a fox".to_string(), "a map".into()]);
        assert_eq!(with_word(&words, &prompts, 1), ["Oil. a fox", "Oil. a map"]);
        assert_eq!(with_word(&words, &prompts, 2), ["Flat. a fox", "Flat. a map"]);
        assert_eq!(with_word(&[], &prompts, 1), prompts);
    }
}
