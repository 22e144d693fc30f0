//! Activations and their slopes, one pass each.

use std::f32::consts::FRAC_1_SQRT_2;
use std::mem::MaybeUninit;

use pulp::{Arch, Simd, WithSimd};

use super::lanes::{map, map2, update};
use super::math::{erf, exp, sigmoid};
use super::{cut, on_threads};

/// An activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// `x σ(x)`.
    Silu,
    /// `x Φ(x)`, Φ the normal distribution's.
    Gelu,
    /// `x σ(1.702 x)`.
    QuickGelu,
}

const QUICK: f32 = 1.702;
/// 1 / √(2π).
const DENSITY: f32 = 0.398_942_3;
/// Values below which threads cost more than they bring.
const SERIAL: usize = 1 << 14;

/// `x σ(s x)`.
#[inline(always)]
fn swish<S: Simd>(simd: S, x: S::f32s, s: f32) -> S::f32s {
    simd.mul_f32s(x, sigmoid(simd, simd.mul_f32s(x, simd.splat_f32s(s))))
}

/// `σ + s x σ (1 − σ)`.
#[inline(always)]
fn swish_slope<S: Simd>(simd: S, x: S::f32s, s: f32) -> S::f32s {
    let sx = simd.mul_f32s(x, simd.splat_f32s(s));
    let sigma = sigmoid(simd, sx);
    let rest = simd.mul_f32s(sx, simd.sub_f32s(simd.splat_f32s(1.0), sigma));
    simd.mul_add_e_f32s(sigma, rest, sigma)
}

/// Φ(x).
#[inline(always)]
fn normal<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let half = simd.splat_f32s(0.5);
    simd.mul_add_e_f32s(erf(simd, simd.mul_f32s(x, simd.splat_f32s(FRAC_1_SQRT_2))), half, half)
}

impl Function {
    /// The activation.
    #[inline(always)]
    pub fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        match self {
            Self::Silu => swish(simd, x, 1.0),
            Self::QuickGelu => swish(simd, x, QUICK),
            Self::Gelu => simd.mul_f32s(x, normal(simd, x)),
        }
    }

    /// Its slope.
    #[inline(always)]
    pub fn slope<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        match self {
            Self::Silu => swish_slope(simd, x, 1.0),
            Self::QuickGelu => swish_slope(simd, x, QUICK),
            Self::Gelu => {
                let bell = exp(simd, simd.mul_f32s(simd.mul_f32s(x, x), simd.splat_f32s(-0.5)));
                simd.mul_add_e_f32s(simd.mul_f32s(x, simd.splat_f32s(DENSITY)), bell, normal(simd, x))
            }
        }
    }
}

struct Value<'a>(Function, &'a [f32], &'a mut [MaybeUninit<f32>]);

impl<'a> WithSimd for Value<'a> {
    type Output = &'a mut [f32];
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> &'a mut [f32] {
        let Self(function, x, y) = self;
        // Chosen here, so that each loop holds one function.
        match function {
            Function::Silu => map(
                simd,
                x,
                y,
                #[inline(always)]
                |x| Function::Silu.value(simd, x),
            ),
            Function::Gelu => map(
                simd,
                x,
                y,
                #[inline(always)]
                |x| Function::Gelu.value(simd, x),
            ),
            Function::QuickGelu => map(
                simd,
                x,
                y,
                #[inline(always)]
                |x| Function::QuickGelu.value(simd, x),
            ),
        }
    }
}

struct Slope<'a>(Function, &'a [f32], &'a mut [f32]);

impl WithSimd for Slope<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(function, x, dy) = self;
        match function {
            Function::Silu => update(
                simd,
                x,
                dy,
                #[inline(always)]
                |x, dy| simd.mul_f32s(dy, Function::Silu.slope(simd, x)),
            ),
            Function::Gelu => update(
                simd,
                x,
                dy,
                #[inline(always)]
                |x, dy| simd.mul_f32s(dy, Function::Gelu.slope(simd, x)),
            ),
            Function::QuickGelu => update(
                simd,
                x,
                dy,
                #[inline(always)]
                |x, dy| simd.mul_f32s(dy, Function::QuickGelu.slope(simd, x)),
            ),
        }
    }
}

/// How many parts a loop over `len` values is cut into: one per thread, or one where threads cost more than they bring.
pub fn count_of_parts(len: usize) -> usize {
    if len < SERIAL { 1 } else { rayon::current_num_threads() }
}

