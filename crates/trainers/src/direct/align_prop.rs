//! AlignProp: reward back-propagation through the whole chain, randomly truncated (arXiv 2310.03739, algorithm 1).
//!
//! | paper and code | here |
//! |---|---|
//! | T, the number of denoising steps | `scheduler.num_inference_steps` |
//! | K, how many of the last steps are differentiated; `backprop_strategy = 'fixed'`, value 49 of 50 | `[algo.align_prop.truncation.fixed]`, `k` = T − value |
//! | `truncated_backprop_rand`, `truncated_rand_backprop_minmax` of the first code and of TRL | `[algo.align_prop.truncation.random]` |
//! | `backprop_strategy = 'gaussian'`, mean 42, std 5 of the authors' later code | `[algo.align_prop.truncation.gaussian]` |
//! | loss: \|r − 10\|, 1 − r, 10 − r | `−grad_scale · mean(r)`, whose gradient is the same |
//!
//! Only the *noise prediction* is truncated. The latents keep their graph, so a late gradient still reaches an earlier step on the tape
//! through the scheduler's linear updates. Source: mihirp1998/AlignProp `main.py` and `sd_pipeline.py`, TRL 0.22 `modeling_sd_base.py`.
//! They recompute each step in the backward pass; here every step on the tape is kept, so memory grows with the number of such steps.

use serde::{Deserialize, Serialize};
use vp_core::noise::{Noise, Purpose, chain_step};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Trainable;

use crate::Error;
use crate::algorithm::{Algorithm, Driver, RewardDriven};
use crate::config::TrainConfig;
use crate::direct::through_sampling::{self, ThroughSampling};
use crate::direct::{Call, Sampling};
use crate::environment::Environment;
use crate::plan::Demand;
use crate::ranks::Items;
use crate::regularizer::Regularizer;
use crate::run::{Draw, Run};

/// The random step from which on the noise prediction is differentiated.
const TRUNCATION: Purpose = Purpose::numbered(14);

/// The knobs of `[algo.align_prop]`. The defaults are the values of the authors' later code.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlignProp {
    /// Prompts per micro-batch, one image each; at least 1 (8 on each of 4 GPUs).
    pub batch_size: usize,
    /// The steps whose noise predictions are differentiated (`gaussian`).
    pub truncation: Truncation,
    /// Factor of the reward's loss (0.01 for the aesthetic reward, 1 for others).
    pub grad_scale: f64,
    /// Classifier-free guidance scale while training, at least 0; 1 for no guidance (5; 7.5 in the first code).
    pub guidance_scale: f64,
    /// Prompt that guidance steers away from while training; absent: no text.
    pub negative_prompt: Option<String>,
}

vp_core::registry! {
    /// The `[algo.align_prop.truncation.<name>]` section.
    pub enum Truncation {
        /// A fixed number of last steps is on the tape.
        Fixed = "fixed" => Fixed,
        /// A step is on the tape from a random border on; each step draws its own border, as in the first code and TRL.
        Random = "random" => Random,
        /// All steps from a random border on are on the tape; each batch draws one border, as in the authors' later code.
        Gaussian = "gaussian" => Gaussian,
    }
}

/// `[algo.align_prop.truncation.fixed]`: the last K steps are on the tape.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixed {
    /// K, the number of last steps on the tape, 1 to `scheduler.num_inference_steps` (1).
    pub k: usize,
}

/// `[algo.align_prop.truncation.random]`: each step draws its own border, uniform in `min..=max`. Step i is differentiated with probability
/// (i − min + 1) / (max − min + 1).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Random {
    /// Smallest border, in steps (0).
    pub min: usize,
    /// Largest border, in steps, at most `scheduler.num_inference_steps` (50 of 50 steps).
    pub max: usize,
}

/// `[algo.align_prop.truncation.gaussian]`: a border from this normal distribution, rounded down, and drawn again until it lies in
/// `1..num_inference_steps`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gaussian {
    /// Mean of the border, in steps, at least 1 and below `scheduler.num_inference_steps` (42 of 50).
    pub mean: f64,
    /// Standard deviation of the border, in steps, 0 to `scheduler.num_inference_steps` (5).
    pub std: f64,
}

impl Default for AlignProp {
    fn default() -> Self {
        let truncation = Truncation::Gaussian(Gaussian { mean: 42.0, std: 5.0 });
        Self { batch_size: 8, truncation, grad_scale: 1.0, guidance_scale: 5.0, negative_prompt: None }
    }
}

