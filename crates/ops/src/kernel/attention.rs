//! Scaled dot-product attention in tiles (FlashAttention, Dao et al., arXiv 2205.14135 and 2307.08691): no matrix of all scores exists,
//! forward or backward. Heads are read where they lie, as consecutive channels of each token.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::lanes::{map_in_place, map_in_place_and_sum, max, update};
use super::math::exp;
use super::product::{Block, ColumnMajor, Left, Right, RowMajor, Start, Target, run, tile};
use super::{Scratch, Shared, part};

/// Queries of a tile of scores.
const QUERIES: usize = 48;
/// Keys of a tile of scores.
const KEYS: usize = 128;

/// What is added to the scores before the softmax.
#[derive(Debug, Clone, Copy)]
pub enum Bias<'a> {
    /// Nothing.
    None,
    /// A query sees the keys at or before its own place.
    Causal,
    /// `[b, keys]`, for every query and head.
    PerKey(&'a [f32]),
}

/// Sizes; queries are `[b, queries, heads · d]`, keys and values `[b, keys, heads · d]`.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Batch.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Queries.
    pub queries: usize,
    /// Keys.
    pub keys: usize,
    /// Channels of a head.
    pub d: usize,
}

impl Shape {
    fn channels(&self) -> usize {
        self.heads * self.d
    }

    fn scale(&self) -> f32 {
        (self.d as f64).powf(-0.5) as f32
    }

    /// Where head `pair % heads` of image `pair / heads` begins in a tensor of `tokens` tokens.
    fn head(&self, pair: usize, tokens: usize) -> usize {
        pair / self.heads * tokens * self.channels() + pair % self.heads * self.d
    }

    fn pairs(&self) -> usize {
        self.batch * self.heads
    }

    /// A head's part of keys or values.
    fn of_keys<'a>(&self, values: &'a [f32], pair: usize) -> &'a [f32] {
        &values[self.head(pair, self.keys)..]
    }

    fn of_queries<'a>(&self, values: &'a [f32], pair: usize) -> &'a [f32] {
        &values[self.head(pair, self.queries)..]
    }

    fn threads(&self) -> usize {
        let work = self.pairs() * self.queries * self.keys * self.d;
        if work < 1 << 16 { 1 } else { rayon::current_num_threads() }
    }
}

fn tiles(tokens: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..tokens).step_by(size).map(move |from| from..(from + size).min(tokens))
}

/// A head's tokens as panels, tile by tile: as columns (`[d, tokens of the tile]`) or as rows (`[tokens of the tile, d]`).
struct Packed {
    values: Scratch,
    size: usize,
}

impl Packed {
    fn columns(values: &[f32], stride: usize, d: usize, tokens: usize, size: usize) -> Self {
        let columns = tile().columns;
        let each = size.next_multiple_of(columns) * d;
        let mut packed = Scratch::new(tokens.div_ceil(size) * each);
        for (tokens, out) in tiles(tokens, size).zip(packed.chunks_exact_mut(each)) {
            ColumnMajor { values, stride }.pack(0..d, tokens, columns, out);
        }
        Self { values: packed, size: each }
    }

    fn rows(values: &[f32], stride: usize, d: usize, tokens: usize, size: usize) -> Self {
        let columns = tile().columns;
        let each = size * d.next_multiple_of(columns);
        let mut packed = Scratch::new(tokens.div_ceil(size) * each);
        for (tokens, out) in tiles(tokens, size).zip(packed.chunks_exact_mut(each)) {
            RowMajor { values, stride }.pack(tokens, 0..d, columns, out);
        }
        Self { values: packed, size: each }
    }

    fn tile(&self, index: usize) -> &[f32] {
        &self.values[index * self.size..][..self.size]
    }
}

/// One tile's product, on this thread.
fn multiply([m, n, k]: [usize; 3], left: Left<'_>, right: &[f32], (out, stride): (&mut [f32], usize), start: Start<'_>) {
    assert!(out.len() >= (m - 1) * stride + n);
    left.check(m, k);
    assert!(right.len() >= n.next_multiple_of(tile().columns) * k);
    let out = Target { values: Shared::new(out), stride, per: n, apart: 0 };
    Arch::new().dispatch(Block { left, m: 0..m, k: 0..k, whole: k, right, n: 0..n, out, start });
}

