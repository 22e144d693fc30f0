//! A diffusers folder: reading its `model_index.json` and configs, and writing the same layout again.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use serde_json::{Map, Value};

use vp_core::atomic::temporary_beside;
use vp_schedulers::SchedulerConfig;

use super::LoadedDenoiser;
use super::text::TextModel;
use crate::clip::{ClipTextConfig, published_name};
use crate::config_json::NetworkConfig;
use crate::denoiser::Denoiser;
use crate::error::{Error, Result};
use crate::family::Family;
use crate::lora::{Layer, Names, layers_and_norms};
use crate::parameters::{NamedParameter, named_parameters};
use crate::unet::{Addition, UNetConfig};
use crate::vae::{AutoencoderConfig, AutoencoderKL};
use crate::weights::{SaveType, component_files, save_safetensors};

/// A diffusers folder whose small files were read and checked: everything that can be wrong before a byte of weights is read.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    path: PathBuf,
    index: Map<String, Value>,
    family: Family,
    unet_config: UNetConfig,
    vae_config: AutoencoderConfig,
    /// The config of the folder's own scheduler.
    pub scheduler_config: SchedulerConfig,
}

impl ModelFolder {
    /// Opens a folder.
    ///
    /// # Errors
    /// When `path` is not such a folder (for a hub id and for a single-file checkpoint the error says what to pass instead), when a
    /// component is missing, and when the pipeline is of another kind.
    pub fn open(path: &Path) -> Result<Self> {
        let given = path.display().to_string();
        let not_a_folder = |message: String| Error::NotAFolder { given: given.clone(), message };
        if path.is_file() {
            return Err(not_a_folder(
                "a single file; pass a diffusers folder (in Python: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER))".into(),
            ));
        }
        if !path.is_dir() {
            return Err(not_a_folder(if looks_like_a_hub_id(&given) {
                format!(
                    "no such folder. If this is a hub id: nothing is downloaded here; fetch it first (hf download {given} --local-dir FOLDER) and pass FOLDER"
                )
            } else {
                "no such folder".into()
            }));
        }
        let index_path = path.join("model_index.json");
        if !index_path.is_file() {
            return Err(not_a_folder("not a diffusers folder: it has no model_index.json".into()));
        }
        let name = index_path.display().to_string();
        let text = fs::read_to_string(&index_path).map_err(|source| Error::Io { path: name.clone(), source })?;
        let index: Map<String, Value> =
            serde_json::from_str(&text).map_err(|e| Error::Config { path: name.clone(), message: e.to_string() })?;
        let class = index.get("_class_name").and_then(Value::as_str).unwrap_or_default();
        let family = match class {
            "StableDiffusionPipeline" => Family::StableDiffusion,
            "StableDiffusionXLPipeline" => Family::StableDiffusionXl,
            other => {
                let message = format!("_class_name is {other:?}, expected StableDiffusionPipeline or StableDiffusionXLPipeline");
                return Err(Error::Config { path: name, message });
            }
        };
        if let Some(missing) = family.components().iter().find(|component| !path.join(component).is_dir()) {
            return Err(not_a_folder(format!("its component {missing}/ is missing")));
        }
        let scheduler_path = path.join("scheduler/scheduler_config.json");
        let scheduler_config = as_the_pipeline_runs_it(SchedulerConfig::read(&scheduler_path)?, family);
        let unet_config = UNetConfig::read(&path.join("unet/config.json"))?;
        let vae_config = AutoencoderConfig::read(&path.join("vae/config.json"))?;
        let folder = Self { path: path.to_path_buf(), index, family, unet_config, vae_config, scheduler_config };
        folder.check_unet()?;
        Ok(folder)
    }

    fn check_unet(&self) -> Result<()> {
        let (unet, latent) = (&self.unet_config, self.vae_config.latent_channels);
        let message = if (self.family == Family::StableDiffusionXl) != matches!(unet.addition, Some(Addition::TextTime(_))) {
            format!("addition_embed_type does not fit the class {:?} of model_index.json", self.family)
        } else if (unet.in_channels, unet.out_channels) != (latent, latent) {
            let (in_channels, out_channels) = (unet.in_channels, unet.out_channels);
            format!(
                "{in_channels} channels in and {out_channels} out, where the autoencoder has {latent} (an inpainting or other special model?)"
            )
        } else {
            return Ok(());
        };
        Err(Error::Config { path: self.path.join("unet/config.json").display().to_string(), message })
    }

    /// The denoiser's config.
    pub fn unet_config(&self) -> &UNetConfig {
        &self.unet_config
    }

    /// The autoencoder's config.
    pub fn vae_config(&self) -> &AutoencoderConfig {
        &self.vae_config
    }

    /// Height and width of an image in pixels, unless another size is asked for.
    pub fn default_size(&self) -> [usize; 2] {
        [self.unet_config.sample_size.unwrap_or(64) * self.vae_config.downscale(); 2]
    }

