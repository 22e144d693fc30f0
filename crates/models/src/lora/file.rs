//! LoRA files: three dialects read, three written.
//!
//! Source: diffusers `loaders/lora_pipeline.py` (`save_lora_weights`, `lora_adapter_metadata`), PEFT `tuners/lora/config.py`,
//! kohya `sd-scripts/networks/lora.py`.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use serde_json::{Map, Value};

use super::names::Names;
use super::{Factors, LoraWeights};
use crate::error::{Error, Result};
use crate::weights::{LoadError, SaveType, Stored, Weights, save_safetensors};

/// A convention for the names of tensors in a LoRA file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `lora_unet_…_to_q.lora_down.weight` with `.alpha`: kohya's sd-scripts, A1111, ComfyUI.
    Kohya,
    /// `unet.….to_q.lora.down.weight`: diffusers; alpha in the metadata.
    Diffusers,
    /// `unet.….to_q.lora_A.weight`: PEFT's names; alpha in the metadata.
    Peft,
}

/// Which of a layer's tensors in a file: one of its factors, or the numerator of its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Down,
    Up,
    Alpha,
}

/// The endings of names in all dialects; the first that fits counts.
const ENDINGS: &[(&str, Part)] = &[
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_A.default.weight", Part::Down),
    (".lora_B.default.weight", Part::Up),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    // An attention processor's `to_q_lora.down.weight`, whose layer is found by all that comes before.
    (".down.weight", Part::Down),
    (".up.weight", Part::Up),
    (".alpha", Part::Alpha),
];

/// How many of a file's faults are shown.
const SHOWN: usize = 20;

/// `module` with the factors of the file at `path` added to its weights, `weight` times.
///
/// # Errors
/// As [`LoraWeights::read`].
pub fn merge_file<M: Module>(module: M, path: &Path, names: &Names, weight: f64) -> Result<M> {
    Ok(LoraWeights::read(path, names)?.merge(module, weight))
}

impl LoraWeights {
    /// Reads a file of any of the [dialects](Dialect). Where alpha is told neither beside the factors nor in the metadata (nor in an
    /// `adapter_config.json` beside the file), it is the rank: scale 1.
    ///
    /// # Errors
    /// When the file cannot be read, holds a tensor that belongs to no layer (all are listed), lacks one of a layer's two factors,
    /// or a factor's shape is not its layer's.
    pub fn read(path: &Path, names: &Names) -> Result<Self> {
        let mut weights = Weights::open(path)?;
        let told = Told::of(path, &weights)?;
        let keys: Vec<String> = weights.names().map(String::from).collect();
        let mut parts: BTreeMap<String, BTreeMap<Part, Stored>> = BTreeMap::new();
        let mut faults = Vec::new();
        for key in keys {
            let place = ENDINGS.iter().find_map(|(ending, part)| Some((key.strip_suffix(ending)?, *part)));
            match place.and_then(|(stem, part)| Some((names.layer(stem)?, part))) {
                Some((layer, part)) => {
                    let stored = weights.take(&key).expect("just listed");
                    parts.entry(layer.to_string()).or_default().insert(part, stored);
                }
                None => faults.push(format!("{key} belongs to no layer")),
            }
        }
        let mut layers = BTreeMap::new();
        for (layer, parts) in parts {
            match factors(&layer, parts, &names.shapes[&layer], &told)? {
                Ok(factors) => drop(layers.insert(layer, factors)),
                Err(fault) => faults.push(fault),
            }
        }
        if layers.is_empty() && faults.is_empty() {
            faults.push("it holds no tensors".into());
        }
        if faults.is_empty() {
            return Ok(Self { layers });
        }
        let more = faults.len().saturating_sub(SHOWN);
        faults.truncate(SHOWN);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        Err(Error::Lora { path: path.display().to_string(), faults: format!("{}{more}", faults.join("; ")) })
    }

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

/// The factors of one layer, or what is wrong with them.
fn factors(
    layer: &str,
    mut parts: BTreeMap<Part, Stored>,
    shape: &[usize],
    told: &Told,
) -> std::result::Result<std::result::Result<Factors, String>, LoadError> {
    let (Some(down), Some(up)) = (parts.remove(&Part::Down), parts.remove(&Part::Up)) else {
        return Ok(Err(format!("{layer} lacks one of its two factors")));
    };
    let rank = down.shape().first().copied().unwrap_or(0);
    // A 1×1 kernel is written as a matrix by some.
    let plain = |shape: &[usize]| shape.iter().rposition(|side| *side != 1).map_or(Vec::new(), |last| shape[..=last].to_vec());
    let expected = |shape: Vec<usize>, stored: &Stored| plain(&shape) == plain(stored.shape());
    let (down_shape, up_shape) = ([&[rank], &shape[1..]].concat(), vec![shape[0], rank]);
    if rank == 0 || !expected(down_shape, &down) || !expected(up_shape, &up) {
        let (down, up) = (down.shape(), up.shape());
        return Ok(Err(format!("{layer} has the shape {shape:?}, and factors of the shapes {down:?} and {up:?} do not fit it")));
    }
    let alpha = match parts.remove(&Part::Alpha) {
        Some(alpha) => alpha.read()?.first().copied().map_or(rank as f64, f64::from),
        None => told.alpha(layer, rank),
    };
    let factors = Factors { shape: shape.to_vec(), rank, alpha, down: down.read()?, up: up.read()? };
    let bad = factors.down.iter().chain(&factors.up).any(|value| !value.is_finite()) || !alpha.is_finite();
    Ok(if bad { Err(format!("{layer} holds values that are not finite")) } else { Ok(factors) })
}

/// The settings that come beside a file's tensors: PEFT's `LoraConfig`, by component.
#[derive(Debug, Default)]
struct Told(Map<String, Value>);

impl Told {
    fn of(path: &Path, weights: &Weights) -> Result<Self> {
        let beside = path.with_file_name("adapter_config.json");
        let (source, text) = match weights.metadata().get("lora_adapter_metadata") {
            Some(text) => (path.to_path_buf(), text.clone()),
            None if path.file_name().is_some_and(|name| name == "adapter_model.safetensors") && beside.is_file() => {
                let io = |source| Error::Io { path: beside.display().to_string(), source };
                (beside.clone(), std::fs::read_to_string(&beside).map_err(io)?)
            }
            None => return Ok(Self::default()),
        };
        let message =
            |e: serde_json::Error| Error::Config { path: source.display().to_string(), message: format!("lora_adapter_metadata: {e}") };
        Ok(Self(serde_json::from_str(&text).map_err(message)?))
    }