/// `out = softmax(q kᵀ / √d + bias) v`, and `lse`, the logarithm of each softmax's denominator, `[b, heads, queries]`.
pub fn forward(shape: &Shape, [q, k, v]: [&[f32]; 3], bias: Bias<'_>, out: &mut [f32], lse: &mut [f32]) {
    let Shape { queries, keys, d, .. } = *shape;
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    let stride = shape.channels();
    // As many parts of a head's queries as keep all threads busy.
    let threads = shape.threads();
    let parts = if shape.pairs() >= 2 * threads { 1 } else { (2 * threads).div_ceil(shape.pairs()) };
    let each = |pair: usize, range: Range<usize>, packed: &[Packed; 2]| {
        for rows in tiles(range.len(), QUERIES) {
            let rows = range.start + rows.start..range.start + rows.end;
            let first = shape.head(pair, queries) + rows.start * stride;
            // SAFETY: these queries of this head belong to this task.
            let lse = unsafe { lse.slice(pair * queries + rows.start..pair * queries + rows.end) };
            query_tile(shape, &q[first..], packed, bias_of(bias, pair / shape.heads, keys), &rows, lse, |row, values| {
                // SAFETY: as above.
                unsafe { out.slice(first + row * stride..first + row * stride + d) }.copy_from_slice(values);
            });
        }
    };
    let pack = |pair| {
        [Packed::columns(shape.of_keys(k, pair), stride, d, keys, KEYS), Packed::rows(shape.of_keys(v, pair), stride, d, keys, KEYS)]
    };
    if parts == 1 {
        run(threads, shape.pairs(), |pair| each(pair, 0..queries, &pack(pair)));
    } else {
        for pair in 0..shape.pairs() {
            let packed = pack(pair);
            run(threads, parts, |i| each(pair, part(queries, parts, i, tile().rows), &packed));
        }
    }
}

fn bias_of<'a>(bias: Bias<'a>, image: usize, keys: usize) -> Bias<'a> {
    match bias {
        Bias::PerKey(values) => Bias::PerKey(&values[image * keys..][..keys]),
        other => other,
    }
}

/// Keys of the tile that query `query` sees.
fn seen(bias: Bias<'_>, query: usize, keys: &Range<usize>) -> usize {
    match bias {
        Bias::Causal => (query + 1).clamp(keys.start, keys.end) - keys.start,
        _ => keys.len(),
    }
}

fn added<'a>(bias: Bias<'a>, keys: &Range<usize>) -> Option<&'a [f32]> {
    match bias {
        Bias::PerKey(values) => Some(&values[keys.clone()]),
        _ => None,
    }
}

/// A tile of queries against all keys, with a running maximum and a running sum (2307.08691, algorithm 1).
fn query_tile(
    shape: &Shape,
    q: &[f32],
    [keys_packed, values_packed]: &[Packed; 2],
    bias: Bias<'_>,
    rows: &Range<usize>,
    lse: &mut [f32],
    write: impl Fn(usize, &[f32]),
) {
    let (m, d, stride) = (rows.len(), shape.d, shape.channels());
    let (mut scores, mut sums) = (Scratch::new(m * KEYS), Scratch::zeroed(m * d));
    let (mut largest, mut totals) = (vec![f32::NEG_INFINITY; m], vec![0.0; m]);
    for (i, keys) in tiles(shape.keys, KEYS).enumerate() {
        if matches!(bias, Bias::Causal) && keys.start >= rows.end {
            break;
        }
        multiply([m, keys.len(), d], Left::Rows(q, stride), keys_packed.tile(i), (&mut scores, KEYS), Start::Zero);
        let running = Running { largest: &mut largest, totals: &mut totals, sums: &mut sums[..m * d] };
        Arch::new().dispatch(Softmax { scores: &mut scores, scale: shape.scale(), bias, queries: rows, keys: &keys, running });
        multiply([m, d, keys.len()], Left::Rows(&scores, KEYS), values_packed.tile(i), (&mut sums, d), Start::Keep);
    }
    for (row, sums) in sums.chunks_exact_mut(d).enumerate().take(m) {
        let share = 1.0 / totals[row];
        sums.iter_mut().for_each(|sum| *sum *= share);
        write(row, sums);
        lse[row] = largest[row] + totals[row].ln();
    }
}

/// The softmax so far of each query of a tile.
struct Running<'a> {
    /// The largest score.
    largest: &'a mut [f32],
    /// Σ e^(score − largest).
    totals: &'a mut [f32],
    /// Σ e^(score − largest) v, `[queries, d]`.
    sums: &'a mut [f32],
}

