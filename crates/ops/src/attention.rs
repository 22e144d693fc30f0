//! Scaled dot-product attention.

use std::marker::PhantomData;
use std::sync::Arc;

use burn::tensor::{DType, Tensor};
use half::bf16;

use crate::composed;
use crate::fused::{Format, Values, cast, on_cpu};
use crate::kernel::attention::{self as kernel, Bias, Seen, Shape};
use crate::kernel::scored::Scored;
use crate::kernel::words::{Element, multiplies_bf16};
use crate::tape::{self, Operation, Ranked};

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

/// [`Attention`] with queries, keys, values and output in one number format.
#[derive(Debug, Clone)]
struct In<E>(Attention, PhantomData<E>);

/// What the backward pass needs: queries, keys, values, output; the logarithm of each softmax's denominator. No score is kept.
type Kept<E> = ([Values<E>; 4], Arc<Vec<f32>>);

impl<E: Format + Scored> Operation<3> for In<E> {
    type Saved = Option<Kept<E>>;

    fn forward(&self, inputs: [Ranked; 3], wanted: [bool; 3]) -> (Ranked, Self::Saved) {
        let (Attention { shape, .. }, [q, k, v]) = (&self.0, inputs.map(Values::<E>::of));
        let mut lse = vec![0.0; shape.batch * shape.heads * shape.queries];
        let out = E::summed([q.len()], |[out]| kernel::forward(shape, [&q, &k, &v], self.0.bias(), out, &mut lse));
        let [out] = out.map(|out| Values::from_vec(out, q.shape()));
        let saved = wanted.contains(&true).then(|| ([q, k, v, out.clone()], Arc::new(lse)));
        (out.ranked(), saved)
    }

    fn backward(self, saved: Self::Saved, output: Ranked, wanted: [bool; 3]) -> [Option<Ranked>; 3] {
        let ([q, k, v, out], lse) = saved.expect("kept where a gradient is wanted");
        let (seen, dout) = (Seen { q: &q, k: &k, v: &v, out: &out, lse: &lse }, Values::<E>::of(output));
        let sizes = [&q, &k, &v].map(|values| values.len());
        let gradients = E::summed(sizes, |sums| kernel::backward(&self.0.shape, &seen, self.0.bias(), &dout, sums));
        let mut shapes = [&q, &k, &v].map(|values| values.shape()).into_iter().zip(wanted);
        gradients.map(|values| shapes.next().and_then(|(shape, wanted)| wanted.then(|| Values::from_vec(values, shape).ranked())))
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
    let per_key = match mask {
        // The CPU's memory: nothing is waited for.
        Mask::Additive(mask) => Some(Arc::new(mask.to_data().convert::<f32>().try_to_vec().expect("converted to f32"))),
        Mask::Causal | Mask::None => None,
    };
    let shape = Shape { batch, heads, queries, keys, d: channels / heads };
    let operation = Attention { shape, causal: matches!(mask, Mask::Causal), per_key };
    if is_attention_in_bf16([&q, &k, &v].map(|x| x.dtype()), shape.d) {
        return tape::apply(In::<bf16>(operation, PhantomData), [q, k, v].map(Ranked::of)).tensor();
    }
    let format = q.dtype();
    let inputs = [q, k, v].map(|x| Ranked::of(cast(x, DType::F32)));
    cast(tape::apply(In::<f32>(operation, PhantomData), inputs).tensor(), format)
}

/// Whether the CPU multiplies queries, keys and values of these formats, heads of `d` channels, as they are, in bf16.
pub fn is_attention_in_bf16(formats: [DType; 3], d: usize) -> bool {
    formats == [DType::BF16; 3] && multiplies_bf16() && d.is_multiple_of(bf16::TERMS)
}
