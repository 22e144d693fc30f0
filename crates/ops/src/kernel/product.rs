//! Matrix products in the manner of Goto and van de Geijn ("Anatomy of high-performance matrix multiplication", 2008): a register tile
//! of C that stays in registers while panels of A and B stream past it. B is packed into panels as wide as the tile, by whatever
//! knows how to ([`Right`]): that is where a convolution unfolds its image. A is read where it lies.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::{Scratch, Shared, cut, on_threads, parts};

/// Values of k that are summed in one pass: a panel of A of that depth stays in the first-level cache.
const DEPTH: usize = 384;
/// Columns of C that one task holds: `DEPTH` × this many values of B stay in the second-level cache.
const SLAB: usize = 128;
/// Multiplications below which threads cost more than they bring.
const SERIAL: usize = 1 << 17;

/// The size of the register tile, in values of C.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    pub rows: usize,
    pub columns: usize,
}

/// Rows of the register tile: twelve where there are 32 wide registers, six elsewhere.
const fn tile_rows<S: Simd>() -> usize {
    if S::F32_LANES >= 16 { 12 } else { 6 }
}

/// This machine's register tile.
pub fn tile() -> Tile {
    struct Ask;
    impl WithSimd for Ask {
        type Output = Tile;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> Tile {
            Tile { rows: tile_rows::<S>(), columns: 2 * S::F32_LANES }
        }
    }
    Arch::new().dispatch(Ask)
}

/// The left operand, A, `[m, k]`, where it lies.
#[derive(Debug, Clone, Copy)]
pub enum Left<'a> {
    /// Row `m` begins at `m * stride`.
    Rows(&'a [f32], usize),
    /// Column `k` begins at `k * stride`.
    Columns(&'a [f32], usize),
    /// Panels as high as the tile, `[m / rows][k][rows]`. Rows past the end may hold any values.
    Panels(&'a [f32]),
}

impl Left<'_> {
    /// # Panics
    /// When it is shorter than `[m, k]`.
    fn check(&self, m: usize, k: usize) {
        let needed = match self {
            Left::Rows(_, stride) => extent(m, *stride, k),
            Left::Columns(_, stride) => extent(k, *stride, m),
            Left::Panels(_) => m.next_multiple_of(tile().rows).saturating_mul(k),
        };
        let (Left::Rows(values, _) | Left::Columns(values, _) | Left::Panels(values)) = self;
        assert!(values.len() >= needed, "A has {} values, expected {needed}", values.len());
    }
}

/// How many values `count` rows of `width` span when they begin `stride` apart; where that overflows, more than any slice holds.
fn extent(count: usize, stride: usize, width: usize) -> usize {
    if count == 0 || width == 0 { 0 } else { (count - 1).saturating_mul(stride).saturating_add(width) }
}

/// The right operand, B, `[k, n]`.
pub trait Right: Sync {
    /// Packs rows `k` of columns `n` into panels of `columns` columns, `[panel][k][columns]`; columns past the end are zero.
    fn pack(&self, k: Range<usize>, n: Range<usize>, columns: usize, out: &mut [f32]);
}

/// The panels of a slab, each with its first column and its width.
pub fn panels(n: Range<usize>, columns: usize, depth: usize, out: &mut [f32]) -> impl Iterator<Item = (usize, usize, &mut [f32])> {
    let end = n.end;
    n.step_by(columns).zip(out.chunks_exact_mut(depth * columns)).map(move |(n, out)| (n, columns.min(end - n), out))
}

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
struct Product<'a> {
    m: usize,
    n: usize,
    k: usize,
    left: Left<'a>,
    start: Start<'a>,
    out: Target<'a>,
}

impl<'a> Product<'a> {
    /// # Panics
    /// When A, C or the start is too short for the shape, or rows or images of C overlap.
    fn new([m, n, k]: [usize; 3], left: Left<'a>, out: Target<'a>, start: Start<'a>) -> Self {
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
        Self { m, n, k, left, start, out }
    }
}

/// Some rows and columns of a product, and some terms of their sums: as much as one packing of B is good for.
struct Block<'a> {
    product: &'a Product<'a>,
    m: Range<usize>,
    n: Range<usize>,
    k: Range<usize>,
    /// B as panels, `[n / columns][k][columns]`.
    panels: &'a [f32],
    start: Start<'a>,
}

