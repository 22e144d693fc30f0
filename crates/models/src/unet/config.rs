//! `unet/config.json`.

use serde_json::{Map, Value, json};

use crate::config_json::{ConfigJson, NetworkConfig};
use crate::error::Result;

/// The shape of a UNet2DConditionModel. Lists have one entry per level, from the full resolution down.
///
/// Source: diffusers `models/unets/unet_2d_condition.py`, whose defaults hold where the file is silent.
#[derive(Debug, Clone)]
pub struct UNetConfig {
    /// Channels of the noisy latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Height and width of the latents that the model was trained with, if the file says.
    pub sample_size: Option<[usize; 2]>,
    /// Whether the input `x` is centred first: `2x − 1`.
    pub center_input_sample: bool,
    /// Whether cosines come before sines in the time embedding.
    pub flip_sin_to_cos: bool,
    /// Shift of the time embedding's frequencies.
    pub freq_shift: f64,
    /// Which levels have cross-attention on the way down.
    pub down_attention: Vec<bool>,
    /// Which levels have cross-attention on the way up; this list goes from the lowest resolution to the full one.
    pub up_attention: Vec<bool>,
    /// Channels at each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks per level on the way down; the way up has one more per level.
    pub layers_per_block: Vec<usize>,
    /// The sum at the end of each residual block at the lowest resolution is divided by this.
    pub mid_block_scale_factor: f64,
    /// Groups of channels in every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' norms.
    pub norm_eps: f64,
    /// Channels of the text embeddings, at each level.
    pub cross_attention_dim: Vec<usize>,
    /// Attention heads at each level. Files call this `attention_head_dim`, a misnomer that diffusers keeps for the sake of old checkpoints.
    pub num_attention_heads: Vec<usize>,
    /// Transformer blocks after each residual block that has attention, at each level.
    pub transformer_layers_per_block: Vec<usize>,
    /// Whether the projections around the transformer blocks are stored as matrices instead of 1×1 convolutions.
    pub use_linear_projection: bool,
    /// Width of the time embedding.
    pub time_embedding_dim: usize,
    /// The embedding that is added to that of the time, if there is one.
    pub addition: Option<Addition>,
    /// The file as it was read, written again with a tuned model.
    pub raw: Map<String, Value>,
}

/// The embedding that a network adds to that of the time: `addition_embed_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addition {
    /// `"text"`: the text embeddings, pooled by attention.
    Text {
        /// `addition_embed_type_num_heads`: attention heads of the pooling.
        heads: usize,
    },
    /// `"text_time"`: SDXL's pooled text and size conditioning.
    TextTime(TextTime),
}

/// `addition_embed_type = "text_time"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextTime {
    /// Width of the embedding of each of the six size numbers.
    pub addition_time_embed_dim: usize,
    /// Pooled text width plus six times the above.
    pub projection_class_embeddings_input_dim: usize,
}

impl NetworkConfig for UNetConfig {
    fn from_json(mut json: ConfigJson) -> Result<Self> {
        let raw = json.raw();
        json.only("_class_name", &[json!("UNet2DConditionModel")])?;
        refuse_what_is_not_built(&mut json)?;
        let block_out_channels: Vec<usize> = json.take("block_out_channels", vec![320, 640, 1280, 1280])?;
        let levels = block_out_channels.len();
        if levels == 0 {
            return Err(json.error("block_out_channels is empty"));
        }
        let default_down = [vec!["CrossAttnDownBlock2D".to_string(); 3], vec!["DownBlock2D".into()]].concat();
        let default_up = [vec!["UpBlock2D".to_string()], vec!["CrossAttnUpBlock2D".into(); 3]].concat();
        let down_attention = attention_flags(&mut json, "down_block_types", default_down, levels, ["CrossAttnDownBlock2D", "DownBlock2D"])?;
        let up_attention = attention_flags(&mut json, "up_block_types", default_up, levels, ["CrossAttnUpBlock2D", "UpBlock2D"])?;
        let heads = json.take_each("num_attention_heads", levels)?;
        let head_dim = json.take_each("attention_head_dim", levels)?;
        let num_attention_heads: Vec<usize> = heads.or(head_dim).unwrap_or(vec![8; levels]);
        let norm_num_groups = json.take("norm_num_groups", 32)?;
        let config = Self {
            in_channels: json.take("in_channels", 4)?,
            out_channels: json.take("out_channels", 4)?,
            sample_size: json.take_size("sample_size")?,
            center_input_sample: json.take("center_input_sample", false)?,
            flip_sin_to_cos: json.take("flip_sin_to_cos", true)?,
            freq_shift: json.take("freq_shift", 0.0)?,
            down_attention,
            up_attention,
            layers_per_block: json.take_each("layers_per_block", levels)?.unwrap_or(vec![2; levels]),
            mid_block_scale_factor: json.take("mid_block_scale_factor", 1.0)?,
            norm_num_groups,
            norm_eps: json.take("norm_eps", 1e-5)?,
            cross_attention_dim: json.take_each("cross_attention_dim", levels)?.unwrap_or(vec![1280; levels]),
            num_attention_heads,
            transformer_layers_per_block: json.take_each("transformer_layers_per_block", levels)?.unwrap_or(vec![1; levels]),
            use_linear_projection: json.take("use_linear_projection", false)?,
            time_embedding_dim: json.take("time_embedding_dim", 4 * block_out_channels[0])?,
            addition: addition(&mut json)?,
            block_out_channels,
            raw,
        };
        config.check(&json)?;
        json.finish()?;
        Ok(config)
    }
}

