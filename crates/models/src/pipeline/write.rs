//! Writing a model: as a diffusers folder, or as a single file.

use std::cell::RefCell;
use std::fs;
use std::path::{Component as PathPart, Path};

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde_json::{Map, Value};
use vp_core::atomic::TemporaryFolder;
use vp_schedulers::PredictionType;

use super::folder::{Files, ModelFolder};
use super::text::TextModel;
use super::trainable::Trainable;
use super::{LoadedDenoiser, Pipeline};
use crate::clip::published_name;
use crate::denoiser::Denoiser;
use crate::error::{Error, Result};
use crate::ldm::{self, Layout, Version};
use crate::parameters::{NamedParameter, named_parameters};
use crate::tokenizer::published;
use crate::vae::AutoencoderKL;
use crate::weights::{LoadError, SaveType, Stored, Weights, component_file, save_safetensors};

impl ModelFolder {
    /// Writes the folder again under `destination`, with `replaced` components' weights in place of the old ones. Everything is
    /// written beside `destination` first and renamed, so a half-written folder is never seen; what an earlier export left there
    /// is replaced.
    ///
    /// # Errors
    /// When `destination` exists and is not a model folder, or cannot be written, and when a weight is not finite.
    pub fn export(&self, destination: &Path, replaced: &[Component]) -> Result<()> {
        if destination.exists() && !destination.join("model_index.json").is_file() {
            return Err(Error::Request(format!(
                "{} exists and is not a model folder; remove it or choose another folder",
                destination.display()
            )));
        }
        if let Some(parent) = destination.parent() {
            fs::create_dir_all(parent).map_err(io(parent))?;
        }
        let temporary = TemporaryFolder::beside(destination).map_err(io(destination))?;
        self.write_to(temporary.path(), replaced).map_err(|error| named(error, temporary.path(), destination))?;
        temporary.replace().map_err(io(destination))
    }

    fn write_to(&self, folder: &Path, replaced: &[Component]) -> Result<()> {
        fs::create_dir_all(folder).map_err(io(folder))?;
        let index = folder.join("model_index.json");
        match self.files {
            Files::Folder => fs::copy(self.path.join("model_index.json"), &index).map(drop),
            Files::Single(_) => fs::write(&index, format!("{:#}\n", Value::Object(self.index.clone()))),
        }
        .map_err(io(&index))?;
        // A component that is [null, null] in the index has no folder; one that we do not read (a safety checker) is carried along.
        // A name that leads elsewhere is no component's.
        let is_name = |name: &str| matches!(Path::new(name).components().collect::<Vec<_>>()[..], [PathPart::Normal(_)]);
        let is_component = |name: &&String| match self.files {
            Files::Folder => is_name(name) && self.path.join(name).is_dir(),
            Files::Single(_) => self.index[*name].get(0).is_some_and(|library| !library.is_null()),
        };
        for name in self.index.keys().filter(is_component) {
            let to = folder.join(name);
            fs::create_dir_all(&to).map_err(io(&to))?;
            match replaced.iter().find(|component| component.name == name) {
                Some(component) => component.write(&to)?,
                None => self.write_component(name, &to)?,
            }
        }
        Ok(())
    }

