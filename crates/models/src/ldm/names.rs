//! What diffusers' and transformers' parameters are called in a single-file checkpoint.
//!
//! Source: diffusers `scripts/convert_original_stable_diffusion_to_diffusers.py`, `scripts/convert_diffusers_to_original_sdxl.py`,
//! `loaders/single_file_utils.py`.

use crate::unet::UNetConfig;

/// The name of a UNet's parameter or layer in the original code of Stable Diffusion and XL, without `model.diffusion_model.`.
pub fn unet_name(path: &str, unet: &UNetConfig) -> Option<String> {
    let parts: Vec<&str> = path.split('.').collect();
    let number = |text: &str| text.parse::<usize>().ok();
    let joined = |head: String, rest: &[&str]| if rest.is_empty() { head } else { format!("{head}.{}", rest.join(".")) };
    Some(match parts[..] {
        ["conv_in", ref rest @ ..] => joined("input_blocks.0.0".into(), rest),
        ["conv_norm_out", ref rest @ ..] => joined("out.0".into(), rest),
        ["conv_out", ref rest @ ..] => joined("out.2".into(), rest),
        ["time_embedding", layer, ref rest @ ..] => joined(format!("time_embed.{}", embedding_layer(layer)?), rest),
        ["add_embedding", layer, ref rest @ ..] => joined(format!("label_emb.0.{}", embedding_layer(layer)?), rest),
        ["mid_block", kind, index, ref rest @ ..] => {
            let place = if kind == "attentions" { 1 } else { 2 * number(index)? };
            format!("middle_block.{place}.{}", within(kind, rest)?)
        }
        ["down_blocks", level, kind, index, ref rest @ ..] => {
            let level = number(level)?;
            // Each level before this one has its layers and a downsampler; the input convolution comes first.
            let first = 1 + unet.layers_per_block.get(..level)?.iter().map(|layers| layers + 1).sum::<usize>();
            match kind {
                "resnets" => format!("input_blocks.{}.0.{}", first + number(index)?, within(kind, rest)?),
                "attentions" => format!("input_blocks.{}.1.{}", first + number(index)?, within(kind, rest)?),
                _ => joined(format!("input_blocks.{}.0.op", first + unet.layers_per_block.get(level)?), rest.get(1..)?),
            }
        }
        ["up_blocks", step, kind, index, ref rest @ ..] => {
            let step = number(step)?;
            let layers: Vec<usize> = unet.layers_per_block.iter().rev().map(|layers| layers + 1).collect();
            let first: usize = layers.get(..step)?.iter().sum();
            match kind {
                "resnets" => format!("output_blocks.{}.0.{}", first + number(index)?, within(kind, rest)?),
                "attentions" => format!("output_blocks.{}.1.{}", first + number(index)?, within(kind, rest)?),
                _ => {
                    let member = if *unet.up_attention.get(step)? { 2 } else { 1 };
                    joined(format!("output_blocks.{}.{member}.conv", first + layers.get(step)? - 1), rest.get(1..)?)
                }
            }
        }
        _ => return None,
    })
}

fn embedding_layer(layer: &str) -> Option<usize> {
    match layer {
        "linear_1" => Some(0),
        "linear_2" => Some(2),
        _ => None,
    }
}

/// The rest of a name inside a residual block or a transformer.
fn within(kind: &str, rest: &[&str]) -> Option<String> {
    if kind == "attentions" {
        return Some(rest.join("."));
    }
    let (layer, parameter) = rest.split_first()?;
    let original = match *layer {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        _ => return None,
    };
    Some([&[original], parameter].concat().join("."))
}

