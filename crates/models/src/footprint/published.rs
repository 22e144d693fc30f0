//! The sizes of the published models, for one that is not on this machine yet.
//!
//! Source: the configs of Stable Diffusion 1.5, 2.1 and XL 1.0 as diffusers publishes them.

use std::path::Path;

use serde_json::{Value, json};

use crate::clip::ClipTextConfig;
use crate::config_json::NetworkConfig;
use crate::pipeline::ModelFolder;
use crate::unet::UNetConfig;
use crate::vae::AutoencoderConfig;

/// A published model whose sizes are known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// Stable Diffusion 1.x.
    One,
    /// Stable Diffusion 2.x.
    Two,
    /// Stable Diffusion XL.
    Xl,
}

/// The configs of a model's networks.
#[derive(Debug, Clone)]
pub struct ModelSizes {
    /// The denoiser's.
    pub unet: UNetConfig,
    /// The autoencoder's.
    pub vae: AutoencoderConfig,
    /// The text encoders', in the pipeline's order.
    pub text: Vec<ClipTextConfig>,
    /// The components that encode text, in the same order.
    pub text_components: &'static [&'static str],
    /// Height and width of an image in pixels, unless another size is asked for.
    pub default_size: [usize; 2],
}

impl ModelSizes {
    /// Those of a model whose configs were read.
    pub fn of(folder: &ModelFolder) -> Self {
        let text_components = folder.family().text_encoders();
        Self {
            unet: folder.unet_config().clone(),
            vae: folder.vae_config().clone(),
            text: text_components.iter().map(|component| folder.text_config(component).clone()).collect(),
            text_components,
            default_size: folder.default_size(),
        }
    }
}

impl Published {
    /// The model that a path or a hub id names, by the marks of its generation.
    pub fn named(path: &Path) -> Option<Self> {
        let name = path.to_string_lossy().to_lowercase();
        let has = |marks: &[&str]| marks.iter().any(|mark| name.contains(mark));
        if has(&["sdxl", "xl-base", "diffusion-xl", "_xl", "-xl"]) {
            Some(Self::Xl)
        } else if has(&["sd21", "sd2", "sd-2", "diffusion-2", "2-1", "2.1"]) {
            Some(Self::Two)
        } else if has(&["sd15", "sd1", "sd-1", "sd-v1", "diffusion-v1", "v1-5", "1-5", "1.5", "1-4", "1.4"]) {
            Some(Self::One)
        } else {
            None
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "Stable Diffusion 1.5",
            Self::Two => "Stable Diffusion 2.1",
            Self::Xl => "Stable Diffusion XL",
        }
    }

    /// The configs of its networks.
    ///
    /// # Panics
    /// Never: the configs below are read by a test.
    pub fn sizes(self) -> ModelSizes {
        const READ: &str = "a published config is read";
        let unet = UNetConfig::parse("unet/config.json", &self.unet().to_string()).expect(READ);
        let vae = AutoencoderConfig::parse("vae/config.json", &self.vae().to_string()).expect(READ);
        let text =
            self.text().into_iter().map(|config| ClipTextConfig::parse("text_encoder/config.json", &config.to_string()).expect(READ));
        let side = unet.sample_size.map_or(64, |[side, _]| side) * vae.downscale();
        let text_components: &[&str] = if self == Self::Xl { &["text_encoder", "text_encoder_2"] } else { &["text_encoder"] };
        ModelSizes { text: text.collect(), text_components, default_size: [side; 2], unet, vae }
    }

    fn unet(self) -> Value {
        let cross = "CrossAttnDownBlock2D";
        let up = "CrossAttnUpBlock2D";
        match self {
            Self::One | Self::Two => json!({
                "block_out_channels": [320, 640, 1280, 1280],
                "down_block_types": [cross, cross, cross, "DownBlock2D"],
                "up_block_types": ["UpBlock2D", up, up, up],
                "attention_head_dim": if self == Self::One { json!(8) } else { json!([5, 10, 20, 20]) },
                "cross_attention_dim": if self == Self::One { 768 } else { 1024 },
                "use_linear_projection": self == Self::Two,
                "sample_size": if self == Self::One { 64 } else { 96 },
            }),
            Self::Xl => json!({
                "block_out_channels": [320, 640, 1280],
                "down_block_types": ["DownBlock2D", cross, cross],
                "up_block_types": [up, up, "UpBlock2D"],
                "attention_head_dim": [5, 10, 20],
                "cross_attention_dim": 2048,
                "transformer_layers_per_block": [1, 2, 10],
                "use_linear_projection": true,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
                "sample_size": 128,
            }),
        }
    }

    fn vae(self) -> Value {
        json!({
            "block_out_channels": [128, 256, 512, 512],
            "layers_per_block": 2,
            "down_block_types": (["DownEncoderBlock2D"; 4]),
            "up_block_types": (["UpDecoderBlock2D"; 4]),
            "sample_size": match self { Self::One => 512, Self::Two => 768, Self::Xl => 1024 },
        })
    }

    fn text(self) -> Vec<Value> {
        let clip = |architecture: &str, [hidden, inner, layers, heads]: [usize; 4]| {
            json!({
                "architectures": [architecture], "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
                "num_attention_heads": heads, "projection_dim": hidden,
                "hidden_act": if hidden == 768 { "quick_gelu" } else { "gelu" },
            })
        };
        let large = clip("CLIPTextModel", [768, 3072, 12, 12]);
        match self {
            Self::One => vec![large],
            Self::Two => vec![clip("CLIPTextModel", [1024, 4096, 23, 16])],
            Self::Xl => vec![large, clip("CLIPTextModelWithProjection", [1280, 5120, 32, 20])],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_known_by_its_name() {
        let named = |name: &str| Published::named(Path::new(name));
        for name in ["sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5", "CompVis/stable-diffusion-v1-4", "models/sd-1.5"] {
            assert_eq!(named(name), Some(Published::One), "{name}");
        }
        for name in ["stabilityai/stable-diffusion-2-1", "sd21", "stable-diffusion-2"] {
            assert_eq!(named(name), Some(Published::Two), "{name}");
        }
        for name in ["stabilityai/stable-diffusion-xl-base-1.0", "sdxl", "models/SDXL"] {
            assert_eq!(named(name), Some(Published::Xl), "{name}");
        }
        assert_eq!(named("models/my-model"), None);
    }
}
