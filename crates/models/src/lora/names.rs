//! What a layer is called in the dialects of LoRA files.
//!
//! Source: diffusers `loaders/lora_conversion_utils.py` and `utils/state_dict_utils.py`; kohya `sd-scripts/networks/lora.py`;
//! Stability's `sgm` names of the XL network, as in diffusers `scripts/convert_diffusers_to_original_sdxl.py`.

use std::collections::BTreeMap;

use super::Layer;
use super::parts::Target;
use super::settings::PEFT_PREFIX;
use crate::denoiser::Denoiser;
use crate::family::Family;
use crate::ldm::unet_name;
use crate::unet::{UNet2DConditionModel, UNetConfig};

/// How the names of the denoiser's layers begin.
const DENOISER: &str = UNet2DConditionModel::COMPONENT;

/// The names of a pipeline's layers, and what they are called elsewhere.
#[derive(Debug, Clone)]
pub struct Names {
    family: Family,
    /// The layers by their names.
    pub(super) layers: BTreeMap<String, Layer>,
    /// Names in files, to names of layers.
    aliases: BTreeMap<String, String>,
}

impl Names {
    /// The names of `layers`, norms among them; they begin with their component: `unet.`, `text_encoder.` or `text_encoder_2.`.
    pub fn new(layers: &[Layer], family: Family, unet: &UNetConfig) -> Self {
        let mut aliases = BTreeMap::new();
        for Layer { name, .. } in layers {
            let Some((component, path)) = name.split_once('.') else { continue };
            let mut add = |alias: String| drop(aliases.insert(alias, name.clone()));
            add(name.clone());
            if component == DENOISER {
                add(path.to_string());
                // kohya's, and SimpleTuner's and LyCORIS's own.
                add(format!("lora_unet_{}", underscored(path)));
                add(format!("lycoris_{}", underscored(path)));
                if let Some(original) = unet_name(path, unet) {
                    add(format!("lora_unet_{}", underscored(&original)));
                    // OneTrainer's; ComfyUI's and those of a single file.
                    add(format!("unet.{original}"));
                    add(format!("diffusion_model.{original}"));
                    add(format!("model.diffusion_model.{original}"));
                }
            } else {
                encoder_aliases(component, path).into_iter().for_each(add);
            }
        }
        let layers = layers.iter().map(|layer| (layer.name.clone(), layer.clone())).collect();
        Self { family, layers, aliases }
    }

    /// The layer of a name without its ending.
    pub(super) fn layer(&self, stem: &str) -> Option<&str> {
        // What wraps a network: PEFT's model, a compiled one; diffusers 0.23 wrote the component twice.
        let stem = stem.replace(PEFT_PREFIX, "").replace("_orig_mod.", "");
        let stem = stem.strip_prefix("unet.").filter(|rest| rest.starts_with("unet.")).unwrap_or(&stem);
        self.aliases.get(&of_first_form(stem)).map(String::as_str)
    }

    /// A layer by its own name, which is known.
    pub(super) fn target<'a>(&'a self, layer: &'a str) -> Target<'a> {
        let Layer { shape, has_bias, .. } = &self.layers[layer];
        Target { name: layer, shape, has_bias: *has_bias }
    }

    /// A layer's name in a kohya file, without its ending.
    pub(super) fn kohya(&self, layer: &str) -> String {
        let (component, path) = layer.split_once('.').unwrap_or((DENOISER, layer));
        let kohya = match component {
            DENOISER => "unet",
            "text_encoder" if self.family == Family::StableDiffusionXl => "te1",
            "text_encoder" => "te",
            _ => "te2",
        };
        // As published: an encoder's projection stands beside its `text_model`.
        let within = if component == DENOISER || path == "text_projection" { "" } else { "text_model_" };
        format!("lora_{kohya}_{within}{}", underscored(path))
    }

    /// Whether diffusers has a form of its own for a layer's factors: attention has, from its first releases.
    pub(super) fn is_attention(layer: &str) -> bool {
        if component(layer) == DENOISER {
            [".to_q", ".to_k", ".to_v", ".to_out.0"].iter().any(|end| layer.ends_with(end))
        } else {
            layer.contains(".self_attn.")
        }
    }

    /// The names of an attention layer's factors in a diffusers file.
    pub(super) fn diffusers(layer: &str) -> [String; 2] {
        let form = if component(layer) == DENOISER { "lora" } else { "lora_linear_layer" };
        [format!("{layer}.{form}.down.weight"), format!("{layer}.{form}.up.weight")]
    }

    /// The names of a layer's factors in a PEFT file.
    pub(super) fn peft(layer: &str) -> [String; 2] {
        [format!("{layer}.lora_A.weight"), format!("{layer}.lora_B.weight")]
    }
}

/// The names of a text encoder's layer, other than its own.
fn encoder_aliases(component: &str, path: &str) -> Vec<String> {
    let first = component == "text_encoder";
    let (kohya, comfy): (&[&str], &str) = if first { (&["te", "te1"], "clip_l") } else { (&["te2"], "clip_g") };
    let mut aliases = vec![
        format!("{component}.text_model.{path}"),
        // OneTrainer's and ComfyUI's.
        format!("{comfy}.{path}"),
        format!("{comfy}.text_model.{path}"),
        format!("{comfy}.transformer.text_model.{path}"),
        format!("text_encoders.{comfy}.transformer.text_model.{path}"),
    ];
    for prefix in kohya {
        aliases.push(format!("lora_{prefix}_text_model_{}", underscored(path)));
        aliases.push(format!("lora_{prefix}_{}", underscored(path)));
    }
    if first {
        // An adapter of this encoder alone does not name it.
        aliases.extend([path.to_string(), format!("text_model.{path}")]);
    }
    aliases
}

