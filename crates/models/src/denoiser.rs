//! The interface of the network that predicts noise, and the conditioning it is given.

use burn::module::Module;
use burn::tensor::Tensor;
use serde_json::{Map, Value};

/// The inputs of a denoiser besides the noisy latents and the time.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// Text embeddings, `[b, tokens, cross_attention_dim]`.
    pub encoder_hidden_states: Tensor<3>,
    /// A vector for the whole text and, with SDXL, the sizes; `None` for families that have neither.
    pub added: Option<AddedConditioning>,
}

/// Conditioning that is not a row of tokens: diffusers' `added_cond_kwargs`.
#[derive(Debug, Clone)]
pub struct AddedConditioning {
    /// The pooled and projected text, `[b, projection_dim]`. In SDXL it comes from the second encoder.
    pub text_embeds: Tensor<2>,
    /// SDXL's sizes per row: original height and width, crop top and left, target height and width. On the host, where they are embedded.
    pub time_ids: Option<Vec<[f32; 6]>>,
}

impl Conditioning {
    /// The rows of `first` followed by those of `second`, as in `[unconditional, conditional]` for guidance.
    pub fn cat(first: &Self, second: &Self) -> Self {
        let added = match (&first.added, &second.added) {
            (Some(a), Some(b)) => Some(AddedConditioning {
                text_embeds: Tensor::cat(vec![a.text_embeds.clone(), b.text_embeds.clone()], 0),
                time_ids: a.time_ids.clone().zip(b.time_ids.clone()).map(|(a, b)| [a, b].concat()),
            }),
            _ => None,
        };
        let states = vec![first.encoder_hidden_states.clone(), second.encoder_hidden_states.clone()];
        Self { encoder_hidden_states: Tensor::cat(states, 0), added }
    }

    /// The same values as constants to the tape.
    pub fn without_autodiff(&self) -> Self {
        let added = self
            .added
            .as_ref()
            .map(|added| AddedConditioning { text_embeds: added.text_embeds.clone().without_autodiff(), time_ids: added.time_ids.clone() });
        Self { encoder_hidden_states: self.encoder_hidden_states.clone().without_autodiff(), added }
    }

    /// Rows `start..start + count`.
    pub fn narrow(&self, start: usize, count: usize) -> Self {
        Self {
            encoder_hidden_states: self.encoder_hidden_states.clone().narrow(0, start, count),
            added: self.added.as_ref().map(|added| AddedConditioning {
                text_embeds: added.text_embeds.clone().narrow(0, start, count),
                time_ids: added.time_ids.as_ref().map(|ids| ids[start..start + count].to_vec()),
            }),
        }
    }
}

/// A network that predicts noise (or v, or x0) from noisy latents.
///
/// Generic rather than boxed because an optimizer takes a module and gives one back.
pub trait Denoiser: Module + Sync {
    /// Its component in a diffusers folder, `unet` or `transformer`, which is also how the names of its parameters begin in
    /// checkpoints and LoRA files.
    const COMPONENT: &'static str;

    /// What the network's `config.json` said, to be written again beside its tuned weights.
    fn config_json(&self) -> Map<String, Value>;

    /// `sample` `[b, c, h, w]`, one timestep per row (fractional under Karras schedules) → `[b, c, h, w]`.
    fn forward(&self, sample: Tensor<4>, timesteps: &[f32], conditioning: &Conditioning) -> Tensor<4>;

    /// For diagnosis: the first part of the network whose output is not finite for this input, by its name in a checkpoint (without
    /// the component). `None` when all are finite.
    fn first_non_finite(&self, _sample: Tensor<4>, _timesteps: &[f32], _conditioning: &Conditioning) -> Option<String> {
        None
    }
}