    fn get(&self, component: &str, key: &str) -> Option<&Value> {
        self.0.get(&format!("{component}.{key}")).or_else(|| self.0.get(key))
    }

    /// The numerator of a layer's scale; its rank where nothing is told.
    fn alpha(&self, layer: &str, rank: usize) -> f64 {
        let (component, path) = layer.split_once('.').unwrap_or(("", layer));
        let matches = |pattern: &str| path == pattern || path.ends_with(&format!(".{pattern}"));
        let own = self.get(component, "alpha_pattern").and_then(Value::as_object);
        let own = own.and_then(|patterns| patterns.iter().find(|(pattern, _)| matches(pattern)).and_then(|(_, alpha)| alpha.as_f64()));
        let alpha = own.or_else(|| self.get(component, "lora_alpha")?.as_f64()).unwrap_or(rank as f64);
        // Rank-stabilised: alpha / √rank.
        let stabilised = self.get(component, "use_rslora").and_then(Value::as_bool).unwrap_or(false);
        if stabilised && !self.0.is_empty() { alpha * (rank as f64).sqrt() } else { alpha }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetworkConfig;
    use crate::family::Family;
    use crate::lora::layers;
    use crate::unet::UNetConfig;
    use burn::tensor::Device;

    const LAYER: &str = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";

    fn names() -> Names {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd15_tiny/pipeline/unet/config.json");
        let config = UNetConfig::read(&path).unwrap();
        let mut found = layers(&config.init(&Device::flex()));
        found.iter_mut().for_each(|layer| layer.name = format!("unet.{}", layer.name));
        Names::new(&found, Family::StableDiffusion, &config)
    }

    /// The alpha that is read for factors of rank 2 under these two names.
    fn alpha(dir: &Path, [down, up]: [&str; 2], metadata: &[(&str, &str)]) -> f64 {
        let (names, path) = (names(), dir.join("adapter_model.safetensors"));
        let (d_out, d_in) = (names.shapes[LAYER][0], names.shapes[LAYER][1]);
        let shapes = [[2, d_in], [d_out, 2]];
        let tensors = [down, up].into_iter().zip(&shapes).map(|(name, shape)| {
            let values: Box<dyn FnOnce() -> Vec<f32>> = Box::new(|| vec![0.5; shape[0] * shape[1]]);
            (name, shape.as_slice(), values)
        });
        save_safetensors(&path, tensors, metadata, SaveType::F32).unwrap();
        let read = LoraWeights::read(&path, &names).unwrap();
        assert_eq!(read.layers.keys().collect::<Vec<_>>(), [LAYER]);
        read.layers[LAYER].alpha
    }

    #[test]
    fn names_of_all_ages_are_read_and_no_alpha_means_scale_1() {
        let dir = tempfile::tempdir().unwrap();
        let path = LAYER.strip_prefix("unet.").unwrap();
        let (processor, kohya) = (LAYER.replace(".to_q", ".processor.to_q_lora"), format!("lora_unet_{}", path.replace('.', "_")));
        let forms = [
            (processor, ["down.weight", "up.weight"]),
            (path.to_string(), ["lora.down.weight", "lora.up.weight"]),
            (format!("base_model.model.{path}"), ["lora_A.weight", "lora_B.weight"]),
            (LAYER.to_string(), ["lora_A.default.weight", "lora_B.default.weight"]),
            (kohya, ["lora_down.weight", "lora_up.weight"]),
        ];
        for (stem, ends) in forms {
            let [down, up] = ends.map(|end| format!("{stem}.{end}"));
            assert_eq!(alpha(dir.path(), [&down, &up], &[]), 2.0, "{down}");
        }
    }

    #[test]
    fn alpha_is_told_in_the_metadata_or_beside_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let [down, up] = Names::peft(LAYER);
        let told = |text: &str| alpha(dir.path(), [&down, &up], &[("lora_adapter_metadata", text)]);
        assert_eq!(told(r#"{ "unet.lora_alpha": 6 }"#), 6.0);
        assert_eq!(told(r#"{ "unet.lora_alpha": 6, "unet.alpha_pattern": { "attn1.to_q": 3 } }"#), 3.0);
        // alpha / √rank is alpha · √rank / rank.
        assert_eq!(told(r#"{ "unet.lora_alpha": 6, "unet.use_rslora": true }"#), 6.0 * 2f64.sqrt());
        std::fs::write(dir.path().join("adapter_config.json"), r#"{ "r": 2, "lora_alpha": 8 }"#).unwrap();
        assert_eq!(alpha(dir.path(), [&down, &up], &[]), 8.0);
    }
}
