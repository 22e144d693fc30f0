//! Softmax and normalisations over rows.

use std::mem::MaybeUninit;

use pulp::{Arch, Simd, WithSimd};

use super::activation::{Function, count_of_parts};
use super::lanes::{map, map_in_place, map2, max, sum, sum_of_squares, sum2, update};
use super::math::exp;
use super::{Scratch, cut, on_threads};

struct Softmax<'a>(&'a [f32], &'a mut [MaybeUninit<f32>]);

impl WithSimd for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(x, y) = self;
        let largest = simd.splat_f32s(max(simd, x));
        let y = map(
            simd,
            x,
            y,
            #[inline(always)]
            |x| exp(simd, simd.sub_f32s(x, largest)),
        );
        let share = simd.splat_f32s(1.0 / sum(simd, y));
        map_in_place(
            simd,
            y,
            #[inline(always)]
            |y| simd.mul_f32s(y, share),
        );
    }
}

struct SoftmaxSlope<'a>(&'a [f32], &'a mut [f32]);

impl WithSimd for SoftmaxSlope<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(y, dy) = self;
        let mean = simd.splat_f32s(sum2(
            simd,
            [y, dy],
            #[inline(always)]
            |y, dy| simd.mul_f32s(y, dy),
        ));
        update(
            simd,
            y,
            dy,
            #[inline(always)]
            |y, dy| simd.mul_f32s(y, simd.sub_f32s(dy, mean)),
        );
    }
}

/// Writes `y = softmax(x)`, over each row of `[rows, d]`, and returns it.
///
/// # Panics
/// When `x` is not whole rows, or `y` is not as long as it.
pub fn softmax<'y>(d: usize, x: &[f32], y: &'y mut [MaybeUninit<f32>]) -> &'y mut [f32] {
    assert!(x.len().is_multiple_of(d) && y.len() == x.len(), "softmax of {} values to {} in rows of {d}", x.len(), y.len());
    let count = count_of_parts(x.len());
    on_threads(count, cut(y, count, d), |(range, y)| {
        for (x, y) in x[range].chunks_exact(d).zip(y.chunks_exact_mut(d)) {
            Arch::new().dispatch(Softmax(x, y));
        }
    });
    // SAFETY: the parts are whole rows and make up `y`, and each row was written.
    unsafe { y.assume_init_mut() }
}

/// `dy` becomes `dx = y (dy − Σ y dy)`, over each row of `[rows, d]`.
///
/// # Panics
/// When `y` is not whole rows, or `dy` is not as long as it.
pub fn softmax_backward(d: usize, y: &[f32], dy: &mut [f32]) {
    assert!(y.len().is_multiple_of(d) && dy.len() == y.len(), "{} gradients of a softmax to {} values in rows of {d}", dy.len(), y.len());
    let count = count_of_parts(y.len());
    on_threads(count, cut(dy, count, d), |(range, dy)| {
        for (y, dy) in y[range].chunks_exact(d).zip(dy.chunks_exact_mut(d)) {
            Arch::new().dispatch(SoftmaxSlope(y, dy));
        }
    });
}

/// Mean and 1 / standard deviation, of chunks that are joined in double precision (Chan et al. 1983).
struct Moments<'a>(&'a [f32], f64);

impl WithSimd for Moments<'_> {
    type Output = [f32; 2];
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [f32; 2] {
        let Self(x, eps) = self;
        let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
        for chunk in x.chunks(4096) {
            let n = chunk.len() as f64;
            let here = f64::from(sum(simd, chunk)) / n;
            let apart = here - mean;
            squares += f64::from(sum_of_squares(simd, chunk, here as f32)) + apart * apart * count * n / (count + n);
            count += n;
            mean += apart * n / count;
        }
        [mean as f32, (1.0 / (squares / count + eps).sqrt()) as f32]
    }
}

/// `(x − mean) · rstd`.
#[inline(always)]
fn normed<S: Simd>(simd: S, x: S::f32s, mean: S::f32s, rstd: S::f32s) -> S::f32s {
    simd.mul_f32s(simd.sub_f32s(x, mean), rstd)
}

struct LayerNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f64,
    y: &'a mut [MaybeUninit<f32>],
}

impl WithSimd for LayerNorm<'_> {
    type Output = [f32; 2];
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [f32; 2] {
        let moments = Moments(self.x, self.eps).with_simd(simd);
        let [mean, rstd] = moments.map(|value| simd.splat_f32s(value));
        let y = map2(
            simd,
            [self.x, self.weight],
            self.y,
            #[inline(always)]
            |x, weight| simd.mul_f32s(simd.mul_f32s(simd.sub_f32s(x, mean), rstd), weight),
        );
        update(
            simd,
            self.bias,
            y,
            #[inline(always)]
            |bias, y| simd.add_f32s(y, bias),
        );
        moments
    }
}

