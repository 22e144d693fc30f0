//! Scaled dot-product attention in tiles (FlashAttention, Dao et al., arXiv 2205.14135 and 2307.08691): no matrix of all scores exists,
//! forward or backward. Heads are read where they lie, as consecutive channels of each token.

use std::ops::Range;

use pulp::bytemuck::{cast_slice, cast_slice_mut};
use pulp::{Arch, Simd, WithSimd};

use super::lanes::{map_in_place, map_in_place_and_sum, max, update};
use super::math::exp;
use super::operands::{ColumnMajor, Left, Right, RowMajor};
use super::product::{Rows, Start, multiply};
use super::scored::{KEYS, Scored};
use super::tile::{Tile, tile, tile_for};
use super::words::{Element, Word};
use super::{Scratch, Shared, cut, on_threads, parts};

/// Queries of a tile of scores.
const QUERIES: usize = 96;

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
    pub batch: usize,
    pub heads: usize,
    /// Queries per image.
    pub queries: usize,
    /// Keys per image.
    pub keys: usize,
    /// Channels per head.
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
    fn of_keys<'a, E>(&self, values: &'a [E], pair: usize) -> &'a [E] {
        &values[self.head(pair, self.keys)..]
    }

    fn of_queries<'a, E>(&self, values: &'a [E], pair: usize) -> &'a [E] {
        &values[self.head(pair, self.queries)..]
    }

    /// # Panics
    /// When the shape is empty, or a slice is not as long as it says.
    fn check(&self, of_queries: [usize; 2], of_keys: [usize; 2], lse: &[f32], bias: Bias<'_>) {
        let Self { batch, heads, queries, keys, d } = *self;
        assert!([batch, heads, queries, keys, d].iter().all(|size| *size > 0), "attention of {self:?}");
        let fits = |len: usize, tokens: usize| len == batch * tokens * self.channels();
        assert!(of_queries.iter().all(|len| fits(*len, queries)), "a slice that is not [b, queries, heads · d] of {self:?}");
        assert!(of_keys.iter().all(|len| fits(*len, keys)), "a slice that is not [b, keys, heads · d] of {self:?}");
        assert_eq!(lse.len(), self.pairs() * queries, "logarithms of {self:?}");
        if let Bias::PerKey(values) = bias {
            assert_eq!(values.len(), batch * keys, "a bias per key of {self:?}");
        }
    }

    fn threads(&self) -> usize {
        let work = self.pairs() * self.queries * self.keys * self.d;
        if work < 1 << 16 { 1 } else { rayon::current_num_threads() }
    }
}

fn tiles(tokens: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = tokens.end;
    tokens.step_by(size).map(move |from| from..(from + size).min(end))
}

/// A head's tokens as panels, tile by tile: as columns (`[d, tokens of the tile]`) or as rows (`[tokens of the tile, d]`).
struct Packed {
    tile: Tile,
    values: Scratch,
    size: usize,
}

impl Packed {
    fn columns<E: Element>(values: &[E], stride: usize, d: usize, tokens: usize, size: usize) -> Self {
        let (size, d) = (size.min(tokens), d / E::TERMS);
        let tile = tile_for(size);
        let columns = tile.columns;
        let each = size.next_multiple_of(columns) * d;
        let mut packed = Scratch::new(tokens.div_ceil(size) * each);
        for (tokens, out) in tiles(0..tokens, size).zip(cast_slice_mut(&mut packed).chunks_exact_mut(each)) {
            ColumnMajor::new(values, stride).pack(0..d, tokens, columns, out);
        }
        Self { tile, values: packed, size: each }
    }

    fn rows<E: Element>(values: &[E], stride: usize, d: usize, tokens: usize, size: usize) -> Self {
        let tile = tile_for(d);
        let columns = tile.columns;
        let each = size / E::TERMS * d.next_multiple_of(columns);
        let mut packed = Scratch::new(tokens.div_ceil(size) * each);
        for (tokens, out) in tiles(0..tokens, size).zip(cast_slice_mut(&mut packed).chunks_exact_mut(each)) {
            if tokens.len().is_multiple_of(E::TERMS) {
                RowMajor { values, stride }.pack(tokens.start / E::TERMS..tokens.end / E::TERMS, 0..d, columns, out);
                continue;
            }
            // The last word lacks a token, whose place zeros take.
            let words = tokens.len().div_ceil(E::TERMS);
            let mut padded = vec![E::zeroed(); words * E::TERMS * d];
            for (row, token) in padded.chunks_exact_mut(d).zip(tokens) {
                row.copy_from_slice(&values[token * stride..][..d]);
            }
            RowMajor { values: &padded, stride: d }.pack(0..words, 0..d, columns, out);
        }
        Self { tile, values: packed, size: each }
    }

