//! Matrix products in the manner of Goto and van de Geijn ("Anatomy of high-performance matrix multiplication", 2008): a register tile
//! of C that stays in registers while panels of A and B stream past it. B is packed into panels as wide as the tile, by whatever
//! knows how to ([`Right`]): that is where a convolution unfolds its image. A is read where it lies.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{Scratch, Shared, part};

/// Values of k that are summed in one pass: a panel of A of that depth stays in the first-level cache.
const DEPTH: usize = 384;
/// Columns of C that one task holds: `DEPTH` × this many values of B stay in the second-level cache.
const SLAB: usize = 128;
/// Multiplications below which threads cost more than they bring.
const SERIAL: usize = 1 << 17;

/// Rows and columns of the register tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tile {
    /// Rows.
    pub rows: usize,
    /// Columns.
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

/// The left operand, `[m, k]`, where it lies.
#[derive(Debug, Clone, Copy)]
pub enum Left<'a> {
    /// Row `m` begins at `m * stride`.
    Rows(&'a [f32], usize),
    /// Column `k` begins at `k * stride`.
    Columns(&'a [f32], usize),
    /// Panels of the tile's height, `[m / rows][k][rows]`; rows past the end are anything.
    Panels(&'a [f32]),
}

impl Left<'_> {
    /// # Panics
    /// When it is shorter than `[m, k]`.
    pub fn check(&self, m: usize, k: usize) {
        let needed = match self {
            _ if m == 0 || k == 0 => 0,
            Left::Rows(_, stride) => (m - 1) * stride + k,
            Left::Columns(_, stride) => (k - 1) * stride + m,
            Left::Panels(_) => m.next_multiple_of(tile().rows) * k,
        };
        let (Left::Rows(values, _) | Left::Columns(values, _) | Left::Panels(values)) = self;
        assert!(values.len() >= needed, "A has {} values, expected {needed}", values.len());
    }
}

/// The right operand, `[k, n]`.
pub trait Right: Sync {
    /// Packs rows `k` of columns `n` into panels of `columns` columns, `[panel][k][columns]`; columns past the end are zero.
    fn pack(&self, k: Range<usize>, n: Range<usize>, columns: usize, out: &mut [f32]);
}

/// The panels of a slab, each with its first column and its width.
pub fn panels(n: Range<usize>, columns: usize, depth: usize, out: &mut [f32]) -> impl Iterator<Item = (usize, usize, &mut [f32])> {
    let end = n.end;
    n.step_by(columns).zip(out.chunks_exact_mut(depth * columns)).map(move |(n, out)| (n, columns.min(end - n), out))
}

/// What C begins with.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// Zero.
    Zero,
    /// Each row with its own value.
    PerRow(&'a [f32]),
    /// Each column with its own value.
    PerColumn(&'a [f32]),
    /// What it holds.
    Keep,
}

/// A block of C: `m` rows, `n` columns, summed over `k`.
pub struct Block<'a> {
    /// A.
    pub left: Left<'a>,
    /// Rows.
    pub m: Range<usize>,
    /// Terms of the sum, of
    pub k: Range<usize>,
    /// so many in all.
    pub whole: usize,
    /// Panels of B, `[n / columns][k][columns]`.
    pub right: &'a [f32],
    /// Columns.
    pub n: Range<usize>,
    /// C.
    pub out: Target,
    /// What C begins with.
    pub start: Start<'a>,
}

/// Where C lies: `[images, m, per]`, the columns cut into images that are `apart` from each other.
#[derive(Clone, Copy)]
pub struct Target {
    /// C and more, from its first element on.
    pub values: Shared,
    /// Distance of rows.
    pub stride: usize,
    /// Columns of an image: all of them, or a multiple of the tile's.
    pub per: usize,
    /// Distance of images.
    pub apart: usize,
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
        let (width, depth) = (2 * S::F32_LANES, self.k.len());
        for m in self.m.clone().step_by(R) {
            let rows = R.min(self.m.end - m);
            for (panel, n) in self.n.clone().step_by(width).enumerate() {
                let b = self.right[panel * depth * width..][..depth * width].as_ptr();
                // SAFETY: `check` held every index of A to its slice; B's panel was cut just now.
                let tile = unsafe { self.tile::<S, R>(simd, m, rows, b) };
                self.store(simd, m, rows, n, &tile);
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize>(&self, simd: S, m: usize, rows: usize, b: *const f32) -> [[S::f32s; 2]; R] {
        let (depth, k) = (self.k.len(), self.k.start);
        // Rows past the end repeat the last one: their sums are thrown away.
        let row = |i: usize| m + i.min(rows - 1);
        // SAFETY: see `run`.
        unsafe {
            match self.left {
                Left::Rows(values, stride) => {
                    by_rows::<S, R>(simd, depth, std::array::from_fn(|i| values.as_ptr().add(row(i) * stride + k)), b)
                }
                Left::Panels(values) => by_columns::<S, R>(simd, depth, values.as_ptr().add(m * self.whole + k * R), R, b),
                Left::Columns(values, stride) if rows == R => {
                    by_columns::<S, R>(simd, depth, values.as_ptr().add(k * stride + m), stride, b)
                }
                Left::Columns(values, stride) => {
                    few_columns::<S, R>(simd, depth, std::array::from_fn(|i| values.as_ptr().add(k * stride + row(i))), stride, b)
                }
            }
        }
    }

    #[inline(always)]
    fn store<S: Simd, const R: usize>(&self, simd: S, m: usize, rows: usize, n: usize, tile: &[[S::f32s; 2]; R]) {
        let lanes = S::F32_LANES;
        let width = (2 * lanes).min(self.n.end - n);
        let Target { values, stride, per, apart } = self.out;
        let corner = n / per * apart + n % per + m * stride;
        for (i, sums) in tile.iter().enumerate().take(rows) {
            // SAFETY: `product` held C to its shape, and this block alone has these rows and columns.
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
#[inline(always)]
unsafe fn by_rows<S: Simd, const R: usize>(simd: S, depth: usize, a: [*const f32; R], b: *const f32) -> [[S::f32s; 2]; R] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; R];
    for k in 0..depth {
        // SAFETY: the caller's.
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
#[inline(always)]
unsafe fn by_columns<S: Simd, const R: usize>(simd: S, depth: usize, a: *const f32, stride: usize, b: *const f32) -> [[S::f32s; 2]; R] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; R];
    for k in 0..depth {
        // SAFETY: the caller's.
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

/// The same where fewer than `R` rows are left.
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
        // SAFETY: the caller's.
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

#[inline(always)]
unsafe fn step<S: Simd, const R: usize>(simd: S, a: impl Fn(usize) -> f32, b: *const f32, sums: &mut [[S::f32s; 2]; R]) {
    // SAFETY: the caller's: two vectors at `b`.
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
    let per = shape[1];
    product_into(shape, left, right, (out, per, per, 0), start);
}

/// The same into rows and images that are apart: C, the distance of its rows, the columns of an image, the distance of images.
///
/// # Panics
/// When a slice is too short for its shape, or the columns of an image are not a multiple of the tile's.
pub fn product_into(
    [m, n, k]: [usize; 3],
    left: Left<'_>,
    right: &impl Right,
    (out, stride, per, apart): (&mut [f32], usize, usize, usize),
    start: Start<'_>,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(per == n || (n.is_multiple_of(per) && per.is_multiple_of(tile().columns)), "{n} columns in images of {per}");
    assert!(out.len() >= (n / per - 1) * apart + (m - 1) * stride + per, "C is too short for {m} rows of {n}");
    let tasks = Tasks { m, n, k, left, start, out: Target { values: Shared::new(out), stride, per, apart } };
    tasks.check();
    let threads = if m * n * k < SERIAL { 1 } else { rayon::current_num_threads() };
    if n.div_ceil(SLAB) >= 2 * threads || threads == 1 {
        let parts = n.div_ceil(SLAB).next_multiple_of(threads);
        let columns = tile().columns;
        run(threads, parts, |i| tasks.slab(right, part(n, parts, i, columns)));
    } else {
        tasks.by_rows(right, threads);
    }
}

/// `work` for each of `0..tasks`, on the pool unless one thread is asked for.
pub fn run(threads: usize, tasks: usize, work: impl Fn(usize) + Sync + Send) {
    if threads == 1 || tasks == 1 { (0..tasks).for_each(work) } else { (0..tasks).into_par_iter().with_max_len(1).for_each(work) }
}

/// Where the sum over `k` is cut, in even parts.
pub fn depths(k: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = k.div_ceil(DEPTH).max(1);
    (0..parts).map(move |i| part(k, parts, i, 1))
}

/// One product, to be done in parts.
struct Tasks<'a> {
    m: usize,
    n: usize,
    k: usize,
    left: Left<'a>,
    start: Start<'a>,
    out: Target,
}

impl Tasks<'_> {
    /// # Panics
    /// When A or the start is shorter than the shape says.
    fn check(&self) {
        let Self { m, n, k, .. } = *self;
        self.left.check(m, k);
        match self.start {
            Start::PerRow(values) => assert_eq!(values.len(), m, "one value a row"),
            Start::PerColumn(values) => assert_eq!(values.len(), n, "one value a column"),
            Start::Zero | Start::Keep => {}
        }
    }

    fn block<'b>(&'b self, m: Range<usize>, n: Range<usize>, k: Range<usize>, right: &'b [f32]) {
        let start = if k.start > 0 { Start::Keep } else { self.start };
        Arch::new().dispatch(Block { left: self.left, m, k, whole: self.k, right, n, out: self.out, start });
    }

    /// All rows of some columns: packs its own B, and no one else's.
    fn slab(&self, right: &impl Right, n: Range<usize>) {
        let columns = tile().columns;
        let mut packed = Scratch::new(DEPTH.min(self.k) * n.len().next_multiple_of(columns));
        for k in depths(self.k) {
            right.pack(k.clone(), n.clone(), columns, &mut packed);
            self.block(0..self.m, n.clone(), k, &packed);
        }
    }

    /// All columns at once where they are few: B is packed by all, then the rows are shared out.
    fn by_rows(&self, right: &impl Right, threads: usize) {
        let Tile { rows, columns } = tile();
        let mut packed = Scratch::new(DEPTH.min(self.k) * self.n.next_multiple_of(columns));
        for k in depths(self.k) {
            let shared = Shared::new(&mut packed);
            run(threads, threads, |i| {
                let n = part(self.n, threads, i, columns);
                let size = n.len().next_multiple_of(columns) * k.len();
                // SAFETY: every task but the last has whole panels, and they follow each other.
                right.pack(k.clone(), n.clone(), columns, unsafe { shared.slice(n.start * k.len()..n.start * k.len() + size) });
            });
            run(threads, threads, |i| self.block(part(self.m, threads, i, rows), 0..self.n, k.clone(), &packed));
        }
    }
}

/// A right operand whose rows are contiguous: row `k` begins at `k * stride`.
pub struct RowMajor<'a> {
    /// The values.
    pub values: &'a [f32],
    /// Distance of rows.
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
    /// The values.
    pub values: &'a [f32],
    /// Distance of columns.
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
    use super::*;

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        (0..len as u32).map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 16) % 200) as f32 / 100.0 - 1.0).collect()
    }

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

    fn transposed(a: &[f32], m: usize, n: usize) -> Vec<f32> {
        (0..m * n).map(|i| a[i % m * n + i / m]).collect()
    }
}
