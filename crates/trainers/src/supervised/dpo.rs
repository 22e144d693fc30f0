//! Diffusion-DPO: direct preference optimization of diffusion models (Wallace et al., arXiv 2311.12908, equation 14).
//!
//! | paper | here |
//! |---|---|
//! | x^w, x^l | `chosen`, `rejected` |
//! | ε_θ, ε_ref | the trained model, the frozen base model |
//! | ‖ε − ε_θ(x_t, t)‖² | the mean over c, h, w of the squared error |
//! | β T ω(λ_t) | `0.5 · beta`, the same at every timestep |
//!
//! Source: DiffusionDPO `train.py`. Both images of a pair get one timestep, uniform over the schedule, and one noise; the draw from
//! the autoencoder's posterior is shared too, where `train.py` draws twice. The published method predicts the noise; a model that
//! predicts v or the clean latents is held to its own target here, in the same formula.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::Pipeline;
use vp_models::pipeline::Trainable;
use vp_schedulers::{NoiseSchedule, build_scheduler, by_name};

use crate::Error;
use crate::data::preferences::{PairBatch, PreferencePairs};
use crate::denoising::{DenoisingBatch, Noised, random_timesteps};
use crate::losses::{dpo_inside, dpo_loss};
use crate::run::preview::{Preview, draw};
use crate::run::{Observed, Run, values};
use crate::sections::PreviewSection;

/// Timesteps at which a held-out pair is compared: the middles of as many equal parts of the schedule.
const VALIDATION_TIMESTEPS: usize = 4;
/// The draw of validation's noise; training counts its own from 1.
const VALIDATION_DRAW: u64 = 0;

/// The knobs of `[algo.dpo]`, with `train.py`'s values where the file is silent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dpo {
    /// How soon a preference counts as learned: the larger, the nearer the model stays to its base (5000).
    pub beta: f64,
    /// Pairs a micro-batch (1).
    pub batch_size: usize,
}

impl Default for Dpo {
    fn default() -> Self {
        Self { beta: 5000.0, batch_size: 1 }
    }
}

/// What is around the trained model.
#[derive(Debug)]
pub struct Frozen<'a, D: Denoiser> {
    /// Encoders, autoencoder, folder.
    pub pipeline: &'a Pipeline,
    /// The reference: the untuned model, on the plain device.
    pub base: &'a Trainable<D>,
}

/// What held-out pairs say of a model, one value a pair.
#[derive(Debug, Clone, Default)]
pub struct Validation {
    /// −log σ(inside), the mean over the timesteps.
    pub losses: Vec<f64>,
    /// Share of the timesteps at which the model prefers the chosen image more than the reference does.
    pub implicit_accuracies: Vec<f64>,
}

impl Dpo {
    /// Appends what cannot be.
    pub fn findings(&self, findings: &mut Vec<String>) {
        let Self { beta, batch_size } = self;
        if *batch_size == 0 {
            findings.push("algo.dpo.batch_size is 0; expected at least 1".into());
        }
        if !(*beta > 0.0 && beta.is_finite()) {
            findings.push(format!("algo.dpo.beta is {beta}; expected a number above 0"));
        }
    }

