//! Convolution as a matrix product whose right operand is unfolded while it is packed: the unfolded image never exists as a whole.
//!
//! | | rows (m) | columns (n) | terms (k) |
//! |---|---|---|---|
//! | output | output channels | output pixels | input channels × kernel |
//! | gradient of the input | input channels | input pixels | output channels × kernel, turned around |
//! | gradient of the weight | output channels | input channels × kernel | images × output pixels |

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use pulp::bytemuck::{Zeroable, cast_slice, cast_slice_mut};

use super::operands::{ColumnMajor, Left, Right, RowMajor, panels, transpose_into};
use super::product::{Start, add_product, groups, product, product_of_images};
use super::tile::tile_within;
use super::words::Element;
use super::{Scratch, cut, on_threads};

/// Sizes of a convolution with a square kernel, one stride and one padding for both axes, no dilation, no groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// How many images.
    pub batch: usize,
    /// Input channels.
    pub d_in: usize,
    /// Output channels.
    pub d_out: usize,
    /// Height and width of the input.
    pub size: [usize; 2],
    /// Height, and width, of the kernel.
    pub kernel: usize,
    /// Step of the kernel.
    pub stride: usize,
    /// Zeros above and left, below and right.
    pub padding: (usize, usize),
}

impl Geometry {
    /// Height and width of the output.
    pub fn out_size(&self) -> [usize; 2] {
        self.size.map(|size| (size + self.padding.0 + self.padding.1 - self.kernel) / self.stride + 1)
    }

    fn pixels(&self) -> usize {
        self.size[0] * self.size[1]
    }

    fn out_pixels(&self) -> usize {
        self.out_size().iter().product()
    }

    /// Terms of an output pixel.
    fn terms(&self) -> usize {
        self.d_in * self.kernel * self.kernel
    }

    /// One pixel in, one pixel out: no image is unfolded.
    fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.padding == (0, 0)
    }

    /// # Panics
    /// When a slice is not as long as the sizes say: x `[batch, d_in, size]`, the weight `[d_out, d_in, kernel, kernel]`, y
    /// `[batch, d_out, out_size]`.
    fn check(&self, x: usize, weight: usize, y: usize) {
        let expected = [self.batch * self.d_in * self.pixels(), self.d_out * self.terms(), self.batch * self.d_out * self.out_pixels()];
        assert_eq!([x, weight, y], expected, "values of x, weight and y for {self:?}");
    }

    /// The input, unfolded to output pixels.
    fn unfolded<'a, E>(&self, x: &'a [E]) -> Unfolded<'a, E> {
        let Self { d_in: channels, size, kernel, stride, padding: (before, _), .. } = *self;
        Unfolded { values: x, channels, size, to: self.out_size(), kernel, stride, before: before as isize, spread: 1 }
    }
}

/// `y[b, o, p] = bias[o] + Σ w[o, c, k] x[b, c, p·stride + k]`, and `y` written. In bf16 the terms of a sum are even.
///
/// # Panics
/// Like its gradients, when a slice is not as long as `g` says.
pub fn forward<'y, E: Element>(g: &Geometry, x: &[E], weight: &[E], bias: Option<&[f32]>, y: &'y mut [MaybeUninit<f32>]) -> &'y mut [f32] {
    g.check(x.len(), weight.len(), y.len());
    let start = bias.map_or(Start::Zero, Start::PerRow);
    let (left, terms) = (Left::rows(weight, g.terms()), g.terms() / E::TERMS);
    if g.is_pointwise() {
        return each_image(g.batch, y, |image, y| {
            let x = &x[image * g.d_in * g.pixels()..][..g.d_in * g.pixels()];
            product([g.d_out, g.pixels(), terms], left, &RowMajor { values: x, stride: g.pixels() }, y, start)
        });
    }
    over_images(g.batch, [g.d_out, g.out_pixels(), terms], left, g.unfolded(x), y, start)
}