impl<'a> Block<'a> {
    /// # Safety
    /// As long as the block exists, nothing else reads or writes its rows of its columns of C.
    ///
    /// # Panics
    /// When it reaches past the product.
    unsafe fn new(product: &'a Product<'a>, [m, n, k]: [Range<usize>; 3], panels: &'a [f32]) -> Self {
        assert!(m.end <= product.m && n.end <= product.n && k.end <= product.k, "a block of {m:?}, {n:?}, {k:?}");
        let start = if k.start > 0 { Start::Keep } else { product.start };
        Self { product, m, n, k, panels, start }
    }

    fn compute(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for Block<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Constants of the instruction set cannot be parameters of a type, so the two tiles are named.
        if tile_rows::<S>() == 12 { self.run::<S, 12>(simd) } else { self.run::<S, 6>(simd) }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn run<S: Simd, const R: usize>(&self, simd: S) {
        let (width, depth, pixels) = (2 * S::F32_LANES, self.k.len(), self.product.out.pixels);
        assert!(self.m.start.is_multiple_of(R), "a block that begins within a panel of A");
        let one_image = pixels == self.product.n;
        assert!(one_image || (pixels.is_multiple_of(width) && self.n.start.is_multiple_of(width)), "a tile with pixels of two images");
        for m in self.m.clone().step_by(R) {
            let rows = R.min(self.m.end - m);
            for (panel, n) in self.n.clone().step_by(width).enumerate() {
                let b = self.panels[panel * depth * width..][..depth * width].as_ptr();
                // SAFETY: `m` is a multiple of R, and `rows` rows from there are rows of the block; `b` is a whole panel.
                let tile = unsafe { self.tile::<S, R>(simd, m, rows, b) };
                self.store(simd, m, rows, n, &tile);
            }
        }
    }

    /// The sums of `rows` rows from `m` on with the columns of one panel. What it returns past `rows` means nothing.
    ///
    /// # Safety
    /// `m` is a multiple of `R`, `1 ≤ rows ≤ R`, the block has the rows `m..m + rows`, and `b` is a panel: two vectors per term.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(&self, simd: S, m: usize, rows: usize, b: *const f32) -> [[S::f32s; 2]; R] {
        let (depth, k, whole) = (self.k.len(), self.k.start, self.product.k);
        // Rows past the end repeat the last one: their sums are thrown away.
        let row = |i: usize| m + i.min(rows - 1);
        // SAFETY: a block's rows and terms are among the product's (`Block::new`), and A holds all of those (`Left::check`); panels of
        // A hold whole tiles, up to the next multiple of R. With no terms an address may lie past A's end, but nothing is read there.
        unsafe {
            match self.product.left {
                Left::Rows(values, stride) => {
                    by_rows::<S, R>(simd, depth, std::array::from_fn(|i| values.as_ptr().wrapping_add(row(i) * stride + k)), b)
                }
                Left::Panels(values) => by_columns::<S, R>(simd, depth, values.as_ptr().wrapping_add(m * whole + k * R), R, b),
                Left::Columns(values, stride) if rows == R => {
                    by_columns::<S, R>(simd, depth, values.as_ptr().wrapping_add(k * stride + m), stride, b)
                }
                Left::Columns(values, stride) => {
                    let columns = std::array::from_fn(|i| values.as_ptr().wrapping_add(k * stride + row(i)));
                    few_columns::<S, R>(simd, depth, columns, stride, b)
                }
            }
        }
    }

