//! Matrix products in the manner of Goto and van de Geijn ("Anatomy of high-performance matrix multiplication", 2008): a register tile
//! of C that stays in registers while panels of A and B stream past it. B is packed into panels as wide as the tile, by whatever
//! knows how to ([`Right`]): that is where a convolution unfolds its image. A is read where it lies.

use std::mem::MaybeUninit;
use std::ops::Range;

use pulp::Simd;
use pulp::bytemuck::{cast_slice, cast_slice_mut};

use super::operands::{Left, Right, extent};
use super::tile::{Tile, by_columns, by_rows, tile, tile_for, tiles, turned};
use super::words::{OnWords, Terms, Word};
use super::{Scratch, Shared, cut, on_threads, parts};

/// Values of k that are summed in one pass: a panel of A of that depth stays in the first-level cache.
const DEPTH: usize = 384;
/// Usual panels of B that one task holds: with `DEPTH` terms they stay in the second-level cache, which is larger where vectors are wider.
const SLAB: usize = 8;
/// A product with this many times more rows than columns shares out its rows. All others share out columns: then no thread waits for another
/// or reads what another has packed, but each reads all of A.
const HIGH: usize = 4;
/// Columns of A whose first values are this far apart (a quarter of a page) are copied side by side before they are used [`OFTEN`].
const FAR: usize = 256;
/// Panels of B that meet the same rows of A.
const OFTEN: usize = 4;
/// Multiplications below which threads cost more than they bring.
const SERIAL: usize = 1 << 17;

/// What the product is added to.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    Zero,
    /// One value per row of C.
    PerRow(&'a [f32]),
    /// One value per column of C.
    PerColumn(&'a [f32]),
    /// What C holds already.
    Keep,
}

/// Where C lies, as `[images, m, pixels]`: its columns are the pixels of one image after the other.
#[derive(Clone, Copy)]
struct Target<'a> {
    values: Shared<'a>,
    /// Distance between the first values of neighbouring rows.
    stride: usize,
    /// Columns per image.
    pixels: usize,
    /// Distance between the first values of neighbouring images.
    apart: usize,
}

/// `C = start + A B`, its slices checked against its shape, to be computed in [`Block`]s.
struct Product<'a, W> {
    tile: Tile,
    m: usize,
    n: usize,
    /// In words.
    k: usize,
    left: Left<'a, W>,
    start: Start<'a>,
    out: Target<'a>,
}

impl<'a, W: Word> Product<'a, W> {
    /// # Panics
    /// When A, C or the start is too short for the shape, or rows or images of C overlap.
    fn new(tile: Tile, [m, n, k]: [usize; 3], left: Left<'a, W>, out: Target<'a>, start: Start<'a>) -> Self {
        assert!(tiles().contains(&tile), "{tile:?} is none of {:?}", tiles());
        left.check(m, k);
        let Target { values, stride, pixels, apart } = out;
        let (images, image) = (n / pixels, extent(m, stride, pixels));
        assert!(images * pixels == n, "{n} columns in images of {pixels}");
        assert!((m == 1 || stride >= pixels) && (images == 1 || apart >= image), "rows of C overlap: {m} of {n}, {stride} apart");
        assert!(values.len() >= extent(images, apart, image), "C is too short for {m} rows of {n}");
        match start {
            Start::PerRow(values) => assert_eq!(values.len(), m, "one value per row"),
            Start::PerColumn(values) => assert_eq!(values.len(), n, "one value per column"),
            Start::Zero | Start::Keep => {}
        }
        Self { tile, m, n, k, left, start, out }
    }
}

/// Some rows and columns of a product, and some terms of their sums: as much as one packing of B is good for.
struct Block<'a, W> {
    product: &'a Product<'a, W>,
    m: Range<usize>,
    n: Range<usize>,
    k: Range<usize>,
    /// B as panels, `[n / columns][k][columns]`.
    panels: &'a [W],
    start: Start<'a>,
}

