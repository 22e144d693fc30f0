//! LeapAlign: two long steps along a real chain (arXiv 2604.15311, section 4 and algorithm 1).
//!
//! | paper | here |
//! |---|---|
//! | T, the number of sampling steps | `scheduler.num_inference_steps` |
//! | k > j, two steps of the chain, drawn at random | `leapt_steps`: the earlier and the later one |
//! | the leap trajectory, x_k → x_j → x_0 (equations 4 to 9) | [`leap_trajectory`](super::leaps::leap_trajectory) |
//! | α, the gradient discounting factor (equation 10) | `nested_grad_scale` |
//! | w_sim, τ (equation 12) | `trajectory_similarity`, `min_distance` |
//! | λ, the threshold of the hinge (equation 11) | `margin` |
//! | r(x_0), the reward of the real image | the reward of the chain's last sample, decoded |
//!
//! The authors have rectified flow. [`leaps`](super::leaps) says what their formulas become for a model whose noise and signal have unit
//! variance together. FlowBP's `trainers/sd35/leapalign.py` agrees with the paper. Both gradients of a single leap are kept whole, and only
//! their product is scaled: with `nested_grad_scale` 0, both leaps still train.

use serde::{Deserialize, Serialize};
use vp_core::noise::Purpose;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::algorithm::{Algorithm, Driver, RewardDriven};
use crate::config::TrainConfig;
use crate::direct::leaps::{Leaps, leap_trajectory};
use crate::direct::{self, Sampling, ScoredBatch};
use crate::environment::Environment;
use crate::losses::{leap_align_loss, trajectory_similarity};
use crate::plan::Demand;
use crate::ranks::Items;
use crate::regularizer::{Regularizer, SampledBatch};
use crate::run::{Draw, Run, Values};

/// The first of the two steps to be drawn, which may be the earlier or the later.
const FIRST_STEP: Purpose = Purpose::named("leap_align.first_step");
/// The second one, among the steps that are left.
const SECOND_STEP: Purpose = Purpose::named("leap_align.second_step");

/// The knobs of `[algo.leap_align]`. The defaults are the paper's values for the reward HPS v2.1.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeapAlign {
    /// Prompts per micro-batch, one image each; at least 1 (64 on 16 GPUs).
    pub batch_size: usize,
    /// Factor of the gradient that passes through the network at the later of the two steps, 0 to 1; 0 drops it, 1 keeps all of it (0.3; 0.1
    /// for PickScore and HPS v3).
    pub nested_grad_scale: f64,
    /// The least distance between a leap's end and the real latents that the weights tell apart, above 0; mean absolute difference (0.1).
    pub min_distance: f64,
    /// Rewards above this value give no gradient; in the reward's own units (0.55 for HPS v2.1, 0.4 for PickScore, 13.5 for HPS v3).
    pub margin: f64,
    /// Factor of the reward's loss (1).
    pub grad_scale: f64,
    /// Classifier-free guidance scale while training, at least 0; 1 for no guidance (3.5, for FLUX).
    pub guidance_scale: f64,
    /// Prompt that guidance steers away from while training; absent: no text.
    pub negative_prompt: Option<String>,
}

impl Default for LeapAlign {
    fn default() -> Self {
        Self {
            batch_size: 4,
            nested_grad_scale: 0.3,
            min_distance: 0.1,
            margin: 0.55,
            grad_scale: 1.0,
            guidance_scale: 3.5,
            negative_prompt: None,
        }
    }
}

impl<D: Denoiser> RewardDriven<D> for LeapAlign {
    /// Algorithm 1.
    fn train(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>, regularizer: &mut Regularizer) -> Result<(), Error> {
        let regularizer = &*regularizer;
        direct::train(run, environment, self.sampling(), |model, environment, scheduler, start| {
            // 1. `start` has prompts, their embeddings, and the noise x_T to start from.

            // 2. Two steps k > j of the chain; the whole chain without gradient, and two leaps with gradient along it.
            let steps = leapt_steps(scheduler.timesteps().len(), start.draw);
            let mut chain = start.chain(&model.denoiser, scheduler);
            let Leaps { latents, distances } = leap_trajectory(&mut chain, start.latents.clone(), steps, self.nested_grad_scale);
            let visited = chain.visited;

            // 3. Decode the real x_0 to an image and compute its reward; the loss is w_sim max(0, λ − r(x_0)).
            let weights = trajectory_similarity(distances, self.min_distance);
            let mut scored = environment.decode_and_score(latents.clone(), &start.prompts)?;
            scored.observed.push(("leap_weight".into(), Values::from(&weights)));
            let loss = leap_align_loss(scored.rewards.clone(), weights, self.margin, self.grad_scale);

            // 4. Add the regulariser, on the same tape.
            let sampled = SampledBatch { visited: &visited, prompts: &start.prompts, size: environment.size };
            let regularization = regularizer.loss(model, environment, scheduler, sampled, start.draw)?;

            // 5. Then `train` goes backward.
            Ok(ScoredBatch { start, visited, latents, scored, loss, regularization })
        })
    }

    fn arithmetic(&self, config: &TrainConfig) -> String {
        self.sampling().arithmetic(config, &format!("takes {} steps, and two leaps along them on the tape", config.num_inference_steps()))
    }

