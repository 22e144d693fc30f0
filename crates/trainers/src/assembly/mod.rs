//! Assembles a run from its config: opens folders, chooses number formats and adapters, loads the networks, and prepares rewards and data.
//! Nothing is trained here. Small files are opened first, so that a mistake is found before gigabytes are read.
//!
//! [`assemble`] is the only place where a config becomes a run. The program and the learning tests both train what it returns.

mod reward_driven;
mod reward_model;
mod supervised;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_data::Problem;
use vp_models::blip::BlipReward;
use vp_models::clip::{ClipModel, is_clip};
use vp_models::pipeline::{Formats, LoadedDenoiser, ModelFolder, Pipeline, Trainable};

use crate::Error;
use crate::algorithm::Driver;
use crate::config::TrainConfig;
use crate::reward_model::networks::{BlipNetwork, ClipNetwork};
use crate::run::Run;
use crate::run::export::Exported;
use crate::sections::Settings;
use crate::supervised::dpo::Dpo;
use crate::supervised::kto::Kto;

pub use reward_driven::RewardDrivenRun;
pub use reward_model::RewardModelRun;
pub use supervised::{AutoencoderRun, CaptionsRun, PreferencesRun};

/// Resolves a path of a config: to the path itself, or to the location of a file that only the program knows, such as embedded weights.
pub type Resolve<'a> = &'a dyn Fn(&Path) -> Result<PathBuf, Error>;

/// How many warnings about cut prompts or captions are shown before the rest are counted.
const SHOWN: usize = 3;
/// How many records or images that were left out are shown.
const LEFT_OUT: usize = 10;

/// A run that is ready to begin, by the kind of data that its algorithm learns from.
pub enum Assembly {
    /// A run on prompts and a reward.
    Reward(Box<RewardDrivenRun>),
    /// A run on captioned images.
    Captions(Box<CaptionsRun>),
    /// A run on preference pairs.
    Pairs(Box<PreferencesRun<Dpo>>),
    /// A run on liked and disliked images.
    Likes(Box<PreferencesRun<Kto>>),
    /// A run of the autoencoder on images.
    Autoencoder(Box<AutoencoderRun>),
    /// A run on ranked images that trains a BLIP with a head.
    Blip(Box<RewardModelRun<BlipNetwork, BlipReward>>),
    /// A run on ranked images that trains a CLIP.
    Clip(Box<RewardModelRun<ClipNetwork, ClipModel>>),
}

/// The interface that all kinds of assembled runs share.
pub trait Assembled {
    /// The model that trains.
    type Model: Module;

    /// The model before training, with factors attached if a LoRA trains. [`Run`] selects the parameters that train.
    fn model(&self) -> Self::Model;

    /// What the program must know about the run before it begins.
    fn outline(&self) -> &Outline;

    /// Trains until `run` has made all its updates.
    ///
    /// # Errors
    /// As the algorithm's own loop.
    fn train(&mut self, run: &mut Run<Self::Model>) -> Result<(), Error>;

    /// The result of a run: the moving average if there is one, otherwise the last weights; for a reward model, the weights with the lowest
    /// validation loss.
    fn tuned(&self, run: &Run<Self::Model>) -> Self::Model {
        run.tuned()
    }

    /// The values, by name, that tell how good a model is at the run's task: the scores of the preview's images, or the losses and
    /// accuracies on held-out data.
    ///
    /// # Errors
    /// When a reward fails, data cannot be read, or a value is not finite.
    fn measure(&self, model: &Self::Model) -> Result<Vec<(String, Vec<f64>)>, Error>;

    /// Writes the result of the run into its folder, and reads it back.
    ///
    /// # Errors
    /// When it cannot be written, or does not read back as it was written.
    fn export(&self, run: &Run<Self::Model>) -> Result<Exported, Error>;
}

/// What the program must know about a run before it begins.
#[derive(Debug)]
pub struct Outline {
    /// The settings of the run that do not depend on its algorithm.
    pub settings: Settings,
    /// A phrase that says what trains.
    pub what_trains: String,
    /// The size of the run in one sentence: how much data an update takes, and how much the whole run.
    pub arithmetic: String,
    /// Warnings to show, about prompts that are cut or images that are left out.
    pub warnings: Vec<String>,
    /// The files and folders that the run starts from.
    pub files: Vec<PathBuf>,
    /// Checksums of the lists that the run starts from, by a phrase that names the list.
    pub lists: BTreeMap<String, String>,
    /// Bytes that the algorithm's own [memory](Run::memory) takes in a checkpoint.
    pub memory_bytes: u64,
    /// Upper bound on the bytes that are exported at the end.
    pub export_bytes: u64,
}

