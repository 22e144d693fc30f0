//! The autoencoder in tiles and slices, held against itself on whole images; on the shipped autoencoder, in tiles of
//! 64 pixels, and on images of four times as many.

use crate::device::device;
use burn::tensor::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use vp_data::to_tensor;
use vp_models::pipeline::{ModelFolder, load_vae};
use vp_models::vae::{AutoencoderKL, Splitting, Tiling};
use vp_shapes::{Scene, Split, render};

/// The largest and the mean difference that tiles may make to an image in [0, 1]. The norms of a tile see that tile alone, which in this small
/// autoencoder, on plain backgrounds, matters: 0.44 and 0.033 were measured.
const SEAM: [f64; 2] = [0.5, 0.04];

fn autoencoder() -> AutoencoderKL {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("checkpoints/shapes");
    load_vae(&ModelFolder::open(&folder).unwrap(), &device()).unwrap()
}

fn split(vae: &AutoencoderKL, tiling: Tiling, slicing: bool) -> AutoencoderKL {
    let mut vae = vae.clone();
    vae.splitting = Splitting { tiling, slicing };
    vae
}

/// Scenes of the world that the autoencoder was trained on, `[b, 3, size, size]` in [-1, 1].
fn scenes(b: usize, size: u32) -> Tensor<4> {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let images: Vec<_> = (0..b).map(|_| render(&Scene::of(&Split::Train.draw(&mut rng), &mut rng), size)).collect();
    to_tensor(&images, &device()).unwrap() * 2.0 - 1.0
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
    let image = scenes(1, 64);
    let (latents, tiled) = (vae.encode(image.clone()).mean, split(&vae, Tiling::Pixels(64), false));
    assert!(host(tiled.encode(image).mean) == host(latents.clone()), "encoding");
    assert!(host(tiled.decode(latents.clone())) == host(vae.decode(latents)), "decoding");
}

#[test]
fn slices_change_nothing() {
    let (vae, images) = (autoencoder(), scenes(3, 64));
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
fn what_tiles_change_is_bounded() {
    let vae = autoencoder();
    let tiled = split(&vae, Tiling::Pixels(64), false);
    let image = scenes(4, 128);
    let latents = vae.encode(image.clone()).mean;
    let of_latents = apart(&host(tiled.encode(image).mean), &host(latents.clone()));
    let largest = host(latents.clone()).iter().fold(0.0, |max: f64, value| max.max(value.abs()));
    let pixels = |vae: &AutoencoderKL, latents: Tensor<4>| (vae.decode(latents) / 2.0 + 0.5).clamp(0.0, 1.0);
    let seam = apart(&host(pixels(&tiled, latents.clone())), &host(pixels(&vae, latents.clone())));
    println!("seam of images: largest {:.4}, mean {:.5}; of latents, whose largest is {largest:.2}: {of_latents:.4?}", seam[0], seam[1]);
    assert!(seam[0] < SEAM[0] && seam[1] < SEAM[1], "{seam:?}");
    assert!(seam[0] > 0.0, "the image was not taken in tiles");
}
