//! The laws of the tape, on a network of two parameters: its gradients by hand, in f64.

use burn::module::{Module, Param};
use vp_core::noise::Noise;
use vp_models::denoiser::Conditioning;
use vp_models::parameters::named_gradients;
use vp_schedulers::{PredictionType, SchedulerConfig, build_scheduler, by_name};

use super::*;
use crate::direct::align_prop::{Fixed, Truncation};
use crate::direct::draft::Draft;
use crate::direct::drtune::DrTune;
use crate::direct::refl::predict_clean_latents;
use crate::direct::through_sampling::ThroughSampling;

mod direct_align;
mod draft_lv;
mod leaps;

/// `slope · x + pull · c`, with `c` the mean of the text's embedding.
#[derive(Module, Debug)]
struct Toy {
    slope: Param<Tensor<1>>,
    pull: Param<Tensor<1>>,
}

impl Denoiser for Toy {
    const COMPONENT: &'static str = "toy";

    fn config_json(&self) -> serde_json::Map<String, serde_json::Value> {
        serde_json::Map::new()
    }

    fn forward(&self, sample: Tensor<4>, _: &[f32], conditioning: &Conditioning) -> Tensor<4> {
        let [rows, ..] = sample.dims();
        let text = conditioning.encoder_hidden_states.clone().mean_dims(&[1, 2]).reshape([rows, 1, 1, 1]);
        sample * self.slope.val().reshape([1, 1, 1, 1]) + text * self.pull.val().reshape([1, 1, 1, 1])
    }
}

const SLOPE: f64 = 0.7;
const PULL: f64 = -0.3;
/// The toy's embeddings of the prompt and the negative prompt, and the guidance scale.
const TEXTS: [f64; 2] = [1.0, 0.4];
const SCALE: f64 = 7.5;
const STEPS: usize = 5;
/// The toy's only latent value; `step_noise` gives the noise of each step.
const UNIT: f64 = 0.8;

fn step_noise(step: usize) -> f64 {
    [0.5, -1.0, 0.3, 0.9, -0.2][step]
}

fn toy(slope: f64, pull: f64) -> Toy {
    let device = Device::flex();
    Toy { slope: Param::from_data([slope as f32], &device), pull: Param::from_data([pull as f32], &device) }.train()
}

fn constant(value: f64) -> Tensor<4> {
    Tensor::from_data([[[[value as f32]]]], &Device::flex())
}

fn scalar(tensor: &Tensor<4>) -> f64 {
    f64::from(tensor.clone().without_autodiff().into_scalar::<f32>())
}

fn guidance() -> Guidance {
    let text = |value: f64| Conditioning { encoder_hidden_states: Tensor::from_data([[[value as f32]]], &Device::flex()), added: None };
    Guidance { conditional: text(TEXTS[0]), unconditional: Some(text(TEXTS[1])), scale: SCALE }
}

fn config_of(name: &str) -> SchedulerConfig {
    SchedulerConfig::new(by_name(name).unwrap().class)
}

/// DDIM whose last sample is the prediction of the clean one.
fn ddim(eta: f64) -> Box<dyn Scheduler> {
    ddim_of(PredictionType::Epsilon, eta)
}

fn ddim_of(prediction_type: PredictionType, eta: f64) -> Box<dyn Scheduler> {
    let (prediction_type, yes, no) = (Some(prediction_type), Some(true), Some(false));
    let config = SchedulerConfig { prediction_type, set_alpha_to_one: yes, clip_sample: no, ..config_of("ddim") };
    build_scheduler(&config, None, STEPS, eta).unwrap()
}

fn euler_of(prediction_type: PredictionType) -> Box<dyn Scheduler> {
    let config = SchedulerConfig { prediction_type: Some(prediction_type), ..config_of("euler") };
    build_scheduler(&config, None, STEPS, 0.0).unwrap()
}

/// A scheduler of each kind, for each thing that a network predicts.
fn of_every_prediction_type() -> Vec<Box<dyn Scheduler>> {
    let types = [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample];
    types.into_iter().flat_map(|kind| [ddim_of(kind, 0.0), euler_of(kind)]).collect()
}

/// The toy's text embedding under guidance.
fn guided_text() -> f64 {
    TEXTS[1] + SCALE * (TEXTS[0] - TEXTS[1])
}