    /// Checks the size (height and width in pixels) and the guidance scale that a user asks for.
    ///
    /// # Errors
    /// When a side is not a multiple of the autoencoder's reduction, or the scale is not a number of at least 0.
    pub fn check(&self, size: [usize; 2], guidance_scale: f64) -> Result<()> {
        let factor = self.vae_config.downscale();
        for (name, value) in ["height", "width"].into_iter().zip(size) {
            if value == 0 || !value.is_multiple_of(factor) {
                let below = value / factor * factor;
                let near = if below == 0 { factor.to_string() } else { format!("{below} and {}", below + factor) };
                return Err(Error::Request(format!("{name} {value} is not a multiple of {factor}; nearest: {near}")));
            }
        }
        if !guidance_scale.is_finite() || guidance_scale < 0.0 {
            return Err(Error::Request(format!("guidance scale {guidance_scale}: expected a number of at least 0 (above 1 guides)")));
        }
        Ok(())
    }

    /// The names in LoRA files of the layers of this folder's networks. No weights are read.
    ///
    /// # Errors
    /// When a text encoder's config cannot be read.
    pub fn lora_names(&self, device: &Device) -> Result<Names> {
        let mut all = Vec::new();
        let mut add = |component: &str, mut layers: Vec<Layer>| {
            layers.iter_mut().for_each(|layer| layer.name = format!("{component}.{}", layer.name));
            all.append(&mut layers);
        };
        add(LoadedDenoiser::COMPONENT, layers_and_norms(&self.unet_config.init(device)));
        for component in self.family.text_encoders() {
            let config = ClipTextConfig::read(&self.path.join(component).join("config.json"))?;
            add(component, layers_and_norms(&config.init(device)));
        }
        Ok(Names::new(&all, self.family, &self.unet_config))
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The family of its pipeline.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether an absent negative prompt means zeros instead of the empty text, as it may in SDXL.
    pub fn force_zeros_for_empty_prompt(&self) -> bool {
        self.index.get("force_zeros_for_empty_prompt").and_then(Value::as_bool).unwrap_or(self.family == Family::StableDiffusionXl)
    }

    /// Writes the folder again under `destination`, with `replaced` components' weights in place of the old ones. Everything is
    /// written beside `destination` first and renamed, so a half-written folder is never seen; what an earlier export left there
    /// is replaced.
    ///
    /// # Errors
    /// When `destination` exists and is not a model folder, or cannot be written.
    pub fn export(&self, destination: &Path, replaced: &[Component]) -> Result<()> {
        let io = |path: &Path| {
            let path = path.display().to_string();
            move |source| Error::Io { path, source }
        };
        if destination.exists() && !destination.join("model_index.json").is_file() {
            return Err(Error::Request(format!(
                "{} exists and is not a model folder; remove it or choose another folder",
                destination.display()
            )));
        }
        if let Some(parent) = destination.parent() {
            fs::create_dir_all(parent).map_err(io(parent))?;
        }
        let (temporary, old) = (temporary_beside(destination), temporary_beside(destination));
        let written = self.write_to(&temporary, replaced).and_then(|()| {
            let moved = if destination.exists() { fs::rename(destination, &old) } else { Ok(()) };
            moved.and_then(|()| fs::rename(&temporary, destination)).map_err(io(destination))
        });
        for left_over in [&temporary, &old] {
            let _ = fs::remove_dir_all(left_over);
        }
        written
    }

    fn write_to(&self, folder: &Path, replaced: &[Component]) -> Result<()> {
        let io = |path: &Path| {
            let path = path.display().to_string();
            move |source| Error::Io { path, source }
        };
        fs::create_dir_all(folder).map_err(io(folder))?;
        let index = folder.join("model_index.json");
        fs::copy(self.path.join("model_index.json"), &index).map_err(io(&index))?;
        // A component that is [null, null] in the index has no folder; one that we do not read (a safety checker) is carried along.
        for name in self.index.keys().filter(|name| self.path.join(name).is_dir()) {
            let (from, to) = (self.path.join(name), folder.join(name));
            fs::create_dir_all(&to).map_err(io(&to))?;
            match replaced.iter().find(|component| component.name == name) {
                Some(component) => component.write(&to)?,
                None => copy_component(&from, &to).map_err(io(&from))?,
            }
        }
        Ok(())
    }
}

/// Corrects a scheduler config as `StableDiffusionPipeline` does on loading: outdated files clip the sample or do not shift the
/// timesteps by one (diffusers `pipeline_stable_diffusion.py`, `__init__`). XL's pipeline leaves it as it is.
fn as_the_pipeline_runs_it(mut config: SchedulerConfig, family: Family) -> SchedulerConfig {
    if family == Family::StableDiffusion {
        config.steps_offset = Some(1);
        config.clip_sample = Some(false);
    }
    config
}

fn looks_like_a_hub_id(given: &str) -> bool {
    let plain =
        |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    matches!(given.split('/').collect::<Vec<_>>()[..], [owner, name] if plain(owner) && plain(name))
}

/// Copies a component's small files, and its weights in one form: the one that would be loaded, under the name without a
/// variant, so that the folder opens without `variant=`.
fn copy_component(from: &Path, to: &Path) -> std::io::Result<()> {
    let files: Vec<String> =
        fs::read_dir(from)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<std::io::Result<_>>()?;
    let is_weights = |name: &str| {
        name.contains(".safetensors") || [".bin", ".msgpack", ".ckpt", ".onnx", ".pb", ".xml", ".h5"].iter().any(|end| name.ends_with(end))
    };
    for name in files.iter().filter(|name| !is_weights(name) && from.join(name).is_file()) {
        fs::copy(from.join(name), to.join(name))?;
    }
    let chosen = ["diffusion_pytorch_model", "model"].iter().flat_map(|stem| component_files(stem)).find(|name| files.contains(name));
    match chosen {
        Some(index) if index.contains(".index.") => {
            let suffix = if index.contains("fp16") { ".fp16" } else { "" };
            let text = fs::read_to_string(from.join(&index))?;
            fs::write(
                to.join(index.replace(".fp16", "")),
                text.replace(&format!("{suffix}.safetensors"), ".safetensors").replace(&format!("{suffix}-"), "-"),
            )?;
            let map: Value = serde_json::from_str(&text)?;
            let shards: std::collections::BTreeSet<&str> =
                map["weight_map"].as_object().into_iter().flatten().filter_map(|(_, f)| f.as_str()).collect();
            for shard in shards {
                fs::copy(from.join(shard), to.join(if suffix.is_empty() { shard.into() } else { shard.replace(suffix, "") }))?;
            }
        }
        Some(single) => {
            fs::copy(from.join(&single), to.join(single.replace(".fp16", "")))?;
        }
        // Only older forms (a safety checker's .bin): carried as they are.
        None => {
            for name in files.iter().filter(|name| name.ends_with(".bin")) {
                fs::copy(from.join(name), to.join(name))?;
            }
        }
    }
    Ok(())
}

/// A network to be written as a component of a folder.
#[derive(Debug)]
pub struct Component {
    name: &'static str,
    stem: &'static str,
    config: Map<String, Value>,
    tensors: Vec<NamedParameter>,
    save_type: SaveType,
}

impl Component {
    /// The denoiser, in the folder of its name: `unet/`.
    pub fn denoiser<D: Denoiser>(denoiser: &D) -> Self {
        Self::new(D::COMPONENT, "diffusion_pytorch_model", denoiser.config_json(), denoiser)
    }

