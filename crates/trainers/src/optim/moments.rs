//! A moment of AdamW between two updates: as it is, or in 8 bits per value (Dettmers and others, *8-bit Optimizers via Block-wise
//! Quantization*, arXiv 2110.02861).
//!
//! In 8 bits, 256 values in a row are a *block* and share a scale: the value of the largest magnitude, with its sign. A value divided by its
//! scale lies in [-1, 1] and is replaced by one of the 256 values of the paper's *dynamic map*. In the map, each decade from 1e-7 to 1 is cut
//! into cells of equal width, twice as many as in the decade below, and stands for their middles; 0 and 1 are in the map too. The scale's own
//! value therefore becomes 1, so it survives exactly, and what has been through the map once does not change when it goes through it again.
//!
//! Two choices are ours. A value takes the middle of its cell; bitsandbytes takes the nearest value of the map, which is another one only
//! just above a power of ten. And a mean of squares above 0 never becomes 0, because an update divides by its root: at 0 it would divide by
//! `eps` alone. The lowest value of the map stands for gradients of 1/1750 of the block's largest; updates by smaller ones are too small.

use burn::tensor::{Device, FloatDType, Int, IntDType, Tensor};
use serde::{Deserialize, Serialize};

/// How AdamW keeps its moments between updates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MomentsFormat {
    /// In f32: 8 bytes for each trained value.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// In 8 bits, 2.03 bytes for each trained value, where a parameter has at least 4096 values; smaller ones are kept in f32.
    #[serde(rename = "8bit")]
    EightBit,
}

/// Parameters with fewer values keep their moments in f32, as in bitsandbytes (`min_8bit_size`).
const MIN_VALUES: usize = 4096;
/// Values that share a scale, as in bitsandbytes.
const BLOCK: usize = 256;
/// Codes in one i32. Not every GPU has an 8-bit type.
const LANES: usize = 4;

impl MomentsFormat {
    /// Bytes of both moments of a parameter with so many values: in 8 bits, a byte for each value and a scale for each block.
    pub fn bytes(self, values: u64) -> u64 {
        match self {
            Self::EightBit if values >= MIN_VALUES as u64 => {
                let blocks = values.div_ceil(BLOCK as u64);
                2 * (blocks * BLOCK as u64 + 4 * blocks)
            }
            _ => 8 * values,
        }
    }
}

/// One moment of one parameter.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "some hundred bytes beside the values of a parameter")]
pub(super) enum Moment {
    F32(Tensor<1>),
    EightBit(Quantized),
}

impl Moment {
    pub(super) fn new(values: Tensor<1>, map: Map, format: MomentsFormat) -> Self {
        match format {
            MomentsFormat::EightBit if values.dims()[0] >= MIN_VALUES => Self::EightBit(Quantized::new(values, map)),
            _ => Self::F32(values),
        }
    }

    pub(super) fn into_values(self) -> Tensor<1> {
        match self {
            Self::F32(values) => values,
            Self::EightBit(quantized) => quantized.values(),
        }
    }

    /// The values for a checkpoint. Those of 8 bits are widened on the host, so that the device never holds all of them as f32.
    pub(super) fn export(&self) -> Tensor<1> {
        match self {
            Self::F32(values) => values.clone(),
            Self::EightBit(quantized) => quantized.on(&Device::flex()).values(),
        }
    }
}

/// Values in 8 bits each.
#[derive(Debug, Clone)]
pub(super) struct Quantized {
    map: Map,
    /// Four codes of 8 bits in each number, `[blocks, 64]`: of a block's codes, number i holds i, i + 64, i + 128 and i + 192.
    codes: Tensor<2, Int>,
    /// `[blocks, 1]`.
    scales: Tensor<2>,
    /// The last block may be longer than what is left of the values.
    len: usize,
}

impl Quantized {
    fn new(values: Tensor<1>, map: Map) -> Self {
        let [len] = values.dims();
        let blocks = len.div_ceil(BLOCK);
        let values = if len < blocks * BLOCK { values.pad([(0, blocks * BLOCK - len)], 0.0) } else { values };
        let values = values.reshape([blocks, BLOCK]);
        let (low, high) = (values.clone().min_dim(1), values.clone().max_dim(1));
        let scales = low.clone().mask_where(high.clone().greater_equal(-low), high);
        // A block of zeros has any scale; one that is not a normal number may count as 0 on a GPU.
        let tiny = scales.clone().abs().lower_elem(f32::MIN_POSITIVE);
        let scales = scales.mask_fill(tiny, f32::MIN_POSITIVE);
        let codes = map.encode(values / scales.clone()).cast(IntDType::I32);
        Self { map, codes: pack(codes), scales, len }
    }

    fn values(self) -> Tensor<1> {
        let values = self.map.decode(unpack(self.codes).cast(FloatDType::F32)) * self.scales;
        let [blocks, block] = values.dims();
        values.reshape([blocks * block]).slice(0..self.len)
    }

