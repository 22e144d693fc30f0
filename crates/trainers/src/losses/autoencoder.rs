//! The autoencoder's loss.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::losses::row_means;

/// The distance between a reconstruction and its image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Distance {
    /// Mean absolute error, which gives sharper images.
    L1,
    /// Mean squared error.
    #[default]
    L2,
}

/// The distance and the weights of the parts of [`autoencoder_loss`].
#[derive(Debug, Clone, Copy)]
pub struct AutoencoderWeights {
    /// The distance between a reconstruction and its image.
    pub reconstruction: Distance,
    /// How much more the pixels count that differ from the image's mean colour; 0 for equal weights. A pixel has the weight
    /// `1 + foreground_weight · d / mean(d)`, where `d` is its mean absolute difference from the mean colour.
    pub foreground_weight: f64,
    /// Factor of the mean absolute difference of the error between neighbouring pixels.
    pub edge_weight: f64,
    /// Factor of the KL divergence.
    pub kl_weight: f64,
}

/// The parts of [`autoencoder_loss`], one value per image, `[b]`.
#[derive(Debug, Clone)]
pub struct AutoencoderLoss {
    /// The reconstruction's mean distance per pixel, for pixels in [−1, 1].
    pub reconstruction: Tensor<1>,
    /// The mean absolute difference of the error between neighbouring pixels, across plus down.
    pub edge: Tensor<1>,
    /// The KL divergence of the latents, summed over an image's latents.
    pub kl: Tensor<1>,
    /// The weighted sum of the three parts.
    pub total: Tensor<1>,
}

/// The autoencoder's loss: reconstruction, edges and KL. `reconstructed` and `pixels` are `[b, 3, h, w]` in [−1, 1]; `kl` is `[b]`.
///
/// Source: Rombach et al. (arXiv 2112.10752) section 3.1 and appendix G, without the discriminator and the perceptual network.
pub fn autoencoder_loss(reconstructed: Tensor<4>, pixels: Tensor<4>, kl: Tensor<1>, weights: AutoencoderWeights) -> AutoencoderLoss {
    let [_, _, height, width] = pixels.dims();
    let pixel_weights = (weights.foreground_weight != 0.0).then(|| foreground_weights(&pixels, weights.foreground_weight));
    let error = reconstructed - pixels;
    let distance = match weights.reconstruction {
        Distance::L1 => error.clone().abs(),
        Distance::L2 => error.clone().square(),
    };
    let reconstruction = row_means(match pixel_weights {
        Some(pixel_weights) => distance * pixel_weights,
        None => distance,
    });
    let across = error.clone().narrow(3, 1, width - 1) - error.clone().narrow(3, 0, width - 1);
    let down = error.clone().narrow(2, 1, height - 1) - error.narrow(2, 0, height - 1);
    let edge = row_means(across.abs()) + row_means(down.abs());
    let total = reconstruction.clone() + edge.clone() * weights.edge_weight + kl.clone() * weights.kl_weight;
    AutoencoderLoss { reconstruction, edge, kl, total }
}

/// The weight of each pixel's error, `[b, 1, h, w]`.
fn foreground_weights(pixels: &Tensor<4>, weight: f64) -> Tensor<4> {
    let difference = (pixels.clone() - pixels.clone().mean_dims(&[2, 3])).abs().mean_dim(1);
    // An image of one colour has no foreground.
    let mean = difference.clone().mean_dims(&[2, 3]).clamp_min(1e-6);
    difference / mean * weight + 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    use crate::run::values;

    #[test]
    fn the_autoencoders_loss_by_hand() {
        let device = Device::flex();
        let zeros = || Tensor::<4>::zeros([1, 1, 2, 2], &device);
        let one_pixel = || Tensor::<4>::from_data([[[[1.0, 0.0], [0.0, 0.0]]]], &device);
        let kl = |value: f32| Tensor::<1>::from_data([value], &device);
        let weights = AutoencoderWeights { reconstruction: Distance::L2, foreground_weight: 0.0, edge_weight: 0.1, kl_weight: 0.5 };
        let loss = autoencoder_loss(one_pixel(), zeros(), kl(2.0), weights);
        // One pixel of four is off by 1; one of two differences along each axis is 1.
        assert_eq!((values(&loss.reconstruction), values(&loss.edge)), (vec![0.25], vec![1.0]));
        assert!((values(&loss.total)[0] - (0.25 + 0.1 + 1.0)).abs() < 1e-6);
        // One white pixel of four has the mean 1/4, from which it is 3/4 away and the others 1/4: 2 and 2/3 of their mean, 3/8.
        let weighted = AutoencoderWeights { foreground_weight: 3.0, edge_weight: 0.0, ..weights };
        let loss = autoencoder_loss(zeros(), one_pixel(), kl(0.0), weighted);
        assert!((values(&loss.reconstruction)[0] - (1.0 + 3.0 * 2.0) / 4.0).abs() < 1e-6);
    }
}