/// Opens and checks everything that `config` names and loads the networks onto `device`. Paths are resolved by `resolve`.
///
/// # Errors
/// When a file or section is missing, cannot be read, or does not fit the others.
pub fn assemble(config: &TrainConfig, resolve: Resolve<'_>, device: &Device) -> Result<Assembly, Error> {
    let parts = Parts {
        config,
        resolve,
        device,
        noise: Noise::new(config.run.seed),
        model: resolve(&config.model.path).in_section("[model] path")?,
    };
    profile::time(Stage::Io, || {
        Ok(match config.algo.chosen().driver() {
            Driver::Reward(_) => Assembly::Reward(Box::new(reward_driven::assemble(&parts)?)),
            Driver::Captions(sft) => Assembly::Captions(Box::new(supervised::captions(&parts, sft)?)),
            Driver::Pairs(dpo) => Assembly::Pairs(Box::new(supervised::preferences(&parts, dpo)?)),
            Driver::Likes(kto) => Assembly::Likes(Box::new(supervised::preferences(&parts, kto)?)),
            Driver::Autoencoder(vae) => Assembly::Autoencoder(Box::new(supervised::autoencoder(&parts, vae)?)),
            Driver::Rankings(reward_model) if is_clip(&parts.model) => Assembly::Clip(Box::new(reward_model::clip(&parts, reward_model)?)),
            Driver::Rankings(reward_model) => Assembly::Blip(Box::new(reward_model::blip(&parts, reward_model)?)),
        })
    })
}

/// The inputs that every kind of run is assembled from.
struct Parts<'a> {
    config: &'a TrainConfig,
    resolve: Resolve<'a>,
    device: &'a Device,
    noise: Noise,
    /// `model.path`, resolved.
    model: PathBuf,
}

impl Parts<'_> {
    /// The model's folder, and the height and width of images in pixels. Checks that the model can draw images of this size at this
    /// guidance scale.
    fn folder(&self, guidance_scale: f64) -> Result<(ModelFolder, [usize; 2]), Error> {
        let folder = ModelFolder::open_with(&self.model, self.config.model.files()).in_section("[model]")?;
        let size = self.config.model.size.unwrap_or(folder.default_size());
        folder.check(size, guidance_scale)?;
        Ok((folder, size))
    }

    /// The networks in the number formats of the config, and with the recomputation that it asks for.
    fn prepared(&self, pipeline: Pipeline, denoiser: LoadedDenoiser) -> Result<(Pipeline, LoadedDenoiser), Error> {
        let (model, vae) = (&self.config.model, self.config.vae.clone().unwrap_or_default());
        let formats = self.formats()?;
        let exact = match self.config.lora() {
            // Factors are attached later, in f32.
            Some(_) => None,
            None => Some(self.config.trainable_pattern()?),
        };
        let (mut pipeline, Trainable { mut denoiser, .. }) = pipeline.in_formats(Trainable::of(denoiser), formats, exact.as_ref())?;
        pipeline.vae.splitting = vae.splitting();
        (pipeline.vae.gradient_checkpointing, denoiser.gradient_checkpointing) =
            (model.gradient_checkpointing, model.gradient_checkpointing);
        // The f32 weights that the others were made of.
        pipeline.release_memory();
        Ok((pipeline, denoiser))
    }

    fn formats(&self) -> Result<Formats, Error> {
        let vae = self.config.vae.clone().unwrap_or_default();
        Ok(Formats { model: self.config.model.format(self.device)?, vae: vae.format(self.device)? })
    }

    /// The outline that every run starts with; each kind of run adds its own parts.
    fn outline(&self) -> Outline {
        let init = self.config.lora().and_then(|lora| lora.init);
        // A file that cannot be read is an error of the models.
        let left_out = init.as_deref().and_then(|path| vp_models::lora::left_out(path).ok().flatten());
        // A format that the device does not have was refused.
        let slower = self.formats().map(|formats| formats.warnings(self.device)).unwrap_or_default();
        Outline {
            settings: self.config.settings(),
            what_trains: self.config.what_trains(),
            arithmetic: String::new(),
            warnings: left_out.into_iter().chain(slower).collect(),
            files: std::iter::once(self.model.clone())
                .chain(self.config.model.vae.clone())
                .chain(self.config.model.config.clone())
                .chain(init)
                .collect(),
            lists: BTreeMap::new(),
            memory_bytes: 0,
            // A LoRA's two files are smaller than a checkpoint, and space for one more checkpoint is reserved anyway.
            export_bytes: if self.config.lora().is_some() { 0 } else { size_of(&self.model) },
        }
    }
}

/// Bytes of a file, or of all files below a folder.
fn size_of(folder: &Path) -> u64 {
    if let Ok(data) = folder.metadata()
        && data.is_file()
    {
        return data.len();
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { size_of(&entry.path()) } else { entry.metadata().map_or(0, |data| data.len()) }).sum()
}

/// The first `shown` of `warnings`, then a line that counts the rest; `more` says what they are.
fn some(warnings: impl Iterator<Item = String>, shown: usize, more: &str) -> Vec<String> {
    let mut warnings: Vec<String> = warnings.collect();
    let left_out = warnings.len().saturating_sub(shown);
    warnings.truncate(shown);
    if left_out > 0 {
        warnings.push(format!("… and {left_out} {more}"));
    }
    warnings
}

/// What was left out of a data set, in so many lines.
fn left_out(skipped: &[Problem], more: &str) -> Vec<String> {
    some(skipped.iter().map(|problem| format!("left out: {problem}")), LEFT_OUT, more)
}

/// Adds to an error the section of the config that it belongs to.
trait InSection<T> {
    fn in_section(self, section: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<Error>> InSection<T> for Result<T, E> {
    fn in_section(self, section: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::InSection { section, source: Box::new(error.into()) })
    }
}
