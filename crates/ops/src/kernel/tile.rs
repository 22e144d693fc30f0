//! The register tile: a part of C whose sums stay in registers while panels of A and B stream past them.

use pulp::{Arch, Simd, WithSimd};

use super::words::Terms;

/// Columns beyond which little is left over by any tile.
const WIDE: usize = 160;

/// The size of the register tile, in values of C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    pub rows: usize,
    pub columns: usize,
}

/// The tiles of an instruction set. The first is the usual one: as many sums as its registers hold beside a row of B and a value of A. The
/// others cut narrow products and small images with less left over: heads of 40, 80 or 16 channels, 77 tokens, 4x4 pixels.
const fn shapes<S: Simd>() -> &'static [Tile] {
    const fn tile(rows: usize, columns: usize) -> Tile {
        Tile { rows, columns }
    }
    match (S::REGISTER_COUNT, S::F32_LANES) {
        (32.., 16) => const { &[tile(12, 32), tile(8, 48), tile(5, 80), tile(16, 16)] },
        (32.., 4) => const { &[tile(12, 8)] },
        (_, 8) => const { &[tile(6, 16)] },
        (_, 4) => const { &[tile(6, 8)] },
        _ => const { &[tile(6, 2)] },
    }
}

/// This machine's register tile.
pub fn tile() -> Tile {
    tiles()[0]
}

/// The register tile for a product of `n` columns: the one that computes the fewest columns beyond them.
pub fn tile_for(n: usize) -> Tile {
    let computed = |tile: &Tile| if n > WIDE { 0 } else { n.next_multiple_of(tile.columns) };
    tiles().iter().copied().min_by_key(computed).expect("a tile")
}

/// The register tile that computes many images of `pixels` columns in one product and has no columns of two, if there is one.
pub fn tile_within(pixels: usize) -> Option<Tile> {
    tiles().iter().copied().find(|tile| pixels.is_multiple_of(tile.columns))
}

/// This machine's tiles.
pub fn tiles() -> &'static [Tile] {
    struct Ask;
    impl WithSimd for Ask {
        type Output = &'static [Tile];
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> &'static [Tile] {
            shapes::<S>()
        }
    }
    Arch::new().dispatch(Ask)
}

/// The tile's loop, one row of A at each pointer. Its terms come in runs, each with its first place after the pointer and its length, `STEP`
/// values from term to term.
///
/// # Safety
/// From each pointer of `a` a value can be read at each of the places, and from `b` `V` vectors for each.
#[inline(always)]
pub unsafe fn by_rows<S: Simd, T: Terms<S>, const R: usize, const V: usize, const STEP: isize>(
    simd: S,
    terms: T,
    a: [*const T::Word; R],
    runs: impl Iterator<Item = (isize, usize)>,
    b: *const T::Word,
) -> [[S::f32s; V]; R] {
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    let mut b = b;
    for (from, count) in runs {
        for k in 0..count {
            let place = from + k as isize * STEP;
            // SAFETY: the caller promises a value at each place, and as many times `V` vectors.
            unsafe {
                step(
                    simd,
                    terms,
                    #[inline(always)]
                    |i| *a[i].offset(place),
                    b.add(k * V * S::F32_LANES),
                    &mut sums,
                )
            }
        }
        b = b.wrapping_add(count * V * S::F32_LANES);
    }
    sums
}

/// The tile's loop, `R` neighbouring rows at each column of A.
///
/// # Safety
/// `R` values can be read at `a` and at the `depth - 1` places that follow, `stride` apart; `depth` times `V` vectors from `b`.
#[inline(always)]
pub unsafe fn by_columns<S: Simd, T: Terms<S>, const R: usize, const V: usize>(
    simd: S,
    terms: T,
    depth: usize,
    a: *const T::Word,
    stride: usize,
    b: *const T::Word,
) -> [[S::f32s; V]; R] {
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for k in 0..depth {
        // SAFETY: the caller promises `depth` terms, and `k` is less than that.
        unsafe {
            step(
                simd,
                terms,
                #[inline(always)]
                |i| *a.add(k * stride + i),
                b.add(k * V * S::F32_LANES),
                &mut sums,
            )
        }
    }
    sums
}

/// The tile's loop over whole kernels of `AREA` values, each turned around, `R` neighbouring rows at each place.
///
/// # Safety
/// `R · AREA` values can be read at `a` and at the `count - 1` places that follow, `stride` apart; `count · AREA` times `V` vectors from `b`.
#[inline(always)]
pub unsafe fn turned<S: Simd, T: Terms<S>, const R: usize, const V: usize, const AREA: usize>(
    simd: S,
    terms: T,
    count: usize,
    a: *const T::Word,
    stride: usize,
    b: *const T::Word,
) -> [[S::f32s; V]; R] {
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for o in 0..count {
        for t in 0..AREA {
            // SAFETY: the caller promises `count` kernels, and `o` is less than that.
            unsafe {
                step(
                    simd,
                    terms,
                    #[inline(always)]
                    |i| *a.add(o * stride + i * AREA + (AREA - 1 - t)),
                    b.add((o * AREA + t) * V * S::F32_LANES),
                    &mut sums,
                )
            }
        }
    }
    sums
}

/// One term of the tile's sums: row `i` of A gives `a(i)`.
///
/// # Safety
/// `V` vectors can be read at `b`.
#[inline(always)]
unsafe fn step<S: Simd, T: Terms<S>, const R: usize, const V: usize>(
    simd: S,
    terms: T,
    a: impl Fn(usize) -> T::Word,
    b: *const T::Word,
    sums: &mut [[S::f32s; V]; R],
) {
    // SAFETY: the caller promises `V` vectors.
    let b = unsafe { b.cast::<[S::f32s; V]>().read_unaligned() };
    for (i, sum) in sums.iter_mut().enumerate() {
        let a = terms.splat(simd, a(i));
        for (sum, b) in sum.iter_mut().zip(b) {
            *sum = terms.add(simd, a, b, *sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No other tile computes fewer columns beyond those asked for.
    #[test]
    fn tiles_waste_little() {
        for n in 1..=WIDE {
            let found = n.next_multiple_of(tile_for(n).columns);
            assert!(tiles().iter().all(|tile| found <= n.next_multiple_of(tile.columns)), "{n} columns in {found}");
        }
        assert_eq!(tile_for(4096), tile());
    }
}
