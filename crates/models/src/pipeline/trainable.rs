//! What one optimizer step owns: the denoiser and, where they train too, the text encoders.

use burn::module::{Module, ModuleDisplay};

use super::text::TextEncoders;
use crate::clip::ClipTextModel;
use crate::denoiser::Denoiser;

/// The tuned parts of a pipeline under one roof, so that one optimizer, one moving average and one checkpoint hold them all.
/// The names of its parameters begin with `unet.`, `text_encoder.` and `text_encoder_2.`.
#[derive(Module, Debug)]
pub struct Trainable<D: Module + ModuleDisplay> {
    /// Predicts noise.
    pub unet: D,
    /// The first text encoder, where it trains.
    pub text_encoder: Option<ClipTextModel>,
    /// SDXL's second, where it trains.
    pub text_encoder_2: Option<ClipTextModel>,
}

impl<D: Denoiser> Trainable<D> {
    /// A denoiser alone.
    pub fn denoiser(unet: D) -> Self {
        Self { unet, text_encoder: None, text_encoder_2: None }
    }

    /// The pipeline's text encoders with those that train in place of their originals. On the tape, embeddings are then too.
    pub fn text(&self, text: &TextEncoders) -> TextEncoders {
        text.with_models([self.text_encoder.as_ref(), self.text_encoder_2.as_ref()])
    }
}
