//! Images of a model, each from noise of its own: the same whatever is drawn beside them.

use std::path::Path;

use anyhow::Context;
use burn::tensor::{Device, Tensor};
use vp_core::noise::{Noise, Purpose, chain_step};
use vp_data::{RgbImage, from_tensor};
use vp_models::pipeline::{ModelFolder, Pipeline, Request, Trainable};
use vp_models::unet::UNet2DConditionModel;
use vp_schedulers::{Sampler, build_sampler};

use crate::args::LoraArg;
use crate::commands::export::with_loras;
use crate::embedded;

/// A model ready to draw.
pub struct Artist {
    pipeline: Pipeline,
    model: Trainable<UNet2DConditionModel>,
    sampler: Box<dyn Sampler>,
    /// Height and width in pixels.
    pub size: [usize; 2],
}

/// What one image is drawn from.
#[derive(Debug, Clone)]
pub struct Canvas<'a> {
    /// What to draw.
    pub prompt: &'a str,
    /// Its noise follows from this and `sample`.
    pub seed: u64,
    /// Tells apart the images of one seed.
    pub sample: u64,
}

impl Artist {
    /// Loads a diffusers folder and merges LoRAs into it; `guidance_scales` are those it will be asked for.
    pub fn open(path: &Path, loras: &[LoraArg], (steps, guidance_scales): (usize, &[f64]), device: &Device) -> anyhow::Result<Self> {
        let folder = ModelFolder::open(&embedded::resolve(path)?).with_context(|| format!("model {}", path.display()))?;
        let size = folder.default_size();
        guidance_scales.iter().try_for_each(|scale| folder.check(size, *scale))?;
        let sampler = build_sampler(&folder.scheduler_config, None, steps, 0.0)?;
        let (pipeline, unet) = Pipeline::load(folder, device)?;
        let model = with_loras(&pipeline, unet, loras)?;
        Ok(Self { pipeline, model, sampler, size })
    }

    /// One image each.
    pub fn draw(&mut self, canvases: &[Canvas<'_>], guidance_scale: f64) -> anyhow::Result<Vec<RgbImage>> {
        let prompts: Vec<String> = canvases.iter().map(|canvas| canvas.prompt.to_string()).collect();
        let (shape, device) = (self.pipeline.latent_shape(self.size), self.pipeline.device());
        let of_all = |purpose, step| {
            let one = |canvas: &Canvas<'_>| Noise::new(canvas.seed).normal(purpose, step, &[canvas.sample], shape, device);
            Tensor::cat(canvases.iter().map(one).collect(), 0)
        };
        let request = Request { prompts: &prompts, negative_prompt: None, guidance_scale, size: self.size };
        let latents = of_all(Purpose::InitialLatents, 0);
        let mut noise = |step| of_all(Purpose::SamplerStep, chain_step(0, step));
        Ok(from_tensor(self.pipeline.generate(&self.model, &mut *self.sampler, &request, latents, &mut noise))?)
    }
}