impl<'a, W: Word> Block<'a, W> {
    /// # Safety
    /// As long as the block exists, nothing else reads or writes its rows of its columns of C. Unless it begins with the first term of a product that
    /// starts anew, they are written already.
    ///
    /// # Panics
    /// When it reaches past the product.
    unsafe fn new(product: &'a Product<'a, W>, [m, n, k]: [Range<usize>; 3], panels: &'a [W]) -> Self {
        assert!(m.end <= product.m && n.end <= product.n && k.end <= product.k, "a block of {m:?}, {n:?}, {k:?}");
        let start = if k.start > 0 { Start::Keep } else { product.start };
        Self { product, m, n, k, panels, start }
    }

    fn compute(self) {
        W::dispatch(self);
    }
}

impl<W: Word> OnWords<W> for Block<'_, W> {
    #[inline(always)]
    fn run<S: Simd, T: Terms<S, Word = W>>(self, simd: S, terms: T) {
        // Constants of the instruction set cannot be parameters of a type, so the tiles are named.
        match (S::REGISTER_COUNT, self.product.tile.rows) {
            (32.., 12) => self.in_tiles::<S, T, 12, 2>(simd, terms),
            (32.., 8) => self.in_tiles::<S, T, 8, 3>(simd, terms),
            (32.., 5) => self.in_tiles::<S, T, 5, 5>(simd, terms),
            (32.., _) => self.in_tiles::<S, T, 16, 1>(simd, terms),
            _ => self.in_tiles::<S, T, 6, 2>(simd, terms),
        }
    }
}

