//! The text encoder that looks at the image: BLIP's "mixture of encoder-decoder" in its encoder role.
//!
//! Source: BLIP's `models/med.py` (a BERT without token types and pooler, with cross-attention in every layer), as ImageReward
//! carries it. Inference only: BERT's dropout is absent. Post-norms with ε 1e-12, exact GELU.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};

use super::BlipConfig;
use crate::footprint::{Ledger, Traced};
use crate::layers::{Activation, Embedding, LayerNorm, Linear, Mask, attention};
use crate::number_format::NumberFormat;
use crate::tokenizer::BertTokenizer;

/// This is added to the attention scores of padding.
const MASKED: f64 = -10_000.0;

/// Turns tokens into hidden states, looking at the image through cross-attention.
#[derive(Module, Debug)]
pub struct BertModel {
    /// The embeddings of words and positions.
    pub embeddings: BertEmbeddings,
    /// The transformer layers.
    pub encoder: BertEncoder,
}

/// `LayerNorm(word + position)`.
#[derive(Module, Debug)]
pub struct BertEmbeddings {
    /// One row per token of the vocabulary, `[vocab, hidden]`.
    pub word_embeddings: Embedding,
    /// One row per position in the text, `[positions, hidden]`.
    pub position_embeddings: Embedding,
    /// The norm over the sum.
    pub layer_norm: LayerNorm,
}

/// A list, one level deep, as the checkpoint has it.
#[derive(Module, Debug)]
pub struct BertEncoder {
    /// The layers in order.
    pub layer: Vec<BertLayer>,
}

/// Self-attention, cross-attention, feed-forward, each followed by an addition and a norm.
#[derive(Module, Debug)]
pub struct BertLayer {
    /// Self-attention: the text looks at the text.
    pub attention: BertAttention,
    /// Cross-attention: the text looks at the image.
    pub crossattention: BertAttention,
    /// The first half of the feed-forward part.
    pub intermediate: BertIntermediate,
    /// The second half of the feed-forward part.
    pub output: BertOutput,
}

/// Attention, its output projection, and a norm over the sum with its input.
#[derive(Module, Debug)]
pub struct BertAttention {
    /// The projections to queries, keys and values; `self` in the checkpoint.
    pub self_: BertSelfAttention,
    /// The output projection and norm.
    pub output: BertOutput,
}

/// Queries from the text; keys and values from the text or from the image.
#[derive(Module, Debug)]
pub struct BertSelfAttention {
    /// From the text to queries, `[hidden, hidden]`.
    pub query: Linear,
    /// To keys, `[hidden, hidden]`, or `[hidden, vision_width]` in cross-attention.
    pub key: Linear,
    /// To values, of the same shape as `key`.
    pub value: Linear,
    #[module(skip)]
    heads: usize,
}

/// `LayerNorm(dense(x) + residual)`.
#[derive(Module, Debug)]
pub struct BertOutput {
    /// The linear layer to `hidden` channels.
    pub dense: Linear,
    /// The norm over the sum.
    pub layer_norm: LayerNorm,
}

/// `gelu(dense(x))`.
#[derive(Module, Debug)]
pub struct BertIntermediate {
    /// The linear layer, `[intermediate, hidden]`.
    pub dense: Linear,
}

/// Tokenised prompts on a device.
#[derive(Debug, Clone)]
pub struct TextInputs {
    /// The token ids, `[b, tokens]`.
    pub input_ids: Tensor<2, Int>,
    /// `[b, 1, 1, tokens]`: 0 where there is a token, −10000 where there is padding.
    pub additive_mask: Tensor<4>,
}

impl TextInputs {
    /// Tokenises prompts and puts them onto a device.
    pub fn encode(tokenizer: &BertTokenizer, prompts: &[String], device: &Device) -> Self {
        let encode = |prompt: &String| {
            let encoding = tokenizer.encode(prompt);
            (encoding.ids, encoding.attention_mask)
        };
        let (ids, masks): (Vec<_>, Vec<_>) = prompts.iter().map(encode).unzip();
        Self::new(&ids, &masks, device)
    }