/// A tile of raw scores to e^(score − largest), with what was summed before brought to the new largest.
struct Softmax<'a> {
    scores: &'a mut [f32],
    scale: f32,
    bias: Bias<'a>,
    queries: &'a Range<usize>,
    keys: &'a Range<usize>,
    running: Running<'a>,
}

impl WithSimd for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Running { largest, totals, sums } = self.running;
        let d = sums.len() / self.queries.len();
        for (row, scores) in self.scores.chunks_exact_mut(KEYS).enumerate().take(self.queries.len()) {
            let (scores, unseen) = scores[..self.keys.len()].split_at_mut(seen(self.bias, self.queries.start + row, self.keys));
            unseen.fill(0.0);
            if scores.is_empty() {
                continue;
            }
            let scale = add_bias(simd, scores, self.scale, added(self.bias, self.keys));
            let new = largest[row].max(max(simd, scores) * scale);
            let (factor, less) = (simd.splat_f32s(scale), simd.splat_f32s(-new));
            let total = map_in_place_and_sum(
                simd,
                scores,
                #[inline(always)]
                |score| exp(simd, simd.mul_add_e_f32s(score, factor, less)),
            );
            if new > largest[row] {
                let kept = (largest[row] - new).exp();
                totals[row] *= kept;
                sums[row * d..(row + 1) * d].iter_mut().for_each(|sum| *sum *= kept);
                largest[row] = new;
            }
            totals[row] += total;
        }
    }
}

/// Scales scores and adds the bias, if there is one; the scale that is still to be applied.
#[inline(always)]
fn add_bias<S: Simd>(simd: S, scores: &mut [f32], scale: f32, bias: Option<&[f32]>) -> f32 {
    let Some(bias) = bias else { return scale };
    let factor = simd.splat_f32s(scale);
    update(
        simd,
        bias,
        scores,
        #[inline(always)]
        |bias, score| simd.mul_add_e_f32s(score, factor, bias),
    );
    1.0
}

/// What the forward pass saw and yielded.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// `[b, queries, heads · d]`.
    pub q: &'a [f32],
    /// `[b, keys, heads · d]`.
    pub k: &'a [f32],
    /// `[b, keys, heads · d]`.
    pub v: &'a [f32],
    /// `[b, queries, heads · d]`.
    pub out: &'a [f32],
    /// `[b, heads, queries]`.
    pub lse: &'a [f32],
}

/// The gradients of q, k and v, given that of the output (2307.08691, algorithm 2): scores are computed again, tile by tile.
pub fn backward(shape: &Shape, seen: &Seen<'_>, bias: Bias<'_>, dout: &[f32], [dq, dk, dv]: [&mut [f32]; 3]) {
    let threads = shape.threads();
    // Where heads are too few for the threads, a head's keys are shared out, each part with queries' gradients of its own.
    let parts = if shape.pairs() >= threads { 1 } else { threads.div_ceil(shape.pairs()).min(shape.keys.div_ceil(KEYS)) };
    let mut partial = Scratch::new(if parts > 1 { (parts - 1) * dq.len() } else { 0 });
    let whole = dq.len();
    let shared = [Shared::new(dq), Shared::new(&mut partial)];
    let (dk, dv) = (Shared::new(dk), Shared::new(dv));
    run(threads, shape.pairs() * parts, |task| {
        let (pair, i) = (task / parts, task % parts);
        // SAFETY: a pair writes its own channels; each part of its keys has a buffer of its own.
        let dq = unsafe { if i == 0 { shared[0].slice(0..whole) } else { shared[1].slice((i - 1) * whole..i * whole) } };
        let tiles = part(shape.keys.div_ceil(KEYS), parts, i, 1);
        head_backward(shape, seen, bias_of(bias, pair / shape.heads, shape.keys), dout, pair, tiles, [Shared::new(dq), dk, dv]);
    });
    for partial in partial.chunks_exact(whole).take(parts - 1) {
        dq.iter_mut().zip(partial).for_each(|(sum, part)| *sum += part);
    }
}

