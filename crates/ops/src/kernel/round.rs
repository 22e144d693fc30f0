//! From bf16 to f32 and back.

use std::mem::MaybeUninit;

use half::bf16;
use pulp::{Arch, Simd, WithSimd};

use super::words::Element;
use super::{cut, on_threads};

/// Values below which threads cost more than they bring.
const SERIAL: usize = 1 << 15;

/// The same values in f32, without error.
///
/// # Panics
/// When `to` is not as long as `from`.
pub fn widen<'t>(from: &[bf16], to: &'t mut [MaybeUninit<f32>]) -> &'t mut [f32] {
    each(
        from,
        to,
        #[inline(always)]
        |value| value.exact(),
    )
}

/// The nearest bf16, of two equally near the even one.
///
/// # Panics
/// When `to` is not as long as `from`.
pub fn round<'t>(from: &[f32], to: &'t mut [MaybeUninit<bf16>]) -> &'t mut [bf16] {
    // `bf16::from_f32` branches, and is not made into vectors.
    each(
        from,
        to,
        #[inline(always)]
        |value| {
            let bits = value.to_bits();
            let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            // A NaN stays one: its upper half could be that of infinity, so a bit of it is set.
            let nan = bits >> 16 | 0x40;
            bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { nearest } as u16)
        },
    )
}

/// `to = f(from)` on all threads, compiled for the widest vector instructions.
fn each<'t, A: Copy + Sync, B: Copy + Send>(
    from: &[A],
    to: &'t mut [MaybeUninit<B>],
    f: impl Fn(A) -> B + Copy + Sync + Send,
) -> &'t mut [B] {
    struct Each<'a, A, B, F>(&'a [A], &'a mut [MaybeUninit<B>], F);
    impl<A: Copy, B: Copy, F: Fn(A) -> B> WithSimd for Each<'_, A, B, F> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            for (from, to) in self.0.iter().zip(self.1) {
                to.write((self.2)(*from));
            }
        }
    }
    assert_eq!(from.len(), to.len());
    let threads = if from.len() < SERIAL { 1 } else { rayon::current_num_threads() };
    on_threads(threads, cut(to, threads, 64), |(range, to)| Arch::new().dispatch(Each(&from[range], to, f)));
    // SAFETY: `cut` has parted all of `to`, and each part is as long as its part of `from` and was written from it.
    unsafe { to.assume_init_mut() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every upper half of an f32 with lower halves on both sides of where rounding turns, against `half`'s own conversions.
    #[test]
    fn rounds_to_the_nearest_even() {
        let values: Vec<f32> = (0..=u16::MAX)
            .flat_map(|upper| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|lower| f32::from_bits(u32::from(upper) << 16 | lower)))
            .collect();
        let mut rounded = vec![MaybeUninit::uninit(); values.len()];
        let rounded = round(&values, &mut rounded);
        for (value, found) in values.iter().zip(rounded.iter()) {
            let expected = bf16::from_f32(*value);
            assert!(
                found.to_bits() == expected.to_bits() || value.is_nan() && found.is_nan(),
                "{value:?}: {found:?}, expected {expected:?}"
            );
        }
        let mut wide = vec![MaybeUninit::uninit(); rounded.len()];
        for (value, found) in rounded.iter().zip(widen(rounded, &mut wide).iter()) {
            assert!(found.to_bits() == value.to_f32().to_bits() || value.is_nan() && found.is_nan());
        }
    }
}