    /// Trains to the end.
    ///
    /// # Errors
    /// When the run is interrupted, something is not finite, an image cannot be read, or the run's folder cannot be written.
    pub fn train<D: Denoiser>(
        &self,
        run: &mut Run<Trainable<D>>,
        frozen: &Frozen<'_, D>,
        pairs: &mut PreferencePairs,
        preview: Option<&PreviewSection>,
    ) -> Result<(), Error> {
        let Frozen { pipeline, base } = *frozen;
        // Only the noise levels count, which every scheduler of a folder shares.
        let schedule = build_scheduler(&pipeline.folder.scheduler_config, Some(by_name("ddpm")?), 1, 0.0)?;
        let (noise, size) = (run.noise, pairs.size);
        if run.is_at_the_beginning() {
            self.look(run, frozen, pairs, (&*schedule, preview), 0)?;
        }
        while let Some(batch) = run.next_batch()? {
            // 1. Pairs: cropped, resized, some mirrored, some prompts dropped.
            let PairBatch { images, captions } = profile::time(Stage::Io, || pairs.batch(batch, self.batch_size))?;
            let data = DenoisingBatch { images, captions: &captions, size };
            run.count_images(2 * self.batch_size);

            // 2. Latents with noise: one timestep and one noise for both images of a pair.
            let samples: Vec<u64> = (0..self.batch_size as u64).collect();
            let timesteps = random_timesteps(&*schedule, (&noise, batch.draw(), &samples));
            let noised = noised_pairs(&data, pipeline, &*schedule, &timesteps, (&noise, batch.draw(), &samples));

            // 3. What both models answer, the reference off the tape, and how their squared errors differ.
            let conditioning = data.conditioning(&run.model, pipeline);
            let predictions = noised.predictions(&run.model.unet, conditioning.clone());
            let references = noised.predictions(&base.unet, data.conditioning(base, pipeline));
            let changes = noised.error_changes(predictions.clone(), references.clone());

            // 4. −log σ of how far the model prefers the chosen image beyond the reference.
            let inside = inside(changes.clone(), self.beta);
            let loss = dpo_loss(inside.clone());

            // 5. Backward, accumulated; after the last micro-batch clip, update, follow with the moving average, write down.
            let losses = [noised.errors_of(predictions.without_autodiff()), noised.errors_of(references)];
            let observed = observed(losses, &changes, &inside);
            let updated = run.backward(loss, observed, &|model: &Trainable<D>| noised.first_non_finite(&model.unet, &conditioning))?;

            // 6. Look.
            if let Some(step) = updated.filter(|step| run.preview_is_due(*step)) {
                self.look(run, frozen, pairs, (&*schedule, preview), step)?;
            }
        }
        Ok(())
    }

    /// Validates, and draws where there is something to draw.
    fn look<D: Denoiser>(
        &self,
        run: &mut Run<Trainable<D>>,
        frozen: &Frozen<'_, D>,
        pairs: &PreferencePairs,
        (schedule, section): (&dyn NoiseSchedule, Option<&PreviewSection>),
        step: u64,
    ) -> Result<(), Error> {
        let model = run.tuned();
        let drawn = section.map(|section| draw(section, frozen.pipeline, &model, &[], (pairs.size, step))).transpose()?;
        let Validation { losses, implicit_accuracies } = self.validate(&model, frozen, pairs, (schedule, run.noise), step)?;
        let scores = [("validation_loss", losses), ("validation_implicit_accuracy", implicit_accuracies)];
        let scores = scores.into_iter().filter(|(_, scores)| !scores.is_empty()).map(|(name, scores)| (name.to_string(), scores));
        run.preview(&Preview::of_losses(scores.collect(), drawn))
    }