    /// A copy on another device.
    fn on(&self, device: &Device) -> Self {
        Self { codes: self.codes.clone().to_device(device), scales: self.scales.clone().to_device(device), ..*self }
    }
}

/// Codes 0 to 255, `[blocks, 256]`, as `[blocks, 64]`.
fn pack(codes: Tensor<2, Int>) -> Tensor<2, Int> {
    let width = BLOCK / LANES;
    let lanes = (0..LANES).map(|lane| codes.clone().narrow(1, lane * width, width).bitwise_left_shift_scalar(8 * lane as i32));
    lanes.reduce(Tensor::bitwise_or).expect("four lanes")
}

/// The codes that [`pack`] was given.
fn unpack(packed: Tensor<2, Int>) -> Tensor<2, Int> {
    // The shift copies the sign into the upper bits, which the mask takes away.
    let lane = |lane| packed.clone().bitwise_right_shift_scalar(8 * lane as i32).bitwise_and_scalar(255);
    Tensor::cat((0..LANES).map(lane).collect(), 1)
}

/// The dynamic map (`create_dynamic_map` in bitsandbytes), for values in [-1, 1] or in [0, 1].
///
/// With the magnitudes of the map numbered upwards from 0, decade `i` has the width `s = 10^(i-6)` and `n = first · 2^i` cells, and number `k`
/// in it stands for `s · (0.9 (k + first - 0.5) / n - 0.8)`. Of these seven lines over `k`, that of a number's own decade is the highest, so no
/// table and no search is needed: the map is a maximum of lines, and its inverse a minimum of lines. Below and above them are 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Map {
    Signed,
    Unsigned,
}

impl Map {
    /// Cells of the lowest decade.
    fn first(self) -> f64 {
        match self {
            Self::Signed => 1.0,
            Self::Unsigned => 2.0,
        }
    }

    /// The number of the value 1: 128 or 255.
    fn top(self) -> f64 {
        127.0 * self.first() + 1.0
    }

    /// The width `s` of each decade and the number `n` of its cells.
    fn decades(self) -> impl Iterator<Item = (f64, f64)> {
        (0..7).map(move |i| (10f64.powi(i - 6), self.first() * 2f64.powi(i)))
    }

