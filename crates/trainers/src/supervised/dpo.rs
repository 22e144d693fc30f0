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
//!
//! With `smoothed`, preferences are those of SmPO-Diffusion (Lu et al., arXiv 2506.02698, equation 9):
//!
//! | paper | here |
//! |---|---|
//! | γ | `smoothed.scale` |
//! | α / γ | the probability that the chosen image is the better one |
//! | 2α − γ | the factor `scale · (2p − 1)` beside β |
//!
//! Source: SmPO `train.py`, which makes the probability of two PickScores. It also finds the noise of an image by inversion (DDIM, then one
//! step of ReNoise); this is not done here, where the noise stays random, as in Diffusion-DPO.

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::noise::Noise;
use vp_core::profile::{self, Stage};
use vp_models::denoiser::Denoiser;
use vp_models::pipeline::{Pipeline, Trainable};
use vp_schedulers::NoiseSchedule;

use crate::Error;
use crate::algorithm::{Algorithm, Driver};
use crate::config::TrainConfig;
use crate::data::preferences::{PairBatch, PreferencePairs, PreferencesSection};
use crate::denoising::{DenoisingBatch, Noised, Rows, random_timesteps};
use crate::losses::{dpo_inside, dpo_loss, smpo_inside};
use crate::ranks::Ranks;
use crate::run::{Observed, Run, Values, values};
use crate::sections::PreviewSection;
use crate::supervised::reference::{Facts, FromPreferences, Frozen, PreferenceValidation, look};
use crate::supervised::validation::{Looked, noise_schedule, over_timesteps};

/// The knobs of `[algo.dpo]`. The defaults are those of `train.py`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dpo {
    /// Strength of the tie to the base model, above 0; the larger, the closer the model stays to it (5000).
    pub beta: f64,
    /// Pairs per micro-batch, at least 1 (1).
    pub batch_size: usize,
    /// SmPO's smoothed preferences: a pair counts by how probably its chosen image is the better one, and every line of the list must say so.
    /// Absent: every pair counts as much, as in Diffusion-DPO.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smoothed: Option<SmoothedPreferences>,
}

impl Default for Dpo {
    fn default() -> Self {
        Self { beta: 5000.0, batch_size: 1, smoothed: None }
    }
}

/// The knob of SmPO's smoothed preferences. The default is that of SmPO's `train.py`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SmoothedPreferences {
    /// γ, the factor of a pair of which the chosen image is certainly the better one, beside β; above 0 (10). With 1, such a pair counts as
    /// in Diffusion-DPO.
    pub scale: f64,
}

impl Default for SmoothedPreferences {
    fn default() -> Self {
        Self { scale: 10.0 }
    }
}

impl Algorithm for Dpo {
    fn driver(&self) -> Driver<'_> {
        Driver::Pairs(self)
    }

    fn findings(&self, config: &TrainConfig, findings: &mut Vec<String>) {
        let Self { beta, batch_size, smoothed } = self;
        if *batch_size == 0 {
            findings.push("algo.dpo.batch_size is 0; expected at least 1".into());
        }
        if !(*beta > 0.0 && beta.is_finite()) {
            findings.push(format!("algo.dpo.beta is {beta}; expected a number above 0"));
        }
        if let Some(SmoothedPreferences { scale }) = smoothed.filter(|smoothed| !(smoothed.scale > 0.0 && smoothed.scale.is_finite())) {
            findings.push(format!("algo.dpo.smoothed.scale is {scale}; expected a number above 0 (leave smoothed out for equal weights)"));
        }
        if config.preferences.as_ref().is_some_and(|preferences| preferences.ratings.is_some()) {
            findings.push("preferences.ratings is not used by [algo.dpo], which learns from pairs; remove it".into());
        }
    }
}

impl FromPreferences for Dpo {
    type Data = PreferencePairs;

    fn open(&self, section: &PreferencesSection, size: [usize; 2], noise: Noise, device: &Device) -> Result<PreferencePairs, Error> {
        PreferencePairs::open(section, self.smoothed.is_some(), size, noise, device)
    }

