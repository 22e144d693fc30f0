//! Finds the tensor that is not finite, so that a run that stops can name it.

use burn::tensor::Tensor;
use vp_models::denoiser::{Conditioning, Denoiser};

/// Whether the sum of all values is finite: false if a value is not, or if the sum overflows.
pub fn is_finite<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.clone().without_autodiff().sum().into_scalar::<f32>().is_finite()
}

/// The name of the first tensor that is not finite; `None` if all are.
pub fn first_of<'a, const D: usize>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor<D>)>) -> Option<String> {
    tensors.into_iter().find(|(_, tensor)| !is_finite(tensor)).map(|(name, _)| name.to_string())
}

/// The first part of a prediction that is not finite: the text encoder's output, or a part of the network under its name in a checkpoint.
/// `input` are the scaled latents `[b, c, h, w]`.
pub fn in_prediction<D: Denoiser>(denoiser: &D, input: Tensor<4>, timesteps: &[f32], conditioning: &Conditioning) -> Option<String> {
    let conditioning = conditioning.without_autodiff();
    let text = first_of([("the text encoder's output", &conditioning.encoder_hidden_states)]);
    text.or_else(|| denoiser.first_non_finite(input, timesteps, &conditioning).map(|part| format!("{}.{part}", D::COMPONENT)))
}