/// `dx`, given `dy`. In bf16 its terms, those of all output channels, are even.
pub fn input_gradient<'d, E: Element>(g: &Geometry, dy: &[E], weight: &[E], dx: &'d mut [MaybeUninit<f32>]) -> &'d mut [f32] {
    g.check(dx.len(), weight.len(), dy.len());
    let area = g.kernel * g.kernel;
    let k = g.d_out * area;
    // Words of several terms can only be read from a weight that is turned already.
    let turned = (E::TERMS > 1).then(|| turned(weight, [g.d_out, g.d_in, area]));
    let left = match &turned {
        Some(weight) => Left::rows(cast_slice::<f32, E>(weight), k),
        None if g.is_pointwise() => Left::Columns(E::words(weight), g.d_in),
        None => Left::Turned { values: E::words(weight), area },
    };
    if g.is_pointwise() {
        let pixels = g.pixels();
        return each_image(g.batch, dx, |image, dx| {
            let dy = &dy[image * g.d_out * pixels..][..g.d_out * pixels];
            product([g.d_in, pixels, k / E::TERMS], left, &RowMajor { values: dy, stride: pixels }, dx, Start::Zero)
        });
    }
    // A convolution of the gradient, its pixels spread by the stride.
    let before = g.kernel as isize - 1 - g.padding.0 as isize;
    let unfolded =
        Unfolded { values: dy, channels: g.d_out, size: g.out_size(), to: g.size, kernel: g.kernel, stride: 1, before, spread: g.stride };
    over_images(g.batch, [g.d_in, g.pixels(), k / E::TERMS], left, unfolded, dx, Start::Zero)
}

/// A weight `[d_out, d_in, area]` as `[d_in, d_out, area]`, its kernels turned around.
fn turned<E: Element>(weight: &[E], [d_out, d_in, area]: [usize; 3]) -> Scratch {
    let mut scratch = Scratch::new(size_of_val(weight).div_ceil(size_of::<f32>()));
    let threads = if weight.len() < 1 << 15 { 1 } else { rayon::current_num_threads() };
    let to = &mut cast_slice_mut::<f32, E>(&mut scratch)[..weight.len()];
    on_threads(threads, cut(to, threads, d_out * area), |(range, to)| {
        for (to, channel) in to.chunks_exact_mut(d_out * area).zip(range.start / (d_out * area)..) {
            for (to, from) in to.chunks_exact_mut(area).zip(weight.chunks_exact(d_in * area)) {
                to.iter_mut().zip(from[channel * area..][..area].iter().rev()).for_each(|(to, value)| *to = *value);
            }
        }
    });
    scratch
}

/// `dw`, given `x` and `dy`.
pub fn weight_gradient<'d>(g: &Geometry, x: &[f32], dy: &[f32], dw: &'d mut [MaybeUninit<f32>]) -> &'d mut [f32] {
    g.check(x.len(), dw.len(), dy.len());
    let (pixels, out_pixels) = (g.pixels(), g.out_pixels());
    if !g.is_pointwise() {
        let left = Left::Images { values: dy, pixels: out_pixels };
        return product([g.d_out, g.terms(), g.batch * out_pixels], left, &Folded(g.unfolded(x)), dw, Start::Zero);
    }
    let shape = [g.d_out, g.terms(), out_pixels];
    let of_image = |image| {
        let x = &x[image * g.d_in * pixels..][..g.d_in * pixels];
        (Left::Rows(&dy[image * g.d_out * out_pixels..][..g.d_out * out_pixels], out_pixels), ColumnMajor::new(x, pixels))
    };
    let (left, right) = of_image(0);
    let dw = product(shape, left, &right, dw, Start::Zero);
    for (left, right) in (1..g.batch).map(of_image) {
        add_product(shape, left, &right, dw);
    }
    dw
}

/// `db[o] = Σ dy[b, o, p]`.
pub fn bias_gradient(g: &Geometry, dy: &[f32], db: &mut [f32]) {
    assert_eq!([dy.len(), db.len()], [g.batch * g.d_out * g.out_pixels(), g.d_out], "values of dy and db for {g:?}");
    db.fill(0.0);
    for image in dy.chunks_exact(g.d_out * g.out_pixels()) {
        for (db, plane) in db.iter_mut().zip(image.chunks_exact(g.out_pixels())) {
            *db += sum(plane);
        }
    }
}

