//! Numbers as files hold them, widened to f32.

use half::{bf16, f16};
use safetensors::Dtype;

/// The first of `count` little-endian integers, which fill `bytes`. One byte is read without a sign, more with one.
pub(super) fn first_integer(bytes: &[u8], count: usize) -> Option<f64> {
    let first = bytes.chunks_exact(bytes.len().checked_div(count).filter(|size| *size > 0)?).next()?;
    Some(match *first {
        [a] => f64::from(a),
        [a, b] => f64::from(i16::from_le_bytes([a, b])),
        [a, b, c, d] => f64::from(i32::from_le_bytes([a, b, c, d])),
        _ => i64::from_le_bytes(first.try_into().ok()?) as f64,
    })
}

/// The float types that are read.
#[derive(Clone, Copy)]
pub(super) enum Float {
    F64,
    F32,
    F16,
    BF16,
    /// Four bits of exponent, three of mantissa, no infinity (arXiv 2209.05433).
    F8E4M3,
    /// Five bits of exponent, two of mantissa: the upper byte of an f16.
    F8E5M2,
}

impl Float {
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F64 => Some(Self::F64),
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::BF16),
            Dtype::F8_E4M3 => Some(Self::F8E4M3),
            Dtype::F8_E5M2 => Some(Self::F8E5M2),
            _ => None,
        }
    }

    pub(super) fn widen(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.chunks_exact(N).map(|chunk| f(chunk.try_into().expect("chunks are exact"))).collect()
        }
        match self {
            Self::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            Self::F32 => each(bytes, f32::from_le_bytes),
            Self::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Self::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Self::F8E4M3 => each(bytes, |[byte]| e4m3(byte)),
            Self::F8E5M2 => each(bytes, |[byte]| f16::from_bits(u16::from(byte) << 8).to_f32()),
        }
    }
}

/// The value of a `float8_e4m3fn`.
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-6),
        _ => (1.0 + mantissa) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}
