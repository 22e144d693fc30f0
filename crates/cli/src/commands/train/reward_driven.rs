//! Training driven by a reward: ReFL and its family.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_data::read_prompts;
use vp_models::pipeline::{ModelFolder, Pipeline};
use vp_models::unet::UNet2DConditionModel;
use vp_rewards::{Reward, RewardConfig};
use vp_trainers::Error;
use vp_trainers::config::{AlgorithmConfig, TrainConfig};
use vp_trainers::environment::Environment;
use vp_trainers::policy::require_density;
use vp_trainers::policy::rollout::Rollout;
use vp_trainers::regularizer::{Nothing, Regularizer, RegularizerConfig};
use vp_trainers::run::Run;

use super::finish::{Model, finish, warn_of_some};
use super::{Plan, ended};
use crate::embedded;
use crate::failure::Failure;

/// Loads, trains with `algorithm`, exports.
pub fn train(
    mut plan: Plan,
    algorithm: impl FnOnce(&mut Run<Model>, &mut Environment<UNet2DConditionModel>, &mut Regularizer) -> Result<(), Error>,
) -> Result<PathBuf, Failure> {
    let (mut environment, model) = profile::time(Stage::Io, || environment(&plan))?;
    let noise = Noise::new(plan.config.run.seed);
    let policy_gradient = plan.config.algo.images_kept();
    let section = match (&plan.config.regularizer, policy_gradient) {
        (Some(section), _) => embedded::resolve_regularizer(section).context("[regularizer]")?,
        (None, Some(_)) => RegularizerConfig::None(Nothing {}),
        (None, None) => RegularizerConfig::default(),
    };
    let mut regularizer = Regularizer::new(&section, noise).map_err(anyhow::Error::from)?;
    let mut files = vec![plan.model.clone()];
    if let Some(reward) = &plan.config.reward {
        files.extend(embedded::resolve_reward(reward).context("[reward]")?.weights());
    }
    let mut lists = BTreeMap::from([("the list of prompts".to_string(), environment.prompts_checksum())]);
    lists.extend(regularizer.fingerprint().map(|images| ("the regularizer's list of images and captions".to_string(), images)));
    let mut start = plan.start(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>(), lists)?;
    if let (Some(images), Some(scheduler)) = (policy_gradient, &plan.config.scheduler) {
        require_density(&*environment.scheduler().map_err(anyhow::Error::from)?).context("[scheduler]")?;
        let latents = environment.pipeline.latent_shape(environment.size);
        start.memory_bytes = Rollout::bytes(images, latents, scheduler.num_inference_steps);
    }

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
    let folder = ModelFolder::open(&plan.model).context("[model]")?;
    let size = config.model.size.unwrap_or(folder.default_size());
    folder.check(size, sections.preview.guidance_scale)?;
    let prompts: Vec<String> = match &sections.prompts.file {
        Some(path) => read_prompts(path).context("[prompts]")?.into_iter().map(|prompt| prompt.text).collect(),
        None => sections.prompts.list.clone(),
    };
    let kept = config.model.gradient_checkpointing;
    let build = |reward: &RewardConfig| embedded::resolve_reward(reward).and_then(|reward| Ok(reward.build(device)?));
    let mut reward = build(sections.reward).context("[reward]")?;
    reward.set_gradient_checkpointing(kept);
    if !reward.differentiable() && config.algo.needs_gradient() {
        bail!(
            "[reward.{}] gives no gradient, which {} needs; train on one that does and watch this one",
            reward.name(),
            config.algo.name()
        );
    }
    let watched = config.watch.iter().map(build).collect::<Result<Vec<_>, _>>().context("[[watch]]")?;
    let (mut pipeline, mut unet) = Pipeline::load(folder, device)?;
    (pipeline.vae.gradient_checkpointing, unet.gradient_checkpointing) = (kept, kept);
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
    let steps = config.scheduler.as_ref().map_or(0, |scheduler| scheduler.num_inference_steps);
    let (batch_size, each) = match &config.algo {
        AlgorithmConfig::Refl(refl) => {
            let (first, last) = (refl.min_mid_step + 1, refl.max_mid_step + 1);
            (refl.batch_size, format!("takes {first} to {last} of {steps} steps, one of them on the tape"))
        }
        AlgorithmConfig::Draft(draft) if draft.num_lv_samples > 0 => {
            let samples = draft.num_lv_samples;
            (draft.batch_size, format!("takes {steps} steps and the last one {samples} times more, {} on the tape", samples + 1))
        }
        AlgorithmConfig::Draft(draft) => (draft.batch_size, format!("takes {steps} steps, the last {} of them on the tape", draft.k)),
        AlgorithmConfig::AlignProp(align_prop) => {
            let on_tape = align_prop.truncation.expected_on_tape(steps);
            (align_prop.batch_size, format!("takes {steps} steps, {on_tape:.1} of them on the tape on average"))
        }
        AlgorithmConfig::DrTune(drtune) => {
            let (shortest, k) = (drtune.shortest(steps), drtune.k);
            (drtune.batch_size, format!("takes {shortest} to {steps} steps, {k} of them on the tape"))
        }
        AlgorithmConfig::Ddpo(ddpo) => {
            let an_update = ddpo.train_batch_size * config.optimizer.gradient_accumulation_steps;
            return policy_arithmetic(config, (ddpo.images(), an_update, ddpo.num_inner_epochs), (ddpo.trained_steps(steps), steps));
        }
        AlgorithmConfig::D3po(d3po) => {
            let an_update = 2 * d3po.train_batch_size * config.optimizer.gradient_accumulation_steps;
            return policy_arithmetic(config, (d3po.images(), an_update, d3po.num_inner_epochs), (d3po.trained_steps(steps), steps));
        }
        AlgorithmConfig::Sft(_) | AlgorithmConfig::Vae(_) | AlgorithmConfig::Dpo(_) | AlgorithmConfig::RewardModel(_) => {
            return String::new();
        }
    };
    let (updates, accumulation) = (config.run.num_train_steps, config.optimizer.gradient_accumulation_steps);
    let images = batch_size * accumulation;
    let total = images as u64 * updates;
    format!("{updates} updates of {images} images ({batch_size} at once, {accumulation} times) = {total} images; each {each}")
}

/// Images and updates of an epoch, epochs of the run, backward passes of an update.
fn policy_arithmetic(config: &TrainConfig, (images, an_update, walks): (usize, usize, usize), (trained, steps): (usize, usize)) -> String {
    let updates_per_epoch = walks * images / an_update;
    let (updates, backwards) = (config.run.num_train_steps, config.settings().micro_batches);
    let epochs = updates as f64 / updates_per_epoch as f64;
    format!(
        "{updates} updates = {epochs:.1} epochs of {images} images and {updates_per_epoch} updates; an update takes {an_update} images at \
         {trained} of {steps} timesteps, {backwards} backward passes; {} images in all",
        epochs.ceil() as usize * images
    )
}
