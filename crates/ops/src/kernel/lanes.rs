//! Loops over slices in vectors, the last of them partial.

use std::mem::MaybeUninit;

use pulp::Simd;

/// Writes `y = f(x)` and returns it.
#[inline(always)]
pub fn map<'y, S: Simd>(simd: S, x: &[f32], y: &'y mut [MaybeUninit<f32>], f: impl Fn(S::f32s) -> S::f32s) -> &'y mut [f32] {
    assert_eq!(x.len(), y.len());
    let ((x, x_rest), (whole, rest)) = (S::as_simd_f32s(x), S::as_uninit_mut_simd_f32s(y));
    for (x, y) in x.iter().zip(whole) {
        y.write(f(*x));
    }
    if !x_rest.is_empty() {
        simd.partial_store_f32s(rest.write_copy_of_slice(x_rest), f(simd.partial_load_f32s(x_rest)));
    }
    // SAFETY: `y` is as long as `x`, so every whole vector of it was written, and so was the rest.
    unsafe { y.assume_init_mut() }
}

/// `x = f(x)`.
#[inline(always)]
pub fn map_in_place<S: Simd>(simd: S, x: &mut [f32], f: impl Fn(S::f32s) -> S::f32s) {
    let (whole, rest) = S::as_mut_simd_f32s(x);
    whole.iter_mut().for_each(|x| *x = f(*x));
    if !rest.is_empty() {
        let value = f(simd.partial_load_f32s(rest));
        simd.partial_store_f32s(rest, value);
    }
}

/// `x = f(x)`; returns the sum of the new values.
#[inline(always)]
pub fn map_in_place_and_sum<S: Simd>(simd: S, x: &mut [f32], f: impl Fn(S::f32s) -> S::f32s) -> f32 {
    let (whole, rest) = S::as_mut_simd_f32s(x);
    let mut sums = [simd.splat_f32s(0.0); 2];
    let (pairs, single) = whole.as_chunks_mut::<2>();
    for pair in pairs {
        *pair = [f(pair[0]), f(pair[1])];
        sums = [simd.add_f32s(sums[0], pair[0]), simd.add_f32s(sums[1], pair[1])];
    }
    for x in single {
        *x = f(*x);
        sums[0] = simd.add_f32s(sums[0], *x);
    }
    if !rest.is_empty() {
        let value = f(simd.partial_load_f32s(rest));
        simd.partial_store_f32s(rest, value);
    }
    simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1])) + rest.iter().sum::<f32>()
}

/// `y = f(x, y)`.
#[inline(always)]
pub fn update<S: Simd>(simd: S, x: &[f32], y: &mut [f32], f: impl Fn(S::f32s, S::f32s) -> S::f32s) {
    assert_eq!(x.len(), y.len());
    let ((x, x_rest), (y, y_rest)) = (S::as_simd_f32s(x), S::as_mut_simd_f32s(y));
    for (x, y) in x.iter().zip(y) {
        *y = f(*x, *y);
    }
    if !x_rest.is_empty() {
        let value = f(simd.partial_load_f32s(x_rest), simd.partial_load_f32s(y_rest));
        simd.partial_store_f32s(y_rest, value);
    }
}

/// Writes `z = f(x, y)` and returns it.
#[inline(always)]
pub fn map2<'z, S: Simd>(
    simd: S,
    [x, y]: [&[f32]; 2],
    z: &'z mut [MaybeUninit<f32>],
    f: impl Fn(S::f32s, S::f32s) -> S::f32s,
) -> &'z mut [f32] {
    assert!(x.len() == z.len() && y.len() == z.len());
    let ((x, x_rest), (y, y_rest), (whole, rest)) = (S::as_simd_f32s(x), S::as_simd_f32s(y), S::as_uninit_mut_simd_f32s(z));
    for ((x, y), z) in x.iter().zip(y).zip(whole) {
        z.write(f(*x, *y));
    }
    if !x_rest.is_empty() {
        simd.partial_store_f32s(rest.write_copy_of_slice(x_rest), f(simd.partial_load_f32s(x_rest), simd.partial_load_f32s(y_rest)));
    }
    // SAFETY: `z` is as long as `x` and `y`, so every whole vector of it was written, and so was the rest.
    unsafe { z.assume_init_mut() }
}

/// `Σ f(x, y)`, where `f` of zeros is zero; in two running sums of vectors.
#[inline(always)]
pub fn sum2<S: Simd>(simd: S, [x, y]: [&[f32]; 2], f: impl Fn(S::f32s, S::f32s) -> S::f32s) -> f32 {
    assert_eq!(x.len(), y.len());
    let ((x, x_rest), (y, y_rest)) = (S::as_simd_f32s(x), S::as_simd_f32s(y));
    let mut sums = [simd.splat_f32s(0.0); 2];
    let ((x2, x1), (y2, y1)) = (x.as_chunks::<2>(), y.as_chunks::<2>());
    for (x, y) in x2.iter().zip(y2) {
        sums[0] = simd.add_f32s(sums[0], f(x[0], y[0]));
        sums[1] = simd.add_f32s(sums[1], f(x[1], y[1]));
    }
    for (x, y) in x1.iter().zip(y1) {
        sums[0] = simd.add_f32s(sums[0], f(*x, *y));
    }
    if !x_rest.is_empty() {
        sums[1] = simd.add_f32s(sums[1], f(simd.partial_load_f32s(x_rest), simd.partial_load_f32s(y_rest)));
    }
    simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1]))
}

/// `Σ x`.
#[inline(always)]
pub fn sum<S: Simd>(simd: S, x: &[f32]) -> f32 {
    sum2(
        simd,
        [x, x],
        #[inline(always)]
        |x, _| x,
    )
}

/// `Σ (x − mean)²`.
#[inline(always)]
pub fn sum_of_squares<S: Simd>(simd: S, x: &[f32], mean: f32) -> f32 {
    let whole = x.len() / S::F32_LANES * S::F32_LANES;
    let (x, rest) = x.split_at(whole);
    let shift = simd.splat_f32s(mean);
    let squares = sum2(
        simd,
        [x, x],
        #[inline(always)]
        |x, _| {
            let x = simd.sub_f32s(x, shift);
            simd.mul_f32s(x, x)
        },
    );
    squares + rest.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>()
}

/// The largest value.
#[inline(always)]
pub fn max<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (whole, rest) = S::as_simd_f32s(x);
    let largest = whole.iter().fold(simd.splat_f32s(f32::NEG_INFINITY), |a, b| simd.max_f32s(a, *b));
    rest.iter().fold(simd.reduce_max_f32s(largest), |a, b| a.max(*b))
}