/// Writes `y = f(x)` and returns it.
///
/// # Panics
/// When `y` is not as long as `x`.
pub fn forward<'y>(function: Function, x: &[f32], y: &'y mut [MaybeUninit<f32>]) -> &'y mut [f32] {
    assert_eq!(x.len(), y.len(), "as many values as inputs");
    let count = count_of_parts(x.len());
    on_threads(count, cut(y, count, 16), |(range, y)| {
        Arch::new().dispatch(Value(function, &x[range], y));
    });
    // SAFETY: the parts make up `y`, and each was written.
    unsafe { y.assume_init_mut() }
}

/// `dy` becomes `dx = dy f′(x)`.
///
/// # Panics
/// When `dy` is not as long as `x`.
pub fn backward(function: Function, x: &[f32], dy: &mut [f32]) {
    assert_eq!(x.len(), dy.len(), "as many gradients as inputs");
    let count = count_of_parts(x.len());
    on_threads(count, cut(dy, count, 16), |(range, dy)| Arch::new().dispatch(Slope(function, &x[range], dy)));
}

/// A row of `[value, gate]` to `value · GELU(gate)`.
struct Gated<'a>(&'a [f32], &'a mut [MaybeUninit<f32>]);

impl<'a> WithSimd for Gated<'a> {
    type Output = &'a mut [f32];
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> &'a mut [f32] {
        let (value, gate) = self.0.split_at(self.1.len());
        map2(
            simd,
            [value, gate],
            self.1,
            #[inline(always)]
            |value, gate| simd.mul_f32s(value, Function::Gelu.value(simd, gate)),
        )
    }
}

/// The gradient of a row, first of the value, then of the gate.
struct GatedSlope<'a>(&'a [f32], &'a [f32], &'a mut [MaybeUninit<f32>]);

impl WithSimd for GatedSlope<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(x, dy, dx) = self;
        let ((value, gate), (dvalue, dgate)) = (x.split_at(dy.len()), dx.split_at_mut(dy.len()));
        map2(
            simd,
            [gate, dy],
            dvalue,
            #[inline(always)]
            |gate, dy| simd.mul_f32s(dy, Function::Gelu.value(simd, gate)),
        );
        let dgate = map2(
            simd,
            [value, dy],
            dgate,
            #[inline(always)]
            |value, dy| simd.mul_f32s(dy, value),
        );
        update(
            simd,
            gate,
            dgate,
            #[inline(always)]
            |gate, d| simd.mul_f32s(d, Function::Gelu.slope(simd, gate)),
        );
    }
}

/// GEGLU (arXiv 2002.05202): each row of `x` `[rows, 2 d]` is a value and a gate. Writes `y = value · GELU(gate)`, `[rows, d]`, and
/// returns it.
///
/// # Panics
/// When the slices are not of these shapes.
pub fn geglu<'y>(d: usize, x: &[f32], y: &'y mut [MaybeUninit<f32>]) -> &'y mut [f32] {
    assert!(x.len() == 2 * y.len() && y.len().is_multiple_of(d), "GEGLU of {} values to {} in rows of {d}", x.len(), y.len());
    let count = count_of_parts(y.len());
    on_threads(count, cut(y, count, d), |(range, y)| {
        for (x, y) in x[2 * range.start..2 * range.end].chunks_exact(2 * d).zip(y.chunks_exact_mut(d)) {
            Arch::new().dispatch(Gated(x, y));
        }
    });
    // SAFETY: the parts are whole rows and make up `y`, and each row was written.
    unsafe { y.assume_init_mut() }
}

/// The gradient of [`geglu`] for `dy` `[rows, d]`: writes `dx` `[rows, 2 d]` and returns it.
///
/// # Panics
/// When the slices are not of these shapes.
pub fn geglu_backward<'d>(d: usize, x: &[f32], dy: &[f32], dx: &'d mut [MaybeUninit<f32>]) -> &'d mut [f32] {
    assert!(x.len() == 2 * dy.len() && dy.len().is_multiple_of(d), "GEGLU of {} values to {} in rows of {d}", x.len(), dy.len());
    assert_eq!(x.len(), dx.len(), "as many gradients as inputs");
    let count = count_of_parts(dy.len());
    on_threads(count, cut(dx, count, 2 * d), |(range, dx)| {
        let rows = x[range.clone()].chunks_exact(2 * d).zip(dy[range.start / 2..range.end / 2].chunks_exact(d));
        for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(2 * d)) {
            Arch::new().dispatch(GatedSlope(x, dy, dx));
        }
    });
    // SAFETY: the parts are whole rows and make up `dx`, and both halves of each row were written.
    unsafe { dx.assume_init_mut() }
}
