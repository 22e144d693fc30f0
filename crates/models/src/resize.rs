//! Images made ready for an encoder: bicubic resize, centre crop or padding, normalisation.
//!
//! A resize is two small matrices, computed on the host in f64 and applied by matrix products. So its gradient is exact and it
//! runs on every device.
//!
//! Sources: PyTorch's `upsample_bicubic2d` (a = −0.75, half-pixel centres, edges repeated) and its antialiased form, which is
//! Pillow's `Resample.c` (a = −0.5, a kernel that widens with the reduction, weights summing to 1); torchvision's
//! `Resize(size)` and `CenterCrop(size)`; open_clip's `transform.py` and HPS v2's copy of it.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use serde::Deserialize;

/// The means that OpenAI CLIP and BLIP subtract from the channels of an image in `[0, 1]`.
pub const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// The standard deviations by which they then divide the channels.
pub const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Whether a resize to a smaller size averages over all pixels (antialiasing) or samples some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Antialias {
    /// The kernel widens with the reduction, as in Pillow and in torchvision's `antialias=True`.
    On,
    /// Four taps per axis whatever the reduction, as ReFL's released script resizes tensors.
    Off,
}

/// The weights of one output pixel: those of `first`, `first + 1`, …
struct Taps {
    first: usize,
    weights: Vec<f64>,
}

/// Keys' cubic kernel.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// The taps of output pixels `kept` of a row of `input` pixels resized to `output`.
fn taps(input: usize, output: usize, kept: Range<usize>, antialias: Antialias) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    let widened = |i: usize| {
        let (stretch, center) = (scale.max(1.0), scale * (i as f64 + 0.5));
        // A negative float becomes 0 in a cast to usize, which is the clamp Pillow makes.
        let first = (center - 2.0 * stretch + 0.5) as usize;
        let end = ((center + 2.0 * stretch + 0.5) as usize).min(input);
        let weights: Vec<f64> = (first..end).map(|j| cubic((j as f64 + 0.5 - center) / stretch, -0.5)).collect();
        let sum: f64 = weights.iter().sum();
        Taps { first, weights: weights.iter().map(|w| w / sum).collect() }
    };
    let four = |i: usize| {
        let center = scale * (i as f64 + 0.5) - 0.5;
        let places = [-1.0, 0.0, 1.0, 2.0].map(|offset| center.floor() + offset);
        let clamped = places.map(|place| place.clamp(0.0, input as f64 - 1.0) as usize);
        let first = clamped[0];
        let mut weights = vec![0.0; clamped[3] - first + 1];
        for (place, j) in places.iter().zip(clamped) {
            weights[j - first] += cubic(place - center, -0.75);
        }
        Taps { first, weights }
    };
    match antialias {
        Antialias::On => kept.map(widened).collect(),
        Antialias::Off => kept.map(four).collect(),
    }
}

/// One axis of a resize followed by a crop or by padding with zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Axis {
    input: usize,
    output: usize,
    kept: Range<usize>,
    /// Zeros before and after what is kept.
    padding: [usize; 2],
}

impl Axis {
    fn whole(input: usize, output: usize) -> Self {
        Self { input, output, kept: 0..output, padding: [0, 0] }
    }

    /// The middle `size` of `output` pixels, or all of them in the middle of `size`.
    fn centred(input: usize, output: usize, size: usize) -> Self {
        if output < size {
            let before = (size - output) / 2;
            return Self { padding: [before, size - output - before], ..Self::whole(input, output) };
        }
        // Python's round() in CenterCrop: halves go to the even neighbour.
        let first = ((output - size) as f64 / 2.0).round_ties_even() as usize;
        Self { kept: first..first + size, ..Self::whole(input, output) }
    }

    /// Pixels that come out.
    fn len(&self) -> usize {
        self.padding[0] + self.kept.len() + self.padding[1]
    }

    fn changes_nothing(&self) -> bool {
        self.input == self.output && self.kept == (0..self.input) && self.padding == [0, 0]
    }

    /// Whether Pillow resizes along this axis, the rows, before it does along `columns`: since version 13 where it saves work, never before.
    fn is_pillows_first(&self, columns: &Self) -> bool {
        let less = |axis: &Self| axis.input as i64 - axis.output as i64;
        less(self) > 0 && less(self) > 2 * less(columns)
    }

    fn taps(&self, antialias: Antialias) -> Vec<Taps> {
        let zeros = |count| (0..count).map(|_| Taps { first: 0, weights: Vec::new() });
        let kept = taps(self.input, self.output, self.kept.clone(), antialias);
        zeros(self.padding[0]).chain(kept).chain(zeros(self.padding[1])).collect()
    }

