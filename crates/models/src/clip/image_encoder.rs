//! CLIP's image encoder alone, for what looks at images whatever their prompts.

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};

use super::ClipVisionModel;
use super::dual::{ClipVisionConfig, normalized};
use crate::layers::Linear;
use crate::number_format::{NumberFormat, in_format};
use crate::weights::LoadError;

/// The image encoder and the projection into the common space: transformers' `CLIPVisionModelWithProjection`.
#[derive(Module, Debug)]
pub struct ClipImageEncoder {
    /// Turns images into hidden states.
    pub vision_model: ClipVisionModel,
    /// From the image encoder into the common space, `[projection, vision width]`.
    pub visual_projection: Linear,
    /// The number format of the activations.
    #[module(skip)]
    format: NumberFormat,
    #[module(skip)]
    image_size: usize,
}

impl ClipImageEncoder {
    /// A network of these sizes, its weights not loaded yet.
    pub fn new(config: &ClipVisionConfig, projection_dim: usize, device: &Device) -> Self {
        Self {
            vision_model: ClipVisionModel::new(config, device),
            visual_projection: Linear::without_bias(config.hidden_size, projection_dim, device),
            format: NumberFormat::F32,
            image_size: config.image_size,
        }
    }

    /// Height and width of the image that the encoder sees, in pixels.
    pub fn image_size(&self) -> usize {
        self.image_size
    }

    /// The same network with the encoder's weights and activations in `format`. The projection stays f32.
    ///
    /// # Errors
    /// When a weight is too large for f16.
    pub fn in_format(self, format: NumberFormat) -> Result<Self, LoadError> {
        Ok(Self { vision_model: in_format(self.vision_model, "vision_model", format, None)?, format, ..self })
    }

    /// Normalised pixels `[b, 3, size, size]` → `[b, projection]`, of length 1.
    pub fn image_embeds(&self, pixel_values: Tensor<4>) -> Tensor<2> {
        let pixel_values = pixel_values.cast(self.format.dtype());
        normalized(self.visual_projection.forward(self.vision_model.forward(pixel_values).cast(DType::F32)))
    }
}