/// Some tiles of keys of one head against all of its queries.
fn head_backward(
    shape: &Shape,
    seen_before: &Seen<'_>,
    bias: Bias<'_>,
    dout: &[f32],
    pair: usize,
    tiles_of_keys: Range<usize>,
    [dq, dk, dv]: [Shared; 3],
) {
    let Shape { queries, keys, d, .. } = *shape;
    let (stride, scale) = (shape.channels(), shape.scale());
    let [q, out, dout] = [seen_before.q, seen_before.out, dout].map(|values| shape.of_queries(values, pair));
    let [k, v] = [seen_before.k, seen_before.v].map(|values| shape.of_keys(values, pair));
    let lse = &seen_before.lse[pair * queries..][..queries];
    let dot = |row: usize| (0..d).map(|i| out[row * stride + i] * dout[row * stride + i]).sum::<f32>();
    let delta: Vec<f32> = (0..queries).map(dot).collect();
    let [q_rows, dout_rows] = [q, dout].map(|values| Packed::rows(values, stride, d, queries, QUERIES));
    let [mut p, mut ds] = [(); 2].map(|()| Scratch::new(QUERIES * KEYS));
    let [mut dk_tile, mut dv_tile] = [(); 2].map(|()| Scratch::new(KEYS * d));
    for row in 0..queries {
        // SAFETY: this head's channels of this part's buffer.
        unsafe { dq.slice(shape.head(pair, queries) + row * stride..shape.head(pair, queries) + row * stride + d) }.fill(0.0);
    }
    for index in tiles_of_keys {
        let tile = index * KEYS..((index + 1) * KEYS).min(keys);
        let n = tile.len();
        let [k_here, v_here] = [k, v].map(|values| &values[tile.start * stride..]);
        let (k_columns, v_columns) = (Packed::columns(k_here, stride, d, n, KEYS), Packed::columns(v_here, stride, d, n, KEYS));
        let k_rows = Packed::rows(k_here, stride, d, n, KEYS);
        dk_tile[..n * d].fill(0.0);
        dv_tile[..n * d].fill(0.0);
        for (block, rows) in tiles(queries, QUERIES).enumerate() {
            if matches!(bias, Bias::Causal) && rows.end <= tile.start {
                continue;
            }
            let m = rows.len();
            let at = rows.start * stride;
            multiply([m, n, d], Left::Rows(&q[at..], stride), k_columns.tile(0), (&mut p, KEYS), Start::Zero);
            multiply([m, n, d], Left::Rows(&dout[at..], stride), v_columns.tile(0), (&mut ds, KEYS), Start::Zero);
            let [lse, delta] = [lse, &delta].map(|values| &values[rows.clone()]);
            Arch::new().dispatch(Slopes { p: &mut p, ds: &mut ds, scale, bias, queries: &rows, keys: &tile, lse, delta });
            multiply([n, d, m], Left::Columns(&p, KEYS), dout_rows.tile(block), (&mut dv_tile, d), Start::Keep);
            multiply([n, d, m], Left::Columns(&ds, KEYS), q_rows.tile(block), (&mut dk_tile, d), Start::Keep);
            let first = shape.head(pair, queries) + at;
            // SAFETY: the product touches this head's channels of these rows alone, which are this task's.
            let dq = unsafe { dq.slice(first..first + (m - 1) * stride + d) };
            multiply([m, d, n], Left::Rows(&ds, KEYS), k_rows.tile(0), (dq, stride), Start::Keep);
        }
        for row in 0..n {
            let at = shape.head(pair, keys) + (tile.start + row) * stride;
            // SAFETY: these keys of this head belong to this task.
            unsafe {
                dk.slice(at..at + d).copy_from_slice(&dk_tile[row * d..][..d]);
                dv.slice(at..at + d).copy_from_slice(&dv_tile[row * d..][..d]);
            }
        }
    }
}

/// A tile of raw scores to probabilities, and of gradients of probabilities to those of raw scores: `p (dp − delta) · scale`.
struct Slopes<'a> {
    p: &'a mut [f32],
    ds: &'a mut [f32],
    scale: f32,
    bias: Bias<'a>,
    queries: &'a Range<usize>,
    keys: &'a Range<usize>,
    lse: &'a [f32],
    delta: &'a [f32],
}

