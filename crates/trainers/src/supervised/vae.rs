//! Training of the autoencoder on images: reconstruction, edges, and the KL of its latents.
//!
//! Source: Rombach et al. (arXiv 2112.10752) section 3.1 and appendix G, without the discriminator and the perceptual network. The edge
//! loss replaces them: it penalises errors that change from pixel to pixel, which are blur and ringing. The normalisation is that of
//! diffusers' `train_autoencoderkl.py`: the reconstruction is a mean over pixels, the KL a sum over an image's latents.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::noise::Purpose;
use vp_core::profile::{self, Stage};
use vp_data::{ImageEntry, from_tensor};
use vp_models::parameters::named_parameters;
use vp_models::vae::{AutoencoderKL, Posterior};

use crate::Error;
use crate::algorithm::{Algorithm, Driver};
use crate::config::TrainConfig;
use crate::data::images::{CaptionedImages, Drawn};
use crate::denoising::Rows;
use crate::losses::{AutoencoderLoss, AutoencoderWeights, Distance, autoencoder_loss};
use crate::non_finite;
use crate::ranks::Ranks;
use crate::run::preview::Preview;
use crate::run::{Draw, Run, Values, values};

/// Held-out images that are shown beside their reconstructions.
const SHOWN: usize = 8;
/// The number of images over which the scale of the latents is measured, at most.
const MEASURED: usize = 512;

/// The knobs of `[algo.vae]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vae {
    /// Images per micro-batch, at least 1 (4).
    pub batch_size: usize,
    /// Distance between an image and its reconstruction: `l1` or `l2` (`l2`).
    pub reconstruction: Distance,
    /// Factor of the KL divergence, which is summed over an image's latents; at least 0 (1e-6).
    pub kl_weight: f64,
    /// How much more the errors of those pixels count that differ from the image's mean colour, at least 0 (0). A pixel has the weight
    /// `1 + foreground_weight · d / mean(d)`, where `d` is its mean absolute difference from the mean colour. At 0, small objects on a
    /// plain background are learnt late or never.
    pub foreground_weight: f64,
    /// Factor of the edge loss, the mean absolute difference of the error between neighbouring pixels; at least 0 (0.1).
    pub edge_weight: f64,
    /// Whether the decoder gets a sample of the posterior, as in latent diffusion, rather than its mean (true).
    pub sample_posterior: bool,
}

impl Default for Vae {
    fn default() -> Self {
        Self {
            batch_size: 4,
            reconstruction: Distance::L2,
            foreground_weight: 0.0,
            kl_weight: 1e-6,
            edge_weight: 0.1,
            sample_posterior: true,
        }
    }
}

impl Algorithm for Vae {
    fn driver(&self) -> Driver<'_> {
        Driver::Autoencoder(self)
    }

    fn findings(&self, _: &TrainConfig, findings: &mut Vec<String>) {
        if self.batch_size == 0 {
            findings.push("algo.vae.batch_size is 0; expected at least 1".into());
        }
        let weights = [("foreground_weight", self.foreground_weight), ("kl_weight", self.kl_weight), ("edge_weight", self.edge_weight)];
        for (name, weight) in weights {
            if !(weight >= 0.0 && weight.is_finite()) {
                findings.push(format!("algo.vae.{name} is {weight}; expected a number of at least 0"));
            }
        }
    }
}

impl Vae {
    /// Trains until the run has made all its updates.
    ///
    /// # Errors
    /// When the run is interrupted, a value is not finite, an image cannot be read, or the run's folder cannot be written.
    pub fn train(&self, run: &mut Run<AutoencoderKL>, images: &mut CaptionedImages) -> Result<(), Error> {
        if run.is_at_the_beginning() {
            let look = self.validate(&run.tuned(), images, &run.ranks, 0)?;
            run.record_preview(&look)?;
        }
        while let Some(batch) = run.next_batch()? {
            // 1. Images: cropped, resized, some mirrored; pixels in [−1, 1].
            let pixels = profile::time(Stage::Io, || images.batch(batch, self.batch_size))?.images * 2.0 - 1.0;
            run.count_images(pixels.dims()[0]);

            // 2. Encode to latents and decode again.
            let posterior = profile::time(Stage::Encode, || run.model.encode(pixels.clone()));
            let latents = if self.sample_posterior {
                posterior.sample(posterior_noise(run.draw(batch), &posterior.mean))
            } else {
                posterior.mean.clone()
            };
            let reconstructed = profile::time(Stage::Decode, || run.model.decode(latents));

            // 3. The loss: reconstruction, edges and KL.
            let loss = self.loss(reconstructed.clone(), pixels, posterior.kl());
            let parts = [("reconstruction", &loss.reconstruction), ("edge", &loss.edge), ("kl", &loss.kl)];
            let observed = parts.map(|(name, part)| (name.to_string(), Values::from(part))).to_vec();

            // 4. Backward, accumulated; after the last micro-batch of an update: clip, step, moving average, journal.
            let updated = run.backward(loss.total.mean(), observed, &|model| first_non_finite(model, &posterior, &reconstructed))?;

            // 5. Validate.
            if let Some(step) = updated.filter(|step| run.preview_is_due(*step)) {
                let look = self.validate(&run.tuned(), images, &run.ranks, step)?;
                run.record_preview(&look)?;
            }
        }
        Ok(())
    }

