//! The law of Direct-Align, and its gradient.

use super::*;
use crate::direct::direct_align::{ShortStep, recovered};

/// The toy's only clean latent value, and the known noise.
const CLEAN: f64 = 0.6;
const EPSILON: f64 = -1.5;

/// What the toy with these weights makes of CLEAN, and the gradient of that.
fn recover(scheduler: &mut dyn Scheduler, step: ShortStep, [slope, pull]: [f64; 2], guidance: &Guidance) -> (f64, [f64; 2]) {
    let toy = toy(slope, pull);
    let noise = |step| constant(step_noise(step));
    let chain = TapedChain::new(&toy, scheduler, guidance, &noise);
    let latents = recovered(&chain, &constant(CLEAN), &constant(EPSILON), step);
    (scalar(&latents), of_toy(&toy, latents.sum()))
}

/// Whatever the network predicts, and whether the step denoises or inverts.
#[test]
fn a_network_that_answers_the_known_noise_gives_back_the_clean_latents_at_every_step() {
    // Of the prompt alone, whose embedding is 1: the toy answers its pull.
    let unguided = Guidance::none(guidance().conditional);
    for mut scheduler in of_every_prediction_type() {
        for to in (1..999_usize).step_by(13) {
            for from in [to.saturating_sub(40), (to + 40).min(999)] {
                let answer = scalar(&scheduler.training_target(constant(CLEAN), constant(EPSILON), &[from as f64]));
                let (latents, _) = recover(&mut *scheduler, ShortStep { from, to }, [0.0, answer], &unguided);
                // Rounding errors are divided by the signal.
                let signal = [from, to].map(|timestep| scheduler.training_level(timestep as f64).signal).into_iter().fold(1.0, f64::min);
                let kind = scheduler.prediction_type();
                assert!((latents - CLEAN).abs() < 2e-6 / signal, "{kind:?}, from {from} to {to}: {latents}");
            }
        }
    }
}

/// In closed form: x_0 + w (x_θ − x_0), with w = 1 − σ' α / (α' σ), and x_θ by the definition of what is predicted.
fn by_hand(scheduler: &dyn Scheduler, step: ShortStep, [slope, pull]: [f64; 2]) -> f64 {
    let [from, to] = [step.from, step.to].map(|timestep| scheduler.training_level(timestep as f64));
    let x = from.signal * CLEAN + from.noise * EPSILON;
    let m = slope * x + pull * guided_text();
    let seen = match scheduler.prediction_type() {
        PredictionType::Epsilon => (x - from.noise * m) / from.signal,
        PredictionType::VPrediction => from.signal * x - from.noise * m,
        PredictionType::Sample => m,
    };
    let weight = 1.0 - to.noise * from.signal / (to.signal * from.noise);
    CLEAN + weight * (seen - CLEAN)
}

#[test]
fn the_gradient_is_that_of_the_closed_form_with_the_opposite_sign_in_an_inversion() {
    for mut scheduler in of_every_prediction_type() {
        let mut pulls = Vec::new();
        for (from, to) in [(540, 500), (460, 500), (900, 860), (60, 100)] {
            let step = ShortStep { from, to };
            let (value, gradient) = recover(&mut *scheduler, step, [SLOPE, PULL], &guidance());
            let expected = by_hand(&*scheduler, step, [SLOPE, PULL]);
            let what = format!("{:?}, from {from} to {to}", scheduler.prediction_type());
            assert!((value - expected).abs() < 1e-4 * expected.abs().max(1.0), "{what}: got {value}, expected {expected}");
            assert_is_the_difference(gradient, differences(|weights| by_hand(&*scheduler, step, weights)), &what);
            pulls.push(gradient[1]);
        }
        // The same text, the same answer: a denoising and an inversion of one length move the image apart.
        assert!(pulls[0] * pulls[1] < 0.0 && pulls[2] * pulls[3] < 0.0, "{pulls:?}");
    }
}