    fn tile<W: Word>(&self, index: usize) -> (Tile, &[W]) {
        (self.tile, cast_slice(&self.values[index * self.size..][..self.size]))
    }
}

/// `out = softmax(q kᵀ / √d + bias) v`, and `lse`, the logarithm of each softmax's denominator, `[b, heads, queries]`. In bf16 `d` is even.
///
/// # Panics
/// When a slice is not as long as the shape says.
pub fn forward<E: Scored>(shape: &Shape, [q, k, v]: [&[E]; 3], bias: Bias<'_>, out: &mut [f32], lse: &mut [f32]) {
    shape.check([q.len(), out.len()], [k.len(), v.len()], lse, bias);
    assert!(shape.d.is_multiple_of(E::TERMS), "heads of {} channels in words of {}", shape.d, E::TERMS);
    let Shape { queries, keys, d, .. } = *shape;
    let out = Shared::new(out);
    let stride = shape.channels();
    let pack = |pair| {
        [Packed::columns(shape.of_keys(k, pair), stride, d, keys, KEYS), Packed::rows(shape.of_keys(v, pair), stride, d, keys, KEYS)]
    };
    let each = |pair: usize, packed: &[Packed; 2], range: Range<usize>, lse: &mut [f32]| {
        for (rows, lse) in tiles(range, QUERIES).zip(lse.chunks_mut(QUERIES)) {
            let first = shape.head(pair, queries) + rows.start * stride;
            query_tile(shape, &q[first..], packed, bias_of(bias, pair / shape.heads, keys), &rows, lse, |row, values| {
                let at = first + row * stride;
                // SAFETY: this query's channels of this head. No other task has them, and this one has no other slice of them.
                unsafe { out.slice(at..at + d) }.copy_from_slice(values);
            });
        }
    };
    // As many parts of a head's queries as keep all threads busy.
    let threads = shape.threads();
    let count = if shape.pairs() >= 2 * threads { 1 } else { (2 * threads).div_ceil(shape.pairs()) };
    let pairs = lse.chunks_exact_mut(queries).enumerate();
    if count == 1 {
        on_threads(threads, pairs, |(pair, lse)| each(pair, &pack(pair), 0..queries, lse));
    } else {
        for (pair, lse) in pairs {
            let packed = pack(pair);
            on_threads(threads, cut(lse, count, tile().rows), |(range, lse)| each(pair, &packed, range, lse));
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
fn query_tile<E: Scored>(
    shape: &Shape,
    q: &[E],
    [keys_packed, values_packed]: &[Packed; 2],
    bias: Bias<'_>,
    rows: &Range<usize>,
    lse: &mut [f32],
    write: impl Fn(usize, &[f32]),
) {
    let (m, d, stride) = (rows.len(), shape.d, shape.channels());
    let (mut scores, mut sums) = (Scratch::new(m * KEYS), Scratch::zeroed(m * d));
    let (mut largest, mut totals) = (vec![f32::NEG_INFINITY; m], vec![0.0; m]);
    let mut memory = Vec::new();
    for (i, keys) in tiles(0..shape.keys, KEYS).enumerate() {
        if matches!(bias, Bias::Causal) && keys.start >= rows.end {
            break;
        }
        multiply([m, keys.len(), d / E::TERMS], rows_of(q, stride), keys_packed.tile(i), Rows::new(&mut scores, KEYS), Start::Zero);
        let running = Running { largest: &mut largest, totals: &mut totals, sums: &mut sums };
        Arch::new().dispatch(Softmax { scores: &mut scores, scale: shape.scale(), bias, queries: rows, keys: &keys, running });
        let weights = rows_of(E::rounded(&scores, m, keys.len(), &mut memory), KEYS);
        multiply([m, d, keys.len().div_ceil(E::TERMS)], weights, values_packed.tile(i), Rows::new(&mut sums, d), Start::Keep);
    }
    for (row, sums) in sums.chunks_exact_mut(d).enumerate().take(m) {
        let share = 1.0 / totals[row];
        sums.iter_mut().for_each(|sum| *sum *= share);
        write(row, sums);
        lse[row] = largest[row] + totals[row].ln();
    }
}

/// Rows that begin `stride` values apart.
fn rows_of<E: Element>(values: &[E], stride: usize) -> Left<'_, E::Word> {
    Left::Rows(E::words(values), stride / E::TERMS)
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
pub struct Seen<'a, E = f32> {
    /// `[b, queries, heads · d]`.
    pub q: &'a [E],
    /// `[b, keys, heads · d]`.
    pub k: &'a [E],
    /// `[b, keys, heads · d]`.
    pub v: &'a [E],
    /// `[b, queries, heads · d]`.
    pub out: &'a [E],
    /// `[b, heads, queries]`.
    pub lse: &'a [f32],
}

/// The gradients of q, k and v, given that of the output (2307.08691, algorithm 2): scores are computed again, tile by tile. In
/// bf16 `d` is even.
///
/// # Panics
/// When a slice is not as long as the shape says.
pub fn backward<E: Scored>(shape: &Shape, seen: &Seen<'_, E>, bias: Bias<'_>, dout: &[E], [dq, dk, dv]: [&mut [f32]; 3]) {
    shape.check([seen.q.len(), seen.out.len()], [seen.k.len(), seen.v.len()], seen.lse, bias);
    shape.check([dout.len(), dq.len()], [dk.len(), dv.len()], seen.lse, bias);
    assert!(shape.d.is_multiple_of(E::TERMS), "heads of {} channels in words of {}", shape.d, E::TERMS);
    let (threads, whole, tiles) = (shape.threads(), dq.len(), shape.keys.div_ceil(KEYS));
    // Where heads are too few for the threads, a head's keys are shared out too. Each part then adds up the queries' gradients in a
    // buffer of its own, the first of them in `dq`.
    let count = if shape.pairs() >= threads { 1 } else { threads.div_ceil(shape.pairs()).min(tiles) };
    let mut partial = Scratch::new((count - 1) * whole);
    let [all_dq, all_partial, dk, dv] = [&mut *dq, &mut partial, dk, dv].map(Shared::new);
    let tasks = (0..shape.pairs()).flat_map(|pair| parts(tiles, count, 1).enumerate().map(move |(i, tiles)| (pair, i, tiles)));
    on_threads(threads, tasks, |(pair, i, tiles)| {
        let dq = if i == 0 { all_dq } else { all_partial.skip((i - 1) * whole) };
        let bias = bias_of(bias, pair / shape.heads, shape.keys);
        // SAFETY: of the tasks with this head, no other has this `dq`, and no other has any of these tiles of keys.
        unsafe { head_backward(shape, seen, bias, dout, pair, tiles, [dq, dk, dv]) };
    });
    for partial in partial.chunks_exact(whole) {
        dq.iter_mut().zip(partial).for_each(|(sum, part)| *sum += part);
    }
}

/// Some tiles of keys of one head against all of its queries. Writes that head's channels: of all queries in `dq`, of those keys in
/// `dk` and `dv`.
///
/// # Safety
/// Until it returns, nothing else reads or writes these channels of these tokens.
unsafe fn head_backward<E: Scored>(
    shape: &Shape,
    seen_before: &Seen<'_, E>,
    bias: Bias<'_>,
    dout: &[E],
    pair: usize,
    tiles_of_keys: Range<usize>,
    [dq, dk, dv]: [Shared<'_>; 3],
) {
    let Shape { queries, keys, d, .. } = *shape;
    let (stride, scale) = (shape.channels(), shape.scale());
    let [q, out, dout] = [seen_before.q, seen_before.out, dout].map(|values| shape.of_queries(values, pair));
    let [k, v] = [seen_before.k, seen_before.v].map(|values| shape.of_keys(values, pair));
    let lse = &seen_before.lse[pair * queries..][..queries];
    let dot = |row: usize| (0..d).map(|i| out[row * stride + i].exact() * dout[row * stride + i].exact()).sum::<f32>();
    let delta: Vec<f32> = (0..queries).map(dot).collect();
    let [q_rows, dout_rows] = [q, dout].map(|values| Packed::rows(values, stride, d, queries, QUERIES));
    let [mut p, mut ds] = [(); 2].map(|()| Scratch::new(QUERIES * KEYS));
    let [mut dk_tile, mut dv_tile] = [(); 2].map(|()| Scratch::new(KEYS * d));
    let (mut memory, mut turned) = (Vec::new(), Vec::new());
    let dq = dq.skip(shape.head(pair, queries));
    for row in 0..queries {
        // SAFETY: this query's channels of this head are among those that the caller leaves to this function.
        unsafe { dq.slice(row * stride..row * stride + d) }.fill(0.0);
    }
    for index in tiles_of_keys {
        let tile = index * KEYS..((index + 1) * KEYS).min(keys);
        let n = tile.len();
        let [k_here, v_here] = [k, v].map(|values| &values[tile.start * stride..]);
        let (k_columns, v_columns) = (Packed::columns(k_here, stride, d, n, KEYS), Packed::columns(v_here, stride, d, n, KEYS));
        let k_rows = Packed::rows(k_here, stride, d, n, KEYS);
        dk_tile[..n * d].fill(0.0);
        dv_tile[..n * d].fill(0.0);
        for (block, rows) in tiles(0..queries, QUERIES).enumerate() {
            if matches!(bias, Bias::Causal) && rows.end <= tile.start {
                continue;
            }
            let m = rows.len();
            let at = rows.start * stride;
            let terms = [m, n, d].map(|terms| terms.div_ceil(E::TERMS));
            multiply([m, n, terms[2]], rows_of(&q[at..], stride), k_columns.tile(0), Rows::new(&mut p, KEYS), Start::Zero);
            multiply([m, n, terms[2]], rows_of(&dout[at..], stride), v_columns.tile(0), Rows::new(&mut ds, KEYS), Start::Zero);
            let [lse, delta] = [lse, &delta].map(|values| &values[rows.clone()]);
            Arch::new().dispatch(Slopes { p: &mut p, ds: &mut ds, scale, bias, queries: &rows, keys: &tile, lse, delta });
            let columns = Left::Columns(E::columns(E::rounded(&p, m, n, &mut memory), m, &mut turned), KEYS);
            multiply([n, d, terms[0]], columns, dout_rows.tile(block), Rows::new(&mut dv_tile, d), Start::Keep);
            let ds = E::rounded(&ds, m, n, &mut memory);
            let columns = Left::Columns(E::columns(ds, m, &mut turned), KEYS);
            multiply([n, d, terms[0]], columns, q_rows.tile(block), Rows::new(&mut dk_tile, d), Start::Keep);
            // SAFETY: the first `d` values of each row are its query's channels of this head, which the caller leaves to this function.
            let dq = unsafe { Rows::shared(dq.skip(at), stride) };
            multiply([m, d, terms[1]], rows_of(ds, KEYS), k_rows.tile(0), dq, Start::Keep);
        }
        for row in 0..n {
            let at = shape.head(pair, keys) + (tile.start + row) * stride;
            // SAFETY: this key's channels of this head are among those that the caller leaves to this function.
            let [dk, dv] = unsafe { [dk, dv].map(|values| values.slice(at..at + d)) };
            dk.copy_from_slice(&dk_tile[row * d..][..d]);
            dv.copy_from_slice(&dv_tile[row * d..][..d]);
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
    use half::bf16;

    use super::super::noise;
    use super::*;

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

    /// In bf16 what is multiplied is rounded once: to a hundredth of the largest value.
    #[test]
    fn attention_in_bf16_of_all_shapes() {
        let shape = |batch, heads, queries, keys, d| Shape { batch, heads, queries, keys, d };
        for shape in
            [shape(1, 1, 1, 1, 2), shape(2, 3, 5, 7, 4), shape(1, 2, 130, 300, 8), shape(1, 1, 201, 257, 34), shape(2, 1, 77, 77, 16)]
        {
            let round = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
            let widen = |values: &[bf16]| values.iter().map(|value| value.to_f32()).collect::<Vec<_>>();
            let [q, dout] = [1, 2].map(|seed| round(noise(shape.batch * shape.queries * shape.channels(), seed)));
            let [k, v] = [3, 4].map(|seed| round(noise(shape.batch * shape.keys * shape.channels(), seed)));
            let per_key = noise(shape.batch * shape.keys, 5);
            for bias in [Bias::None, Bias::Causal, Bias::PerKey(&per_key)] {
                let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; shape.pairs() * shape.queries]);
                let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|values| vec![0.0; values.len()]);
                forward(&shape, [&q, &k, &v], bias, &mut out, &mut lse);
                let rounded = round(out.clone());
                let seen = Seen { q: &q, k: &k, v: &v, out: &rounded, lse: &lse };
                backward(&shape, &seen, bias, &dout, [&mut dq, &mut dk, &mut dv]);
                let [q, k, v, dout] = [&q, &k, &v, &dout].map(|values| widen(values));
                let expected = definition(&shape, [&q, &k, &v], bias, &dout);
                for (what, (found, expected)) in ["out", "dq", "dk", "dv"].iter().zip([&out, &dq, &dk, &dv].iter().zip(&expected)) {
                    let largest = expected.iter().fold(0.02, |largest: f64, value| largest.max(value.abs()));
                    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                        let off = (f64::from(*found) - expected).abs();
                        assert!(off < 0.01 * largest, "{shape:?} {bias:?}: {what}[{i}] is {found}, expected {expected}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a slice that is not [b, keys, heads · d]")]
    fn a_short_gradient_is_refused() {
        let shape = Shape { batch: 1, heads: 2, queries: 3, keys: 4, d: 5 };
        let (of_queries, of_keys, lse) = ([0.0; 30], [0.0; 40], [0.0; 6]);
        let seen = Seen { q: &of_queries, k: &of_keys, v: &of_keys, out: &of_queries, lse: &lse };
        backward(&shape, &seen, Bias::None, &of_queries, [&mut [0.0; 30], &mut [0.0; 39], &mut [0.0; 40]]);
    }
}
