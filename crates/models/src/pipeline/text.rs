//! The text encoders of a pipeline, which turn prompts into conditioning.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use regex::Regex;
use vp_core::profile::{self, Stage};

use super::Anew;
use super::embeddings::{Embeddings, Encoded};
use super::folder::ModelFolder;
use crate::clip::{ClipTextConfig, ClipTextModel, ClipTextOutput};
use crate::denoiser::{AddedConditioning, Conditioning};
use crate::error::{Error, Result};
use crate::family::Family;
use crate::footprint::{Ledger, Traced};
use crate::number_format::NumberFormat;
use crate::parameters::{initialize, load};
use crate::tokenizer::ClipTokenizer;

/// The network of a text encoder, by kind.
#[derive(Module, Debug)]
pub enum TextModel {
    /// CLIP's text encoder, with a projection or without.
    Clip(ClipTextModel),
}

impl TextModel {
    /// The same network with frozen weights and activations in `format`; parameters whose names (`component.…`) match `exact` train and
    /// stay f32.
    ///
    /// # Errors
    /// When a weight is too large for f16.
    pub fn in_format(self, component: &str, format: NumberFormat, exact: Option<&Regex>) -> Result<Self> {
        match self {
            Self::Clip(model) => Ok(Self::Clip(model.in_format(component, format, exact)?)),
        }
    }

    /// Encodes rows of token ids of equal length, at most as many as the network has positions.
    fn forward(&self, ids: &[Vec<u32>], device: &Device) -> ClipTextOutput {
        match self {
            Self::Clip(model) => model.forward(ids, device),
        }
    }
}

impl TextModel {
    /// Encodes so many prompts, in shapes, with weights and activations in `format`: `[rows, tokens, d]`.
    pub fn trace(&self, ledger: &Ledger, rows: usize, format: NumberFormat) -> Traced {
        match self {
            Self::Clip(model) => model.trace(ledger, rows, format),
        }
    }
}

/// A tokenizer and its encoder.
#[derive(Debug, Clone)]
pub struct TextEncoder {
    /// The component it is, which names its folder and its parameters: `text_encoder`, `text_encoder_2`.
    pub component: &'static str,
    tokenizer: Arc<ClipTokenizer>,
    /// The network; public so that a trainer can take it out and put it back.
    pub model: TextModel,
}

/// The text encoders of a pipeline.
#[derive(Debug, Clone)]
pub struct TextEncoders {
    /// In the pipeline's order: one for SD 1.x and 2.x, two for XL.
    pub encoders: Vec<TextEncoder>,
    family: Family,
    force_zeros_for_empty_prompt: bool,
    /// What these encoders made of prompts before; none where they train.
    embeddings: Option<Embeddings>,
}

impl TextEncoder {
    fn load(folder: &ModelFolder, component: &'static str, device: &Device, anew: Option<Anew<'_>>) -> Result<Self> {
        let model = folder.text_config(component).init(device);
        let tokenizer = folder.tokenizer(component)?;
        fits(&tokenizer, folder.text_config(component))
            .map_err(|message| Error::Config { path: folder.path().join(component).display().to_string(), message })?;
        let model = match anew.filter(|anew| anew.includes(component, &model)) {
            Some(anew) => initialize(model, anew.noise),
            None => {
                let weights = folder.text_weights(component, &model)?;
                load(model, weights)?
            }
        };
        Ok(Self { component, tokenizer: Arc::new(tokenizer), model: TextModel::Clip(model) })
    }

    fn tokenize(&self, prompts: &[String]) -> Vec<Vec<u32>> {
        prompts.iter().map(|prompt| self.tokenizer.encode(prompt).ids).collect()
    }
}

/// Checks that every row that a tokenizer makes is one that the encoder reads.
fn fits(tokenizer: &ClipTokenizer, config: &ClipTextConfig) -> std::result::Result<(), String> {
    let (tokens, known) = (tokenizer.vocab_size(), config.vocab_size);
    if tokens > known {
        return Err(format!(
            "its tokenizer has {tokens} tokens, special ones among them, and its table of embeddings {known}: one of the tokenizer's files \
             (special_tokens_map.json, tokenizer_config.json, added_tokens.json) names a token that is not in its vocabulary"
        ));
    }
    let (length, positions) = (tokenizer.length(), config.max_position_embeddings);
    if length > positions {
        return Err(format!(
            "its tokenizer makes rows of {length} tokens (model_max_length in tokenizer_config.json), and it has {positions} positions \
             (max_position_embeddings in config.json)"
        ));
    }
    Ok(())
}

