//! DRTune: deep reward tuning (arXiv 2405.00760, algorithm 1).
//!
//! | paper | here |
//! |---|---|
//! | T, the number of denoising steps | `scheduler.num_inference_steps` |
//! | K, how many of them are trained, equally spaced | `k` |
//! | m, the range of early stopping, counted from the end | `early_stop_ratio` · T, rounded |
//! | sg(x_t), the stop-gradient on the network's input | `Call::DetachedInput` |
//! | r, maximised | loss `−grad_scale · mean(r)` |
//!
//! The gradient flows from step to step only through the scheduler's linear update. So early steps get a gradient that contains no product
//! of the network's Jacobians, which could explode. The steps are drawn as in FlowBP's `trainers/sd35/drtune.py`: they are spaced over the
//! steps up to the early stop, so that all K are taken.

use serde::{Deserialize, Serialize};
use vp_core::noise::Purpose;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::algorithm::{Algorithm, Driver, RewardDriven};
use crate::config::TrainConfig;
use crate::direct::through_sampling::{self, ThroughSampling};
use crate::direct::{Call, End, Sampling};
use crate::environment::Environment;
use crate::plan::Demand;
use crate::ranks::Items;
use crate::regularizer::Regularizer;
use crate::run::{Draw, Run};

/// The random last step of a chain.
const EARLY_STOP: Purpose = Purpose::numbered(15);
/// The random first of the trained steps.
const TRAINED_STEPS: Purpose = Purpose::numbered(16);

/// The knobs of `[algo.drtune]`. The defaults are FlowBP's values.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrTune {
    /// Prompts per micro-batch, one image each; at least 1 (8 on each of 8 GPUs).
    pub batch_size: usize,
    /// K, the number of trained steps of a chain; at least 1, at most the steps of the shortest chain (3).
    pub k: usize,
    /// Share of the chain, counted from its end, within which it stops at random, 0 to 1; 0: it always runs to the last step (0.4).
    pub early_stop_ratio: f64,
    /// Factor of the reward's loss (1).
    pub grad_scale: f64,
    /// Classifier-free guidance scale while training, at least 0; 1 for no guidance (7.5; 3.5 in FlowBP for SD 3.5).
    pub guidance_scale: f64,
    /// Prompt that guidance steers away from while training; absent: no text.
    pub negative_prompt: Option<String>,
}

impl Default for DrTune {
    fn default() -> Self {
        Self { batch_size: 8, k: 3, early_stop_ratio: 0.4, grad_scale: 1.0, guidance_scale: 7.5, negative_prompt: None }
    }
}

impl ThroughSampling for DrTune {
    fn sampling(&self) -> Sampling<'_> {
        let Self { batch_size, guidance_scale, negative_prompt, .. } = self;
        Sampling { batch_size: *batch_size, guidance_scale: *guidance_scale, negative_prompt: negative_prompt.as_deref() }
    }

    /// The steps up to the random one at which this chain stops. K of them are trained, equally spaced from a random first one on.
    fn calls(&self, num_inference_steps: usize, draw: Draw) -> Vec<Call> {
        let taken = num_inference_steps + 1 - draw.integer(EARLY_STOP, 1, self.early_stop_steps(num_inference_steps));
        let stride = taken / self.k;
        let first = draw.integer(TRAINED_STEPS, 0, taken - 1 - (self.k - 1) * stride);
        let mut calls = vec![Call::Off; taken];
        calls.iter_mut().skip(first).step_by(stride).take(self.k).for_each(|call| *call = Call::DetachedInput);
        calls
    }

    fn end(&self) -> End {
        End::Prediction
    }

    fn grad_scale(&self) -> f64 {
        self.grad_scale
    }
}

impl<D: Denoiser> RewardDriven<D> for DrTune {
    fn train(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>, regularizer: &mut Regularizer) -> Result<(), Error> {
        through_sampling::train(self, run, environment, regularizer)
    }

    fn arithmetic(&self, config: &TrainConfig) -> String {
        let (steps, k) = (config.num_inference_steps(), self.k);
        self.sampling().arithmetic(config, &format!("takes {} to {steps} steps, {k} of them on the tape", self.shortest(steps)))
    }

    fn demand(&self, _: &TrainConfig) -> Demand {
        self.sampling().demand(self.k, 1)
    }

    fn needs_gradient(&self) -> bool {
        true
    }

    fn items(&self) -> Items {
        Items::of("algo.drtune.batch_size", self.batch_size)
    }

    fn learning_test(&self) -> &'static [&'static str] {
        &["run.num_train_steps=5", "scheduler.num_inference_steps=6", "optimizer.learning_rate=1e-2", "preview.num_inference_steps=6"]
    }
}

