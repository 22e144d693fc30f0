//! A file that changes a network's layers: read in every published form, and merged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;

use super::change::{Change, Delta};
use super::names::Names;
use super::parts::{Parts, Unfit, change, place};
use super::settings::Settings;
use super::{LoraWeights, some};
use crate::error::{Error, Result};
use crate::parameters::map_parameters_where;
use crate::weights::{Stored, Weights};

/// What the file in an adapter's folder may be called, in the order they are looked for.
const FILES: [&str; 4] = ["adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"];

/// Marks in the names of forms that are not read.
const NOT_READ: [(&str, &str); 7] = [
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".vera_", "VeRA"),
    (".a1.weight", "GLoRA"),
    (".b1.weight", "GLoRA"),
    (".on_input", "IA3"),
    (".set_weight", "whole weights in place of the base's"),
];

/// The changes that a file makes to the layers of a network, whatever their form, and what else it holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The file that was read.
    path: PathBuf,
    /// `unet.….to_q` to its change.
    layers: BTreeMap<String, Change>,
    /// The names of the trigger words whose embeddings lie in the same file. They are not used.
    embeddings: Vec<String>,
}

impl Adapter {
    /// Reads a file in any published form, or the one in a folder: LoRA, LoCon with two or three factors, LoHa, LoKr, full differences, and
    /// DoRA on any of them, under the names of kohya, every version of diffusers, PEFT, LyCORIS, OneTrainer, SimpleTuner and ComfyUI. Where alpha
    /// is told neither beside the factors nor in the metadata nor in an `adapter_config.json` beside the file, it is the rank: scale 1.
    ///
    /// # Errors
    /// When the file cannot be read, holds a tensor that belongs to no layer, lacks one that another needs, or a shape does not fit its layer.
    /// The first few of the faults are named.
    pub fn read(path: &Path, names: &Names) -> Result<Self> {
        let path = file_at(path)?;
        let mut weights = Weights::open(&path)?;
        let settings = Settings::of(&path, &weights)?;
        let keys: Vec<String> = weights.names().map(String::from).collect();
        let (mut of_layers, mut embeddings, mut faults) = (BTreeMap::<String, Parts>::new(), Vec::new(), Vec::new());
        for key in keys {
            if let Some(name) = embedding(&key) {
                embeddings.push(name);
                continue;
            }
            match place(&key).and_then(|(stem, part)| Some((names.layer(stem)?, part))) {
                Some((layer, part)) => {
                    let stored: Stored = weights.take(&key).expect("just listed");
                    let parts = of_layers.entry(layer.to_string()).or_default();
                    if parts.0.insert(part, stored).is_some() {
                        faults.push(format!("{key} repeats a tensor that the file has under another name"));
                    }
                }
                None => faults.push(stray(&key)),
            }
        }
        let mut layers = BTreeMap::new();
        for (layer, parts) in of_layers {
            match change(names.target(&layer), parts, &settings) {
                Ok(change) => drop(layers.insert(layer, change)),
                Err(Unfit::Fault(fault)) => faults.push(fault),
                Err(Unfit::Unreadable(error)) => return Err(error.into()),
            }
        }
        if layers.is_empty() && faults.is_empty() {
            faults.push("it changes no layer".into());
        }
        if !faults.is_empty() {
            return Err(Error::Lora { path: path.display().to_string(), faults: some(&faults, "; ") });
        }
        embeddings.dedup();
        Ok(Self { path, layers, embeddings })
    }

    /// What is said about a file that holds more than is used: the embeddings of trigger words.
    pub fn warning(&self) -> Option<String> {
        embeddings_warning(&self.path, &self.embeddings)
    }

    /// `module` with `weight` times the changes. Of a layer with DoRA, the result lies that much of the way from its weight to the changed one.
    /// Layers that `module` lacks are left out.
    #[must_use]
    pub fn merge<M: Module>(&self, module: M, weight: f64) -> M {
        let change = |name: &str| {
            let (layer, parameter) = name.rsplit_once('.')?;
            Some((self.layers.get(layer)?, parameter == "bias"))
        };
        map_parameters_where(
            module,
            |name, _| change(name).is_some(),
            |name, _, values| match change(name) {
                Some((change, true)) => change.on_bias(values, weight),
                Some((change, false)) => change.on_weight(values, weight),
                None => values,
            },
        )
    }