impl WithSimd for Slopes<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.p.chunks_exact_mut(KEYS).zip(self.ds.chunks_exact_mut(KEYS)).zip(self.lse.iter().zip(self.delta));
        for (row, ((p, ds), (lse, delta))) in rows.enumerate() {
            let sees = seen(self.bias, self.queries.start + row, self.keys);
            let [(p, p_unseen), (ds, ds_unseen)] = [p, ds].map(|values| values[..self.keys.len()].split_at_mut(sees));
            p_unseen.fill(0.0);
            ds_unseen.fill(0.0);
            let scale = add_bias(simd, p, self.scale, added(self.bias, self.keys));
            let (factor, less) = (simd.splat_f32s(scale), simd.splat_f32s(-lse));
            map_in_place(
                simd,
                p,
                #[inline(always)]
                |p| exp(simd, simd.mul_add_e_f32s(p, factor, less)),
            );
            let (factor, delta) = (simd.splat_f32s(self.scale), simd.splat_f32s(*delta));
            update(
                simd,
                p,
                ds,
                #[inline(always)]
                |p, ds| simd.mul_f32s(simd.mul_f32s(p, factor), simd.sub_f32s(ds, delta)),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: u32) -> Vec<f32> {
        (0..len as u32).map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 16) % 200) as f32 / 100.0 - 1.0).collect()
    }

    /// Attention and the gradients of `Σ out · dout` by the definition, in double precision.
    fn definition(shape: &Shape, [q, k, v]: [&[f32]; 3], bias: Bias<'_>, dout: &[f32]) -> [Vec<f64>; 4] {
        let Shape { queries, keys, d, heads, .. } = *shape;
        let c = shape.channels();
        let mut sums = [vec![0.0; q.len()], vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]];
        for (pair, i) in (0..shape.pairs()).flat_map(|pair| (0..queries).map(move |i| (pair, i))) {
            let (row, at) = (shape.head(pair, queries) + i * c, |j: usize| shape.head(pair, keys) + j * c);
            let visible: Vec<usize> = (0..keys).filter(|j| !matches!(bias, Bias::Causal) || *j <= i).collect();
            let score = |j: &usize| {
                let dot: f64 = (0..d).map(|l| f64::from(q[row + l]) * f64::from(k[at(*j) + l])).sum();
                let added = if let Bias::PerKey(values) = bias { f64::from(values[pair / heads * keys + j]) } else { 0.0 };
                (dot / (d as f64).sqrt() + added).exp()
            };
            let weights: Vec<f64> = visible.iter().map(score).collect();
            let total: f64 = weights.iter().sum();
            let dp: Vec<f64> = visible.iter().map(|j| (0..d).map(|l| f64::from(dout[row + l]) * f64::from(v[at(*j) + l])).sum()).collect();
            let mean: f64 = weights.iter().zip(&dp).map(|(w, dp)| w / total * dp).sum();
            for ((j, w), dp) in visible.iter().zip(&weights).zip(&dp) {
                let (p, ds) = (w / total, w / total * (dp - mean) / (d as f64).sqrt());
                for l in 0..d {
                    sums[0][row + l] += p * f64::from(v[at(*j) + l]);
                    sums[1][row + l] += ds * f64::from(k[at(*j) + l]);
                    sums[2][at(*j) + l] += ds * f64::from(q[row + l]);
                    sums[3][at(*j) + l] += p * f64::from(dout[row + l]);
                }
            }
        }
        sums
    }

    #[test]
    fn attention_of_all_shapes() {
        let shape = |batch, heads, queries, keys, d| Shape { batch, heads, queries, keys, d };
        for shape in
            [shape(1, 1, 1, 1, 1), shape(2, 3, 5, 7, 4), shape(1, 2, 130, 300, 8), shape(1, 1, 200, 257, 33), shape(2, 1, 77, 77, 16)]
        {
            let [q, dout] = [1, 2].map(|seed| noise(shape.batch * shape.queries * shape.channels(), seed));
            let [k, v] = [3, 4].map(|seed| noise(shape.batch * shape.keys * shape.channels(), seed));
            let per_key = noise(shape.batch * shape.keys, 5);
            for bias in [Bias::None, Bias::Causal, Bias::PerKey(&per_key)] {
                let (mut out, mut lse) = (q.clone(), vec![0.0; shape.pairs() * shape.queries]);
                let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
                forward(&shape, [&q, &k, &v], bias, &mut out, &mut lse);
                let seen = Seen { q: &q, k: &k, v: &v, out: &out, lse: &lse };
                backward(&shape, &seen, bias, &dout, [&mut dq, &mut dk, &mut dv]);
                let expected = definition(&shape, [&q, &k, &v], bias, &dout);
                for (what, (found, expected)) in ["out", "dq", "dk", "dv"].iter().zip([&out, &dq, &dk, &dv].iter().zip(&expected)) {
                    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                        assert!(
                            (f64::from(*found) - expected).abs() < 1e-5,
                            "{shape:?} {bias:?}: {what}[{i}] is {found}, expected {expected}"
                        );
                    }
                }
            }
        }
    }
}
