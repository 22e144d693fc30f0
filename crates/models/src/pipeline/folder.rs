//! The files of a model: a diffusers folder or a single file. Reads and checks their configs, and opens their weights and tokenizers.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use serde_json::{Map, Value};
use vp_core::input_file;

use vp_schedulers::{PredictionType, SchedulerConfig};

use super::LoadedDenoiser;
use crate::clip::{self, ClipTextConfig};
use crate::config_json::{MAX_SIDE, NetworkConfig};
use crate::denoiser::Denoiser;
use crate::error::{Error, Result};
use crate::family::Family;
use crate::ldm::{self, Layout, SingleFile};
use crate::lora::{Layer, Names, layers_and_norms};
use crate::tokenizer::{ClipTokenizer, published};
use crate::unet::{Addition, UNetConfig};
use crate::vae::{self, AutoencoderConfig};
use crate::weights::Weights;

/// The files of a model, of which the small ones were read and checked: everything that can be wrong before a byte of weights is read.
#[derive(Debug, Clone)]
pub struct ModelFolder {
    pub(super) path: PathBuf,
    pub(super) files: Files,
    options: ModelOptions,
    pub(super) index: Map<String, Value>,
    family: Family,
    unet_config: UNetConfig,
    vae_config: AutoencoderConfig,
    text_configs: Vec<ClipTextConfig>,
    /// The config of the model's own scheduler.
    pub scheduler_config: SchedulerConfig,
}

/// Options for a model's files beyond their path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelOptions {
    /// Another autoencoder: a file, a folder with `config.json`, or a model's folder, whose `vae/` is taken.
    pub vae: Option<PathBuf>,
    /// For a single file, a diffusers folder whose configs and tokenizers are used, instead of what the tensors and the published models say.
    pub config: Option<PathBuf>,
    /// Whether the denoiser's averaged (EMA) weights are taken: `model_ema.*` of a single file, `unet_ema/` of a folder.
    pub ema: bool,
    /// What the denoiser predicts, where the files do not say or say it wrongly.
    pub prediction_type: Option<PredictionType>,
}

/// Where the components are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Files {
    /// In a diffusers folder, a folder each.
    Folder,
    /// In one file.
    Single(Layout),
}

/// A model's configs, wherever they came from.
struct Configs {
    index: Map<String, Value>,
    family: Family,
    scheduler: SchedulerConfig,
    unet: UNetConfig,
    vae: AutoencoderConfig,
    text: Vec<ClipTextConfig>,
}

