//! Linear maps of rows, `[rows, in]` → `[rows, out]`, with the weight as PyTorch lays it, `[out, in]`.

use std::mem::MaybeUninit;

use super::operands::{ColumnMajor, Left, RowMajor};
use super::product::{Start, product};
use super::words::Element;
use super::{Scratch, cut, on_threads};

/// Below so many rows the weight is read where it lies and the output is turned: to pack the weight would cost more.
const FEW: usize = 160;

/// # Panics
/// When a slice is not as long as its shape says: x `[rows, in]`, the weight `[out, in]`, y `[rows, out]`.
fn check([rows, d_out, d_in]: [usize; 3], x: usize, weight: usize, y: usize) {
    let expected = [rows * d_in, d_out * d_in, rows * d_out];
    assert_eq!([x, weight, y], expected, "values of x, weight and y for {rows} rows of {d_in} to {d_out}");
}

/// `y = x Wᵀ + b`, and `y` written. In bf16 `in` is even.
///
/// # Panics
/// Like its gradients, when a slice is not as long as its shape says.
pub fn forward<'y, E: Element>(
    shape: [usize; 3],
    x: &[E],
    weight: &[E],
    bias: Option<&[f32]>,
    y: &'y mut [MaybeUninit<f32>],
) -> &'y mut [f32] {
    check(shape, x.len(), weight.len(), y.len());
    let [rows, d_out, d_in] = shape;
    if rows >= FEW {
        let start = bias.map_or(Start::Zero, Start::PerColumn);
        return product([rows, d_out, d_in / E::TERMS], Left::rows(x, d_in), &ColumnMajor::new(weight, d_in), y, start);
    }
    let start = bias.map_or(Start::Zero, Start::PerRow);
    let (shape, left, right) = ([d_out, rows, d_in / E::TERMS], Left::rows(weight, d_in), ColumnMajor::new(x, d_in));
    if rows == 1 {
        return product(shape, left, &right, y, start);
    }
    let turned = Scratch::written(d_out * rows, |turned| product(shape, left, &right, turned, start));
    transpose([d_out, rows], &turned, y)
}

/// `dx = dy W`. In bf16 `out` is even.
pub fn input_gradient<'d, E: Element>(shape: [usize; 3], dy: &[E], weight: &[E], dx: &'d mut [MaybeUninit<f32>]) -> &'d mut [f32] {
    check(shape, dx.len(), weight.len(), dy.len());
    let [rows, d_out, d_in] = shape;
    product([rows, d_in, d_out / E::TERMS], Left::rows(dy, d_out), &RowMajor { values: weight, stride: d_in }, dx, Start::Zero)
}

/// `dw = dyᵀ x`.
pub fn weight_gradient<'d>(shape: [usize; 3], x: &[f32], dy: &[f32], dw: &'d mut [MaybeUninit<f32>]) -> &'d mut [f32] {
    check(shape, x.len(), dw.len(), dy.len());
    let [rows, d_out, d_in] = shape;
    product([d_out, d_in, rows], Left::Columns(dy, d_out), &RowMajor { values: x, stride: d_in }, dw, Start::Zero)
}

/// `db[o] = Σ dy[row, o]`.
pub fn bias_gradient(dy: &[f32], db: &mut [f32]) {
    assert!(dy.len().is_multiple_of(db.len()), "{} gradients in rows of {}", dy.len(), db.len());
    db.fill(0.0);
    for row in dy.chunks_exact(db.len()) {
        db.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
}

/// `[m, n]` → `[n, m]`, in squares that stay near.
fn transpose<'t>([m, n]: [usize; 2], from: &[f32], to: &'t mut [MaybeUninit<f32>]) -> &'t mut [f32] {
    assert!(from.len() == m * n && to.len() == m * n, "{} values of {m} rows of {n} to {}", from.len(), to.len());
    let threads = if m * n < 1 << 15 { 1 } else { rayon::current_num_threads() };
    on_threads(threads, cut(to, threads, m), |(range, to)| {
        for rows in (0..m).step_by(16).map(|row| row..(row + 16).min(m)) {
            for (to, column) in to.chunks_exact_mut(m).zip(range.start / m..) {
                for (to, row) in to[rows.clone()].iter_mut().zip(rows.clone()) {
                    to.write(from[row * n + column]);
                }
            }
        }
    });
    // SAFETY: `cut` has parted all of `to` between rows, and all rows of each part are written.
    unsafe { to.assume_init_mut() }
}
