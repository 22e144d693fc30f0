//! Assembly of runs that learn from given images: captioned images, preferences, and images for the autoencoder.

use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_models::parameters::initialize;
use vp_models::pipeline::{Anew, LoadedDenoiser, ModelFolder, Pipeline, Trainable, load_vae};
use vp_models::vae::AutoencoderKL;
use vp_schedulers::build_sampler;

use super::{Assembled, InSection, Outline, Parts, SHOWN, left_out, some};
use crate::Error;
use crate::config::TrainConfig;
use crate::data::images::CaptionedImages;
use crate::ranks::Ranks;
use crate::run::Run;
use crate::run::export::{ExportKind, Exported, export_tuned, export_vae};
use crate::supervised::reference::{Facts, FromPreferences, Frozen};
use crate::supervised::sft::Sft;
use crate::supervised::vae::Vae;

/// The parts of a run on captioned images.
pub struct CaptionsRun {
    /// What the program must know about the run before it begins.
    pub outline: Outline,
    /// The model that trains.
    pub model: Trainable<LoadedDenoiser>,
    /// The untuned model.
    pub base: Trainable<LoadedDenoiser>,
    /// The text encoders, the autoencoder and the model's folder.
    pub pipeline: Pipeline,
    /// The images to learn from, training and held-out.
    pub images: CaptionedImages,
    sft: Sft,
    config: TrainConfig,
}

pub(super) fn captions(parts: &Parts<'_>, sft: &Sft) -> Result<CaptionsRun, Error> {
    let Parts { config, device, noise, .. } = *parts;
    let (folder, images) = open_images(parts, true)?;
    check_preview(config, &folder, images.size)?;
    let mut outline = parts.outline();
    let pattern = config.trainable_pattern()?;
    let anew = config.model.initialize.then_some(Anew { pattern: &pattern, noise: &noise });
    let (pipeline, denoiser) = Pipeline::load_or_initialize(folder, device, anew)?;
    let (pipeline, denoiser) = parts.prepared(pipeline, denoiser)?;
    let (base, model) = config.models(&pipeline, denoiser, &noise)?;
    outline_images(&mut outline, config, sft.batch_size, &images);
    let cut = images.training.iter().filter_map(|entry| pipeline.text.warning(&entry.caption));
    outline.warnings.extend(some(cut, SHOWN, "more captions are cut"));
    Ok(CaptionsRun { outline, model, base, pipeline, images, sft: sft.clone(), config: config.clone() })
}

impl Assembled for CaptionsRun {
    type Model = Trainable<LoadedDenoiser>;

    fn model(&self) -> Self::Model {
        self.model.clone()
    }

    fn outline(&self) -> &Outline {
        &self.outline
    }

    fn train(&mut self, run: &mut Run<Self::Model>) -> Result<(), Error> {
        self.sft.train(run, &self.pipeline, &mut self.images, self.config.preview.as_ref())
    }

    fn measure(&self, model: &Self::Model) -> Result<Vec<(String, Vec<f64>)>, Error> {
        let noise = Noise::new(self.config.run.seed);
        Ok(vec![("validation_loss".into(), self.sft.validate(model, &self.pipeline, &self.images, noise, &Ranks::default(), 0)?)])
    }

    fn export(&self, run: &Run<Self::Model>) -> Result<Exported, Error> {
        profile::time(Stage::Io, || export_tuned(&self.pipeline, &self.base, &run.tuned(), &self.config, run.dir()))
    }
}

/// The parts of a run on preferences.
pub struct PreferencesRun<A: FromPreferences> {
    /// What the program must know about the run before it begins.
    pub outline: Outline,
    /// The model that trains.
    pub model: Trainable<LoadedDenoiser>,
    /// The reference: the untuned model.
    pub base: Trainable<LoadedDenoiser>,
    /// The text encoders, the autoencoder and the model's folder.
    pub pipeline: Pipeline,
    /// The preferences to learn from, training and held-out.
    pub data: A::Data,
    algorithm: A,
    config: TrainConfig,
}

