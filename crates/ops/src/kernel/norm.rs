//! Softmax and normalisations over rows.

use pulp::{Arch, Simd, WithSimd};

use super::activation::{Function, in_parts};
use super::lanes::{map, map_in_place, map2, max, sum, sum_of_squares, sum2, update};
use super::math::exp;
use super::product::run;
use super::{Scratch, Shared};

struct Softmax<'a>(&'a [f32], &'a mut [f32]);

impl WithSimd for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(x, y) = self;
        let largest = simd.splat_f32s(max(simd, x));
        map(
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

/// `y = softmax(x)` of rows `[d]`.
pub fn softmax(d: usize, x: &[f32], y: &mut [f32]) {
    let out = Shared::new(y);
    in_parts(x.len(), d, |range| {
        for at in range.step_by(d) {
            // SAFETY: the parts are whole rows.
            Arch::new().dispatch(Softmax(&x[at..at + d], unsafe { out.slice(at..at + d) }));
        }
    });
}

/// `dy` becomes `dx = y (dy − Σ y dy)`.
pub fn softmax_backward(d: usize, y: &[f32], dy: &mut [f32]) {
    let out = Shared::new(dy);
    in_parts(y.len(), d, |range| {
        for at in range.step_by(d) {
            // SAFETY: the parts are whole rows.
            Arch::new().dispatch(SoftmaxSlope(&y[at..at + d], unsafe { out.slice(at..at + d) }));
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
    y: &'a mut [f32],
}

impl WithSimd for LayerNorm<'_> {
    type Output = [f32; 2];
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [f32; 2] {
        let moments = Moments(self.x, self.eps).with_simd(simd);
        let [mean, rstd] = moments.map(|value| simd.splat_f32s(value));
        map2(
            simd,
            [self.x, self.weight],
            self.y,
            #[inline(always)]
            |x, weight| simd.mul_f32s(simd.mul_f32s(simd.sub_f32s(x, mean), rstd), weight),
        );
        update(
            simd,
            self.bias,
            self.y,
            #[inline(always)]
            |bias, y| simd.add_f32s(y, bias),
        );
        moments
    }
}

/// Layer normalisation of rows `[d]`; keeps mean and 1 / standard deviation of each row.
pub fn layer_norm([x, weight, bias]: [&[f32]; 3], eps: f64, y: &mut [f32], moments: &mut [[f32; 2]]) {
    let d = weight.len();
    let (out, kept) = (Shared::new(y), Shared::new(moments.as_flattened_mut()));
    in_parts(x.len(), d, |range| {
        for at in range.step_by(d) {
            // SAFETY: the parts are whole rows.
            let (y, kept) = unsafe { (out.slice(at..at + d), kept.slice(2 * (at / d)..2 * (at / d) + 2)) };
            kept.copy_from_slice(&Arch::new().dispatch(LayerNorm { x: &x[at..at + d], weight, bias, eps, y }));
        }
    });
}

struct LayerNormSlope<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    dy: &'a [f32],
    moments: [f32; 2],
    dx: &'a mut [f32],
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
        map2(
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

/// The gradients of [`layer_norm`]: of x, and of weight and bias where they are asked for.
pub fn layer_norm_backward([x, weight, dy]: [&[f32]; 3], moments: &[[f32; 2]], dx: &mut [f32], affine: Option<[&mut [f32]; 2]>) {
    let d = weight.len();
    let threads = rayon::current_num_threads();
    let mut partial = Scratch::zeroed(if affine.is_some() { 2 * d * threads } else { 0 });
    let (out, sums, wanted) = (Shared::new(dx), Shared::new(&mut partial), affine.is_some());
    let rows = x.len() / d;
    run(threads, threads, |i| {
        for row in super::part(rows, threads, i, 1) {
            let at = row * d..(row + 1) * d;
            // SAFETY: the parts are whole rows, and each has sums of its own.
            let (dx, sums) = unsafe {
                let sums = wanted.then(|| [2 * i, 2 * i + 1].map(|i| sums.slice(i * d..(i + 1) * d)));
                (out.slice(at.clone()), sums)
            };
            Arch::new().dispatch(LayerNormSlope { x: &x[at.clone()], weight, dy: &dy[at], moments: moments[row], dx, sums });
        }
    });
    if let Some([dweight, dbias]) = affine {
        dweight.fill(0.0);
        dbias.fill(0.0);
        for [weight, bias] in partial[..2 * d * threads].chunks_exact(2 * d).map(|both| [&both[..d], &both[d..]]) {
            dweight.iter_mut().zip(weight).for_each(|(sum, part)| *sum += part);
            dbias.iter_mut().zip(bias).for_each(|(sum, part)| *sum += part);
        }
    }
}

/// Sizes of a group normalisation of `[batch, channels, pixels]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Groups {
    /// Channels.
    pub channels: usize,
    /// Pixels of a channel.
    pub pixels: usize,
    /// Groups of channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

impl Groups {
    fn size(&self) -> usize {
        self.channels / self.groups * self.pixels
    }

    /// What the norm does to channel `c` of a group: `(x − mean) · factor + shift`.
    fn affine(&self, c: usize, [mean, rstd]: [f32; 2], [weight, bias]: [&[f32]; 2]) -> [f32; 3] {
        [mean, weight[c] * rstd, bias[c]]
    }

    /// Calls `work` for each group of the batch, on all threads where it is worth it.
    fn each(&self, len: usize, work: impl Fn(usize) + Sync + Send) {
        let threads = if len < 1 << 14 { 1 } else { rayon::current_num_threads() };
        run(threads, len / self.size(), work);
    }
}

struct Affine<'a> {
    x: &'a [f32],
    affine: [f32; 3],
    silu: bool,
    y: &'a mut [f32],
}

impl WithSimd for Affine<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let [mean, factor, shift] = self.affine.map(|value| simd.splat_f32s(value));
        if self.silu {
            map(
                simd,
                self.x,
                self.y,
                #[inline(always)]
                |x| Function::Silu.value(simd, simd.mul_add_e_f32s(simd.sub_f32s(x, mean), factor, shift)),
            );
        } else {
            map(
                simd,
                self.x,
                self.y,
                #[inline(always)]
                |x| simd.mul_add_e_f32s(simd.sub_f32s(x, mean), factor, shift),
            );
        }
    }
}

/// Group normalisation, and SiLU where it follows; keeps mean and 1 / standard deviation of each group, `[batch, groups]`.
pub fn group_norm(g: &Groups, [x, weight, bias]: [&[f32]; 3], y: &mut [f32], moments: &mut [[f32; 2]]) {
    let (out, kept) = (Shared::new(y), Shared::new(moments.as_flattened_mut()));
    g.each(x.len(), |group| {
        let all = &x[group * g.size()..][..g.size()];
        let moments = Arch::new().dispatch(Moments(all, g.eps));
        // SAFETY: each group belongs to one task.
        unsafe { kept.slice(2 * group..2 * group + 2) }.copy_from_slice(&moments);
        for (i, x) in all.chunks_exact(g.pixels).enumerate() {
            let channel = group * (g.channels / g.groups) + i;
            let affine = g.affine(channel % g.channels, moments, [weight, bias]);
            // SAFETY: as above.
            let y = unsafe { out.slice(channel * g.pixels..(channel + 1) * g.pixels) };
            Arch::new().dispatch(Affine { x, affine, silu: g.silu, y });
        }
    });
}

/// Of one channel: `dx` becomes the gradient before SiLU; its sum, and its sum along the normed values.
struct ChannelSums<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    affine: [f32; 3],
    rstd: f32,
    silu: bool,
    dx: &'a mut [f32],
}