    #[inline(always)]
    fn store<S: Simd, const R: usize>(&self, simd: S, m: usize, rows: usize, n: usize, tile: &[[S::f32s; 2]; R]) {
        let lanes = S::F32_LANES;
        let width = (2 * lanes).min(self.n.end - n);
        let Target { values, stride, pixels, apart } = self.product.out;
        let corner = n / pixels * apart + n % pixels + m * stride;
        for (i, sums) in tile.iter().enumerate().take(rows) {
            // SAFETY: these are columns `n..n + width` of row `m + i`, which the block has to itself (`Block::new`).
            let c = unsafe { values.slice(corner + i * stride..corner + i * stride + width) };
            let (low, high) = c.split_at_mut(width.min(lanes));
            for (half, (part, sum)) in [low, high].into_iter().zip(sums).enumerate() {
                if part.is_empty() {
                    continue;
                }
                let before = match self.start {
                    Start::Zero => simd.splat_f32s(0.0),
                    Start::PerRow(values) => simd.splat_f32s(values[m + i]),
                    Start::PerColumn(values) => load(simd, &values[n + half * lanes..][..part.len()]),
                    Start::Keep => load(simd, part),
                };
                let sum = simd.add_f32s(before, *sum);
                if part.len() == lanes { S::as_mut_simd_f32s(part).0[0] = sum } else { simd.partial_store_f32s(part, sum) }
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

/// The tile's loop, one row of A at each pointer.
///
/// # Safety
/// `depth` values can be read from each pointer of `a`, and `depth` times two vectors from `b`.
#[inline(always)]
unsafe fn by_rows<S: Simd, const R: usize>(simd: S, depth: usize, a: [*const f32; R], b: *const f32) -> [[S::f32s; 2]; R] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; R];
    for k in 0..depth {
        // SAFETY: the caller promises `depth` terms, and `k` is less than that.
        unsafe {
            step(
                simd,
                #[inline(always)]
                |i| *a[i].add(k),
                b.add(k * 2 * S::F32_LANES),
                &mut sums,
            )
        }
    }
    sums
}

/// The tile's loop, `R` neighbouring rows at each column of A.
///
/// # Safety
/// `R` values can be read at `a` and at the `depth - 1` places that follow, `stride` apart; `depth` times two vectors from `b`.
#[inline(always)]
unsafe fn by_columns<S: Simd, const R: usize>(simd: S, depth: usize, a: *const f32, stride: usize, b: *const f32) -> [[S::f32s; 2]; R] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; R];
    for k in 0..depth {
        // SAFETY: the caller promises `depth` terms, and `k` is less than that.
        unsafe {
            step(
                simd,
                #[inline(always)]
                |i| *a.add(k * stride + i),
                b.add(k * 2 * S::F32_LANES),
                &mut sums,
            )
        }
    }
    sums
}

/// The tile's loop, one pointer per row into the first column of A: for the last rows, where fewer than `R` are left.
///
/// # Safety
/// A value can be read at each pointer of `a` and at the `depth - 1` places that follow, `stride` apart; `depth` times two vectors from
/// `b`.
#[inline(always)]
unsafe fn few_columns<S: Simd, const R: usize>(
    simd: S,
    depth: usize,
    a: [*const f32; R],
    stride: usize,
    b: *const f32,
) -> [[S::f32s; 2]; R] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; R];
    for k in 0..depth {
        // SAFETY: the caller promises `depth` terms, and `k` is less than that.
        unsafe {
            step(
                simd,
                #[inline(always)]
                |i| *a[i].add(k * stride),
                b.add(k * 2 * S::F32_LANES),
                &mut sums,
            )
        }
    }
    sums
}

/// One term of the tile's sums: row `i` of A gives `a(i)`.
///
/// # Safety
/// Two vectors can be read at `b`.
#[inline(always)]
unsafe fn step<S: Simd, const R: usize>(simd: S, a: impl Fn(usize) -> f32, b: *const f32, sums: &mut [[S::f32s; 2]; R]) {
    // SAFETY: the caller promises two vectors.
    let b = unsafe { [b.cast::<S::f32s>().read_unaligned(), b.cast::<S::f32s>().add(1).read_unaligned()] };
    for (i, sum) in sums.iter_mut().enumerate() {
        let a = simd.splat_f32s(a(i));
        sum[0] = simd.mul_add_e_f32s(a, b[0], sum[0]);
        sum[1] = simd.mul_add_e_f32s(a, b[1], sum[1]);
    }
}

/// `C = start + A B`, `[m, k] × [k, n]`, with C contiguous.
///
/// # Panics
/// When a slice is too short for its shape.
pub fn product(shape: [usize; 3], left: Left<'_>, right: &impl Right, out: &mut [f32], start: Start<'_>) {
    product_of_images(shape, left, right, out, shape[1], start);
}