    /// The `[len, input]` matrix that turns a row or a column of the image into the result's.
    fn matrix(&self, antialias: Antialias, device: &Device) -> Tensor<2> {
        let mut values = vec![0f32; self.len() * self.input];
        for (row, taps) in values.chunks_exact_mut(self.input).zip(self.taps(antialias)) {
            for (value, weight) in row[taps.first..].iter_mut().zip(&taps.weights) {
                *value = *weight as f32;
            }
        }
        Tensor::from_data(TensorData::new(values, [self.len(), self.input]), device)
    }
}

fn resample(images: Tensor<4>, [rows, columns]: [Axis; 2], antialias: Antialias) -> Tensor<4> {
    let [b, c, h, w] = images.dims();
    // The matrices are constants: on the plain device they keep nothing on the tape.
    let device = images.device().without_autodiff();
    let images = if columns.changes_nothing() {
        images
    } else {
        images.reshape([b * c * h, w]).matmul(columns.matrix(antialias, &device).transpose()).reshape([b, c, h, columns.len()])
    };
    if rows.changes_nothing() {
        return images;
    }
    let w = columns.len();
    // Rows go last in a product from the right as well, so that no matrix is broadcast over the batch.
    let turned = images.swap_dims(2, 3).reshape([b * c * w, h]).matmul(rows.matrix(antialias, &device).transpose());
    turned.reshape([b, c, w, rows.len()]).swap_dims(2, 3)
}

/// Bicubic resize, `[b, c, h, w]` → `[b, c, size[0], size[1]]`. Values may overshoot their range, as PyTorch's do.
///
/// # Panics
/// When a size is 0.
pub fn resize_bicubic(images: Tensor<4>, size: [usize; 2], antialias: Antialias) -> Tensor<4> {
    let [_, _, h, w] = images.dims();
    assert!(h > 0 && w > 0 && size[0] > 0 && size[1] > 0, "a resize from {h}x{w} to {}x{}", size[0], size[1]);
    resample(images, [Axis::whole(h, size[0]), Axis::whole(w, size[1])], antialias)
}

/// Shorter side to `size`, then the middle `size` × `size`: torchvision's `Resize` and `CenterCrop`, in one step that never
/// computes pixels outside the crop.
///
/// # Panics
/// When a size is 0.
pub fn resize_and_crop(images: Tensor<4>, size: usize, antialias: Antialias) -> Tensor<4> {
    let [_, _, h, w] = images.dims();
    resample(images, shorter_side_and_crop([h, w], size), antialias)
}

fn shorter_side_and_crop([h, w]: [usize; 2], size: usize) -> [Axis; 2] {
    assert!(h > 0 && w > 0 && size > 0, "a resize from {h}x{w} to {size}");
    let shorter = h.min(w);
    [h, w].map(|input| Axis::centred(input, size * input / shorter, size))
}

/// How an image of any shape becomes a square. The names are those of `resize_mode` in `open_clip_config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResizeMode {
    /// The shorter side is brought to size, the middle is kept: CLIP's, BLIP's, PickScore's.
    #[default]
    Shortest,
    /// The longer side is brought to size, the rest is black: HPS v2's. The odd pixel of black is on the right or below.
    Longest,
    /// Both sides are brought to size, whatever becomes of the proportions.
    Squash,
}

impl ResizeMode {
    fn axes(self, [h, w]: [usize; 2], size: usize) -> [Axis; 2] {
        assert!(h > 0 && w > 0 && size > 0, "a resize from {h}x{w} to {size}");
        let scale = size as f64 / h.max(w) as f64;
        // Python's round(): halves go to the even neighbour. A line of pixels stays a line.
        let scaled = |input: usize| ((input as f64 * scale).round_ties_even() as usize).max(1);
        match self {
            Self::Shortest => shorter_side_and_crop([h, w], size),
            Self::Longest => [h, w].map(|input| Axis::centred(input, scaled(input), size)),
            Self::Squash => [h, w].map(|input| Axis::whole(input, size)),
        }
    }
}

/// What makes an encoder's input of an image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocessing {
    /// Height and width of the input, in pixels.
    pub size: usize,
    pub resize_mode: ResizeMode,
    /// What is subtracted from each channel in `[0, 1]`; the black of padding too.
    pub mean: [f64; 3],
    /// What each channel is then divided by.
    pub std: [f64; 3],
}