impl Algorithm for DrTune {
    fn driver(&self) -> Driver<'_> {
        Driver::Reward(self)
    }

    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        let Self { k, early_stop_ratio, grad_scale, .. } = self;
        let steps = config.num_inference_steps();
        self.sampling().findings("drtune", findings);
        if !grad_scale.is_finite() {
            findings.push(format!("algo.drtune.grad_scale is {grad_scale}; expected a number"));
        }
        if !(0.0..=1.0).contains(early_stop_ratio) {
            findings.push(format!("algo.drtune.early_stop_ratio is {early_stop_ratio}; expected a share of the chain, 0 to 1"));
            return;
        }
        let shortest = self.shortest(steps);
        if *k == 0 || (steps > 0 && *k > shortest) {
            findings.push(format!(
                "algo.drtune.k is {k}; expected 1 to {shortest}, the length of the shortest chain that early_stop_ratio {early_stop_ratio} leaves of {steps} steps"
            ));
        }
    }
}

impl DrTune {
    /// m: the number of steps, at the end of a chain of `steps`, at which it may stop; at least 1.
    fn early_stop_steps(&self, steps: usize) -> usize {
        ((steps as f64 * self.early_stop_ratio).round() as usize).max(1)
    }

    /// The number of steps of the shortest chain.
    fn shortest(&self, steps: usize) -> usize {
        steps + 1 - self.early_stop_steps(steps)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use vp_core::noise::Noise;

    use super::*;
    use crate::config::AlgorithmConfig;

    fn findings(drtune: &DrTune, steps: usize) -> Vec<String> {
        let config = TrainConfig::with_steps(AlgorithmConfig::DrTune(drtune.clone()), steps);
        let mut findings = Vec::new();
        drtune.findings(&config, &mut findings);
        findings
    }

    #[test]
    fn published_defaults_are_fine_and_what_is_out_of_range_is_named() {
        assert!(findings(&DrTune::default(), 50).is_empty());
        assert!(findings(&DrTune { k: 6, ..DrTune::default() }, 9).is_empty());
        let bad = [
            (DrTune { k: 0, ..DrTune::default() }, "algo.drtune.k is 0"),
            // 0.4 of 9 is 4: the shortest chain takes 6 steps.
            (DrTune { k: 7, ..DrTune::default() }, "algo.drtune.k is 7; expected 1 to 6"),
            (DrTune { k: 10, early_stop_ratio: 0.0, ..DrTune::default() }, "algo.drtune.k is 10; expected 1 to 9"),
            (DrTune { early_stop_ratio: 1.1, ..DrTune::default() }, "algo.drtune.early_stop_ratio is 1.1"),
            (DrTune { early_stop_ratio: f64::NAN, ..DrTune::default() }, "algo.drtune.early_stop_ratio is NaN"),
            (DrTune { batch_size: 0, ..DrTune::default() }, "algo.drtune.batch_size is 0"),
            (DrTune { grad_scale: f64::INFINITY, ..DrTune::default() }, "algo.drtune.grad_scale is inf"),
            (DrTune { guidance_scale: f64::NAN, ..DrTune::default() }, "algo.drtune.guidance_scale is NaN"),
        ];
        for (bad, expected) in bad {
            let found = findings(&bad, 9);
            assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
        }
    }

    #[test]
    fn k_spaced_steps_are_trained_and_the_chain_stops_in_its_last_part() {
        let (drtune, noise) = (DrTune::default(), Noise::new(5));
        let (mut lengths, mut firsts) = (BTreeSet::new(), BTreeSet::new());
        for draw in 1..=500 {
            let calls = drtune.calls(10, Draw::new(noise, draw));
            let trained: Vec<usize> = (0..calls.len()).filter(|step| calls[*step] == Call::DetachedInput).collect();
            assert_eq!(trained.len(), 3, "{calls:?}");
            let stride = calls.len() / 3;
            assert_eq!([trained[1] - trained[0], trained[2] - trained[1]], [stride; 2]);
            assert!(calls.iter().all(|call| *call != Call::On));
            lengths.insert(calls.len());
            firsts.insert((calls.len(), trained[0]));
        }
        // Stops after step 6, 7, 8 or 9; the first trained step is any that leaves room for the other two.
        assert_eq!(lengths, (7..=10).collect());
        assert_eq!(firsts.len(), 3 + 4 + 3 + 4, "{firsts:?}");
        // Every step, and none but the last to end on.
        let all = DrTune { k: 5, early_stop_ratio: 0.0, ..DrTune::default() };
        assert_eq!(all.calls(5, Draw::new(noise, 1)), [Call::DetachedInput; 5]);
    }
}
