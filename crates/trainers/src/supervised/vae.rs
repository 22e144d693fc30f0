//! The autoencoder, trained on images: reconstruction, edges, and the KL of its latents.
//!
//! Source: Rombach et al. (arXiv 2112.10752) section 3.1 and appendix G, less the discriminator and the perceptual network, in
//! whose place stands the error's own gradient: errors that change from pixel to pixel are blur and ringing. Normalisation as in
//! diffusers' `train_autoencoderkl.py`: reconstruction a mean over pixels, KL a sum over an image's latents.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};
use vp_core::noise::{Noise, Purpose};
use vp_core::profile::{self, Stage};
use vp_data::from_tensor;
use vp_models::parameters::named_parameters;
use vp_models::vae::{AutoencoderKL, Posterior};

use crate::Error;
use crate::data::images::{CaptionedImages, Drawn};
use crate::run::preview::{Preview, is_finite};
use crate::run::{Run, values};

/// Held-out images that are shown beside their reconstructions.
const SHOWN: usize = 8;
/// Images over which the scale of the latents is measured.
const MEASURED: usize = 512;

/// How far a reconstruction is from its image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Mean absolute error: sharper.
    L1,
    /// Mean squared error.
    #[default]
    L2,
}

/// The knobs of `[algo.vae]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vae {
    /// Images a micro-batch.
    pub batch_size: usize,
    /// `l1` or `l2`.
    pub reconstruction: Distance,
    /// Factor of the KL, summed over an image's latents (1e-6).
    pub kl_weight: f64,
    /// How much more a pixel's error counts where the image differs from its mean colour: by `1 + foreground_weight · d / mean(d)`, `d`
    /// the pixel's mean absolute difference from it. Without it small things on a plain ground are learnt late or never.
    pub foreground_weight: f64,
    /// Factor of the mean absolute difference of the error between neighbouring pixels.
    pub edge_weight: f64,
    /// Whether the decoder sees a draw from the posterior, as in latent diffusion, rather than its mean.
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

/// The parts of the loss, one value an image, `[b]`.
#[derive(Debug, Clone)]
pub struct AutoencoderLoss {
    /// Pixel by pixel, for pixels in [−1, 1].
    pub reconstruction: Tensor<1>,
    /// Between neighbouring pixels.
    pub edge: Tensor<1>,
    /// Of the latents, summed.
    pub kl: Tensor<1>,
    /// All three by their weights.
    pub total: Tensor<1>,
}

