//! The denoising loss. Diffusion models are pre-trained with it, supervised fine-tuning goes on with it, and ReFL adds it as L_pre.
//!
//! Source: Ho et al. (arXiv 2006.11239) equation 14; diffusers `examples/text_to_image/train_text_to_image.py`.

use burn::tensor::{Device, Tensor};
use vp_core::noise::Purpose;
use vp_core::profile::{self, Stage};
use vp_models::denoiser::{Conditioning, Denoiser};
use vp_models::pipeline::Trainable;
use vp_models::pipeline::{Guidance, Pipeline, predict};
use vp_models::vae::Posterior;
use vp_schedulers::NoiseSchedule;

use crate::losses::squared_errors;
use crate::non_finite::{first_of, in_prediction};
use crate::run::Draw;

/// A batch of captioned images.
#[derive(Debug, Clone)]
pub struct DenoisingBatch<'a> {
    /// The images, `[b, 3, h, w]` in [0, 1].
    pub images: Tensor<4>,
    /// One caption per image.
    pub captions: &'a [String],
    /// Height and width in pixels, which SDXL takes as an input.
    pub size: [usize; 2],
}

/// Noised latents: the denoiser's input, and what it should predict from it.
#[derive(Debug, Clone)]
pub struct Noised {
    /// The noised latents, `[b, c, h, w]`.
    pub sample: Tensor<4>,
    /// The noise, v or the clean latents, depending on the schedule's prediction type; `[b, c, h, w]`.
    pub target: Tensor<4>,
    /// One timestep per row.
    pub timesteps: Vec<f64>,
}

impl Noised {
    /// Draws latents from `posterior` and noises each row to its timestep. `rows` names the random numbers.
    pub fn of(
        posterior: &Posterior,
        pipeline: &Pipeline,
        schedule: &(impl NoiseSchedule + ?Sized),
        timesteps: Vec<f64>,
        rows: Rows<'_>,
    ) -> Self {
        let [_, c, h, w] = posterior.mean.dims();
        let normal = |purpose| rows.normal(purpose, [c, h, w], pipeline.device());
        let latents = pipeline.vae.scale(posterior.sample(normal(Purpose::POSTERIOR)));
        let epsilon = normal(Purpose::DENOISING_NOISE);
        let sample = schedule.add_noise(latents.clone(), epsilon.clone(), &timesteps);
        Self { sample, target: schedule.training_target(latents, epsilon, &timesteps), timesteps }
    }

    /// As [`of`](Self::of), with a uniform random timestep per row.
    pub fn at_random(posterior: &Posterior, pipeline: &Pipeline, schedule: &(impl NoiseSchedule + ?Sized), draw: Draw) -> Self {
        let samples = draw.samples(posterior.mean.dims()[0]);
        let rows = Rows { draw, samples: &samples };
        Self::of(posterior, pipeline, schedule, random_timesteps(schedule, rows), rows)
    }

    /// The `count` rows from row `start` on.
    pub fn narrow(&self, start: usize, count: usize) -> Self {
        let rows = |tensor: &Tensor<4>| tensor.clone().narrow(0, start, count);
        Self { sample: rows(&self.sample), target: rows(&self.target), timesteps: self.timesteps[start..start + count].to_vec() }
    }

    /// The mean squared error of each row's prediction, `[b]`.
    pub fn errors<D: Denoiser>(&self, denoiser: &D, conditioning: Conditioning) -> Tensor<1> {
        self.errors_of(self.predictions(denoiser, conditioning))
    }

    /// The denoiser's predictions without guidance, `[b, c, h, w]`.
    pub fn predictions<D: Denoiser>(&self, denoiser: &D, conditioning: Conditioning) -> Tensor<4> {
        let guidance = Guidance::none(conditioning);
        profile::time(Stage::TrackedStep, || predict(denoiser, self.sample.clone(), &self.model_timesteps(), &guidance))
    }

    /// The mean squared error of each row of `predictions`, `[b, c, h, w]` → `[b]`.
    pub fn errors_of(&self, predictions: Tensor<4>) -> Tensor<1> {
        squared_errors(predictions, self.target.clone())
    }

    /// The first tensor of the prediction that is not finite, by name.
    pub fn first_non_finite<D: Denoiser>(&self, denoiser: &D, conditioning: &Conditioning) -> Option<String> {
        first_of([("the latents", &self.sample)])
            .or_else(|| in_prediction(denoiser, self.sample.clone(), &self.model_timesteps(), conditioning))
    }

    /// The timesteps in f32, as the denoiser takes them.
    pub fn model_timesteps(&self) -> Vec<f32> {
        self.timesteps.iter().map(|timestep| *timestep as f32).collect()
    }
}

/// The random numbers of a batch's rows: each row has those of its own sample.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// The draw that the samples belong to.
    pub draw: Draw,
    /// The number of each row's sample in that draw.
    pub samples: &'a [u64],
}

impl Rows<'_> {
    /// Standard normal noise, `[rows, c, h, w]`, for `shape` `[c, h, w]`.
    pub fn normal(&self, purpose: Purpose, shape: [usize; 3], device: &Device) -> Tensor<4> {
        self.draw.noise.normal(purpose, self.draw.number, self.samples, shape, device)
    }
}

/// One random timestep per row, uniform over the schedule.
pub fn random_timesteps(schedule: &(impl NoiseSchedule + ?Sized), rows: Rows<'_>) -> Vec<f64> {
    let (last, Draw { noise, number, .. }) = (schedule.num_train_timesteps() - 1, rows.draw);
    rows.samples.iter().map(|sample| noise.integer(Purpose::DENOISING_TIMESTEP, number, *sample, 0, last) as f64).collect()
}

impl DenoisingBatch<'_> {
    /// The mean squared error of the prediction at a uniform random timestep for each image, `[1]`.
    pub fn loss<D: Denoiser>(
        &self,
        model: &Trainable<D>,
        pipeline: &Pipeline,
        schedule: &(impl NoiseSchedule + ?Sized),
        draw: Draw,
    ) -> Tensor<1> {
        let noised = Noised::at_random(&encode(pipeline, self.images.clone()), pipeline, schedule, draw);
        noised.errors(&model.denoiser, self.conditioning(model, pipeline)).mean()
    }

    /// The captions' embeddings, by the text encoder that trains if one does.
    pub fn conditioning<D: Denoiser>(&self, model: &Trainable<D>, pipeline: &Pipeline) -> Conditioning {
        model.text(&pipeline.text).encode(self.captions, self.size, pipeline.device())
    }

    /// Encodes the images, draws their latents and noises each row to its timestep. `rows` names the random numbers.
    pub fn noised(&self, pipeline: &Pipeline, schedule: &(impl NoiseSchedule + ?Sized), timesteps: Vec<f64>, rows: Rows<'_>) -> Noised {
        Noised::of(&encode(pipeline, self.images.clone()), pipeline, schedule, timesteps, rows)
    }
}

/// Encodes images `[b, 3, h, w]` in [0, 1] to the distribution of their latents.
pub fn encode(pipeline: &Pipeline, images: Tensor<4>) -> Posterior {
    profile::time(Stage::Encode, || pipeline.vae.encode(images * 2.0 - 1.0))
}
