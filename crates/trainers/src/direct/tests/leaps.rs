//! The laws of LeapAlign's two leaps.

use super::*;
use crate::direct::leaps::{Leaps, leap_trajectory};

/// What came of two leaps.
struct Leapt {
    value: f64,
    gradient: [f64; 2],
    distances: [f64; 2],
    /// The real latents before the two steps.
    real: [f64; 2],
}

fn leapt(scheduler: &mut dyn Scheduler, steps: [usize; 2], nested_grad_scale: f64) -> Leapt {
    let (toy, guidance) = (toy(SLOPE, PULL), guidance());
    let noise = |step| constant(step_noise(step));
    let mut chain = TapedChain::new(&toy, scheduler, &guidance, &noise);
    let Leaps { latents, distances } = leap_trajectory(&mut chain, constant(UNIT), steps, nested_grad_scale);
    assert_eq!(chain.visited.iter().map(|visited| visited.step).collect::<Vec<_>>(), (0..STEPS).collect::<Vec<_>>());
    let real = steps.map(|step| scalar(&chain.visited[step].latents));
    Leapt { value: scalar(&latents), gradient: of_toy(&toy, latents.sum()), distances: distances.map(|d| values(&d)[0]), real }
}

/// The last sample of the sampler itself.
fn rollout(scheduler: &mut dyn Scheduler) -> f64 {
    let (toy, guidance) = (toy(SLOPE, PULL), guidance());
    let noise = |step| constant(step_noise(step));
    scalar(&TapedChain::new(&toy, scheduler, &guidance, &noise).rollout(constant(UNIT)))
}

/// All pairs of steps, the earlier one first.
fn pairs() -> impl Iterator<Item = [usize; 2]> {
    (0..STEPS).flat_map(|k| (k + 1..STEPS).map(move |j| [k, j]))
}

/// The two leaps on the host, in f64.
struct ByHand<'a> {
    scheduler: &'a dyn Scheduler,
    steps: [usize; 2],
    real: [f64; 2],
}

impl ByHand<'_> {
    fn input_scale(&self, step: usize) -> f64 {
        scalar(&self.scheduler.scale_model_input(constant(1.0), &[step]))
    }

    /// The clean value that the toy with these weights sees in x: the scheduler is linear in both.
    fn seen(&self, step: usize, x: f64, [slope, pull]: [f64; 2]) -> f64 {
        let factor = |x: f64, m: f64| scalar(&self.scheduler.transition(constant(m), &[step], constant(x)).pred_original_sample);
        let m = slope * x * self.input_scale(step) + pull * guided_text();
        factor(1.0, 0.0) * x + factor(0.0, 1.0) * m
    }

    /// x̂_j|k: the same clean value and the same noise, at the level of step j.
    fn leap(&self, weights: [f64; 2]) -> f64 {
        let ([k, j], [x_k, _]) = (self.steps, self.real);
        let [from, to] = self.steps.map(|step| self.scheduler.level(step));
        let seen = self.seen(k, x_k, weights);
        let epsilon = (x_k * self.input_scale(k) - from.signal * seen) / from.noise;
        (to.signal * seen + to.noise * epsilon) / self.input_scale(j)
    }

    /// The factor that makes a rectified flow's x of the network's input at step j.
    fn flow(&self) -> f64 {
        let level = self.scheduler.level(self.steps[1]);
        1.0 / (level.signal + level.noise)
    }

    /// Where the second leap ends if the weights change: what changes in x_j counts as a whole on the straight path of the flow, and by
    /// `nested` within the network.
    fn end(&self, nested: f64, weights: [f64; 2]) -> f64 {
        let ([_, j], [_, x_j]) = (self.steps, self.real);
        let change = self.leap(weights) - self.leap([SLOPE, PULL]);
        let straight = self.flow() * self.input_scale(j) * (1.0 - nested) * change;
        self.seen(j, x_j + nested * change, weights) + straight
    }
}

