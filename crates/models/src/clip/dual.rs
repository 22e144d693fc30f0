//! The whole of CLIP: a text encoder and an image encoder into one space.
//!
//! Source: transformers `models/clip/modeling_clip.py`; PickScore (arXiv 2305.01569) and HPS v2 (arXiv 2306.09341) are weights of it.

use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value};
use vp_core::input_file;

use super::{ClipEncoder, ClipEncoderLayer, ClipTextConfig, ClipTextModel};
use crate::bounds;
use crate::error::{Error, Result};
use crate::footprint::{Ledger, Traced};
use crate::layers::{Activation, Conv2d, Embedding, LayerNorm, Linear, Mask, parameter};
use crate::number_format::{NumberFormat, in_format};
use crate::parameters::{load, named_parameters};
use crate::weights::{LoadError, SaveType, Weights, save_safetensors};

/// The key of the only scalar among the parameters.
pub(super) const LOGIT_SCALE: &str = "logit_scale";
/// Buffers that published files carry and that are not parameters.
pub(super) const UNUSED: [&str; 2] = ["text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"];

/// The sizes of the image encoder, from `vision_config` in a CLIP `config.json`. Absent fields have transformers' defaults.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// Channels of the hidden states.
    pub hidden_size: usize,
    /// Channels between the two linear layers of an MLP.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads per layer; they divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Height and width of the image, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, in pixels.
    pub patch_size: usize,
    /// The activation between the two linear layers of an MLP.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

/// The sizes of both encoders.
#[derive(Debug, Clone)]
pub struct ClipConfig {
    /// The sizes of the text encoder.
    pub text: ClipTextConfig,
    /// The sizes of the image encoder.
    pub vision: ClipVisionConfig,
    /// Channels of the common space.
    pub projection_dim: usize,
    /// The initial value of [`ClipModel::logit_scale`].
    pub logit_scale_init_value: f64,
    /// The file as it was read, written again with a tuned model.
    pub raw: Map<String, Value>,
}

/// The fields of `text_config` that shape the network. Published files have a hundred more there, all of them about generation.
#[derive(Deserialize)]
#[serde(default)]
struct TextFields {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: Activation,
    layer_norm_eps: f64,
    eos_token_id: u32,
}

impl Default for TextFields {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

impl ClipConfig {
    /// Reads and checks the `config.json` of a `CLIPModel`.
    ///
    /// # Errors
    /// When the file cannot be read, is another model's, or describes a network that cannot be.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = input_file::read_regular_to_string(path).map_err(|source| Error::Io { path: name.clone(), source })?;
        Self::parse(&text).map_err(|message| Error::Config { path: name, message })
    }

