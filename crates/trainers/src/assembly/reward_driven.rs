//! Assembly of runs that learn from a reward.

use std::path::PathBuf;

use vp_core::profile::{self, Stage};
use vp_data::read_prompts;
use vp_models::parameters::named_parameters;
use vp_models::pipeline::{LoadedDenoiser, Pipeline, Trainable};
use vp_rewards::{Reward, RewardConfig};

use super::{Assembled, InSection, LEFT_OUT, Outline, Parts, SHOWN, some};
use crate::Error;
use crate::algorithm::{Driver, Kept, RewardDriven};
use crate::config::{AlgorithmConfig, TrainConfig};
use crate::environment::{Environment, Prompts};
use crate::optim::Workers;
use crate::policy::require_density;
use crate::policy::rollout::Rollout;
use crate::ranks::Ranks;
use crate::regularizer::{Regularizer, RegularizerConfig};
use crate::run::Run;
use crate::run::export::{Exported, export_tuned};
use crate::sections::PromptsSection;

/// The parts of a run that learns from a reward.
pub struct RewardDrivenRun {
    /// What the program must know about the run before it begins.
    pub outline: Outline,
    /// The model that trains.
    pub model: Trainable<LoadedDenoiser>,
    /// The frozen networks, the rewards, the scheduler, the prompts and the preview.
    pub environment: Environment<LoadedDenoiser>,
    /// The loss beside the reward's.
    pub regularizer: Regularizer,
    config: TrainConfig,
}

pub(super) fn assemble(parts: &Parts<'_>) -> Result<RewardDrivenRun, Error> {
    let Parts { config, device, noise, .. } = *parts;
    let algorithm = reward_driven(&config.algo);
    let missing = || Error::Config(format!("[algo.{}] needs [prompts], [scheduler], [reward.<name>] and [preview]", config.algo.name()));
    let (Some(prompts), Some(scheduler), Some(reward), Some(preview)) =
        (&config.prompts, &config.scheduler, &config.reward, &config.preview)
    else {
        return Err(missing());
    };

    // Small files first.
    let (folder, size) = parts.folder(preview.guidance_scale)?;
    let texts = texts(parts, prompts).in_section("[prompts]")?;
    let regularizer = config.regularizer.clone().unwrap_or_else(|| algorithm.default_regularizer());
    let regularizer = Regularizer::new(&resolved_regularizer(parts, regularizer)?, noise).in_section("[regularizer]")?;
    let reward_config = resolved_reward(parts, reward).in_section("[reward]")?;
    let mut reward = reward_config.build(device).in_section("[reward]")?;
    if !reward.differentiable() && algorithm.needs_gradient() {
        let (reward, algo) = (reward.name(), config.algo.name());
        let way_out = "train on one that does, and use this one under [[watch]]";
        return Err(Error::Config(format!("[reward.{reward}] gives no gradient, which {algo} needs; {way_out}")));
    }
    if let Some(key) = algorithm.needs_terms()
        && reward.term_weights().is_empty()
    {
        return Err(Error::Config(format!(
            "[reward.{}] is not made of terms, which {key} needs; train on [reward.weighted_sum], or on a reward with aspects (judge, vlm, a vp_score \
             with a head for each), or leave out {key}",
            reward.name()
        )));
    }
    let watch = |reward: &RewardConfig| Ok(resolved_reward(parts, reward)?.build(device)?);
    let watched = config.watch.iter().map(watch).collect::<Result<Vec<_>, Error>>().in_section("[[watch]]")?;

    // The networks.
    reward.set_gradient_checkpointing(config.model.gradient_checkpointing);
    let (pipeline, denoiser) = Pipeline::load(folder, device)?;
    let (pipeline, denoiser) = parts.prepared(pipeline, denoiser)?;
    let (base, model) = config.models(&pipeline, denoiser, &noise)?;

    let mut outline = parts.outline();
    outline.arithmetic = algorithm.arithmetic(config);
    outline.warnings.extend(cut_prompts(&pipeline, &*reward, &texts));
    outline.warnings.extend(some(regularizer.warnings().into_iter(), LEFT_OUT, "more images are left out of the regularizer's"));
    outline.files.extend(reward_config.weights());
    let prompts = Prompts::new(texts, noise);
    outline.lists.insert("the list of prompts".into(), prompts.checksum());
    let images = regularizer.fingerprint();
    outline.lists.extend(images.map(|images| ("the regularizer's list of images and captions".to_string(), images)));
    let (scheduler, preview) = (scheduler.clone(), preview.clone());
    let environment = Environment { pipeline, base, reward, watched, size, scheduler, preview, prompts };
    environment.check()?;
    let bytes = |images, steps| Rollout::bytes(images, environment.latent_shape(), steps);
    match algorithm.kept() {
        Kept::Nothing => {}
        Kept::Trajectories(images) => {
            require_density(&*environment.scheduler()?).in_section("[scheduler]")?;
            outline.memory_bytes = bytes(images, config.num_inference_steps());
        }
        Kept::Images(images) => outline.memory_bytes = bytes(images, 0),
    }
    let copies = algorithm.policies_kept() as u64;
    if copies > 0 {
        let trains = config.trainable_pattern()?;
        let parameters = named_parameters(&model).into_iter().filter(|parameter| trains.is_match(&parameter.name));
        outline.memory_bytes += 4 * copies * parameters.map(|parameter| parameter.values.dims()[0] as u64).sum::<u64>();
    }
    Ok(RewardDrivenRun { outline, model, environment, regularizer, config: config.clone() })
}

