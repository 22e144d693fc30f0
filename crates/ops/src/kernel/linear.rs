//! Linear maps of rows, `[rows, in]` → `[rows, out]`, with the weight as PyTorch lays it, `[out, in]`.

use super::product::{ColumnMajor, Left, RowMajor, Start, product, run};
use super::{Scratch, Shared, part};

/// Below so many rows the weight is read where it lies and the output is turned: to pack the weight would cost more.
const FEW: usize = 160;

/// `y = x Wᵀ + b`.
pub fn forward([rows, d_out, d_in]: [usize; 3], x: &[f32], weight: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    if rows >= FEW {
        let start = bias.map_or(Start::Zero, Start::PerColumn);
        return product([rows, d_out, d_in], Left::Rows(x, d_in), &ColumnMajor { values: weight, stride: d_in }, y, start);
    }
    let start = bias.map_or(Start::Zero, Start::PerRow);
    if rows == 1 {
        return product([d_out, 1, d_in], Left::Rows(weight, d_in), &ColumnMajor { values: x, stride: d_in }, y, start);
    }
    let mut turned = Scratch::new(d_out * rows);
    product([d_out, rows, d_in], Left::Rows(weight, d_in), &ColumnMajor { values: x, stride: d_in }, &mut turned, start);
    transpose([d_out, rows], &turned, y);
}

/// `dx = dy W`.
pub fn input_gradient([rows, d_out, d_in]: [usize; 3], dy: &[f32], weight: &[f32], dx: &mut [f32]) {
    product([rows, d_in, d_out], Left::Rows(dy, d_out), &RowMajor { values: weight, stride: d_in }, dx, Start::Zero);
}

/// `dw = dyᵀ x`.
pub fn weight_gradient([rows, d_out, d_in]: [usize; 3], x: &[f32], dy: &[f32], dw: &mut [f32]) {
    product([d_out, d_in, rows], Left::Columns(dy, d_out), &RowMajor { values: x, stride: d_in }, dw, Start::Zero);
}

/// `db[o] = Σ dy[row, o]`.
pub fn bias_gradient(dy: &[f32], db: &mut [f32]) {
    db.fill(0.0);
    for row in dy.chunks_exact(db.len()) {
        db.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
}

/// `[m, n]` → `[n, m]`, in squares that stay near.
fn transpose([m, n]: [usize; 2], from: &[f32], to: &mut [f32]) {
    let shared = Shared::new(&mut to[..m * n]);
    let threads = if m * n < 1 << 15 { 1 } else { rayon::current_num_threads() };
    run(threads, threads, |i| {
        for rows in part(m, threads, i, 16).step_by(16) {
            for column in 0..n {
                for row in rows..(rows + 16).min(m) {
                    // SAFETY: each task writes its own columns of the output.
                    unsafe { *shared.at(column * m + row) = from[row * n + column] };
                }
            }
        }
    });
}
