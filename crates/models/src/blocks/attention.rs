//! Attention with its projections: over tokens, in the UNet also to the text's, or over the pixels of a feature map.
//!
//! Source: diffusers `models/attention_processor.py`.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::footprint::{Ledger, Traced};
use crate::layers::{GroupNorm, Linear, Mask, attention};
use crate::number_format::NumberFormat;

/// Attention with separate projections; `to_out.0` because the reference keeps a dropout at `to_out.1`.
#[derive(Module, Debug)]
pub struct Attention {
    group_norm: Option<GroupNorm>,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Vec<Linear>,
    #[module(skip)]
    heads: usize,
}

impl Attention {
    /// Queries of width `d`, keys and values of width `d_context`.
    pub fn new(d: usize, d_context: usize, heads: usize, device: &Device) -> Self {
        Self {
            group_norm: None,
            to_q: Linear::without_bias(d, d, device),
            to_k: Linear::without_bias(d_context, d, device),
            to_v: Linear::without_bias(d_context, d, device),
            to_out: vec![Linear::new(d, d, device)],
            heads,
        }
    }

    /// One head over the pixels of a feature map, behind a norm and with biases, as the autoencoder has it.
    pub fn over_pixels(d: usize, groups: usize, eps: f64, device: &Device) -> Self {
        let linear = || Linear::new(d, d, device);
        let group_norm = Some(GroupNorm::new(groups, d, eps, device));
        Self { group_norm, to_q: linear(), to_k: linear(), to_v: linear(), to_out: vec![linear()], heads: 1 }
    }

    /// `[b, tokens, d]`, `[b, context tokens, d_context]` → `[b, tokens, d]`.
    pub fn forward(&self, x: Tensor<3>, context: Tensor<3>) -> Tensor<3> {
        let (q, k, v) = (self.to_q.forward(x), self.to_k.forward(context.clone()), self.to_v.forward(context));
        self.to_out[0].forward(attention(q, k, v, self.heads, Mask::None))
    }

    /// [`forward`](Self::forward) of shapes.
    pub fn trace(&self, ledger: &Ledger, x: Traced, context: Traced, format: NumberFormat) -> Traced {
        let q = self.to_q.trace(ledger, x, format);
        let k = self.to_k.trace(ledger, context.clone(), format);
        let v = self.to_v.trace(ledger, context, format);
        self.to_out[0].trace(ledger, ledger.attention([q, k, v], self.heads), format)
    }

    /// [`forward_pixels`](Self::forward_pixels) of shapes.
    pub fn trace_pixels(&self, ledger: &Ledger, x: Traced, format: NumberFormat) -> Traced {
        let &[b, c, h, w] = x.dims() else { panic!("attention over pixels of {:?}", x.dims()) };
        let normed = match &self.group_norm {
            Some(norm) => norm.trace(ledger, x.clone(), format, false),
            None => x.clone(),
        };
        let tokens = ledger.view(normed, &[b, h * w, c], false);
        let attended = self.trace(ledger, tokens.clone(), tokens, format);
        let attended = ledger.view(attended, &[b, c, h * w], false);
        ledger.add(ledger.reshaped(attended, &[b, c, h, w]), x)
    }

    /// Self-attention over pixels around a shortcut: `[b, d, h, w]` → `[b, d, h, w]`.
    pub fn forward_pixels(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, c, h, w] = x.dims();
        let normed = match &self.group_norm {
            Some(norm) => norm.forward(x.clone()),
            None => x.clone(),
        };
        let tokens = normed.reshape([b, c, h * w]).swap_dims(1, 2);
        self.forward(tokens.clone(), tokens).swap_dims(1, 2).reshape([b, c, h, w]) + x
    }
}
