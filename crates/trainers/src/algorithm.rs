//! The interface of an algorithm: its knobs, the config sections that it needs, and its training loop.
//! [`AlgorithmConfig`](crate::config::AlgorithmConfig) is the table of all algorithms.

use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{LoadedDenoiser, ModelOptions, Trainable};

use crate::Error;
use crate::config::{Section, TrainConfig};
use crate::environment::Environment;
use crate::plan::Demand;
use crate::ranks::Items;
use crate::regularizer::{Regularizer, RegularizerConfig};
use crate::reward_model::RewardModel;
use crate::run::Run;
use crate::sections::Dtype;
use crate::supervised::dpo::Dpo;
use crate::supervised::kto::Kto;
use crate::supervised::sft::Sft;
use crate::supervised::vae::Vae;

/// An algorithm. The struct that implements this trait holds the knobs of the `[algo.<name>]` section. To add an algorithm that learns from
/// a reward, write a file with such a struct that also implements [`RewardDriven`], and add a row to
/// [`AlgorithmConfig`](crate::config::AlgorithmConfig). An algorithm that learns from a new kind of data also needs a [`Driver`] and an
/// [assembly](crate::assembly).
pub trait Algorithm {
    /// The kind of data that the algorithm learns from, with the algorithm itself. The kind decides which config sections a run needs and
    /// which parts it is assembled from.
    fn driver(&self) -> Driver<'_>;

    /// Appends a message for each knob that is out of range or does not fit the other sections of `config`.
    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>);

    /// The preset that `train --algo` runs, `configs/<algo>/<preset>.toml`. It must finish within minutes and need no network connection.
    fn default_preset(&self) -> &'static str {
        "tiny"
    }
}