/// The same with C as `[images, m, pixels]`, the columns being the pixels of one image after the other.
///
/// # Panics
/// When a slice is too short for its shape, or there are several images whose pixels are not a multiple of the tile's columns.
pub fn product_of_images([m, n, k]: [usize; 3], left: Left<'_>, right: &impl Right, out: &mut [f32], pixels: usize, start: Start<'_>) {
    if m == 0 || n == 0 {
        return;
    }
    let out = Target { values: Shared::new(out), stride: pixels, pixels, apart: m * pixels };
    let product = Product::new([m, n, k], left, out, start);
    let threads = if m * n * k < SERIAL { 1 } else { rayon::current_num_threads() };
    if n.div_ceil(SLAB) >= 2 * threads || threads == 1 { product.by_slabs(right, threads) } else { product.by_rows(right, threads) }
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
    /// Until `multiply` returns, nothing else reads or writes what it writes: the first `n` values of each of `m` rows.
    pub unsafe fn shared(values: Shared<'a>, stride: usize) -> Self {
        Self { values, stride }
    }
}

/// `C = start + A B` on this thread, with B packed already, as panels `[n / columns][k][columns]`.
///
/// # Panics
/// When a slice is too short for its shape, or rows of C overlap.
pub fn multiply([m, n, k]: [usize; 3], left: Left<'_>, panels: &[f32], out: Rows<'_>, start: Start<'_>) {
    if m == 0 || n == 0 {
        return;
    }
    let out = Target { values: out.values, stride: out.stride, pixels: n, apart: 0 };
    let product = Product::new([m, n, k], left, out, start);
    // SAFETY: the rows are for this call alone to write, by an exclusive borrow or by the promise of `Rows::shared`.
    unsafe { Block::new(&product, [0..m, 0..n, 0..k], panels) }.compute();
}

/// Where the sum over `k` is cut, in even parts.
fn depths(k: usize) -> impl Iterator<Item = Range<usize>> {
    parts(k, k.div_ceil(DEPTH).max(1), 1)
}

impl Product<'_> {
    /// Shares out the columns. Each task computes all rows of some, and packs that much of B.
    fn by_slabs(self, right: &impl Right, threads: usize) {
        let (columns, count) = (tile().columns, self.n.div_ceil(SLAB).next_multiple_of(threads));
        on_threads(threads, parts(self.n, count, columns), |n| {
            let mut packed = Scratch::new(DEPTH.min(self.k) * n.len().next_multiple_of(columns));
            for k in depths(self.k) {
                right.pack(k.clone(), n.clone(), columns, &mut packed);
                // SAFETY: the product is this function's, the parts have no column in common, and each is computed depth by depth.
                unsafe { Block::new(&self, [0..self.m, n.clone(), k], &packed) }.compute();
            }
        });
    }

    /// For few columns: packs B on all threads, then shares out the rows.
    fn by_rows(self, right: &impl Right, threads: usize) {
        let Tile { rows, columns } = tile();
        let mut packed = Scratch::new(DEPTH.min(self.k) * self.n.next_multiple_of(columns));
        for k in depths(self.k) {
            let panels = &mut packed[..k.len() * self.n.next_multiple_of(columns)];
            // Columns and panels are cut at the same places: between panels.
            let strips = parts(self.n, threads, columns).zip(cut(panels, threads, columns * k.len()));
            on_threads(threads, strips, |(n, (_, panels))| right.pack(k.clone(), n, columns, panels));
            on_threads(threads, parts(self.m, threads, rows), |m| {
                // SAFETY: the product is this function's, the parts have no row in common, and one depth is done before the next.
                unsafe { Block::new(&self, [m, 0..self.n, k.clone()], &packed) }.compute();
            });
        }
    }
}

/// A right operand whose rows are contiguous: row `k` begins at `k * stride`.
pub struct RowMajor<'a> {
    pub values: &'a [f32],
    /// Distance between the first values of neighbouring rows.
    pub stride: usize,
}

impl Right for RowMajor<'_> {
    fn pack(&self, k: Range<usize>, n: Range<usize>, columns: usize, out: &mut [f32]) {
        for (n, width, out) in panels(n, columns, k.len(), out) {
            for (k, out) in k.clone().zip(out.chunks_exact_mut(columns)) {
                copy_padded(&self.values[k * self.stride + n..][..width], out);
            }
        }
    }
}

