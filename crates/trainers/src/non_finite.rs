//! Which tensor is not finite: what a run that stops says of its last micro-batch.

use burn::tensor::Tensor;
use vp_models::denoiser::{Conditioning, Denoiser};

/// Whether every value is finite, or their sum too large for one.
pub fn is_finite<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.clone().without_autodiff().sum().into_scalar::<f32>().is_finite()
}

/// The name of the first tensor that is not finite.
pub fn first_of<'a, const D: usize>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor<D>)>) -> Option<String> {
    tensors.into_iter().find(|(_, tensor)| !is_finite(tensor)).map(|(name, _)| name.to_string())
}

/// The first part of a prediction for the scaled latents `input` `[b, c, h, w]` that is not finite: what the text encoder says, or a
/// part of the network by its name in a checkpoint.
pub fn in_prediction<D: Denoiser>(denoiser: &D, input: Tensor<4>, timesteps: &[f32], conditioning: &Conditioning) -> Option<String> {
    let conditioning = conditioning.without_autodiff();
    let text = first_of([("the text encoder's output", &conditioning.encoder_hidden_states)]);
    text.or_else(|| denoiser.first_non_finite(input, timesteps, &conditioning).map(|part| format!("{}.{part}", D::COMPONENT)))
}
