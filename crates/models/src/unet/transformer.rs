//! Transformer blocks over image tokens, with cross-attention to the text.
//!
//! Source: diffusers `models/attention.py`, `models/transformers/transformer_2d.py`.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::blocks::attention::Attention;
use crate::footprint::{Ledger, Traced};
use crate::layers::{Conv2d, GroupNorm, LayerNorm, Linear};
use crate::number_format::NumberFormat;

/// `x ⊙ GELU(gate)`.
#[derive(Module, Debug)]
pub struct Geglu {
    proj: Linear,
}

/// A GEGLU and a linear layer; the fields stand for `net.0` and `net.2`.
#[derive(Module, Debug)]
pub struct FeedForward {
    net_0: Geglu,
    net_2: Linear,
}

impl FeedForward {
    fn new(d: usize, device: &Device) -> Self {
        Self { net_0: Geglu { proj: Linear::new(d, 8 * d, device) }, net_2: Linear::new(4 * d, d, device) }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.net_2.forward(vp_ops::geglu(self.net_0.proj.forward(x)))
    }

    fn trace(&self, ledger: &Ledger, x: Traced, format: NumberFormat) -> Traced {
        self.net_2.trace(ledger, ledger.geglu(self.net_0.proj.trace(ledger, x, format)), format)
    }
}

/// Self-attention, cross-attention, feed-forward; each behind a norm and around a shortcut.
#[derive(Module, Debug)]
pub struct BasicTransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl BasicTransformerBlock {
    fn new(d: usize, d_context: usize, heads: usize, device: &Device) -> Self {
        let norm = || LayerNorm::new(d, 1e-5, device);
        Self {
            norm1: norm(),
            attn1: Attention::new(d, d, heads, device),
            norm2: norm(),
            attn2: Attention::new(d, d_context, heads, device),
            norm3: norm(),
            ff: FeedForward::new(d, device),
        }
    }

    fn forward(&self, x: Tensor<3>, context: &Tensor<3>) -> Tensor<3> {
        let normed = self.norm1.forward(x.clone());
        let x = self.attn1.forward(normed.clone(), normed) + x;
        let x = self.attn2.forward(self.norm2.forward(x.clone()), context.clone()) + x;
        self.ff.forward(self.norm3.forward(x.clone())) + x
    }

    fn trace(&self, ledger: &Ledger, x: Traced, context: &Traced, format: NumberFormat) -> Traced {
        let normed = self.norm1.trace(ledger, x.clone(), format);
        let x = ledger.add(self.attn1.trace(ledger, normed.clone(), normed, format), x);
        let normed = self.norm2.trace(ledger, x.clone(), format);
        let x = ledger.add(self.attn2.trace(ledger, normed, context.clone(), format), x);
        ledger.add(self.ff.trace(ledger, self.norm3.trace(ledger, x.clone(), format), format), x)
    }
}

/// A projection of channels, stored as a matrix (`use_linear_projection`) or as a 1×1 convolution under the same name.
/// Both are one product over tokens.
#[derive(Module, Debug)]
pub enum Projection {
    /// `[out, in]`.
    Linear(Linear),
    /// `[out, in, 1, 1]`.
    Conv(Conv2d),
}

impl Projection {
    fn new(d: usize, linear: bool, device: &Device) -> Self {
        if linear { Self::Linear(Linear::new(d, d, device)) } else { Self::Conv(Conv2d::same(d, d, 1, device)) }
    }

    fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Linear(linear) => linear.forward(tokens),
            Self::Conv(conv) => conv.forward_tokens(tokens),
        }
    }

    fn trace(&self, ledger: &Ledger, tokens: Traced, format: NumberFormat) -> Traced {
        match self {
            Self::Linear(linear) => linear.trace(ledger, tokens, format),
            Self::Conv(conv) => conv.trace_tokens(ledger, tokens, format),
        }
    }
}

/// Transformer blocks over the pixels of a feature map, around a shortcut.
#[derive(Module, Debug)]
pub struct Transformer2DModel {
    norm: GroupNorm,
    proj_in: Projection,
    transformer_blocks: Vec<BasicTransformerBlock>,
    proj_out: Projection,
}

/// The sizes that the transformers of one level share.
#[derive(Debug, Clone, Copy)]
pub struct TransformerOptions {
    /// Channels of the feature map.
    pub channels: usize,
    /// Attention heads; they divide the channels.
    pub heads: usize,
    /// Transformer blocks, one after another.
    pub layers: usize,
    /// Width of the text embeddings.
    pub cross_attention_dim: usize,
    /// Groups of the group norm before the blocks.
    pub groups: usize,
    /// Whether the projections before and after the blocks are stored as matrices instead of 1×1 convolutions.
    pub use_linear_projection: bool,
}

impl Transformer2DModel {
    /// A transformer of these sizes, its weights not loaded yet.
    pub fn new(options: TransformerOptions, device: &Device) -> Self {
        let TransformerOptions { channels, heads, layers, cross_attention_dim, groups, use_linear_projection } = options;
        let block = || BasicTransformerBlock::new(channels, cross_attention_dim, heads, device);
        Self {
            norm: GroupNorm::new(groups, channels, 1e-6, device),
            proj_in: Projection::new(channels, use_linear_projection, device),
            transformer_blocks: (0..layers).map(|_| block()).collect(),
            proj_out: Projection::new(channels, use_linear_projection, device),
        }
    }

    /// `[b, c, h, w]`, `[b, text tokens, cross_attention_dim]` → `[b, c, h, w]`.
    pub fn forward(&self, x: Tensor<4>, context: &Tensor<3>) -> Tensor<4> {
        let [b, c, h, w] = x.dims();
        let tokens = self.norm.forward(x.clone()).reshape([b, c, h * w]).swap_dims(1, 2);
        let tokens = self.proj_in.forward(tokens);
        let tokens = self.transformer_blocks.iter().fold(tokens, |tokens, block| block.forward(tokens, context));
        self.proj_out.forward(tokens).swap_dims(1, 2).reshape([b, c, h, w]) + x
    }

    /// [`forward`](Self::forward) of shapes.
    pub fn trace(&self, ledger: &Ledger, x: Traced, context: &Traced, format: NumberFormat) -> Traced {
        let &[b, c, h, w] = x.dims() else { panic!("a transformer over pixels of {:?}", x.dims()) };
        let normed = self.norm.trace(ledger, x.clone(), format, false);
        let tokens = self.proj_in.trace(ledger, ledger.view(normed, &[b, h * w, c], false), format);
        let tokens = self.transformer_blocks.iter().fold(tokens, |tokens, block| block.trace(ledger, tokens, context, format));
        let tokens = ledger.view(self.proj_out.trace(ledger, tokens, format), &[b, c, h * w], false);
        ledger.add(ledger.reshaped(tokens, &[b, c, h, w]), x)
    }
}
