//! The families of pipelines, and the components that each is made of.

/// The pipelines that can be loaded, by the class in `model_index.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `StableDiffusionPipeline`: 1.x and 2.x.
    StableDiffusion,
    /// `StableDiffusionXLPipeline`.
    StableDiffusionXl,
}

impl Family {
    /// The components that encode text, in the pipeline's order.
    pub fn text_encoders(self) -> &'static [&'static str] {
        match self {
            Self::StableDiffusion => &["text_encoder"],
            Self::StableDiffusionXl => &["text_encoder", "text_encoder_2"],
        }
    }

    /// The components that are read, in the order in which a missing one is reported.
    pub(crate) fn components(self) -> &'static [&'static str] {
        match self {
            Self::StableDiffusion => &["unet", "vae", "text_encoder", "tokenizer", "scheduler"],
            Self::StableDiffusionXl => &["unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"],
        }
    }
}
