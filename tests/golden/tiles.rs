//! The autoencoder in tiles and slices, held against itself on whole images; on the shipped autoencoder, whose images are 64 pixels high and
//! wide, and on an image of four times as many.

use crate::device::device;
use burn::tensor::{Device, Tensor, TensorData};
use vp_models::pipeline::{ModelFolder, load_vae};
use vp_models::vae::{AutoencoderKL, Splitting, Tiling};

/// The largest and the mean difference that tiles may make to an image in [0, 1]: the seam.
const SEAM: [f64; 2] = [0.12, 0.006];

fn autoencoder() -> AutoencoderKL {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/shapes");
    load_vae(&ModelFolder::open(&folder).unwrap(), &device()).unwrap()
}

fn split(vae: &AutoencoderKL, tiling: Tiling, slicing: bool) -> AutoencoderKL {
    let mut vae = vae.clone();
    vae.splitting = Splitting { tiling, slicing };
    vae
}

/// A picture without edges where tiles meet: coloured waves, `[b, 3, size, size]` in [-1, 1].
fn waves(b: usize, size: usize) -> Tensor<4> {
    let value = |i: usize| {
        let (image, channel, y, x) = (i / (3 * size * size), i / (size * size) % 3, i / size % size, i % size);
        let (u, v) = (x as f32 / 64.0, y as f32 / 64.0);
        0.8 * (2.1 * u + (channel + image) as f32).sin() * (1.7 * v - channel as f32).cos()
    };
    let values: Vec<f32> = (0..b * 3 * size * size).map(value).collect();
    Tensor::from_data(TensorData::new(values, [b, 3, size, size]), &device())
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// The largest and the mean difference.
fn apart(a: &[f64], b: &[f64]) -> [f64; 2] {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a - b).abs()).collect();
    [differences.iter().copied().fold(0.0, f64::max), differences.iter().sum::<f64>() / differences.len() as f64]
}

#[test]
fn an_image_no_larger_than_a_tile_is_taken_whole() {
    let vae = autoencoder();
    let image = waves(1, 64);
    let (latents, tiled) = (vae.encode(image.clone()).mean, split(&vae, Tiling::Own, false));
    assert_eq!(host(tiled.encode(image).mean), host(latents.clone()));
    assert_eq!(host(tiled.decode(latents.clone())), host(vae.decode(latents)));
}

#[test]
fn slices_change_nothing() {
    let (vae, images) = (autoencoder(), waves(3, 64));
    let sliced = split(&vae, Tiling::Off, true);
    let latents = vae.encode(images.clone()).mean;
    let [off_latents, off_images] = [
        apart(&host(sliced.encode(images).mean), &host(latents.clone())),
        apart(&host(sliced.decode(latents.clone())), &host(vae.decode(latents))),
    ];
    let allowed = if device() == Device::flex() { 0.0 } else { 1e-5 };
    assert!(off_latents[0] <= allowed && off_images[0] <= allowed, "{off_latents:?} {off_images:?}");
}

#[test]
fn seams_are_faint_and_gradients_pass_them() {
    let vae = autoencoder();
    let tiled = split(&vae, Tiling::Pixels(64), false);
    let image = waves(1, 128);
    let latents = vae.encode(image.clone()).mean;
    let of_latents = apart(&host(tiled.encode(image).mean), &host(latents.clone()));
    let largest = host(latents.clone()).iter().fold(0.0, |max: f64, value| max.max(value.abs()));
    let pixels = |vae: &AutoencoderKL, latents: Tensor<4>| (vae.decode(latents) / 2.0 + 0.5).clamp(0.0, 1.0);
    let seam = apart(&host(pixels(&tiled, latents.clone())), &host(pixels(&vae, latents.clone())));
    println!("seam of images: largest {:.4}, mean {:.5}; of latents, whose largest is {largest:.2}: {of_latents:.4?}", seam[0], seam[1]);
    assert!(seam[0] < SEAM[0] && seam[1] < SEAM[1], "{seam:?}");
    assert!(seam[0] > 0.0, "the image was not taken in tiles");

    // The gradient of the mean brightness: what a reward sends back through the decoder.
    let gradient = |vae: &AutoencoderKL| {
        let latents = latents.clone().autodiff().require_grad();
        let gradients = (vae.decode(latents.clone()) * waves(1, 128)).mean().backward();
        host(latents.grad(&gradients).unwrap())
    };
    let (found, expected) = (gradient(&tiled), gradient(&vae));
    let norm = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
    let product: f64 = found.iter().zip(&expected).map(|(a, b)| a * b).sum();
    let cosine = product / norm(&found) / norm(&expected);
    println!("cosine of the gradients {cosine:.4}");
    assert!(cosine > 0.95, "{cosine}");
}
