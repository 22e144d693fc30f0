//! The sizes of a BLIP reward, from `config.json` or from the weights themselves.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vp_core::config::Validate;
use vp_core::input_file;

use crate::bounds;
use crate::layers::Activation;
use crate::weights::{LoadError, Weights};

/// Channels of one attention head in every published BLIP and BERT; how heads are counted when no config says.
const HEAD_CHANNELS: usize = 64;
/// The last layer of a head with an activation between its linear layers, which count too.
pub(super) const CYCLE_REWARD_LAST: &str = "mlp.layers.8.weight";
/// Groups of channels that are normalised together in `vision_stem`.
pub(super) const STEM_GROUPS: usize = 8;

/// The fields of a BLIP reward's `config.json`. Others are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlipConfig {
    /// Height and width of the image the encoder sees, in pixels.
    pub image_size: usize,
    /// Height and width of a patch, in pixels.
    pub patch_size: usize,
    /// Convolutions before the patches' projection, as `[channels, stride]`; their strides multiply to a divisor of `patch_size`. None in
    /// published files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vision_stem: Vec<[usize; 2]>,
    /// Channels of the image encoder.
    pub vision_width: usize,
    /// Blocks of the image encoder.
    pub vision_depth: usize,
    /// Attention heads of the image encoder.
    pub vision_heads: usize,
    /// Channels of the text encoder, and of the features.
    pub hidden_size: usize,
    /// Layers of the text encoder.
    pub num_hidden_layers: usize,
    /// Attention heads of the text encoder.
    pub num_attention_heads: usize,
    /// Inner channels of the text encoder's feed-forward parts.
    pub intermediate_size: usize,
    /// Rows of the word embedding: tokens in the vocabulary.
    pub vocab_size: usize,
    /// Rows of the position embedding: the longest text, in tokens.
    pub max_position_embeddings: usize,
    /// ε of the text encoder's norms.
    #[serde(default = "bert_eps")]
    pub layer_norm_eps: f64,
    /// ε of the image encoder's norms.
    #[serde(default = "vit_eps")]
    pub vision_layer_norm_eps: f64,
    /// Output widths of the head's five linear layers; the last is 1.
    pub mlp: Vec<usize>,
    /// What is between the head's linear layers: nothing in ImageReward, the exact GELU in CycleReward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp_activation: Option<Activation>,
    /// This is subtracted from the head's output. By default it is ImageReward v1.0's mean over its training images; 0 where the head has
    /// an activation.
    #[serde(default = "image_reward_mean")]
    pub mean: f64,
    /// The difference is divided by this. By default it is ImageReward v1.0's standard deviation over its training images; 1 where the
    /// head has an activation.
    #[serde(default = "image_reward_std")]
    pub std: f64,
    /// Prompts are padded or cut to this many tokens. By default 35; 128 where the head has an activation.
    #[serde(default = "max_length")]
    pub max_length: usize,
    /// Whether there is a head for each aspect beside the published one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub aspects: bool,
}

fn bert_eps() -> f64 {
    1e-12
}
fn vit_eps() -> f64 {
    1e-6
}
fn image_reward_mean() -> f64 {
    0.167_173_628_300_524_26
}
fn image_reward_std() -> f64 {
    1.033_339_496_605_407_2
}
fn max_length() -> usize {
    35
}

impl BlipConfig {
    /// The sizes of the published `ImageReward.pt`: ViT-L/16 at 224 pixels, BERT base, and ImageReward's head.
    pub fn image_reward() -> Self {
        Self {
            image_size: 224,
            patch_size: 16,
            vision_stem: Vec::new(),
            vision_width: 1024,
            vision_depth: 24,
            vision_heads: 16,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            vocab_size: 30524,
            max_position_embeddings: 512,
            layer_norm_eps: bert_eps(),
            vision_layer_norm_eps: vit_eps(),
            mlp: vec![1024, 128, 64, 16, 1],
            mlp_activation: None,
            mean: image_reward_mean(),
            std: image_reward_std(),
            max_length: max_length(),
            aspects: false,
        }
    }

