//! Attention composed of Burn's operations that never holds the scores of all queries: a tile of queries at a time, forward and backward.
//!
//! What the backward pass needs of the scores it computes again, from queries, keys and values (Dao et al., arXiv 2205.14135, section 3.1,
//! without its tiling of the keys).

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, DType, Tensor};

use crate::Mask;
use crate::tape::{self, Operation, Ranked};

/// The most scores of a tile: 128 MiB in f32, the smallest limit of a buffer that a Vulkan driver was seen to set.
const SCORES: usize = 1 << 25;

/// [`attention`](crate::attention) in tiles; `rows` queries to a tile.
pub(crate) fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize, mask: Mask<'_>, rows: Option<usize>) -> Tensor<3> {
    let ([b, queries, _], keys) = (q.dims(), k.dims()[1]);
    let rows = rows.unwrap_or(SCORES / (b * heads * keys)).clamp(1, queries);
    let mask = match mask {
        Mask::None => Masked::Nothing,
        Mask::Causal => Masked::Future,
        Mask::Additive(mask) => Masked::By(Ranked::of(mask.clone().without_autodiff())),
    };
    tape::apply(Tiled { heads, rows, mask }, [q, k, v].map(Ranked::of)).tensor()
}

/// A [`Mask`] that can be kept.
#[derive(Debug, Clone)]
enum Masked {
    Nothing,
    Future,
    /// `[b, 1, 1, keys]`.
    By(Ranked),
}

#[derive(Debug, Clone)]
struct Tiled {
    heads: usize,
    rows: usize,
    mask: Masked,
}

impl Tiled {
    /// `[b, tokens, heads·d]` → `[b, heads, tokens, d]`.
    fn split(&self, x: Ranked) -> Tensor<4> {
        let x: Tensor<3> = x.tensor();
        let [b, tokens, channels] = x.dims();
        x.reshape([b, tokens, self.heads, channels / self.heads]).swap_dims(1, 2)
    }

    /// The other way.
    fn join(x: Tensor<4>) -> Ranked {
        let [b, heads, tokens, d] = x.dims();
        Ranked::of(x.swap_dims(1, 2).reshape([b, tokens, heads * d]))
    }

    /// First query and number of queries of each tile.
    fn tiles(&self, queries: usize) -> impl Iterator<Item = (usize, usize)> {
        let rows = self.rows;
        (0..queries).step_by(rows).map(move |first| (first, rows.min(queries - first)))
    }

    /// What each query of a tile that begins at query `first` takes from each key: `[b, heads, rows, keys]`, in f32.
    fn probabilities(&self, scaled: Tensor<4>, k: &Tensor<4>, first: usize) -> Tensor<4> {
        let scores = scaled.matmul(k.clone().transpose()).cast(DType::F32);
        let [_, _, rows, keys] = scores.dims();
        let scores = match &self.mask {
            Masked::Nothing => scores,
            Masked::Future => {
                let future = Tensor::<2, Bool>::tril_mask([rows, keys], first as i64, &scores.device());
                scores.mask_fill(future.reshape([1, 1, rows, keys]), f32::NEG_INFINITY)
            }
            Masked::By(mask) => scores + mask.clone().tensor::<4>().cast(DType::F32),
        };
        softmax(scores, 3)
    }
}

fn scale(k: &Tensor<4>) -> f64 {
    (k.dims()[3] as f64).powf(-0.5)
}

impl Operation<3> for Tiled {
    /// Queries, keys and values.
    type Saved = Option<[Ranked; 3]>;

    fn forward(&self, inputs: [Ranked; 3], wanted: [bool; 3]) -> (Ranked, Self::Saved) {
        let saved = wanted.contains(&true).then(|| inputs.clone());
        let [q, k, v] = inputs.map(|x| self.split(x));
        let tile = |(first, rows)| {
            let p = self.probabilities(q.clone().narrow(2, first, rows) * scale(&k), &k, first);
            p.cast(v.dtype()).matmul(v.clone())
        };
        let tiles: Vec<_> = self.tiles(q.dims()[2]).map(tile).collect();
        (Self::join(together(tiles)), saved)
    }

    /// With P = softmax(S), S = (QKᵗ)/√d and O = PV: dV = Pᵗ dO; dS = P ⊙ (dP − Σ_keys P ⊙ dP) with dP = dO Vᵗ; dQ = dS K/√d; dK = dSᵗ Q/√d.
    fn backward(self, saved: Self::Saved, output: Ranked, wanted: [bool; 3]) -> [Option<Ranked>; 3] {
        let [q, k, v] = saved.expect("kept where a gradient is wanted").map(|x| self.split(x));
        let (output, format, scale) = (self.split(output), q.dtype(), scale(&k));
        let (mut dq, mut dk, mut dv) = (Vec::new(), None, None);
        for (first, rows) in self.tiles(q.dims()[2]) {
            let of_tile = |x: &Tensor<4>| x.clone().narrow(2, first, rows);
            let (scaled, d_out) = (of_tile(&q) * scale, of_tile(&output));
            let p = self.probabilities(scaled.clone(), &k, first);
            if wanted[2] {
                dv = sum(dv, p.clone().cast(format).transpose().matmul(d_out.clone()));
            }
            if wanted[0] || wanted[1] {
                let dp = p.clone() * d_out.matmul(v.clone().transpose()).cast(DType::F32);
                let ds = (dp.clone() - p * dp.sum_dim(3)).cast(format);
                if wanted[1] {
                    dk = sum(dk, ds.clone().transpose().matmul(scaled));
                }
                if wanted[0] {
                    dq.push(ds.matmul(k.clone()) * scale);
                }
            }
        }
        let dq = wanted[0].then(|| Self::join(together(dq)));
        [dq, dk.map(|dk| Self::join(dk.cast(format))), dv.map(|dv| Self::join(dv.cast(format)))]
    }
}

/// Tiles of queries, one after the other.
fn together(mut tiles: Vec<Tensor<4>>) -> Tensor<4> {
    if tiles.len() == 1 { tiles.remove(0) } else { Tensor::cat(tiles, 2) }
}

/// The sum over tiles, in f32.
fn sum(so_far: Option<Tensor<4>>, of_tile: Tensor<4>) -> Option<Tensor<4>> {
    let of_tile = of_tile.cast(DType::F32);
    Some(match so_far {
        Some(so_far) => so_far + of_tile,
        None => of_tile,
    })
}
