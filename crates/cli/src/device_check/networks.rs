//! The model inside the program, on the device under check.

use anyhow::Result;
use burn::tensor::Tensor;
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{LoadedDenoiser, ModelFolder, Pipeline, Request, Trainable};
use vp_schedulers::{build_sampler, by_name};

use super::Computed;
use super::inputs::Place;
use super::operations::on_host;
use crate::embedded;

const STEPS: usize = 3;

fn model(place: &Place) -> Result<(Pipeline, LoadedDenoiser)> {
    Ok(Pipeline::load(ModelFolder::open(&embedded::resolve(embedded::SHAPES.as_ref())?)?, &place.device)?)
}

fn latents(place: &Place, pipeline: &Pipeline) -> Tensor<4> {
    let [c, h, w] = pipeline.latent_shape(pipeline.folder.default_size());
    // Uniform values of variance 1.
    place.constant::<4>("latents", [1, c, h, w]) * 3f64.sqrt()
}

/// An image of a few DDIM steps with guidance.
pub fn sampling(place: &Place) -> Result<Vec<Computed>> {
    let (pipeline, unet) = model(place)?;
    let mut sampler = build_sampler(&pipeline.folder.scheduler_config, Some(by_name("ddim")?), STEPS, 0.0)?;
    let prompts = ["a red circle".to_string()];
    let size = pipeline.folder.default_size();
    let request = Request { prompts: &prompts, negative_prompt: None, guidance_scale: embedded::GUIDANCE_SCALE, size };
    let mut noise = |_| unreachable!("DDIM without eta draws no noise");
    let images = pipeline.generate(&Trainable::of(unet), &mut *sampler, &request, latents(place, &pipeline), &mut noise);
    Ok(vec![Computed::new("image", on_host(images))])
}

/// What a reward of the decoded prediction sends back to the latents.
pub fn gradient(place: &Place) -> Result<Vec<Computed>> {
    let (pipeline, unet) = model(place)?;
    let conditioning = pipeline.text.encode(&["a red circle".to_string()], pipeline.folder.default_size(), &place.device);
    let latents = latents(place, &pipeline).autodiff().require_grad();
    let middle = pipeline.folder.scheduler_config.num_train_timesteps() / 2;
    let decoded = pipeline.vae.decode(unet.forward(latents.clone(), &[middle as f32], &conditioning));
    let weights = place.constant("weights", decoded.dims());
    let gradients = (decoded * weights).mean().backward();
    Ok(vec![Computed::new("latents", on_host(latents.grad(&gradients).expect("the latents are used")))])
}
