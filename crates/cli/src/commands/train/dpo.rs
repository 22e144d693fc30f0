//! Training on preference pairs: Diffusion-DPO.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_models::pipeline::{ModelFolder, Pipeline};
use vp_schedulers::build_sampler;
use vp_trainers::config::TrainConfig;
use vp_trainers::data::preferences::PreferencePairs;
use vp_trainers::supervised::dpo::{Dpo, Frozen};

use super::finish::{finish, warn_of_some};
use super::{Plan, ended};
use crate::failure::Failure;

/// From the list of pairs to the exported model.
pub fn train(mut plan: Plan, dpo: &Dpo) -> Result<PathBuf, Failure> {
    let config = plan.config.clone();
    let (folder, mut pairs, noise) = profile::time(Stage::Io, || open(&plan))?;
    let (pipeline, mut unet) = profile::time(Stage::Io, || Pipeline::load(folder, &plan.device)).map_err(anyhow::Error::from)?;
    unet.gradient_checkpointing = config.model.gradient_checkpointing;
    warn_of_some(pairs.training.iter().filter_map(|pair| pipeline.text.warning(&pair.prompt)), 3, "more prompts are cut");
    let (base, model) = config.models(&pipeline, unet, &noise).map_err(anyhow::Error::from)?;
    let data = BTreeMap::from([("the list of preference pairs".to_string(), pairs.fingerprint())]);
    let start = plan.start(&[&plan.model.clone()], data)?;
    plan.say(&arithmetic(&config, dpo, &pairs));
    let Some(mut run) = plan.begin(model, start)? else { return Ok(plan.output) };
    let frozen = Frozen { pipeline: &pipeline, base: &base };
    dpo.train(&mut run, &frozen, &mut pairs, config.preview.as_ref()).map_err(ended)?;
    finish(&run, (&pipeline, &base), &config).map_err(Failure::run)?;
    Ok(plan.output)
}

/// The small things first, so that a slip is found before gigabytes are read.
fn open(plan: &Plan) -> anyhow::Result<(ModelFolder, PreferencePairs, Noise)> {
    let (config, noise) = (&plan.config, Noise::new(plan.config.run.seed));
    let folder = ModelFolder::open(&plan.model).context("[model]")?;
    let size = config.model.size.unwrap_or(folder.default_size());
    folder.check(size, config.preview.as_ref().map_or(1.0, |preview| preview.guidance_scale))?;
    if let Some(preview) = &config.preview {
        build_sampler(&folder.scheduler_config, None, preview.num_inference_steps, 0.0).context("[preview]")?;
    }
    let section = config.preferences.as_ref().context("missing [preferences]")?;
    let pairs = PreferencePairs::open(section, size, noise, &plan.device).context("[preferences]")?;
    warn_of_some(pairs.skipped.iter().map(|problem| format!("left out: {problem}")), 10, "more pairs are left out");
    Ok((folder, pairs, noise))
}

/// The derived arithmetic of a config.
fn arithmetic(config: &TrainConfig, dpo: &Dpo, pairs: &PreferencePairs) -> String {
    let (updates, accumulation) = (config.run.num_train_steps, config.optimizer.gradient_accumulation_steps);
    let (training, held_out, at_once) = (pairs.training.len(), pairs.validation.len(), dpo.batch_size);
    let an_update = at_once * accumulation;
    let total = an_update as u64 * updates;
    let epochs = total as f64 / training as f64;
    let [height, width] = pairs.size;
    format!(
        "{updates} updates of {an_update} pairs ({at_once} at once, {accumulation} times) = {total} pairs of images of {height}x{width} pixels, \
         {epochs:.1} epochs of {training}; {held_out} are held out"
    )
}
