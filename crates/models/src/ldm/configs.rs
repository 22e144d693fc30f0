//! The configs of a single-file checkpoint's networks, as its tensors' shapes and the rules of the published models give them.
//!
//! Shapes say nothing of heads, groups, activations, schedules and scales: those of the published models are taken, and checked by whether
//! they divide what is there.
//!
//! Source: the configs of Stable Diffusion 1.5, 2.1 and XL 1.0 as diffusers publishes them; diffusers `loaders/single_file_utils.py`.

use serde_json::{Map, Value, json};

use super::{Layout, Version};
use crate::weights::Weights;

/// A config, or the name of a tensor that it needs and the file lacks.
type Config = Result<Map<String, Value>, String>;

/// Tensors of one network, by name.
struct Shapes<'a> {
    weights: &'a Weights,
    prefix: String,
}

impl Shapes<'_> {
    fn find(&self, name: &str) -> Option<&[usize]> {
        self.weights.shape(&format!("{}{name}", self.prefix))
    }

    /// One dimension of a tensor that must be there.
    fn dimension(&self, name: &str, axis: usize) -> Result<usize, String> {
        let missing = || format!("it has no tensor {}{name} with {} dimensions", self.prefix, axis + 1);
        self.find(name).and_then(|shape| shape.get(axis)).copied().ok_or_else(missing)
    }

    /// The number of tensors `name(0)`, `name(1)`, … that are there.
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|i| self.find(&name(*i)).is_some()).count()
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => unreachable!("every caller passes an object"),
    }
}

/// `model_index.json`.
pub fn model_index(layout: Layout) -> Map<String, Value> {
    let clip = json!(["transformers", "CLIPTextModel"]);
    let tokenizer = json!(["transformers", "CLIPTokenizer"]);
    let scheduler = scheduler(layout, false, false)["_class_name"].clone();
    object(match layout.version {
        Version::Xl => json!({
            "_class_name": "StableDiffusionXLPipeline",
            "force_zeros_for_empty_prompt": true,
            "scheduler": ["diffusers", scheduler],
            "text_encoder": clip,
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": tokenizer.clone(),
            "tokenizer_2": tokenizer,
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }),
        Version::One | Version::Two => json!({
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [null, null],
            "requires_safety_checker": false,
            "safety_checker": [null, null],
            "scheduler": ["diffusers", scheduler],
            "text_encoder": clip,
            "tokenizer": tokenizer,
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }),
    })
}

/// `scheduler/scheduler_config.json`.
pub fn scheduler(layout: Layout, v_prediction: bool, zero_terminal_snr: bool) -> Map<String, Value> {
    let class = match layout.version {
        Version::One => "PNDMScheduler",
        Version::Two => "DDIMScheduler",
        Version::Xl => "EulerDiscreteScheduler",
    };
    let mut config = object(json!({
        "_class_name": class,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "prediction_type": if v_prediction { "v_prediction" } else { "epsilon" },
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }));
    let more = match layout.version {
        Version::One => json!({ "set_alpha_to_one": false, "skip_prk_steps": true }),
        Version::Two => json!({ "set_alpha_to_one": false, "clip_sample": false }),
        Version::Xl => json!({ "interpolation_type": "linear", "use_karras_sigmas": false }),
    };
    config.extend(object(more));
    if zero_terminal_snr {
        config.insert("rescale_betas_zero_snr".into(), true.into());
        config.insert("timestep_spacing".into(), "trailing".into());
    }
    config
}

/// One level of the way down.
#[derive(Clone, Copy, Default)]
struct Level {
    channels: usize,
    layers: usize,
    /// Transformer blocks after each residual block.
    depth: usize,
}

/// `unet/config.json`.
pub fn unet(weights: &Weights, layout: Layout, v_prediction: bool) -> Config {
    let shapes = Shapes { weights, prefix: super::UNET.into() };
    let depth = |place: &str| shapes.count(|block| format!("{place}.1.transformer_blocks.{block}.norm1.weight"));
    let (mut levels, mut level) = (Vec::new(), Level::default());
    for n in 1.. {
        let place = format!("input_blocks.{n}");
        if let Some(shape) = shapes.find(&format!("{place}.0.out_layers.3.weight")) {
            level = Level { channels: shape.first().copied().unwrap_or(0), layers: level.layers + 1, depth: depth(&place) };
        } else if shapes.find(&format!("{place}.0.op.weight")).is_some() {
            levels.push(std::mem::take(&mut level));
        } else {
            break;
        }
    }
    levels.push(level);
    let attention = |flag: bool, with: &str, without: &str| Value::from(if flag { with } else { without });
    let down: Vec<Value> = levels.iter().map(|level| attention(level.depth > 0, "CrossAttnDownBlock2D", "DownBlock2D")).collect();
    let mut first = 0;
    let up: Vec<Value> = levels
        .iter()
        .rev()
        .map(|level| {
            let has_attention = depth(&format!("output_blocks.{first}")) > 0;
            first += level.layers + 1;
            attention(has_attention, "CrossAttnUpBlock2D", "UpBlock2D")
        })
        .collect();
    // A level without attention counts once, except that the middle takes its depth from the last.
    let mut depths: Vec<usize> = levels.iter().map(|level| level.depth.max(1)).collect();
    if let Some(last) = depths.last_mut() {
        *last = depth("middle_block").max(*last);
    }
    let heads: Vec<usize> =
        levels.iter().map(|level| if layout.version == Version::One { 8 } else { (level.channels / 64).max(1) }).collect();
    let to_k = "middle_block.1.transformer_blocks.0.attn2.to_k.weight";
    let mut config = object(json!({
        "_class_name": "UNet2DConditionModel",
        "in_channels": shapes.dimension("input_blocks.0.0.weight", 1)?,
        "out_channels": shapes.dimension("out.2.weight", 0)?,
        "sample_size": match (layout.version, v_prediction) { (Version::Xl, _) => 128, (Version::Two, true) => 96, _ => 64 },
        "block_out_channels": levels.iter().map(|level| level.channels).collect::<Vec<_>>(),
        "layers_per_block": uniform(levels.iter().map(|level| level.layers).collect()),
        "down_block_types": down,
        "up_block_types": up,
        "transformer_layers_per_block": uniform(depths),
        "cross_attention_dim": shapes.dimension(to_k, 1)?,
        "attention_head_dim": uniform(heads),
        "use_linear_projection": shapes.find("middle_block.1.proj_in.weight").is_some_and(|shape| shape.len() == 2),
    }));
    if layout.version == Version::Xl {
        let input = shapes.dimension("label_emb.0.0.weight", 1)?;
        let pooled = weights.shape("conditioner.embedders.1.model.text_projection").and_then(|shape| shape.get(1).copied());
        let sizes = input.saturating_sub(pooled.ok_or("it has no tensor conditioner.embedders.1.model.text_projection")?);
        config.extend(object(json!({
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": sizes / 6,
            "projection_class_embeddings_input_dim": input,
        })));
    }
    Ok(config)
}

