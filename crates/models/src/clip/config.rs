//! `text_encoder/config.json`.

use serde_json::{Map, Value, json};

use crate::config_json::{ConfigJson, NetworkConfig};
use crate::error::Result;
use crate::layers::Activation;

/// The shape of a CLIP text encoder.
///
/// Source: transformers `models/clip/configuration_clip.py`, whose defaults hold where the file is silent.
#[derive(Debug, Clone)]
pub struct ClipTextConfig {
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// Channels of the hidden states.
    pub hidden_size: usize,
    /// Channels between the two linear layers of an MLP.
    pub intermediate_size: usize,
    /// Channels of the projected pooled state, if there is a projection.
    pub projection_dim: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads per layer; they divide `hidden_size`.
    pub num_attention_heads: usize,
    /// Length of the longest text, in tokens.
    pub max_position_embeddings: usize,
    /// The activation between the two linear layers of an MLP.
    pub hidden_act: Activation,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// The end-of-text token; 2 is the legacy value that means "the largest id of the row".
    pub eos_token_id: u32,
    /// Whether the pooled state is projected: `CLIPTextModelWithProjection`.
    pub with_projection: bool,
    /// The file as it was read, written again with a tuned model.
    pub raw: Map<String, Value>,
}

impl NetworkConfig for ClipTextConfig {
    fn from_json(mut json: ConfigJson) -> Result<Self> {
        let raw = json.raw();
        let architectures: Vec<String> = json.take("architectures", vec!["CLIPTextModel".into()])?;
        let with_projection = match architectures.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["CLIPTextModel"] => false,
            ["CLIPTextModelWithProjection"] => true,
            _ => {
                let found = format!("architectures = {architectures:?} is not supported");
                return Err(json.error(format!("{found}, expected CLIPTextModel or CLIPTextModelWithProjection")));
            }
        };
        json.only("model_type", &[json!("clip_text_model")])?;
        json.only("attention_dropout", &[json!(0.0), json!(0)])?;
        json.only("dropout", &[json!(0.0), json!(0)])?;
        // How it was once initialised, stored or tokenised; none changes what it computes.
        json.inert(&["initializer_factor", "initializer_range", "bos_token_id", "pad_token_id", "dtype", "torch_dtype"]);
        json.inert(&["transformers_version", "output_hidden_states", "output_attentions", "return_dict", "use_cache"]);
        let config = Self {
            vocab_size: json.take("vocab_size", 49408)?,
            hidden_size: json.take("hidden_size", 512)?,
            intermediate_size: json.take("intermediate_size", 2048)?,
            projection_dim: json.take("projection_dim", 512)?,
            num_hidden_layers: json.take("num_hidden_layers", 12)?,
            num_attention_heads: json.take("num_attention_heads", 8)?,
            max_position_embeddings: json.take("max_position_embeddings", 77)?,
            hidden_act: json.take("hidden_act", Activation::QuickGelu)?,
            layer_norm_eps: json.take("layer_norm_eps", 1e-5)?,
            eos_token_id: json.take("eos_token_id", 49407)?,
            with_projection,
            raw,
        };
        if config.num_hidden_layers == 0 {
            return Err(json.error("num_hidden_layers is 0"));
        }
        if config.hidden_size == 0 || config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let (width, heads) = (config.hidden_size, config.num_attention_heads);
            return Err(json.error(format!("hidden_size {width} is not divisible by num_attention_heads {heads}")));
        }
        json.finish()?;
        Ok(config)
    }
}

impl ClipTextConfig {
    /// The position at which a row's text ends: the first `eos_token_id`, or, under the legacy id 2, the first of the largest id.
    /// A row without one ends at its first token, as the reference's `argmax` of no match does.
    pub fn end_of_text(&self, ids: &[u32]) -> usize {
        let wanted = if self.eos_token_id == 2 { ids.iter().copied().max().unwrap_or(0) } else { self.eos_token_id };
        ids.iter().position(|id| *id == wanted).unwrap_or(0)
    }
}