    fn demand(&self, _: &TrainConfig) -> Demand {
        self.sampling().demand(2, 1)
    }

    fn needs_gradient(&self) -> bool {
        true
    }

    fn items(&self) -> Items {
        Items::of("algo.leap_align.batch_size", self.batch_size)
    }

    fn learning_test(&self) -> &'static [&'static str] {
        &["run.num_train_steps=8", "scheduler.num_inference_steps=6", "optimizer.learning_rate=1e-2", "preview.num_inference_steps=6"]
    }
}

impl Algorithm for LeapAlign {
    fn driver(&self) -> Driver<'_> {
        Driver::Reward(self)
    }

    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        let Self { nested_grad_scale, min_distance, margin, grad_scale, .. } = self;
        self.sampling().findings("leap_align", findings);
        if config.num_inference_steps() == 1 {
            findings.push("scheduler.num_inference_steps is 1; algo.leap_align leaps between two steps: expected at least 2".into());
        }
        if !(0.0..=1.0).contains(nested_grad_scale) {
            findings.push(format!("algo.leap_align.nested_grad_scale is {nested_grad_scale}; expected 0 to 1, a share of the gradient"));
        }
        if !(*min_distance > 0.0 && min_distance.is_finite()) {
            findings.push(format!("algo.leap_align.min_distance is {min_distance}; expected a number above 0, which bounds the weights"));
        }
        for (name, value) in [("margin", margin), ("grad_scale", grad_scale)] {
            if !value.is_finite() {
                findings.push(format!("algo.leap_align.{name} is {value}; expected a number"));
            }
        }
    }

    fn default_preset(&self) -> &'static str {
        "shapes"
    }
}

impl LeapAlign {
    fn sampling(&self) -> Sampling<'_> {
        let Self { batch_size, guidance_scale, negative_prompt, .. } = self;
        Sampling { batch_size: *batch_size, guidance_scale: *guidance_scale, negative_prompt: negative_prompt.as_deref() }
    }
}

/// Two of `steps` steps, all pairs alike: k of the paper, the earlier one, and j. There must be at least two.
fn leapt_steps(steps: usize, draw: Draw) -> [usize; 2] {
    let first = draw.integer(FIRST_STEP, 0, steps - 1);
    let other = draw.integer(SECOND_STEP, 0, steps - 2);
    // The steps that are left, without a gap at the first one.
    let second = other + usize::from(other >= first);
    [first.min(second), first.max(second)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use vp_core::noise::Noise;

    use super::*;
    use crate::config::AlgorithmConfig;

    fn findings(leap_align: &LeapAlign, steps: usize) -> Vec<String> {
        let config = TrainConfig::with_steps(AlgorithmConfig::LeapAlign(leap_align.clone()), steps);
        let mut findings = Vec::new();
        leap_align.findings(&config, &mut findings);
        findings
    }

    #[test]
    fn published_defaults_are_fine_and_what_is_out_of_range_is_named() {
        let default = LeapAlign::default;
        for fine in [default(), LeapAlign { nested_grad_scale: 0.0, ..default() }, LeapAlign { nested_grad_scale: 1.0, ..default() }] {
            assert!(findings(&fine, 2).is_empty(), "{fine:?}");
        }
        let bad = [
            (LeapAlign { nested_grad_scale: 1.1, ..default() }, "algo.leap_align.nested_grad_scale is 1.1"),
            (LeapAlign { nested_grad_scale: -0.1, ..default() }, "algo.leap_align.nested_grad_scale is -0.1"),
            (LeapAlign { nested_grad_scale: f64::NAN, ..default() }, "algo.leap_align.nested_grad_scale is NaN"),
            (LeapAlign { min_distance: 0.0, ..default() }, "algo.leap_align.min_distance is 0"),
            (LeapAlign { min_distance: f64::INFINITY, ..default() }, "algo.leap_align.min_distance is inf"),
            (LeapAlign { margin: f64::NAN, ..default() }, "algo.leap_align.margin is NaN"),
            (LeapAlign { grad_scale: f64::INFINITY, ..default() }, "algo.leap_align.grad_scale is inf"),
            (LeapAlign { batch_size: 0, ..default() }, "algo.leap_align.batch_size is 0"),
            (LeapAlign { guidance_scale: -1.0, ..default() }, "algo.leap_align.guidance_scale is -1"),
        ];
        for (bad, expected) in bad {
            let found = findings(&bad, 25);
            assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
        }
        let found = findings(&default(), 1);
        assert!(found.len() == 1 && found[0].contains("scheduler.num_inference_steps is 1"), "{found:?}");
    }

    #[test]
    fn all_pairs_of_steps_are_drawn_alike() {
        let mut counts: BTreeMap<[usize; 2], usize> = BTreeMap::new();
        for number in 1..=3000 {
            *counts.entry(leapt_steps(4, Draw::new(Noise::new(6), number))).or_default() += 1;
        }
        // Six pairs, 500 times each, with a standard deviation of 20.
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]);
        assert!(counts.values().all(|count| (400..=600).contains(count)), "{counts:?}");
        assert_eq!(leapt_steps(2, Draw::new(Noise::new(6), 1)), [0, 1]);
    }
}