/// In 16 running sums, for the vector unit and for the rounding.
fn sum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value;
        }
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// Has `work` write the part of `to` that is each image's.
fn each_image<'t>(
    batch: usize,
    to: &'t mut [MaybeUninit<f32>],
    work: impl for<'i> Fn(usize, &'i mut [MaybeUninit<f32>]) -> &'i mut [f32],
) -> &'t mut [f32] {
    let per_image = to.len() / batch;
    assert!(per_image * batch == to.len(), "{} values of {batch} images", to.len());
    for (image, to) in to.chunks_exact_mut(per_image).enumerate() {
        let first = to.as_ptr().cast();
        let written = work(image, to);
        assert!(written.as_ptr() == first && written.len() == per_image, "an image's values are not those that were to be written");
    }
    // SAFETY: `work` returned each image's part as floats, which is proof that it is written.
    unsafe { to.assume_init_mut() }
}

/// `out[b, m, p]` over a batch of images, as one product where no panel holds pixels of two of them.
fn over_images<'o, E: Element>(
    batch: usize,
    [m, pixels, k]: [usize; 3],
    left: Left<'_, E::Word>,
    right: Unfolded<'_, E>,
    out: &'o mut [MaybeUninit<f32>],
    start: Start<'_>,
) -> &'o mut [f32] {
    if let Some(tile) = tile_within(pixels) {
        return product_of_images(tile, [m, batch * pixels, k], left, &right, out, pixels, start);
    }
    let per_image = right.values.len() / batch;
    each_image(batch, out, |image, out| {
        let right = Unfolded { values: &right.values[image * per_image..][..per_image], ..right };
        product([m, pixels, k], left, &right, out, start)
    })
}

/// An image `[b, channels, size]` seen as `[channels × kernel, b × to]`: term `(c, ky, kx)` of pixel `(y, x)` is the value at
/// `(y·stride + ky − before, x·stride + kx − before)` of the image with `spread − 1` zeros between its pixels.
#[derive(Clone, Copy)]
struct Unfolded<'a, E> {
    values: &'a [E],
    channels: usize,
    size: [usize; 2],
    to: [usize; 2],
    kernel: usize,
    stride: usize,
    before: isize,
    spread: usize,
}

/// A part of an image with its zeros around it, `[channels, height, width]`: what some pixels need of some channels.
struct Patch<E> {
    /// Values of `E`.
    memory: Scratch,
    len: usize,
    values: PhantomData<E>,
    height: usize,
    width: usize,
    /// First channel, first output row and column.
    from: (usize, usize, usize),
}

impl<E: Element> Patch<E> {
    /// `len` zeros.
    fn zeroed(len: usize, [height, width]: [usize; 2], from: (usize, usize, usize)) -> Self {
        let memory = Scratch::zeroed((len * size_of::<E>()).div_ceil(size_of::<f32>()));
        Self { memory, len, values: PhantomData, height, width, from }
    }

    fn values(&self) -> &[E] {
        &cast_slice(&self.memory)[..self.len]
    }

    fn values_mut(&mut self) -> &mut [E] {
        &mut cast_slice_mut(&mut self.memory)[..self.len]
    }
}

