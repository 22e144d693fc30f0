//! `clip_score`: how alike a CLIP's embeddings of image and prompt are. With the matching weights this is CLIP score, PickScore, or what
//! `train-reward` made of a CLIP. [`hps_v2`](crate::hps_v2) computes the same of another preprocessing.
//!
//! ```text
//! score = cos(image, prompt)  or  exp(logit_scale) · cos(image, prompt)
//! ```
//!
//! Source: PickScore (arXiv 2305.01569) multiplies by the temperature; CLIPScore (arXiv 2104.08718) does not.
//! The weights are a folder as transformers writes it for a `CLIPModel`, or as open_clip writes it, with the tokenizer.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_data::{RgbImage, to_tensor};
use vp_models::NumberFormat;
use vp_models::clip::{ClipCheckpoint, ClipConfig, ClipModel, ClipNames, ClipSource, OpenClipDefaults};
use vp_models::footprint::{ScoringKind, ScoringNetwork};
use vp_models::resize::{Antialias, Preprocessing};
use vp_models::reward_files::find_weights;
use vp_models::tokenizer::{ClipTokenizer, Encoding, OpenClipTokenizer, published};

use crate::kind::{self, Kind};
use crate::{Build, Error, ImageEncoder, Result, Reward, Scored, ScoredRgb, Warning, check_batch, check_pairs, checked_format};

const NAME: &str = "clip_score";

/// The `[reward.clip_score]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipScoreConfig {
    /// The folder of a CLIP as transformers writes it (`config.json`, weights, tokenizer) or open_clip (`open_clip_config.json`), or the file
    /// of weights in it.
    pub weights: PathBuf,
    /// The folder with CLIP's vocabulary (`tokenizer.json`, or `vocab.json` and `merges.txt`). Default: where the weights are, or `tokenizer`
    /// there; else the published one, which is part of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Whether cosines are multiplied by the learnt temperature (about 100). PickScore does; CLIP score does not.
    #[serde(default)]
    pub logit_scale: bool,
    /// Number format of the encoders' weights and activations: `f32`, `bf16` or `f16`; absent: f32. The score is f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<NumberFormat>,
}

impl ClipScoreConfig {
    /// The reward at `weights`, with the defaults of everything else.
    pub fn new(weights: impl Into<PathBuf>) -> Self {
        Self { weights: weights.into(), tokenizer: None, logit_scale: false, dtype: None }
    }

    fn files(&self) -> ClipFiles<'_> {
        let tokenizer = self.tokenizer.as_deref();
        ClipFiles { reward: NAME, weights: &self.weights, tokenizer, defaults: OpenClipDefaults::default() }
    }
}

impl Validate for ClipScoreConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        if kind::is_found_later(&self.weights) {
            return;
        }
        match kind::finding(NAME, &self.weights, |kind| matches!(kind, Kind::Clip | Kind::OpenClip { .. })) {
            Some(finding) => findings.push(finding),
            None => self.files().findings(findings),
        }
    }
}

impl Build for ClipScoreConfig {
    fn build(&self, device: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(ClipScore::load(self, device)?))
    }

    fn weights(&self) -> Vec<PathBuf> {
        self.files().paths()
    }

    fn weights_mut(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.weights]
    }

    /// PickScore's network, if the files are not there.
    fn networks(&self) -> Result<Vec<ScoringNetwork>> {
        self.files().networks(self.dtype, "PickScore")
    }
}

/// Where a reward finds its CLIP.
pub(crate) struct ClipFiles<'a> {
    pub reward: &'static str,
    pub weights: &'a Path,
    pub tokenizer: Option<&'a Path>,
    /// What an open_clip checkpoint is taken for where it does not say.
    pub defaults: OpenClipDefaults,
}

