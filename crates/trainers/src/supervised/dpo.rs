//! Diffusion-DPO: direct preference optimization of diffusion models (Wallace et al., arXiv 2311.12908, equation 14).
//!
//! | paper | here |
//! |---|---|
//! | x^w, x^l | `chosen`, `rejected` |
//! | ε_θ, ε_ref | the trained model, the frozen base model |
//! | ‖ε − ε_θ(x_t, t)‖² | the mean over c, h, w of the squared error |
//! | β T ω(λ_t) | `0.5 · beta`, the same at every timestep |
//!
//! Source: DiffusionDPO `train.py`. Both images of a pair get the same timestep, uniform over the schedule, and the same noise. They also
//! share the draw from the autoencoder's posterior, while `train.py` draws twice. The published method predicts the noise; here a model
//! that predicts v or the clean latents has its own target in the same formula.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Pipeline, Trainable};
use vp_schedulers::NoiseSchedule;

use crate::Error;
use crate::algorithm::{Algorithm, Driver};
use crate::config::TrainConfig;
use crate::data::preferences::{PairBatch, PreferencePairs};
use crate::denoising::{DenoisingBatch, Noised, Rows, random_timesteps, sample_numbers};
use crate::losses::{dpo_inside, dpo_loss, squared_error_changes};
use crate::run::{Observed, Run, Values, values};
use crate::sections::PreviewSection;
use crate::supervised::validation::{Looked, noise_schedule, over_timesteps};

/// The knobs of `[algo.dpo]`. The defaults are those of `train.py`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dpo {
    /// Strength of the tie to the base model, above 0; the larger, the closer the model stays to it (5000).
    pub beta: f64,
    /// Pairs per micro-batch, at least 1 (1).
    pub batch_size: usize,
}

impl Default for Dpo {
    fn default() -> Self {
        Self { beta: 5000.0, batch_size: 1 }
    }
}

/// The frozen networks beside the trained model.
#[derive(Debug)]
pub struct Frozen<'a, D: Denoiser> {
    /// The text encoders, the autoencoder and the model's folder.
    pub pipeline: &'a Pipeline,
    /// The reference: the untuned model, on the device without autodiff.
    pub base: &'a Trainable<D>,
}

/// A model's results on the held-out pairs, one value per pair.
#[derive(Debug, Clone, Default)]
pub struct PairValidation {
    /// The loss −log σ(inside), as a mean over the timesteps.
    pub losses: Vec<f64>,
    /// Share of the timesteps at which the model prefers the chosen image more than the reference does.
    pub implicit_accuracies: Vec<f64>,
}

impl Algorithm for Dpo {
    fn driver(&self) -> Driver<'_> {
        Driver::Pairs(self)
    }

    fn findings(&self, _: &TrainConfig, findings: &mut Vec<String>) {
        let Self { beta, batch_size } = self;
        if *batch_size == 0 {
            findings.push("algo.dpo.batch_size is 0; expected at least 1".into());
        }
        if !(*beta > 0.0 && beta.is_finite()) {
            findings.push(format!("algo.dpo.beta is {beta}; expected a number above 0"));
        }
    }
}

impl Dpo {
    /// Trains until the run has made all its updates.
    ///
    /// # Errors
    /// When the run is interrupted, a value is not finite, an image cannot be read, or the run's folder cannot be written.
    pub fn train<D: Denoiser>(
        &self,
        run: &mut Run<Trainable<D>>,
        frozen: &Frozen<'_, D>,
        pairs: &mut PreferencePairs,
        preview: Option<&PreviewSection>,
    ) -> Result<(), Error> {
        let Frozen { pipeline, base } = *frozen;
        let schedule = noise_schedule(pipeline)?;
        let size = pairs.size;
        if run.is_at_the_beginning() {
            self.look(run, frozen, pairs, Looked { pipeline, preview, size, step: 0 })?;
        }
        while let Some(batch) = run.next_batch()? {
            // 1. Pairs: cropped, resized, some mirrored, some prompts dropped.
            let PairBatch { images, captions } = profile::time(Stage::Io, || pairs.batch(batch, self.batch_size))?;
            let data = DenoisingBatch { images, captions: &captions, size };
            run.count_images(2 * self.batch_size);

            // 2. Noised latents: the same timestep and the same noise for both images of a pair.
            let samples = sample_numbers(self.batch_size);
            let rows = Rows { draw: run.draw(batch), samples: &samples };
            let noised = noised_pairs(&data, pipeline, &*schedule, &random_timesteps(&*schedule, rows), rows);

            // 3. The predictions of both models, the reference off the tape, and the difference of their squared errors.
            let conditioning = data.conditioning(&run.model, pipeline);
            let predictions = noised.predictions(&run.model.denoiser, conditioning.clone());
            let references = noised.predictions(&base.denoiser, data.conditioning(base, pipeline));
            let changes = squared_error_changes(predictions.clone(), references.clone(), noised.target.clone());

            // 4. The loss: −log σ of how much more than the reference the model prefers the chosen image.
            let inside = inside(changes.clone(), self.beta);
            let loss = dpo_loss(inside.clone());

            // 5. Backward, accumulated; after the last micro-batch of an update: clip, step, moving average, journal.
            let losses = [noised.errors_of(predictions.without_autodiff()), noised.errors_of(references)];
            let observed = observed(losses, &changes, &inside);
            let updated = run.backward(loss, observed, &|model: &Trainable<D>| noised.first_non_finite(&model.denoiser, &conditioning))?;

            // 6. Validate, and draw the preview.
            if let Some(step) = updated.filter(|step| run.preview_is_due(*step)) {
                self.look(run, frozen, pairs, Looked { pipeline, preview, size, step })?;
            }
        }
        Ok(())
    }