impl ThroughSampling for AlignProp {
    fn sampling(&self) -> Sampling<'_> {
        let Self { batch_size, guidance_scale, negative_prompt, .. } = self;
        Sampling { batch_size: *batch_size, guidance_scale: *guidance_scale, negative_prompt: negative_prompt.as_deref() }
    }

    fn calls(&self, num_inference_steps: usize, draw: Draw) -> Vec<Call> {
        self.truncation.calls(num_inference_steps, draw)
    }

    fn grad_scale(&self) -> f64 {
        self.grad_scale
    }
}

impl<D: Denoiser> RewardDriven<D> for AlignProp {
    fn train(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>, regularizer: &mut Regularizer) -> Result<(), Error> {
        through_sampling::train(self, run, environment, regularizer)
    }

    fn arithmetic(&self, config: &TrainConfig) -> String {
        let steps = config.num_inference_steps();
        let on_tape = self.truncation.expected_on_tape(steps);
        self.sampling().arithmetic(config, &format!("takes {steps} steps, {on_tape:.1} of them on the tape on average"))
    }

    fn demand(&self, config: &TrainConfig) -> Demand {
        self.sampling().demand(self.truncation.most_on_tape(config.num_inference_steps()), 1)
    }

    fn needs_gradient(&self) -> bool {
        true
    }

    fn items(&self) -> Items {
        Items::of("algo.align_prop.batch_size", self.batch_size)
    }

    fn learning_test(&self) -> &'static [&'static str] {
        &[
            "run.num_train_steps=5",
            "scheduler.num_inference_steps=6",
            // The border at the same fraction of the shorter chain as in the shipped config.
            "algo.align_prop.truncation.gaussian.mean=4.5",
            "optimizer.learning_rate=1e-2",
            "preview.num_inference_steps=6",
        ]
    }
}

impl Algorithm for AlignProp {
    fn driver(&self) -> Driver<'_> {
        Driver::Reward(self)
    }

    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        let steps = config.num_inference_steps();
        self.sampling().findings("align_prop", findings);
        if !self.grad_scale.is_finite() {
            findings.push(format!("algo.align_prop.grad_scale is {}; expected a number", self.grad_scale));
        }
        if steps > 0 {
            self.truncation.findings(steps, findings);
        }
    }
}

impl Truncation {
    fn findings(&self, steps: usize, findings: &mut Vec<String>) {
        let name = format!("algo.align_prop.truncation.{}", self.name());
        match self {
            Self::Fixed(Fixed { k }) if *k == 0 || *k > steps => {
                findings.push(format!("{name}.k is {k}; expected 1 to {steps}, the steps there are (scheduler.num_inference_steps)"));
            }
            Self::Random(Random { min, max }) if min > max || *max > steps => {
                findings.push(format!("{name} draws from {min}..={max}; expected min <= max <= {steps} (scheduler.num_inference_steps)"));
            }
            Self::Gaussian(Gaussian { mean, std }) => {
                if !(*mean >= 1.0 && *mean < steps as f64) {
                    findings.push(format!("{name}.mean is {mean}; expected at least 1 and less than the {steps} steps there are"));
                }
                if !(*std >= 0.0 && *std <= steps as f64) {
                    findings.push(format!("{name}.std is {std}; expected 0 to {steps}, the steps there are"));
                }
            }
            Self::Fixed(_) | Self::Random(_) => {}
        }
    }

    /// The calls of a whole chain of `steps`. The last step is on the tape whatever the border, so that there is always a gradient; the
    /// first code and TRL leave it off the tape once in 51 times.
    pub fn calls(&self, steps: usize, draw: Draw) -> Vec<Call> {
        let once = match self {
            Self::Gaussian(gaussian) => gaussian.border(steps, draw),
            Self::Fixed(Fixed { k }) => steps - k,
            Self::Random(_) => 0,
        };
        let border = |step| match self {
            Self::Random(Random { min, max }) => draw.noise.integer(TRUNCATION, chain_step(draw.number, step), 0, *min, *max),
            Self::Fixed(_) | Self::Gaussian(_) => once,
        };
        (0..steps).map(|step| if step + 1 == steps || step >= border(step) { Call::On } else { Call::Off }).collect()
    }

    /// The largest number of steps on the tape that was seen among a thousand chains of `steps`.
    pub fn most_on_tape(&self, steps: usize) -> usize {
        const CHAINS: u64 = 1000;
        let noise = Noise::new(0);
        let on_tape = |number| self.calls(steps, Draw::new(noise, number)).into_iter().filter(|call| *call == Call::On).count();
        (1..=CHAINS).map(on_tape).max().unwrap_or(steps)
    }

    /// The average number of steps on the tape, of a chain of `steps`.
    pub fn expected_on_tape(&self, steps: usize) -> f64 {
        const CHAINS: u64 = 1000;
        let noise = Noise::new(0);
        let on_tape = |number| self.calls(steps, Draw::new(noise, number)).into_iter().filter(|call| *call == Call::On).count();
        (1..=CHAINS).map(on_tape).sum::<usize>() as f64 / CHAINS as f64
    }
}