/// The gradient with respect to slope and pull of what `at` computes of them on the host, by finite differences.
fn differences(at: impl Fn([f64; 2]) -> f64) -> [f64; 2] {
    const H: f64 = 1e-4;
    [[H, 0.0], [0.0, H]].map(|[a, b]| (at([SLOPE + a, PULL + b]) - at([SLOPE - a, PULL - b])) / (2.0 * H))
}

fn assert_is_the_difference(got: [f64; 2], expected: [f64; 2], what: &str) {
    for (got, expected) in got.into_iter().zip(expected) {
        assert!((got - expected).abs() < 1e-4 * expected.abs().max(1.0), "{what}: got {got}, expected {expected}");
    }
}

/// The value that a chain of the toy ends with, and its gradients with respect to slope and pull.
fn gradients(scheduler: &mut dyn Scheduler, calls: &[Call], end: End) -> (f64, [f64; 2]) {
    let (toy, guidance) = (toy(SLOPE, PULL), guidance());
    let noise = |step| constant(step_noise(step));
    let mut chain = TapedChain::new(&toy, scheduler, &guidance, &noise);
    let latents = chain.run(constant(UNIT), calls, end);
    assert_eq!(chain.visited.iter().map(|visited| visited.step).collect::<Vec<_>>(), (0..calls.len()).collect::<Vec<_>>());
    (scalar(&latents), of_toy(&toy, latents.sum()))
}

fn of_toy(toy: &Toy, loss: Tensor<1>) -> [f64; 2] {
    let mut gradients = loss.backward();
    let found = named_gradients(toy, &mut gradients);
    assert_eq!(found.len(), 2);
    [0, 1].map(|index: usize| values(&found[index].1)[0])
}

/// The same in f64 on the host. A step is linear in the latents x and the prediction m, and the scheduler gives its two factors. x' = A x +
/// B m + σ z, m = slope · x + pull · (u + s (c − u)).
fn by_hand(scheduler: &dyn Scheduler, calls: &[Call], end: End, [slope, pull]: [f64; 2]) -> (f64, [f64; 2]) {
    let text = guided_text();
    let (mut x, mut dx) = (UNIT * scheduler.init_noise_sigma(), [0.0; 2]);
    for (step, call) in calls.iter().enumerate() {
        let prediction = step + 1 == calls.len() && end == End::Prediction;
        let factor = |x: f64, m: f64| {
            let transition = scheduler.transition(constant(m), &[step], constant(x));
            scalar(if prediction { &transition.pred_original_sample } else { &transition.prev_sample_mean })
        };
        let (a, b) = (factor(1.0, 0.0), factor(0.0, 1.0));
        let scale = scalar(&scheduler.scale_model_input(constant(1.0), &[step]));
        let m = slope * x * scale + pull * text;
        let through_input = if *call == Call::On { slope * scale } else { 0.0 };
        let on_tape = if *call == Call::Off { 0.0 } else { 1.0 };
        let direct = [x * scale, text];
        dx = [0, 1].map(|i| a * dx[i] + b * (on_tape * direct[i] + through_input * dx[i]));
        let noise = if prediction { 0.0 } else { scheduler.std_dev_t(step) * step_noise(step) };
        x = a * x + b * m + noise;
    }
    (x, dx)
}

fn assert_close(got: f64, expected: f64, what: &str) {
    assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{what}: got {got}, expected {expected}");
}

fn assert_is_by_hand(scheduler: &mut dyn Scheduler, calls: &[Call], end: End) {
    let (value, gradient) = gradients(scheduler, calls, end);
    let (expected, expected_gradient) = by_hand(scheduler, calls, end, [SLOPE, PULL]);
    assert_close(value, expected, &format!("the end of {calls:?}"));
    for (got, expected) in gradient.into_iter().zip(expected_gradient) {
        assert_close(got, expected, &format!("the gradient of {calls:?}"));
    }
}

#[test]
fn every_call_lets_through_what_it_says() {
    use Call::{DetachedInput, Off, On};
    let chains: [&[Call]; 6] = [
        &[On; 5],
        &[Off, Off, Off, On, On],
        &[DetachedInput; 5],
        &[Off, DetachedInput, Off, DetachedInput],
        &[On, Off, On, Off, On],
        // Nothing after the first step but the linear path.
        &[On, Off, Off],
    ];
    for chain in chains {
        for end in [End::Sample, End::Prediction] {
            assert_is_by_hand(&mut *ddim(0.0), chain, end);
            assert_is_by_hand(&mut *ddim(0.7), chain, end);
        }
    }
}