#[test]
fn the_value_is_the_real_paths_last_sample_to_the_bit() {
    for build in [|| ddim(0.0), || ddim(0.7), || euler_of(PredictionType::VPrediction)] {
        let expected = rollout(&mut *build());
        assert!(pairs().all(|steps| leapt(&mut *build(), steps, 0.3).value == expected));
    }
}

#[test]
fn the_gradient_is_that_of_finite_differences_whatever_the_network_predicts() {
    for mut scheduler in of_every_prediction_type() {
        for (steps, nested) in pairs().zip([0.0, 0.3, 1.0].into_iter().cycle()) {
            let Leapt { gradient, real, .. } = leapt(&mut *scheduler, steps, nested);
            let by_hand = ByHand { scheduler: &*scheduler, steps, real };
            let what = format!("{:?}, {steps:?}, {nested}", scheduler.prediction_type());
            assert_is_the_difference(gradient, differences(|weights| by_hand.end(nested, weights)), &what);
        }
    }
}

/// With the factor 0, the gradient is the sum of the two leaps alone, each from constant latents, the first one along the straight path.
#[test]
fn the_nested_gradient_is_all_that_the_factor_scales() {
    for mut scheduler in of_every_prediction_type() {
        for steps in [[0, 2], [1, 4], [2, 3]] {
            let [none, some, all] = [0.0, 0.3, 1.0].map(|nested| leapt(&mut *scheduler, steps, nested));
            let by_hand = ByHand { scheduler: &*scheduler, steps, real: none.real };
            let ([_, j], [_, x_j]) = (steps, none.real);
            let straight = by_hand.flow() * by_hand.input_scale(j);
            let (first, second) = (differences(|weights| by_hand.leap(weights)), differences(|weights| by_hand.seen(j, x_j, weights)));
            assert_is_the_difference(none.gradient, [0, 1].map(|i| second[i] + straight * first[i]), &format!("{steps:?}, 0"));
            let between = [0, 1].map(|i| none.gradient[i] + 0.3 * (all.gradient[i] - none.gradient[i]));
            assert_is_the_difference(some.gradient, between, &format!("{steps:?}, 0.3"));
            assert!((all.gradient[1] - none.gradient[1]).abs() > 1e-2, "{steps:?}: {:?} {:?}", all.gradient, none.gradient);
        }
    }
}

/// A leap of one step is the sampler's own, so that nothing is left of the approximation.
#[test]
fn two_last_steps_with_their_whole_gradient_are_draft_2() {
    let (value, gradient) = gradients(&mut *ddim(0.0), &Draft { k: 2, ..Draft::default() }.calls(STEPS, draw(1)), End::Sample);
    let leapt = leapt(&mut *ddim(0.0), [STEPS - 2, STEPS - 1], 1.0);
    assert_close(leapt.value, value, "the last sample");
    leapt.gradient.into_iter().zip(gradient).for_each(|(got, expected)| assert_close(got, expected, "the gradient"));
    assert!(leapt.distances.iter().all(|distance| *distance < 1e-4), "{:?}", leapt.distances);
}

#[test]
fn the_distances_are_those_of_a_flow() {
    for mut scheduler in [ddim_of(PredictionType::Sample, 0.0), euler_of(PredictionType::Sample)] {
        let Leapt { value, distances, real, .. } = leapt(&mut *scheduler, [0, 3], 0.3);
        let by_hand = ByHand { scheduler: &*scheduler, steps: [0, 3], real };
        let weights = [SLOPE, PULL];
        let expected =
            [(by_hand.leap(weights) - real[1]) * by_hand.input_scale(3) * by_hand.flow(), by_hand.seen(3, real[1], weights) - value];
        for (got, expected) in distances.into_iter().zip(expected.map(f64::abs)) {
            assert!(expected > 0.05 && (got - expected).abs() < 1e-4 * expected.max(1.0), "got {got}, expected {expected}");
        }
    }
}