/// Layer normalisation over each row of `[rows, d]`, weight and bias `[d]`. Writes `y` and returns it, and puts each row's mean
/// and 1 / standard deviation into `moments`.
///
/// # Panics
/// When the slices are not of these shapes.
pub fn layer_norm<'y>([x, weight, bias]: [&[f32]; 3], eps: f64, y: &'y mut [MaybeUninit<f32>], moments: &mut [[f32; 2]]) -> &'y mut [f32] {
    let d = weight.len();
    assert_rows(d, x.len(), moments.len());
    assert!(bias.len() == d && y.len() == x.len(), "a layer norm of {} values to {}, with a bias of {}", x.len(), y.len(), bias.len());
    let count = count_of_parts(x.len());
    on_threads(count, cut(y, count, d).zip(cut(moments, count, 1)), |((range, y), (_, moments))| {
        for ((x, y), moments) in x[range].chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(moments) {
            *moments = Arch::new().dispatch(LayerNorm { x, weight, bias, eps, y });
        }
    });
    // SAFETY: there are as many moments as rows, the parts are whole rows and make up `y`, and each row was written.
    unsafe { y.assume_init_mut() }
}

fn assert_rows(d: usize, values: usize, moments: usize) {
    assert!(values == moments * d, "a layer norm of {values} values with moments of {moments} rows of {d}");
}

struct LayerNormSlope<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    dy: &'a [f32],
    moments: [f32; 2],
    dx: &'a mut [MaybeUninit<f32>],
    /// Sums over rows: of the weight's gradient, of the bias'.
    sums: Option<[&'a mut [f32]; 2]>,
}

impl WithSimd for LayerNormSlope<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, weight, dy, moments, dx, sums } = self;
        let n = 1.0 / x.len() as f32;
        let [mean, rstd] = moments.map(|value| simd.splat_f32s(value));
        let dx = map2(
            simd,
            [dy, weight],
            dx,
            #[inline(always)]
            |dy, weight| simd.mul_f32s(dy, weight),
        );
        let average = sum(simd, dx) * n;
        let along = sum2(
            simd,
            [dx, x],
            #[inline(always)]
            |d, x| simd.mul_f32s(d, normed(simd, x, mean, rstd)),
        ) * n;
        let [average, along] = [average, along].map(|value| simd.splat_f32s(value));
        update(
            simd,
            x,
            dx,
            #[inline(always)]
            |x, d| simd.mul_f32s(simd.sub_f32s(simd.sub_f32s(d, average), simd.mul_f32s(normed(simd, x, mean, rstd), along)), rstd),
        );
        if let Some([dweight, dbias]) = sums {
            // The product goes through the bias' sums in two steps, so that no third slice is read at once.
            let ((x, x_rest), (dy_whole, dy_rest)) = (S::as_simd_f32s(x), S::as_simd_f32s(dy));
            let (whole, rest) = S::as_mut_simd_f32s(dweight);
            for ((x, dy), sum) in x.iter().zip(dy_whole).zip(whole) {
                *sum = simd.mul_add_e_f32s(normed(simd, *x, mean, rstd), *dy, *sum);
            }
            for ((x, dy), sum) in x_rest.iter().zip(dy_rest).zip(rest) {
                *sum += (x - moments[0]) * moments[1] * dy;
            }
            update(
                simd,
                dy,
                dbias,
                #[inline(always)]
                |dy, sum| simd.add_f32s(sum, dy),
            );
        }
    }
}