    fn look<D: Denoiser>(
        &self,
        run: &mut Run<Trainable<D>>,
        frozen: &Frozen<'_, D>,
        pairs: &PreferencePairs,
        looked: Looked<'_>,
    ) -> Result<(), Error> {
        let tuned = run.tuned();
        let PairValidation { losses, implicit_accuracies } = self.validate(&tuned, frozen, pairs, run.noise, looked.step)?;
        looked.record(run, &tuned, vec![("validation_loss", losses), ("validation_implicit_accuracy", implicit_accuracies)])
    }

    /// Validates `model` on the held-out pairs.
    ///
    /// # Errors
    /// When an image can no longer be read, or a loss is not finite; that error names `step`.
    pub fn validate<D: Denoiser>(
        &self,
        model: &Trainable<D>,
        Frozen { pipeline, base }: &Frozen<'_, D>,
        pairs: &PreferencePairs,
        noise: Noise,
        step: u64,
    ) -> Result<PairValidation, Error> {
        let schedule = noise_schedule(pipeline)?;
        let mut validation = PairValidation::default();
        for held_out in pairs.validation.chunks(self.batch_size) {
            let (PairBatch { images, captions }, numbers) = profile::time(Stage::Io, || pairs.held_out(held_out))?;
            let data = DenoisingBatch { images, captions: &captions, size: pairs.size };
            let (conditioning, reference_conditioning) = (data.conditioning(model, pipeline), data.conditioning(base, pipeline));
            let [losses, accuracies] = over_timesteps(&*schedule, noise, &numbers, |timestep, rows| {
                let noised = noised_pairs(&data, pipeline, &*schedule, &vec![timestep; held_out.len()], rows);
                let references = noised.predictions(&base.denoiser, reference_conditioning.clone());
                let predictions = noised.predictions(&model.denoiser, conditioning.clone());
                let inside = inside(squared_error_changes(predictions, references, noised.target.clone()), self.beta);
                let on_host = values(&inside);
                if on_host.iter().all(|inside| inside.is_finite()) {
                    return Ok([on_host.iter().map(|inside| softplus(-inside)).collect(), values(&implicit_accuracies(inside))]);
                }
                let what = noised.first_non_finite(&model.denoiser, &conditioning).unwrap_or_else(|| "the validation loss".into());
                Err(Error::NonFinitePreview { step, what })
            })?;
            validation.losses.extend(losses);
            validation.implicit_accuracies.extend(accuracies);
        }
        Ok(validation)
    }
}

/// Noises both images of each pair to the pair's timestep, with the pair's noise. Returns `2b` rows, the chosen images first, as in `data`.
fn noised_pairs(
    data: &DenoisingBatch<'_>,
    pipeline: &Pipeline,
    schedule: &(impl NoiseSchedule + ?Sized),
    timesteps: &[f64],
    rows: Rows<'_>,
) -> Noised {
    let samples = rows.samples.repeat(2);
    data.noised(pipeline, schedule, timesteps.repeat(2), Rows { draw: rows.draw, samples: &samples })
}

/// [`dpo_inside`] of `[2b]` changes, those of the chosen images first.
fn inside(changes: Tensor<1>, beta: f64) -> Tensor<1> {
    let b = changes.dims()[0] / 2;
    dpo_inside(changes.clone().narrow(0, 0, b), changes.narrow(0, b, b), beta)
}

/// The values for the journal. The changes are the differences of the loss from the reference's: training should lower them for chosen
/// images and raise them for rejected ones.
fn observed([model_losses, reference_losses]: [Tensor<1>; 2], changes: &Tensor<1>, inside: &Tensor<1>) -> Observed {
    let pairs = inside.dims()[0];
    let observed = [
        ("implicit_accuracy", implicit_accuracies(inside.clone())),
        ("model_loss", model_losses),
        ("reference_loss", reference_losses),
        ("chosen_change", changes.clone().narrow(0, 0, pairs)),
        ("rejected_change", changes.clone().narrow(0, pairs, pairs)),
    ];
    observed.map(|(name, values)| (name.to_string(), Values::from(&values))).into()
}

/// 1 where the model prefers the chosen image more than the reference does, 0 where it prefers it less. A tie, as for the untrained model,
/// counts one half; `train.py` counts it as 0.
fn implicit_accuracies(inside: Tensor<1>) -> Tensor<1> {
    (inside.sign() + 1.0) / 2.0
}

/// ln(1 + eˣ), computed without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn a_draw_is_half_right() {
        let inside = Tensor::from_data([-1e-9, 0.0, 3.0], &Device::flex());
        assert_eq!(values(&implicit_accuracies(inside)), [0.0, 0.5, 1.0]);
    }

    #[test]
    fn softplus_by_hand_and_far_out() {
        assert!((softplus(0.0) - std::f64::consts::LN_2).abs() < 1e-15);
        assert_eq!([softplus(1e4), softplus(-1e4)], [1e4, 0.0]);
    }
}