impl WithSimd for ChannelSums<'_> {
    type Output = [f32; 2];
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [f32; 2] {
        let [mean, factor, shift] = self.affine.map(|value| simd.splat_f32s(value));
        if self.silu {
            map2(
                simd,
                [self.x, self.dy],
                self.dx,
                #[inline(always)]
                |x, dy| {
                    let normed = simd.mul_add_e_f32s(simd.sub_f32s(x, mean), factor, shift);
                    simd.mul_f32s(dy, Function::Silu.slope(simd, normed))
                },
            );
        } else {
            self.dx.copy_from_slice(self.dy);
        }
        let along = sum2(
            simd,
            [self.dx, self.x],
            #[inline(always)]
            |d, x| simd.mul_f32s(d, simd.sub_f32s(x, mean)),
        );
        [sum(simd, self.dx), along * self.rstd]
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

/// The gradients of [`group_norm`]: of x, and those of weight and bias, `[channels]` each, where they are asked for.
pub fn group_norm_backward(
    g: &Groups,
    [x, weight, bias, dy]: [&[f32]; 4],
    moments: &[[f32; 2]],
    dx: &mut [f32],
    affine: Option<[&mut [f32]; 2]>,
) {
    let (each, all) = (g.channels / g.groups, x.len() / g.pixels);
    let mut sums = Scratch::new(2 * all);
    let (out, kept) = (Shared::new(dx), Shared::new(&mut sums));
    g.each(x.len(), |group| {
        let moments = moments[group];
        let (mut average, mut along) = (0.0, 0.0);
        // SAFETY: each group, and so each channel, belongs to one task.
        let parts =
            |channel: usize| unsafe { (out.slice(channel * g.pixels..(channel + 1) * g.pixels), kept.slice(2 * channel..2 * channel + 2)) };
        for channel in group * each..(group + 1) * each {
            let range = channel * g.pixels..(channel + 1) * g.pixels;
            let (c, (dx, kept)) = (channel % g.channels, parts(channel));
            let affine = g.affine(c, moments, [weight, bias]);
            let sums =
                Arch::new().dispatch(ChannelSums { x: &x[range.clone()], dy: &dy[range], affine, rstd: moments[1], silu: g.silu, dx });
            kept.copy_from_slice(&sums);
            average += f64::from(sums[0]) * f64::from(weight[c]);
            along += f64::from(sums[1]) * f64::from(weight[c]);
        }
        let [average, along] = [average, along].map(|sum| (sum / g.size() as f64) as f32);
        for channel in group * each..(group + 1) * each {
            let x = &x[channel * g.pixels..(channel + 1) * g.pixels];
            Arch::new().dispatch(Projected { x, weight: weight[channel % g.channels], moments, average, along, dx: parts(channel).0 });
        }
    });
    if let Some([dweight, dbias]) = affine {
        dweight.fill(0.0);
        dbias.fill(0.0);
        for (channel, sums) in sums[..2 * all].chunks_exact(2).enumerate() {
            dbias[channel % g.channels] += sums[0];
            dweight[channel % g.channels] += sums[1];
        }
    }
}