impl TextEncoders {
    /// Loads all text encoders and tokenizers of a folder.
    ///
    /// # Errors
    /// When a config, a tokenizer or weights are missing, cannot be read, or do not fit each other.
    pub fn load(folder: &ModelFolder, device: &Device) -> Result<Self> {
        Self::load_or_initialize(folder, device, None)
    }

    pub(super) fn load_or_initialize(folder: &ModelFolder, device: &Device, anew: Option<Anew<'_>>) -> Result<Self> {
        let components = folder.family().text_encoders().iter();
        let encoders = components.map(|component| TextEncoder::load(folder, component, device, anew)).collect::<Result<_>>()?;
        let force_zeros_for_empty_prompt = folder.force_zeros_for_empty_prompt();
        Ok(Self { encoders, family: folder.family(), force_zeros_for_empty_prompt, embeddings: Some(Embeddings::default()) })
    }

    /// The same encoders with frozen weights and activations in `format`; parameters whose full names match `exact` train and stay f32.
    ///
    /// # Errors
    /// When a weight is too large for f16.
    pub fn in_format(mut self, format: NumberFormat, exact: Option<&Regex>) -> Result<Self> {
        self.embeddings = self.embeddings.map(|_| Embeddings::default());
        for encoder in &mut self.encoders {
            encoder.model = encoder.model.clone().in_format(encoder.component, format, exact)?;
        }
        Ok(self)
    }

    /// The same with other networks for the components that `models` has.
    pub fn with_models(&self, models: &BTreeMap<&'static str, TextModel>) -> Self {
        let mut text = self.clone();
        if !models.is_empty() {
            text.embeddings = None;
        }
        for encoder in &mut text.encoders {
            if let Some(model) = models.get(encoder.component) {
                encoder.model = model.clone();
            }
        }
        text
    }

    /// One line for the user if a prompt is too long for the encoder, quoting the part that is lost.
    pub fn warning(&self, prompt: &str) -> Option<String> {
        self.encoders[0].tokenizer.encode(prompt).warning()
    }

    /// Conditioning for `prompts`, for images of `[height, width]` pixels (SDXL conditions on the size too).
    ///
    /// SD 1.x and 2.x: the last hidden states. XL: both encoders' penultimate states side by side, the second's projected pooled
    /// state, and the sizes.
    pub fn encode(&self, prompts: &[String], size: [usize; 2], device: &Device) -> Conditioning {
        profile::time(Stage::Encode, || self.conditioning(prompts, size, device))
    }

    fn conditioning(&self, prompts: &[String], size: [usize; 2], device: &Device) -> Conditioning {
        let encode = |prompts: &[String]| self.encode_rows(prompts, device);
        let Encoded { states, pooled } = match &self.embeddings {
            Some(embeddings) => embeddings.of(prompts, encode),
            None => encode(prompts),
        };
        let added = pooled.map(|text_embeds| AddedConditioning { text_embeds, time_ids: Some(vec![time_ids(size); prompts.len()]) });
        Conditioning { encoder_hidden_states: states, added }
    }

    fn encode_rows(&self, prompts: &[String], device: &Device) -> Encoded {
        let outputs = self.encoders.iter().map(|encoder| encoder.model.forward(&encoder.tokenize(prompts), device));
        match self.family {
            Family::StableDiffusion => {
                let output = outputs.into_iter().next().expect("every family has at least one text encoder");
                Encoded { states: output.last_hidden_state, pooled: None }
            }
            Family::StableDiffusionXl => {
                let outputs: Vec<_> = outputs.collect();
                let states = outputs.iter().map(|output| output.penultimate.clone()).collect();
                let pooled = outputs[1].text_embeds.clone().expect("XL's second text encoder has a projection; checked on loading");
                Encoded { states: Tensor::cat(states, 2), pooled: Some(pooled) }
            }
        }
    }

    /// Conditioning for `rows` images with the same negative prompt. If there is none, it is that of the empty text, or zeros where the
    /// folder says so.
    pub fn encode_negative(&self, negative: Option<&str>, rows: usize, size: [usize; 2], device: &Device) -> Conditioning {
        let encoded = self.encode(&vec![negative.unwrap_or_default().to_string(); rows], size, device);
        if negative.is_some() || self.family == Family::StableDiffusion || !self.force_zeros_for_empty_prompt {
            return encoded;
        }
        let zeroed = |added: AddedConditioning| AddedConditioning { text_embeds: added.text_embeds.zeros_like(), ..added };
        Conditioning { encoder_hidden_states: encoded.encoder_hidden_states.zeros_like(), added: encoded.added.map(zeroed) }
    }
}

/// Original height and width, crop top and left, target height and width.
fn time_ids([height, width]: [usize; 2]) -> [f32; 6] {
    let (h, w) = (height as f32, width as f32);
    [h, w, 0.0, 0.0, h, w]
}