    /// Prompts as the tokenizer returns them: ids, and a mask that is 1 on tokens and 0 on padding.
    ///
    /// # Panics
    /// When rows differ in length.
    pub fn new(input_ids: &[Vec<u32>], attention_mask: &[Vec<u32>], device: &Device) -> Self {
        use burn::tensor::TensorData;
        let [b, tokens] = [input_ids.len(), input_ids.first().map_or(0, Vec::len)];
        assert!(input_ids.iter().chain(attention_mask).all(|row| row.len() == tokens), "prompts of one batch are padded to one length");
        let ids: Vec<i64> = input_ids.iter().flatten().map(|id| i64::from(*id)).collect();
        let mask: Vec<f32> = attention_mask.iter().flatten().map(|m| ((1.0 - f64::from(*m)) * MASKED) as f32).collect();
        Self {
            input_ids: Tensor::from_data(TensorData::new(ids, [b, tokens]), device),
            additive_mask: Tensor::from_data(TensorData::new(mask, [b, 1, 1, tokens]), device),
        }
    }
}

impl BertModel {
    /// The encoder that `config` describes.
    pub fn new(config: &BlipConfig, device: &Device) -> Self {
        let hidden = config.hidden_size;
        let norm = || LayerNorm::new(hidden, config.layer_norm_eps, device);
        let output = |d_in| BertOutput { dense: Linear::new(d_in, hidden, device), layer_norm: norm() };
        let attention = |d_keys| BertAttention {
            self_: BertSelfAttention {
                query: Linear::new(hidden, hidden, device),
                key: Linear::new(d_keys, hidden, device),
                value: Linear::new(d_keys, hidden, device),
                heads: config.num_attention_heads,
            },
            output: output(hidden),
        };
        let layer = |_| BertLayer {
            attention: attention(hidden),
            crossattention: attention(config.vision_width),
            intermediate: BertIntermediate { dense: Linear::new(hidden, config.intermediate_size, device) },
            output: output(config.intermediate_size),
        };
        Self {
            embeddings: BertEmbeddings {
                word_embeddings: Embedding::new(config.vocab_size, hidden, device),
                position_embeddings: Embedding::new(config.max_position_embeddings, hidden, device),
                layer_norm: norm(),
            },
            encoder: BertEncoder { layer: (0..config.num_hidden_layers).map(layer).collect() },
        }
    }
}

impl BertEmbeddings {
    /// `[b, tokens]` → `[b, tokens, hidden]`.
    pub fn forward(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        let tokens = input_ids.dims()[1];
        self.layer_norm.forward(self.word_embeddings.forward(input_ids) + self.position_embeddings.first(tokens))
    }
}

impl BertLayer {
    /// `[b, tokens, hidden]` → the same; `image_embeds` is `[b, image tokens, vision_width]`, every one of them seen.
    pub fn forward(&self, hidden_states: Tensor<3>, image_embeds: Tensor<3>, text: &TextInputs) -> Tensor<3> {
        let x = self.attention.forward(hidden_states.clone(), hidden_states, Mask::Additive(&text.additive_mask));
        let x = self.crossattention.forward(x, image_embeds, Mask::None);
        let inner = Activation::Gelu.forward(self.intermediate.dense.forward(x.clone()));
        self.output.forward(inner, x)
    }

    /// [`forward`](Self::forward) of shapes.
    pub fn trace(&self, ledger: &Ledger, hidden_states: Traced, image_embeds: Traced, format: NumberFormat) -> Traced {
        let x = self.attention.trace(ledger, hidden_states.clone(), hidden_states, format);
        let x = self.crossattention.trace(ledger, x, image_embeds, format);
        let inner = ledger.activation(self.intermediate.dense.trace(ledger, x.clone(), format));
        self.output.trace(ledger, inner, x, format)
    }
}

impl BertAttention {
    fn forward(&self, x: Tensor<3>, context: Tensor<3>, mask: Mask<'_>) -> Tensor<3> {
        let BertSelfAttention { query, key, value, heads } = &self.self_;
        let attended = attention(query.forward(x.clone()), key.forward(context.clone()), value.forward(context), *heads, mask);
        self.output.forward(attended, x)
    }

    fn trace(&self, ledger: &Ledger, x: Traced, context: Traced, format: NumberFormat) -> Traced {
        let BertSelfAttention { query, key, value, heads } = &self.self_;
        let q = query.trace(ledger, x.clone(), format);
        let k = key.trace(ledger, context.clone(), format);
        let v = value.trace(ledger, context, format);
        self.output.trace(ledger, ledger.attention([q, k, v], *heads), x, format)
    }
}

impl BertOutput {
    fn forward(&self, x: Tensor<3>, residual: Tensor<3>) -> Tensor<3> {
        self.layer_norm.forward(self.dense.forward(x) + residual)
    }

    fn trace(&self, ledger: &Ledger, x: Traced, residual: Traced, format: NumberFormat) -> Traced {
        self.layer_norm.trace(ledger, ledger.add(self.dense.trace(ledger, x, format), residual), format)
    }
}
