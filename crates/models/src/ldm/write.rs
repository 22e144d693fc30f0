//! Networks as the tensors of a single-file checkpoint.
//!
//! Source: diffusers `scripts/convert_diffusers_to_original_stable_diffusion.py`, `scripts/convert_diffusers_to_original_sdxl.py`.

use burn::tensor::Tensor;

use super::names::{is_vae_projection, open_clip_name, unet_name, vae_name};
use super::{Layout, TextLayout, UNET, VAE, Version};
use crate::parameters::NamedParameter;
use crate::unet::UNetConfig;

/// A tensor of a single-file checkpoint.
#[derive(Debug, Clone)]
pub struct Original {
    /// Its name in the file.
    pub name: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// Its values, flattened.
    pub values: Tensor<1>,
}

/// The tensors of a component (`unet`, `vae`, `text_encoder`, `text_encoder_2`), whose parameters have the names of the networks here.
///
/// # Errors
/// The name of a parameter that the layout has no place for.
pub fn tensors(
    layout: Layout,
    component: &str,
    parameters: Vec<NamedParameter>,
    unet: &UNetConfig,
    vae_levels: usize,
) -> Result<Vec<Original>, String> {
    match component {
        "unet" => each(parameters, |name| Some(format!("{UNET}{}", unet_name(name, unet)?))),
        "vae" => {
            let mut all = each(parameters, |name| Some(format!("{VAE}{}", vae_name(name, vae_levels)?)))?;
            for tensor in all.iter_mut().filter(|tensor| is_vae_projection(&tensor.name)) {
                tensor.shape.extend([1, 1]);
            }
            Ok(all)
        }
        _ => {
            let TextLayout { prefix, open_clip } = layout.text_encoder(component);
            match open_clip {
                true => in_open_clip(prefix, parameters, layout.version == Version::Xl),
                false => each(parameters, |name| Some(format!("{prefix}{name}"))),
            }
        }
    }
}

fn each(parameters: Vec<NamedParameter>, rename: impl Fn(&str) -> Option<String>) -> Result<Vec<Original>, String> {
    let original = |NamedParameter { name, shape, values, .. }: NamedParameter| match rename(&name) {
        Some(name) => Ok(Original { name, shape, values }),
        None => Err(name),
    };
    parameters.into_iter().map(original).collect()
}

/// Query, key and value stand one above the other in a joint matrix; the projection is applied from the other side.
fn in_open_clip(prefix: &str, parameters: Vec<NamedParameter>, projected: bool) -> Result<Vec<Original>, String> {
    let (attention, rest): (Vec<_>, Vec<_>) =
        parameters.into_iter().partition(|p| ["q_proj.", "k_proj.", "v_proj."].iter().any(|part| p.name.contains(part)));
    let (projection, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|p| p.name == "text_projection.weight");
    let mut all = each(rest, |name| Some(format!("{prefix}{}", open_clip_name(name)?)))?;
    for NamedParameter { shape, values, .. } in projection.into_iter().filter(|_| projected) {
        let transposed = values.reshape([shape[0], shape[1]]).transpose().reshape([shape[0] * shape[1]]);
        all.push(Original { name: format!("{prefix}text_projection"), shape: vec![shape[1], shape[0]], values: transposed });
    }
    let find = |name: &str| attention.iter().find(|p| p.name == name);
    for layer in 0.. {
        let parts =
            |parameter: &str| ["q", "k", "v"].map(|part| find(&format!("encoder.layers.{layer}.self_attn.{part}_proj.{parameter}")));
        let [Some(_), ..] = parts("weight") else { break };
        for parameter in ["weight", "bias"] {
            let parts: Vec<&NamedParameter> = parts(parameter).into_iter().flatten().collect();
            let [first, _, _] = parts[..] else { return Err(format!("encoder.layers.{layer}.self_attn.*.{parameter}")) };
            let shape = [&[3 * first.shape[0]], &first.shape[1..]].concat();
            let values = Tensor::cat(parts.iter().map(|part| part.values.clone()).collect(), 0);
            all.push(Original { name: format!("{prefix}transformer.resblocks.{layer}.attn.in_proj_{parameter}"), shape, values });
        }
    }
    Ok(all)
}
