//! What a file of tensors is, by their names.
//!
//! Source: diffusers `loaders/single_file_utils.py`; ComfyUI `comfy/supported_models.py` for the prediction type of 2.x.

use super::{Layout, UNET, Version};
use crate::weights::{LoadError, Weights};

/// A kind of file that is not a single-file checkpoint of the generations read here.
struct Kind {
    /// A tensor's name has this in it.
    mark: &'static str,
    /// What the file is, and what to do with it.
    what: &'static str,
}

/// The first that fits counts.
const OTHERS: &[Kind] = &[
    Kind {
        mark: "joint_blocks.",
        what: "a Stable Diffusion 3 model (a diffusion transformer), which is not supported; expected SD 1.x, 2.x or XL",
    },
    Kind { mark: "double_blocks.", what: "a Flux model (a diffusion transformer), which is not supported; expected SD 1.x, 2.x or XL" },
    Kind { mark: "single_transformer_blocks.", what: "a diffusion transformer, which is not supported; expected SD 1.x, 2.x or XL" },
    Kind { mark: "pos_embed.proj.", what: "a diffusion transformer, which is not supported; expected SD 1.x, 2.x or XL" },
    Kind { mark: "caption_projection.", what: "a diffusion transformer, which is not supported; expected SD 1.x, 2.x or XL" },
    Kind { mark: "control_model.", what: "a ControlNet, which is not a whole model" },
    Kind { mark: "lora_", what: "a LoRA, which goes with a model: pass it as --lora" },
    Kind { mark: ".lora.", what: "a LoRA, which goes with a model: pass it as --lora" },
    Kind { mark: "hada_w1", what: "a LoRA (LoHa), which goes with a model: pass it as --lora" },
    Kind { mark: "lokr_w", what: "a LoRA (LoKr), which goes with a model: pass it as --lora" },
    Kind { mark: "visual.conv1.weight", what: "an open_clip model, which is a reward at most (`list rewards`)" },
    Kind { mark: "visual_encoder.", what: "a BLIP, which is a reward (`score --reward`)" },
    Kind { mark: "vision_model.", what: "a CLIP model, which is a reward at most (`list rewards`)" },
    Kind { mark: "encoder.down.", what: "an autoencoder alone: pass it as --vae with a whole model" },
    Kind { mark: "encoder.down_blocks.", what: "an autoencoder alone: pass it as --vae with a whole model" },
    Kind { mark: "down_blocks.", what: "a UNet alone, as diffusers names it; pass the folder that has model_index.json" },
    Kind { mark: "input_blocks.", what: "a UNet alone, without autoencoder and text encoder; a whole checkpoint is needed" },
    Kind { mark: "text_model.", what: "a text encoder alone; pass the folder that has model_index.json" },
    Kind { mark: "string_to_param", what: "a textual inversion embedding, which is not a model" },
    Kind { mark: "emb_params", what: "a textual inversion embedding, which is not a model" },
];

/// What the tensors are, for an error.
pub fn what_it_is(weights: &Weights) -> String {
    let kind = OTHERS.iter().find(|kind| weights.names().any(|name| name.contains(kind.mark)));
    match (kind, weights.names().next()) {
        (Some(kind), _) => kind.what.into(),
        (None, Some(name)) => format!("unknown: its tensors have names like {name}"),
        (None, None) => "a file without tensors".into(),
    }
}

/// The layout of a single-file checkpoint. Its text encoders get the names of the published files, where a tool has given them others.
///
/// # Errors
/// When it is something else: what it is.
pub fn layout(weights: &mut Weights) -> Result<Layout, String> {
    if weights.shape(&format!("{UNET}input_blocks.0.0.weight")).is_none() {
        return Err(format!("not a single-file checkpoint of Stable Diffusion 1.x, 2.x or XL: it is {}", what_it_is(weights)));
    }
    let starts = |weights: &Weights, prefix: &str| weights.names().any(|name| name.starts_with(prefix));
    let embeds_sizes = weights.shape(&format!("{UNET}label_emb.0.0.weight")).is_some();
    if starts(weights, "conditioner.embedders.1.model.") {
        rename_prefix(weights, "conditioner.embedders.0.transformer.", "text_model.");
        return Ok(Layout { version: Version::Xl });
    }
    if embeds_sizes {
        let what = if starts(weights, "conditioner.embedders.0.model.") {
            "the refiner of Stable Diffusion XL"
        } else {
            "a Stable Diffusion XL UNet without text encoders"
        };
        return Err(format!("it is {what}, which cannot draw by itself; pass a base model"));
    }
    for (found, published) in [
        ("conditioner.embedders.0.model.", "cond_stage_model.model."),
        ("conditioner.embedders.0.transformer.", "cond_stage_model.transformer."),
    ] {
        weights.rename(|name| name.strip_prefix(found).map_or_else(|| name.into(), |rest| format!("{published}{rest}")));
    }
    if starts(weights, "cond_stage_model.model.") {
        return Ok(Layout { version: Version::Two });
    }
    if starts(weights, "cond_stage_model.transformer.") {
        rename_prefix(weights, "cond_stage_model.transformer.", "text_model.");
        return Ok(Layout { version: Version::One });
    }
    Err("it has no text encoder (cond_stage_model, conditioner); a whole checkpoint is needed".into())
}

/// Puts `inner` behind `outer` in names that lack it.
fn rename_prefix(weights: &mut Weights, outer: &str, inner: &str) {
    weights.rename(|name| match name.strip_prefix(outer) {
        Some(rest) if !rest.starts_with(inner) => format!("{outer}{inner}{rest}"),
        _ => name.into(),
    });
}

/// Whether the network predicts velocities: XL files say so by a tensor `v_pred`; of 2.x, a bias of those that do is spread wider.
///
/// # Errors
/// When that tensor cannot be read.
pub fn is_v_prediction(weights: &Weights, layout: Layout) -> Result<bool, LoadError> {
    const SPREAD: f64 = 0.09;
    match layout.version {
        Version::One => Ok(false),
        Version::Xl => Ok(weights.shape("v_pred").is_some()),
        Version::Two => {
            let name = format!("{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias");
            let Some(bias) = weights.get(&name) else { return Ok(false) };
            let values: Vec<f64> = bias.read()?.into_iter().map(f64::from).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0);
            Ok(variance.sqrt() > SPREAD)
        }
    }
}
