//! What an image looks like, without any model: five cheap numbers that move when a reward is exploited (images that go dark, grey, garish or
//! flat) and that a reward cannot be trained to hide.
//!
//! Luma is `Y = 0.299 R + 0.587 G + 0.114 B` of the gamma-encoded values (ITU-R BT.601), as Pillow's `convert("L")`. It is kept in integers, so
//! that the numbers of an image are the same on every machine.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The gradient from which a pixel counts as an edge: that of a vertical or horizontal step between two flat areas whose luma differs by a tenth.
pub const EDGE_THRESHOLD: f64 = 0.1;

/// The luma below which a pixel counts as dark.
pub const DARK_LUMA: f64 = 0.1;

/// Thousandths of a grey level, 255 of which are white.
const WHITE: i64 = 255_000;

/// Five numbers of one image.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PixelStats {
    /// The mean of the luma `Y`, in [0, 1]; 0 is black.
    pub brightness: f64,
    /// The mean of HSV's saturation `S = (max − min) / max` over R, G, B, in [0, 1]; 0 for black, white and grey.
    pub saturation: f64,
    /// The share of pixels with `√(Gx² + Gy²) / 4 > 0.1` ([`EDGE_THRESHOLD`]), in [0, 1]. `Gx` and `Gy` are the luma (0 to 1) under Sobel's kernel
    /// `[[−1, 0, 1], [−2, 0, 2], [−1, 0, 1]]` and its transpose, with the border repeated outwards. The weights of one side sum to 4, so that a step
    /// of height `h` has magnitude `h`; it marks the pixels on both of its sides.
    pub edge_density: f64,
    /// The entropy `−Σ p log₂ p` in bits of the histogram of the luma, rounded to 256 grey levels, in [0, 8]; 0 for a flat image.
    pub entropy: f64,
    /// The share of pixels with `Y < 0.1` ([`DARK_LUMA`]), in [0, 1].
    pub dark_fraction: f64,
}

