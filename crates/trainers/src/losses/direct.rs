//! Losses from a reward's gradient.

use burn::tensor::Tensor;
use burn::tensor::activation::relu;

/// ReFL's loss: `grad_scale · mean(relu(margin − r))`, `[b]` → `[1]`. An image whose reward is above the margin gives no gradient.
///
/// Source: ImageReward (arXiv 2304.05977) equation 4 with φ = relu(margin − ·); ImageReward `ReFL.py`, where margin = 2 and
/// grad_scale = 1e-3.
pub fn refl_loss(rewards: Tensor<1>, margin: f64, grad_scale: f64) -> Tensor<1> {
    hinge(rewards, margin).mean() * grad_scale
}

/// `relu(margin − r)`, `[b]`.
fn hinge(rewards: Tensor<1>, margin: f64) -> Tensor<1> {
    relu(-rewards + margin)
}

/// LeapAlign's loss: `grad_scale · mean(w · relu(margin − r))`, `[b]` → `[1]`; the weights are constants.
///
/// Source: LeapAlign (arXiv 2604.15311) equations 11 and 13; FlowBP `trainers/sd35/leapalign.py`.
pub fn leap_align_loss(rewards: Tensor<1>, weights: Tensor<1>, margin: f64, grad_scale: f64) -> Tensor<1> {
    (hinge(rewards, margin) * weights.without_autodiff()).mean() * grad_scale
}

/// LeapAlign's weight of a trajectory, `1 / (max(d_j, τ) + max(d_0, τ))`, `[b]` each: the closer its two leaps end to the real path, the more
/// it counts.
///
/// Source: LeapAlign (arXiv 2604.15311) equation 12.
pub fn trajectory_similarity([first, second]: [Tensor<1>; 2], min_distance: f64) -> Tensor<1> {
    (first.clamp_min(min_distance) + second.clamp_min(min_distance)).recip()
}

/// SRPO's semantic relative preference of an image, `(1 + k) r₊ − r₋`, `[b]` each: its rewards under two texts against each other.
///
/// Source: SRPO (arXiv 2509.06942) equation 8, in the form of `SRP_cfg` in `fastvideo/SRPO.py`.
pub fn semantic_relative_preference(positive: Tensor<1>, negative: Tensor<1>, k: f64) -> Tensor<1> {
    positive * (1.0 + k) - negative
}

/// The loss of DRaFT, AlignProp and DRTune: `−grad_scale · mean(r)`, `[b]` → `[1]`.
///
/// Source: DRaFT (arXiv 2309.17400) equation 1; AlignProp (2310.03739) equation 2.
pub fn reward_loss(rewards: Tensor<1>, grad_scale: f64) -> Tensor<1> {
    rewards.mean() * -grad_scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    use crate::run::values;

    #[test]
    fn rewards_above_the_margin_give_no_gradient() {
        let rewards = Tensor::<1>::from_data([1.5, 3.0], &Device::flex().autodiff()).require_grad();
        let loss = refl_loss(rewards.clone(), 2.0, 0.1);
        // mean(0.5, 0) · 0.1
        assert!((loss.clone().into_scalar::<f32>() - 0.025).abs() < 1e-7);
        let gradient: Vec<f32> = rewards.grad(&loss.backward()).expect("tracked").into_data().try_to_vec().expect("f32");
        assert_eq!(gradient, [-0.05, 0.0]);
    }

    #[test]
    fn a_leap_counts_by_its_weight_and_gives_the_weight_no_gradient() {
        let device = Device::flex().autodiff();
        let tracked = |values: [f32; 3]| Tensor::<1>::from_data(values, &device).require_grad();
        let (rewards, distances) = (tracked([0.05, 0.75, -0.45]), [tracked([0.02, 0.3, 0.5]), tracked([0.06, 0.05, 0.3])]);
        // 1 / (0.1 + 0.1), 1 / (0.3 + 0.1), 1 / (0.5 + 0.3).
        let weights = trajectory_similarity(distances.clone(), 0.1);
        assert!(values(&weights).iter().zip([5.0, 2.5, 1.25]).all(|(a, b)| (a - b).abs() < 1e-5), "{:?}", values(&weights));
        let loss = leap_align_loss(rewards.clone(), weights, 0.55, 0.3);
        // 0.1 · (5 · 0.5 + 0 + 1.25 · 1)
        assert!((values(&loss)[0] - 0.375).abs() < 1e-6, "{:?}", values(&loss));
        let gradients = loss.backward();
        let gradient: Vec<f32> = rewards.grad(&gradients).expect("tracked").into_data().try_to_vec().expect("f32");
        assert!(gradient.iter().zip([-0.5, 0.0, -0.125]).all(|(a, b)| (a - b).abs() < 1e-6), "{gradient:?}");
        assert!(distances.iter().all(|distance| distance.grad(&gradients).is_none()));
    }

    #[test]
    fn a_relative_preference_pulls_to_one_text_and_away_from_the_other() {
        let device = Device::flex().autodiff();
        let tracked = |value: f32| Tensor::<1>::from_data([value], &device).require_grad();
        let (positive, negative) = (tracked(2.0), tracked(3.0));
        let preference = semantic_relative_preference(positive.clone(), negative.clone(), 0.25);
        assert_eq!(values(&preference), [-0.5]);
        let gradients = preference.backward();
        let gradient = |rewards: Tensor<1>| values(&rewards.grad(&gradients).expect("tracked"));
        assert_eq!((gradient(positive), gradient(negative)), (vec![1.25], vec![-1.0]));
        // The same text twice: the reward, discounted.
        let (reward, k) = (tracked(2.0), 0.25);
        assert_eq!(values(&semantic_relative_preference(reward.clone(), reward, k)), [0.5]);
    }

    #[test]
    fn the_loss_is_the_mean_rewards_negative() {
        let rewards = Tensor::<1>::from_data([1.0, 2.0], &Device::flex().autodiff()).require_grad();
        let loss = reward_loss(rewards.clone(), 0.1);
        assert!((values(&loss)[0] + 0.15).abs() < 1e-7);
        let gradient: Vec<f32> = rewards.grad(&loss.backward()).expect("tracked").into_data().try_to_vec().expect("f32");
        assert_eq!(gradient, [-0.05, -0.05]);
    }
}
