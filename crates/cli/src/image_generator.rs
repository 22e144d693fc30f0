//! Images of a model folder. Each is drawn from noise of its own, so that it is the same whatever is drawn beside it.

use std::path::Path;

use anyhow::Context;
use burn::tensor::{Device, Tensor};
use vp_core::noise::{Noise, Purpose, chain_step};
use vp_data::{RgbImage, from_tensor};
use vp_models::denoiser::Denoiser;
use vp_models::lora::Adapter;
use vp_models::pipeline::{LoadedDenoiser, ModelFolder, ModelOptions, Pipeline, Request, Trainable};
use vp_models::vae::Splitting;
use vp_schedulers::build_sampler;
use vp_trainers::optim::Workers;

use crate::args::LoraArg;
use crate::embedded;
use crate::terminal::warn;

/// The usual guidance scale of Stable Diffusion.
const GUIDANCE_SCALE: f64 = 7.5;

/// A model that is ready to draw.
pub struct ImageGenerator {
    pipeline: Pipeline,
    model: Trainable<LoadedDenoiser>,
    /// Denoising steps.
    steps: usize,
    /// Height and width in pixels.
    pub size: [usize; 2],
}

/// How a model is asked to draw.
pub struct Sampling<'a> {
    /// Denoising steps.
    pub steps: usize,
    /// Every guidance scale that will be asked for.
    pub guidance_scales: &'a [f64],
    /// Options for the model's files.
    pub files: ModelOptions,
    /// The parts in which images are decoded.
    pub splitting: Splitting,
}

/// What one image is drawn from.
#[derive(Debug, Clone)]
pub struct ImageRequest<'a> {
    /// What it shows.
    pub prompt: &'a str,
    /// Its noise follows from this and `sample`.
    pub seed: u64,
    /// Tells apart the images of one seed.
    pub sample: u64,
}

impl ImageGenerator {
    /// Loads a model and adds LoRAs to its weights.
    ///
    /// # Errors
    /// When a file is missing or damaged, or when the model cannot be sampled with such steps and guidance scales.
    pub fn open(path: &Path, loras: &[LoraArg], sampling: &Sampling<'_>, device: &Device) -> anyhow::Result<Self> {
        let folder = ModelFolder::open_with(&embedded::resolve(path)?, sampling.files.clone())
            .with_context(|| format!("model {}", path.display()))?;
        let size = folder.default_size();
        sampling.guidance_scales.iter().try_for_each(|scale| folder.check(size, *scale))?;
        build_sampler(&folder.scheduler_config, None, sampling.steps, 0.0)?;
        let (mut pipeline, unet) = Pipeline::load(folder, device)?;
        pipeline.vae.splitting = sampling.splitting;
        let model = with_loras(&pipeline, unet, loras)?;
        Ok(Self { pipeline, model, steps: sampling.steps, size })
    }

    /// One image per request, all at one guidance scale. On the CPU each core draws its share of them, which takes no more memory than all cores at
    /// one batch, and less time where the network is small.
    ///
    /// # Errors
    /// When the threads cannot be started.
    pub fn generate(&self, requests: &[ImageRequest<'_>], guidance_scale: f64) -> anyhow::Result<Vec<RgbImage>> {
        let workers = Workers::one_per_core(self.pipeline.device(), requests.len())?;
        let parts = requests.chunks(requests.len().div_ceil(workers.count()).max(1)).collect();
        let drawn = workers.map(parts, |part| self.generate_together(part, guidance_scale));
        Ok(drawn.into_iter().collect::<anyhow::Result<Vec<_>>>()?.concat())
    }

    fn generate_together(&self, requests: &[ImageRequest<'_>], guidance_scale: f64) -> anyhow::Result<Vec<RgbImage>> {
        let prompts: Vec<String> = requests.iter().map(|request| request.prompt.to_string()).collect();
        let (shape, device) = (self.pipeline.latent_shape(self.size), self.pipeline.device());
        let of_all = |purpose, step| {
            let one = |image: &ImageRequest<'_>| Noise::new(image.seed).normal(purpose, step, &[image.sample], shape, device);
            Tensor::cat(requests.iter().map(one).collect(), 0)
        };
        let request = Request { prompts: &prompts, negative_prompt: None, guidance_scale, size: self.size };
        let latents = of_all(Purpose::INITIAL_LATENTS, 0);
        let mut noise = |step| of_all(Purpose::SAMPLER_STEP, chain_step(0, step));
        let mut sampler = build_sampler(&self.pipeline.folder.scheduler_config, None, self.steps, 0.0)?;
        Ok(from_tensor(self.pipeline.generate(&self.model, &mut *sampler, &request, latents, &mut noise))?)
    }
}

/// `denoiser` and all text encoders with every LoRA added.
pub fn with_loras<D: Denoiser>(pipeline: &Pipeline, denoiser: D, loras: &[LoraArg]) -> anyhow::Result<Trainable<D>> {
    if loras.is_empty() {
        return Ok(Trainable::of(denoiser));
    }
    let (names, model) = (pipeline.lora_names(&denoiser), pipeline.adaptable(denoiser));
    let add = |model, LoraArg { path, weight }: &LoraArg| {
        let adapter = Adapter::read(path, &names).context("--lora")?;
        adapter.warning().iter().for_each(|warning| warn(format_args!("{warning}")));
        anyhow::Ok(adapter.merge(model, *weight))
    };
    loras.iter().try_fold(model, add)
}

/// The guidance scale that a model is sampled with unless another is asked for.
pub fn default_guidance_scale(model: &Path) -> f64 {
    if model == Path::new(embedded::SHAPES) { embedded::GUIDANCE_SCALE } else { GUIDANCE_SCALE }
}