impl ModelFolder {
    /// Opens a diffusers folder, the folder of a hub's cache, or a single-file checkpoint.
    ///
    /// # Errors
    /// When `path` is none of them, when a component is missing, and when the pipeline is of another kind.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, ModelOptions::default())
    }

    /// [`open`](Self::open) with what the user says of the files.
    ///
    /// # Errors
    /// As [`open`](Self::open), and when an option asks for what is not there.
    pub fn open_with(path: &Path, options: ModelOptions) -> Result<Self> {
        let not_a_folder = |message: String| Error::NotAFolder { given: path.display().to_string(), message };
        let path = snapshot(path).unwrap_or_else(|| path.to_path_buf());
        let (files, mut configs) = if path.is_file() {
            let file = SingleFile::open(&path)?;
            (Files::Single(file.layout), configs_of_single_file(&path, &file, &options)?)
        } else if !path.is_dir() {
            let what = if path.exists() { "a device or a pipe; expected a file or a folder" } else { "no such file or folder" };
            return Err(not_a_folder(what.into()));
        } else {
            if let Some(config) = &options.config {
                return Err(not_a_folder(format!("a folder has configs of its own; {} is for a single file", config.display())));
            }
            (Files::Folder, configs_of_folder(&path)?)
        };
        if files == Files::Folder && options.ema && !path.join(EMA_FOLDER).is_dir() {
            return Err(not_a_folder(format!("averaged (EMA) weights are asked for, and it has no {EMA_FOLDER}/")));
        }
        if let Some(vae) = &options.vae {
            configs.vae = vae_config(vae, &configs.vae)?;
        }
        if let Some(prediction_type) = options.prediction_type {
            configs.scheduler.prediction_type = Some(prediction_type);
        }
        let Configs { index, family, scheduler, unet, vae, text } = configs;
        let scheduler_config = as_the_pipeline_runs_it(scheduler, family);
        let folder = Self { path, files, options, index, family, unet_config: unet, vae_config: vae, text_configs: text, scheduler_config };
        folder.check_unet()?;
        if let Some(side) = folder.default_size().into_iter().find(|side| *side > MAX_SIDE) {
            let message = format!("sample_size makes images of {side} pixels; expected at most {MAX_SIDE}");
            return Err(Error::Config { path: folder.path.join("unet/config.json").display().to_string(), message });
        }
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
        } else if let Some(message) = self.text_that_does_not_fit() {
            message
        } else {
            return Ok(());
        };
        let path = if self.files == Files::Folder { self.path.join("unet/config.json") } else { self.path.clone() };
        Err(Error::Config { path: path.display().to_string(), message })
    }

    /// How what the text encoders give and what the denoiser takes differ in width.
    fn text_that_does_not_fit(&self) -> Option<String> {
        let unet = &self.unet_config;
        let width: usize = self.text_configs.iter().map(|config| config.hidden_size).sum();
        if unet.cross_attention_dim.iter().any(|expected| *expected != width) {
            return Some(format!("cross_attention_dim is {:?}, the text encoders give {width} channels", unet.cross_attention_dim));
        }
        let Some(Addition::TextTime(time)) = unet.addition else { return None };
        let Some(last) = self.text_configs.last().filter(|config| config.with_projection) else {
            return Some(
                "text_encoder_2 has no projection (architectures: CLIPTextModelWithProjection); are the two encoders swapped?".into(),
            );
        };
        let pooled = last.projection_dim;
        let (sizes, expected) = (time.addition_time_embed_dim, time.projection_class_embeddings_input_dim);
        // Six numbers: original size, crop, target size.
        let given = sizes.checked_mul(6).and_then(|sizes| sizes.checked_add(pooled));
        (given != Some(expected)).then(|| {
            let given = given.map_or_else(|| "too large".into(), |given| given.to_string());
            format!("6 x {sizes} + {pooled} = {given} is not projection_class_embeddings_input_dim = {expected}")
        })
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
        self.unet_config.sample_size.unwrap_or([64, 64]).map(|side| side * self.vae_config.downscale())
    }

    /// Checks the size (height and width in pixels) and the guidance scale that a user asks for.
    ///
    /// # Errors
    /// When a side is not a multiple of the autoencoder's reduction or is larger than [`MAX_SIDE`], or the scale is not a number of at least 0.
    pub fn check(&self, size: [usize; 2], guidance_scale: f64) -> Result<()> {
        let factor = self.vae_config.downscale();
        for (name, value) in ["height", "width"].into_iter().zip(size) {
            if value > MAX_SIDE {
                return Err(Error::Request(format!("{name} {value} is out of range; expected {factor} to {MAX_SIDE} pixels")));
            }
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

    /// The names in LoRA files of the layers of this model's networks. No weights are read.
    pub fn lora_names(&self, device: &Device) -> Names {
        let mut all = Vec::new();
        let mut add = |component: &str, mut layers: Vec<Layer>| {
            layers.iter_mut().for_each(|layer| layer.name = format!("{component}.{}", layer.name));
            all.append(&mut layers);
        };
        add(LoadedDenoiser::COMPONENT, layers_and_norms(&self.unet_config.init(device)));
        for (component, config) in self.family.text_encoders().iter().zip(&self.text_configs) {
            add(component, layers_and_norms(&config.init(device)));
        }
        Names::new(&all, self.family, &self.unet_config)
    }

    /// The config of a text encoder.
    ///
    /// # Panics
    /// When the family has no such component.
    pub fn text_config(&self, component: &str) -> &ClipTextConfig {
        let place = self.family.text_encoders().iter().position(|name| *name == component);
        &self.text_configs[place.expect("callers name a text encoder of the family")]
    }

    /// The weights of a text encoder, under the names of `network`'s parameters.
    pub(super) fn text_weights<M: Module>(&self, component: &str, network: &M) -> Result<Weights> {
        if let Files::Single(_) = self.files {
            return Ok(SingleFile::open(&self.path)?.text_encoder(network, component, self.text_config(component)));
        }
        let mut weights = Weights::open_component(&self.path.join(component), "model")?;
        clip::rename_published(&mut weights);
        Ok(weights)
    }

    /// The tokenizer of a text encoder. A single file has none: one that lies beside it, or the published one.
    pub(super) fn tokenizer(&self, component: &str) -> Result<ClipTokenizer> {
        match (self.tokenizer_folder(component), self.files) {
            (Some(folder), _) => Ok(ClipTokenizer::from_folder(&folder)?),
            (None, Files::Single(layout)) => {
                let config = self.text_config(component);
                if config.vocab_size < published::VOCAB_SIZE {
                    let (known, published) = (config.vocab_size, published::VOCAB_SIZE);
                    return Err(Error::Config {
                        path: self.path.display().to_string(),
                        message: format!(
                            "its {component} knows {known} tokens, CLIP's vocabulary has {published}; give the folder with its tokenizer by \
                             model.config or --model-config"
                        ),
                    });
                }
                Ok(published::tokenizer(layout.padding(component)))
            }
            (None, Files::Folder) => unreachable!("a folder's tokenizer is in it"),
        }
    }

    /// The folder that a text encoder's tokenizer is read from, if there is one.
    pub(super) fn tokenizer_folder(&self, component: &str) -> Option<PathBuf> {
        let name = component.replace("text_encoder", "tokenizer");
        let beside = || self.path.parent().map(|parent| parent.join(&name)).filter(|folder| folder.is_dir());
        match (self.files, &self.options.config) {
            (Files::Folder, _) => Some(self.path.join(name)),
            (Files::Single(_), Some(config)) => Some(config.join(name)),
            (Files::Single(_), None) => beside(),
        }
    }

    /// The denoiser's weights, under the names of `network`'s parameters.
    pub(super) fn denoiser_weights<M: Module>(&self, network: &M) -> Result<Weights> {
        if let Files::Single(_) = self.files {
            return Ok(SingleFile::open(&self.path)?.unet(network, &self.unet_config, self.options.ema)?);
        }
        let component = if self.options.ema { EMA_FOLDER } else { LoadedDenoiser::COMPONENT };
        Ok(Weights::open_component(&self.path.join(component), "diffusion_pytorch_model")?)
    }

    /// The autoencoder's weights, under the names of `network`'s parameters.
    pub(super) fn vae_weights<M: Module>(&self, network: &M) -> Result<Weights> {
        let levels = self.vae_config.block_out_channels.len();
        let folder = match (&self.options.vae, self.files) {
            (Some(vae), _) if vae.is_file() => return Ok(ldm::open_vae(vae, network, levels)?),
            (Some(vae), _) => vae_folder(vae),
            (None, Files::Single(_)) => return Ok(SingleFile::open(&self.path)?.vae(network, levels)),
            (None, Files::Folder) => self.path.join("vae"),
        };
        let mut weights = Weights::open_component(&folder, "diffusion_pytorch_model")?;
        vae::rename_published(&mut weights);
        Ok(weights)
    }

    /// Whether a component is the folder's own, as it is.
    pub(super) fn is_in_folder(&self, component: &str) -> bool {
        let replaced = match component {
            "vae" => self.options.vae.is_some(),
            LoadedDenoiser::COMPONENT => self.options.ema,
            "scheduler" => self.options.prediction_type.is_some(),
            _ => false,
        };
        self.files == Files::Folder && !replaced
    }

    /// The path of the folder or file.
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
}

/// Where diffusers' training scripts leave the averaged denoiser.
const EMA_FOLDER: &str = "unet_ema";

/// The snapshot of a hub's cache folder (`models--ORG--NAME`): that of its `main`, or else the only one.
fn snapshot(path: &Path) -> Option<PathBuf> {
    let snapshots = path.join("snapshots");
    if path.join("model_index.json").exists() || !snapshots.is_dir() {
        return None;
    }
    let main = input_file::read_regular_to_string(path.join("refs/main")).ok().map(|commit| snapshots.join(commit.trim()));
    main.filter(|folder| folder.is_dir()).or_else(|| {
        let found: Vec<PathBuf> = fs::read_dir(&snapshots).ok()?.flatten().map(|entry| entry.path()).collect();
        if let [only] = &found[..] { Some(only.clone()) } else { None }
    })
}

fn configs_of_folder(path: &Path) -> Result<Configs> {
    let not_a_folder = |message: String| Error::NotAFolder { given: path.display().to_string(), message };
    if !path.is_dir() {
        return Err(not_a_folder("no such folder".into()));
    }
    let index_path = path.join("model_index.json");
    if !index_path.exists() {
        return Err(not_a_folder(without_index(path)));
    }
    let name = index_path.display().to_string();
    let text = input_file::read_regular_to_string(&index_path).map_err(|source| Error::Io { path: name.clone(), source })?;
    let index: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| Error::Config { path: name.clone(), message: e.to_string() })?;
    let class = index.get("_class_name").and_then(Value::as_str).unwrap_or_default();
    let family = match class {
        "StableDiffusionPipeline" | "StableDiffusionImg2ImgPipeline" => Family::StableDiffusion,
        "StableDiffusionXLPipeline" | "StableDiffusionXLImg2ImgPipeline" => Family::StableDiffusionXl,
        other => {
            let message = format!("{}, expected StableDiffusionPipeline or StableDiffusionXLPipeline", unsupported(other));
            return Err(Error::Config { path: name, message });
        }
    };
    if let Some(missing) = family.components().iter().find(|component| !path.join(component).is_dir()) {
        return Err(not_a_folder(format!("its component {missing}/ is missing")));
    }
    let text = family.text_encoders().iter().map(|component| ClipTextConfig::read(&path.join(component).join("config.json")));
    Ok(Configs {
        family,
        scheduler: SchedulerConfig::read(path.join("scheduler/scheduler_config.json"))?,
        unet: UNetConfig::read(&path.join("unet/config.json"))?,
        vae: AutoencoderConfig::read(&path.join("vae/config.json"))?,
        text: text.collect::<Result<_>>()?,
        index,
    })
}

