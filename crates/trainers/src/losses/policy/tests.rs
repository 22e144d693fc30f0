use burn::tensor::Device;

use super::*;
use crate::run::values;

const CLIP: f64 = 0.1;

fn constant(values: &[f32]) -> Tensor<1> {
    Tensor::from_data(values, &Device::flex())
}

fn host(values: Tensor<1>) -> Vec<f32> {
    values.into_data().iter::<f32>().collect()
}

/// The derivative of each row's loss with respect to its own value, by autodiff.
fn gradient(loss: impl Fn(Tensor<1>) -> Tensor<1>, at: &[f32]) -> Vec<f32> {
    let at = Tensor::<1>::from_data(at, &Device::flex().autodiff()).require_grad();
    host(at.grad(&loss(at.clone()).sum().backward()).expect("tracked"))
}

/// The same by central differences.
fn slopes(loss: impl Fn(Tensor<1>) -> Tensor<1>, at: &[f32]) -> Vec<f32> {
    let h = 1e-2;
    host((loss(constant(at) + h) - loss(constant(at) - h)) / (2.0 * h))
}

#[track_caller]
fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
    let close = got.len() == expected.len() && got.iter().zip(expected).all(|(a, b)| (a - b).abs() < tolerance);
    assert!(close, "got {got:?}, expected {expected:?}");
}

/// Log-ratios on both sides of every edge, none closer to one than the step of the differences; and advantages of both signs.
const LOG_RATIOS: [f32; 8] = [0.04, 0.04, -0.04, -0.04, 0.3, 0.3, -0.3, -0.3];
const ADVANTAGES: [f32; 8] = [1.0, -2.0, 1.0, -2.0, 1.0, -2.0, 1.0, -2.0];

#[test]
fn gradients_are_the_slopes_of_the_losses() {
    let old = || constant(&[0.0; 8]);
    let kl = || constant(&[1e-6, 1e-4, 1e-4, 1e-6, 1e-4, 1e-6, 1e-6, 1e-4]);
    let losses: [(&str, &dyn Fn(Tensor<1>) -> Tensor<1>); 4] = [
        ("ppo_clip", &|log_probs| ppo_clip_loss(log_probs, old(), constant(&ADVANTAGES), CLIP).loss),
        ("score_function", &|log_probs| score_function_loss(log_probs, old(), constant(&ADVANTAGES), CLIP).loss),
        ("kl_mask", &|log_probs| kl_mask_loss(log_probs, old(), constant(&ADVANTAGES), kl(), 1e-5).loss),
        ("log_hinge", &|log_probs| log_hinge_loss(log_probs, old(), constant(&ADVANTAGES), CLIP).loss),
    ];
    for (name, loss) in losses {
        let (gradient, slopes) = (gradient(loss, &LOG_RATIOS), slopes(loss, &LOG_RATIOS));
        assert_close(&gradient, &slopes, 1e-3);
        assert!(gradient.iter().any(|slope| *slope != 0.0), "{name} has no gradient");
    }
}

/// At ratio 1 every objective of log-probabilities alone pulls as the score function does.
#[test]
fn on_policy_all_pull_alike() {
    let (at, advantages) = ([-1.3, 0.2, -0.4], [1.5, -0.5, 0.0]);
    let old = || constant(&at);
    let expected = advantages.map(|advantage| -advantage);
    let none = || constant(&[0.0; 3]);
    let losses: [&dyn Fn(Tensor<1>) -> Tensor<1>; 4] = [
        &|log_probs| score_function_loss(log_probs, old(), constant(&advantages), CLIP).loss,
        &|log_probs| ppo_clip_loss(log_probs, old(), constant(&advantages), CLIP).loss,
        &|log_probs| kl_mask_loss(log_probs, old(), constant(&advantages), none(), 1e-5).loss,
        &|log_probs| log_hinge_loss(log_probs, old(), constant(&advantages), CLIP).loss,
    ];
    for loss in losses {
        assert_close(&gradient(loss, &at), &expected, 1e-6);
    }
}

