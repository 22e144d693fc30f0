//! Direct-Align (arXiv 2509.06942, section 3.1): clean latents are noised with noise that stays known, the network takes one short step on
//! the tape, and what it did not predict is taken back with the known noise. So the reward sees a clean image from any noise level, where the
//! network's own prediction of it would be a blur.
//!
//! | paper and code | here |
//! |---|---|
//! | x_0, sampled without gradient | `clean` |
//! | ε_gt, the noise that the sampling began with | `epsilon` |
//! | α_t, σ_t | `signal` and `noise` of a [`TrainingLevel`](vp_schedulers::TrainingLevel) |
//! | x_t = α_t x_0 + σ_t ε_gt (equation 3) | `add_noise`, at timestep `from` |
//! | x_t ± Δσ ε_θ(x_t) (equations 5 and 9) | `step_to`, DDIM's step from `from` to `to` |
//! | (x_t' − σ_t' ε_gt) / α_t' (equation 4) | `original_sample`, at timestep `to` |
//! | denoising, inversion (equation 9) | `from` noisier than `to`, and the other way round |
//!
//! The released `fastvideo/SRPO.py` has a flow model, with α = 1 − σ. Here α² + σ² = 1, and the network may predict noise, v or x_0. In all
//! of these cases the latents come to `x_0 + w (x_θ − x_0)`, with x_θ the network's own x_0 and w = 1 − (σ_t' α_t) / (α_t' σ_t): above 0 for
//! denoising, below 0 for inversion.

use burn::tensor::Tensor;
use vp_core::noise::Purpose;
use vp_core::profile::{self, Stage};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::predict;

use crate::direct::TapedChain;
use crate::run::Draw;

/// The random timestep at which both steps end.
const END: Purpose = Purpose::named("direct_align.end");

/// One short step of the network, between two timesteps of training, which are whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortStep {
    /// The timestep at which the latents are noised and the network is called.
    pub from: usize,
    /// The timestep at which the step ends: below `from` to denoise, above it for an inversion.
    pub to: usize,
}

/// The latents that `step` and the known noise make of `clean`, on the tape; all are `[b, c, h, w]`. `epsilon` is standard normal.
pub fn recovered<D: Denoiser>(chain: &TapedChain<'_, D>, clean: &Tensor<4>, epsilon: &Tensor<4>, step: ShortStep) -> Tensor<4> {
    let (rows, schedule) = (clean.dims()[0], &*chain.scheduler);
    let [from, to] = [step.from, step.to].map(|timestep| timestep as f64);
    // 1. Noise the latents, with noise that is known.
    let noised = schedule.add_noise(clean.clone(), epsilon.clone(), &vec![from; rows]);
    // 2. One step on the tape.
    let model_output =
        profile::time(Stage::TrackedStep, || predict(chain.denoiser, noised.clone(), &vec![from as f32; rows], chain.guidance));
    let seen = schedule.pred_original_sample(model_output, noised.clone(), &vec![from; rows]);
    let [from, to] = [from, to].map(|timestep| schedule.training_level(timestep));
    let stepped = from.step_to(to, noised, seen);
    // 3. Take the rest of the noise away.
    to.original_sample(stepped, epsilon.clone())
}

/// The noise levels that train, and how far a step goes.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The cleanest level, as a share of the training timesteps; 0 is the clean image.
    pub min: f64,
    /// The noisiest level; 1 is pure noise.
    pub max: f64,
    /// Length of a step, as a share of the range between the two.
    pub length: f64,
}

impl Times {
    /// The least range, in which a timestep lies between the ends of any schedule of 100 timesteps or more.
    pub const MIN_RANGE: f64 = 0.02;

    /// A step that denoises and one that inverts, of one length, to one random timestep. Where the range ends, they are shorter; none is of
    /// length 0. As in the code, but for the range: it has 1000 levels in one, here there are the timesteps of training.
    pub fn steps(&self, num_train_timesteps: usize, draw: Draw) -> [ShortStep; 2] {
        let timestep = |time: f64| (time * (num_train_timesteps - 1) as f64).round() as usize;
        let cleanest = timestep(self.min);
        let noisiest = timestep(self.max).max(cleanest + 2);
        let end = draw.integer(END, cleanest + 1, noisiest - 1);
        let wanted = (self.length * (noisiest - cleanest) as f64).round() as usize;
        let length = wanted.max(1).min(noisiest - end).min(end - cleanest);
        [ShortStep { from: end + length, to: end }, ShortStep { from: end - length, to: end }]
    }

    /// The value of `ends` at the cleaner end of `step`: the first at the cleanest level, the second at the noisiest, linear between.
    pub fn discount(&self, ends: [f64; 2], step: ShortStep, num_train_timesteps: usize) -> f64 {
        let time = step.from.min(step.to) as f64 / (num_train_timesteps - 1) as f64;
        let position = ((time - self.min) / (self.max - self.min)).clamp(0.0, 1.0);
        ends[0] + (ends[1] - ends[0]) * position
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use vp_core::noise::Noise;

    use super::*;

    /// The steps of many draws on a schedule of 1001 timesteps, whose shares are thousandths.
    fn steps(times: Times) -> Vec<[ShortStep; 2]> {
        (1..=2000).map(|number| times.steps(1001, Draw::new(Noise::new(2), number))).collect()
    }

    #[test]
    fn both_steps_end_at_one_random_level_and_stay_in_the_range() {
        let drawn = steps(Times { min: 0.5, max: 0.9, length: 0.1 });
        for [denoise, invert] in &drawn {
            let (end, length) = (denoise.to, denoise.from - denoise.to);
            assert_eq!((invert.to, end - invert.from), (end, length));
            // 0.1 of 400 timesteps, or what is left to the nearer end of the range.
            assert_eq!(length, 40.min(900 - end).min(end - 500), "{denoise:?}");
            assert!(length >= 1 && invert.from >= 500 && denoise.from <= 900, "{denoise:?} {invert:?}");
        }
        let ends: BTreeSet<usize> = drawn.iter().map(|[denoise, _]| denoise.to).collect();
        assert!(ends.len() > 380 && ends.first() > Some(&500) && ends.last() < Some(&900), "{} levels", ends.len());
    }

    #[test]
    fn the_shortest_step_is_of_one_timestep_and_the_narrowest_range_has_one() {
        assert!(steps(Times { min: 0.2, max: 0.4, length: 0.0 }).iter().all(|[denoise, _]| denoise.from == denoise.to + 1));
        for (min, last) in [(0.0, 2), (0.98, 99)] {
            let times = Times { min, max: min + Times::MIN_RANGE, length: 0.5 };
            let drawn = times.steps(100, Draw::new(Noise::new(2), 1));
            assert_eq!(drawn, [last, last - 2].map(|from| ShortStep { from, to: last - 1 }));
        }
    }

    #[test]
    fn a_discount_is_that_of_the_cleaner_end() {
        let times = Times { min: 0.5, max: 0.9, length: 0.1 };
        let at = |from, to| times.discount([0.1, 0.5], ShortStep { from, to }, 1001);
        for (got, expected) in [(at(540, 500), 0.1), (at(740, 700), 0.3), (at(660, 700), 0.26), (at(900, 899), 0.499)] {
            assert!((got - expected).abs() < 1e-12, "{got} {expected}");
        }
    }
}
