//! Losses: pure functions of shaped tensors.

use burn::tensor::Tensor;
use burn::tensor::activation::relu;

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

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn rewards_above_the_margin_give_no_gradient() {
        let rewards = Tensor::<1>::from_data([1.5, 3.0], &Device::flex().autodiff()).require_grad();
        let loss = refl_loss(rewards.clone(), 2.0, 0.1);
        // mean(0.5, 0) · 0.1
        assert!((loss.clone().into_scalar::<f32>() - 0.025).abs() < 1e-7);
        let gradient: Vec<f32> = rewards.grad(&loss.backward()).expect("tracked").into_data().try_to_vec().expect("f32");
        assert_eq!(gradient, [-0.05, 0.0]);
    }
}
