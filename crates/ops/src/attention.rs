//! Scaled dot-product attention.

use std::sync::Arc;

use burn::tensor::{DType, Tensor};

use crate::composed;
use crate::fused::{Fused, Input, Values, apply, cast, on_cpu};
use crate::kernel::attention::{self as kernel, Bias, Seen, Shape};

/// What is added to the scores before the softmax.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// Every query sees every key.
    None,
    /// A query sees the keys at or before its own place.
    Causal,
    /// `[b, 1, 1, keys]`, added to the scores of every query (BERT's −10000 on padding). A constant: it gets no gradient.
    Additive(&'a Tensor<4>),
}

#[derive(Debug, Clone)]
struct Attention {
    shape: Shape,
    causal: bool,
    per_key: Option<Arc<Vec<f32>>>,
}

impl Attention {
    fn bias(&self) -> Bias<'_> {
        match &self.per_key {
            Some(values) => Bias::PerKey(values),
            None if self.causal => Bias::Causal,
            None => Bias::None,
        }
    }
}

impl Fused<3> for Attention {
    /// Queries, keys, values, output; the logarithm of each softmax's denominator. No score is kept.
    type Saved = Option<([Values; 4], Arc<Vec<f32>>)>;

    fn forward(&self, [q, k, v]: [Values; 3], wanted: [bool; 3]) -> (Values, Self::Saved) {
        let Shape { batch, heads, queries, .. } = self.shape;
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; batch * heads * queries]);
        kernel::forward(&self.shape, [&q, &k, &v], self.bias(), &mut out, &mut lse);
        let out = Values::from_vec(out, q.shape());
        let saved = wanted.contains(&true).then(|| ([q, k, v, out.clone()], Arc::new(lse)));
        (out, saved)
    }

    fn backward(self, saved: Self::Saved, output: Values, wanted: [bool; 3]) -> [Option<Values>; 3] {
        let ([q, k, v, out], lse) = saved.expect("kept where a gradient is wanted");
        let mut gradients = [&q, &k, &v].map(|values| vec![0.0; values.len()]);
        let seen = Seen { q: &q, k: &k, v: &v, out: &out, lse: &lse };
        kernel::backward(&self.shape, &seen, self.bias(), &output, gradients.each_mut().map(Vec::as_mut_slice));
        let mut shapes = [&q, &k, &v].map(|values| values.shape()).into_iter().zip(wanted);
        gradients.map(|values| shapes.next().and_then(|(shape, wanted)| wanted.then(|| Values::from_vec(values, shape))))
    }
}

/// Scaled dot-product attention over `heads` heads: `softmax(QKᵗ/√d + mask) V`, the heads being consecutive channels.
///
/// # Shapes
/// `q` `[b, queries, heads·d]`, `k` and `v` `[b, keys, heads·d]` → `[b, queries, heads·d]`.
///
/// # Panics
/// When a tensor is empty, the shapes do not fit, or a causal mask meets keys of another number than queries.
pub fn attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads: usize, mask: Mask<'_>) -> Tensor<3> {
    crate::refuse_empty("attention", &q);
    crate::refuse_empty("attention", &k);
    let ([batch, queries, channels], [key_batch, keys, key_channels]) = (q.dims(), k.dims());
    assert!(
        k.dims() == v.dims() && batch == key_batch && channels == key_channels && heads > 0 && channels.is_multiple_of(heads),
        "attention of {heads} heads with queries {:?}, keys {:?} and values {:?}",
        q.dims(),
        k.dims(),
        v.dims()
    );
    match mask {
        Mask::Additive(mask) => assert_eq!(mask.dims(), [batch, 1, 1, keys], "attention over {keys} keys with a mask of {:?}", mask.dims()),
        Mask::Causal => assert_eq!(queries, keys, "causal attention of {queries} queries over {keys} keys"),
        Mask::None => {}
    }
    if !on_cpu(&q) {
        return composed::attention_in_tiles(q, k, v, heads, mask, None);
    }
    let format = q.dtype();
    let [q, k, v] = [q, k, v].map(|x| cast(x, DType::F32));
    let per_key = match mask {
        // The CPU's memory: nothing is waited for.
        Mask::Additive(mask) => Some(Arc::new(mask.to_data().convert::<f32>().try_to_vec().expect("converted to f32"))),
        Mask::Causal | Mask::None => None,
    };
    let shape = Shape { batch, heads, queries, keys, d: channels / heads };
    let operation = Attention { shape, causal: matches!(mask, Mask::Causal), per_key };
    cast(apply::<_, 3, 3>(operation, [&q, &k, &v].map(Input::of)).expect("f32 on the CPU"), format)
}