/// Far from the old policy, only steps that come back count; close to it, all do. The threshold itself is far.
#[test]
fn the_mask_by_hand() {
    // A power of two, which f32 holds as it is.
    let threshold = 2f32.powi(-17);
    // Farther, back, back, farther.
    let (log_ratios, advantages) = ([0.2, 0.2, -0.2, -0.2], [1.0, -1.0, 1.0, -1.0]);
    let of =
        |far: f32| kl_mask_loss(constant(&log_ratios), constant(&[0.0; 4]), constant(&advantages), constant(&[far; 4]), threshold.into());
    let unclipped: Vec<f32> = log_ratios.iter().zip(advantages).map(|(log_ratio, advantage)| -advantage * log_ratio.exp()).collect();
    let near = of(0.9 * threshold);
    assert_close(&host(near.loss), &unclipped, 1e-6);
    assert_eq!(host(near.clipped), [0.0; 4]);
    for far in [threshold, 1.0] {
        let loss = of(far);
        assert_close(&host(loss.loss), &[0.0, unclipped[1], unclipped[2], 0.0], 1e-6);
        assert_eq!(host(loss.clipped), [1.0, 0.0, 0.0, 1.0]);
        assert_eq!(host(loss.kl_old.expect("it is what the mask is made of")), [far; 4]);
    }
    // Nothing is left out where nothing has moved, or where nothing is to be gained.
    let still = kl_mask_loss(constant(&[0.0, 0.2]), constant(&[0.0; 2]), constant(&[1.0, 0.0]), constant(&[1.0; 2]), 1e-5);
    assert_eq!(host(still.clipped), [0.0; 2]);
}

/// ξ |A| − A log ρ where that is positive: beyond log ρ = ξ in the direction of A there is nothing to gain.
#[test]
fn the_hinge_by_hand() {
    let loss = log_hinge_loss(constant(&LOG_RATIOS), constant(&[0.0; 8]), constant(&ADVANTAGES), CLIP);
    // ξ = 0.1, and A = 1 or −2: 0.1 ∓ log ρ, twice 0.1 ± log ρ.
    assert_close(&host(loss.loss), &[0.06, 0.28, 0.14, 0.12, 0.0, 0.8, 0.4, 0.0], 1e-6);
    assert_eq!(host(loss.clipped), [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
}

/// Two images of two values at steps with different σ, and what was drawn: x' = μ_old + σ z.
struct Steps {
    old: Transition,
    noise: Tensor<4>,
    direction: Tensor<4>,
}

const SIGMA: [f32; 2] = [0.5, 0.2];

impl Steps {
    fn new() -> Self {
        let device = Device::flex();
        let values = |values: [[f32; 2]; 2]| Tensor::<2>::from_data(values, &device).reshape([2, 1, 1, 2]);
        let old = Transition {
            pred_original_sample: Tensor::zeros([2, 1, 1, 2], &device),
            prev_sample_mean: values([[1.0, -1.0], [0.5, 2.0]]),
            std_dev_t: constant(&SIGMA).reshape([2, 1, 1, 1]),
        };
        Self { old, noise: values([[0.7, -1.2], [-0.3, 1.1]]), direction: values([[1.0, -0.5], [-2.0, 0.4]]) }
    }

    /// The loss where each image's mean has moved by `shift`, `[2]`, times its direction.
    fn loss(&self, shift: Tensor<1>, clip_range: f64) -> PolicyLoss {
        let moved = shift.reshape([2, 1, 1, 1]) * self.direction.clone();
        let policy = Transition { prev_sample_mean: self.old.prev_sample_mean.clone() + moved, ..self.old.clone() };
        let drawn = self.old.sample(self.noise.clone());
        let (log_probs, old) = (policy.log_prob(drawn.clone()), self.old.log_prob(drawn));
        let drift = Drift::between(&policy, &self.old, constant(&[0.25, 2.0]));
        corrected_ratio_loss(log_probs, old, constant(&[1.0, -1.5]), drift, clip_range)
    }

    /// The mean of z (μ − μ_old), which has no σ in it.
    fn log_ratios(&self, shift: [f32; 2]) -> Vec<f32> {
        let projected = (self.noise.clone() * self.direction.clone()).mean_dims(&[1, 2, 3]).reshape([2]);
        host(projected * constant(&shift))
    }
}

#[test]
fn the_corrected_ratio_is_the_noise_times_the_shift_at_any_sigma() {
    let (steps, shift) = (Steps::new(), [0.3, -0.2]);
    let loss = steps.loss(constant(&shift), 10.0);
    let expected: Vec<f32> = steps.log_ratios(shift).iter().map(|log_ratio| log_ratio.exp()).collect();
    assert_close(&host(loss.ratio), &expected, 1e-5);
    // Divided by 0.25 and 2.
    assert_close(&host(loss.loss), &[-expected[0] / 0.25, 1.5 * expected[1] / 2.0], 1e-4);
    // mean (0.3² + 0.15²) / (2 · 0.25), mean (0.4² + 0.08²) / (2 · 0.04).
    assert_close(&host(loss.kl_old.expect("the correction")), &[0.1125, 1.04], 1e-5);
}

#[test]
fn its_gradient_is_the_slope_of_the_loss_and_stops_at_the_clip() {
    let steps = Steps::new();
    // Unclipped, at ±0.1 clipped where going on would gain and not clipped where it would lose.
    for (shift, clip_range, free) in
        [([0.3, -0.2], 10.0, [true, true]), ([0.3, 0.3], CLIP, [false, true]), ([-0.3, -0.6], CLIP, [true, false])]
    {
        let loss = |shift| steps.loss(shift, clip_range).loss;
        let (gradient, slopes) = (gradient(loss, &shift), slopes(loss, &shift));
        assert_close(&gradient, &slopes, 2e-3);
        assert_eq!([gradient[0] != 0.0, gradient[1] != 0.0], free, "{gradient:?} {:?}", steps.log_ratios(shift));
    }
}

/// ∇ρ̂ = σ ∇ log π at the old policy, where the divergence has no slope.
#[test]
fn on_policy_the_corrected_ratio_pulls_as_the_score_function_times_sigma_by_c() {
    let steps = Steps::new();
    let drawn = steps.old.sample(steps.noise.clone());
    let score = |shift: Tensor<1>| {
        let moved = shift.reshape([2, 1, 1, 1]) * steps.direction.clone();
        let policy = Transition { prev_sample_mean: steps.old.prev_sample_mean.clone() + moved, ..steps.old.clone() };
        let log_probs = policy.log_prob(drawn.clone());
        score_function_loss(log_probs, steps.old.log_prob(drawn.clone()), constant(&[1.0, -1.5]), CLIP).loss
    };
    let score = gradient(score, &[0.0; 2]);
    let corrected = gradient(|shift| steps.loss(shift, CLIP).loss, &[0.0; 2]);
    assert!(score.iter().all(|slope| slope.abs() > 0.1), "{score:?}");
    assert_close(&corrected, &[score[0] * SIGMA[0] / 0.25, score[1] * SIGMA[1] / 2.0], 1e-4);
}

#[test]
fn the_better_one_is_pushed_up_and_the_other_down() {
    let device = Device::flex().autodiff();
    let log_ratios = Tensor::<2>::from_data([[0.0, 0.0], [0.05, -0.02], [0.0, 0.0]], &device).require_grad();
    let preferences = Tensor::<2>::from_data([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]], &Device::flex());
    let loss = d3po_loss(log_ratios.clone(), preferences, 0.1, 0.1);
    let expected = [2f64.ln(), (1.0 + (0.1f64 * 0.07).exp()).ln(), 2f64.ln()];
    let got = values(&loss);
    assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?}");
    let gradient: Vec<f32> = log_ratios.grad(&loss.sum().backward()).unwrap().into_data().try_to_vec().unwrap();
    // −β σ(−x) h: half of β at the start, nothing for a tie.
    assert!((gradient[0] + 0.05).abs() < 1e-6 && (gradient[1] - 0.05).abs() < 1e-6, "{gradient:?}");
    assert!(gradient[2] > 0.0 && gradient[3] < 0.0, "{gradient:?}");
    assert_eq!(gradient[4..], [0.0, 0.0]);
}