    /// The factors of all layers, which can be trained further and written under other names. A convolution's third factor is multiplied into
    /// the first.
    ///
    /// # Errors
    /// When a layer's change is more than two factors: DoRA, LoHa, LoKr or a full difference.
    pub fn into_factors(self) -> Result<LoraWeights> {
        let mut layers = BTreeMap::new();
        let mut others: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (layer, change) in self.layers {
            match (change.form(), change.weight) {
                (None, Some(Delta::LowRank(factors))) => drop(layers.insert(layer, factors)),
                (form, _) => others.entry(form.unwrap_or("another form")).or_default().push(layer),
            }
        }
        if others.is_empty() {
            return Ok(LoraWeights { layers });
        }
        let forms: Vec<String> = others.iter().map(|(form, layers)| format!("{form} ({})", some(layers, ", "))).collect();
        Err(Error::LoraForm { path: self.path.display().to_string(), forms: forms.join(" and ") })
    }
}

impl LoraWeights {
    /// Reads a file whose layers have two or three factors each.
    ///
    /// # Errors
    /// As [`Adapter::read`] and [`Adapter::into_factors`].
    pub fn read(path: &Path, names: &Names) -> Result<Self> {
        Adapter::read(path, names)?.into_factors()
    }
}

/// What is said about the embeddings of trigger words in the file at `path`, if it holds any. They are not used.
///
/// # Errors
/// When the file cannot be read.
pub fn left_out(path: &Path) -> Result<Option<String>> {
    let path = file_at(path)?;
    let mut embeddings: Vec<String> = Weights::open(&path)?.names().filter_map(embedding).collect();
    embeddings.dedup();
    Ok(embeddings_warning(&path, &embeddings))
}

fn embeddings_warning(path: &Path, embeddings: &[String]) -> Option<String> {
    let plural = if embeddings.len() == 1 { "" } else { "s" };
    (!embeddings.is_empty()).then(|| {
        let (path, names) = (path.display(), some(embeddings, ", "));
        format!("the LoRA {path} also holds the embedding{plural} {names}, left out: prompts with such a word are read without it")
    })
}

/// The file that `path` names: itself, or the adapter in the folder.
fn file_at(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let missing = || {
        let looked_for = FILES.join(", ");
        Error::Request(format!("{}: this folder has no LoRA under a usual name ({looked_for}); name the file", path.display()))
    };
    FILES.iter().map(|name| path.join(name)).find(|file| file.is_file()).ok_or_else(missing)
}

/// The trigger word whose embedding a tensor holds: `bundle_emb.NAME.KEY` of OneTrainer and the web UI, or a textual inversion of kohya's,
/// which does not name it.
fn embedding(key: &str) -> Option<String> {
    if key == "emb_params" || key == "string_to_param.*" {
        return Some(key.into());
    }
    let bundled = key.strip_prefix("bundle_emb.")?;
    let name = bundled.strip_suffix(".string_to_param.*").or_else(|| bundled.rsplit_once('.').map(|(name, _)| name));
    Some(name.unwrap_or(bundled).into())
}