    /// What the held-out pairs say, at the same timesteps and with the same noise whenever they are asked.
    ///
    /// # Errors
    /// When an image can no longer be read, or a loss is not finite (`step` is named then).
    pub fn validate<D: Denoiser>(
        &self,
        model: &Trainable<D>,
        Frozen { pipeline, base }: &Frozen<'_, D>,
        pairs: &PreferencePairs,
        (schedule, noise): (&dyn NoiseSchedule, Noise),
        step: u64,
    ) -> Result<Validation, Error> {
        let count = schedule.num_train_timesteps();
        let mut validation = Validation::default();
        for held_out in pairs.validation.chunks(self.batch_size) {
            let (PairBatch { images, captions }, numbers) = profile::time(Stage::Io, || pairs.held_out(held_out))?;
            let data = DenoisingBatch { images, captions: &captions, size: pairs.size };
            let (conditioning, reference_conditioning) = (data.conditioning(model, pipeline), data.conditioning(base, pipeline));
            let (mut losses, mut accuracies) = (vec![0.0; held_out.len()], vec![0.0; held_out.len()]);
            for part in 0..VALIDATION_TIMESTEPS {
                let timestep = ((2 * part + 1) * count / (2 * VALIDATION_TIMESTEPS)) as f64;
                let samples: Vec<u64> = numbers.iter().map(|number| number.wrapping_add(part as u64)).collect();
                let timesteps = vec![timestep; held_out.len()];
                let noised = noised_pairs(&data, pipeline, schedule, &timesteps, (&noise, VALIDATION_DRAW, &samples));
                let references = noised.predictions(&base.unet, reference_conditioning.clone());
                let changes = noised.error_changes(noised.predictions(&model.unet, conditioning.clone()), references);
                let inside = values(&inside(changes, self.beta));
                if !inside.iter().all(|inside| inside.is_finite()) {
                    let what = noised.first_non_finite(&model.unet, &conditioning).unwrap_or_else(|| "the validation loss".into());
                    return Err(Error::NonFinitePreview { step, what });
                }
                let share = 1.0 / VALIDATION_TIMESTEPS as f64;
                losses.iter_mut().zip(&inside).for_each(|(sum, inside)| *sum += share * softplus(-inside));
                accuracies.iter_mut().zip(implicit_accuracies(&inside)).for_each(|(sum, accuracy)| *sum += share * accuracy);
            }
            validation.losses.extend(losses);
            validation.implicit_accuracies.extend(accuracies);
        }
        Ok(validation)
    }
}

/// Both images of each pair at its timestep, with its noise; `[2b]` rows, the chosen images first as in `data`.
fn noised_pairs(
    data: &DenoisingBatch<'_>,
    pipeline: &Pipeline,
    schedule: &(impl NoiseSchedule + ?Sized),
    timesteps: &[f64],
    (noise, draw, samples): (&Noise, u64, &[u64]),
) -> Noised {
    data.noised(pipeline, schedule, timesteps.repeat(2), (noise, draw, &samples.repeat(2)))
}

/// [`dpo_inside`] of `[2b]` changes, the chosen images' first.
fn inside(changes: Tensor<1>, beta: f64) -> Tensor<1> {
    let b = changes.dims()[0] / 2;
    dpo_inside(changes.clone().narrow(0, 0, b), changes.narrow(0, b, b), beta)
}

/// What the journal is told. The changes are those of the loss against the reference: what training should lower for chosen images
/// and raise for rejected ones.
fn observed([model_losses, reference_losses]: [Tensor<1>; 2], changes: &Tensor<1>, inside: &Tensor<1>) -> Observed {
    let inside = values(inside);
    let mut chosen_changes = values(changes);
    let rejected_changes = chosen_changes.split_off(inside.len());
    let observed = [
        ("implicit_accuracy", implicit_accuracies(&inside)),
        ("model_loss", values(&model_losses)),
        ("reference_loss", values(&reference_losses)),
        ("chosen_change", chosen_changes),
        ("rejected_change", rejected_changes),
    ];
    observed.map(|(name, values)| (name.to_string(), values)).into()
}

/// 1 where the model prefers the chosen image more than the reference does, 0 where less. A draw, as of the untrained model,
/// counts one half; `train.py` counts it as 0.
fn implicit_accuracies(inside: &[f64]) -> Vec<f64> {
    let accuracy = |inside: &f64| if *inside == 0.0 { 0.5 } else { f64::from(u8::from(*inside > 0.0)) };
    inside.iter().map(accuracy).collect()
}

/// ln(1 + eˣ), without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_is_half_right() {
        assert_eq!(implicit_accuracies(&[-1e-9, 0.0, 3.0]), [0.0, 0.5, 1.0]);
    }

    #[test]
    fn softplus_by_hand_and_far_out() {
        assert!((softplus(0.0) - std::f64::consts::LN_2).abs() < 1e-15);
        assert_eq!([softplus(1e4), softplus(-1e4)], [1e4, 0.0]);
    }
}