fn reward_driven(algo: &AlgorithmConfig) -> &dyn RewardDriven<LoadedDenoiser> {
    match algo.chosen().driver() {
        Driver::Reward(algorithm) => algorithm,
        _ => unreachable!("{} is not driven by a reward", algo.name()),
    }
}

impl Assembled for RewardDrivenRun {
    type Model = Trainable<LoadedDenoiser>;

    fn model(&self) -> Self::Model {
        self.model.clone()
    }

    fn outline(&self) -> &Outline {
        &self.outline
    }

    fn train(&mut self, run: &mut Run<Self::Model>) -> Result<(), Error> {
        reward_driven(&self.config.algo).train(run, &mut self.environment, &mut self.regularizer)
    }

    fn measure(&self, model: &Self::Model) -> Result<Vec<(String, Vec<f64>)>, Error> {
        let workers = Workers::on(self.environment.pipeline.device(), self.config.run.workers)?;
        Ok(self.environment.draw_preview(model, 0, &Ranks::default(), &workers)?.scores)
    }

    fn export(&self, run: &Run<Self::Model>) -> Result<Exported, Error> {
        let Environment { pipeline, base, .. } = &self.environment;
        profile::time(Stage::Io, || export_tuned(pipeline, base, &run.tuned(), &self.config, run.dir()))
    }
}

fn texts(parts: &Parts<'_>, section: &PromptsSection) -> Result<Vec<String>, Error> {
    Ok(match &section.file {
        Some(path) => {
            // A file's name may look like a hub id, which is what other paths are resolved to.
            let is_embedded = path.to_str().is_some_and(|name| name.starts_with("embedded:"));
            let path = if is_embedded { (parts.resolve)(path)? } else { path.clone() };
            read_prompts(path)?.into_iter().map(|prompt| prompt.text).collect()
        }
        None => section.list.clone(),
    })
}

/// `reward` with its paths resolved.
fn resolved_reward(parts: &Parts<'_>, reward: &RewardConfig) -> Result<RewardConfig, Error> {
    let mut reward = reward.clone();
    reward.resolve(parts.resolve)?;
    Ok(reward)
}

/// `regularizer` with its path resolved.
fn resolved_regularizer(parts: &Parts<'_>, mut regularizer: RegularizerConfig) -> Result<RegularizerConfig, Error> {
    if let RegularizerConfig::Images(images) = &mut regularizer {
        let resolved: PathBuf = (parts.resolve)(&images.folder).in_section("[regularizer]")?;
        images.folder = resolved;
    }
    Ok(regularizer)
}

/// Warnings about prompts that are too long for the text encoder or the reward, which see only their beginning.
fn cut_prompts(pipeline: &Pipeline, reward: &dyn Reward, prompts: &[String]) -> Vec<String> {
    let by_encoder = prompts.iter().filter_map(|prompt| pipeline.text.warning(prompt));
    let by_reward = reward.check_prompts(prompts).into_iter().map(|warning| warning.message);
    some(by_encoder.chain(by_reward), SHOWN, "more prompts are cut")
}