impl UNetConfig {
    fn check(&self, json: &ConfigJson) -> Result<()> {
        if self.norm_num_groups == 0 || self.layers_per_block.contains(&0) || self.transformer_layers_per_block.contains(&0) {
            return Err(json.error("norm_num_groups, layers_per_block and transformer_layers_per_block must be at least 1"));
        }
        for (channels, heads) in self.block_out_channels.iter().zip(&self.num_attention_heads) {
            if channels % self.norm_num_groups != 0 {
                return Err(
                    json.error(format!("block_out_channels {channels} is not divisible by norm_num_groups {}", self.norm_num_groups))
                );
            }
            if *heads == 0 || channels % heads != 0 {
                return Err(json.error(format!("block_out_channels {channels} is not divisible by its {heads} attention heads")));
            }
        }
        if let Some(Addition::Text { heads }) = self.addition {
            let width = self.cross_attention_dim[0];
            if self.cross_attention_dim.iter().any(|other| *other != width) {
                let widths = &self.cross_attention_dim;
                return Err(
                    json.error(format!("addition_embed_type = \"text\" pools text of one width, found cross_attention_dim {widths:?}"))
                );
            }
            if heads == 0 || !width.is_multiple_of(heads) {
                return Err(json.error(format!("cross_attention_dim {width} is not divisible by addition_embed_type_num_heads {heads}")));
            }
        }
        Ok(())
    }
}

fn attention_flags(
    json: &mut ConfigJson,
    field: &str,
    default: Vec<String>,
    levels: usize,
    [with, without]: [&str; 2],
) -> Result<Vec<bool>> {
    let types: Vec<String> = json.take(field, default)?;
    if types.len() != levels {
        return Err(json.error(format!("{field} lists {} blocks, block_out_channels {levels}", types.len())));
    }
    let flag = |name: &String| match name.as_str() {
        name if name == with => Ok(true),
        name if name == without => Ok(false),
        _ => Err(json.error(format!("{field}: block {name:?} is not supported, expected {with} or {without}"))),
    };
    types.iter().map(flag).collect()
}

fn addition(json: &mut ConfigJson) -> Result<Option<Addition>> {
    let kind: Option<String> = json.take_optional("addition_embed_type")?;
    let embed_dim: Option<usize> = json.take_optional("addition_time_embed_dim")?;
    let input_dim: Option<usize> = json.take_optional("projection_class_embeddings_input_dim")?;
    let heads = json.take("addition_embed_type_num_heads", 64)?;
    match (kind.as_deref(), embed_dim, input_dim) {
        (None, _, _) => Ok(None),
        (Some("text"), _, _) => Ok(Some(Addition::Text { heads })),
        (Some("text_time"), Some(addition_time_embed_dim), Some(projection_class_embeddings_input_dim)) => {
            Ok(Some(Addition::TextTime(TextTime { addition_time_embed_dim, projection_class_embeddings_input_dim })))
        }
        (Some("text_time"), _, _) => {
            Err(json.error("addition_embed_type = \"text_time\" needs addition_time_embed_dim and projection_class_embeddings_input_dim"))
        }
        (Some(other), _, _) => {
            Err(json.error(format!("addition_embed_type = {other:?} is not supported, expected null, \"text\" or \"text_time\"")))
        }
    }
}

fn refuse_what_is_not_built(json: &mut ConfigJson) -> Result<()> {
    let (null, no) = (Value::Null, json!(false));
    for field in [
        "class_embed_type",
        "num_class_embeds",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "time_cond_proj_dim",
        "time_embedding_act_fn",
        "timestep_post_act",
        "cross_attention_norm",
        "reverse_transformer_layers_per_block",
    ] {
        json.only(field, std::slice::from_ref(&null))?;
    }
    for field in ["only_cross_attention", "dual_cross_attention", "class_embeddings_concat", "resnet_skip_time_act"] {
        json.only(field, std::slice::from_ref(&no))?;
    }
    json.only("mid_block_only_cross_attention", &[null.clone(), no])?;
    json.only("mid_block_type", &[json!("UNetMidBlock2DCrossAttn")])?;
    json.only("act_fn", &[json!("silu"), json!("swish")])?;
    json.only("attention_type", &[json!("default")])?;
    json.only("resnet_time_scale_shift", &[json!("default")])?;
    json.only("resnet_out_scale_factor", &[json!(1.0), json!(1)])?;
    json.only("time_embedding_type", &[json!("positional")])?;
    json.only("downsample_padding", &[json!(1)])?;
    json.only("conv_in_kernel", &[json!(3)])?;
    json.only("conv_out_kernel", &[json!(3)])?;
    json.only("dropout", &[json!(0.0), json!(0)])?;
    // `upcast_attention` asks for f32 scores under half precision; ours are f32 throughout.
    json.inert(&["upcast_attention"]);
    Ok(())
}