#[test]
fn samplers_along_sigma_scale_the_input_of_tracked_steps_too() {
    let mut euler = euler_of(PredictionType::Epsilon);
    for call in [Call::On, Call::DetachedInput] {
        assert_is_by_hand(&mut *euler, &[call; STEPS], End::Sample);
    }
}

/// Checks the gradients by hand against finite differences, which are right where everything is on the tape.
#[test]
fn a_chain_all_on_the_tape_has_the_gradient_of_finite_differences() {
    let (scheduler, calls) = (ddim(0.7), [Call::On; STEPS]);
    let (_, got) = gradients(&mut *ddim(0.7), &calls, End::Sample);
    assert_is_the_difference(got, differences(|weights| by_hand(&*scheduler, &calls, End::Sample, weights).0), "the chain");
}

fn draw(number: u64) -> Draw {
    Draw::new(Noise::new(0), number)
}

/// ReFL's prediction of the clean latents after `mid_step` steps, and its gradients.
fn refl(scheduler: &mut dyn Scheduler, mid_step: usize) -> (f64, [f64; 2]) {
    let (toy, guidance) = (toy(SLOPE, PULL), guidance());
    let noise = |step| constant(step_noise(step));
    let latents = predict_clean_latents(&mut TapedChain::new(&toy, scheduler, &guidance, &noise), constant(UNIT), mid_step);
    (scalar(&latents), of_toy(&toy, latents.sum()))
}

#[test]
fn refls_one_step_on_the_tape_is_by_hand() {
    for mid_step in [0, 2, STEPS - 1] {
        let calls: Vec<Call> = (0..=mid_step).map(|step| if step == mid_step { Call::On } else { Call::Off }).collect();
        let (value, gradient) = refl(&mut *ddim(0.7), mid_step);
        let (expected, expected_gradient) = by_hand(&*ddim(0.7), &calls, End::Prediction, [SLOPE, PULL]);
        assert_close(value, expected, "the clean latents");
        gradient.into_iter().zip(expected_gradient).for_each(|(got, expected)| assert_close(got, expected, "the gradient"));
    }
}

#[test]
fn draft_1_is_refl_at_the_last_step() {
    let draft = gradients(&mut *ddim(0.0), &Draft::default().calls(STEPS, draw(1)), End::Sample);
    assert_eq!(refl(&mut *ddim(0.0), STEPS - 1), draft);
}

#[test]
fn draft_with_every_step_is_align_prop_without_truncation() {
    let draft = Draft { k: STEPS, ..Draft::default() };
    let align_prop = Truncation::Fixed(Fixed { k: STEPS });
    let align_prop = gradients(&mut *ddim(0.5), &align_prop.calls(STEPS, draw(1)), End::Sample);
    assert_eq!(gradients(&mut *ddim(0.5), &draft.calls(STEPS, draw(1)), End::Sample), align_prop);
    let shorter = Draft { k: STEPS - 1, ..draft };
    assert_ne!(gradients(&mut *ddim(0.5), &shorter.calls(STEPS, draw(1)), End::Sample).1, align_prop.1);
}

#[test]
fn drtunes_gradient_is_the_sum_of_its_steps_along_the_linear_path() {
    let drtune = DrTune { k: 2, ..DrTune::default() };
    for number in 1..10 {
        let calls = drtune.calls(STEPS, draw(number));
        let (_, together) = gradients(&mut *ddim(0.0), &calls, End::Prediction);
        let trained: Vec<usize> = (0..calls.len()).filter(|step| calls[*step] != Call::Off).collect();
        let mut sum = [0.0; 2];
        for step in &trained {
            let mut alone = vec![Call::Off; calls.len()];
            alone[*step] = Call::DetachedInput;
            let (_, part) = gradients(&mut *ddim(0.0), &alone, End::Prediction);
            sum = [sum[0] + part[0], sum[1] + part[1]];
        }
        assert_eq!(trained.len(), 2);
        for (together, sum) in together.into_iter().zip(sum) {
            assert_close(together, sum, &format!("{calls:?}"));
        }
        // On the tape with their inputs, the steps do not add up.
        let through: Vec<Call> = calls.iter().map(|call| if *call == Call::Off { Call::Off } else { Call::On }).collect();
        assert!((gradients(&mut *ddim(0.0), &through, End::Prediction).1[0] - sum[0]).abs() > 1e-3);
    }
}