impl ClipFiles<'_> {
    /// What is wrong with the files, as far as it shows without reading weights.
    pub fn findings(&self, findings: &mut Vec<String>) {
        let Self { reward, weights, .. } = self;
        let source = ClipSource::open(weights, self.defaults);
        let has_published = source.as_ref().is_ok_and(|source| self.has_published_vocabulary(&source.config));
        if let Err(error) = source {
            findings.push(format!("reward.{reward}.weights: {error}"));
        }
        if !has_vocabulary(&self.tokenizer_folder()) && !has_published {
            let of = self.tokenizer.map_or_else(|| format!("beside {}", weights.display()), |folder| format!("in {}", folder.display()));
            findings.push(format!(
                "reward.{reward}: there is no tokenizer {of}; put vocab.json and merges.txt of openai/clip-vit-large-patch14 there (every \
                 published CLIP has the same), or set reward.{reward}.tokenizer to the folder that has them"
            ));
        }
    }

    /// The network, from its config; a ViT-H/14 under the name `assumed`, if the files are not there.
    pub fn networks(&self, format: Option<NumberFormat>, assumed: &'static str) -> Result<Vec<ScoringNetwork>> {
        let format = format.unwrap_or_default();
        if !self.weights.exists() {
            return Ok(vec![ScoringNetwork { kind: ScoringKind::Clip(ClipConfig::vit_h()), format, assumed: Some(assumed) }]);
        }
        let config = ClipSource::open(self.weights, self.defaults)?.config;
        Ok(vec![ScoringNetwork { kind: ScoringKind::Clip(config), format, assumed: None }])
    }

    /// Every file that is read; a folder stands for everything in it.
    pub fn paths(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.weights.to_path_buf()];
        if !self.weights.is_dir() {
            let beside = ["config.json", "open_clip_config.json"].map(|name| self.weights.with_file_name(name));
            paths.extend(beside.into_iter().filter(|path| path.is_file()));
            paths.extend(vocabulary_files(&self.tokenizer_folder()));
        }
        paths.extend(self.tokenizer.map(Path::to_path_buf));
        paths
    }

    fn tokenizer_folder(&self) -> PathBuf {
        let beside = || {
            let file = find_weights(self.weights).unwrap_or_else(|_| self.weights.to_path_buf());
            let folder = file.parent().unwrap_or(Path::new("")).to_path_buf();
            let inner = folder.join("tokenizer");
            if !has_vocabulary(&folder) && has_vocabulary(&inner) { inner } else { folder }
        };
        self.tokenizer.map_or_else(beside, Path::to_path_buf)
    }

    /// Whether no tokenizer is named and the text encoder knows as many tokens as every published CLIP, whose vocabulary is part of the program.
    fn has_published_vocabulary(&self, config: &ClipConfig) -> bool {
        self.tokenizer.is_none() && config.text.vocab_size == published::VOCAB_SIZE
    }

    fn load_tokenizer(&self, names: ClipNames, config: &ClipConfig) -> Result<Tokenizer> {
        let (folder, text) = (self.tokenizer_folder(), &config.text);
        if !has_vocabulary(&folder) && self.has_published_vocabulary(config) {
            return Ok(match names {
                ClipNames::Transformers => Tokenizer::Transformers(published::tokenizer(published::END_OF_TEXT)),
                ClipNames::OpenClip => Tokenizer::OpenClip(published::open_clip(text.max_position_embeddings)?),
            });
        }
        let tokenizer = match names {
            ClipNames::Transformers => Tokenizer::Transformers(ClipTokenizer::from_folder(&folder)?),
            ClipNames::OpenClip => Tokenizer::OpenClip(OpenClipTokenizer::from_folder(&folder, text.max_position_embeddings)?),
        };
        let (words, length) = match &tokenizer {
            Tokenizer::Transformers(tokenizer) => (tokenizer.vocab_size(), tokenizer.length()),
            Tokenizer::OpenClip(tokenizer) => (tokenizer.vocab_size(), text.max_position_embeddings),
        };
        if words > text.vocab_size {
            let (vocab, weights) = (folder.display().to_string(), self.weights.display().to_string());
            return Err(Error::VocabularyTooLarge { vocab, words, weights, embeddings: text.vocab_size });
        }
        if length > text.max_position_embeddings {
            let finding =
                format!("{} makes rows of {length} ids, but the text encoder reads {}", folder.display(), text.max_position_embeddings);
            return Err(Error::Invalid { reward: self.reward, findings: vec![finding] });
        }
        Ok(tokenizer)
    }
}

fn vocabulary_files(folder: &Path) -> Vec<PathBuf> {
    ["tokenizer.json", "vocab.json", "merges.txt"].map(|name| folder.join(name)).into_iter().filter(|path| path.is_file()).collect()
}

fn has_vocabulary(folder: &Path) -> bool {
    folder.join("tokenizer.json").is_file() || folder.join("vocab.json").is_file() && folder.join("merges.txt").is_file()
}

#[derive(Debug)]
enum Tokenizer {
    Transformers(ClipTokenizer),
    OpenClip(OpenClipTokenizer),
}

impl Tokenizer {
    fn encode(&self, text: &str) -> Encoding {
        match self {
            Self::Transformers(tokenizer) => tokenizer.encode(text),
            Self::OpenClip(tokenizer) => tokenizer.encode(text),
        }
    }
}

/// How a reward looks at images.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Looks {
    /// Of tensors.
    pub antialias: Antialias,
    /// Whether images of files are resized in bytes by Pillow, or as tensors.
    pub bytes: bool,
}

/// A loaded CLIP. Its weights are constants: only images get gradients.
#[derive(Debug)]
pub struct ClipScore {
    name: &'static str,
    model: ClipModel,
    preprocessing: Preprocessing,
    looks: Looks,
    tokenizer: Tokenizer,
    logit_scale: bool,
    device: Device,
}