    pub(super) fn parse(text: &str) -> std::result::Result<Self, String> {
        let raw: Map<String, Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        bounds::check(&raw)?;
        if let Some(found) = raw.get("model_type").filter(|found| **found != "clip") {
            return Err(format!("model_type is {found}; expected \"clip\", of a CLIPModel with both encoders"));
        }
        let section = |name: &str| raw.get(name).cloned().filter(|value| !value.is_null()).unwrap_or_else(|| Value::Object(Map::new()));
        let text: TextFields = serde_json::from_value(section("text_config")).map_err(|error| format!("text_config: {error}"))?;
        let vision: ClipVisionConfig =
            serde_json::from_value(section("vision_config")).map_err(|error| format!("vision_config: {error}"))?;
        let number = |name: &str, default: f64| match raw.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| format!("{name} is {value}; expected a number")),
        };
        let (projection_dim, logit_scale_init_value) =
            (number("projection_dim", 512.0)? as usize, number("logit_scale_init_value", 2.6592)?);
        let text = ClipTextConfig {
            vocab_size: text.vocab_size,
            hidden_size: text.hidden_size,
            intermediate_size: text.intermediate_size,
            projection_dim,
            num_hidden_layers: text.num_hidden_layers,
            num_attention_heads: text.num_attention_heads,
            max_position_embeddings: text.max_position_embeddings,
            hidden_act: text.hidden_act,
            layer_norm_eps: text.layer_norm_eps,
            eos_token_id: text.eos_token_id,
            with_projection: false,
            raw: Map::new(),
        };
        let config = Self { text, vision, projection_dim, logit_scale_init_value, raw };
        config.checked()
    }

    /// The sizes of OpenAI's CLIP ViT-L/14.
    ///
    /// # Panics
    /// Never: the sizes are read by a test.
    pub fn vit_l() -> Self {
        Self::of_sizes([768, 3072, 12, 12], [1024, 4096, 24, 16], 768, "quick_gelu")
    }

    /// The sizes of LAION's CLIP ViT-H/14, which PickScore and HPS v2 are tuned from.
    ///
    /// # Panics
    /// Never: the sizes are read by a test.
    pub fn vit_h() -> Self {
        Self::of_sizes([1024, 4096, 24, 16], [1280, 5120, 32, 16], 1024, "gelu")
    }

    /// Encoders with these widths, inner widths, layers and heads, on patches of 14 pixels.
    fn of_sizes(text: [usize; 4], vision: [usize; 4], projection_dim: usize, activation: &str) -> Self {
        let encoder = |[hidden, inner, layers, heads]: [usize; 4]| {
            serde_json::json!({
                "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
                "hidden_act": activation, "patch_size": 14,
            })
        };
        let config =
            serde_json::json!({ "text_config": encoder(text), "vision_config": encoder(vision), "projection_dim": projection_dim });
        Self::parse(&config.to_string()).expect("published sizes fit together")
    }

    fn checked(self) -> std::result::Result<Self, String> {
        let Self { text, vision, projection_dim, .. } = &self;
        let encoders = [
            ("text_config", text.hidden_size, text.num_attention_heads, text.num_hidden_layers),
            ("vision_config", vision.hidden_size, vision.num_attention_heads, vision.num_hidden_layers),
        ];
        for (name, width, heads, layers) in encoders {
            if heads == 0 || width == 0 || !width.is_multiple_of(heads) || layers == 0 {
                return Err(format!(
                    "{name}: {layers} layers of hidden_size {width} with {heads} heads; expected at least one, of equal parts"
                ));
            }
        }
        let (size, patch) = (vision.image_size, vision.patch_size);
        if patch == 0 || size == 0 || !size.is_multiple_of(patch) {
            return Err(format!("vision_config: image_size {size} is not a multiple of patch_size {patch}"));
        }
        if *projection_dim == 0 {
            return Err("projection_dim is 0; expected at least 1".into());
        }
        Ok(self)
    }

    /// A network of these sizes, its weights not loaded yet.
    pub fn init(&self, device: &Device) -> ClipModel {
        ClipModel {
            text_model: self.text.init(device),
            vision_model: ClipVisionModel::new(&self.vision, device),
            visual_projection: Linear::without_bias(self.vision.hidden_size, self.projection_dim, device),
            text_projection: Linear::without_bias(self.text.hidden_size, self.projection_dim, device),
            logit_scale: parameter([1], self.logit_scale_init_value as f32, device),
        }
    }
}

/// Both encoders. Field names are transformers' keys.
#[derive(Module, Debug)]
pub struct ClipModel {
    /// Turns prompts into hidden states.
    pub text_model: ClipTextModel,
    /// Turns images into hidden states.
    pub vision_model: ClipVisionModel,
    /// From the image encoder into the common space, `[projection, vision width]`.
    pub visual_projection: Linear,
    /// From the text encoder into the common space, `[projection, text width]`.
    pub text_projection: Linear,
    /// `[1]`: the logarithm of the factor by which PickScore multiplies cosines.
    pub logit_scale: Param<Tensor<1>>,
}

/// A ViT with a class token, a norm before and one after.
#[derive(Module, Debug)]
pub struct ClipVisionModel {
    embeddings: ClipVisionEmbeddings,
    // The name is published with this slip.
    pre_layrnorm: LayerNorm,
    encoder: ClipEncoder,
    post_layernorm: LayerNorm,
}