    /// The codes, whole numbers from 0 to 255, of values that are divided by their scales.
    fn encode(self, values: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Signed => self.number(values.clone().abs()) * values.sign() + 127.0,
            Self::Unsigned => self.number(values.clone()).max_pair(values.sign()),
        }
    }

    fn decode(self, codes: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Signed => {
                let numbers = codes - 127.0;
                self.magnitude(numbers.clone().abs()) * numbers.sign()
            }
            Self::Unsigned => self.magnitude(codes),
        }
    }

    /// The numbers of magnitudes in [0, 1].
    fn number(self, magnitudes: Tensor<2>) -> Tensor<2> {
        let lines = self.decades().map(|(s, n)| magnitudes.clone() * (n / (0.9 * s)) + n * (0.8 / 0.9));
        let numbers = lines.reduce(Tensor::min_pair).expect("seven lines").floor() - (self.first() - 1.0);
        // 1 has no cell: the quotient of a value and itself may fall short of 1 on a GPU. It takes what is nearer to it than the last middle.
        let one = magnitudes.greater_equal_elem(1.0 - 0.225 / (64.0 * self.first()));
        numbers.clamp_max(self.top() - 1.0).mask_fill(one, self.top())
    }

    fn magnitude(self, numbers: Tensor<2>) -> Tensor<2> {
        let positions = numbers + (self.first() - 0.5);
        let lines = self.decades().map(|(s, n)| positions.clone() * (0.9 * s / n) - 0.8 * s);
        lines.reduce(Tensor::max_pair).expect("seven lines").clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::testing::values;
    use burn::tensor::{DType, TensorData};
    use vp_core::noise::{Noise, Purpose};

    /// The values of the dynamic map in rising order, as the paper describes them.
    fn dynamic_map(map: Map) -> Vec<f64> {
        let mut values = vec![0.0, 1.0];
        for (s, n) in map.decades() {
            let middles = (0..n as usize).map(|cell| s * (0.1 + 0.9 * (cell as f64 + 0.5) / n));
            values.extend(middles.flat_map(|v| if map == Map::Signed { vec![v, -v] } else { vec![v] }));
        }
        values.sort_by(f64::total_cmp);
        values
    }

    fn tensor(values: &[f32]) -> Tensor<1> {
        Tensor::from_floats(values, &Device::flex())
    }

    fn through(of: &[f32], map: Map) -> Vec<f32> {
        values(&Quantized::new(tensor(of), map).values())
    }

    /// Values over ten decades and more, in blocks whose sizes differ by decades too; some are 0. Their number is not a multiple of the block size.
    fn wild(map: Map) -> Vec<f32> {
        let normal = Noise::new(7).normal_values(Purpose::PARAMETER_INIT, 1, 0, 3 * 5000);
        let values = normal.chunks(3).enumerate().map(|(i, draw)| {
            let size = 10f32.powf(2.0 * draw[1] + 6.0 * ((i / BLOCK) as f32 / 10.0 - 1.0));
            if draw[2] > 2.0 { 0.0 } else { draw[0] * size }
        });
        values.map(|v| if map == Map::Unsigned { v.abs() } else { v }).collect()
    }

    #[test]
    fn the_codes_are_the_dynamic_map_in_order() {
        for map in [Map::Signed, Map::Unsigned] {
            let expected = dynamic_map(map);
            assert_eq!(expected.len(), 256);
            let codes: Vec<f32> = (0..256).map(|code| code as f32).collect();
            let codes = tensor(&codes).reshape([1, 256]);
            let decoded = values(&map.decode(codes.clone()).reshape([256]));
            for (got, expected) in decoded.iter().zip(expected) {
                assert!((f64::from(*got) - expected).abs() <= 2e-6 * expected.abs(), "{map:?}: got {got}, expected {expected}");
            }
            assert_eq!(decoded[255], 1.0);
            map.encode(map.decode(codes.clone())).into_data().assert_eq(&codes.into_data(), true);
        }
    }

    #[test]
    fn every_code_is_packed_into_8_bits_and_back() {
        let codes: Vec<i32> = (0..3 * 256).map(|i| (i * 37) % 256).collect();
        let codes = Tensor::<2, Int>::from_data(TensorData::new(codes, [3, 256]), (&Device::flex(), DType::I32));
        let packed = pack(codes.clone());
        assert_eq!(packed.dims(), [3, 64]);
        unpack(packed).into_data().assert_eq(&codes.into_data(), true);
    }

    #[test]
    fn values_move_by_half_a_cell_at_most_and_scale_and_zeros_not_at_all() {
        for map in [Map::Signed, Map::Unsigned] {
            let before = wild(map);
            let after = through(&before, map);
            assert_eq!(after.len(), before.len());
            let mut seen = [false; 3];
            for (before, after) in before.chunks(BLOCK).zip(after.chunks(BLOCK)) {
                let largest = |values: &[f32]| values.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap();
                let scale = largest(before);
                assert_eq!(scale.to_bits(), largest(after).to_bits());
                for (before, after) in before.iter().zip(after) {
                    let (x, moved) = (f64::from(before.abs() / scale.abs()), f64::from((before - after).abs() / scale.abs()));
                    if *before == 0.0 {
                        assert_eq!(*after, 0.0);
                    }
                    assert!(before * after >= 0.0, "the sign of {before} changed: {after}");
                    let lowest = if map == Map::Signed { 1e-7 } else { 0.325e-6 };
                    let bound = match map.decades().find(|(s, _)| x < *s) {
                        // Below the lowest cell.
                        _ if x < 1e-7 => lowest,
                        Some((s, n)) => 0.45 * s / n,
                        None => 0.0,
                    };
                    assert!(moved <= bound * 1.0001 + 1e-7 * x, "{map:?}: {before} became {after} beside {scale}");
                    seen[0] |= scale < 0.0;
                    seen[1] |= x < 1e-7 && *before != 0.0;
                    seen[2] |= *before == 0.0;
                    assert!(map == Map::Signed || (*before == 0.0) == (*after == 0.0), "{before} became {after}");
                }
            }
            assert_eq!(seen, [map == Map::Signed, true, true], "the values of this test miss a case");
        }
    }

    #[test]
    fn the_second_time_changes_nothing() {
        for map in [Map::Signed, Map::Unsigned] {
            for size in [1.0, 1e-30, 1e-37, 1e-42, 1e20] {
                let once = through(&wild(map).iter().map(|v| v * size).collect::<Vec<_>>(), map);
                assert!(once.iter().all(|value| value.is_finite()));
                let twice = through(&once, map);
                assert!(once.iter().zip(&twice).all(|(a, b)| a.to_bits() == b.to_bits()), "{map:?} at size {size}");
            }
        }
    }

    #[test]
    fn large_parameters_take_a_byte_per_value_and_small_ones_stay_as_they_are() {
        let zeros = |len| Tensor::<1>::zeros([len], &Device::flex());
        let Moment::EightBit(Quantized { codes, scales, .. }) = Moment::new(zeros(4096), Map::Signed, MomentsFormat::EightBit) else {
            panic!("4096 values are enough");
        };
        // One byte per value, and 4 per 256.
        assert_eq!([codes.into_data().bytes().len(), scales.into_data().bytes().len()], [4096, 4 * 16]);
        let kept_as_f32 = |len, format| matches!(Moment::new(zeros(len), Map::Signed, format), Moment::F32(_));
        assert!(kept_as_f32(4095, MomentsFormat::EightBit) && kept_as_f32(4096, MomentsFormat::F32));
    }
}
