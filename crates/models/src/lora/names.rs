//! What a layer is called in the dialects of LoRA files.
//!
//! Source: diffusers `loaders/lora_conversion_utils.py` and `utils/state_dict_utils.py`; kohya `sd-scripts/networks/lora.py`;
//! Stability's `sgm` names of the XL network, as in diffusers `scripts/convert_diffusers_to_original_sdxl.py`.

use std::collections::BTreeMap;

use super::Layer;
use crate::pipeline::Family;
use crate::unet::UNetConfig;

/// The names of a pipeline's layers, and what they are called elsewhere.
#[derive(Debug, Clone)]
pub struct Names {
    family: Family,
    /// Shape of a layer's weight by its name.
    pub(super) shapes: BTreeMap<String, Vec<usize>>,
    /// Names in files, to names of layers.
    aliases: BTreeMap<String, String>,
}

impl Names {
    /// Those of `layers`, whose names begin with `unet.`, `text_encoder.` or `text_encoder_2.`.
    pub fn new(layers: &[Layer], family: Family, unet: &UNetConfig) -> Self {
        let mut aliases = BTreeMap::new();
        for Layer { name, .. } in layers {
            let Some((component, path)) = name.split_once('.') else { continue };
            let mut add = |alias: String| drop(aliases.insert(alias, name.clone()));
            add(name.clone());
            if component == "unet" {
                add(path.to_string());
                add(format!("base_model.model.{path}"));
                add(format!("lora_unet_{}", underscored(path)));
                if let Some(original) = original_name(path, unet) {
                    add(format!("lora_unet_{}", underscored(&original)));
                }
            } else {
                add(format!("{component}.text_model.{path}"));
                let prefixes: &[&str] = if component == "text_encoder" { &["te", "te1"] } else { &["te2"] };
                for prefix in prefixes {
                    add(format!("lora_{prefix}_text_model_{}", underscored(path)));
                    add(format!("lora_{prefix}_{}", underscored(path)));
                }
            }
        }
        let shapes = layers.iter().map(|layer| (layer.name.clone(), layer.shape.clone())).collect();
        Self { family, shapes, aliases }
    }

    /// The layer of a name without its ending.
    pub(super) fn layer(&self, stem: &str) -> Option<&str> {
        // diffusers' first form, an attention processor's own layers.
        let stem = stem.replace(".processor.to_out_lora", ".to_out.0");
        let stem = ["to_q", "to_k", "to_v"].iter().fold(stem, |stem, to| stem.replace(&format!(".processor.{to}_lora"), &format!(".{to}")));
        self.aliases.get(&stem).map(String::as_str)
    }

    /// A layer's name in a kohya file, without its ending.
    pub(super) fn kohya(&self, layer: &str) -> String {
        match layer.split_once('.') {
            Some(("unet", path)) => format!("lora_unet_{}", underscored(path)),
            Some(("text_encoder", path)) if self.family == Family::StableDiffusionXl => {
                format!("lora_te1_text_model_{}", underscored(path))
            }
            Some(("text_encoder_2", path)) => format!("lora_te2_text_model_{}", underscored(path)),
            Some((_, path)) => format!("lora_te_text_model_{}", underscored(path)),
            None => layer.into(),
        }
    }

    /// The names of a layer's factors in a diffusers file: attention keeps the form of its first releases.
    pub(super) fn diffusers(layer: &str) -> [String; 2] {
        let [down, up] = match layer.rsplit('.').next() {
            _ if !layer.starts_with("unet.") && layer.contains(".self_attn.") => {
                ["lora_linear_layer.down.weight", "lora_linear_layer.up.weight"]
            }
            Some("to_q" | "to_k" | "to_v") => ["lora.down.weight", "lora.up.weight"],
            Some("0") if layer.ends_with(".to_out.0") => ["lora.down.weight", "lora.up.weight"],
            _ => ["lora_A.weight", "lora_B.weight"],
        };
        [format!("{layer}.{down}"), format!("{layer}.{up}")]
    }

    /// The names of a layer's factors in a PEFT file.
    pub(super) fn peft(layer: &str) -> [String; 2] {
        [format!("{layer}.lora_A.weight"), format!("{layer}.lora_B.weight")]
    }
}

fn underscored(path: &str) -> String {
    path.replace('.', "_")
}

/// The name of a UNet layer in the original code of Stable Diffusion and XL, under which kohya's XL files are written.
fn original_name(path: &str, unet: &UNetConfig) -> Option<String> {
    let parts: Vec<&str> = path.split('.').collect();
    let number = |text: &str| text.parse::<usize>().ok();
    Some(match parts[..] {
        ["conv_in"] => "input_blocks.0.0".into(),
        ["conv_out"] => "out.2".into(),
        ["time_embedding", "linear_1"] => "time_embed.0".into(),
        ["time_embedding", "linear_2"] => "time_embed.2".into(),
        ["add_embedding", "linear_1"] => "label_emb.0.0".into(),
        ["add_embedding", "linear_2"] => "label_emb.0.2".into(),
        ["mid_block", kind, index, ref rest @ ..] => {
            let place = if kind == "attentions" { 1 } else { 2 * number(index)? };
            format!("middle_block.{place}.{}", within(kind, rest)?)
        }
        ["down_blocks", level, kind, index, ref rest @ ..] => {
            let level = number(level)?;
            // Each level before this one has its layers and a downsampler; the input convolution comes first.
            let first = 1 + unet.layers_per_block[..level].iter().map(|layers| layers + 1).sum::<usize>();
            match kind {
                "resnets" => format!("input_blocks.{}.0.{}", first + number(index)?, within(kind, rest)?),
                "attentions" => format!("input_blocks.{}.1.{}", first + number(index)?, within(kind, rest)?),
                _ => format!("input_blocks.{}.0.op", first + unet.layers_per_block[level]),
            }
        }
        ["up_blocks", step, kind, index, ref rest @ ..] => {
            let step = number(step)?;
            let layers: Vec<usize> = unet.layers_per_block.iter().rev().map(|layers| layers + 1).collect();
            let first: usize = layers[..step].iter().sum();
            match kind {
                "resnets" => format!("output_blocks.{}.0.{}", first + number(index)?, within(kind, rest)?),
                "attentions" => format!("output_blocks.{}.1.{}", first + number(index)?, within(kind, rest)?),
                _ => format!("output_blocks.{}.{}.conv", first + layers[step] - 1, if unet.up_attention[step] { 2 } else { 1 }),
            }
        }
        _ => return None,
    })
}

/// The rest of a name inside a residual block or a transformer.
fn within(kind: &str, rest: &[&str]) -> Option<String> {
    if kind == "attentions" {
        return Some(rest.join("."));
    }
    let original = match rest {
        ["conv1"] => "in_layers.2",
        ["conv2"] => "out_layers.3",
        ["time_emb_proj"] => "emb_layers.1",
        ["conv_shortcut"] => "skip_connection",
        _ => return None,
    };
    Some(original.into())
}
