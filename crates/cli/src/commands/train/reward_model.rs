//! Training a reward model on ranked images.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use burn::module::Module;
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_evaluation::accuracy::{Ranked, by_every_protocol};
use vp_models::clip::is_clip;
use vp_models::parameters::named_parameters;
use vp_trainers::Error;
use vp_trainers::config::TrainConfig;
use vp_trainers::data::rankings::{RankedImages, Rankings};
use vp_trainers::reward_model::networks::{BlipNetwork, ClipNetwork, trainable_of_blip, trainable_of_clip};
use vp_trainers::reward_model::{RewardModel, RewardNetwork, Validation};
use vp_trainers::run::Run;
use vp_trainers::run::export::distance;

use super::{Plan, ended};
use crate::failure::Failure;

/// From records to a folder that `--reward` takes.
pub fn train(mut plan: Plan, reward_model: &RewardModel) -> Result<PathBuf, Failure> {
    let (config, noise) = (plan.config.clone(), Noise::new(plan.config.run.seed));
    let section = config.rankings.as_ref().context("missing [rankings]")?;
    let data = profile::time(Stage::Io, || Rankings::open(section, noise)).context("[rankings]").map_err(Failure::from)?;
    reward_model.check(&data).context("[rankings]").map_err(Failure::from)?;
    let (path, device) = (plan.model.clone(), plan.device.clone());
    if is_clip(&path) {
        if reward_model.aspects {
            return Err(anyhow::anyhow!("algo.reward_model.aspects needs a BLIP; {} is a CLIP", path.display()).into());
        }
        let open = || ClipNetwork::open(&path, config.model.initialize, &noise, &device);
        let (network, model) = profile::time(Stage::Io, open).context("[model]").map_err(Failure::from)?;
        plan.trainable(trainable_of_clip(&network.config, reward_model.fix_rate));
        let save = |model: &_, _, folder: &Path| network.save(model, folder);
        return train_network(plan, reward_model, (&network, model), data, &save);
    }
    let aspects = reward_model.aspects.then(|| section.weights.as_array());
    let open = || BlipNetwork::open(&path, (config.model.initialize, aspects), &noise, &device);
    let (network, model) = profile::time(Stage::Io, open).context("[model]").map_err(Failure::from)?;
    plan.trainable(trainable_of_blip(&network.config, reward_model.fix_rate));
    let save = |model: &_, scale, folder: &Path| network.save(model, scale, folder);
    train_network(plan, reward_model, (&network, model), data, &save)
}

/// Writes a model with its mean and standard deviation.
type Save<'a, M> = &'a dyn Fn(&M, (f64, f64), &Path) -> Result<(), Error>;

fn train_network<M: Module + Sync>(
    mut plan: Plan,
    reward_model: &RewardModel,
    (network, model): (&impl RewardNetwork<M>, M),
    mut data: Rankings,
    save: Save<'_, M>,
) -> Result<PathBuf, Failure> {
    let fingerprint = BTreeMap::from([("the records and their order".to_string(), data.fingerprint())]);
    let mut start = plan.start(&[&plan.model.clone()], fingerprint)?;
    // The best weights so far, at most all of them.
    start.memory_bytes = named_parameters(&model).iter().map(|parameter| 4 * parameter.values.dims()[0] as u64).sum();
    plan.say(&arithmetic(&plan.config, reward_model, &data));
    let base = model.clone();
    let Some(mut run) = plan.begin(model, start)? else { return Ok(plan.output) };
    reward_model.train(&mut run, network, &mut data).map_err(ended)?;
    let best = reward_model.best(&run);
    let scale = reward_model.scale(network, &best, &data).map_err(Failure::run)?;
    let folder = run.dir().join("model");
    profile::time(Stage::Io, || save(&best, scale, &folder)).map_err(Failure::run)?;
    let found = reward_model.validate(network, &best, &data).map_err(Failure::run)?;
    conclude(&run, &data, &found, scale);
    let (change, size) = distance(&base, &best);
    let (path, change) = (folder.display(), format!("{:.3e}", (change / size).sqrt()));
    run.journal.conclude(format_args!("reward model: {path} (its weights differ from the first ones by {change} of their norm)"));
    let program = std::env::args().next().unwrap_or_else(|| "visionprefer".into());
    run.journal.conclude(format_args!("{program} score -r '{path}' -p 'PROMPT' IMAGE"));
    Ok(plan.output)
}

/// What the best model is like, by each protocol.
fn conclude<M: Module>(run: &Run<M>, data: &Rankings, found: &Validation, (mean, std): (f64, f64)) {
    run.summary();
    if let Some(step) = run.best_step() {
        run.journal.say(format_args!("the lowest validation loss was after {step} updates; that model is kept"));
    }
    run.journal.say(format_args!("scores of training images: mean {mean:.4}, standard deviation {std:.4}"));
    let ranked = found
        .scores
        .iter()
        .zip(&data.validation)
        .map(|(scores, of)| Ranked::new(scores.clone(), of.ranks.clone()).expect("a rank an image"));
    by_every_protocol(&ranked.collect::<Vec<_>>()).iter().for_each(|accuracy| run.journal.conclude(format_args!("{accuracy}")));
}

/// The derived arithmetic of a config.
fn arithmetic(config: &TrainConfig, reward_model: &RewardModel, data: &Rankings) -> String {
    let (updates, accumulation) = (config.run.num_train_steps, config.optimizer.gradient_accumulation_steps);
    let (training, held_out, at_once) = (data.training.len(), data.validation.len(), reward_model.batch_size);
    let count = |of: &[RankedImages]| of.iter().map(|ranked| ranked.images.len()).sum::<usize>();
    let pairs = |of: &[RankedImages]| of.iter().map(|ranked| ranked.overall.pairs.len()).sum::<usize>();
    let an_update = at_once * accumulation;
    let epochs = (an_update as u64 * updates) as f64 / training as f64;
    format!(
        "{updates} updates of {an_update} prompts ({at_once} at once, {accumulation} times), {epochs:.1} epochs of {training} prompts with \
         {} images in {} strict pairs; {held_out} prompts with {} images in {} pairs are held out",
        count(&data.training),
        pairs(&data.training),
        count(&data.validation),
        pairs(&data.validation)
    )
}