/// What a folder without `model_index.json` is, and what to pass instead.
fn without_index(path: &Path) -> String {
    let files: Vec<PathBuf> = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let is_checkpoint = |file: &&PathBuf| file.extension().is_some_and(|end| ["safetensors", "ckpt"].iter().any(|known| end == *known));
    let checkpoints: Vec<&PathBuf> = files.iter().filter(is_checkpoint).collect();
    let mut message = "not a diffusers folder: it has no model_index.json".to_string();
    if path.join("config.json").is_file() {
        message += "; it looks like one component of a model: pass the folder around it";
    } else if let [first, ..] = checkpoints[..] {
        message += &format!("; for a single-file checkpoint pass the file, such as {}", first.display());
    }
    message
}

/// What is said of a pipeline's class that cannot be loaded.
fn unsupported(class: &str) -> String {
    let family = [
        ("StableDiffusion3", "Stable Diffusion 3, a diffusion transformer"),
        ("Flux", "Flux, a diffusion transformer"),
        ("PixArt", "PixArt, a diffusion transformer"),
        ("Sana", "Sana, a diffusion transformer"),
        ("Inpaint", "an inpainting model, which also takes a mask"),
        ("LatentConsistency", "a latent consistency model, which also takes the guidance scale"),
    ];
    match family.iter().find(|(part, _)| class.contains(part)) {
        Some((_, what)) => format!("_class_name is {class:?} ({what}), which is not supported"),
        None => format!("_class_name is {class:?}"),
    }
}