    /// Writes a component that was not changed, its weights as safetensors without a variant.
    fn write_component(&self, name: &str, to: &Path) -> Result<()> {
        let from = self.path.join(name);
        let device = Device::flex();
        let weights = match name {
            _ if self.is_in_folder(name) => {
                copy_small_files(&from, to).map_err(io(&from))?;
                let stem = match name {
                    LoadedDenoiser::COMPONENT | "vae" => "diffusion_pytorch_model",
                    _ if self.family().text_encoders().contains(&name) => "model",
                    // A safety checker's weights in whatever form, and what has none.
                    _ => return copy_weights(&from, to).map_err(io(&from)),
                };
                if copy_safetensors(&from, to, stem)? {
                    return Ok(());
                }
                (Weights::open_component(&from, stem)?, stem, None)
            }
            LoadedDenoiser::COMPONENT => {
                let weights = self.denoiser_weights(&self.unet_config().init(&device))?;
                (weights, "diffusion_pytorch_model", Some(&self.unet_config().raw))
            }
            "vae" => (self.vae_weights(&self.vae_config().init(&device))?, "diffusion_pytorch_model", Some(&self.vae_config().raw)),
            "scheduler" => return Ok(self.scheduler_config.write(to.join("scheduler_config.json"))?),
            name if name.starts_with("tokenizer") => return self.write_tokenizer(&name.replace("tokenizer", "text_encoder"), to),
            name => {
                let config = self.text_config(name);
                let mut weights = self.text_weights(name, &config.init(&device))?;
                weights.rename(published_name);
                (weights, "model", Some(&config.raw))
            }
        };
        let (weights, stem, config) = weights;
        if let Some(config) = config {
            let path = to.join("config.json");
            fs::write(&path, format!("{:#}\n", Value::Object(config.clone()))).map_err(io(&path))?;
        }
        write_weights(&weights, &to.join(format!("{stem}.safetensors")))
    }

    fn write_tokenizer(&self, text_encoder: &str, to: &Path) -> Result<()> {
        match (self.tokenizer_folder(text_encoder), self.files) {
            (Some(from), _) => copy_small_files(&from, to).map_err(io(&from)),
            (None, Files::Single(layout)) => published::write(to, layout.padding(text_encoder)).map_err(io(to)),
            (None, Files::Folder) => unreachable!("a folder's tokenizer is in it"),
        }
    }
}

impl Pipeline {
    /// Writes the pipeline and its denoiser as a single file in the layout of the original code, which A1111 and ComfyUI open.
    ///
    /// # Errors
    /// When the layout has no place for one of its parameters, or the file cannot be written.
    pub fn export_single_file(&self, model: &Trainable<LoadedDenoiser>, destination: &Path, save_type: SaveType) -> Result<()> {
        let folder = &self.folder;
        let layout = Layout::of(folder.family(), folder.text_config("text_encoder"));
        let levels = folder.vae_config().block_out_channels.len();
        let mut tensors = Vec::new();
        let mut add = |component: &str, parameters: Vec<NamedParameter>| {
            let original = ldm::tensors(layout, component, parameters, folder.unet_config(), levels);
            let unknown = |name| Error::Request(format!("{component}.{name} has no place in a single-file checkpoint"));
            original.map(|more| tensors.extend(more)).map_err(unknown)
        };
        add(LoadedDenoiser::COMPONENT, named_parameters(&model.denoiser))?;
        add("vae", named_parameters(&self.vae))?;
        for encoder in &self.text.encoders {
            let TextModel::Clip(network) = model.text_encoders.get(encoder.component).unwrap_or(&encoder.model);
            add(encoder.component, named_parameters(network))?;
        }
        let scheduler = &folder.scheduler_config;
        let marks = [
            ("v_pred", scheduler.prediction_type == Some(PredictionType::VPrediction)),
            ("ztsnr", scheduler.rescale_betas_zero_snr == Some(true)),
        ];
        let empty: &[usize] = &[0];
        let marks = marks.into_iter().filter(|(_, says)| *says && layout.version == Version::Xl);
        let marks = marks.map(|(name, _)| (name, empty, Box::new(Vec::new) as Box<dyn FnOnce() -> Vec<f32>>));
        let tensors = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice(), on_host(&tensor.values)));
        if let Some(parent) = destination.parent() {
            fs::create_dir_all(parent).map_err(io(parent))?;
        }
        Ok(save_safetensors(destination, tensors.chain(marks), &[], save_type)?)
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.display().to_string();
    move |source| Error::Io { path, source }
}

/// The error of a file in a temporary folder, told of the folder that it was to be in.
fn named(mut error: Error, temporary: &Path, destination: &Path) -> Error {
    if let Error::Io { path, .. } | Error::Weights(LoadError::Io { path, .. } | LoadError::NotFinite { path, .. }) = &mut error {
        *path = path.replace(&*temporary.to_string_lossy(), &destination.to_string_lossy());
    }
    error
}