#[test]
fn a_ratio_beyond_the_clamp_gives_no_gradient() {
    let device = Device::flex().autodiff();
    let log_ratios = Tensor::<2>::from_data([[0.2, -0.01]], &device).require_grad();
    let loss = d3po_loss(log_ratios.clone(), Tensor::from_data([[1.0, -1.0]], &Device::flex()), 0.1, 0.1);
    let gradient: Vec<f32> = log_ratios.grad(&loss.sum().backward()).unwrap().into_data().try_to_vec().unwrap();
    assert!(gradient[0] == 0.0 && gradient[1] > 0.0, "{gradient:?}");
}

#[test]
fn a_ratio_beyond_the_clip_range_gives_no_gradient_where_going_on_would_gain() {
    let device = Device::flex().autodiff();
    let log_probs = Tensor::<1>::from_data([0.2, 0.2, -0.2, 0.05], &device).require_grad();
    let old = Tensor::<1>::zeros([4], &Device::flex());
    let loss = ppo_clip_loss(log_probs.clone(), old, Tensor::from_data([1.0, -1.0, -1.0, 2.0], &Device::flex()), 0.1);
    // −A ρ and −A clamp(ρ, 0.9, 1.1), the larger of the two.
    let expected = [-1.1, 0.2f64.exp(), 0.9, -2.0 * 0.05f64.exp()];
    assert!(values(&loss.loss).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{:?}", values(&loss.loss));
    assert_eq!(values(&loss.clipped), [1.0, 1.0, 1.0, 0.0]);
    assert!((values(&loss.approx_kl)[0] - 0.02).abs() < 1e-7);
    let gradient: Vec<f32> = log_probs.grad(&loss.loss.sum().backward()).unwrap().into_data().try_to_vec().unwrap();
    let expected = [0.0, 0.2f64.exp(), 0.0, -2.0 * 0.05f64.exp()];
    assert!(gradient.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6), "{gradient:?}");
}
