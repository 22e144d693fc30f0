//! Ways to spoil an image.

use image::{Rgb, RgbImage};
use rand::{Rng, RngExt};

/// A standard normal number (Box-Muller).
fn normal(rng: &mut impl Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * rng.random::<f32>()).cos()
}

/// Adds gaussian noise of a standard deviation in 0 to 255, and clips.
pub fn noise(image: &mut RgbImage, sigma: f32, rng: &mut impl Rng) {
    for value in image.iter_mut() {
        *value = (f32::from(*value) + sigma * normal(rng)).round().clamp(0.0, 255.0) as u8;
    }
}

/// Averages with weights that `weight` gives for the squared distance, up to `reach` pixels away; the border repeats.
fn average(image: &mut RgbImage, reach: i32, weight: impl Fn(i32) -> f32) {
    let source = image.clone();
    let at = |x: i32, y: i32| source.get_pixel(x.clamp(0, source.width() as i32 - 1) as u32, y.clamp(0, source.height() as i32 - 1) as u32);
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        let mut sums = [0.0; 4];
        for (dx, dy) in (-reach..=reach).flat_map(|dy| (-reach..=reach).map(move |dx| (dx, dy))) {
            let weight = weight(dx * dx + dy * dy);
            let Rgb([r, g, b]) = *at(x as i32 + dx, y as i32 + dy);
            sums = [sums[0] + weight * f32::from(r), sums[1] + weight * f32::from(g), sums[2] + weight * f32::from(b), sums[3] + weight];
        }
        *pixel = Rgb([0, 1, 2].map(|channel| (sums[channel] / sums[3]).round() as u8));
    }
}

/// Gaussian blur of a standard deviation in pixels.
pub fn blur(image: &mut RgbImage, sigma: f32) {
    if sigma > 0.0 {
        average(image, (3.0 * sigma).ceil() as i32, |squared| (-squared as f32 / (2.0 * sigma * sigma)).exp());
    }
}

/// Takes away contrast: every pixel comes nearer to middle gray, by `share` of the way.
pub fn dull(image: &mut RgbImage, share: f32) {
    for value in image.iter_mut() {
        *value = (f32::from(*value) + share * (128.0 - f32::from(*value))).round() as u8;
    }
}

/// Much like an autoencoder's reconstruction: a slight blur, noise of 6, and colours up to 8 off.
pub fn reconstruct(image: &mut RgbImage, rng: &mut impl Rng) {
    average(image, 1, |squared| if squared == 0 { 0.6 } else { 0.05 });
    let drift: [f32; 3] = std::array::from_fn(|_| rng.random_range(-8.0..8.0));
    for pixel in image.pixels_mut() {
        for channel in 0..3 {
            pixel[channel] = (f32::from(pixel[channel]) + drift[channel]).round().clamp(0.0, 255.0) as u8;
        }
    }
    noise(image, 6.0, rng);
}

/// Covers the left `share` of a box around `center` with a patch of a colour, which reaches over the box's top and bottom by `over`.
/// Lengths in image sides.
pub fn cover(image: &mut RgbImage, center: [f32; 2], extent: f32, over: f32, share: f32, color: Rgb<u8>) {
    let side = image.width() as f32;
    let [left, top] = center.map(|value| value - extent / 2.0);
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        let (x, y) = ((x as f32 + 0.5) / side, (y as f32 + 0.5) / side);
        if (left..left + share * extent).contains(&x) && (top - over..top + extent + over).contains(&y) {
            *pixel = color;
        }
    }
}