impl PixelStats {
    /// The names of the five, in the order of [`PixelStats::values`].
    pub const NAMES: [&'static str; 5] = ["brightness", "saturation", "edge_density", "entropy", "dark_fraction"];

    /// The numbers of an 8-bit RGB image, row by row, three bytes per pixel.
    ///
    /// # Errors
    /// For an image without a pixel, and for a number of bytes that is not `3 · width · height`.
    pub fn of(rgb: &[u8], width: usize, height: usize) -> Result<Self> {
        let pixels = width.checked_mul(height).filter(|pixels| *pixels > 0 && pixels.checked_mul(3) == Some(rgb.len()));
        let count = pixels.ok_or(Error::Image { width, height, bytes: rgb.len() })? as f64;
        let luma: Vec<i64> = rgb.as_chunks::<3>().0.iter().map(luma).collect();
        let saturation: f64 = rgb.as_chunks::<3>().0.iter().map(saturation).sum();
        let dark = luma.iter().filter(|luma| (**luma as f64) < DARK_LUMA * WHITE as f64).count();
        Ok(Self {
            brightness: luma.iter().sum::<i64>() as f64 / count / WHITE as f64,
            saturation: saturation / count,
            edge_density: edges(&luma, width, height) as f64 / count,
            entropy: entropy(&luma),
            dark_fraction: dark as f64 / count,
        })
    }

    /// The five numbers, in the order of [`PixelStats::NAMES`].
    pub fn values(&self) -> [f64; 5] {
        [self.brightness, self.saturation, self.edge_density, self.entropy, self.dark_fraction]
    }
}

/// How far apart two images of one size are, given their bytes: the root mean square of the differences, in [0, 1]; 1 is black against white.
pub fn distance(one: &[u8], other: &[u8]) -> f64 {
    let squares = one.iter().zip(other).map(|(one, other)| (f64::from(*one) - f64::from(*other)).powi(2));
    (squares.sum::<f64>() / one.len() as f64).sqrt() / 255.0
}

/// That of every two of some images.
pub fn distances(images: &[&[u8]]) -> Vec<f64> {
    let pairs = (0..images.len()).flat_map(|i| (i + 1..images.len()).map(move |j| (i, j)));
    pairs.map(|(i, j)| distance(images[i], images[j])).collect()
}

fn luma([red, green, blue]: &[u8; 3]) -> i64 {
    299 * i64::from(*red) + 587 * i64::from(*green) + 114 * i64::from(*blue)
}

fn saturation([red, green, blue]: &[u8; 3]) -> f64 {
    let (largest, smallest) = (red.max(green).max(blue), red.min(green).min(blue));
    if *largest == 0 { 0.0 } else { f64::from(largest - smallest) / f64::from(*largest) }
}

/// How many pixels have a gradient above the threshold.
fn edges(luma: &[i64], width: usize, height: usize) -> usize {
    let limit = (4.0 * EDGE_THRESHOLD * WHITE as f64).powi(2);
    let mut found = 0;
    for y in 0..height {
        let rows = [y.saturating_sub(1), y, (y + 1).min(height - 1)].map(|row| &luma[row * width..(row + 1) * width]);
        for x in 0..width {
            let (left, right) = (x.saturating_sub(1), (x + 1).min(width - 1));
            let across = |row: &[i64]| row[right] - row[left];
            let along = |row: &[i64]| row[left] + 2 * row[x] + row[right];
            let gx = across(rows[0]) + 2 * across(rows[1]) + across(rows[2]);
            let gy = along(rows[2]) - along(rows[0]);
            found += usize::from((gx * gx + gy * gy) as f64 > limit);
        }
    }
    found
}

fn entropy(luma: &[i64]) -> f64 {
    let mut histogram = [0u64; 256];
    luma.iter().for_each(|luma| histogram[((luma + 500) / 1000) as usize] += 1);
    let shares = histogram.iter().filter(|count| **count > 0).map(|count| *count as f64 / luma.len() as f64);
    // 0 − x, for the negative of an empty sum of zeros is −0.
    0.0 - shares.map(|share| share * share.log2()).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image of one byte a pixel, grey.
    fn grey(levels: &[u8], width: usize) -> PixelStats {
        let rgb: Vec<u8> = levels.iter().flat_map(|level| [*level; 3]).collect();
        PixelStats::of(&rgb, width, levels.len() / width).unwrap()
    }

    #[test]
    fn flat_images_have_a_brightness_and_nothing_else() {
        let black = PixelStats { brightness: 0.0, saturation: 0.0, edge_density: 0.0, entropy: 0.0, dark_fraction: 1.0 };
        assert_eq!(grey(&[0; 6], 3), black);
        assert_eq!(grey(&[255; 6], 3), PixelStats { brightness: 1.0, dark_fraction: 0.0, ..black });
        // 51 / 255.
        assert_eq!(grey(&[51], 1), PixelStats { brightness: 0.2, dark_fraction: 0.0, ..black });
    }

    #[test]
    fn colours_weigh_as_in_bt601_and_are_saturated_by_their_range() {
        // Red, green, blue, and a pink of S = (200 − 100) / 200.
        let found = PixelStats::of(&[255, 0, 0, 0, 255, 0, 0, 0, 255, 200, 100, 100], 4, 1).unwrap();
        assert!((found.saturation - 3.5 / 4.0).abs() < 1e-15);
        let pink = (0.299 * 200.0 + 0.701 * 100.0) / 255.0;
        assert!((found.brightness - (0.299 + 0.587 + 0.114 + pink) / 4.0).abs() < 1e-15);
        // Four grey levels, each once; none dark, for blue has luma 0.114.
        assert_eq!((found.entropy, found.dark_fraction), (2.0, 0.0));
    }

    #[test]
    fn an_edge_is_a_step_of_more_than_a_tenth() {
        let step = |low: u8, high: u8| {
            let row = [low, low, low, high, high, high, high, high];
            grey(&[row; 4].concat(), 8)
        };
        // Columns 2 and 3 of 8, whichever way the step goes and wherever the rows end.
        assert_eq!(step(0, 255).edge_density, 0.25);
        assert_eq!(step(255, 0).edge_density, 0.25);
        // A tenth is 25.5 grey levels.
        assert_eq!(step(100, 126).edge_density, 0.25);
        assert_eq!(step(100, 125).edge_density, 0.0);
        let rows = [[0u8; 4], [0; 4], [255; 4], [255; 4]].concat();
        assert_eq!(grey(&rows, 4).edge_density, 0.5);
    }

    #[test]
    fn entropy_is_that_of_the_shares() {
        // ½, ¼, ¼: ½ · 1 + ½ · 2 bits.
        assert_eq!(grey(&[0, 0, 100, 200], 2).entropy, 1.5);
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(grey(&all, 16).entropy, 8.0);
    }

    #[test]
    fn dark_is_below_a_tenth() {
        // 0.1 · 255 = 25.5.
        assert_eq!(grey(&[0, 25, 26, 255], 4).dark_fraction, 0.5);
    }

    #[test]
    fn an_image_of_another_size_is_refused() {
        let error = PixelStats::of(&[0; 12], 2, 3).unwrap_err();
        assert_eq!(error, Error::Image { width: 2, height: 3, bytes: 12 });
        assert!(error.to_string().contains("2 x 3") && error.to_string().contains("18"), "{error}");
        for (width, height) in [(0, 0), (0, 4), (usize::MAX, 2), (usize::MAX / 2, 2)] {
            assert!(PixelStats::of(&[], width, height).is_err(), "{width} x {height}");
        }
    }
}