/// The gradients of [`layer_norm`]: writes `dx` and returns it, and puts those of weight and bias into `affine`, `[d]` each, where asked.
///
/// # Panics
/// When the slices are not of these shapes.
pub fn layer_norm_backward<'d>(
    [x, weight, dy]: [&[f32]; 3],
    moments: &[[f32; 2]],
    dx: &'d mut [MaybeUninit<f32>],
    affine: Option<[&mut [f32]; 2]>,
) -> &'d mut [f32] {
    let d = weight.len();
    assert_rows(d, x.len(), moments.len());
    assert!(dy.len() == x.len() && dx.len() == x.len(), "{} gradients of a layer norm of {} values to {}", dy.len(), x.len(), dx.len());
    let threads = rayon::current_num_threads();
    // Each part adds up its rows' gradients of weight and bias in a place of its own.
    let mut partial = Scratch::zeroed(if affine.is_some() { 2 * d * threads } else { 0 });
    let mut sums = partial.chunks_exact_mut(2 * d);
    let parts = cut(dx, threads, d).map(|(range, dx)| (range, dx, sums.next()));
    on_threads(threads, parts, |(range, dx, mut sums)| {
        let moments = &moments[range.start / d..range.end / d];
        let rows = x[range.clone()].chunks_exact(d).zip(dy[range].chunks_exact(d)).zip(dx.chunks_exact_mut(d)).zip(moments);
        for (((x, dy), dx), moments) in rows {
            let sums = sums.as_deref_mut().map(|sums| sums.split_at_mut(d).into());
            Arch::new().dispatch(LayerNormSlope { x, weight, dy, moments: *moments, dx, sums });
        }
    });
    if let Some([dweight, dbias]) = affine {
        dweight.fill(0.0);
        dbias.fill(0.0);
        for [weight, bias] in partial.chunks_exact(2 * d).map(|both| [&both[..d], &both[d..]]) {
            dweight.iter_mut().zip(weight).for_each(|(sum, part)| *sum += part);
            dbias.iter_mut().zip(bias).for_each(|(sum, part)| *sum += part);
        }
    }
    // SAFETY: there are as many moments as rows, the parts are whole rows and make up `dx`, and each row was written.
    unsafe { dx.assume_init_mut() }
}

/// Sizes of a group normalisation of `[batch, channels, pixels]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Groups {
    pub channels: usize,
    /// Pixels per channel.
    pub pixels: usize,
    /// How many groups the channels are divided into.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

impl Groups {
    /// Channels per group.
    fn width(&self) -> usize {
        self.channels / self.groups
    }

    /// Values per group.
    fn size(&self) -> usize {
        self.width() * self.pixels
    }

    /// What the norm does to channel `c`: `(x − mean) · factor + shift`.
    fn affine(&self, c: usize, [mean, rstd]: [f32; 2], [weight, bias]: [&[f32]; 2]) -> [f32; 3] {
        [mean, weight[c] * rstd, bias[c]]
    }

    fn threads(&self, len: usize) -> usize {
        if len < 1 << 14 { 1 } else { rayon::current_num_threads() }
    }

    /// # Panics
    /// When `values` is not the length of a batch, or `moments` that of all its groups.
    fn check(&self, values: usize, moments: usize) {
        assert!(self.groups > 0 && self.channels.is_multiple_of(self.groups), "{} channels in {} groups", self.channels, self.groups);
        let whole = moments.is_multiple_of(self.groups) && values == moments * self.size();
        assert!(whole, "{values} values with moments of {moments} groups for {self:?}");
    }
}

struct Affine<'a> {
    x: &'a [f32],
    affine: [f32; 3],
    silu: bool,
    y: &'a mut [MaybeUninit<f32>],
}

impl<'a> WithSimd for Affine<'a> {
    type Output = &'a mut [f32];
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> &'a mut [f32] {
        let [mean, factor, shift] = self.affine.map(|value| simd.splat_f32s(value));
        if self.silu {
            map(
                simd,
                self.x,
                self.y,
                #[inline(always)]
                |x| Function::Silu.value(simd, simd.mul_add_e_f32s(simd.sub_f32s(x, mean), factor, shift)),
            )
        } else {
            map(
                simd,
                self.x,
                self.y,
                #[inline(always)]
                |x| simd.mul_add_e_f32s(simd.sub_f32s(x, mean), factor, shift),
            )
        }
    }
}

/// Group normalisation of `x` `[batch, channels, pixels]`, weight and bias `[channels]`, and SiLU where it follows. Writes `y` and
/// returns it, and puts each group's mean and 1 / standard deviation into `moments`, `[batch, groups]`.
///
/// # Panics
/// When the slices are not of these shapes.
pub fn group_norm<'y>(
    g: &Groups,
    [x, weight, bias]: [&[f32]; 3],
    y: &'y mut [MaybeUninit<f32>],
    moments: &mut [[f32; 2]],
) -> &'y mut [f32] {
    g.check(x.len(), moments.len());
    assert_eq!(y.len(), x.len(), "as many values as inputs");
    let groups = x.chunks_exact(g.size()).zip(y.chunks_exact_mut(g.size())).zip(moments).enumerate();
    on_threads(g.threads(x.len()), groups, |(group, ((x, y), moments))| {
        *moments = Arch::new().dispatch(Moments(x, g.eps));
        let first = group % g.groups * g.width();
        for ((x, y), c) in x.chunks_exact(g.pixels).zip(y.chunks_exact_mut(g.pixels)).zip(first..) {
            Arch::new().dispatch(Affine { x, affine: g.affine(c, *moments, [weight, bias]), silu: g.silu, y });
        }
    });
    // SAFETY: the groups make up `y`, the channels a group, and each channel was written.
    unsafe { y.assume_init_mut() }
}