    /// The sizes of the published CycleReward (arXiv 2506.02095): ImageReward's, with GELU in the head, longer prompts and no scale.
    pub fn cycle_reward() -> Self {
        Self { mlp_activation: Some(Activation::Gelu), mean: 0.0, std: 1.0, max_length: 128, ..Self::image_reward() }
    }

    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, lacks a field, has an unknown one, or describes a network that cannot be built.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let name = path.display().to_string();
        let text = input_file::read_regular_to_string(path).map_err(|source| LoadError::Io { path: name.clone(), source })?;
        let wrong = |found: String| LoadError::Corrupt { path: name.clone(), found };
        let mut config: Self = serde_json::from_str(&text).map_err(|e| wrong(format!("not the config of a BLIP reward: {e}")))?;
        let stated: Map<String, Value> = serde_json::from_str(&text).expect("it was an object");
        bounds::check(&stated).map_err(wrong)?;
        if config.mlp_activation.is_some() {
            let published = Self::cycle_reward();
            config.mean = if stated.contains_key("mean") { config.mean } else { published.mean };
            config.std = if stated.contains_key("std") { config.std } else { published.std };
            config.max_length = if stated.contains_key("max_length") { config.max_length } else { published.max_length };
        }
        config.checked(&name)
    }

    /// The config that the shapes of a checkpoint imply, for one that comes without `config.json`, as `ImageReward.pt` does.
    /// Shapes tell everything except the number of attention heads (64 channels per head, as in every published BLIP), the norms' ε,
    /// the length of prompts and the scale; those are ImageReward's, or CycleReward's where the head's last layer is number 8, as GELU
    /// between linear layers makes it. For `ImageReward.pt` this is [`image_reward`](Self::image_reward).
    ///
    /// # Errors
    /// When a tensor whose shape tells a size is missing or has another number of axes: the file is not a BLIP reward.
    pub fn from_weights(weights: &Weights) -> Result<Self, LoadError> {
        let corrupt = |found: String| LoadError::Corrupt { path: weights.origin().into(), found };
        let size = |name: &str, axis: usize| {
            weights.shape(name).and_then(|shape| shape.get(axis)).copied().ok_or_else(|| {
                corrupt(format!(
                    "not a BLIP reward: {name} is missing or has another number of axes, and there is no config.json beside the weights"
                ))
            })
        };
        let count = |prefix: &str| {
            let index = |name: &str| name.strip_prefix(prefix)?.split('.').next()?.parse::<usize>().ok();
            weights.names().filter_map(index).max().map_or(0, |last| last.saturating_add(1))
        };
        let heads = |channels: usize, of: &str| match channels % HEAD_CHANNELS {
            0 => Ok(channels / HEAD_CHANNELS),
            _ => Err(corrupt(format!(
                "the {of} encoder has {channels} channels, which is not a multiple of {HEAD_CHANNELS}: the number of attention heads \
                 cannot be told from the weights; put a config.json beside them"
            ))),
        };
        let vision_width = size("blip.visual_encoder.cls_token", 2)?;
        let patch_size = size("blip.visual_encoder.patch_embed.proj.weight", 2)?;
        let patches = size("blip.visual_encoder.pos_embed", 1)?.saturating_sub(1);
        let word_embeddings = "blip.text_encoder.embeddings.word_embeddings.weight";
        let hidden_size = size(word_embeddings, 1)?;
        let has_head = weights.names().any(|name| name.starts_with("mlp."));
        let published = if weights.shape(CYCLE_REWARD_LAST).is_some() { Self::cycle_reward() } else { Self::image_reward() };
        let last = if published.mlp_activation.is_some() { 8 } else { 7 };
        let mlp = [0, 2, 4, 6, last].map(|layer| size(&format!("mlp.layers.{layer}.weight"), 0));
        let config = Self {
            image_size: patches.isqrt().saturating_mul(patch_size),
            patch_size,
            vision_width,
            vision_depth: count("blip.visual_encoder.blocks."),
            vision_heads: heads(vision_width, "image")?,
            hidden_size,
            num_hidden_layers: count("blip.text_encoder.encoder.layer."),
            num_attention_heads: heads(hidden_size, "text")?,
            intermediate_size: size("blip.text_encoder.encoder.layer.0.intermediate.dense.weight", 0)?,
            vocab_size: size(word_embeddings, 0)?,
            max_position_embeddings: size("blip.text_encoder.embeddings.position_embeddings.weight", 0)?,
            mlp: if has_head { mlp.into_iter().collect::<Result<_, _>>()? } else { Self::image_reward().mlp },
            aspects: weights.names().any(|name| name.starts_with("aspect_heads.")),
            ..published
        };
        config.checked(weights.origin())
    }

    fn checked(self, origin: &str) -> Result<Self, LoadError> {
        let mut findings = Vec::new();
        self.findings(&mut findings);
        if findings.is_empty() { Ok(self) } else { Err(LoadError::Corrupt { path: origin.into(), found: findings.join("; ") }) }
    }

    /// Pixels of the image per pixel of the output of `vision_stem`, along each axis.
    pub fn stem_stride(&self) -> usize {
        self.vision_stem.iter().fold(1, |product: usize, [_, stride]| product.saturating_mul(*stride))
    }

    /// Image tokens: the patches and the class token.
    pub fn image_tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2) + 1
    }
}