/// What is wrong with a tensor that belongs to no layer.
fn stray(key: &str) -> String {
    match NOT_READ.iter().find(|(mark, _)| key.contains(mark)) {
        Some((_, form)) => format!("{key} is of a form that is not read ({form})"),
        None => format!("{key} belongs to no layer"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::file::Dialect;
    use crate::pipeline::ModelFolder;
    use crate::weights::{SaveType, save_safetensors};
    use burn::tensor::Device;

    /// A UNet's layer, and one of a text encoder, of the same shape.
    const LAYER: &str = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    const ENCODER_LAYER: &str = "text_encoder.encoder.layers.0.self_attn.q_proj";

    fn names() -> Names {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sd15_tiny/pipeline");
        ModelFolder::open(&folder).unwrap().lora_names(&Device::flex())
    }

    /// A file with these tensors, all of whose values are 0.5.
    fn write(path: &Path, tensors: &[(&str, &[usize])], metadata: &[(&str, &str)]) {
        let tensors = tensors.iter().map(|(name, shape)| {
            let values: Box<dyn FnOnce() -> Vec<f32>> = Box::new(|| vec![0.5; shape.iter().product()]);
            (*name, *shape, values)
        });
        save_safetensors(path, tensors, metadata, SaveType::F32).unwrap();
    }

    /// Reads factors of rank 2 under these two names, which must be those of `layer`; their alpha.
    fn alpha(dir: &Path, layer: &str, [down, up]: [&str; 2], metadata: &[(&str, &str)]) -> f64 {
        let (names, path) = (names(), dir.join("adapter_model.safetensors"));
        let shape = &names.layers[layer].shape;
        write(&path, &[(down, &[2, shape[1]]), (up, &[shape[0], 2])], metadata);
        let read = LoraWeights::read(&path, &names).unwrap();
        assert_eq!(read.layers.keys().collect::<Vec<_>>(), [layer]);
        read.layers[layer].alpha
    }

    fn refused(tensors: &[(&str, &[usize])]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lora.safetensors");
        write(&path, tensors, &[]);
        Adapter::read(&path, &names()).unwrap_err().to_string()
    }

    #[test]
    fn names_of_all_ages_and_tools_are_read_and_no_alpha_means_scale_1() {
        let dir = tempfile::tempdir().unwrap();
        let path = LAYER.strip_prefix("unet.").unwrap();
        let original = "middle_block.1.transformer_blocks.0.attn1.to_q";
        let processor = LAYER.replace(".to_q", ".processor.to_q_lora");
        let underscored = |path: &str| path.replace('.', "_");
        let q_proj = "text_model.encoder.layers.0.self_attn.q_proj";
        let (diffusers, kohya) = (["lora.down.weight", "lora.up.weight"], ["lora_down.weight", "lora_up.weight"]);
        let (peft, first) = (["lora_A.weight", "lora_B.weight"], ["down.weight", "up.weight"]);
        let forms = [
            (LAYER, processor.clone(), first),
            (LAYER, format!("unet.{processor}"), first),
            (LAYER, path.to_string(), diffusers),
            (LAYER, format!("unet.base_model.model.{path}"), diffusers),
            (LAYER, format!("base_model.model.{path}"), peft),
            (LAYER, LAYER.to_string(), ["lora_A.default.weight", "lora_B.default.weight"]),
            (LAYER, format!("_orig_mod.{path}"), ["lora_A.mine.weight", "lora_B.mine.weight"]),
            (LAYER, format!("lora_unet_{}", underscored(path)), kohya),
            (LAYER, format!("lora_unet_{}", underscored(original)), kohya),
            (LAYER, format!("lycoris_{}", underscored(path)), kohya),
            (LAYER, format!("unet.{original}"), kohya),
            (LAYER, format!("diffusion_model.{original}"), kohya),
            (ENCODER_LAYER, format!("base_model.model.{q_proj}"), peft),
            (ENCODER_LAYER, format!("text_encoder.{}", q_proj.replace("q_proj", "to_q_lora")), first),
            (ENCODER_LAYER, format!("text_encoder.{q_proj}"), ["lora_linear_layer.down.weight", "lora_linear_layer.up.weight"]),
            (ENCODER_LAYER, format!("clip_l.{q_proj}"), kohya),
            (ENCODER_LAYER, format!("text_encoders.clip_l.transformer.{q_proj}"), peft),
            (ENCODER_LAYER, format!("lora_te1_{}", underscored(q_proj)), kohya),
        ];
        for (layer, stem, ends) in forms {
            let [down, up] = ends.map(|end| format!("{stem}.{end}"));
            assert_eq!(alpha(dir.path(), layer, [&down, &up], &[]), 2.0, "{down}");
        }
    }

    #[test]
    fn alpha_is_told_in_the_metadata_or_beside_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let [down, up] = Names::peft(LAYER);
        let told = |text: &str| alpha(dir.path(), LAYER, [&down, &up], &[("lora_adapter_metadata", text)]);
        assert_eq!(told(r#"{ "unet.lora_alpha": 6 }"#), 6.0);
        assert_eq!(told(r#"{ "unet.lora_alpha": 6, "unet.alpha_pattern": { "attn1.to_q": 3 } }"#), 3.0);
        // alpha / √rank is alpha · √rank / rank.
        assert_eq!(told(r#"{ "unet.lora_alpha": 6, "unet.use_rslora": true }"#), 6.0 * 2f64.sqrt());
        std::fs::write(dir.path().join("adapter_config.json"), r#"{ "r": 2, "lora_alpha": 8 }"#).unwrap();
        assert_eq!(alpha(dir.path(), LAYER, [&down, &up], &[]), 8.0);
        // The folder is the file in it; another file there has settings of its own, or none.
        assert_eq!(LoraWeights::read(dir.path(), &names()).unwrap().layers[LAYER].alpha, 8.0);
        let other = dir.path().join("other.safetensors");
        std::fs::rename(dir.path().join("adapter_model.safetensors"), &other).unwrap();
        assert_eq!(LoraWeights::read(&other, &names()).unwrap().layers[LAYER].alpha, 2.0);
        let told = LoraWeights::read(dir.path(), &names()).unwrap_err().to_string();
        assert!(told.contains("adapter_model.safetensors, ") && told.ends_with("name the file"), "{told}");
    }

    #[test]
    fn embeddings_are_named_once_and_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lora.safetensors");
        let [down, up] = Names::peft(LAYER);
        let factors: [(&str, &[usize]); 2] = [(&down, &[2, 32]), (&up, &[32, 2])];
        let with = |embeddings: &[&str]| {
            let embeddings = embeddings.iter().map(|name| (*name, &[2, 8][..]));
            write(&path, &factors.into_iter().chain(embeddings).collect::<Vec<_>>(), &[]);
            let adapter = Adapter::read(&path, &names()).unwrap();
            assert_eq!(adapter.layers.len(), 1);
            assert_eq!(adapter.warning(), left_out(&path).unwrap());
            adapter.warning()
        };
        assert_eq!(with(&[]), None);
        let told = |embeddings: &[&str]| with(embeddings).unwrap();
        assert!(told(&["bundle_emb.zorgblat.string_to_param.*"]).contains("the embedding zorgblat, left out"));
        assert!(told(&["bundle_emb.zorg blat.clip_g", "bundle_emb.zorg blat.clip_l"]).contains("the embedding zorg blat, left out"));
        assert!(told(&["emb_params", "bundle_emb.b.clip_l"]).contains("the embeddings b, emb_params, left out"));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let names = |end: &str| format!("{LAYER}.{end}");
        let [down, up] = Names::peft(LAYER);
        let fits: [(&str, &[usize]); 2] = [(&down, &[2, 32]), (&up, &[32, 2])];
        let with = |end: &str, shape: &[usize]| refused(&[&fits[..], &[(&names(end), shape)]].concat());
        let told = with("lora_magnitude_vector", &[31]);
        let expected = "has the shape [32, 32]: expected tensors [rank, 32] and [32, rank], of norms [32, 1] or [1, 32]; found lora_A.weight \
                        [2, 32], lora_B.weight [32, 2], lora_magnitude_vector [31]";
        assert!(told.contains(LAYER) && told.contains(expected), "{told}");
        assert!(with("diff_b", &[32]).contains("has no bias, which the file changes"));
        assert!(with("hada_w1_a", &[32, 2]).contains("a tensor .hada_w1_a that does not belong to its others"));
        assert!(with("lora.down.weight", &[2, 32]).contains("repeats a tensor that the file has under another name"));
        assert!(with("oft_blocks", &[2, 32]).contains("is of a form that is not read (OFT)"));
        assert!(refused(&[(&names("hada_w1_a"), &[32, 2])]).contains("lacks its tensor .hada_w1_b"));
        assert!(refused(&[(&names("dora_scale"), &[32, 1])]).contains("lacks one of its two factors"));
        let norm = "unet.mid_block.attentions.0.transformer_blocks.0.norm1";
        let told = refused(&[(&format!("{norm}.lora_A.weight"), &[2, 1]), (&format!("{norm}.lora_B.weight"), &[32, 2])]);
        assert!(told.contains("norm1 has the shape [32]: expected tensors [32]; found lora_A.weight [2, 1]"), "{told}");
        // A handful of names.
        let strays: Vec<String> = (0..50).map(|i| format!("stray_{i}.alpha")).collect();
        let told = refused(&strays.iter().map(|name| (name.as_str(), &[1][..])).collect::<Vec<_>>());
        assert!(told.ends_with("stray_11.alpha belongs to no layer; and 46 more"), "{told}");
    }

    /// Of as many values as one that would fit, or of as many as broadcast to it.
    #[test]
    fn a_tensor_of_other_dimensions_is_refused() {
        let names = |layer: &str, end: &str| format!("{layer}.{end}");
        let conv = "unet.mid_block.resnets.0.conv1";
        let told = |layer: &str, tensors: &[(&str, &[usize])], expected: &str| {
            let named: Vec<_> = tensors.iter().map(|(end, shape)| (names(layer, end), *shape)).collect();
            let told = refused(&named.iter().map(|(name, shape)| (name.as_str(), *shape)).collect::<Vec<_>>());
            let found: Vec<_> = tensors.iter().map(|(end, shape)| format!("{end} {shape:?}")).collect();
            assert!(told.contains(layer) && told.contains(expected) && found.iter().all(|found| told.contains(found)), "{told}");
        };
        let factors = "expected tensors [rank, 32] and [32, rank]; found";
        told(LAYER, &[("lora_A.weight", &[4, 32]), ("lora_B.weight", &[32, 2, 2])], factors);
        told(LAYER, &[("lora_down.weight", &[4, 32]), ("lora_up.weight", &[32, 4, 1])], factors);
        told(LAYER, &[("lora_down.weight", &[2, 4, 2, 4]), ("lora_up.weight", &[32, 2])], factors);
        told(LAYER, &[("lora_down.weight", &[1, 32]), ("lora_up.weight", &[32])], factors);
        let factors = "has the shape [32, 32, 3, 3]: expected tensors [rank, 32, 3, 3] and [32, rank]; found";
        told(conv, &[("lora_down.weight", &[2, 3, 3, 32]), ("lora_up.weight", &[32, 2, 1, 1])], factors);
        told(conv, &[("lora_down.weight", &[2, 32, 9]), ("lora_up.weight", &[32, 2, 1, 1])], factors);
        let three = "expected tensors [m, 32, 1, 1], [n, m, 3, 3] and [32, n]; found";
        let (down, up): ((_, &[usize]), (_, &[usize])) = (("lora_down.weight", &[2, 32, 1, 1]), ("lora_up.weight", &[32, 3, 1, 1]));
        told(conv, &[down, ("lora_mid.weight", &[3, 2, 9, 1]), up], three);
        let pair = |end: &str| (format!("hada_w1_{end}"), format!("hada_w2_{end}"));
        let ((up, other_up), (down, other_down)) = (pair("a"), pair("b"));
        let sound: [(&str, &[usize]); 3] = [(&up, &[32, 2]), (&down, &[2, 32]), (&other_down, &[2, 32])];
        let pairs = "expected tensors [32, rank] and [rank, 32], twice; found";
        told(LAYER, &[&sound[..], &[(&other_up, &[32, 1, 2])]].concat(), pairs);
        told(LAYER, &[("lokr_w1", &[4, 2, 2]), ("lokr_w2", &[8, 8])], "expected tensors [a, b] and [32 / a, 32 / b], or factors of these");
        told(conv, &[("lokr_w1", &[4, 4]), ("lokr_w2", &[8, 3, 3, 8])], "[a, b] and [32 / a, 32 / b, 3, 3], or factors");
        told(LAYER, &[("diff", &[32, 4, 8])], "expected tensors [32, 32]; found");
        told(conv, &[("diff", &[32, 32, 9])], "expected tensors [32, 32, 3, 3]; found");
        told(conv, &[("diff", &[32, 32, 3, 3]), ("diff_b", &[4, 8])], ", of a bias [32]; found");
        told(
            LAYER,
            &[("lora_A.weight", &[2, 32]), ("lora_B.weight", &[32, 2]), ("dora_scale", &[4, 8])],
            "of norms [32, 1] or [1, 32]; found",
        );
    }

    /// Each number alone is finite.
    #[test]
    fn factors_that_overflow_together_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter_model.safetensors");
        let [down, up] = Names::peft(LAYER);
        write(&path, &[(&down, &[2, 32]), (&up, &[32, 2])], &[("lora_adapter_metadata", r#"{ "unet.lora_alpha": 1e39 }"#)]);
        let told = Adapter::read(&path, &names()).unwrap_err().to_string();
        assert!(told.contains(LAYER) && told.contains("is changed by inf: its factors or its alpha are too large"), "{told}");
    }

    /// The third factor of a convolution, which the dialects that are written do not have.
    #[test]
    fn three_factors_are_written_as_two() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lora.safetensors");
        let stem = "lora_unet_mid_block_resnets_0_conv1";
        let name = |end: &str| format!("{stem}.{end}");
        let (down, mid, up, alpha) = (name("lora_down.weight"), name("lora_mid.weight"), name("lora_up.weight"), name("alpha"));
        write(&path, &[(&down, &[2, 32, 1, 1]), (&mid, &[3, 2, 3, 3]), (&up, &[32, 3, 1, 1]), (&alpha, &[])], &[]);
        let read = LoraWeights::read(&path, &names()).unwrap();
        let factors = &read.layers["unet.mid_block.resnets.0.conv1"];
        // Scale 0.5 / 2, and each value of the first factor a sum of two products.
        assert_eq!((factors.rank, factors.alpha / 3.0, factors.down.len(), factors.down[0]), (3, 0.25, 3 * 32 * 9, 0.5));
        read.save(&path, Dialect::Kohya, &names(), &[]).unwrap();
        assert_eq!(LoraWeights::read(&path, &names()).unwrap(), read);
    }
}
