//! open_clip's files: other names and a few other shapes for the same two encoders.
//!
//! Source: open_clip `src/open_clip/model.py` (`CLIPTextCfg`, `CLIPVisionCfg`), `transformer.py` and `transform.py`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use vp_core::input_file;

use super::ClipConfig;
use crate::error::{Error, Result};
use crate::resize::{CLIP_MEAN, CLIP_STD, Preprocessing, ResizeMode};
use crate::weights::Weights;

/// Tensors that open_clip's files may carry and that are not parameters.
const UNUSED: [&str; 4] = ["attn_mask", "input_resolution", "context_length", "vocab_size"];
/// Channels of an attention head where the config does not say.
const HEAD_WIDTH: usize = 64;
/// The published image encoders whose heads are not [`HEAD_WIDTH`] wide, by their width: ViT-H, ViT-g and ViT-bigG.
const WIDE_HEADS: [(usize, usize); 3] = [(1280, 80), (1408, 88), (1664, 104)];

/// What `open_clip_config.json` says beyond the shapes of the tensors. All of it may be left out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct OpenClipConfig {
    model_cfg: ModelFields,
    preprocess_cfg: PreprocessFields,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ModelFields {
    embed_dim: Option<usize>,
    vision_cfg: VisionFields,
    text_cfg: TextFields,
    quick_gelu: Option<bool>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct VisionFields {
    image_size: Option<usize>,
    layers: Option<usize>,
    width: Option<usize>,
    patch_size: Option<usize>,
    head_width: Option<usize>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct TextFields {
    context_length: Option<usize>,
    vocab_size: Option<usize>,
    width: Option<usize>,
    heads: Option<usize>,
    layers: Option<usize>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PreprocessFields {
    mean: Option<[f64; 3]>,
    std: Option<[f64; 3]>,
    interpolation: Option<String>,
    resize_mode: ResizeMode,
    fill_color: Option<Value>,
}

/// Fields that change nothing in a trained network, or that the shapes tell.
const INERT: [&str; 4] = ["patch_dropout", "init_logit_scale", "tokenizer_kwargs", "mlp_ratio"];

/// The numbers of heads of the two encoders, and their activation, where no config states them.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenClipDefaults {
    /// Heads of both encoders; absent: by the width of a head.
    pub heads: Option<usize>,
    /// Whether the activation is QuickGELU, OpenAI's, or the exact GELU; absent: the config has to say.
    pub quick_gelu: Option<bool>,
}

impl OpenClipConfig {
    /// Reads `open_clip_config.json`.
    ///
    /// # Errors
    /// When the file cannot be read, or asks for a part that is not built here.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = input_file::read_regular_to_string(path).map_err(|source| Error::Io { path: name.clone(), source })?;
        Self::parse(&text).map_err(|message| Error::Config { path: name, message })
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let config: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let model = &config.model_cfg;
        for (section, fields) in [("", &model.others), ("vision_cfg.", &model.vision_cfg.others), ("text_cfg.", &model.text_cfg.others)] {
            let asks = |(name, value): &(&String, &Value)| {
                !INERT.contains(&name.as_str()) && !matches!(value, Value::Null | Value::Bool(false)) && !is_default(name, value)
            };
            if let Some((name, value)) = fields.iter().find(asks) {
                return Err(format!(
                    "model_cfg.{section}{name} = {value} is not built here; only open_clip's own ViT with its own text encoder is"
                ));
            }
        }
        let preprocess = &config.preprocess_cfg;
        if let Some(other) = preprocess.interpolation.as_deref().filter(|kind| *kind != "bicubic") {
            return Err(format!("preprocess_cfg.interpolation is {other:?}; expected \"bicubic\""));
        }
        let black = |value: &Value| value.is_null() || value == &json!(0) || value == &json!([0, 0, 0]);
        if let Some(color) = preprocess.fill_color.as_ref().filter(|color| !black(color)) {
            return Err(format!("preprocess_cfg.fill_color is {color}; expected 0, black"));
        }
        Ok(config)
    }

    /// What makes the input of an encoder of images of `size` pixels.
    pub fn preprocessing(&self, size: usize) -> Preprocessing {
        let PreprocessFields { mean, std, resize_mode, .. } = self.preprocess_cfg;
        Preprocessing { size, resize_mode, mean: mean.unwrap_or(CLIP_MEAN), std: std.unwrap_or(CLIP_STD) }
    }

    /// The config of the network whose tensors, under open_clip's names, are `weights`. What shapes do not tell comes from here, else from
    /// `defaults`: 64 channels per head (of the published ViT-H, -g and -bigG image encoders: 80, 88, 104).
    ///
    /// # Errors
    /// When a tensor that tells a size is missing, the config says otherwise, or neither of both says what the activation is.
    pub fn network(&self, weights: &Weights, defaults: OpenClipDefaults) -> Result<ClipConfig> {
        self.transformers(weights, defaults)
            .and_then(|config| ClipConfig::parse(&config.to_string()))
            .map_err(|message| Error::Config { path: weights.origin().into(), message })
    }

    /// The same network as transformers describes it.
    fn transformers(&self, weights: &Weights, defaults: OpenClipDefaults) -> std::result::Result<Value, String> {
        let shapes = Shapes::of(weights)?;
        self.check(&shapes)?;
        let ModelFields { vision_cfg, text_cfg, quick_gelu, .. } = &self.model_cfg;
        let wide = WIDE_HEADS.iter().find(|(width, _)| *width == shapes.vision.width).map(|(_, head)| *head);
        let by_width = |width: usize, head: usize| width.checked_div(head).unwrap_or(0);
        let vision_heads = match (vision_cfg.head_width, defaults.heads) {
            (None, Some(heads)) => heads,
            (head, _) => by_width(shapes.vision.width, head.or(wide).unwrap_or(HEAD_WIDTH)),
        };
        let text_heads = text_cfg.heads.or(defaults.heads).unwrap_or(by_width(shapes.text.width, HEAD_WIDTH));
        let quick_gelu = quick_gelu.or(self.is_stated().then_some(false)).or(defaults.quick_gelu).ok_or(UNKNOWN_ACTIVATION)?;
        let hidden_act = if quick_gelu { "quick_gelu" } else { "gelu" };
        Ok(json!({
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": shapes.projection_dim,
            "logit_scale_init_value": 2.6592,
            "text_config": {
                "vocab_size": shapes.vocab_size,
                "hidden_size": shapes.text.width,
                "intermediate_size": shapes.text.mlp,
                "num_hidden_layers": shapes.text.layers,
                "num_attention_heads": text_heads,
                "max_position_embeddings": shapes.context_length,
                "hidden_act": hidden_act,
                // The text ends at the largest id of the row, as in open_clip.
                "eos_token_id": 2,
            },
            "vision_config": {
                "hidden_size": shapes.vision.width,
                "intermediate_size": shapes.vision.mlp,
                "num_hidden_layers": shapes.vision.layers,
                "num_attention_heads": vision_heads,
                "image_size": shapes.image_size,
                "patch_size": shapes.patch_size,
                "hidden_act": hidden_act,
            },
        }))
    }

    /// Where the config and the tensors say different things.
    fn check(&self, shapes: &Shapes) -> std::result::Result<(), String> {
        let ModelFields { embed_dim, vision_cfg: vision, text_cfg: text, .. } = &self.model_cfg;
        let told = [
            ("embed_dim", *embed_dim, shapes.projection_dim),
            ("vision_cfg.image_size", vision.image_size, shapes.image_size),
            ("vision_cfg.layers", vision.layers, shapes.vision.layers),
            ("vision_cfg.width", vision.width, shapes.vision.width),
            ("vision_cfg.patch_size", vision.patch_size, shapes.patch_size),
            ("text_cfg.context_length", text.context_length, shapes.context_length),
            ("text_cfg.vocab_size", text.vocab_size, shapes.vocab_size),
            ("text_cfg.width", text.width, shapes.text.width),
            ("text_cfg.layers", text.layers, shapes.text.layers),
        ];
        match told.into_iter().find(|(_, told, found)| told.is_some_and(|told| told != *found)) {
            Some((field, Some(told), found)) => {
                Err(format!("its tensors have {found} where open_clip_config.json says model_cfg.{field} = {told}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether this was read from a file that describes the model, which then leaves `quick_gelu` out where it is false.
    fn is_stated(&self) -> bool {
        let model = &self.model_cfg;
        model.embed_dim.is_some() || model.vision_cfg.width.is_some() || model.text_cfg.width.is_some()
    }
}

/// What the shapes of the tensors tell.
struct Shapes {
    projection_dim: usize,
    vision: Encoder,
    text: Encoder,
    image_size: usize,
    patch_size: usize,
    vocab_size: usize,
    context_length: usize,
}

/// The sizes of one of the two transformers.
struct Encoder {
    width: usize,
    layers: usize,
    mlp: usize,
}

impl Shapes {
    fn of(weights: &Weights) -> std::result::Result<Self, String> {
        let size = |name: &str, axis: usize| {
            let found = weights.shape(name).and_then(|shape| shape.get(axis)).copied();
            found.ok_or_else(|| format!("is an open_clip checkpoint, but lacks {name}, which one of a ViT has"))
        };
        let encoder = |width: usize, blocks: &str| {
            let layers = (0..).take_while(|i| weights.shape(&format!("{blocks}.{i}.ln_1.weight")).is_some()).count();
            Ok::<_, String>(Encoder { width, layers, mlp: size(&format!("{blocks}.0.mlp.c_fc.weight"), 0)? })
        };
        let patch_size = size("visual.conv1.weight", 2)?;
        Ok(Self {
            projection_dim: size("text_projection", 1)?,
            vision: encoder(size("visual.class_embedding", 0)?, "visual.transformer.resblocks")?,
            text: encoder(size("token_embedding.weight", 1)?, "transformer.resblocks")?,
            image_size: size("visual.positional_embedding", 0)?.saturating_sub(1).isqrt() * patch_size,
            patch_size,
            vocab_size: size("token_embedding.weight", 0)?,
            context_length: size("positional_embedding", 0)?,
        })
    }
}

const UNKNOWN_ACTIVATION: &str = "is an open_clip checkpoint without open_clip_config.json, and its tensors do not tell the activation; put \
                                  the published config beside it, or {\"model_cfg\": {\"quick_gelu\": true}} (OpenAI's) or false (LAION's)";

/// Whether a field that is not read here has the value that it has when it is absent.
fn is_default(name: &str, value: &Value) -> bool {
    let default = match name {
        "pool_type" => return value == &json!("tok") || value == &json!("argmax"),
        "proj_type" => json!("linear"),
        "pos_embed_type" => json!("learnable"),
        "pad_id" => json!(0),
        "act_kwargs" | "norm_kwargs" => json!({}),
        _ => return false,
    };
    value == &default
}

/// Whether tensors of these names are an open_clip checkpoint's.
pub fn is_open_clip(weights: &Weights) -> bool {
    ["visual.conv1.weight", "token_embedding.weight"].iter().all(|name| weights.shape(name).is_some())
}

/// Renames open_clip's tensors to transformers' names: the fused `in_proj` becomes three (its rows are q, k, v), and the projections, which
/// open_clip applies as `x @ P`, are transposed.
pub fn rename_open_clip(weights: &mut Weights) {
    weights.ignore(&UNUSED);
    let fused: Vec<String> = weights.names().filter(|name| name.contains(".attn.in_proj_")).map(String::from).collect();
    for name in fused {
        let (layer, kind) = name.split_once(".attn.in_proj_").expect("it was looked for");
        weights.split_rows(&name, &["q", "k", "v"].map(|part| format!("{layer}.attn.{part}_proj.{kind}")));
    }
    for projection in ["visual.proj", "text_projection"] {
        weights.transpose(projection);
    }
    let whole = BTreeMap::from([
        ("visual.proj", "visual_projection.weight"),
        ("text_projection", "text_projection.weight"),
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
        ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("logit_scale", "logit_scale"),
    ]);
    weights.rename(|name| {
        if let Some(renamed) = whole.get(name) {
            return (*renamed).into();
        }
        let (encoder, name) = name.strip_prefix("visual.").map_or(("text_model", name), |name| ("vision_model", name));
        let parts = [
            ("transformer.resblocks.", "encoder.layers."),
            (".attn.", ".self_attn."),
            (".ln_1.", ".layer_norm1."),
            (".ln_2.", ".layer_norm2."),
            (".c_fc.", ".fc1."),
            (".c_proj.", ".fc2."),
            ("ln_pre.", "pre_layrnorm."),
            ("ln_post.", "post_layernorm."),
            ("ln_final.", "final_layer_norm."),
        ];
        let renamed = parts.iter().fold(name.to_string(), |name, (from, to)| name.replace(from, to));
        format!("{encoder}.{renamed}")
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_that_asks_for_what_is_not_built_is_refused() {
        let refused = |text: &str, what: &str| {
            let message = OpenClipConfig::parse(text).unwrap_err();
            assert!(message.contains(what), "{message}");
        };
        let timm = r#"{"model_cfg": {"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"}}}"#;
        refused(timm, "model_cfg.vision_cfg.timm_model_name = \"vit_base_patch16_siglip_224\" is not built here");
        refused(r#"{"model_cfg": {"text_cfg": {"hf_tokenizer_name": "t"}}}"#, "model_cfg.text_cfg.hf_tokenizer_name");
        refused(r#"{"model_cfg": {"custom_text": true}}"#, "model_cfg.custom_text = true");
        refused(r#"{"preprocess_cfg": {"interpolation": "bilinear"}}"#, "expected \"bicubic\"");
        refused(r#"{"preprocess_cfg": {"fill_color": 255}}"#, "fill_color is 255");
        refused(r#"{"preprocess_cfg": {"resize_mode": "widest"}}"#, "widest");
        let published = r#"{"model_cfg": {"quick_gelu": true, "text_cfg": {"pool_type": "argmax", "embed_cls": false, "pad_id": 0}},
                            "preprocess_cfg": {"resize_mode": "squash", "mean": [0.5, 0.5, 0.5], "fill_color": 0}}"#;
        let preprocessing = OpenClipConfig::parse(published).unwrap().preprocessing(224);
        assert_eq!((preprocessing.resize_mode, preprocessing.mean, preprocessing.std), (ResizeMode::Squash, [0.5; 3], CLIP_STD));
    }
}
