//! Large images and batches in parts: overlapping tiles whose seams are blended, and one image of the batch at a time.
//!
//! Source: diffusers `models/autoencoders/autoencoder_kl.py` (`enable_tiling`, `enable_slicing`, `tiled_encode`, `tiled_decode`, `blend_v`,
//! `blend_h`). Sizes, strides and blending are the same for tiles of a multiple of 4 latent pixels. Other sizes are rounded such that the
//! parts still fit together, which they do not there.

use std::fmt;
use std::str::FromStr;

use burn::tensor::{Tensor, TensorData};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

use super::AutoencoderConfig;
use crate::footprint::{Ledger, Traced};

/// The largest tile that is chosen unasked, in pixels. Stable Diffusion XL's autoencoder names 1024, with which an image of 1024 pixels would
/// be a single tile.
const LARGEST: usize = 512;
/// A tile's height and width in pixels must be a multiple of this: four latent pixels of Stable Diffusion, whose quarter is a whole number.
const UNIT: usize = 32;
/// Neighbouring tiles share this part of a tile, as a divisor: a quarter.
const OVERLAP: usize = 4;

/// Whether the autoencoder takes images in overlapping square tiles. In configs and arguments: `true`, `false`, or the tile's height and
/// width in pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tiling {
    /// Whole images.
    #[default]
    Off,
    /// Tiles of the autoencoder's own `sample_size`, at most 512 pixels.
    Own,
    /// Tiles of this height and width in pixels.
    Pixels(usize),
}

/// The parts in which the autoencoder takes its input. Fewer pixels at once need less memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Splitting {
    /// Whether an image that is larger than a tile is taken in tiles. Their seams are blended; the image differs slightly from one that is
    /// taken whole, because the norms and the attention of a tile see that tile alone.
    pub tiling: Tiling,
    /// Whether the images of a batch are taken one at a time. On the CPU, the results are the same to the bit.
    pub slicing: bool,
}

impl Tiling {
    /// What is wrong with this tiling, as the end of a sentence about it: `"is 100; expected …"`.
    pub fn finding(self) -> Option<String> {
        match self {
            Self::Pixels(pixels) if pixels == 0 || pixels % UNIT != 0 => {
                Some(format!("is {pixels}; expected true, false, or a tile's height and width in pixels, a multiple of {UNIT}"))
            }
            _ => None,
        }
    }

    /// Height and width of a tile in pixels, for an autoencoder of this shape; `None` for whole images.
    pub fn pixels(self, config: &AutoencoderConfig) -> Option<usize> {
        match self {
            Self::Off => None,
            Self::Own => Some(config.sample_size.map_or(LARGEST, |size| size.min(LARGEST))),
            Self::Pixels(pixels) => Some(pixels),
        }
    }
}

impl FromStr for Tiling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let tiling = match text {
            "true" => Self::Own,
            "false" => Self::Off,
            _ => Self::Pixels(text.parse().map_err(|_| format!("{text:?} is not a tile size; expected a number of pixels"))?),
        };
        tiling.finding().map_or(Ok(tiling), |finding| Err(format!("the tile size {finding}")))
    }
}

impl Serialize for Tiling {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::Own => serializer.serialize_bool(true),
            Self::Pixels(pixels) => serializer.serialize_u64(*pixels as u64),
        }
    }
}

impl<'de> Deserialize<'de> for Tiling {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SwitchOrSize;

        impl Visitor<'_> for SwitchOrSize {
            type Value = Tiling;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "true, false, or a tile's height and width in pixels, a multiple of {UNIT}")
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Tiling, E> {
                Ok(if on { Tiling::Own } else { Tiling::Off })
            }

            fn visit_u64<E: de::Error>(self, pixels: u64) -> Result<Tiling, E> {
                let pixels = usize::try_from(pixels).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(pixels), &self))?;
                Ok(Tiling::Pixels(pixels))
            }

            fn visit_i64<E: de::Error>(self, pixels: i64) -> Result<Tiling, E> {
                let pixels = usize::try_from(pixels).map_err(|_| E::invalid_value(de::Unexpected::Signed(pixels), &self))?;
                Ok(Tiling::Pixels(pixels))
            }
        }

        deserializer.deserialize_any(SwitchOrSize)
    }
}

