//! Losses: pure functions of shaped tensors.

use burn::tensor::Tensor;
use burn::tensor::activation::{log_sigmoid, relu};

/// ReFL's loss: `grad_scale · mean(relu(margin − r))`, `[b]` → `[1]`. An image whose reward is above the margin gives no gradient.
///
/// Source: ImageReward (arXiv 2304.05977) equation 4 with φ = relu(margin − ·); ImageReward `ReFL.py`, where margin = 2 and
/// grad_scale = 1e-3.
pub fn refl_loss(rewards: Tensor<1>, margin: f64, grad_scale: f64) -> Tensor<1> {
    relu(-rewards + margin).mean() * grad_scale
}

/// The mean squared error of a prediction, `[b, c, h, w]` → `[1]`: the denoising loss.
pub fn mean_squared_error(prediction: Tensor<4>, target: Tensor<4>) -> Tensor<1> {
    (prediction - target).square().mean()
}

/// What Diffusion-DPO puts inside its σ: how far the model has come to prefer the chosen images, `[b]`; 0 for the reference itself.
///
/// ```text
/// inside = −0.5 β [(ℓ_θ(chosen) − ℓ_ref(chosen)) − (ℓ_θ(rejected) − ℓ_ref(rejected))]
/// ```
///
/// Takes the two differences of denoising losses, means over c, h, w; `[b]` each.
///
/// Source: Wallace et al. (arXiv 2311.12908) equation 14, with `train.py`'s 0.5 β for β T ω(λ_t) and means for squared norms. There
/// the same four losses are paired the other way round.
pub fn dpo_inside(chosen_change: Tensor<1>, rejected_change: Tensor<1>, beta: f64) -> Tensor<1> {
    (chosen_change - rejected_change) * (-0.5 * beta)
}

/// Diffusion-DPO's loss, `[b]` → `[1]`: the mean of −log σ(inside), without overflow on either side. Source: as [`dpo_inside`].
pub fn dpo_loss(inside: Tensor<1>) -> Tensor<1> {
    -log_sigmoid(inside).mean()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tolerance};

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
    fn dpo_of_the_reference_itself_is_ln_2() {
        let change = Tensor::<1>::zeros([2], &Device::flex());
        let loss = dpo_loss(dpo_inside(change.clone(), change, 5000.0));
        loss.into_data().assert_approx_eq::<f32>(&[std::f32::consts::LN_2].into(), Tolerance::default());
    }

    #[test]
    fn dpo_by_hand_and_its_gradient() {
        let device = Device::flex().autodiff();
        let change = |values: [f32; 2]| Tensor::<1>::from_data(values, &device).require_grad();
        let (chosen, rejected) = (change([0.0, -0.5]), change([-0.25, 0.5]));
        // −0.5 · 4 · (0 + 0.25) and −0.5 · 4 · (−0.5 − 0.5).
        let inside = dpo_inside(chosen.clone(), rejected.clone(), 4.0);
        inside.clone().into_data().assert_eq(&[-0.5f32, 2.0].into(), true);
        // Twice the β, twice the inside.
        dpo_inside(chosen.clone(), rejected.clone(), 8.0).into_data().assert_eq(&[-1.0f32, 4.0].into(), true);
        // (ln(1 + e^0.5) + ln(1 + e^−2)) / 2
        let loss = dpo_loss(inside);
        loss.clone().into_data().assert_approx_eq::<f32>(&[0.550502].into(), Tolerance::default());
        // ∂L/∂ℓ(chosen) = 0.5 β σ(−inside) / b, and its opposite: descent lowers the chosen losses and raises the rejected.
        let gradients = loss.backward();
        for (losses, sign) in [(chosen, 1.0), (rejected, -1.0)] {
            let gradient: Vec<f32> = losses.grad(&gradients).expect("tracked").into_data().try_to_vec().expect("f32");
            for (found, expected) in gradient.iter().zip([0.6224593, 0.11920292]) {
                assert!((found - sign * expected).abs() < 1e-6, "{gradient:?}");
            }
        }
    }

    #[test]
    fn dpo_is_finite_however_far_the_model_has_gone() {
        let inside = Tensor::<1>::from_data([1e4, -1e4], &Device::flex().autodiff()).require_grad();
        let loss = dpo_loss(inside.clone());
        assert_eq!(loss.clone().into_scalar::<f32>(), 5e3);
        let gradient: Vec<f32> = inside.grad(&loss.backward()).expect("tracked").into_data().try_to_vec().expect("f32");
        assert_eq!(gradient, [0.0, -0.5]);
    }
}
