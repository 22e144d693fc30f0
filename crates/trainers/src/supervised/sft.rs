//! Supervised fine-tuning: the denoising loss of UNet, text encoder or both on captioned images.
//!
//! `model.trainable` selects which of them trains. Source: diffusers `examples/text_to_image/train_text_to_image.py`; min-SNR weights from
//! Hang et al. (arXiv 2303.09556).

use std::ops::Range;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Pipeline, Trainable};
use vp_schedulers::{NoiseSchedule, PredictionType};

use crate::Error;
use crate::algorithm::{Algorithm, Driver};
use crate::config::TrainConfig;
use crate::data::images::CaptionedImages;
use crate::denoising::{DenoisingBatch, Noised};
use crate::optim::Workers;
use crate::ranks::Ranks;
use crate::run::{Run, Values, values};
use crate::sections::PreviewSection;
use crate::supervised::latents::Latents;
use crate::supervised::validation::{Looked, noise_schedule, over_timesteps};

/// The knobs of `[algo.sft]`. The defaults are those of `train_text_to_image.py`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sft {
    /// Images per micro-batch, at least 1 (16).
    pub batch_size: usize,
    /// Parts of a micro-batch that are computed side by side, each on its share of the cores; 1 to the batch size (1). With 1, the cores
    /// share each operation, which leaves them partly idle if the network is small.
    pub workers: usize,
    /// γ of the min-SNR weights, above 0 (5 in the paper); absent: every timestep has the same weight.
    pub snr_gamma: Option<f64>,
}

impl Default for Sft {
    fn default() -> Self {
        Self { batch_size: 16, workers: 1, snr_gamma: None }
    }
}

impl Algorithm for Sft {
    fn driver(&self) -> Driver<'_> {
        Driver::Captions(self)
    }

    fn findings(&self, _: &TrainConfig, findings: &mut Vec<String>) {
        if self.batch_size == 0 {
            findings.push("algo.sft.batch_size is 0; expected at least 1".into());
        }
        if !(1..=self.batch_size.max(1)).contains(&self.workers) {
            findings.push(format!("algo.sft.workers is {}; expected 1 to the batch size, {}", self.workers, self.batch_size));
        }
        if let Some(gamma) = self.snr_gamma.filter(|gamma| !(*gamma > 0.0 && gamma.is_finite())) {
            findings.push(format!("algo.sft.snr_gamma is {gamma}; expected a number above 0 (leave it out for equal weights)"));
        }
    }
}

impl Sft {
    /// Trains until the run has made all its updates.
    ///
    /// # Errors
    /// When the run is interrupted, a value is not finite, an image cannot be read, or the run's folder cannot be written.
    pub fn train<D: Denoiser>(
        &self,
        run: &mut Run<Trainable<D>>,
        pipeline: &Pipeline,
        images: &mut CaptionedImages,
        preview: Option<&PreviewSection>,
    ) -> Result<(), Error> {
        let schedule = noise_schedule(pipeline)?;
        let (mut latents, workers) = (Latents::new(images.cache_latents), Workers::on(pipeline.device(), self.workers)?);
        if run.is_at_the_beginning() {
            self.look(run, images, Looked { pipeline, preview, size: images.size, step: 0 })?;
        }
        while let Some(batch) = run.next_batch()? {
            // 1. Captioned images: cropped, resized, some mirrored, some captions dropped.
            let (drawn, captions) = images.draw(batch, self.batch_size);
            let count = drawn.len();
            run.count_images(count);

            // 2. Noised latents, each at a random timestep; embeddings of the captions.
            let posterior = latents.posterior(images, &drawn, pipeline)?;
            let noised = Noised::at_random(&posterior, pipeline, &*schedule, run.draw(batch));
            let embed = |model: &Trainable<D>, captions: &[String]| {
                let text = model.text(&pipeline.text);
                text.encode(captions, images.size, pipeline.device())
            };
            let blame = |model: &Trainable<D>| noised.first_non_finite(&model.denoiser, &embed(model, &captions));

            // 3. The loss: the weighted squared error of the prediction, as a mean over the rows.
            let weights = self.weights(&*schedule, &noised.timesteps);
            let loss = |model: &Trainable<D>, rows: Range<usize>| {
                let noised = noised.narrow(rows.start, rows.len());
                let errors = noised.errors(&model.denoiser, embed(model, &captions[rows.clone()]));
                let observed = vec![("denoising_loss".to_string(), Values::from(&errors))];
                let weights = Tensor::<1>::from_data(&weights[rows], pipeline.device());
                ((errors * weights).sum() / count as f64, observed)
            };

            // 4. Backward, accumulated; after the last micro-batch of an update: clip, step, moving average, journal.
            let updated = run.backward_in_parts(&workers, parts(count, workers.count().min(count)), loss, &blame)?;

            // 5. Validate, and draw the preview.
            if let Some(step) = updated.filter(|step| run.preview_is_due(*step)) {
                self.look(run, images, Looked { pipeline, preview, size: images.size, step })?;
            }
        }
        Ok(())
    }

