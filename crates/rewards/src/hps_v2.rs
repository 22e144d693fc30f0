//! `hps_v2`: the Human Preference Score v2 and v2.1, a ViT-H/14 CLIP tuned on choices between images.
//!
//! ```text
//! score = cos(image, prompt)
//! ```
//!
//! Source: HPS v2 (arXiv 2306.09341), `hpsv2/img_score.py` and `hpsv2/src/open_clip/transform.py`. An image is brought to size by its longer
//! side, as a tensor and without clamping, and what is missing is black; a CLIP score cuts off the ends of the longer side instead. Only of
//! square images are the two the same. The original leaves an image whose longer side fits already as it is, and fails; here it is padded too.
//! Reports often give the score times 100.

use std::path::PathBuf;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_models::NumberFormat;
use vp_models::clip::OpenClipDefaults;
use vp_models::footprint::ScoringNetwork;
use vp_models::resize::{Antialias, Preprocessing, ResizeMode};

use crate::clip_score::{ClipFiles, ClipScore, Looks};
use crate::kind::{self, Kind};
use crate::{Build, Result, Reward};

const NAME: &str = "hps_v2";

/// A ViT-H/14: 16 heads in both encoders, and LAION's activation.
const VIT_H: OpenClipDefaults = OpenClipDefaults { heads: Some(16), quick_gelu: Some(false) };

/// The `[reward.hps_v2]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HpsV2Config {
    /// `HPS_v2.1_compressed.pt`, `HPS_v2_compressed.pt`, imscore's safetensors copy, or a folder with nothing else of the kind.
    pub weights: PathBuf,
    /// The folder with CLIP's vocabulary (`tokenizer.json`, or `vocab.json` and `merges.txt`). Default: where the weights are, or `tokenizer`
    /// there; else the published one, which is part of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Whether images are resized with antialiasing, as torchvision 0.17 and later do; the published scores were made without.
    #[serde(default = "antialias")]
    pub antialias: bool,
    /// Number format of the encoders' weights and activations: `f32`, `bf16` or `f16`; absent: f32. The score is f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<NumberFormat>,
}

fn antialias() -> bool {
    true
}

impl HpsV2Config {
    /// The reward at `weights`, with the defaults of everything else.
    pub fn new(weights: impl Into<PathBuf>) -> Self {
        Self { weights: weights.into(), tokenizer: None, antialias: antialias(), dtype: None }
    }

    fn files(&self) -> ClipFiles<'_> {
        ClipFiles { reward: NAME, weights: &self.weights, tokenizer: self.tokenizer.as_deref(), defaults: VIT_H }
    }

    /// Reads the files onto `device`, without autodiff.
    ///
    /// # Errors
    /// When a file is missing, cannot be read, or does not fit the others.
    pub fn load(&self, device: &Device) -> Result<ClipScore> {
        let looks = Looks { antialias: if self.antialias { Antialias::On } else { Antialias::Off }, bytes: false };
        let read = ClipScore::read(&self.files(), looks, self.dtype, device)?;
        Ok(read.with_preprocessing(|clip| Preprocessing { resize_mode: ResizeMode::Longest, ..Preprocessing::clip(clip.size) }))
    }
}

impl Validate for HpsV2Config {
    fn findings(&self, findings: &mut Vec<String>) {
        if kind::is_found_later(&self.weights) {
            return;
        }
        match kind::finding(NAME, &self.weights, |kind| kind == Kind::OpenClip { is_hps_v2: true }) {
            Some(finding) => findings.push(finding),
            None => self.files().findings(findings),
        }
    }
}

impl Build for HpsV2Config {
    fn build(&self, device: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(self.load(device)?))
    }

    fn weights(&self) -> Vec<PathBuf> {
        self.files().paths()
    }

    fn weights_mut(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.weights]
    }

    /// HPS v2's network, if the files are not there.
    fn networks(&self) -> Result<Vec<ScoringNetwork>> {
        self.files().networks(self.dtype, "HPS v2.1")
    }
}