/// The name of an autoencoder's parameter in the original code, without `first_stage_model.`. The original counts the decoder's levels from
/// the image side.
pub fn vae_name(path: &str, levels: usize) -> Option<String> {
    let parts: Vec<&str> = path.split('.').collect();
    let number = |text: &str| text.parse::<usize>().ok();
    Some(match parts[..] {
        ["quant_conv" | "post_quant_conv", ..] | [_, "conv_in" | "conv_out", ..] => path.into(),
        [half, "conv_norm_out", parameter] => format!("{half}.norm_out.{parameter}"),
        [half, "mid_block", "resnets", index, ref rest @ ..] => {
            format!("{half}.mid.block_{}.{}", number(index)? + 1, within_vae(rest))
        }
        [half, "mid_block", "attentions", "0", ref rest @ ..] => {
            let (layer, parameter) = rest.split_at(rest.len() - 1);
            let original = match layer {
                ["group_norm"] => "norm",
                ["to_q"] => "q",
                ["to_k"] => "k",
                ["to_v"] => "v",
                ["to_out", "0"] => "proj_out",
                _ => return None,
            };
            format!("{half}.mid.attn_1.{original}.{}", parameter[0])
        }
        ["encoder", "down_blocks", level, "downsamplers", _, ref rest @ ..] => {
            format!("encoder.down.{level}.downsample.{}", rest.join("."))
        }
        ["encoder", "down_blocks", level, "resnets", index, ref rest @ ..] => {
            format!("encoder.down.{level}.block.{index}.{}", within_vae(rest))
        }
        ["decoder", "up_blocks", step, kind, index, ref rest @ ..] => {
            let level = levels.checked_sub(1 + number(step)?)?;
            match kind {
                "upsamplers" => format!("decoder.up.{level}.upsample.{}", rest.join(".")),
                _ => format!("decoder.up.{level}.block.{index}.{}", within_vae(rest)),
            }
        }
        _ => return None,
    })
}

fn within_vae(rest: &[&str]) -> String {
    rest.join(".").replace("conv_shortcut", "nin_shortcut")
}

/// The matrices of the autoencoder's attention, which the original has as 1×1 convolutions.
pub fn is_vae_projection(original: &str) -> bool {
    original.contains(".mid.attn_1.") && original.ends_with(".weight") && !original.contains(".norm.")
}

/// The name of a CLIP text encoder's parameter in open_clip. Of query, key and value there is one joint matrix: they have none of their own.
pub fn open_clip_name(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('.').collect();
    Some(match parts[..] {
        ["embeddings", "token_embedding", "weight"] => "token_embedding.weight".into(),
        ["embeddings", "position_embedding", "weight"] => "positional_embedding".into(),
        ["final_layer_norm", parameter] => format!("ln_final.{parameter}"),
        ["text_projection", "weight"] => "text_projection".into(),
        ["encoder", "layers", index, ref rest @ ..] => {
            let (layer, parameter) = rest.split_at(rest.len() - 1);
            let original = match layer {
                ["layer_norm1"] => "ln_1",
                ["layer_norm2"] => "ln_2",
                ["self_attn", "out_proj"] => "attn.out_proj",
                ["mlp", "fc1"] => "mlp.c_fc",
                ["mlp", "fc2"] => "mlp.c_proj",
                _ => return None,
            };
            format!("transformer.resblocks.{index}.{original}.{}", parameter[0])
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_autoencoder() {
        for (ours, original) in [
            ("decoder.up_blocks.0.resnets.2.conv1.weight", "decoder.up.3.block.2.conv1.weight"),
            ("decoder.up_blocks.3.resnets.0.conv_shortcut.bias", "decoder.up.0.block.0.nin_shortcut.bias"),
            ("decoder.up_blocks.0.upsamplers.0.conv.weight", "decoder.up.3.upsample.conv.weight"),
            ("encoder.down_blocks.1.downsamplers.0.conv.bias", "encoder.down.1.downsample.conv.bias"),
            ("encoder.mid_block.resnets.1.norm2.weight", "encoder.mid.block_2.norm2.weight"),
            ("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.proj_out.weight"),
            ("encoder.conv_norm_out.bias", "encoder.norm_out.bias"),
            ("post_quant_conv.weight", "post_quant_conv.weight"),
        ] {
            assert_eq!(vae_name(ours, 4).as_deref(), Some(original));
        }
        assert!(is_vae_projection("decoder.mid.attn_1.q.weight") && !is_vae_projection("decoder.mid.attn_1.norm.weight"));
    }

    #[test]
    fn names_of_open_clip() {
        let layer = "encoder.layers.3.";
        assert_eq!(open_clip_name(&format!("{layer}mlp.fc2.bias")).as_deref(), Some("transformer.resblocks.3.mlp.c_proj.bias"));
        assert_eq!(open_clip_name(&format!("{layer}self_attn.q_proj.weight")), None);
    }
}