    /// The autoencoder, in `vae/`.
    pub fn vae(vae: &AutoencoderKL) -> Self {
        Self::new("vae", "diffusion_pytorch_model", vae.config().raw.clone(), vae)
    }

    /// A text encoder, in `text_encoder/` or `text_encoder_2/`, its tensors under the published names.
    pub fn text_encoder(name: &'static str, encoder: &TextModel) -> Self {
        let TextModel::Clip(encoder) = encoder;
        let mut component = Self::new(name, "model", encoder.config().raw.clone(), encoder);
        component.tensors.iter_mut().for_each(|tensor| tensor.name = published_name(&tensor.name));
        component
    }

    fn new<M: Module>(name: &'static str, stem: &'static str, config: Map<String, Value>, module: &M) -> Self {
        Self { name, stem, config, tensors: named_parameters(module), save_type: SaveType::F32 }
    }

    /// The same component, its weights written in another type.
    pub fn with_save_type(self, save_type: SaveType) -> Self {
        Self { save_type, ..self }
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let config = serde_json::to_string_pretty(&self.config).expect("a JSON object is text") + "\n";
        let path = folder.join("config.json");
        fs::write(&path, config).map_err(|source| Error::Io { path: path.display().to_string(), source })?;
        let tensors = self.tensors.iter().map(|tensor| {
            let values: Box<dyn FnOnce() -> Vec<f32>> = Box::new(|| {
                // Frozen weights may have fewer bits.
                tensor.values.to_data().convert::<f32>().try_to_vec().expect("converted to f32")
            });
            (tensor.name.as_str(), tensor.shape.as_slice(), values)
        });
        Ok(save_safetensors(&folder.join(format!("{}.safetensors", self.stem)), tensors, &[], self.save_type)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids_and_paths_are_told_apart() {
        assert!(looks_like_a_hub_id("stable-diffusion-v1-5/stable-diffusion-v1-5"));
        for path in ["./models/sd15", "/models/sd15", "models", "../sd15", "a/b/c"] {
            assert!(!looks_like_a_hub_id(path), "{path}");
        }
    }
}