impl Splitting {
    /// `network` over the parts of `input` `[b, c, h, w]`, put together again. `tiles` are those along both axes; `None` for whole images.
    pub(super) fn run(self, input: Tensor<4>, tiles: Option<Tiles>, network: impl Fn(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        let run = |input| match tiles {
            Some(tiles) => tiles.run(input, &network),
            None => network(input),
        };
        let [batch, ..] = input.dims();
        if self.slicing && batch > 1 {
            let images = (0..batch).map(|image| run(input.clone().narrow(0, image, 1)));
            return Tensor::cat(images.collect(), 0);
        }
        run(input)
    }
}

impl Splitting {
    /// [`run`](Self::run) of shapes. The output has so many channels and, along each axis, the input's pixels times and divided by two factors.
    pub(super) fn trace(
        self,
        ledger: &Ledger,
        input: Traced,
        tiles: Option<Tiles>,
        (channels, times, divided): (usize, usize, usize),
        network: impl Fn(Traced) -> Traced,
    ) -> Traced {
        let &[batch, _, height, width] = input.dims() else { panic!("the autoencoder takes images, not {:?}", input.dims()) };
        let whole = |rows: usize| [rows, channels, height * times / divided, width * times / divided];
        let run = |input: Traced| match tiles {
            Some(tiles) if height > tiles.size || width > tiles.size => {
                let rows = input.dims()[0];
                let done = tiles.trace(ledger, &input, &network);
                ledger.cat_as(done, &whole(rows))
            }
            _ => network(input),
        };
        if self.slicing && batch > 1 {
            let shape = [1, input.dims()[1], height, width];
            let images = (0..batch).map(|_| run(ledger.part(&input, &shape))).collect();
            return ledger.cat(images, 0);
        }
        run(input)
    }
}

/// Square tiles that cover an image. Each begins `stride` after the one before it and shares a margin with it, in which one fades into the
/// other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiles {
    /// Height and width of a tile, in pixels of the input.
    size: usize,
    /// From the beginning of one tile to that of the next, in pixels of the input.
    stride: usize,
    /// The same in pixels of the output: the part of a tile that is kept.
    kept: usize,
    /// The margin that two tiles share, in pixels of the output.
    blended: usize,
}

impl Tiles {
    /// For a decoder, which makes `downscale` pixels of a latent pixel; tiles of `pixels` pixels of the image.
    pub(super) fn of_latents(pixels: usize, downscale: usize) -> Self {
        let (size, overlap) = in_latents(pixels, downscale);
        Self { size, stride: size - overlap, kept: (size - overlap) * downscale, blended: overlap * downscale }
    }

    /// For an encoder, which makes a latent pixel of `downscale` pixels; tiles of `pixels` pixels of the image.
    pub(super) fn of_images(pixels: usize, downscale: usize) -> Self {
        let (size, overlap) = in_latents(pixels, downscale);
        Self { size: size * downscale, stride: (size - overlap) * downscale, kept: size - overlap, blended: overlap }
    }