/// Copies and fills the rest with zero.
pub fn copy_padded(from: &[f32], to: &mut [f32]) {
    match (<&[f32; 16]>::try_from(from), <&mut [f32; 16]>::try_from(&mut *to)) {
        // The usual case, with its length known.
        (Ok(from), Ok(to)) => *to = *from,
        _ => {
            to[..from.len()].copy_from_slice(from);
            to[from.len()..].fill(0.0);
        }
    }
}

/// A right operand whose columns are contiguous: column `n` begins at `n * stride`.
pub struct ColumnMajor<'a> {
    pub values: &'a [f32],
    /// Distance between the first values of neighbouring columns.
    pub stride: usize,
}

impl Right for ColumnMajor<'_> {
    fn pack(&self, k: Range<usize>, n: Range<usize>, columns: usize, out: &mut [f32]) {
        for (n, width, out) in panels(n, columns, k.len(), out) {
            if width < columns {
                out.fill(0.0);
            }
            transpose_into(width, columns, |i| &self.values[(n + i) * self.stride..][k.clone()], out);
        }
    }
}

/// Puts `count` contiguous columns side by side: `out[k][columns]`.
pub fn transpose_into<'a>(count: usize, columns: usize, column: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
    // Eight at a time, so that each line of `out` is met while it is near.
    let mut i = 0;
    while i + 8 <= count {
        let eight: [&[f32]; 8] = std::array::from_fn(|j| column(i + j));
        let depth = eight[0].len();
        assert!(eight.iter().all(|column| column.len() == depth) && out.len() >= depth * columns);
        for (k, out) in out.chunks_exact_mut(columns).enumerate().take(depth) {
            let out: &mut [f32; 8] = (&mut out[i..i + 8]).try_into().expect("eight");
            *out = std::array::from_fn(|j| eight[j][k]);
        }
        i += 8;
    }
    for i in i..count {
        for (value, out) in column(i).iter().zip(out.chunks_exact_mut(columns)) {
            out[i] = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::noise;
    use super::*;

    /// Every way in, every odd size, against the definition.
    #[test]
    fn products_of_all_shapes() {
        for (m, n, k) in [(1, 1, 1), (6, 16, 4), (7, 17, 5), (13, 300, 3), (40, 700, 800), (5, 3, 1000), (300, 33, 400)] {
            let (a, b, bias) = (noise(m * k, 1), noise(k * n, 2), noise(m.max(n), 3));
            let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
            for case in 0..8 {
                let left = if case % 2 == 0 { Left::Rows(&a, k) } else { Left::Columns(&at, m) };
                let start = if case < 4 { Start::PerRow(&bias[..m]) } else { Start::PerColumn(&bias[..n]) };
                let mut c = vec![7.0; m * n];
                match case / 2 % 2 {
                    0 => product([m, n, k], left, &RowMajor { values: &b, stride: n }, &mut c, start),
                    _ => product([m, n, k], left, &ColumnMajor { values: &bt, stride: k }, &mut c, start),
                }
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

    #[test]
    #[should_panic(expected = "A has 5 values, expected 6")]
    fn a_short_operand_is_refused() {
        product([2, 2, 3], Left::Rows(&[0.0; 5], 3), &RowMajor { values: &[0.0; 6], stride: 2 }, &mut [0.0; 4], Start::Zero);
    }

    #[test]
    #[should_panic(expected = "C is too short for 2 rows of 2")]
    fn a_short_output_is_refused() {
        product([2, 2, 3], Left::Rows(&[0.0; 6], 3), &RowMajor { values: &[0.0; 6], stride: 2 }, &mut [0.0; 3], Start::Zero);
    }

    #[test]
    #[should_panic(expected = "rows of C overlap: 2 of 3, 2 apart")]
    fn rows_that_overlap_are_refused() {
        multiply([2, 3, 1], Left::Rows(&[0.0; 2], 1), &[0.0; 64], Rows::new(&mut [0.0; 8], 2), Start::Zero);
    }

    fn transposed(a: &[f32], m: usize, n: usize) -> Vec<f32> {
        (0..m * n).map(|i| a[i % m * n + i / m]).collect()
    }
}
