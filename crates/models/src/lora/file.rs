//! LoRA files as they are written, in three dialects.
//!
//! Source: diffusers `loaders/lora_pipeline.py` (`save_lora_weights`, `lora_adapter_metadata`), PEFT `tuners/lora/config.py`,
//! kohya `sd-scripts/networks/lora.py`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::names::Names;
use super::{Factors, LoraWeights};
use crate::error::Result;
use crate::weights::{SaveType, save_safetensors};

/// A convention for the names of tensors in a LoRA file, in which it can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `lora_unet_…_to_q.lora_down.weight` with `.alpha`: kohya's sd-scripts, A1111, ComfyUI.
    Kohya,
    /// `unet.….to_q.lora.down.weight`: diffusers; alpha in the metadata.
    Diffusers,
    /// `unet.….to_q.lora_A.weight`: PEFT's names; alpha in the metadata.
    Peft,
}

impl LoraWeights {
    /// Writes a file in one of the dialects; `notes` go into its metadata.
    ///
    /// # Errors
    /// When the file cannot be written; nothing is left behind then.
    pub fn save(&self, path: &Path, dialect: Dialect, names: &Names, notes: &[(String, String)]) -> Result<()> {
        // A component in two forms would lose one of them: diffusers' loader recognises a form by one key and converts no others.
        let component = |layer: &str| layer.split('.').next().map(String::from);
        let own_form =
            |of: &str| self.layers.keys().filter(|layer| component(layer) == component(of)).all(|layer| Names::is_attention(layer));
        let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
        for (layer, factors) in &self.layers {
            let [down, up] = match dialect {
                Dialect::Kohya => {
                    let stem = names.kohya(layer);
                    tensors.push((format!("{stem}.alpha"), Vec::new(), vec![factors.alpha as f32]));
                    [format!("{stem}.lora_down.weight"), format!("{stem}.lora_up.weight")]
                }
                Dialect::Diffusers if own_form(layer) => Names::diffusers(layer),
                Dialect::Diffusers | Dialect::Peft => Names::peft(layer),
            };
            tensors.push((down, factors.down_shape(), factors.down.clone()));
            tensors.push((up, factors.up_shape(), factors.up.clone()));
        }
        let mut metadata: Vec<(String, String)> = notes.to_vec();
        if dialect != Dialect::Kohya {
            metadata.push(("lora_adapter_metadata".into(), self.adapter_metadata()));
        }
        let metadata: Vec<(&str, &str)> = metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let entries = tensors.iter().map(|(name, shape, values)| {
            let values: Box<dyn FnOnce() -> Vec<f32>> = Box::new(|| values.clone());
            (name.as_str(), shape.as_slice(), values)
        });
        Ok(save_safetensors(path, entries, &metadata, SaveType::F32)?)
    }

    /// What diffusers reads rank, alpha and targets from: one `LoraConfig` per component, flattened.
    fn adapter_metadata(&self) -> String {
        let mut metadata = Map::new();
        let mut components: BTreeMap<&str, Vec<(&str, &Factors)>> = BTreeMap::new();
        for (layer, factors) in &self.layers {
            if let Some((component, path)) = layer.split_once('.') {
                components.entry(component).or_default().push((path, factors));
            }
        }
        for (component, layers) in components {
            let (_, first) = layers[0];
            let (mut ranks, mut alphas) = (Map::new(), Map::new());
            for (path, factors) in &layers {
                if factors.rank != first.rank {
                    ranks.insert((*path).into(), factors.rank.into());
                }
                if factors.alpha != first.alpha {
                    alphas.insert((*path).into(), factors.alpha.into());
                }
            }
            let targets: Vec<&str> = layers.iter().map(|(path, _)| *path).collect();
            let values: [(&str, Value); 11] = [
                ("peft_type", "LORA".into()),
                ("r", first.rank.into()),
                ("lora_alpha", number(first.alpha)),
                ("rank_pattern", ranks.into()),
                ("alpha_pattern", alphas.into()),
                ("target_modules", targets.into()),
                ("lora_dropout", 0.0.into()),
                ("bias", "none".into()),
                ("lora_bias", false.into()),
                ("use_dora", false.into()),
                ("use_rslora", false.into()),
            ];
            values.into_iter().for_each(|(key, value)| drop(metadata.insert(format!("{component}.{key}"), value)));
        }
        serde_json::to_string_pretty(&metadata).expect("a JSON object is text")
    }
}

/// A whole number as Python writes one.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 { (value as i64).into() } else { value.into() }
}