pub(super) fn preferences<A: FromPreferences>(parts: &Parts<'_>, algorithm: &A) -> Result<PreferencesRun<A>, Error> {
    let Parts { config, device, noise, .. } = *parts;
    let (folder, size) = parts.folder(1.0)?;
    check_preview(config, &folder, size)?;
    let section = config.preferences.as_ref();
    let section = section.ok_or_else(|| Error::Config(format!("[algo.{}] needs [preferences]", config.algo.name())))?;
    let data = algorithm.open(section, size, noise, device).in_section("[preferences]")?;
    let (pipeline, denoiser) = Pipeline::load(folder, device)?;
    let (pipeline, denoiser) = parts.prepared(pipeline, denoiser)?;
    let (base, model) = config.models(&pipeline, denoiser, &noise)?;
    let mut outline = parts.outline();
    let Facts { list, fingerprint, units, of_what, batch_size, training, held_out, more, size, skipped, notes, prompts } =
        algorithm.facts(&data);
    outline.lists.insert(list.into(), fingerprint);
    outline.warnings.extend(left_out(skipped, &format!("more {units} are left out")));
    outline.warnings.extend(notes);
    let cut = prompts.into_iter().filter_map(|prompt| pipeline.text.warning(prompt));
    outline.warnings.extend(some(cut, SHOWN, "more prompts are cut"));
    outline.arithmetic = Counts { batch_size, training, held_out, size }.arithmetic(config, units, of_what) + &more;
    Ok(PreferencesRun { outline, model, base, pipeline, data, algorithm: algorithm.clone(), config: config.clone() })
}

impl<A: FromPreferences> Assembled for PreferencesRun<A> {
    type Model = Trainable<LoadedDenoiser>;

    fn model(&self) -> Self::Model {
        self.model.clone()
    }

    fn outline(&self) -> &Outline {
        &self.outline
    }

    fn train(&mut self, run: &mut Run<Self::Model>) -> Result<(), Error> {
        let frozen = Frozen { pipeline: &self.pipeline, base: &self.base };
        self.algorithm.train(run, &frozen, &mut self.data, self.config.preview.as_ref())
    }

    fn measure(&self, model: &Self::Model) -> Result<Vec<(String, Vec<f64>)>, Error> {
        let frozen = Frozen { pipeline: &self.pipeline, base: &self.base };
        let found = self.algorithm.validate(model, &frozen, &self.data, Noise::new(self.config.run.seed), &Ranks::default(), 0)?;
        Ok(found.by_name().into_iter().map(|(name, values)| (name.to_string(), values)).collect())
    }

    fn export(&self, run: &Run<Self::Model>) -> Result<Exported, Error> {
        profile::time(Stage::Io, || export_tuned(&self.pipeline, &self.base, &run.tuned(), &self.config, run.dir()))
    }
}

/// The parts of a run that trains the autoencoder.
pub struct AutoencoderRun {
    /// What the program must know about the run before it begins.
    pub outline: Outline,
    /// The autoencoder before training.
    pub base: AutoencoderKL,
    /// The images to learn from, training and held-out.
    pub images: CaptionedImages,
    folder: ModelFolder,
    vae: Vae,
    /// Whether the autoencoder starts from random weights.
    initialized: bool,
}

pub(super) fn autoencoder(parts: &Parts<'_>, vae: &Vae) -> Result<AutoencoderRun, Error> {
    let Parts { config, device, noise, .. } = *parts;
    let (folder, images) = open_images(parts, false)?;
    let initialized = config.model.initialize;
    let mut base = if initialized { initialize(folder.vae_config().init(device), &noise) } else { load_vae(&folder, device)? };
    base.gradient_checkpointing = config.model.gradient_checkpointing;
    let mut outline = parts.outline();
    outline_images(&mut outline, config, vae.batch_size, &images);
    Ok(AutoencoderRun { outline, base, images, folder, vae: vae.clone(), initialized })
}