impl Preprocessing {
    /// CLIP's and BLIP's.
    pub fn clip(size: usize) -> Self {
        Self { size, resize_mode: ResizeMode::Shortest, mean: CLIP_MEAN, std: CLIP_STD }
    }

    /// `[b, 3, h, w]` in `[0, 1]` → `[b, 3, size, size]`, differentiable. Values that overshoot their range are not clamped.
    ///
    /// # Panics
    /// When a size is 0.
    pub fn tensors(&self, images: Tensor<4>, antialias: Antialias) -> Tensor<4> {
        let [_, _, h, w] = images.dims();
        normalize(resample(images, self.resize_mode.axes([h, w], self.size), antialias), self.mean, self.std)
    }

    /// `rgb` `[h, w, 3]`, row by row → `[1, 3, size, size]`, as Python's scorers make it of an image file: Pillow resizes it in bytes.
    ///
    /// Pillow rounds and clamps to bytes after each of its two passes. The result differs from [`tensors`](Self::tensors) by about a grey
    /// level, more where the kernel overshoots black or white; use this one to reproduce a published score of a file.
    ///
    /// # Panics
    /// When `rgb` does not have `3 h w` bytes or a size is 0.
    pub fn bytes(&self, rgb: &[u8], [h, w]: [usize; 2], device: &Device) -> Tensor<4> {
        assert_eq!(rgb.len(), 3 * h * w, "an RGB image of {h} by {w} pixels");
        let size = self.size;
        let [rows, columns] = self.resize_mode.axes([h, w], size);
        // Along rows, a whole line of pixels is what moves together.
        let square = if rows.is_pillows_first(&columns) {
            resample_bytes(&resample_bytes(rgb, 3 * w, &rows, 1), 1, &columns, 3)
        } else {
            resample_bytes(&resample_bytes(rgb, 1, &columns, 3), 3 * size, &rows, 1)
        };
        let mut values = vec![0f32; 3 * size * size];
        for (pixel, rgb) in square.chunks_exact(3).enumerate() {
            for (channel, byte) in rgb.iter().enumerate() {
                let value = (f64::from(*byte) / 255.0 - self.mean[channel]) / self.std[channel];
                values[channel * size * size + pixel] = value as f32;
            }
        }
        Tensor::from_data(TensorData::new(values, [1, 3, size, size]), device)
    }
}

/// `(images - mean) / std` per channel; `images` `[b, 3, h, w]` in `[0, 1]`.
pub fn normalize(images: Tensor<4>, mean: [f64; 3], std: [f64; 3]) -> Tensor<4> {
    let device = images.device().without_autodiff();
    let channels = |values: [f64; 3]| Tensor::<1>::from_data(values.map(|v| v as f32), &device).reshape([1, 3, 1, 1]);
    (images - channels(mean)) / channels(std)
}

/// The input of CLIP and BLIP encoders for `images` `[b, 3, h, w]` in `[0, 1]`: [`Preprocessing::clip`]'s
/// [`tensors`](Preprocessing::tensors).
pub fn preprocess(images: Tensor<4>, size: usize, antialias: Antialias) -> Tensor<4> {
    Preprocessing::clip(size).tensors(images, antialias)
}

/// The input that Python's scorers make of an image file for CLIP and BLIP: [`Preprocessing::clip`]'s [`bytes`](Preprocessing::bytes).
///
/// `rgb` is `[h, w, 3]`, row by row; returns `[1, 3, size, size]`.
///
/// # Panics
/// When `rgb` does not have `3 h w` bytes or a size is 0.
pub fn preprocess_bytes(rgb: &[u8], [h, w]: [usize; 2], size: usize, device: &Device) -> Tensor<4> {
    Preprocessing::clip(size).bytes(rgb, [h, w], device)
}