    fn facts<'a>(&self, pairs: &'a PreferencePairs) -> Facts<'a> {
        Facts {
            list: "the list of preference pairs",
            fingerprint: pairs.fingerprint(),
            units: "pairs",
            of_what: "pairs of images",
            batch_size: self.batch_size,
            training: pairs.training.len(),
            held_out: pairs.validation.len(),
            more: String::new(),
            size: pairs.size,
            skipped: &pairs.skipped,
            notes: Vec::new(),
            prompts: pairs.training.iter().map(|pair| pair.prompt.as_str()).collect(),
        }
    }

    fn train<D: Denoiser>(
        &self,
        run: &mut Run<Trainable<D>>,
        frozen: &Frozen<'_, D>,
        pairs: &mut PreferencePairs,
        preview: Option<&PreviewSection>,
    ) -> Result<(), Error> {
        let pipeline = frozen.pipeline;
        let schedule = noise_schedule(pipeline)?;
        let size = pairs.size;
        if run.is_at_the_beginning() {
            look(self, run, frozen, pairs, Looked { pipeline, preview, size, step: 0 })?;
        }
        while let Some(batch) = run.next_batch()? {
            // 1. Pairs: cropped, resized, some mirrored, some prompts dropped.
            let PairBatch { images, captions, probabilities } = profile::time(Stage::Io, || pairs.batch(batch, self.batch_size))?;
            let data = DenoisingBatch { images, captions: &captions, size };
            run.count_images(captions.len());

            // 2. Noised latents: the same timestep and the same noise for both images of a pair.
            let samples = run.draw(batch).samples(captions.len() / 2);
            let rows = Rows { draw: run.draw(batch), samples: &samples };
            let noised = noised_pairs(&data, pipeline, &*schedule, &random_timesteps(&*schedule, rows), rows);

            // 3. The predictions of both models, the reference off the tape, and the difference of their squared errors.
            let embedded = frozen.embed(&run.model, &data);
            let compared = frozen.compare(&run.model, &noised, &embedded);
            let changes = compared.changes(&noised);

            // 4. The loss: −log σ of how much more than the reference the model prefers the chosen image.
            let inside = self.inside(changes.clone(), &probabilities);
            let loss = dpo_loss(inside.clone());

            // 5. Backward, accumulated; after the last micro-batch of an update: clip, step, moving average, journal.
            let observed = observed(compared.errors(&noised), &changes, &inside);
            let blame = |model: &Trainable<D>| noised.first_non_finite(&model.denoiser, &embedded.model);
            let updated = run.backward(loss, observed, &blame)?;

            // 6. Validate, and draw the preview.
            if let Some(step) = updated.filter(|step| run.preview_is_due(*step)) {
                look(self, run, frozen, pairs, Looked { pipeline, preview, size, step })?;
            }
        }
        Ok(())
    }

    fn validate<D: Denoiser>(
        &self,
        model: &Trainable<D>,
        frozen: &Frozen<'_, D>,
        pairs: &PreferencePairs,
        noise: Noise,
        ranks: &Ranks,
        step: u64,
    ) -> Result<PreferenceValidation, Error> {
        let pipeline = frozen.pipeline;
        let schedule = noise_schedule(pipeline)?;
        let batches: Vec<_> = pairs.validation.chunks(self.batch_size).collect();
        let [losses, implicit_accuracies] = ranks.measure(&batches, |held_out| {
            let (batch, numbers) = profile::time(Stage::Io, || pairs.held_out(held_out))?;
            let PairBatch { images, captions, probabilities } = batch;
            let data = DenoisingBatch { images, captions: &captions, size: pairs.size };
            let embedded = frozen.embed(model, &data);
            over_timesteps(&*schedule, noise, &numbers, |timestep, rows| {
                let noised = noised_pairs(&data, pipeline, &*schedule, &vec![timestep; held_out.len()], rows);
                let inside = self.inside(frozen.compare(model, &noised, &embedded).changes(&noised), &probabilities);
                let on_host = values(&inside);
                if on_host.iter().all(|inside| inside.is_finite()) {
                    return Ok([on_host.iter().map(|inside| softplus(-inside)).collect(), values(&implicit_accuracies(inside))]);
                }
                let what = noised.first_non_finite(&model.denoiser, &embedded.model).unwrap_or_else(|| "the validation loss".into());
                Err(Error::NonFinitePreview { step, what })
            })
        })?;
        Ok(PreferenceValidation { losses, implicit_accuracies })
    }
}

impl Dpo {
    /// The argument of σ for `[2b]` changes, those of the chosen images first: Diffusion-DPO's, or SmPO's for the `b` probabilities.
    fn inside(&self, changes: Tensor<1>, probabilities: &[f32]) -> Tensor<1> {
        let (b, device) = (changes.dims()[0] / 2, changes.device());
        let inside = dpo_inside(changes.clone().narrow(0, 0, b), changes.narrow(0, b, b), self.beta);
        match self.smoothed {
            Some(SmoothedPreferences { scale }) => smpo_inside(inside, Tensor::from_data(probabilities, &device), scale),
            None => inside,
        }
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

    #[test]
    fn a_draw_is_half_right() {
        let inside = Tensor::from_data([-1e-9, 0.0, 3.0], &Device::flex());
        assert_eq!(values(&implicit_accuracies(inside)), [0.0, 0.5, 1.0]);
    }

    #[test]
    fn smoothed_preferences_weigh_each_pair_and_are_those_of_dpo_where_they_are_certain() {
        let changes = || Tensor::<1>::from_data([0.0f32, -0.5, -0.25, 0.5], &Device::flex());
        let of = |smoothed, probabilities: &[f32]| values(&Dpo { beta: 4.0, batch_size: 2, smoothed }.inside(changes(), probabilities));
        let plain = of(None, &[]);
        assert_eq!(plain, [-0.5, 2.0]);
        assert_eq!(of(Some(SmoothedPreferences { scale: 1.0 }), &[1.0, 1.0]), plain);
        assert_eq!(of(Some(SmoothedPreferences { scale: 10.0 }), &[0.75, 0.0]), [-2.5, -20.0]);
    }

    #[test]
    fn softplus_by_hand_and_far_out() {
        assert!((softplus(0.0) - std::f64::consts::LN_2).abs() < 1e-15);
        assert_eq!([softplus(1e4), softplus(-1e4)], [1e4, 0.0]);
    }
}