impl Assembled for AutoencoderRun {
    type Model = AutoencoderKL;

    fn model(&self) -> Self::Model {
        self.base.clone()
    }

    fn outline(&self) -> &Outline {
        &self.outline
    }

    fn train(&mut self, run: &mut Run<Self::Model>) -> Result<(), Error> {
        self.vae.train(run, &mut self.images)
    }

    fn measure(&self, model: &Self::Model) -> Result<Vec<(String, Vec<f64>)>, Error> {
        Ok(self.vae.validate(model, &self.images, &Ranks::default(), 0)?.scores)
    }

    fn export(&self, run: &Run<Self::Model>) -> Result<Exported, Error> {
        let (mut tuned, mut notes) = (run.tuned(), Vec::new());
        if self.initialized {
            let factor = self.vae.scaling_factor(&tuned, &self.images)?;
            notes.push(format!("scaling_factor {factor:.4}, which brings the latents to a standard deviation of 1"));
            tuned = tuned.with_scaling_factor(factor);
        }
        let (path, base) = (run.dir().join("model"), &self.base);
        let relative_change = profile::time(Stage::Io, || export_vae(&self.folder, base, &tuned, &path))?;
        Ok(Exported { kind: ExportKind::Model, path, relative_change, notes, ranked: Vec::new() })
    }
}

/// The model's folder and the images of `[data]`. `captions` says whether an image without a caption is a problem.
fn open_images(parts: &Parts<'_>, captions: bool) -> Result<(ModelFolder, CaptionedImages), Error> {
    let (folder, size) = parts.folder(1.0)?;
    let section = parts.config.data.as_ref();
    let section = section.ok_or_else(|| Error::Config(format!("[algo.{}] needs [data]", parts.config.algo.name())))?;
    let images = CaptionedImages::open(section, captions, size, parts.noise, parts.device).in_section("[data]")?;
    Ok((folder, images))
}

/// Refuses a preview that the model in the folder cannot draw.
fn check_preview(config: &TrainConfig, folder: &ModelFolder, size: [usize; 2]) -> Result<(), Error> {
    if let Some(preview) = &config.preview {
        folder.check(size, preview.guidance_scale)?;
        build_sampler(&folder.scheduler_config, None, preview.num_inference_steps, 0.0).in_section("[preview]")?;
    }
    Ok(())
}

/// Adds to the outline what concerns a folder of images: its checksum, warnings and arithmetic.
fn outline_images(outline: &mut Outline, config: &TrainConfig, batch_size: usize, images: &CaptionedImages) {
    outline.lists.insert("the list of images and captions".into(), images.fingerprint());
    outline.warnings.extend(left_out(&images.skipped, "more images are left out"));
    outline.warnings.extend(images.notes.iter().cloned());
    let (training, held_out) = (images.per_epoch(), images.validation.len());
    outline.arithmetic = Counts { batch_size, training, held_out, size: images.size }.arithmetic(config, "images", "images");
}

/// How much data there is, and how much of it goes into a micro-batch.
struct Counts {
    batch_size: usize,
    training: usize,
    held_out: usize,
    size: [usize; 2],
}

impl Counts {
    /// The size of the run in one sentence. `units` names the entries that are counted, `of_what` what they consist of: "pairs", "pairs of
    /// images".
    fn arithmetic(&self, config: &TrainConfig, units: &str, of_what: &str) -> String {
        let Self { batch_size, training, held_out, size: [height, width] } = *self;
        let (updates, accumulation) = (config.run.num_train_steps, config.optimizer.gradient_accumulation_steps);
        let per_update = batch_size * accumulation;
        let total = per_update as u64 * updates;
        format!(
            "{updates} updates of {per_update} {units} ({batch_size} at once, {accumulation} times) = {total} {of_what} of {height}x{width} \
             pixels, {:.1} epochs of {training}; {held_out} are held out",
            total as f64 / training as f64
        )
    }
}
