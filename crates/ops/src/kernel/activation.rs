//! Activations and their slopes, one pass each.

use std::f32::consts::FRAC_1_SQRT_2;

use pulp::{Arch, Simd, WithSimd};

use super::lanes::{map, update};
use super::math::{erf, exp, sigmoid};
use super::product::run;
use super::{Shared, part};

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

struct Value<'a>(Function, &'a [f32], &'a mut [f32]);

impl WithSimd for Value<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
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

/// Calls `work` with even parts of `0..len`, in units of `unit`, on all threads where it is worth it.
pub fn in_parts(len: usize, unit: usize, work: impl Fn(std::ops::Range<usize>) + Sync + Send) {
    let parts = if len < SERIAL { 1 } else { rayon::current_num_threads() };
    run(parts, parts, |i| work(part(len, parts, i, unit)));
}

/// `y = f(x)`.
pub fn forward(function: Function, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    let out = Shared::new(y);
    // SAFETY: the parts are disjoint.
    in_parts(x.len(), 16, |range| Arch::new().dispatch(Value(function, &x[range.clone()], unsafe { out.slice(range) })));
}

/// `dy` becomes `dx = dy f′(x)`.
pub fn backward(function: Function, x: &[f32], dy: &mut [f32]) {
    assert_eq!(x.len(), dy.len());
    let out = Shared::new(dy);
    // SAFETY: the parts are disjoint.
    in_parts(x.len(), 16, |range| Arch::new().dispatch(Slope(function, &x[range.clone()], unsafe { out.slice(range) })));
}

/// A row of `[value, gate]` to `value · GELU(gate)`.
struct Gated<'a>(&'a [f32], &'a mut [f32]);

impl WithSimd for Gated<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (value, gate) = self.0.split_at(self.1.len());
        super::lanes::map2(
            simd,
            [value, gate],
            self.1,
            #[inline(always)]
            |value, gate| simd.mul_f32s(value, Function::Gelu.value(simd, gate)),
        );
    }
}

/// The gradient of a row: of the value, then of the gate.
struct GatedSlope<'a>(&'a [f32], &'a [f32], &'a mut [f32]);

impl WithSimd for GatedSlope<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(x, dy, dx) = self;
        let ((value, gate), (dvalue, dgate)) = (x.split_at(dy.len()), dx.split_at_mut(dy.len()));
        super::lanes::map2(
            simd,
            [gate, dy],
            dvalue,
            #[inline(always)]
            |gate, dy| simd.mul_f32s(dy, Function::Gelu.value(simd, gate)),
        );
        super::lanes::map2(
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

/// GEGLU (arXiv 2002.05202): rows `[2 d]` to rows `[d]`, `value · GELU(gate)`.
pub fn geglu(d: usize, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), 2 * y.len());
    let out = Shared::new(y);
    in_parts(x.len() / 2, d, |range| {
        for at in range.step_by(d) {
            // SAFETY: the parts are whole rows.
            Arch::new().dispatch(Gated(&x[2 * at..2 * (at + d)], unsafe { out.slice(at..at + d) }));
        }
    });
}

/// The gradient of [`geglu`].
pub fn geglu_backward(d: usize, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!(x.len() == 2 * dy.len() && dx.len() == x.len());
    let out = Shared::new(dx);
    in_parts(dy.len(), d, |range| {
        for at in range.step_by(d) {
            // SAFETY: the parts are whole rows.
            Arch::new().dispatch(GatedSlope(&x[2 * at..2 * (at + d)], &dy[at..at + d], unsafe { out.slice(2 * at..2 * (at + d)) }));
        }
    });
}