/// Pillow's pass over one axis. Bytes of one place lie `stride · channels` together; products are summed in 22-bit fixed point.
fn resample_bytes(bytes: &[u8], stride: usize, axis: &Axis, channels: usize) -> Vec<u8> {
    const PRECISION: u32 = 22;
    let fixed = |weight: &f64| (weight * f64::from(1 << PRECISION)).round() as i64;
    let group = stride * channels;
    let taps: Vec<(usize, Vec<i64>)> =
        axis.taps(Antialias::On).into_iter().map(|taps| (taps.first, taps.weights.iter().map(fixed).collect())).collect();
    let line = |line: &[u8]| -> Vec<u8> {
        let pixel = |(first, weights): &(usize, Vec<i64>)| -> Vec<u8> {
            let sum = |offset: usize| {
                let products = weights.iter().enumerate().map(|(j, weight)| weight * i64::from(line[(first + j) * group + offset]));
                let rounded = ((1 << (PRECISION - 1)) + products.sum::<i64>()) >> PRECISION;
                rounded.clamp(0, 255) as u8
            };
            (0..group).map(sum).collect()
        };
        taps.iter().flat_map(pixel).collect()
    };
    bytes.chunks_exact(axis.input * group).flat_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;

    #[test]
    fn weights_sum_to_one_and_constants_stay() {
        for (input, output) in [(100, 32), (32, 100), (7, 7), (1, 5), (5, 1), (3, 2)] {
            for antialias in [Antialias::On, Antialias::Off] {
                let image = Tensor::<4>::full([1, 1, input, input], 0.25, &Device::flex());
                let expected = Tensor::<4>::full([1, 1, output, output], 0.25, &Device::flex());
                let tolerance = Tolerance::absolute(1e-6);
                resize_bicubic(image, [output; 2], antialias).into_data().assert_approx_eq::<f32>(&expected.into_data(), tolerance);
            }
        }
    }

    #[test]
    fn halving_without_antialias_has_the_textbook_weights() {
        // Centres fall between pixels: a = -0.75 at half-way is -3/32, 19/32, 19/32, -3/32, edges repeated.
        let image = Tensor::<4>::from_data([[[[0.0, 1.0, 0.0, 0.0]]]], &Device::flex());
        let row = resize_bicubic(image, [1, 2], Antialias::Off);
        row.into_data().assert_approx_eq::<f32>(&[[[[19.0 / 32.0, -3.0 / 32.0]]]].into(), Tolerance::absolute(1e-6));
    }

    #[test]
    fn cropping_while_resizing_is_cropping_afterwards() {
        let values: Vec<f32> = (0..3 * 9 * 16).map(|i| ((i * 37) % 101) as f32 / 101.0).collect();
        let image = Tensor::<4>::from_data(TensorData::new(values, [1, 3, 9, 16]), &Device::flex());
        // 16 · 6 / 9 = 10.67, cut to 10; two columns go on either side.
        let after = resize_bicubic(image.clone(), [6, 10], Antialias::On).narrow(3, 2, 6);
        resize_and_crop(image, 6, Antialias::On).into_data().assert_approx_eq::<f32>(&after.into_data(), Tolerance::absolute(1e-6));
    }

    #[test]
    fn an_image_of_the_right_size_passes_unchanged() {
        let image = Tensor::<4>::from_data([[[[0.1, 0.9], [0.3, 0.7]]]], &Device::flex());
        resize_and_crop(image.clone(), 2, Antialias::On).into_data().assert_eq(&image.into_data(), true);
        let bytes: Vec<u8> = (0..12).map(|i| i * 20).collect();
        let seen = preprocess_bytes(&bytes, [2, 2], 2, &Device::flex());
        let as_floats =
            Tensor::<4>::from_data(TensorData::new(bytes.iter().map(|b| f32::from(*b) / 255.0).collect(), [1, 2, 2, 3]), &Device::flex());
        let expected = normalize(as_floats.permute([0, 3, 1, 2]), CLIP_MEAN, CLIP_STD);
        seen.into_data().assert_approx_eq::<f32>(&expected.into_data(), Tolerance::absolute(1e-5));
    }

    #[test]
    fn the_longer_side_fits_and_the_odd_line_of_black_is_last() {
        let image = Tensor::<4>::ones([1, 3, 2, 5], &Device::flex());
        let preprocessing = Preprocessing { size: 5, resize_mode: ResizeMode::Longest, mean: [0.0; 3], std: [1.0; 3] };
        let rows = |seen: Tensor<4>| seen.narrow(1, 0, 1).narrow(3, 2, 1).into_data().iter::<f32>().collect::<Vec<_>>();
        assert_eq!(rows(preprocessing.tensors(image, Antialias::On)), [0.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(rows(preprocessing.bytes(&[255; 30], [2, 5], &Device::flex())), [0.0, 1.0, 1.0, 0.0, 0.0]);
        // A line of pixels stays a line, however long it is.
        let line = Tensor::<4>::ones([1, 3, 1, 100], &Device::flex());
        assert_eq!(rows(preprocessing.tensors(line, Antialias::On)).iter().filter(|value| **value > 0.5).count(), 1);
    }
}