/// Turns pixels into tokens: a class token, then one per patch, with positions added.
#[derive(Module, Debug)]
pub struct ClipVisionEmbeddings {
    class_embedding: Param<Tensor<1>>,
    patch_embedding: Conv2d,
    position_embedding: Embedding,
}

impl ClipVisionModel {
    pub(super) fn new(config: &ClipVisionConfig, device: &Device) -> Self {
        let (width, patch, eps) = (config.hidden_size, config.patch_size, config.layer_norm_eps);
        let layer = |_| ClipEncoderLayer::new(width, config.intermediate_size, config.num_attention_heads, config.hidden_act, eps, device);
        let patches = (config.image_size / patch).pow(2);
        Self {
            embeddings: ClipVisionEmbeddings {
                class_embedding: parameter([width], 0.0, device),
                patch_embedding: Conv2d::strided(3, width, patch, patch, (0, 0), device).without_bias(),
                position_embedding: Embedding::new(patches + 1, width, device),
            },
            pre_layrnorm: LayerNorm::new(width, eps, device),
            encoder: ClipEncoder { layers: (0..config.num_hidden_layers).map(layer).collect() },
            post_layernorm: LayerNorm::new(width, eps, device),
        }
    }

    /// Normalised pixels `[b, 3, size, size]` → the class token after the last norm, `[b, width]`.
    pub fn forward(&self, pixel_values: Tensor<4>) -> Tensor<2> {
        let patches = self.embeddings.patch_embedding.forward_patches(pixel_values);
        let [b, count, width] = patches.dims();
        let format = patches.dtype();
        let class = self.embeddings.class_embedding.val().cast(format).reshape([1, 1, width]).expand([b, 1, width]);
        let x = Tensor::cat(vec![class, patches], 1) + self.embeddings.position_embedding.first(count + 1).cast(format);
        let x = self.encoder.layers.iter().fold(self.pre_layrnorm.forward(x), |x, layer| layer.forward(x, Mask::None));
        self.post_layernorm.forward(x.narrow(1, 0, 1)).reshape([b, width])
    }
}

impl ClipVisionModel {
    /// [`forward`](Self::forward) of shapes, with weights and activations in `format`: normalised pixels `[b, 3, size, size]`.
    pub fn trace(&self, ledger: &Ledger, pixel_values: Traced, format: NumberFormat) -> Traced {
        let patches = self.embeddings.patch_embedding.trace_patches(ledger, ledger.cast(pixel_values, format), format);
        let &[b, count, width] = patches.dims() else { panic!("patches of {:?}", patches.dims()) };
        let tokens = ledger.cat(vec![ledger.constant(&[b, 1, width], format), patches], 1);
        let tokens = ledger.add(tokens, ledger.constant(&[1, count + 1, width], format));
        let x = self.pre_layrnorm.trace(ledger, tokens, format);
        let x = self.encoder.layers.iter().fold(x, |x, layer| layer.trace(ledger, x, format));
        ledger.part(&x, &[b, width])
    }
}

/// The rows of `x` divided by their lengths.
pub(super) fn normalized(x: Tensor<2>) -> Tensor<2> {
    x.clone() / x.square().sum_dim(1).sqrt()
}

impl ClipModel {
    /// The same network with the encoders' weights and activations in `format`. The projections stay f32.
    ///
    /// # Errors
    /// When a weight is too large for f16.
    pub fn in_format(self, format: NumberFormat) -> Result<Self, LoadError> {
        Ok(Self {
            text_model: self.text_model.in_format("text_model", format, None)?,
            vision_model: in_format(self.vision_model, "vision_model", format, None)?,
            ..self
        })
    }

    /// Normalised pixels `[b, 3, size, size]` → `[b, projection]`, of length 1.
    pub fn image_embeds(&self, pixel_values: Tensor<4>) -> Tensor<2> {
        let pixel_values = pixel_values.cast(self.text_model.format().dtype());
        normalized(self.visual_projection.forward(self.vision_model.forward(pixel_values).cast(DType::F32)))
    }

    /// Rows of token ids → `[b, projection]`, of length 1.
    pub fn text_embeds(&self, ids: &[Vec<u32>], device: &Device) -> Tensor<2> {
        normalized(self.text_projection.forward(self.text_model.forward(ids, device).pooled))
    }

