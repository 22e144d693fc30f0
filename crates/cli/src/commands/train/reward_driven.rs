//! Training driven by a reward: ReFL and its family.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use vp_core::noise::Noise;
use vp_data::read_prompts;
use vp_models::pipeline::{ModelFolder, Pipeline};
use vp_models::unet::UNet2DConditionModel;
use vp_rewards::{Reward, RewardConfig};
use vp_trainers::Error;
use vp_trainers::config::{AlgorithmConfig, TrainConfig};
use vp_trainers::environment::Environment;
use vp_trainers::regularizer::Regularizer;
use vp_trainers::run::Run;

use super::finish::{Model, finish, warn_of_some};
use super::{Plan, ended};
use crate::failure::Failure;

/// Loads, trains with `algorithm`, exports.
pub fn train(
    mut plan: Plan,
    algorithm: impl FnOnce(&mut Run<Model>, &mut Environment<UNet2DConditionModel>, &mut Regularizer) -> Result<(), Error>,
) -> Result<PathBuf, Failure> {
    let (mut environment, model) = environment(&plan)?;
    let noise = Noise::new(plan.config.run.seed);
    let mut regularizer = Regularizer::new(&plan.config.regularizer.clone().unwrap_or_default(), noise).map_err(anyhow::Error::from)?;
    let mut files = vec![plan.config.model.path.clone()];
    files.extend(plan.config.reward.iter().flat_map(RewardConfig::weights));
    let start = plan.start(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>(), BTreeMap::new())?;

    plan.say(&arithmetic(&plan.config));
    let Some(mut run) = plan.begin(model, start)? else { return Ok(plan.output) };
    algorithm(&mut run, &mut environment, &mut regularizer).map_err(ended)?;
    finish(&run, (&environment.pipeline, &environment.base), &plan.config).map_err(Failure::run)?;
    Ok(plan.output)
}

/// Loads cheap things first, so that a slip is found before gigabytes are read.
fn environment(plan: &Plan) -> anyhow::Result<(Environment<UNet2DConditionModel>, Model)> {
    let (config, device) = (&plan.config, &plan.device);
    let sections = config.reward_driven().map_err(|missing| anyhow::anyhow!("missing {}", missing.join(", ")))?;
    let folder = ModelFolder::open(&config.model.path).context("[model]")?;
    let size = config.model.size.unwrap_or(folder.default_size());
    folder.check(size, sections.preview.guidance_scale)?;
    let prompts: Vec<String> = match &sections.prompts.file {
        Some(path) => read_prompts(path).context("[prompts]")?.into_iter().map(|prompt| prompt.text).collect(),
        None => sections.prompts.list.clone(),
    };
    let reward = sections.reward.build(device).context("[reward]")?;
    if !reward.differentiable() && config.algo.needs_gradient() {
        bail!(
            "[reward.{}] gives no gradient, which {} needs; train on one that does and watch this one",
            reward.name(),
            config.algo.name()
        );
    }
    let watched = config.watch.iter().map(|watch| watch.build(device)).collect::<Result<Vec<_>, _>>().context("[[watch]]")?;
    let (pipeline, unet) = Pipeline::load(folder, device)?;
    warn_of_cut_prompts(&pipeline, &*reward, &prompts);
    let noise = Noise::new(config.run.seed);
    let (base, model) = config.models(&pipeline, unet, &noise)?;
    let sections = (sections.scheduler.clone(), sections.preview.clone());
    Ok((Environment::new((pipeline, base), (reward, watched), sections, (prompts, noise), size)?, model))
}

/// Says which prompts are cut.
fn warn_of_cut_prompts(pipeline: &Pipeline, reward: &dyn Reward, prompts: &[String]) {
    let by_encoder = prompts.iter().filter_map(|prompt| pipeline.text.warning(prompt));
    warn_of_some(by_encoder.chain(reward.check_prompts(prompts).into_iter().map(|warning| warning.message)), 3, "more prompts are cut");
}

/// The derived arithmetic of a config.
fn arithmetic(config: &TrainConfig) -> String {
    let accumulation = config.optimizer.gradient_accumulation_steps;
    let steps = config.scheduler.as_ref().map_or(0, |scheduler| scheduler.num_inference_steps);
    match &config.algo {
        AlgorithmConfig::Refl(refl) => {
            let images = refl.batch_size * accumulation;
            let total = images as u64 * config.run.num_train_steps;
            let window = format!("{} to {} of {steps} steps, one of them on the tape", refl.min_mid_step + 1, refl.max_mid_step + 1);
            let updates = config.run.num_train_steps;
            format!(
                "{updates} updates of {images} images ({} at once, {accumulation} times) = {total} images; each takes {window}",
                refl.batch_size
            )
        }
        AlgorithmConfig::Sft(_) | AlgorithmConfig::Vae(_) => String::new(),
    }
}