/// A name of diffusers' first form, whose factors belonged to the attention's processor (`….attn1.processor.to_q_lora`) or, in a text encoder, to
/// the attention itself (`….self_attn.to_q_lora`), as that of the projection; any other name as it is.
fn of_first_form(stem: &str) -> String {
    let projection = stem.rsplit_once('.').and_then(|(block, last)| Some((block, last.strip_prefix("to_")?.strip_suffix("_lora")?)));
    match projection {
        Some((block, which)) if block.ends_with(".self_attn") => format!("{block}.{which}_proj"),
        Some((block, which)) => {
            let block = block.strip_suffix(".processor").unwrap_or(block);
            format!("{block}.to_{}", if which == "out" { "out.0" } else { which })
        }
        None => stem.into(),
    }
}

/// The component of a layer: its name up to the first dot.
fn component(layer: &str) -> &str {
    layer.split('.').next().unwrap_or(layer)
}

fn underscored(path: &str) -> String {
    path.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetworkConfig;
    use crate::lora::layers_and_norms;
    use burn::tensor::Device;
    use serde_json::json;

    fn xl() -> UNetConfig {
        let config = json!({
            "block_out_channels": [32, 64, 128],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "layers_per_block": 2,
            "attention_head_dim": [4, 8, 16],
            "cross_attention_dim": 64,
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, config.to_string()).unwrap();
        UNetConfig::read(&path).unwrap()
    }

    /// Names of kohya's XL files beside diffusers'.
    #[test]
    fn original_names_of_xl() {
        let unet = xl();
        let pairs = [
            ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "input_blocks.4.1.transformer_blocks.0.attn1.to_q"),
            ("down_blocks.2.attentions.1.proj_in", "input_blocks.8.1.proj_in"),
            ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
            ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks.4.0.skip_connection"),
            ("mid_block.attentions.0.transformer_blocks.3.ff.net.0.proj", "middle_block.1.transformer_blocks.3.ff.net.0.proj"),
            ("mid_block.resnets.1.conv2", "middle_block.2.out_layers.3"),
            ("up_blocks.0.attentions.2.transformer_blocks.0.attn2.to_out.0", "output_blocks.2.1.transformer_blocks.0.attn2.to_out.0"),
            ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
            ("up_blocks.1.resnets.0.time_emb_proj", "output_blocks.3.0.emb_layers.1"),
            ("up_blocks.2.resnets.2.conv1", "output_blocks.8.0.in_layers.2"),
            ("conv_in", "input_blocks.0.0"),
        ];
        for (diffusers, original) in pairs {
            assert_eq!(unet_name(diffusers, &unet).as_deref(), Some(original), "{diffusers}");
        }
    }

    /// kohya's files stand a projection beside the encoder's `text_model`, and know XL's encoders by number.
    #[test]
    fn names_of_text_encoders() {
        let layer = |name: &str| Layer { name: name.into(), shape: vec![2, 2], has_bias: true, id: burn::module::ParamId::new() };
        let found = [layer("text_encoder.encoder.layers.0.self_attn.q_proj"), layer("text_encoder_2.text_projection")];
        let kohya = |family| found.each_ref().map(|layer| Names::new(&found, family, &xl()).kohya(&layer.name));
        let q_proj = "text_model_encoder_layers_0_self_attn_q_proj";
        assert_eq!(kohya(Family::StableDiffusionXl), [format!("lora_te1_{q_proj}"), "lora_te2_text_projection".into()]);
        assert_eq!(kohya(Family::StableDiffusion)[0], format!("lora_te_{q_proj}"));
        let names = Names::new(&found, Family::StableDiffusionXl, &xl());
        for form in [
            format!("lora_te_{q_proj}"),
            format!("lora_te1_{q_proj}"),
            format!("text_encoder.{}", "text_model.encoder.layers.0.self_attn.q_proj"),
        ] {
            assert_eq!(names.layer(&form), Some(found[0].name.as_str()), "{form}");
        }
    }

    /// Every layer has a name of its own in every dialect.
    #[test]
    fn no_two_layers_share_a_name() {
        let unet = xl();
        let mut found = layers_and_norms(&unet.init(&Device::flex()));
        found.iter_mut().for_each(|layer| layer.name = format!("{DENOISER}.{}", layer.name));
        let originals: std::collections::BTreeSet<_> =
            found.iter().map(|layer| unet_name(layer.name.split_once('.').unwrap().1, &unet).expect(&layer.name)).collect();
        assert_eq!(originals.len(), found.len());
        let names = Names::new(&found, Family::StableDiffusionXl, &unet);
        let kohya: std::collections::BTreeSet<_> = found.iter().map(|layer| names.kohya(&layer.name)).collect();
        assert_eq!(kohya.len(), found.len());
        for layer in &found {
            assert_eq!(names.layer(&names.kohya(&layer.name)), Some(layer.name.as_str()));
        }
    }
}