impl Validate for BlipConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        let positive = [
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("vision_width", self.vision_width),
            ("vision_depth", self.vision_depth),
            ("vision_heads", self.vision_heads),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
        ];
        findings.extend(positive.iter().filter(|(_, value)| *value == 0).map(|(name, _)| format!("{name} is 0")));
        let multiples = [
            ("image_size", self.image_size, "patch_size", self.patch_size),
            ("vision_width", self.vision_width, "vision_heads", self.vision_heads),
            ("hidden_size", self.hidden_size, "num_attention_heads", self.num_attention_heads),
        ];
        for (name, value, by, divisor) in multiples {
            if divisor != 0 && value % divisor != 0 {
                findings.push(format!("{name} = {value} is not a multiple of {by} = {divisor}"));
            }
        }
        if let Some([channels, _]) = self.vision_stem.iter().find(|[channels, _]| !channels.is_multiple_of(STEM_GROUPS) || *channels == 0) {
            findings.push(format!("vision_stem has {channels} channels: expected a multiple of {STEM_GROUPS}"));
        }
        let stride = self.stem_stride();
        if !self.patch_size.is_multiple_of(stride) {
            findings
                .push(format!("the strides of vision_stem multiply to {stride}: expected a divisor of patch_size = {}", self.patch_size));
        }
        if self.mlp.len() != 5 || self.mlp.last() != Some(&1) || self.mlp.contains(&0) {
            findings.push(format!("mlp = {:?}: expected the widths of five layers, the last of them 1", self.mlp));
        }
        if self.mlp_activation.is_some() && self.aspects {
            findings.push("aspects is true and mlp_activation is set: heads for aspects are linear, so that their sum is one".into());
        }
        // [CLS] and [SEP] are always there.
        if self.max_length < 2 || self.max_length > self.max_position_embeddings {
            findings.push(format!(
                "max_length = {}: expected 2 to max_position_embeddings = {}",
                self.max_length, self.max_position_embeddings
            ));
        }
        for (name, eps) in [("layer_norm_eps", self.layer_norm_eps), ("vision_layer_norm_eps", self.vision_layer_norm_eps)] {
            if !(eps > 0.0 && eps.is_finite()) {
                findings.push(format!("{name} = {eps}: expected a small positive number"));
            }
        }
        if !self.mean.is_finite() {
            findings.push(format!("mean = {} is not finite", self.mean));
        }
        if !(self.std > 0.0 && self.std.is_finite()) {
            findings.push(format!("std = {}: expected a positive number", self.std));
        }
    }
}