/// The configs of a single file: those of the folder that the user gives, or what its tensors and the published models say.
fn configs_of_single_file(path: &Path, file: &SingleFile, options: &ModelOptions) -> Result<Configs> {
    let (layout, weights) = (file.layout, file.weights());
    if let Some(folder) = &options.config {
        let configs = configs_of_folder(folder)?;
        if configs.family != layout.family() {
            let name = |family| if family == Family::StableDiffusionXl { "an XL model's" } else { "a model's of 1.x or 2.x" };
            let (found, expected) = (name(configs.family), name(layout.family()));
            let message = format!("the configs in {} are {found}, the file is {expected}", folder.display());
            return Err(Error::Config { path: path.display().to_string(), message });
        }
        return Ok(configs);
    }
    let origin = path.display().to_string();
    let refused = |message: String| Error::Config { path: origin.clone(), message };
    let help = |error: Error| match error {
        Error::Config { path, message } => Error::Config {
            path,
            message: format!("{message} (as read from its tensors; model.config or --model-config gives a folder of configs)"),
        },
        other => other,
    };
    let has_vae = weights.names().any(|name| name.starts_with("first_stage_model."));
    if !has_vae && options.vae.is_none() {
        return Err(refused("it holds no autoencoder (first_stage_model.*); give one by model.vae or --vae".into()));
    }
    let vae = if has_vae { ldm::autoencoder(weights, layout) } else { Ok(ldm::published_autoencoder(layout)) };
    let json = |config: Result<Map<String, Value>, String>| Ok::<_, Error>(Value::from(config.map_err(refused)?).to_string());
    let text = layout
        .family()
        .text_encoders()
        .iter()
        .map(|component| ClipTextConfig::parse(&origin, &json(ldm::text_encoder(weights, layout, component))?).map_err(help));
    Ok(Configs {
        index: ldm::model_index(layout),
        family: layout.family(),
        scheduler: SchedulerConfig::try_from(ldm::scheduler(layout, file.v_prediction, file.zero_terminal_snr))?,
        unet: UNetConfig::parse(&origin, &json(ldm::unet(weights, layout, file.v_prediction))?).map_err(help)?,
        vae: AutoencoderConfig::parse(&origin, &json(vae)?).map_err(help)?,
        text: text.collect::<Result<_>>()?,
    })
}

/// The folder of an autoencoder that is given as a folder: itself, or `vae/` of a model's.
fn vae_folder(given: &Path) -> PathBuf {
    let path = snapshot(given).unwrap_or_else(|| given.to_path_buf());
    if path.join("vae").is_dir() { path.join("vae") } else { path }
}

/// The config of another autoencoder: of its folder, or of `config.json` beside a file that diffusers wrote, or the model's own.
fn vae_config(vae: &Path, own: &AutoencoderConfig) -> Result<AutoencoderConfig> {
    if !vae.exists() {
        return Err(Error::NotAFolder { given: vae.display().to_string(), message: "no such file or folder (model.vae, --vae)".into() });
    }
    if vae.is_dir() {
        return AutoencoderConfig::read(&vae_folder(vae).join("config.json"));
    }
    let beside = vae.with_file_name("config.json");
    let is_of_diffusers = vae.file_name().is_some_and(|name| name.to_string_lossy().starts_with("diffusion_pytorch_model."));
    if is_of_diffusers && beside.is_file() { AutoencoderConfig::read(&beside) } else { Ok(own.clone()) }
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
