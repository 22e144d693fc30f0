//! The operands of a product: A is read where it lies, B is packed into panels by whatever knows how to.

use std::ops::Range;

/// The left operand, A, `[m, k]`, where it lies.
#[derive(Debug, Clone, Copy)]
pub enum Left<'a> {
    /// Row `m` begins at `m * stride`.
    Rows(&'a [f32], usize),
    /// Column `k` begins at `k * stride`.
    Columns(&'a [f32], usize),
    /// A convolution's weight, `[k / area][m][area]`, turned around: row `m`, term `(o, t)` is the value `(o, m, area − 1 − t)`.
    Turned { values: &'a [f32], area: usize },
    /// Images, `[k / pixels][m][pixels]`: row `m`, term `(image, pixel)`.
    Images { values: &'a [f32], pixels: usize },
}

impl Left<'_> {
    /// # Panics
    /// When it is shorter than `[m, k]`.
    pub fn check(&self, m: usize, k: usize) {
        let (values, needed) = match *self {
            Left::Rows(values, stride) => (values, extent(m, stride, k)),
            Left::Columns(values, stride) => (values, extent(k, stride, m)),
            Left::Turned { values, area: inner } | Left::Images { values, pixels: inner } => {
                assert!(k.is_multiple_of(inner), "{k} terms in groups of {inner}");
                (values, m.saturating_mul(k))
            }
        };
        assert!(values.len() >= needed, "A has {} values, expected {needed}", values.len());
    }
}

/// How many values `count` rows of `width` span when they begin `stride` apart; where that overflows, more than any slice holds.
pub fn extent(count: usize, stride: usize, width: usize) -> usize {
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
