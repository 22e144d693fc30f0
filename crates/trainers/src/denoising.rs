//! The denoising loss: what diffusion models are pre-trained with, ReFL's L_pre, and all of supervised fine-tuning.
//!
//! Source: Ho et al. (arXiv 2006.11239) equation 14; diffusers `examples/text_to_image/train_text_to_image.py`.

use burn::tensor::Tensor;
use vp_core::noise::{Noise, Purpose};
use vp_core::profile::{self, Stage};
use vp_models::denoiser::{Conditioning, Denoiser};
use vp_models::pipeline::Trainable;
use vp_models::pipeline::{Guidance, Pipeline, predict};
use vp_models::vae::Posterior;
use vp_schedulers::NoiseSchedule;

use crate::run::preview::is_finite;

/// Captioned images, `[b, 3, h, w]` in [0, 1].
#[derive(Debug, Clone)]
pub struct DenoisingBatch<'a> {
    /// The images.
    pub images: Tensor<4>,
    /// One caption an image.
    pub captions: &'a [String],
    /// Height and width in pixels, which SDXL is told.
    pub size: [usize; 2],
}

/// Images on their way to noise: what the denoiser sees, and what it should answer.
#[derive(Debug, Clone)]
pub struct Noised {
    /// `[b, c, h, w]`.
    pub sample: Tensor<4>,
    /// Noise, v or the clean latents, by the schedule's prediction type; `[b, c, h, w]`.
    pub target: Tensor<4>,
    /// One a row.
    pub timesteps: Vec<f64>,
}

impl Noised {
    /// Latents drawn from `posterior`, each at the timestep given; the noise of a row is that of its number in `samples`.
    pub fn of(
        posterior: &Posterior,
        pipeline: &Pipeline,
        schedule: &(impl NoiseSchedule + ?Sized),
        timesteps: Vec<f64>,
        (noise, draw, samples): (&Noise, u64, &[u64]),
    ) -> Self {
        let [_, c, h, w] = posterior.mean.dims();
        let normal = |purpose| noise.normal(purpose, draw, samples, [c, h, w], pipeline.device());
        let latents = pipeline.vae.scale(posterior.sample(normal(Purpose::Posterior)));
        let epsilon = normal(Purpose::DenoisingNoise);
        let sample = schedule.add_noise(latents.clone(), epsilon.clone(), &timesteps);
        Self { sample, target: schedule.training_target(latents, epsilon, &timesteps), timesteps }
    }

    /// The same, each at a uniform random timestep.
    pub fn at_random(
        posterior: &Posterior,
        pipeline: &Pipeline,
        schedule: &(impl NoiseSchedule + ?Sized),
        (noise, draw): (&Noise, u64),
    ) -> Self {
        let samples: Vec<u64> = (0..posterior.mean.dims()[0] as u64).collect();
        let timesteps = random_timesteps(schedule, (noise, draw, &samples));
        Self::of(posterior, pipeline, schedule, timesteps, (noise, draw, &samples))
    }

    /// `count` rows from `start` on.
    pub fn narrow(&self, start: usize, count: usize) -> Self {
        let rows = |tensor: &Tensor<4>| tensor.clone().narrow(0, start, count);
        Self { sample: rows(&self.sample), target: rows(&self.target), timesteps: self.timesteps[start..start + count].to_vec() }
    }

    /// The mean squared error of each row's prediction, `[b]`.
    pub fn errors<D: Denoiser>(&self, denoiser: &D, conditioning: Conditioning) -> Tensor<1> {
        self.errors_of(self.predictions(denoiser, conditioning))
    }

    /// What the denoiser answers, `[b, c, h, w]`.
    pub fn predictions<D: Denoiser>(&self, denoiser: &D, conditioning: Conditioning) -> Tensor<4> {
        let guidance = Guidance::none(conditioning);
        profile::time(Stage::TrackedStep, || predict(denoiser, self.sample.clone(), &self.model_timesteps(), &guidance))
    }