impl Vae {
    /// Appends what cannot be.
    pub fn findings(&self, findings: &mut Vec<String>) {
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

    /// Trains to the end.
    ///
    /// # Errors
    /// When the run is interrupted, something is not finite, an image cannot be read, or the run's folder cannot be written.
    pub fn train(&self, run: &mut Run<AutoencoderKL>, images: &mut CaptionedImages) -> Result<(), Error> {
        let noise = run.noise;
        if run.is_at_the_beginning() {
            let look = self.validate(&run.tuned(), images, 0)?;
            run.preview(&look)?;
        }
        while let Some(batch) = run.next_batch()? {
            // 1. Images: cropped, resized, some mirrored; pixels in [−1, 1].
            let pixels = profile::time(Stage::Io, || images.batch(batch, self.batch_size))?.images * 2.0 - 1.0;
            run.count_images(self.batch_size);

            // 2. To latents and back.
            let posterior = profile::time(Stage::Encode, || run.model.encode(pixels.clone()));
            let latents = if self.sample_posterior {
                posterior.sample(posterior_noise(&noise, batch.draw(), &posterior.mean))
            } else {
                posterior.mean.clone()
            };
            let reconstructed = profile::time(Stage::Decode, || run.model.decode(latents));

            // 3. Reconstruction, edges, KL.
            let loss = self.loss(reconstructed.clone(), pixels, posterior.kl());
            let parts = [("reconstruction", &loss.reconstruction), ("edge", &loss.edge), ("kl", &loss.kl)];
            let observed = parts.map(|(name, part)| (name.to_string(), values(part))).to_vec();

            // 4. Backward, accumulated; after the last micro-batch clip, update, follow with the moving average, write down.
            let updated = run.backward(loss.total.mean(), observed, &|model| first_non_finite(model, &posterior, &reconstructed))?;

            // 5. Look.
            if let Some(step) = updated.filter(|step| run.preview_is_due(*step)) {
                let look = self.validate(&run.tuned(), images, step)?;
                run.preview(&look)?;
            }
        }
        Ok(())
    }

    /// What each pixel's error counts, `[b, 1, h, w]`.
    fn pixel_weights(&self, pixels: &Tensor<4>) -> Option<Tensor<4>> {
        if self.foreground_weight == 0.0 {
            return None;
        }
        let difference = (pixels.clone() - pixels.clone().mean_dims(&[2, 3])).abs().mean_dim(1);
        // An image of one colour has no foreground.
        let mean = difference.clone().mean_dims(&[2, 3]).clamp_min(1e-6);
        Some(difference / mean * self.foreground_weight + 1.0)
    }

    /// The loss of reconstructions of `pixels`, both `[b, 3, h, w]` in [−1, 1].
    pub fn loss(&self, reconstructed: Tensor<4>, pixels: Tensor<4>, kl: Tensor<1>) -> AutoencoderLoss {
        let [batch, _, height, width] = pixels.dims();
        let weights = self.pixel_weights(&pixels);
        let error = reconstructed - pixels;
        let mean = |values: Tensor<4>| values.mean_dims(&[1, 2, 3]).reshape([batch]);
        let distance = match self.reconstruction {
            Distance::L1 => error.clone().abs(),
            Distance::L2 => error.clone().square(),
        };
        let reconstruction = mean(match weights {
            Some(weights) => distance * weights,
            None => distance,
        });
        let across = error.clone().narrow(3, 1, width - 1) - error.clone().narrow(3, 0, width - 1);
        let down = error.clone().narrow(2, 1, height - 1) - error.narrow(2, 0, height - 1);
        let edge = mean(across.abs()) + mean(down.abs());
        let total = reconstruction.clone() + edge.clone() * self.edge_weight + kl.clone() * self.kl_weight;
        AutoencoderLoss { reconstruction, edge, kl, total }
    }

    /// What brings the latents of the images to a standard deviation of 1: the `scaling_factor` of an autoencoder trained anew.
    ///
    /// Source: Rombach et al. (arXiv 2112.10752) appendix G, equation 21 ff.: over all components of a batch.
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

    /// The loss of each held-out image, reconstructed from the posterior's mean, and the first of them beside their
    /// reconstructions.
    ///
    /// # Errors
    /// When an image can no longer be read, or a loss is not finite (`step` is named then).
    pub fn validate(&self, model: &AutoencoderKL, images: &CaptionedImages, step: u64) -> Result<Preview, Error> {
        let (mut losses, mut shown) = (Vec::new(), Vec::new());
        for entries in images.validation.chunks(self.batch_size) {
            let pixels = profile::time(Stage::Io, || images.held_out(entries))?.0.images * 2.0 - 1.0;
            let posterior = profile::time(Stage::Encode, || model.encode(pixels.clone()));
            let reconstructed = profile::time(Stage::Decode, || model.decode(posterior.mean.clone()));
            losses.extend(values(&self.loss(reconstructed.clone(), pixels.clone(), posterior.kl()).total));
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
        }
        let scores = if losses.is_empty() { Vec::new() } else { vec![("validation_loss".to_string(), losses)] };
        Ok(Preview { images: shown, columns: 2, scores, lower_is_better: true, ..Preview::default() })
    }
}

/// The first tensor of a pass that is not finite: a weight, by its name, or what the network made.
fn first_non_finite(model: &AutoencoderKL, posterior: &Posterior, reconstructed: &Tensor<4>) -> Option<String> {
    let weight = named_parameters(model).into_iter().find(|parameter| !parameter.values.clone().sum().into_scalar::<f32>().is_finite());
    if let Some(weight) = weight {
        return Some(weight.name);
    }
    let parts = [("the posterior's mean", &posterior.mean), ("the posterior's log-variance", &posterior.logvar)];
    let bad = parts.into_iter().chain([("the reconstruction", reconstructed)]).find(|(_, part)| !is_finite(part));
    bad.map(|(name, _)| name.to_string())
}

/// Standard normal beside the posterior's mean.
fn posterior_noise(noise: &Noise, draw: u64, mean: &Tensor<4>) -> Tensor<4> {
    let [rows, c, h, w] = mean.dims();
    let samples: Vec<u64> = (0..rows as u64).collect();
    noise.normal(Purpose::Posterior, draw, &samples, [c, h, w], &mean.device().without_autodiff())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn the_loss_by_hand() {
        let device = Device::flex();
        let pixels = Tensor::<4>::zeros([1, 1, 2, 2], &device);
        let reconstructed = Tensor::from_data([[[[1.0, 0.0], [0.0, 0.0]]]], &device);
        let vae = Vae { reconstruction: Distance::L2, kl_weight: 0.5, edge_weight: 0.1, ..Vae::default() };
        let loss = vae.loss(reconstructed, pixels, Tensor::from_data([2.0], &device));
        // One pixel of four is off by 1; one of two differences along each axis is 1.
        assert_eq!((values(&loss.reconstruction), values(&loss.edge)), (vec![0.25], vec![1.0]));
        assert!((values(&loss.total)[0] - (0.25 + 0.1 + 1.0)).abs() < 1e-6);
        // One white pixel of four has the mean 1/4, from which it is 3/4 away and the others 1/4: 2 and 2/3 of their mean, 3/8.
        let pixels = Tensor::from_data([[[[1.0, 0.0], [0.0, 0.0]]]], &device);
        let weighted = Vae { foreground_weight: 3.0, edge_weight: 0.0, ..vae };
        let loss = weighted.loss(Tensor::zeros([1, 1, 2, 2], &device), pixels, Tensor::from_data([0.0], &device));
        assert!((values(&loss.reconstruction)[0] - (1.0 + 3.0 * 2.0) / 4.0).abs() < 1e-6);
    }
}