    /// The cosine of each image and its prompt, `[b]`.
    pub fn cosine(&self, pixel_values: Tensor<4>, ids: &[Vec<u32>], device: &Device) -> Tensor<1> {
        let b = ids.len();
        (self.image_embeds(pixel_values) * self.text_embeds(ids, device)).sum_dim(1).reshape([b])
    }

    /// PickScore: `exp(logit_scale) · cos`, `[b]`.
    pub fn logits(&self, pixel_values: Tensor<4>, ids: &[Vec<u32>], device: &Device) -> Tensor<1> {
        self.cosine(pixel_values, ids, device) * self.logit_scale.val().exp()
    }
}

/// A loaded CLIP.
#[derive(Debug)]
pub struct ClipCheckpoint {
    /// The network, on the device that was asked for.
    pub model: ClipModel,
    pub config: ClipConfig,
}

/// Whether a folder's `config.json` is a `CLIPModel`'s.
pub fn is_clip(folder: &Path) -> bool {
    let config = input_file::read_regular_to_string(folder.join("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_str(&config).unwrap_or_default();
    config.get("model_type").is_some_and(|kind| kind == "clip")
}

impl ClipCheckpoint {
    /// Reads a folder as transformers writes it: `config.json`, and `model.safetensors` or `pytorch_model.bin`.
    ///
    /// # Errors
    /// When a file is missing, cannot be read, or does not fit; every tensor at fault is named.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let config = ClipConfig::read(&folder.join("config.json"))?;
        let mut weights = Weights::open_component(folder, "model")?;
        weights.ignore(&UNUSED);
        weights.unsqueeze_scalar(LOGIT_SCALE);
        Ok(Self { model: load(config.init(device), weights)?, config })
    }

    /// Writes `model.safetensors` and `config.json` as transformers reads them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path, kind: SaveType) -> Result<()> {
        let parameters = named_parameters(&self.model);
        let tensors = parameters.iter().map(|parameter| {
            let shape: &[usize] = if parameter.name == LOGIT_SCALE { &[] } else { &parameter.shape };
            let values = parameter.values.clone();
            let read: Box<dyn FnOnce() -> Vec<f32>> = Box::new(move || values.into_data().iter::<f32>().collect());
            (parameter.name.as_str(), shape, read)
        });
        save_safetensors(&folder.join("model.safetensors"), tensors, &[], kind)?;
        let path = folder.join("config.json");
        let text = serde_json::to_string_pretty(&self.config.raw).expect("it was JSON") + "\n";
        vp_core::atomic::write(&path, text.as_bytes()).map_err(|source| Error::Io { path: path.display().to_string(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 427.6 M and 986.1 M values, as published.
    #[test]
    fn published_clips_have_their_sizes() {
        let count = |config: ClipConfig| crate::footprint::values(&config.init(&crate::footprint::nowhere()));
        assert_eq!(count(ClipConfig::vit_l()), 427_616_513);
        assert_eq!(count(ClipConfig::vit_h()), 986_109_441);
    }

    #[test]
    fn a_config_that_cannot_be_is_refused() {
        let refused = |text: &str, what: &str| {
            let message = ClipConfig::parse(text).unwrap_err();
            assert!(message.contains(what), "{message}");
        };
        refused(r#"{"model_type": "clip_text_model"}"#, "expected \"clip\"");
        refused(r#"{"vision_config": {"patch_size": 15}}"#, "image_size 224 is not a multiple of patch_size 15");
        refused(r#"{"text_config": {"num_attention_heads": 7}}"#, "text_config: 12 layers of hidden_size 512 with 7 heads");
        refused(r#"{"projection_dim": "x"}"#, "projection_dim is \"x\"");
        // Without sizes the config is OpenAI's ViT-B/32; unknown fields are passed over.
        let config = ClipConfig::parse(r#"{"text_config": {"bad_words_ids": null}}"#).unwrap();
        assert_eq!((config.projection_dim, config.vision.patch_size, config.text.num_hidden_layers), (512, 32, 12));
    }
}