    /// The mean squared error of each row's prediction, `[b, c, h, w]` → `[b]`.
    pub fn errors_of(&self, predictions: Tensor<4>) -> Tensor<1> {
        self.means((predictions - self.target.clone()).square())
    }

    /// The mean squared error of each row's prediction less that of its reference, `[b]`. The two squares are never written out,
    /// `p² − r² = (p − r)(p + r)`: in single precision their difference would be rounding alone as long as the two are close.
    pub fn error_changes(&self, predictions: Tensor<4>, references: Tensor<4>) -> Tensor<1> {
        let difference = predictions.clone() - references.clone();
        self.means(difference * (predictions + references - self.target.clone() * 2.0))
    }

    fn means(&self, values: Tensor<4>) -> Tensor<1> {
        values.mean_dims(&[1, 2, 3]).reshape([self.timesteps.len()])
    }

    /// The first tensor of the prediction that is not finite.
    pub fn first_non_finite<D: Denoiser>(&self, denoiser: &D, conditioning: &Conditioning) -> Option<String> {
        if !is_finite(&self.sample) {
            return Some("the latents".into());
        }
        let conditioning = conditioning.without_autodiff();
        if !conditioning.encoder_hidden_states.clone().sum().into_scalar::<f32>().is_finite() {
            return Some("the text encoder's output".into());
        }
        let part = denoiser.first_non_finite(self.sample.clone(), &self.model_timesteps(), &conditioning);
        part.map(|part| format!("unet.{part}"))
    }

    /// The timesteps as the denoiser takes them.
    pub fn model_timesteps(&self) -> Vec<f32> {
        self.timesteps.iter().map(|timestep| *timestep as f32).collect()
    }
}

/// A timestep for each sample, uniform over the schedule.
pub fn random_timesteps(schedule: &(impl NoiseSchedule + ?Sized), (noise, draw, samples): (&Noise, u64, &[u64])) -> Vec<f64> {
    let last = schedule.num_train_timesteps() - 1;
    samples.iter().map(|sample| noise.integer(Purpose::DenoisingTimestep, draw, *sample, 0, last) as f64).collect()
}

impl DenoisingBatch<'_> {
    /// The mean squared error of the prediction at a uniform random timestep for each image, `[1]`.
    pub fn loss<D: Denoiser>(
        &self,
        model: &Trainable<D>,
        pipeline: &Pipeline,
        schedule: &(impl NoiseSchedule + ?Sized),
        (noise, draw): (&Noise, u64),
    ) -> Tensor<1> {
        let noised = self.noised_at_random(pipeline, schedule, (noise, draw));
        noised.errors(&model.unet, self.conditioning(model, pipeline)).mean()
    }

    /// The captions, by the encoder that trains where one does.
    pub fn conditioning<D: Denoiser>(&self, model: &Trainable<D>, pipeline: &Pipeline) -> Conditioning {
        model.text(&pipeline.text).encode(self.captions, self.size, pipeline.device())
    }

    /// Each image at a uniform random timestep.
    pub fn noised_at_random(&self, pipeline: &Pipeline, schedule: &(impl NoiseSchedule + ?Sized), (noise, draw): (&Noise, u64)) -> Noised {
        Noised::at_random(&encode(pipeline, self.images.clone()), pipeline, schedule, (noise, draw))
    }

    /// Each image at the timestep given, its latents drawn from the posterior; the noise of a row is that of its number in
    /// `samples`.
    pub fn noised(
        &self,
        pipeline: &Pipeline,
        schedule: &(impl NoiseSchedule + ?Sized),
        timesteps: Vec<f64>,
        (noise, draw, samples): (&Noise, u64, &[u64]),
    ) -> Noised {
        Noised::of(&encode(pipeline, self.images.clone()), pipeline, schedule, timesteps, (noise, draw, samples))
    }
}

/// Images `[b, 3, h, w]` in [0, 1] to the distribution of their latents.
pub fn encode(pipeline: &Pipeline, images: Tensor<4>) -> Posterior {
    profile::time(Stage::Encode, || pipeline.vae.encode(images * 2.0 - 1.0))
}
