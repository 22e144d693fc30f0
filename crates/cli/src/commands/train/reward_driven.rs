//! Training driven by a reward: ReFL and its family.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use regex::Regex;
use vp_core::noise::Noise;
use vp_data::read_prompts;
use vp_models::pipeline::Trainable;
use vp_models::pipeline::{ModelFolder, Pipeline};
use vp_models::unet::UNet2DConditionModel;
use vp_rewards::{Reward, RewardConfig};
use vp_trainers::Error;
use vp_trainers::config::{AlgorithmConfig, TrainConfig};
use vp_trainers::environment::Environment;
use vp_trainers::export::export;
use vp_trainers::regularizer::Regularizer;
use vp_trainers::run::Run;

use super::finish::{report, warn_of_some};
use super::{Plan, ended};
use crate::failure::Failure;

type Model = Trainable<UNet2DConditionModel>;

/// Loads, trains with `algorithm`, exports.
pub fn train(
    mut plan: Plan,
    algorithm: impl FnOnce(&mut Run<Model>, &mut Environment<UNet2DConditionModel>, &mut Regularizer) -> Result<(), Error>,
) -> Result<PathBuf, Failure> {
    let mut environment = environment(&plan)?;
    let noise = Noise::new(plan.config.run.seed);
    let mut regularizer = Regularizer::new(&plan.config.regularizer.clone().unwrap_or_default(), noise).map_err(anyhow::Error::from)?;
    let mut files = vec![plan.config.model.path.clone()];
    files.extend(plan.config.reward.as_ref().and_then(RewardConfig::weights));
    let start = plan.start(&files.iter().map(PathBuf::as_path).collect::<Vec<_>>(), BTreeMap::new())?;

    plan.say(&arithmetic(&plan.config));
    let Some(mut run) = plan.begin(environment.base.clone(), start)? else { return Ok(plan.output) };
    algorithm(&mut run, &mut environment, &mut regularizer).map_err(ended)?;
    finish(&run, &environment, &plan).map_err(Failure::run)?;
    Ok(plan.output)
}

/// Loads cheap things first, so that a slip is found before gigabytes are read.
fn environment(plan: &Plan) -> anyhow::Result<Environment<UNet2DConditionModel>> {
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
    let model = pipeline.trainable(unet, &Regex::new(&config.model.trainable).context("model.trainable")?);
    let sections = (sections.scheduler.clone(), sections.preview.clone());
    let noise = Noise::new(config.run.seed);
    Ok(Environment::new((pipeline, model), (reward, watched), sections, (prompts, noise), size)?)
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
        AlgorithmConfig::Sft(_) | AlgorithmConfig::Vae(_) => return String::new(),
    };
    let (updates, accumulation) = (config.run.num_train_steps, config.optimizer.gradient_accumulation_steps);
    let images = batch_size * accumulation;
    let total = images as u64 * updates;
    format!("{updates} updates of {images} images ({batch_size} at once, {accumulation} times) = {total} images; each {each}")
}

fn finish(run: &Run<Model>, environment: &Environment<UNet2DConditionModel>, plan: &Plan) -> anyhow::Result<()> {
    let exported = export((&environment.pipeline, &environment.base), &run.tuned(), &run.dir().join("model"))?;
    run.summary();
    report(&run.journal, &exported, &plan.config);
    Ok(())
}