    /// The min-SNR weight of each timestep: min(SNR, γ) / SNR if the model predicts the noise, min(SNR, γ) / (SNR + 1) for v, min(SNR, γ)
    /// for the clean sample; 1 without γ.
    pub fn weights(&self, schedule: &(impl NoiseSchedule + ?Sized), timesteps: &[f64]) -> Vec<f32> {
        let Some(gamma) = self.snr_gamma else { return vec![1.0; timesteps.len()] };
        let weight = |timestep: &f64| {
            let snr = schedule.signal_to_noise(*timestep);
            match schedule.prediction_type() {
                // At zero terminal SNR the quotient is undefined; its limit is 1.
                PredictionType::Epsilon if snr <= gamma => 1.0,
                PredictionType::Epsilon => gamma / snr,
                PredictionType::VPrediction => snr.min(gamma) / (snr + 1.0),
                PredictionType::Sample => snr.min(gamma),
            }
        };
        timesteps.iter().map(|timestep| weight(timestep) as f32).collect()
    }

    fn look<D: Denoiser>(&self, run: &mut Run<Trainable<D>>, images: &CaptionedImages, looked: Looked<'_>) -> Result<(), Error> {
        let tuned = run.tuned();
        let losses = self.validate(&tuned, looked.pipeline, images, run.noise, &run.ranks, looked.step)?;
        looked.record(run, &tuned, vec![("validation_loss", losses)])
    }

    /// The denoising loss of each held-out image, with the same weight for every timestep.
    ///
    /// # Errors
    /// When an image can no longer be read, or a loss is not finite; that error names `step`.
    pub fn validate<D: Denoiser>(
        &self,
        model: &Trainable<D>,
        pipeline: &Pipeline,
        images: &CaptionedImages,
        noise: Noise,
        ranks: &Ranks,
        step: u64,
    ) -> Result<Vec<f64>, Error> {
        let schedule = noise_schedule(pipeline)?;
        let batches: Vec<_> = images.validation.chunks(self.batch_size).collect();
        let [losses] = ranks.measure(&batches, |entries| {
            let (read, numbers) = profile::time(Stage::Io, || images.held_out(entries))?;
            let batch = DenoisingBatch { images: read.images, captions: &read.captions, size: images.size };
            let conditioning = batch.conditioning(model, pipeline);
            over_timesteps(&*schedule, noise, &numbers, |timestep, rows| {
                let noised = batch.noised(pipeline, &*schedule, vec![timestep; entries.len()], rows);
                let errors = values(&noised.errors(&model.denoiser, conditioning.clone()));
                if errors.iter().all(|error| error.is_finite()) {
                    return Ok([errors]);
                }
                let what = noised.first_non_finite(&model.denoiser, &conditioning).unwrap_or_else(|| "the validation loss".into());
                Err(Error::NonFinitePreview { step, what })
            })
        })?;
        Ok(losses)
    }
}

/// Splits `0..rows` into `count` parts, the first of which are longer by one if `rows` is not a multiple of `count`.
fn parts(rows: usize, count: usize) -> Vec<Range<usize>> {
    let end = |part: usize| part * (rows / count) + part.min(rows % count);
    (0..count).map(|part| end(part)..end(part + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vp_schedulers::{SchedulerConfig, build_scheduler, by_name};

    fn weights(prediction_type: PredictionType, snr_gamma: Option<f64>, timesteps: &[f64]) -> (Vec<f64>, Vec<f32>) {
        let ddpm = by_name("ddpm").unwrap();
        let config = SchedulerConfig { prediction_type: Some(prediction_type), ..SchedulerConfig::new(ddpm.class) };
        let schedule = build_scheduler(&config, Some(ddpm), 1, 0.0).unwrap();
        let snr = timesteps.iter().map(|timestep| schedule.signal_to_noise(*timestep)).collect();
        (snr, Sft { batch_size: 1, workers: 1, snr_gamma }.weights(&*schedule, timesteps))
    }

    #[test]
    fn parts_cover_a_batch() {
        assert_eq!(parts(8, 3), [0..3, 3..6, 6..8]);
        assert_eq!(parts(4, 4), [0..1, 1..2, 2..3, 3..4]);
    }

    #[test]
    fn min_snr_weights_by_hand() {
        let timesteps = [0.0, 999.0];
        assert_eq!(weights(PredictionType::Epsilon, None, &timesteps).1, [1.0, 1.0]);
        let (snr, epsilon) = weights(PredictionType::Epsilon, Some(5.0), &timesteps);
        assert!(snr[0] > 5.0 && snr[1] < 5.0, "{snr:?}");
        assert_eq!(epsilon, [(5.0 / snr[0]) as f32, 1.0]);
        let (_, v) = weights(PredictionType::VPrediction, Some(5.0), &timesteps);
        assert_eq!(v, [(5.0 / (snr[0] + 1.0)) as f32, (snr[1] / (snr[1] + 1.0)) as f32]);
        assert_eq!(weights(PredictionType::Sample, Some(5.0), &timesteps).1, [5.0, snr[1] as f32]);
    }
}