    /// The loss with this config's weights, where `reconstructed` and `pixels` are `[b, 3, h, w]` in [−1, 1], and `kl` is `[b]`.
    fn loss(&self, reconstructed: Tensor<4>, pixels: Tensor<4>, kl: Tensor<1>) -> AutoencoderLoss {
        let Self { reconstruction, foreground_weight, kl_weight, edge_weight, .. } = *self;
        autoencoder_loss(reconstructed, pixels, kl, AutoencoderWeights { reconstruction, foreground_weight, edge_weight, kl_weight })
    }

    /// The factor that scales the latents of the images to a standard deviation of 1: the `scaling_factor` of an autoencoder trained from
    /// random weights.
    ///
    /// Source: Rombach et al. (arXiv 2112.10752) appendix G, equation 21 ff., which takes the standard deviation over all components of a
    /// batch.
    ///
    /// # Errors
    /// When an image can no longer be read.
    pub fn scaling_factor(&self, model: &AutoencoderKL, images: &CaptionedImages) -> Result<f64, Error> {
        let first: Vec<Drawn> = (0..images.training.len().min(MEASURED)).map(|entry| Drawn { entry, mirrored: false }).collect();
        let (mut squares, mut sum, mut count) = (0.0, 0.0, 0);
        for drawn in first.chunks(self.batch_size) {
            let posterior = model.encode(images.read(drawn)? * 2.0 - 1.0);
            let second_moment = posterior.mean.clone().square() + posterior.logvar.exp();
            count += second_moment.shape().num_elements();
            squares += f64::from(second_moment.sum().into_scalar::<f32>());
            sum += f64::from(posterior.mean.sum().into_scalar::<f32>());
        }
        let mean = sum / count as f64;
        Ok((squares / count as f64 - mean * mean).sqrt().recip())
    }

    /// The loss of each held-out image, reconstructed from the posterior's mean, and the first few images beside their reconstructions.
    ///
    /// # Errors
    /// When an image can no longer be read, or a loss is not finite; that error names `step`.
    pub fn validate(&self, model: &AutoencoderKL, images: &CaptionedImages, ranks: &Ranks, step: u64) -> Result<Preview, Error> {
        let batches: Vec<_> = images.validation.chunks(self.batch_size).collect();
        let mut shown = Vec::new();
        let mut measure = |entries: &&[ImageEntry]| {
            let pixels = profile::time(Stage::Io, || images.held_out(entries))?.0.images * 2.0 - 1.0;
            let posterior = profile::time(Stage::Encode, || model.encode(pixels.clone()));
            let reconstructed = profile::time(Stage::Decode, || model.decode(posterior.mean.clone()));
            let losses = values(&self.loss(reconstructed.clone(), pixels.clone(), posterior.kl()).total);
            if !losses.iter().all(|loss| loss.is_finite()) {
                let what = first_non_finite(model, &posterior, &reconstructed).unwrap_or_else(|| "the validation loss".into());
                return Err(Error::NonFinitePreview { step, what });
            }
            if shown.len() < 2 * SHOWN {
                let to_images = |pixels: Tensor<4>| from_tensor((pixels / 2.0 + 0.5).clamp(0.0, 1.0));
                let pairs = to_images(pixels)?.into_iter().zip(to_images(reconstructed)?);
                shown.extend(pairs.flat_map(|(image, reconstruction)| [image, reconstruction]));
                shown.truncate(2 * SHOWN);
            }
            Ok([losses])
        };
        let [losses] = ranks.measure(&batches, &mut measure)?;
        // The first rank shows the first images, even if it measures fewer.
        let measured = if ranks.is_first() { ranks.share(batches.len()).end } else { batches.len() };
        for entries in batches.iter().take(SHOWN.div_ceil(self.batch_size)).skip(measured) {
            measure(entries)?;
        }
        let scores = if losses.is_empty() { Vec::new() } else { vec![("validation_loss".to_string(), losses)] };
        Ok(Preview { images: shown, columns: 2, scores, lower_is_better: true, ..Preview::default() })
    }
}

/// The first tensor of a forward pass that is not finite: a weight, by its name, or an output of the network.
fn first_non_finite(model: &AutoencoderKL, posterior: &Posterior, reconstructed: &Tensor<4>) -> Option<String> {
    let weight = named_parameters(model).into_iter().find(|parameter| !non_finite::is_finite(&parameter.values));
    let parts = [
        ("the posterior's mean", &posterior.mean),
        ("the posterior's log-variance", &posterior.logvar),
        ("the reconstruction", reconstructed),
    ];
    weight.map(|weight| weight.name).or_else(|| non_finite::first_of(parts))
}

/// Standard normal noise of the shape of the posterior's mean.
fn posterior_noise(draw: Draw, mean: &Tensor<4>) -> Tensor<4> {
    let [rows, c, h, w] = mean.dims();
    Rows { draw, samples: &draw.samples(rows) }.normal(Purpose::POSTERIOR, [c, h, w], &mean.device().without_autodiff())
}
