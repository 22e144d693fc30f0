//! What a run is made of: a config, assembled. Folders are opened, number formats and adapters chosen, rewards and data made ready; nothing is
//! trained yet. Small things are opened first, so that a slip is found before gigabytes are read.
//!
//! [`assemble`] is the only place where a config becomes a run: the program and the learning tests train what it makes.

mod reward_driven;
mod reward_model;
mod supervised;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::Device;
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_evaluation::accuracy::Ranked;
use vp_models::blip::BlipReward;
use vp_models::clip::{ClipModel, is_clip};
use vp_models::pipeline::ModelFolder;

use crate::Error;
use crate::algorithm::Driver;
use crate::config::TrainConfig;
use crate::reward_model::networks::{BlipNetwork, ClipNetwork};
use crate::run::Run;
use crate::sections::Settings;

pub use reward_driven::RewardDrivenRun;
pub use reward_model::RewardModelRun;
pub use supervised::{AutoencoderRun, CaptionsRun, PairsRun};

/// Finds what a path of a config stands for: the path itself, or a file of which only the program knows where it lies.
pub type Resolve<'a> = &'a dyn Fn(&Path) -> Result<PathBuf, Error>;

/// How many lines of one kind are shown.
const SHOWN: usize = 3;

/// A run that can begin, by what drives its algorithm.
pub enum Assembly {
    /// Prompts and a reward.
    Reward(Box<RewardDrivenRun>),
    /// Captioned images.
    Captions(Box<CaptionsRun>),
    /// Preference pairs.
    Pairs(Box<PairsRun>),
    /// Images, for the autoencoder.
    Autoencoder(Box<AutoencoderRun>),
    /// Ranked images, for a BLIP with a head.
    Blip(Box<RewardModelRun<BlipNetwork, BlipReward>>),
    /// Ranked images, for a CLIP.
    Clip(Box<RewardModelRun<ClipNetwork, ClipModel>>),
}

/// What the parts of an assembly have in common.
pub trait Assembled {
    /// What trains.
    type Model: Module;

    /// The model in which parameters will be chosen to train; factors are attached where a LoRA trains.
    fn model(&self) -> Self::Model;

    /// What there is to know before the run begins.
    fn outline(&self) -> &Outline;

    /// Trains `run` to the end.
    ///
    /// # Errors
    /// As the algorithm.
    fn train(&mut self, run: &mut Run<Self::Model>) -> Result<(), Error>;

    /// What a run came to: its moving average where it has one, of a reward model the best.
    fn tuned(&self, run: &Run<Self::Model>) -> Self::Model {
        run.tuned()
    }

    /// What the run is looked at by, of any model: the scores of its preview's images, or what held-out data say; by name.
    ///
    /// # Errors
    /// When a reward fails, data cannot be read, or something is not finite.
    fn measure(&self, model: &Self::Model) -> Result<Vec<(String, Vec<f64>)>, Error>;

    /// Writes what was tuned into the run's folder, and reads it back.
    ///
    /// # Errors
    /// When it cannot be written or does not read back.
    fn export(&self, run: &Run<Self::Model>) -> Result<Exported, Error>;
}

/// What there is to know of a run before it begins.
#[derive(Debug)]
pub struct Outline {
    /// What the run itself needs to know.
    pub settings: Settings,
    /// What trains, in words.
    pub what_trains: String,
    /// The derived arithmetic of the config: what an update takes, what the run comes to.
    pub arithmetic: String,
    /// What is worth a warning: prompts that are cut, images that are left out.
    pub warnings: Vec<String>,
    /// The files and folders that the run starts from.
    pub files: Vec<PathBuf>,
    /// Checksums of the lists that the run starts from, by what they are.
    pub lists: BTreeMap<String, String>,
    /// Bytes of the algorithm's own memory in a checkpoint.
    pub memory_bytes: u64,
    /// Bytes of what is exported at the end, at most.
    pub export_bytes: u64,
}

/// What a run left for other tools.
#[derive(Debug)]
pub struct Exported {
    /// What it is.
    pub kind: ExportKind,
    /// The model's folder, or the LoRA file under kohya's names.
    pub path: PathBuf,
    /// How far it is from what the run began with. Of a folder `‖W_tuned − W_base‖ / ‖W_base‖` over all parameters, of a LoRA the same of
    /// the denoiser's output; what was tuned as reloaded.
    pub relative_change: f64,
    /// What else is worth saying.
    pub notes: Vec<String>,
    /// Of a reward model: the scores of each held-out prompt's images, beside their ranks.
    pub ranked: Vec<Ranked>,
}

/// A kind of export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportKind {
    /// Factors, in two files.
    Lora,
    /// A diffusers folder.
    Model,
    /// A folder that `--reward` takes.
    RewardModel,
}

/// Opens, checks and loads what `config` names onto `device`. Paths are found through `resolve`.
///
/// # Errors
/// When something is missing, cannot be read, or does not fit the rest.
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
            Driver::Pairs(dpo) => Assembly::Pairs(Box::new(supervised::pairs(&parts, dpo)?)),
            Driver::Autoencoder(vae) => Assembly::Autoencoder(Box::new(supervised::autoencoder(&parts, vae)?)),
            Driver::Rankings(reward_model) if is_clip(&parts.model) => Assembly::Clip(Box::new(reward_model::clip(&parts, reward_model)?)),
            Driver::Rankings(reward_model) => Assembly::Blip(Box::new(reward_model::blip(&parts, reward_model)?)),
        })
    })
}

/// What every kind of run is assembled from.
struct Parts<'a> {
    config: &'a TrainConfig,
    resolve: Resolve<'a>,
    device: &'a Device,
    noise: Noise,
    /// What `model.path` stands for.
    model: PathBuf,
}

impl Parts<'_> {
    /// The model's folder and the size of images, which the folder must be able to draw at this guidance scale.
    fn folder(&self, guidance_scale: f64) -> Result<(ModelFolder, [usize; 2]), Error> {
        let folder = ModelFolder::open(&self.model).in_section("[model]")?;
        let size = self.config.model.size.unwrap_or(folder.default_size());
        folder.check(size, guidance_scale)?;
        Ok((folder, size))
    }

    /// The outline of a run that begins with this model.
    fn outline(&self) -> Outline {
        Outline {
            settings: self.config.settings(),
            what_trains: self.config.what_trains(),
            arithmetic: String::new(),
            warnings: Vec::new(),
            files: vec![self.model.clone()],
            lists: BTreeMap::new(),
            memory_bytes: 0,
            // A LoRA's two files are smaller than a checkpoint, of which one is spared anyway.
            export_bytes: if self.config.lora().is_some() { 0 } else { size_of(&self.model) },
        }
    }
}

/// Bytes of every file below `folder`.
fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { size_of(&entry.path()) } else { entry.metadata().map_or(0, |data| data.len()) }).sum()
}

/// The first few of what may be many warnings, and how many `more` there are.
fn some(warnings: impl Iterator<Item = String>, shown: usize, more: &str) -> Vec<String> {
    let mut warnings: Vec<String> = warnings.collect();
    let left_out = warnings.len().saturating_sub(shown);
    warnings.truncate(shown);
    if left_out > 0 {
        warnings.push(format!("… and {left_out} {more}"));
    }
    warnings
}

/// Says in which section of the config an error belongs.
trait InSection<T> {
    fn in_section(self, section: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<Error>> InSection<T> for Result<T, E> {
    fn in_section(self, section: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::InSection { section, source: Box::new(error.into()) })
    }
}