impl<W: Word> Block<'_, W> {
    #[inline(always)]
    fn in_tiles<S: Simd, T: Terms<S, Word = W>, const R: usize, const V: usize>(&self, simd: S, terms: T) {
        let (width, depth, pixels) = (V * S::F32_LANES, self.k.len(), self.product.out.pixels);
        let one_image = pixels == self.product.n;
        assert!(one_image || (pixels.is_multiple_of(width) && self.n.start.is_multiple_of(width)), "a tile with pixels of two images");
        for m in self.m.clone().step_by(R) {
            let rows = R.min(self.m.end - m);
            // Where too few rows are left for a tile, it begins before them, and the sums of what comes first are thrown away.
            let first = m.min(self.product.m.saturating_sub(R));
            let near = self.brought_near::<R>(first, self.n.len() / width);
            for (panel, n) in self.n.clone().step_by(width).enumerate() {
                let b = self.panels[panel * depth * width..][..depth * width].as_ptr();
                let tile = match &near {
                    // SAFETY: both are whole panels.
                    Some(near) => unsafe { by_columns::<S, T, R, V>(simd, terms, depth, cast_slice(near).as_ptr(), R, b) },
                    // SAFETY: `b` is a whole panel, and from `first` on there are `R` rows, or all that the product has.
                    None => unsafe { self.tile::<S, T, R, V>(simd, terms, first, R.min(self.product.m), b) },
                };
                self.store(simd, m, &tile[m - first..][..rows], n);
            }
        }
    }

    /// `R` rows of A's columns side by side, `[k][R]`, where the columns lie far apart and `uses` panels will meet them, or where there are fewer
    /// rows.
    fn brought_near<const R: usize>(&self, m: usize, uses: usize) -> Option<Scratch> {
        let Left::Columns(values, stride) = self.product.left else { return None };
        let rows = R.min(self.product.m);
        if rows == R && (stride < FAR || uses < OFTEN) {
            return None;
        }
        let mut near = Scratch::new(R * self.k.len());
        for (k, out) in self.k.clone().zip(cast_slice_mut(&mut near).chunks_exact_mut(R)) {
            out[..rows].copy_from_slice(&values[k * stride + m..][..rows]);
            out[rows..].fill(W::zeroed());
        }
        Some(near)
    }

    /// The sums of `rows` rows from `m` on with the columns of one panel. What it returns past `rows` means nothing.
    ///
    /// # Safety
    /// `1 ≤ rows ≤ R`, and `rows == R` if A is columns; the product has the rows `m..m + rows`, and `b` is a panel: `V` vectors per term.
    #[inline(always)]
    unsafe fn tile<S: Simd, T: Terms<S, Word = W>, const R: usize, const V: usize>(
        &self,
        simd: S,
        terms: T,
        m: usize,
        rows: usize,
        b: *const W,
    ) -> [[S::f32s; V]; R] {
        let k = self.k.clone();
        // Rows past the end repeat the last one: their sums are thrown away.
        let row = |i: usize| m + i.min(rows - 1);
        // SAFETY: a block's rows and terms are among the product's (`Block::new`), and A holds all of those (`Left::check`). With no terms
        // an address may lie past A's end, but nothing is read there.
        unsafe {
            match self.product.left {
                Left::Rows(values, stride) => {
                    let a = std::array::from_fn(|i| values.as_ptr().wrapping_add(row(i) * stride));
                    by_rows::<S, T, R, V, 1>(simd, terms, a, std::iter::once((k.start as isize, k.len())), b)
                }
                Left::Columns(values, stride) => {
                    by_columns::<S, T, R, V>(simd, terms, k.len(), values.as_ptr().wrapping_add(k.start * stride + m), stride, b)
                }
                Left::Turned { values, area: 9 } if rows == R && k.start.is_multiple_of(9) && k.len().is_multiple_of(9) => {
                    let stride = self.product.m * 9;
                    turned::<S, T, R, V, 9>(simd, terms, k.len() / 9, values.as_ptr().wrapping_add(k.start / 9 * stride + m * 9), stride, b)
                }
                Left::Turned { values, area } => {
                    // From the last value of each row's kernel backwards.
                    let a = std::array::from_fn(|i| values.as_ptr().wrapping_add((row(i) + 1) * area - 1));
                    let runs = groups(k, area).map(
                        #[inline(always)]
                        |(o, t)| ((o * self.product.m * area) as isize - t.start as isize, t.len()),
                    );
                    by_rows::<S, T, R, V, -1>(simd, terms, a, runs, b)
                }
                Left::Images { values, pixels } => {
                    let a = std::array::from_fn(|i| values.as_ptr().wrapping_add(row(i) * pixels));
                    let runs = groups(k, pixels).map(
                        #[inline(always)]
                        |(image, p)| ((image * self.product.m * pixels + p.start) as isize, p.len()),
                    );
                    by_rows::<S, T, R, V, 1>(simd, terms, a, runs, b)
                }
            }
        }
    }

    #[inline(always)]
    fn store<S: Simd, const V: usize>(&self, simd: S, m: usize, tile: &[[S::f32s; V]], n: usize) {
        let lanes = S::F32_LANES;
        let width = (V * lanes).min(self.n.end - n);
        let Target { values, stride, pixels, apart } = self.product.out;
        let corner = n / pixels * apart + n % pixels + m * stride;
        for (i, sums) in tile.iter().enumerate() {
            for (from, sum) in (0..width).step_by(lanes).zip(sums) {
                let (count, c) = (lanes.min(width - from), values.at(corner + i * stride + from));
                let before = match self.start {
                    Start::Zero => simd.splat_f32s(0.0),
                    Start::PerRow(values) => simd.splat_f32s(values[m + i]),
                    Start::PerColumn(values) => load(simd, &values[n + from..][..count]),
                    // SAFETY: columns `n + from..` of row `m + i`, which the block has to itself (`Block::new`) and which are written already.
                    Start::Keep => load(simd, unsafe { std::slice::from_raw_parts(c, count) }),
                };
                let sum = simd.add_f32s(before, *sum);
                // SAFETY: the same columns. A vector is an array of floats. Only what is written already is lent as floats.
                unsafe {
                    match self.start {
                        _ if count == lanes => c.cast::<S::f32s>().write_unaligned(sum),
                        Start::Keep => simd.partial_store_f32s(std::slice::from_raw_parts_mut(c, count), sum),
                        _ => {
                            for i in 0..count {
                                c.add(i).write((&raw const sum).cast::<f32>().add(i).read());
                            }
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn load<S: Simd>(simd: S, values: &[f32]) -> S::f32s {
    match S::as_simd_f32s(values).0 {
        [whole] => *whole,
        _ => simd.partial_load_f32s(values),
    }
}

/// Terms in groups of `inner`: each group's number, and which of its terms are meant.
#[inline(always)]
pub fn groups(terms: Range<usize>, inner: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut next = terms.start;
    std::iter::from_fn(
        #[inline(always)]
        move || {
            let (group, from) = (next / inner, next % inner);
            let count = (inner - from).min(terms.end - next);
            next += count;
            (count > 0).then_some((group, from..from + count))
        },
    )
}

/// `C = start + A B`, `[m, k] × [k, n]`, k in words, with C contiguous: the memory that is given, written.
///
/// # Panics
/// When a slice is not as long as its shape says, or the start is what C holds.
pub fn product<'c, W: Word>(
    shape: [usize; 3],
    left: Left<'_, W>,
    right: &impl Right<W>,
    out: &'c mut [MaybeUninit<f32>],
    start: Start<'_>,
) -> &'c mut [f32] {
    product_of_images(tile_for(shape[1]), shape, left, right, out, shape[1], start)
}

/// The same with C as `[images, m, pixels]`, the columns being the pixels of one image after the other.
///
/// # Panics
/// Like [`product`], and when there are several images whose pixels are not a multiple of the tile's columns.
pub fn product_of_images<'c, W: Word>(
    tile: Tile,
    shape: [usize; 3],
    left: Left<'_, W>,
    right: &impl Right<W>,
    out: &'c mut [MaybeUninit<f32>],
    pixels: usize,
    start: Start<'_>,
) -> &'c mut [f32] {
    let [m, n, _] = shape;
    assert!(!matches!(start, Start::Keep), "a product added to what nobody has written");
    assert!(out.len() == m * n, "C has {} values, expected {m} rows of {n}", out.len());
    compute(tile, shape, left, right, Shared::unwritten(out), pixels, start);
    // SAFETY: `compute` has written all columns of all rows, and there is nothing else.
    unsafe { out.assume_init_mut() }
}

/// `C += A B`, with C contiguous.
///
/// # Panics
/// When a slice is too short for its shape.
pub fn add_product<W: Word>(shape: [usize; 3], left: Left<'_, W>, right: &impl Right<W>, out: &mut [f32]) {
    compute(tile_for(shape[1]), shape, left, right, Shared::new(out), shape[1], Start::Keep);
}

fn compute<W: Word>(
    tile: Tile,
    [m, n, k]: [usize; 3],
    left: Left<'_, W>,
    right: &impl Right<W>,
    values: Shared<'_>,
    pixels: usize,
    start: Start<'_>,
) {
    if m == 0 || n == 0 {
        return;
    }
    let out = Target { values, stride: pixels, pixels, apart: m * pixels };
    let product = Product::new(tile, [m, n, k], left, out, start);
    let threads = if m * n * k < SERIAL { 1 } else { rayon::current_num_threads() };
    let enough = n / tile.columns >= threads && m < HIGH * n || n >= 2 * threads * SLAB * tile.columns;
    if enough || threads == 1 { product.by_slabs(right, threads) } else { product.by_rows(right, threads) }
}

/// Rows that begin `stride` apart, for [`multiply`] alone to write.
pub struct Rows<'a> {
    values: Shared<'a>,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// Rows of a slice that nobody else writes. The first row begins where the slice does.
    pub fn new(values: &'a mut [f32], stride: usize) -> Self {
        Self { values: Shared::new(values), stride }
    }

    /// Rows within a slice that other tasks write at the same time. The first row begins where the slice does.
    ///
    /// # Safety
    /// Until `multiply` returns, nothing else reads or writes what it writes: the first `n` values of each of `m` rows. With [`Start::Keep`] they are
    /// written already.
    pub unsafe fn shared(values: Shared<'a>, stride: usize) -> Self {
        Self { values, stride }
    }
}

/// `C = start + A B` on this thread, with B packed already, as panels `[n / columns][k][columns]` for this tile.
///
/// # Panics
/// When a slice is too short for its shape, or rows of C overlap.
pub fn multiply<W: Word>([m, n, k]: [usize; 3], left: Left<'_, W>, (tile, panels): (Tile, &[W]), out: Rows<'_>, start: Start<'_>) {
    if m == 0 || n == 0 {
        return;
    }
    let out = Target { values: out.values, stride: out.stride, pixels: n, apart: 0 };
    let product = Product::new(tile, [m, n, k], left, out, start);
    // SAFETY: the rows are for this call alone to write, by an exclusive borrow or by the promise of `Rows::shared`.
    unsafe { Block::new(&product, [0..m, 0..n, 0..k], panels) }.compute();
}

impl<W: Word> Product<'_, W> {
    /// Where the sum over `k` is cut, in nearly even parts, but in no kernel and in no small image.
    fn depths(&self) -> impl Iterator<Item = Range<usize>> {
        let unit = match self.left {
            Left::Turned { area: inner, .. } | Left::Images { pixels: inner, .. } if inner <= DEPTH => inner,
            _ => 1,
        };
        parts(self.k, self.k.div_ceil(DEPTH / unit * unit).max(1), unit)
    }

    /// The most terms that [`Self::depths`] sums at a time.
    fn depth(&self) -> usize {
        self.depths().map(|k| k.len()).max().unwrap_or(0)
    }

    /// Columns of a task: as many as fill the cache with B, and for few terms more of them, so that rows of C are written in long pieces.
    fn slab(&self) -> usize {
        SLAB * tile().columns * DEPTH / self.k.clamp(DEPTH / 8, DEPTH)
    }

    /// Shares out the columns. Each task computes all rows of some, and packs that much of B.
    fn by_slabs(self, right: &impl Right<W>, threads: usize) {
        let (columns, count) = (self.tile.columns, self.n.div_ceil(self.slab()).next_multiple_of(threads));
        on_threads(threads, parts(self.n, count, columns), |n| {
            let mut packed = Scratch::new(self.depth() * n.len().next_multiple_of(columns));
            let packed = cast_slice_mut(&mut packed);
            for k in self.depths() {
                right.pack(k.clone(), n.clone(), columns, packed);
                // SAFETY: the product is this function's, the parts have no column in common, and each is computed depth by depth: the first writes what
                // the next ones add to.
                unsafe { Block::new(&self, [0..self.m, n.clone(), k], packed) }.compute();
            }
        });
    }

    /// For few columns: packs B on all threads, then shares out the rows.
    fn by_rows(self, right: &impl Right<W>, threads: usize) {
        let Tile { rows, columns } = self.tile;
        let mut packed = Scratch::new(self.depth() * self.n.next_multiple_of(columns));
        let packed = cast_slice_mut::<f32, W>(&mut packed);
        for k in self.depths() {
            let panels = &mut packed[..k.len() * self.n.next_multiple_of(columns)];
            // Columns and panels are cut at the same places: between panels.
            let strips = parts(self.n, threads, columns).zip(cut(panels, threads, columns * k.len()));
            on_threads(threads, strips, |(n, (_, panels))| right.pack(k.clone(), n, columns, panels));
            on_threads(threads, parts(self.m, threads, rows), |m| {
                // SAFETY: the product is this function's, the parts have no row in common, and one depth is done before the next, which adds to it.
                unsafe { Block::new(&self, [m, 0..self.n, k.clone()], packed) }.compute();
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::noise;
    use super::super::operands::{ColumnMajor, RowMajor};
    use super::*;

    const SHAPES: [(usize, usize, usize); 12] = [
        (1, 1, 1),
        (6, 16, 4),
        (7, 17, 5),
        (13, 300, 3),
        (40, 700, 800),
        (5, 3, 1000),
        (300, 33, 400),
        (3, 40, 5),
        (300, 200, 30),
        (29, 40, 50),
        (31, 77, 30),
        (30, 16, 9),
    ];

    /// Every way in, every odd size, against the definition.
    #[test]
    fn products_of_all_shapes() {
        for (m, n, k) in SHAPES {
            let (a, b, bias) = (noise(m * k, 1), noise(k * n, 2), noise(m.max(n), 3));
            let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
            for case in 0..8 {
                let left = if case % 2 == 0 { Left::Rows(&a, k) } else { Left::Columns(&at, m) };
                let start = if case < 4 { Start::PerRow(&bias[..m]) } else { Start::PerColumn(&bias[..n]) };
                let mut c = vec![MaybeUninit::new(7.0); m * n];
                let c = match case / 2 % 2 {
                    0 => product([m, n, k], left, &RowMajor { values: &b, stride: n }, &mut c, start),
                    _ => product([m, n, k], left, &ColumnMajor::new(&bt, k), &mut c, start),
                };
                for i in 0..m {
                    for j in 0..n {
                        let bias = if case < 4 { bias[i] } else { bias[j] };
                        let sum = f64::from(bias) + (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum::<f64>();
                        assert!(
                            (f64::from(c[i * n + j]) - sum).abs() < 1e-4,
                            "{m}x{n}x{k} case {case}: C[{i}][{j}] = {} not {sum}",
                            c[i * n + j]
                        );
                    }
                }
            }
        }
    }

    /// Products of bf16 are exact in f32, so the sums are those of f32.
    #[test]
    fn products_in_bf16_of_all_shapes() {
        for (m, n, k) in SHAPES {
            let k = 2 * k;
            let round = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
            let (a, b) = (round(noise(m * k, 1)), noise(k * n, 2));
            let (bt, b) = (round(transposed(&b, k, n)), round(b));
            for by_rows in [true, false] {
                let (left, mut c) = (Left::rows(&a, k), vec![MaybeUninit::new(7.0); m * n]);
                let c = match by_rows {
                    true => product([m, n, k / 2], left, &RowMajor { values: &b, stride: n }, &mut c, Start::Zero),
                    false => product([m, n, k / 2], left, &ColumnMajor::new(&bt, k), &mut c, Start::Zero),
                };
                for (i, found) in c.iter().enumerate() {
                    let sum: f64 = (0..k).map(|l| a[i / n * k + l].to_f64() * b[l * n + i % n].to_f64()).sum();
                    assert!((f64::from(*found) - sum).abs() < 1e-4, "{m}x{n}x{k}: C[{i}] = {found}, not {sum}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows of 3 values in words of 2")]
    fn half_a_word_is_refused() {
        Left::rows(&[bf16::ONE; 6], 3);
    }

    #[test]
    #[should_panic(expected = "A has 5 values, expected 6")]
    fn a_short_operand_is_refused() {
        product(
            [2, 2, 3],
            Left::Rows(&[0.0; 5], 3),
            &RowMajor { values: &[0.0; 6], stride: 2 },
            &mut [MaybeUninit::uninit(); 4],
            Start::Zero,
        );
    }

    #[test]
    #[should_panic(expected = "C is too short for 2 rows of 2")]
    fn a_short_output_is_refused() {
        add_product([2, 2, 3], Left::Rows(&[0.0; 6], 3), &RowMajor { values: &[0.0; 6], stride: 2 }, &mut [0.0; 3]);
    }

    #[test]
    #[should_panic(expected = "C has 5 values, expected 2 rows of 2")]
    fn an_output_that_would_not_be_written_in_full_is_refused() {
        product(
            [2, 2, 3],
            Left::Rows(&[0.0; 6], 3),
            &RowMajor { values: &[0.0; 6], stride: 2 },
            &mut [MaybeUninit::uninit(); 5],
            Start::Zero,
        );
    }

    #[test]
    #[should_panic(expected = "added to what nobody has written")]
    fn what_is_unwritten_is_not_added_to() {
        product(
            [2, 2, 3],
            Left::Rows(&[0.0; 6], 3),
            &RowMajor { values: &[0.0; 6], stride: 2 },
            &mut [MaybeUninit::uninit(); 4],
            Start::Keep,
        );
    }

    #[test]
    #[should_panic(expected = "rows of C overlap: 2 of 3, 2 apart")]
    fn rows_that_overlap_are_refused() {
        multiply([2, 3, 1], Left::Rows(&[0.0; 2], 1), (tile(), &[0.0; 64]), Rows::new(&mut [0.0; 8], 2), Start::Zero);
    }

    fn transposed(a: &[f32], m: usize, n: usize) -> Vec<f32> {
        (0..m * n).map(|i| a[i % m * n + i / m]).collect()
    }
}