/// The kind of data that an algorithm learns from, with the algorithm itself.
#[derive(Clone, Copy)]
pub enum Driver<'a> {
    /// Prompts to draw images for, and a reward that scores the images.
    Reward(&'a dyn RewardDriven<LoadedDenoiser>),
    /// Captioned images.
    Captions(&'a Sft),
    /// Pairs of images, one of each pair preferred to the other.
    Pairs(&'a Dpo),
    /// Images, each liked or disliked.
    Likes(&'a Kto),
    /// Images that the autoencoder learns to reconstruct.
    Autoencoder(&'a Vae),
    /// Ranked images that a reward model learns to order.
    Rankings(&'a RewardModel),
}

/// An algorithm that draws images and learns from the reward's scores of them.
pub trait RewardDriven<D: Denoiser> {
    /// Trains until the run has made all its updates.
    ///
    /// # Errors
    /// When the run is interrupted, a value is not finite, a reward fails, or the run's folder cannot be written.
    fn train(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>, regularizer: &mut Regularizer) -> Result<(), Error>;

    /// The size of a run in one sentence, derived from `config`: how many images an update takes, and how many the whole run takes.
    fn arithmetic(&self, config: &TrainConfig) -> String;

    /// What the algorithm holds at once, for a plan of its memory.
    fn demand(&self, config: &TrainConfig) -> Demand;

    /// Whether the algorithm needs the reward's gradient with respect to the images. If it does, a reward without one is refused.
    fn needs_gradient(&self) -> bool {
        false
    }

    /// The key of the config that needs the terms of the reward, if there is one. If so, a reward that is no weighted sum of terms is refused.
    fn needs_terms(&self) -> Option<String> {
        None
    }

    /// How many policies of the past are kept in the run's memory: copies of everything that trains.
    fn policies_kept(&self) -> usize {
        0
    }

    /// Backward passes per minibatch: 1, but for a policy gradient one per trained timestep.
    fn backwards_per_minibatch(&self, num_inference_steps: usize) -> usize {
        let _ = num_inference_steps;
        1
    }

    /// What the algorithm keeps from update to update, and so in a checkpoint.
    fn kept(&self) -> Kept {
        Kept::Nothing
    }

    /// What ranks can share of a micro-batch: its images, or what its loss compares with each other.
    fn items(&self) -> Items;

    /// The regulariser of a config without a `[regularizer.<name>]` section.
    fn default_regularizer(&self) -> RegularizerConfig {
        RegularizerConfig::default()
    }

    /// Overrides of `configs/<algo>/tiny.toml` for the learning tests. With them, a run of a few seconds must raise the mean brightness of
    /// the images.
    fn learning_test(&self) -> &'static [&'static str];
}

/// What an algorithm keeps from update to update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Nothing.
    Nothing,
    /// So many images with their whole trajectories, whose every step must have a density.
    Trajectories(usize),
    /// So many images alone.
    Images(usize),
}

impl Driver<'_> {
    /// What ranks can share of a micro-batch.
    pub fn items(&self) -> Items {
        match self {
            Self::Reward(algorithm) => algorithm.items(),
            Self::Captions(sft) => Items::of("algo.sft.batch_size", sft.batch_size),
            Self::Pairs(dpo) => Items::of("algo.dpo.batch_size", dpo.batch_size),
            Self::Likes(kto) => Items::of("algo.kto.batch_size", kto.batch_size),
            Self::Autoencoder(vae) => Items::of("algo.vae.batch_size", vae.batch_size),
            Self::Rankings(reward_model) => Items::of("algo.reward_model.batch_size", reward_model.batch_size),
        }
    }

    /// The sections that the config must have.
    pub fn needs(&self) -> &'static [Section] {
        match self {
            Self::Reward(_) => &[Section::Prompts, Section::Scheduler, Section::Reward, Section::Preview],
            Self::Captions(_) | Self::Autoencoder(_) => &[Section::Data],
            Self::Pairs(_) | Self::Likes(_) => &[Section::Preferences],
            Self::Rankings(_) => &[Section::Rankings],
        }
    }

    /// The sections that the config may have.
    pub fn takes(&self) -> &'static [Section] {
        match self {
            Self::Reward(_) => &[Section::Vae, Section::Lora, Section::Watch, Section::Regularizer],
            Self::Captions(_) | Self::Pairs(_) | Self::Likes(_) => &[Section::Vae, Section::Lora, Section::Preview],
            Self::Autoencoder(_) | Self::Rankings(_) => &[],
        }
    }

    /// What to do about `section`, which the algorithm does not use; the end of an error message.
    fn way_out(&self, section: Section) -> &'static str {
        match (self, section) {
            (Self::Reward(_), Section::Data) => "captioned images belong in [regularizer.images]",
            (Self::Autoencoder(_), Section::Preview) => "its previews show the held-out images; remove it",
            (Self::Autoencoder(_), Section::Vae) => "the autoencoder is what trains, in f32 and on whole images; remove it",
            (Self::Autoencoder(_), Section::Lora) => "the autoencoder trains whole weights; remove it",
            _ => "remove it",
        }
    }

    /// Appends a message for the sections that `config` lacks, and one for each section or setting that would be ignored.
    pub fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        let name = config.algo.name();
        let missing: Vec<&str> = self.needs().iter().filter(|section| !section.is_in(config)).map(|section| section.title()).collect();
        if !missing.is_empty() {
            findings.push(format!("[algo.{name}] needs {}", missing.join(", ")));
        }
        let used = |section: &Section| self.needs().contains(section) || self.takes().contains(section);
        for section in Section::ALL.into_iter().filter(|section| section.is_in(config) && !used(section)) {
            findings.push(format!("{} is not used by [algo.{name}]; {}", section.title(), self.way_out(section)));
        }
        self.model_findings(config, findings);
        let validation_every = match self {
            Self::Reward(_) if config.watch.is_empty() => {
                let example = "add [[watch]] with a reward that is not trained on, e.g. [watch.saturation]";
                findings.push(format!("[algo.{name}] needs a second reward that shows whether the first is exploited; {example}"));
                return;
            }
            Self::Captions(_) => "data.validation_every",
            Self::Pairs(_) | Self::Likes(_) => "preferences.validation_every",
            Self::Reward(_) | Self::Autoencoder(_) | Self::Rankings(_) => return,
        };
        if config.preview.as_ref().is_some_and(|preview| preview.every > 0) {
            findings.push(format!("preview.every is not used by [algo.{name}], which draws at each validation; set {validation_every}"));
        }
    }

    /// Appends a message for each setting of `[model]` that would be ignored or cannot work.
    fn model_findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        let name = config.algo.name();
        if matches!(self, Self::Rankings(_) | Self::Autoencoder(_)) && config.model.dtype.is_some_and(|dtype| dtype != Dtype::F32) {
            findings.push(format!("model.dtype is not used by [algo.{name}], which trains in f32; remove it"));
        }
        if matches!(self, Self::Rankings(_)) && config.model.size.is_some() {
            findings.push(format!("model.size is not used by [algo.{name}]; remove it"));
        }
        if matches!(self, Self::Rankings(_)) && config.model.files() != ModelOptions::default() {
            findings.push(format!("model.vae, config, ema and prediction_type are not used by [algo.{name}]; remove them"));
        }
        if !config.model.initialize {
            return;
        }
        match self {
            Self::Reward(_) => findings.push(format!(
                "model.initialize is not used by [algo.{name}]: a reward cannot teach random weights to draw; train with [algo.sft] first"
            )),
            Self::Pairs(_) | Self::Likes(_) => {
                findings.push(format!(
                    "model.initialize is not used by [algo.{name}]: its reference is the model it starts from; train with [algo.sft] first"
                ));
            }
            Self::Captions(_) if config.lora().is_some() => {
                findings.push("model.initialize draws random weights, which a LoRA would freeze; set model.trainable to train them".into());
            }
            Self::Captions(_) | Self::Autoencoder(_) | Self::Rankings(_) => {}
        }
    }

    /// Whether whole weights train, rather than a LoRA, if the config does not set `model.trainable`.
    pub fn trains_whole_weights(&self) -> bool {
        !self.takes().contains(&Section::Lora)
    }
}
