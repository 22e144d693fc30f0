//! Assembly of runs that train a reward model.

use std::path::Path;

use burn::module::Module;
use vp_core::profile::{self, Stage};
use vp_evaluation::accuracy::Ranked;
use vp_models::blip::BlipReward;
use vp_models::clip::ClipModel;
use vp_models::parameters::named_parameters;

use super::{Assembled, InSection, Outline, Parts, left_out};
use crate::Error;
use crate::config::TrainConfig;
use crate::data::rankings::{RankedImages, Rankings};
use crate::ranks::Ranks;
use crate::reward_model::networks::{BlipNetwork, ClipNetwork, trainable_of_blip, trainable_of_clip};
use crate::reward_model::{RewardModel, RewardNetwork};
use crate::run::Run;
use crate::run::export::{ExportKind, Exported, distance};

/// The parts of a run that trains a reward model `M`. The network `N` prepares its inputs and computes its scores.
pub struct RewardModelRun<N, M> {
    /// What the program must know about the run before it begins.
    pub outline: Outline,
    /// Prepares images and prompts for the model, and computes its scores.
    pub network: N,
    /// The model before training.
    pub base: M,
    /// The ranked images: training and held-out prompts.
    pub data: Rankings,
    reward_model: RewardModel,
}

pub(super) fn clip(parts: &Parts<'_>, reward_model: &RewardModel) -> Result<RewardModelRun<ClipNetwork, ClipModel>, Error> {
    let (data, path) = (open_data(parts, reward_model)?, &parts.model);
    if reward_model.aspects {
        return Err(Error::Config(format!("algo.reward_model.aspects needs a BLIP, but {} is a CLIP; set it to false", path.display())));
    }
    let (network, base) = ClipNetwork::open(path, parts.config.model.initialize, &parts.noise, parts.device).in_section("[model]")?;
    let trainable = trainable_of_clip(&network.config, reward_model.fix_rate);
    let outline = outline(parts, reward_model, &data, &base, trainable);
    Ok(RewardModelRun { outline, network, base, data, reward_model: reward_model.clone() })
}

pub(super) fn blip(parts: &Parts<'_>, reward_model: &RewardModel) -> Result<RewardModelRun<BlipNetwork, BlipReward>, Error> {
    let (data, path) = (open_data(parts, reward_model)?, &parts.model);
    let weights = parts.config.rankings.as_ref().map(|section| section.weights.as_array());
    let aspects = weights.filter(|_| reward_model.aspects);
    let (network, base) =
        BlipNetwork::open(path, parts.config.model.initialize, aspects, &parts.noise, parts.device).in_section("[model]")?;
    let trainable = trainable_of_blip(&network.config, reward_model.fix_rate);
    let outline = outline(parts, reward_model, &data, &base, trainable);
    Ok(RewardModelRun { outline, network, base, data, reward_model: reward_model.clone() })
}

impl<M: Module + Sync, N: RewardNetwork<M> + SaveReward<M>> Assembled for RewardModelRun<N, M> {
    type Model = M;

    fn model(&self) -> Self::Model {
        self.base.clone()
    }

    fn outline(&self) -> &Outline {
        &self.outline
    }

    fn train(&mut self, run: &mut Run<Self::Model>) -> Result<(), Error> {
        self.reward_model.train(run, &self.network, &mut self.data)
    }

    fn tuned(&self, run: &Run<Self::Model>) -> Self::Model {
        self.reward_model.best(run)
    }

    fn measure(&self, model: &Self::Model) -> Result<Vec<(String, Vec<f64>)>, Error> {
        Ok(self.reward_model.validate(&self.network, model, &self.data, &Ranks::default())?.by_name())
    }