impl<E: Element> Unfolded<'_, E> {
    fn target_pixels(&self) -> usize {
        self.to[0] * self.to[1]
    }

    /// What the pixels `n`, of one image, need for the terms `k`.
    fn patch(&self, k: &Range<usize>, n: &Range<usize>) -> Patch<E> {
        let (area, across) = (self.kernel * self.kernel, self.to[1]);
        let (image, first, last) = (n.start / self.target_pixels(), n.start % self.target_pixels(), (n.end - 1) % self.target_pixels());
        let (rows, channels) = (first / across..last / across + 1, k.start / area..k.end.div_ceil(area));
        let columns = if rows.len() == 1 { first % across..last % across + 1 } else { 0..across };
        let [height, width] = [&rows, &columns].map(|range| (range.len() - 1) * self.stride + self.kernel);
        // What no pixel of the image comes to lie on is zero.
        let from = (channels.start, rows.start, columns.start);
        let mut patch = Patch::zeroed(channels.len() * height * width, [height, width], from);
        let (plane, across) = (self.size[0] * self.size[1], self.size[1]);
        let corner = [&rows, &columns].map(|range| (range.start * self.stride) as isize - self.before);
        let [inner_rows, inner_columns] =
            [(0, corner[0], height), (1, corner[1], width)].map(|(axis, corner, len)| self.inside(axis, corner, len));
        let place = |at: usize, corner: isize| (at as isize * self.spread as isize - corner) as usize;
        for (channel, out) in channels.zip(patch.values_mut().chunks_exact_mut(height * width)) {
            let from = &self.values[(image * self.channels + channel) * plane..][..plane];
            // Where padding is wide, a patch may have no column of the image.
            for y in inner_rows.clone().filter(|_| !inner_columns.is_empty()) {
                let (row, out) = (&from[y * across..][inner_columns.clone()], &mut out[place(y, corner[0]) * width..][..width]);
                let out = out[place(inner_columns.start, corner[1])..].iter_mut();
                if self.spread == 1 {
                    row.iter().zip(out).for_each(|(value, out)| *out = *value);
                } else {
                    row.iter().zip(out.step_by(self.spread)).for_each(|(value, out)| *out = *value);
                }
            }
        }
        patch
    }

    /// The rows (axis 0) or columns of the image that lie among `len` of the patch, which begins at `corner`.
    fn inside(&self, axis: usize, corner: isize, len: usize) -> Range<usize> {
        let first = |place: isize| (place.max(0) as usize).div_ceil(self.spread).min(self.size[axis]);
        first(corner)..first(corner + len as isize)
    }

    /// Where the terms `k` of the first pixel stand in the patch.
    fn terms(&self, patch: &Patch<E>, k: Range<usize>) -> Vec<usize> {
        let kernel = self.kernel;
        let places: Vec<usize> = (0..kernel * kernel).map(|place| place / kernel * patch.width + place % kernel).collect();
        let mut terms = Vec::with_capacity(k.len());
        for (channel, inner) in groups(k, places.len()) {
            let first = (channel - patch.from.0) * patch.height * patch.width;
            terms.extend(places[inner].iter().map(|place| first + place));
        }
        terms
    }

    /// The pixels `n` of one image as runs within rows: the place in the patch of the first, and how many.
    fn runs(&self, patch: &Patch<E>, n: Range<usize>) -> impl Iterator<Item = (usize, usize)> {
        let (across, stride, width, (_, y0, x0)) = (self.to[1], self.stride, patch.width, patch.from);
        let (mut next, pixels) = (n.start % self.target_pixels(), n.len());
        let end = next + pixels;
        std::iter::from_fn(move || {
            let (y, x) = (next / across, next % across);
            let count = (across - x).min(end - next);
            next += count;
            (count > 0).then_some(((y - y0) * stride * width + (x - x0) * stride, count))
        })
    }
}

impl<E: Element> Right<E::Word> for Unfolded<'_, E> {
    fn pack(&self, k: Range<usize>, n: Range<usize>, columns: usize, out: &mut [E::Word]) {
        let (mut n, mut out) = (n, out);
        while !n.is_empty() {
            // Image by image: the caller sees to it that no panel has pixels of two.
            let end = n.end.min((n.start / self.target_pixels() + 1) * self.target_pixels());
            let (here, rest) = out.split_at_mut(k.len() * (end - n.start).next_multiple_of(columns));
            self.pack_image(&k, n.start..end, columns, here);
            (n, out) = (end..n.end, rest);
        }
    }
}

impl<E: Element> Unfolded<'_, E> {
    fn pack_image(&self, words: &Range<usize>, n: Range<usize>, columns: usize, out: &mut [E::Word]) {
        let k = words.start * E::TERMS..words.end * E::TERMS;
        let patch = self.patch(&k, &n);
        let terms = self.terms(&patch, k);
        for (n, width, out) in panels(n, columns, words.len(), out) {
            let mut at = 0;
            if width < columns {
                out.fill(Zeroable::zeroed());
            }
            for (from, count) in self.runs(&patch, n..n + width) {
                let values = &patch.values()[from..];
                match (self.stride, count) {
                    (1, 16) => put_runs::<E, 16>(values, &terms, at, columns, out),
                    (1, 4) => put_runs::<E, 4>(values, &terms, at, columns, out),
                    (1, 8) => put_runs::<E, 8>(values, &terms, at, columns, out),
                    (1, 32) => put_runs::<E, 32>(values, &terms, at, columns, out),
                    (stride, _) => {
                        for (terms, out) in terms.chunks_exact(E::TERMS).zip(out.chunks_exact_mut(columns)) {
                            E::put(values, terms, stride, &mut out[at..at + count]);
                        }
                    }
                }
                at += count;
            }
        }
    }
}