/// The values as f32. Frozen weights may have fewer bits.
fn on_host(values: &Tensor<1>) -> Box<dyn FnOnce() -> Vec<f32> + '_> {
    Box::new(|| values.to_data().convert::<f32>().try_to_vec().expect("converted to f32"))
}

/// Writes tensors of a file as safetensors, in half precision if they were. Whole numbers (`position_ids`) are left out.
fn write_weights(weights: &Weights, path: &Path) -> Result<()> {
    let floats: Vec<(&str, &Stored)> = weights.iter().filter(|(_, stored)| stored.is_float()).collect();
    let save_type = if floats.iter().all(|(_, stored)| stored.is_half()) { SaveType::F16 } else { SaveType::F32 };
    // Each is read when its turn comes; what goes wrong then is told at the end.
    let failed = RefCell::new(None);
    let tensors = floats.iter().map(|(name, stored)| {
        let read: Box<dyn FnOnce() -> Vec<f32>> = Box::new(|| {
            let values = stored.read();
            values.unwrap_or_else(|error| {
                failed.borrow_mut().get_or_insert(error);
                vec![0.0; stored.shape().iter().product()]
            })
        });
        (*name, stored.shape(), read)
    });
    save_safetensors(path, tensors, &[], save_type)?;
    match failed.into_inner() {
        Some(error) => {
            let _ = fs::remove_file(path);
            Err(error.into())
        }
        None => Ok(()),
    }
}

fn names_in(folder: &Path) -> std::io::Result<Vec<String>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn is_weights(name: &str) -> bool {
    name.contains(".safetensors")
        || name.contains(".bin.index")
        || [".bin", ".msgpack", ".ckpt", ".onnx", ".pb", ".xml", ".h5"].iter().any(|end| name.ends_with(end))
}

/// Whether a file describes a component: its config, or what a tokenizer is made of. Everything else that lies in the folder stays there.
fn is_description(name: &str) -> bool {
    !is_weights(name) && [".json", ".txt", ".model"].iter().any(|end| name.ends_with(end))
}

/// Copies the files that describe a component.
fn copy_small_files(from: &Path, to: &Path) -> std::io::Result<()> {
    for name in names_in(from)?.iter().filter(|name| is_description(name) && from.join(name).is_file()) {
        fs::copy(from.join(name), to.join(name))?;
    }
    Ok(())
}

/// Copies the weights of a component that is not read here, in every form.
fn copy_weights(from: &Path, to: &Path) -> std::io::Result<()> {
    for name in names_in(from)?.iter().filter(|name| is_weights(name) && from.join(name).is_file()) {
        fs::copy(from.join(name), to.join(name))?;
    }
    Ok(())
}

/// Copies the file that would be loaded under the name without a variant, so that the folder opens without `variant=`, if it is a
/// safetensors file whose names need no change. Its weights are finite: they were loaded.
fn copy_safetensors(from: &Path, to: &Path, stem: &str) -> Result<bool> {
    let file = component_file(from, stem)?;
    let is_plain = file.extension().is_some_and(|end| end == "safetensors") && !Weights::has_wrapped_names(&file)?;
    if is_plain {
        fs::copy(&file, to.join(format!("{stem}.safetensors"))).map_err(io(&file))?;
    }
    Ok(is_plain)
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
        let tensors = self.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice(), on_host(&tensor.values)));
        Ok(save_safetensors(&folder.join(format!("{}.safetensors", self.stem)), tensors, &[], self.save_type)?)
    }
}

#[cfg(test)]
mod tests {
    use super::is_description;

    #[test]
    fn what_is_no_part_of_a_component_stays_where_it_is() {
        for part in ["config.json", "vocab.json", "merges.txt", "spiece.model"] {
            assert!(is_description(part), "{part}");
        }
        for other in ["Cargo.toml", "lib.rs", "README.md", ".DS_Store", "model.safetensors.index.json", "model.safetensors"] {
            assert!(!is_description(other), "{other}");
        }
    }
}
