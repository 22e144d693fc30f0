//! What an algorithm is: its knobs, what it needs, and its loop. [`AlgorithmConfig`](crate::config::AlgorithmConfig) is the table of them.

use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{LoadedDenoiser, Trainable};

use crate::Error;
use crate::config::{Section, TrainConfig};
use crate::environment::Environment;
use crate::regularizer::{Regularizer, RegularizerConfig};
use crate::reward_model::RewardModel;
use crate::run::Run;
use crate::supervised::dpo::Dpo;
use crate::supervised::sft::Sft;
use crate::supervised::vae::Vae;

/// An algorithm, by the knobs of its `[algo.<name>]` section. To add one that is driven by a reward, write a file that implements this and
/// [`RewardDriven`] for its config, and its row in [`AlgorithmConfig`](crate::config::AlgorithmConfig). One that learns from a new kind of data
/// also needs a [`Driver`] and its [assembly](crate::assembly).
pub trait Algorithm {
    /// By what it is driven, which says what a run is made of, and its loop.
    fn driver(&self) -> Driver<'_>;

    /// Appends what cannot work: the knobs alone, and together with the other sections.
    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>);

    /// The file `configs/<algo>/<preset>.toml` that `train --algo` runs: offline, in minutes.
    fn default_preset(&self) -> &'static str {
        "tiny"
    }
}

/// What drives an algorithm.
#[derive(Clone, Copy)]
pub enum Driver<'a> {
    /// Prompts, from which images are drawn, and a reward.
    Reward(&'a dyn RewardDriven<LoadedDenoiser>),
    /// Captioned images.
    Captions(&'a Sft),
    /// Pairs of images of which one is preferred.
    Pairs(&'a Dpo),
    /// Images, for the autoencoder.
    Autoencoder(&'a Vae),
    /// Ranked images, for a reward model.
    Rankings(&'a RewardModel),
}

/// An algorithm that draws images and is told by a reward how good they are.
pub trait RewardDriven<D: Denoiser> {
    /// Trains to the end.
    ///
    /// # Errors
    /// When the run is interrupted, something is not finite, a reward fails, or the run's folder cannot be written.
    fn train(&self, run: &mut Run<Trainable<D>>, environment: &mut Environment<D>, regularizer: &mut Regularizer) -> Result<(), Error>;

    /// The derived arithmetic of a config in one sentence: what an update takes, what the run comes to.
    fn arithmetic(&self, config: &TrainConfig) -> String;

    /// Whether the reward's gradient with respect to the images is used, so that a reward without one is refused.
    fn needs_gradient(&self) -> bool {
        false
    }

    /// Backward passes per minibatch: a policy gradient makes one per timestep.
    fn backwards_per_minibatch(&self, num_inference_steps: usize) -> usize {
        let _ = num_inference_steps;
        1
    }

    /// Images that are kept with their whole trajectories, where they are: every step of the scheduler must then have a density.
    fn images_kept(&self) -> Option<usize> {
        None
    }

    /// The regulariser of a config that names none.
    fn default_regularizer(&self) -> RegularizerConfig {
        RegularizerConfig::default()
    }

    /// Overrides of `configs/<algo>/tiny.toml` under which a run of seconds raises mean brightness, for the learning tests.
    fn learning_test(&self) -> &'static [&'static str];
}

impl Driver<'_> {
    /// The sections it cannot do without.
    pub fn needs(&self) -> &'static [Section] {
        match self {
            Self::Reward(_) => &[Section::Prompts, Section::Scheduler, Section::Reward, Section::Preview],
            Self::Captions(_) | Self::Autoencoder(_) => &[Section::Data],
            Self::Pairs(_) => &[Section::Preferences],
            Self::Rankings(_) => &[Section::Rankings],
        }
    }

    /// The sections it uses where they are there.
    pub fn takes(&self) -> &'static [Section] {
        match self {
            Self::Reward(_) => &[Section::Lora, Section::Watch, Section::Regularizer],
            Self::Captions(_) | Self::Pairs(_) => &[Section::Lora, Section::Preview],
            Self::Autoencoder(_) | Self::Rankings(_) => &[],
        }
    }

    /// What to do about a section that it does not use.
    fn way_out(&self, section: Section) -> &'static str {
        match (self, section) {
            (Self::Reward(_), Section::Data) => "captioned images go into [regularizer.images]",
            (Self::Autoencoder(_), Section::Preview) => "its images are the held-out ones; remove it",
            (Self::Autoencoder(_), Section::Lora) => "the autoencoder trains whole weights; remove it",
            _ => "remove it",
        }
    }

    /// Appends what is missing of `config`, and what is there and would be ignored.
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
                let example = "add a [[watch]] with a reward that is not trained on, e.g. [watch.saturation]";
                findings.push(format!("nothing is watched; {example}"));
                return;
            }
            Self::Captions(_) => "data.validation_every",
            Self::Pairs(_) => "preferences.validation_every",
            Self::Reward(_) | Self::Autoencoder(_) | Self::Rankings(_) => return,
        };
        if config.preview.as_ref().is_some_and(|preview| preview.every > 0) {
            findings.push(format!("preview.every is not used by [algo.{name}]; images are drawn whenever {validation_every} says"));
        }
    }

    /// Appends what of `[model]` would be ignored.
    fn model_findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        let name = config.algo.name();
        if matches!(self, Self::Rankings(_)) && config.model.size.is_some() {
            findings.push(format!("model.size is not used by [algo.{name}]; remove it"));
        }
        if !config.model.initialize {
            return;
        }
        match self {
            Self::Reward(_) => findings
                .push(format!("model.initialize is not used by [algo.{name}]: a reward cannot teach random weights to draw; see sft")),
            Self::Pairs(_) => {
                findings.push(format!("model.initialize is not used by [algo.{name}]: its reference is the model it starts from; see sft"));
            }
            Self::Captions(_) if config.lora().is_some() => {
                findings.push("model.initialize draws weights that a LoRA would then freeze; set model.trainable".into());
            }
            Self::Captions(_) | Self::Autoencoder(_) | Self::Rankings(_) => {}
        }
    }

    /// Whether whole weights train where the config does not say what does.
    pub fn trains_whole_weights(&self) -> bool {
        !self.takes().contains(&Section::Lora)
    }
}