impl ClipScore {
    /// Reads the files onto `device`, without autodiff.
    ///
    /// # Errors
    /// When a file is missing, cannot be read, or does not fit the others.
    pub fn load(section: &ClipScoreConfig, device: &Device) -> Result<Self> {
        let looks = Looks { antialias: Antialias::On, bytes: true };
        let read = Self::read(&section.files(), looks, section.dtype, device)?;
        Ok(Self { logit_scale: section.logit_scale, ..read })
    }

    /// The cosine, of the CLIP in `files`.
    pub(crate) fn read(files: &ClipFiles<'_>, looks: Looks, dtype: Option<NumberFormat>, device: &Device) -> Result<Self> {
        let device = device.clone().without_autodiff();
        let source = ClipSource::open(files.weights, files.defaults)?;
        let (names, preprocessing) = (source.names, source.preprocessing);
        let tokenizer = files.load_tokenizer(names, &source.config)?;
        let ClipCheckpoint { model, .. } = source.load(&device)?;
        let model = model.in_format(checked_format(files.reward, dtype, &device)?)?;
        Ok(Self { name: files.reward, model, preprocessing, looks, tokenizer, logit_scale: false, device })
    }

    /// The same reward with images made square in another way.
    pub(crate) fn with_preprocessing(self, preprocessing: impl FnOnce(Preprocessing) -> Preprocessing) -> Self {
        Self { preprocessing: preprocessing(self.preprocessing), ..self }
    }

    /// The network.
    pub fn model(&self) -> &ClipModel {
        &self.model
    }

    /// The ids of each prompt, as the text encoder reads them.
    pub fn input_ids(&self, prompts: &[String]) -> Vec<Vec<u32>> {
        prompts.iter().map(|prompt| self.tokenizer.encode(prompt).ids).collect()
    }

    /// The image encoder's input of image files, `[b, 3, size, size]`.
    ///
    /// # Panics
    /// When there are no images.
    pub fn pixel_values(&self, images: &[RgbImage]) -> Tensor<4> {
        let one = |image: &RgbImage| match self.looks.bytes {
            true => self.preprocessing.bytes(image.as_raw(), [image.height() as usize, image.width() as usize], &self.device),
            false => {
                let image = to_tensor(std::slice::from_ref(image), &self.device).expect("a single image has a single size");
                self.preprocessing.tensors(image, self.looks.antialias)
            }
        };
        Tensor::cat(images.iter().map(one).collect(), 0)
    }

    /// Scores of images that are preprocessed already: `[b, 3, image_size, image_size]`, normalised.
    ///
    /// # Panics
    /// When the images have another size, or there is not one prompt for each.
    pub fn score_pixel_values(&self, pixel_values: Tensor<4>, prompts: &[String]) -> Tensor<1> {
        let ids = self.input_ids(prompts);
        if self.logit_scale {
            self.model.logits(pixel_values, &ids, &self.device)
        } else {
            self.model.cosine(pixel_values, &ids, &self.device)
        }
    }
}

impl Reward for ClipScore {
    fn name(&self) -> &'static str {
        self.name
    }

    fn differentiable(&self) -> bool {
        true
    }

    fn score(&self, images: Tensor<4>, prompts: &[String]) -> Result<Tensor<1>> {
        check_batch(self.name, &images, prompts)?;
        Ok(self.score_pixel_values(self.preprocessing.tensors(images, self.looks.antialias), prompts))
    }

    /// Resizes and rounds as the original does: `CLIPImageProcessor` of transformers and open_clip's transform in bytes, HPS v2's not.
    fn score_rgb(&self, images: &[RgbImage], prompts: &[String], _: &Device) -> Result<ScoredRgb> {
        check_pairs(self.name, images, prompts)?;
        if images.is_empty() {
            return Ok(ScoredRgb::default());
        }
        let scores = self.score_pixel_values(self.pixel_values(images), prompts);
        Ok(Scored { scores, terms: Vec::new() }.into())
    }

    fn image_encoder(&self) -> Option<&dyn ImageEncoder> {
        Some(self)
    }

    fn check_prompts(&self, prompts: &[String]) -> Vec<Warning> {
        let lost = |(index, prompt): (usize, &String)| {
            let message = format!("{}: {}", self.name, self.tokenizer.encode(prompt).warning()?);
            Some(Warning { index, message })
        };
        prompts.iter().enumerate().filter_map(lost).collect()
    }
}

impl ImageEncoder for ClipScore {
    /// The images' embeddings, of length 1.
    fn image_features(&self, images: &[RgbImage]) -> Tensor<2> {
        self.model.image_embeds(self.pixel_values(images))
    }
}