/// One number where all are the same, as published configs write it.
fn uniform(values: Vec<usize>) -> Value {
    match values.split_first() {
        Some((first, rest)) if rest.iter().all(|other| other == first) => (*first).into(),
        _ => values.into(),
    }
}

/// `vae/config.json`.
pub fn vae(weights: &Weights, layout: Layout) -> Config {
    let (shapes, version) = (Shapes { weights, prefix: super::VAE.into() }, layout.version);
    let levels = shapes.count(|level| format!("encoder.down.{level}.block.0.conv1.weight"));
    let channels: Result<Vec<usize>, String> =
        (0..levels.max(1)).map(|level| shapes.dimension(&format!("encoder.down.{level}.block.0.conv1.weight"), 0)).collect();
    Ok(object(json!({
        "_class_name": "AutoencoderKL",
        "in_channels": shapes.dimension("encoder.conv_in.weight", 1)?,
        "out_channels": shapes.dimension("decoder.conv_out.weight", 0)?,
        "latent_channels": shapes.dimension("decoder.conv_in.weight", 1)?,
        "block_out_channels": channels?,
        "layers_per_block": shapes.count(|block| format!("encoder.down.0.block.{block}.conv1.weight")),
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "mid_block_add_attention": shapes.find("encoder.mid.attn_1.q.weight").is_some(),
        "use_quant_conv": shapes.find("quant_conv.weight").is_some(),
        "use_post_quant_conv": shapes.find("post_quant_conv.weight").is_some(),
        "sample_size": if version == Version::Xl { 1024 } else { 512 },
        "scaling_factor": if version == Version::Xl { 0.13025 } else { 0.18215 },
    })))
}

/// `vae/config.json` of the published models, for a file without an autoencoder.
pub fn published_vae(layout: Layout) -> Map<String, Value> {
    object(json!({
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "down_block_types": vec!["DownEncoderBlock2D"; 4],
        "up_block_types": vec!["UpDecoderBlock2D"; 4],
        "sample_size": if layout.version == Version::Xl { 1024 } else { 512 },
        "scaling_factor": if layout.version == Version::Xl { 0.13025 } else { 0.18215 },
    }))
}

/// `text_encoder/config.json` or `text_encoder_2/config.json`.
pub fn text_encoder(weights: &Weights, layout: Layout, component: &str) -> Config {
    let encoder = layout.text_encoder(component);
    let shapes = Shapes { weights, prefix: encoder.prefix.into() };
    let projected = encoder.open_clip && layout.version == Version::Xl;
    let (token, position, mlp, layers) = if encoder.open_clip {
        let layers = shapes.count(|layer| format!("transformer.resblocks.{layer}.ln_1.weight"));
        // 2.x takes the output of the last layer but one; the last is in the file and in nothing else.
        let layers = if layout.version == Version::Two { layers.saturating_sub(1) } else { layers };
        ("token_embedding.weight", "positional_embedding", "transformer.resblocks.0.mlp.c_fc.weight", layers)
    } else {
        let layers = shapes.count(|layer| format!("encoder.layers.{layer}.layer_norm1.weight"));
        ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.weight", layers)
    };
    let width = shapes.dimension(token, 1)?;
    Ok(object(json!({
        "architectures": [if projected { "CLIPTextModelWithProjection" } else { "CLIPTextModel" }],
        "model_type": "clip_text_model",
        "vocab_size": shapes.dimension(token, 0)?,
        "hidden_size": width,
        "intermediate_size": shapes.dimension(mlp, 0)?,
        "projection_dim": if projected { shapes.dimension("text_projection", 1)? } else { width },
        "num_hidden_layers": layers,
        "num_attention_heads": (width / 64).max(1),
        "max_position_embeddings": shapes.dimension(position, 0)?,
        "hidden_act": if encoder.open_clip { "gelu" } else { "quick_gelu" },
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    })))
}
