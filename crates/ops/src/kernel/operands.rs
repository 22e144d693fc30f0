//! The operands of a product: A is read where it lies, B is packed into panels by whatever knows how to.

use std::ops::Range;

use pulp::bytemuck::Zeroable;

use super::words::{Element, Word};

/// The left operand, A, `[m, k]`, where it lies. Sizes count words.
#[derive(Debug, Clone, Copy)]
pub enum Left<'a, W = f32> {
    /// Row `m` begins at `m * stride`.
    Rows(&'a [W], usize),
    /// Column `k` begins at `k * stride`.
    Columns(&'a [W], usize),
    /// A convolution's weight, `[k / area][m][area]`, turned around: row `m`, term `(o, t)` is the value `(o, m, area − 1 − t)`.
    Turned { values: &'a [W], area: usize },
    /// Images, `[k / pixels][m][pixels]`: row `m`, term `(image, pixel)`.
    Images { values: &'a [W], pixels: usize },
}

impl<'a, W: Word> Left<'a, W> {
    /// Rows of `k` values, one after the other.
    ///
    /// # Panics
    /// When the length of a row is not a multiple of a word's.
    pub fn rows<E: Element<Word = W>>(values: &'a [E], k: usize) -> Self {
        assert!(k.is_multiple_of(E::TERMS), "rows of {k} values in words of {}", E::TERMS);
        Left::Rows(E::words(values), k / E::TERMS)
    }

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

/// The right operand, B, `[k, n]`, k in words.
pub trait Right<W = f32>: Sync {
    /// Packs rows `k` of columns `n` into panels of `columns` columns, `[panel][k][columns]`; columns past the end are zero.
    fn pack(&self, k: Range<usize>, n: Range<usize>, columns: usize, out: &mut [W]);
}

/// The panels of a slab, each with its first column and its width.
pub fn panels<W>(n: Range<usize>, columns: usize, depth: usize, out: &mut [W]) -> impl Iterator<Item = (usize, usize, &mut [W])> {
    let end = n.end;
    n.step_by(columns).zip(out.chunks_exact_mut(depth * columns)).map(move |(n, out)| (n, columns.min(end - n), out))
}

/// A right operand whose rows are contiguous: row `k` begins at `k * stride`. Both count values.
pub struct RowMajor<'a, E = f32> {
    pub values: &'a [E],
    /// Distance between the first values of neighbouring rows.
    pub stride: usize,
}

impl<E: Element> Right<E::Word> for RowMajor<'_, E> {
    fn pack(&self, k: Range<usize>, n: Range<usize>, columns: usize, out: &mut [E::Word]) {
        for (n, width, out) in panels(n, columns, k.len(), out) {
            for (k, out) in k.clone().zip(out.chunks_exact_mut(columns)) {
                let rows: [usize; 2] = std::array::from_fn(|term| (k * E::TERMS + term) * self.stride + n);
                // The usual cases, with their length known.
                if let (16, Ok(out)) = (width, <&mut [E::Word; 16]>::try_from(&mut *out)) {
                    E::put_all(self.values, &rows, out);
                } else if let (32, Ok(out)) = (width, <&mut [E::Word; 32]>::try_from(&mut *out)) {
                    E::put_all(self.values, &rows, out);
                } else {
                    E::put(self.values, &rows, 1, &mut out[..width]);
                    out[width..].fill(Zeroable::zeroed());
                }
            }
        }
    }
}

/// A right operand whose columns are contiguous: column `n` begins at `n * stride`. Both count words.
pub struct ColumnMajor<'a, W = f32> {
    values: &'a [W],
    stride: usize,
}

impl<'a, W: Word> ColumnMajor<'a, W> {
    /// Columns whose first values are `stride` values apart.
    ///
    /// # Panics
    /// When `stride` is not a multiple of a word's length.
    pub fn new<E: Element<Word = W>>(values: &'a [E], stride: usize) -> Self {
        assert!(stride.is_multiple_of(E::TERMS), "columns of {stride} values in words of {}", E::TERMS);
        Self { values: E::words(values), stride: stride / E::TERMS }
    }
}

impl<W: Word> Right<W> for ColumnMajor<'_, W> {
    fn pack(&self, k: Range<usize>, n: Range<usize>, columns: usize, out: &mut [W]) {
        for (n, width, out) in panels(n, columns, k.len(), out) {
            if width < columns {
                out.fill(W::zeroed());
            }
            transpose_into(width, columns, |i| &self.values[(n + i) * self.stride..][k.clone()], out);
        }
    }
}

/// Puts `count` contiguous columns side by side: `out[k][columns]`.
///
/// # Panics
/// When `out` is shorter than the columns are deep.
pub fn transpose_into<'a, W: Word>(count: usize, columns: usize, column: impl Fn(usize) -> &'a [W], out: &mut [W]) {
    let fours = count / 4 * 4;
    for i in (0..fours).step_by(4) {
        let four: [&[W]; 4] = std::array::from_fn(|j| column(i + j));
        let depth = four[0].len();
        for k in (0..depth / 4 * 4).step_by(4) {
            let rows = turned(four.map(|column| column[k..k + 4].try_into().expect("four words")));
            for (row, k) in rows.into_iter().zip(k..) {
                let out: &mut [W; 4] = (&mut out[k * columns + i..][..4]).try_into().expect("four words");
                *out = row;
            }
        }
        for k in depth / 4 * 4..depth {
            out[k * columns + i..][..4].copy_from_slice(&four.map(|column| column[k]));
        }
    }
    for i in fours..count {
        for (value, out) in column(i).iter().zip(out.chunks_exact_mut(columns)) {
            out[i] = *value;
        }
    }
}

/// Four rows of four words as columns.
#[inline(always)]
fn turned<W: Word>(rows: [&[W; 4]; 4]) -> [[W; 4]; 4] {
    const { assert!(size_of::<W>() == size_of::<f32>(), "a word fills a lane") };
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m128, _MM_TRANSPOSE4_PS, _mm_loadu_ps};
        // Left to the compiler, this is done word by word, which takes half as long again. Every processor of this kind has the instructions.
        // SAFETY: each row is 16 bytes, as a vector is, and words may hold any bits.
        unsafe {
            let [mut a, mut b, mut c, mut d] = rows.map(|row| _mm_loadu_ps(row.as_ptr().cast()));
            _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
            [a, b, c, d].map(|row| pulp::bytemuck::cast::<[f32; 4], [W; 4]>(std::mem::transmute::<__m128, [f32; 4]>(row)))
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|i| rows.map(|row| row[i]))
}