    fn export(&self, run: &Run<Self::Model>) -> Result<Exported, Error> {
        let Self { network, data, reward_model, .. } = self;
        let (best, path) = (self.tuned(run), run.dir().join("model"));
        let (mean, std) = reward_model.scale(network, &best, data)?;
        profile::time(Stage::Io, || network.save_reward(&best, mean, std, &path))?;
        let found = reward_model.validate(network, &best, data, &Ranks::default())?;
        let of_prompt =
            |(scores, of): (&Vec<f64>, &RankedImages)| Ranked::new(scores.clone(), of.ranks.clone()).expect("one rank per image");
        let ranked = found.scores.iter().zip(&data.validation).map(of_prompt).collect();
        let kept = run.best_step().map(|step| format!("the lowest validation loss was after {step} updates; that model is kept"));
        let scale = format!("scores of training images: mean {mean:.4}, standard deviation {std:.4}");
        let (change, size) = distance(&self.base, &best);
        let notes = kept.into_iter().chain([scale]).collect();
        Ok(Exported { kind: ExportKind::RewardModel, path, relative_change: (change / size).sqrt(), notes, ranked })
    }
}

/// A network that writes a trained model as a folder that `--reward` takes.
pub trait SaveReward<M> {
    /// Writes `model` to `folder`, with the mean and the standard deviation of its scores where its format has room for them.
    ///
    /// # Errors
    /// When a file cannot be written.
    fn save_reward(&self, model: &M, mean: f64, std: f64, folder: &Path) -> Result<(), Error>;
}

impl SaveReward<BlipReward> for BlipNetwork {
    fn save_reward(&self, model: &BlipReward, mean: f64, std: f64, folder: &Path) -> Result<(), Error> {
        self.save(model, mean, std, folder)
    }
}

impl SaveReward<ClipModel> for ClipNetwork {
    fn save_reward(&self, model: &ClipModel, _: f64, _: f64, folder: &Path) -> Result<(), Error> {
        self.save(model, folder)
    }
}

fn open_data(parts: &Parts<'_>, reward_model: &RewardModel) -> Result<Rankings, Error> {
    let section = parts.config.rankings.as_ref().ok_or_else(|| Error::Config("[algo.reward_model] needs [rankings]".into()))?;
    let data = Rankings::open(section, parts.noise).in_section("[rankings]")?;
    reward_model.check(&data).in_section("[rankings]")?;
    Ok(data)
}

fn outline(parts: &Parts<'_>, reward_model: &RewardModel, data: &Rankings, base: &impl Module, trainable: String) -> Outline {
    let mut outline = parts.outline();
    outline.lists.insert("the records and their order".into(), data.fingerprint());
    // The best weights so far, which are at most all of them.
    outline.memory_bytes = named_parameters(base).iter().map(|parameter| 4 * parameter.values.dims()[0] as u64).sum();
    outline.arithmetic = arithmetic(parts.config, reward_model, data);
    outline.warnings = left_out(&data.skipped, "more records or images are left out");
    if parts.config.model.trainable.is_none() {
        (outline.settings.trainable, outline.what_trains) = (trainable, "whole weights, as fix_rate says".into());
    }
    outline
}

/// The size of the run in one sentence.
fn arithmetic(config: &TrainConfig, reward_model: &RewardModel, data: &Rankings) -> String {
    let (updates, accumulation) = (config.run.num_train_steps, config.optimizer.gradient_accumulation_steps);
    let (training, held_out, batch_size) = (data.training.len(), data.validation.len(), reward_model.batch_size);
    let count = |of: &[RankedImages]| of.iter().map(|ranked| ranked.images.len()).sum::<usize>();
    let pairs = |of: &[RankedImages]| of.iter().map(|ranked| ranked.overall.pairs.len()).sum::<usize>();
    let per_update = batch_size * accumulation;
    let epochs = (per_update as u64 * updates) as f64 / training as f64;
    format!(
        "{updates} updates of {per_update} prompts ({batch_size} at once, {accumulation} times), {epochs:.1} epochs of {training} prompts with \
         {} images in {} strict pairs; {held_out} prompts with {} images in {} pairs are held out",
        count(&data.training),
        pairs(&data.training),
        count(&data.validation),
        pairs(&data.validation)
    )
}