    /// `network` over the tiles of `input` `[b, c, h, w]`, blended into one image. An input that fits into a tile is taken whole.
    fn run(self, input: Tensor<4>, network: &impl Fn(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = input.dims();
        if height <= self.size && width <= self.size {
            return network(input);
        }
        let (mut rows, mut above) = (Vec::new(), Vec::<Tensor<4>>::new());
        for top in (0..height).step_by(self.stride) {
            let row = input.clone().narrow(2, top, self.size.min(height - top));
            let mut tiles = Vec::<Tensor<4>>::new();
            for (column, left) in (0..width).step_by(self.stride).enumerate() {
                let mut tile = network(row.clone().narrow(3, left, self.size.min(width - left)));
                if let Some(above) = above.get(column) {
                    tile = faded(above, tile, 2, self.blended);
                }
                if let Some(beside) = tiles.last() {
                    tile = faded(beside, tile, 3, self.blended);
                }
                tiles.push(tile);
            }
            rows.push(Tensor::cat(tiles.iter().map(|tile| self.kept_of(tile)).collect(), 3));
            above = tiles;
        }
        Tensor::cat(rows, 2)
    }

    /// The output tiles of `input`, in shapes.
    fn trace(self, ledger: &Ledger, input: &Traced, network: &impl Fn(Traced) -> Traced) -> Vec<Traced> {
        let &[rows, channels, height, width] = input.dims() else { panic!("tiles of {:?}", input.dims()) };
        let places = (0..height).step_by(self.stride).flat_map(|top| (0..width).step_by(self.stride).map(move |left| (top, left)));
        let tile = |(top, left): (usize, usize)| {
            let shape = [rows, channels, self.size.min(height - top), self.size.min(width - left)];
            network(ledger.part(input, &shape))
        };
        places.map(tile).collect()
    }

    /// The part of an output tile that no later tile covers, except where this one fades out.
    fn kept_of(self, tile: &Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = tile.dims();
        tile.clone().narrow(2, 0, self.kept.min(height)).narrow(3, 0, self.kept.min(width))
    }
}

/// Height and width of a tile in latent pixels, and how many of them neighbours share.
fn in_latents(pixels: usize, downscale: usize) -> (usize, usize) {
    let size = (pixels / downscale).max(2);
    (size, (size / OVERLAP).max(1))
}

/// `tile`, whose first `extent` pixels along `axis` fade linearly from the last ones of `before`, from all of `before` to almost none of it.
fn faded(before: &Tensor<4>, tile: Tensor<4>, axis: usize, extent: usize) -> Tensor<4> {
    let (ends, length) = (before.dims()[axis], tile.dims()[axis]);
    let extent = extent.min(ends).min(length);
    let ramp: Vec<f32> = (0..extent).map(|at| (at as f64 / extent as f64) as f32).collect();
    let mut shape = [1; 4];
    shape[axis] = extent;
    let share = Tensor::<4>::from_data(TensorData::new(ramp, shape), &tile.device());
    let margin = before.clone().narrow(axis, ends - extent, extent) * (1.0 - share.clone()) + tile.clone().narrow(axis, 0, extent) * share;
    if extent == length { margin } else { Tensor::cat(vec![margin, tile.narrow(axis, extent, length - extent)], axis) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::resnet::nearest;
    use burn::tensor::Device;

    /// Of a network that sees one pixel at a time, tiles change nothing, wherever they meet.
    #[test]
    fn tiles_of_a_local_network_make_the_whole() {
        for (height, width) in [(16, 16), (20, 33), (9, 50), (8, 17)] {
            let values: Vec<f32> = (0..2 * height * width).map(|i| (i as f32 * 0.37).sin()).collect();
            let latents = Tensor::<4>::from_data(TensorData::new(values, [1, 2, height, width]), &Device::flex());
            let decode = |x: Tensor<4>| {
                let [_, _, h, w] = x.dims();
                nearest(x, [2 * h, 2 * w])
            };
            let tiled = Tiles::of_latents(16, 2).run(latents.clone(), &decode);
            let off = (tiled.clone() - decode(latents.clone())).abs().max().into_scalar::<f32>();
            assert!(off < 1e-6 && tiled.dims() == [1, 2, 2 * height, 2 * width], "{height}x{width}: {off}");
            // So do gradients, through the margins where two tiles share.
            let gradient = |run: &dyn Fn(Tensor<4>) -> Tensor<4>| {
                let latents = latents.clone().autodiff().require_grad();
                let output = run(latents.clone());
                let gradients = output.clone().square().sum().backward();
                latents.grad(&gradients).unwrap()
            };
            let off = gradient(&|x| Tiles::of_latents(16, 2).run(x, &decode)) - gradient(&decode);
            assert!(off.abs().max().into_scalar::<f32>() < 1e-5);
        }
    }

    #[test]
    fn one_fades_into_the_other() {
        let row = |value: f32| Tensor::<4>::full([1, 1, 1, 8], value, &Device::flex());
        let values: Vec<f32> = faded(&row(1.0), row(0.0), 3, 4).into_data().try_to_vec().unwrap();
        assert_eq!(values, [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_tile_size_is_a_switch_or_a_multiple_of_32() {
        let parsed = ["true", "false", "256"].map(|text| text.parse::<Tiling>().unwrap());
        assert_eq!(parsed, [Tiling::Own, Tiling::Off, Tiling::Pixels(256)]);
        assert!("100".parse::<Tiling>().unwrap_err().contains("is 100; expected true, false"));
        let json = |tiling: Tiling| serde_json::to_value(tiling).unwrap();
        assert_eq!(
            [Tiling::Own, Tiling::Off, Tiling::Pixels(64)].map(json),
            serde_json::json!([true, false, 64]).as_array().unwrap().as_slice()
        );
    }
}