/// A run of known length, for each word.
fn put_runs<E: Element, const N: usize>(values: &[E], terms: &[usize], at: usize, columns: usize, out: &mut [E::Word]) {
    for (terms, out) in terms.chunks_exact(E::TERMS).zip(out.chunks_exact_mut(columns)) {
        E::put_all::<N>(values, terms, (&mut out[at..at + N]).try_into().expect("N words"));
    }
}

/// The same images seen the other way: `[b × to, channels × kernel]`.
struct Folded<'a>(Unfolded<'a, f32>);

impl Right for Folded<'_> {
    fn pack(&self, k: Range<usize>, n: Range<usize>, columns: usize, out: &mut [f32]) {
        let (depth, per_image) = (k.len(), self.0.target_pixels());
        let mut k = k;
        let mut before = 0;
        while !k.is_empty() {
            // Image by image.
            let end = k.end.min((k.start / per_image + 1) * per_image);
            self.pack_image(k.start..end, n.clone(), columns, [depth, before], out);
            before += end - k.start;
            k.start = end;
        }
    }
}

impl Folded<'_> {
    /// The pixels `k`, of one image, in panels of `depth` terms of which `before` are packed.
    fn pack_image(&self, k: Range<usize>, n: Range<usize>, columns: usize, [depth, before]: [usize; 2], out: &mut [f32]) {
        let patch = self.0.patch(&n, &k);
        for (n, width, out) in panels(n, columns, depth, out) {
            let out = &mut out[before * columns..][..k.len() * columns];
            if width < columns {
                out.fill(0.0);
            }
            let terms = self.0.terms(&patch, n..n + width);
            let mut at = 0;
            for (from, count) in self.0.runs(&patch, k.clone()) {
                let out = &mut out[at * columns..(at + count) * columns];
                if self.0.stride == 1 {
                    transpose_into(width, columns, |i| &patch.values()[from + terms[i]..][..count], out);
                } else {
                    for (j, out) in out.chunks_exact_mut(columns).enumerate() {
                        terms.iter().zip(out).for_each(|(term, out)| *out = patch.values()[from + term + j * self.0.stride]);
                    }
                }
                at += count;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::noise;
    use super::*;

    /// Every pair of an input and an output value that a weight joins.
    fn each_path(g: &Geometry, mut path: impl FnMut(usize, usize, usize)) {
        let ([h, w], [oh, ow]) = (g.size, g.out_size());
        let outs = (0..g.batch).flat_map(|b| (0..g.d_out).flat_map(move |o| (0..oh).flat_map(move |y| (0..ow).map(move |x| (b, o, y, x)))));
        for (b, o, y, x) in outs {
            for (c, ky, kx) in (0..g.d_in).flat_map(|c| (0..g.kernel).flat_map(move |ky| (0..g.kernel).map(move |kx| (c, ky, kx)))) {
                let (iy, ix) = ((y * g.stride + ky).wrapping_sub(g.padding.0), (x * g.stride + kx).wrapping_sub(g.padding.0));
                if iy < h && ix < w {
                    let weight = ((o * g.d_in + c) * g.kernel + ky) * g.kernel + kx;
                    path(((b * g.d_in + c) * h + iy) * w + ix, weight, ((b * g.d_out + o) * oh + y) * ow + x);
                }
            }
        }
    }

    /// In bf16 the sums are those that f32 makes of the same rounded values.
    fn check_in_bf16(g: &Geometry, exact: [&[f32]; 3]) {
        let [x, w, dy] = exact.map(|values| values.iter().map(|value| bf16::from_f32(*value)).collect::<Vec<_>>());
        let [wide_x, wide_w, wide_dy] = [&x, &w, &dy].map(|values| values.iter().map(|value| value.to_f32()).collect::<Vec<_>>());
        let found =
            [Scratch::written(dy.len(), |y| forward(g, &x, &w, None, y)), Scratch::written(x.len(), |dx| input_gradient(g, &dy, &w, dx))];
        let expected = [
            Scratch::written(dy.len(), |y| forward(g, &wide_x, &wide_w, None, y)),
            Scratch::written(x.len(), |dx| input_gradient(g, &wide_dy, &wide_w, dx)),
        ];
        for (what, (found, expected)) in ["y", "dx"].iter().zip(found.iter().zip(&expected)) {
            for (i, (found, expected)) in found.iter().zip(expected.iter()).enumerate() {
                assert!((found - expected).abs() < 2e-4, "{g:?} in bf16: {what}[{i}] is {found}, expected {expected}");
            }
        }
    }

    #[test]
    fn convolutions_of_all_shapes() {
        let geometry = |batch, d_in, d_out, size, kernel, stride, padding| Geometry { batch, d_in, d_out, size, kernel, stride, padding };
        for g in [
            geometry(1, 1, 1, [1, 1], 3, 1, (1, 1)),
            geometry(2, 3, 5, [7, 5], 3, 1, (1, 1)),
            geometry(1, 50, 7, [4, 4], 3, 1, (1, 1)),
            geometry(3, 4, 8, [8, 8], 3, 1, (1, 1)),
            geometry(2, 5, 6, [16, 16], 3, 2, (1, 1)),
            geometry(2, 5, 6, [9, 11], 3, 2, (0, 1)),
            geometry(2, 3, 4, [8, 12], 4, 4, (0, 0)),
            geometry(2, 17, 4, [6, 6], 1, 1, (0, 0)),
            geometry(1, 2, 3, [40, 33], 3, 1, (1, 1)),
            geometry(2, 20, 64, [16, 32], 3, 1, (1, 1)),
            // Sums in several parts: kernels turned around, and the pixels of small and of large images.
            geometry(2, 29, 50, [8, 8], 3, 1, (1, 1)),
            geometry(30, 14, 60, [4, 4], 3, 1, (1, 1)),
            geometry(2, 29, 50, [8, 8], 5, 1, (2, 2)),
            geometry(3, 13, 9, [20, 24], 3, 1, (1, 1)),
            geometry(3, 13, 9, [20, 24], 3, 2, (0, 1)),
            // Whole words of bf16, both ways.
            geometry(1, 12, 10, [7, 9], 3, 1, (1, 1)),
            geometry(3, 6, 8, [20, 24], 3, 2, (0, 1)),
            geometry(2, 130, 100, [8, 8], 3, 1, (1, 1)),
            geometry(2, 4, 6, [8, 12], 4, 4, (0, 0)),
            geometry(2, 18, 4, [6, 6], 1, 1, (0, 0)),
            // Padding so wide that some patches have no pixel of the image.
            geometry(1, 2, 4, [3, 70], 7, 1, (6, 6)),
            geometry(1, 2, 4, [70, 3], 7, 2, (6, 6)),
        ] {
            let [oh, ow] = g.out_size();
            let (x, w) = (noise(g.batch * g.d_in * g.pixels(), 1), noise(g.d_out * g.terms(), 2));
            let (bias, dy) = (noise(g.d_out, 3), noise(g.batch * g.d_out * oh * ow, 4));
            let y = Scratch::written(dy.len(), |y| forward(&g, &x, &w, Some(&bias), y));
            let dx = Scratch::written(x.len(), |dx| input_gradient(&g, &dy, &w, dx));
            let dw = Scratch::written(w.len(), |dw| weight_gradient(&g, &x, &dy, dw));
            let mut db = bias.clone();
            bias_gradient(&g, &dy, &mut db);
            let mut sums = [vec![0.0; y.len()], vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; bias.len()]];
            each_path(&g, |i, j, o| {
                sums[0][o] += f64::from(x[i]) * f64::from(w[j]);
                sums[1][i] += f64::from(dy[o]) * f64::from(w[j]);
                sums[2][j] += f64::from(dy[o]) * f64::from(x[i]);
            });
            let area = g.kernel * g.kernel;
            if (g.d_in * area).is_multiple_of(2) && (g.d_out * area).is_multiple_of(2) {
                check_in_bf16(&g, [&x, &w, &dy]);
            }
            for (o, dy) in dy.iter().enumerate() {
                sums[0][o] += f64::from(bias[o / (oh * ow) % g.d_out]);
                sums[3][o / (oh * ow) % g.d_out] += f64::from(*dy);
            }
            for (what, (found, expected)) in ["y", "dx", "dw", "db"].iter().zip([&y[..], &dx[..], &dw[..], &db[..]].iter().zip(&sums)) {
                for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                    assert!((f64::from(*found) - expected).abs() < 2e-4, "{g:?}: {what}[{i}] is {found}, expected {expected}");
                }
            }
        }
    }
}