impl Gaussian {
    /// Draws the border, again and again until it is a step after the first.
    fn border(&self, steps: usize, Draw { noise, number, .. }: Draw) -> usize {
        // With the mean among the steps and a standard deviation of at most their number, at least one draw in three is good. If all of
        // them fail, which will not happen, the mean is used.
        const DRAWS: usize = 100;
        let drawn = noise.normal_values(TRUNCATION, number, 0, DRAWS);
        let borders = drawn.into_iter().map(|z| self.mean + self.std * f64::from(z));
        borders.filter(|border| *border >= 1.0).map(|border| border as usize).find(|border| *border < steps).unwrap_or(self.mean as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AlgorithmConfig;

    fn findings(truncation: Truncation, steps: usize) -> Vec<String> {
        let align_prop = AlignProp { truncation, ..AlignProp::default() };
        let config = TrainConfig::with_steps(AlgorithmConfig::AlignProp(align_prop.clone()), steps);
        let mut findings = Vec::new();
        align_prop.findings(&config, &mut findings);
        findings
    }

    fn first_on(calls: &[Call]) -> usize {
        calls.iter().position(|call| *call == Call::On).unwrap()
    }

    #[test]
    fn published_defaults_are_fine_and_what_is_out_of_range_is_named() {
        let random = |min, max| Truncation::Random(Random { min, max });
        let gaussian = |mean, std| Truncation::Gaussian(Gaussian { mean, std });
        let fixed = |k| Truncation::Fixed(Fixed { k });
        for fine in [random(0, 50), random(50, 50), gaussian(42.0, 5.0), gaussian(1.0, 0.0), fixed(1), fixed(50)] {
            assert!(findings(fine.clone(), 50).is_empty(), "{fine:?}");
        }
        let bad = [
            (random(0, 51), "truncation.random draws from 0..=51; expected min <= max <= 50"),
            (random(9, 8), "truncation.random draws from 9..=8"),
            (gaussian(50.0, 5.0), "truncation.gaussian.mean is 50"),
            (gaussian(0.5, 5.0), "truncation.gaussian.mean is 0.5"),
            (gaussian(f64::NAN, 5.0), "truncation.gaussian.mean is NaN"),
            (gaussian(42.0, -1.0), "truncation.gaussian.std is -1"),
            (gaussian(42.0, f64::INFINITY), "truncation.gaussian.std is inf"),
            (fixed(0), "truncation.fixed.k is 0; expected 1 to 50"),
            (fixed(51), "truncation.fixed.k is 51"),
        ];
        for (bad, expected) in bad {
            let found = findings(bad, 50);
            assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
        }
    }

    #[test]
    fn truncations_are_where_they_say() {
        let noise = Noise::new(3);
        assert_eq!(first_on(&Truncation::Fixed(Fixed { k: 3 }).calls(8, Draw::new(noise, 1))), 5);
        assert_eq!(Truncation::Fixed(Fixed { k: 8 }).calls(8, Draw::new(noise, 1)), [Call::On; 8]);

        // One border per batch, with all later steps on the tape; its mean is 42.5 minus the half that rounding down takes.
        let gaussian = Truncation::Gaussian(Gaussian { mean: 42.0, std: 5.0 });
        let borders: Vec<usize> = (1..=2000)
            .map(|draw| {
                let calls = gaussian.calls(50, Draw::new(noise, draw));
                let border = first_on(&calls);
                assert!(calls[border..].iter().all(|call| *call == Call::On));
                border
            })
            .collect();
        let mean = borders.iter().sum::<usize>() as f64 / 2000.0;
        // Truncated above at 50: E[floor(N(42, 5)) | < 50] = 40.9.
        assert!((mean - 40.9).abs() < 0.4, "{mean}");
        assert!(borders.iter().all(|border| (1..50).contains(border)));

        // One border per step: step 0 of 4 is on the tape once in five times, and may be on it when a later step is not.
        let random = Truncation::Random(Random { min: 0, max: 4 });
        let chains: Vec<Vec<Call>> = (1..=2000).map(|draw| random.calls(4, Draw::new(noise, draw))).collect();
        let share = |step: usize| chains.iter().filter(|calls| calls[step] == Call::On).count() as f64 / 2000.0;
        for (step, expected) in [(0, 0.2), (1, 0.4), (2, 0.6), (3, 1.0)] {
            assert!((share(step) - expected).abs() < 0.05, "step {step}: {}", share(step));
        }
        assert!(chains.iter().any(|calls| calls[..2] == [Call::On, Call::Off]));
    }
}