/// One channel's share: writes the gradient before SiLU to `dx`, and returns its sum, and its sum along the normed values.
struct ChannelSums<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    affine: [f32; 3],
    rstd: f32,
    silu: bool,
    dx: &'a mut [MaybeUninit<f32>],
}

impl WithSimd for ChannelSums<'_> {
    type Output = [f32; 2];
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [f32; 2] {
        let [mean, factor, shift] = self.affine.map(|value| simd.splat_f32s(value));
        let dx = if self.silu {
            map2(
                simd,
                [self.x, self.dy],
                self.dx,
                #[inline(always)]
                |x, dy| {
                    let normed = simd.mul_add_e_f32s(simd.sub_f32s(x, mean), factor, shift);
                    simd.mul_f32s(dy, Function::Silu.slope(simd, normed))
                },
            )
        } else {
            self.dx.write_copy_of_slice(self.dy)
        };
        let along = sum2(
            simd,
            [dx, self.x],
            #[inline(always)]
            |d, x| simd.mul_f32s(d, simd.sub_f32s(x, mean)),
        );
        [sum(simd, dx), along * self.rstd]
    }
}

/// `dx ← rstd (weight · dx − average − normed · along)`.
struct Projected<'a> {
    x: &'a [f32],
    weight: f32,
    moments: [f32; 2],
    average: f32,
    along: f32,
    dx: &'a mut [f32],
}

impl WithSimd for Projected<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let [mean, rstd] = self.moments;
        // As `a dx + b (x − mean) + c`.
        let terms = [mean, rstd * self.weight, -rstd * rstd * self.along, -rstd * self.average];
        let [mean, a, b, c] = terms.map(|value| simd.splat_f32s(value));
        update(
            simd,
            self.x,
            self.dx,
            #[inline(always)]
            |x, d| simd.mul_add_e_f32s(a, d, simd.mul_add_e_f32s(b, simd.sub_f32s(x, mean), c)),
        );
    }
}

/// The gradients of [`group_norm`]: writes `dx` and returns it, and puts those of weight and bias into `affine`, `[channels]` each,
/// where asked.
///
/// # Panics
/// When the slices are not of these shapes.
pub fn group_norm_backward<'d>(
    g: &Groups,
    [x, weight, bias, dy]: [&[f32]; 4],
    moments: &[[f32; 2]],
    dx: &'d mut [MaybeUninit<f32>],
    affine: Option<[&mut [f32]; 2]>,
) -> &'d mut [f32] {
    g.check(x.len(), moments.len());
    assert!(dy.len() == x.len() && dx.len() == x.len(), "{} gradients of a group norm of {} values to {}", dy.len(), x.len(), dx.len());
    // Of each channel: the gradient's sum, and its sum along the normed values.
    let mut scratch = Scratch::new(2 * x.len() / g.pixels);
    let (sums, _) = scratch.as_chunks_mut::<2>();
    let groups = dx.chunks_exact_mut(g.size()).zip(sums.chunks_exact_mut(g.width())).zip(moments).enumerate();
    on_threads(g.threads(x.len()), groups, |(group, ((dx, sums), moments))| {
        let (at, first) = (group * g.size(), group % g.groups * g.width());
        let (x, dy) = (x[at..].chunks_exact(g.pixels), dy[at..].chunks_exact(g.pixels));
        let (mut average, mut along) = (0.0, 0.0);
        let channels = x.clone().zip(dy).zip(dx.chunks_exact_mut(g.pixels)).zip(sums).zip(first..);
        for ((((x, dy), dx), sums), c) in channels {
            let affine = g.affine(c, *moments, [weight, bias]);
            *sums = Arch::new().dispatch(ChannelSums { x, dy, affine, rstd: moments[1], silu: g.silu, dx });
            average += f64::from(sums[0]) * f64::from(weight[c]);
            along += f64::from(sums[1]) * f64::from(weight[c]);
        }
        let [average, along] = [average, along].map(|sum| (sum / g.size() as f64) as f32);
        // SAFETY: the channels make up the group, and each was written.
        let dx = unsafe { dx.assume_init_mut() };
        for ((x, dx), c) in x.zip(dx.chunks_exact_mut(g.pixels)).zip(first..) {
            Arch::new().dispatch(Projected { x, weight: weight[c], moments: *moments, average, along, dx });
        }
    });
    if let Some([dweight, dbias]) = affine {
        dweight.fill(0.0);
        dbias.fill(0.0);
        for (channel, [sum, along]) in sums.iter().enumerate() {
            dbias[channel % g.channels] += sum;
            dweight[channel % g.channels] += along;
        }
    }
    // SAFETY: the groups make up `dx`, and each was written.
    unsafe { dx.assume_init_mut() }
}
