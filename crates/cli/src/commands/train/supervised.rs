//! Training on images: supervised fine-tuning and the autoencoder.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use regex::Regex;
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_models::parameters::initialize;
use vp_models::pipeline::{Anew, ModelFolder, Pipeline, load_vae};
use vp_schedulers::build_sampler;
use vp_trainers::config::TrainConfig;
use vp_trainers::data::images::CaptionedImages;
use vp_trainers::run::export::export_vae;
use vp_trainers::supervised::sft::Sft;
use vp_trainers::supervised::vae::Vae;

use super::finish::{finish, report, warn_of_some};
use super::{Plan, ended};
use crate::failure::Failure;

/// Supervised fine-tuning, from the folder to the exported model.
pub fn train_sft(mut plan: Plan, sft: &Sft) -> Result<PathBuf, Failure> {
    let config = plan.config.clone();
    let (folder, mut images, noise) = profile::time(Stage::Io, || open(&plan, true))?;
    if let Some(preview) = &config.preview {
        folder.check(images.size, preview.guidance_scale)?;
        build_sampler(&folder.scheduler_config, None, preview.num_inference_steps, 0.0).context("[preview]")?;
    }
    let pattern = Regex::new(&config.settings().trainable).context("model.trainable")?;
    let anew = config.model.initialize.then_some(Anew { pattern: &pattern, noise: &noise });
    let (pipeline, mut unet) = profile::time(Stage::Io, || Pipeline::load_or_initialize(folder, &plan.device, anew))?;
    unet.gradient_checkpointing = config.model.gradient_checkpointing;
    warn_of_some(images.training.iter().filter_map(|entry| pipeline.text.warning(&entry.caption)), 3, "more captions are cut");
    let (base, model) = config.models(&pipeline, unet, &noise)?;
    let start = plan.start(&[&plan.model.clone()], data_checksum(&images))?;
    plan.say(&arithmetic(&config, sft.batch_size, &images));
    let Some(mut run) = plan.begin(model, start)? else { return Ok(plan.output) };
    sft.train(&mut run, &pipeline, &mut images, config.preview.as_ref()).map_err(ended)?;
    finish(&run, (&pipeline, &base), &config).map_err(Failure::run)?;
    Ok(plan.output)
}

/// The autoencoder, from the folder to the exported model.
pub fn train_vae(mut plan: Plan, vae: &Vae) -> Result<PathBuf, Failure> {
    let config = plan.config.clone();
    let (folder, mut images, noise) = profile::time(Stage::Io, || open(&plan, false))?;
    let mut base = if config.model.initialize {
        initialize(folder.vae_config().init(&plan.device), &noise)
    } else {
        profile::time(Stage::Io, || load_vae(&folder, &plan.device))?
    };
    base.gradient_checkpointing = config.model.gradient_checkpointing;
    let start = plan.start(&[&plan.model.clone()], data_checksum(&images))?;
    plan.say(&arithmetic(&config, vae.batch_size, &images));
    let Some(mut run) = plan.begin(base.clone(), start)? else { return Ok(plan.output) };
    vae.train(&mut run, &mut images).map_err(ended)?;
    let mut tuned = run.tuned();
    if config.model.initialize {
        let factor = vae.scaling_factor(&tuned, &images).map_err(Failure::run)?;
        run.journal.say(format_args!("scaling_factor {factor:.4}, which brings the latents to a standard deviation of 1"));
        tuned = tuned.with_scaling_factor(factor);
    }
    let export = || export_vae(&folder, &base, &tuned, &run.dir().join("model"));
    let exported = profile::time(Stage::Io, export).map_err(Failure::run)?;
    run.summary();
    report(&run.journal, &exported, &config);
    Ok(plan.output)
}

/// The small things first, so that a slip is found before gigabytes are read.
fn open(plan: &Plan, captions: bool) -> anyhow::Result<(ModelFolder, CaptionedImages, Noise)> {
    let (config, noise) = (&plan.config, Noise::new(plan.config.run.seed));
    let folder = ModelFolder::open(&plan.model).context("[model]")?;
    let size = config.model.size.unwrap_or(folder.default_size());
    folder.check(size, 1.0)?;
    let data = config.data.as_ref().context("missing [data]")?;
    let images = CaptionedImages::open(data, captions, size, noise, &plan.device).context("[data]")?;
    warn_of_some(images.skipped.iter().map(|problem| format!("left out: {problem}")), 10, "more images are left out");
    Ok((folder, images, noise))
}

fn data_checksum(images: &CaptionedImages) -> BTreeMap<String, String> {
    BTreeMap::from([("the list of images and captions".to_string(), images.fingerprint())])
}

/// The derived arithmetic of a config.
fn arithmetic(config: &TrainConfig, batch_size: usize, images: &CaptionedImages) -> String {
    let (updates, accumulation) = (config.run.num_train_steps, config.optimizer.gradient_accumulation_steps);
    let (training, held_out) = (images.training.len(), images.validation.len());
    let an_update = batch_size * accumulation;
    let total = an_update as u64 * updates;
    let epochs = total as f64 / training as f64;
    let [height, width] = images.size;
    format!(
        "{updates} updates of {an_update} images ({batch_size} at once, {accumulation} times) = {total} images of {height}x{width} pixels, \
         {epochs:.1} epochs of {training}; {held_out} are held out"
    )
}
