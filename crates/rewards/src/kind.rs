//! What a file of weights is, told by the names of its tensors: which reward it belongs to, or why to none.

use std::path::Path;

use vp_models::clip::{is_open_clip, without_prefix};
use vp_models::hub_id::HubId;
use vp_models::reward_files::find_weights;
use vp_models::weights::{LoadError, Weights};

/// Widths of published image encoders that open_clip writes and that are not HPS v2's, a ViT-H: ViT-B, -L, -g and -bigG.
const NOT_VIT_H: [usize; 4] = [768, 1024, 1408, 1664];

/// Whose weights a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// ImageReward's names.
    Blip,
    /// BLIP as published, with no head.
    BlipWithoutHead,
    /// A `CLIPModel` under transformers' names.
    Clip,
    /// open_clip's names: HPS v2, or a CLIP as open_clip saves it.
    OpenClip {
        is_hps_v2: bool,
    },
    /// LAION's MLP on a CLIP's image embedding, alone or with that CLIP.
    Aesthetic,
    /// The Multi-dimensional Preference Score.
    Mps,
    Lora,
    DiffusionModel,
    Unknown,
}

impl Kind {
    /// What is at `path`, a file or a folder. Only names are read.
    ///
    /// # Errors
    /// When there are no weights, or they cannot be read.
    pub(crate) fn of(path: &Path) -> Result<Self, LoadError> {
        let file = find_weights(path)?;
        // open_clip saves under names of its own; what is published alone, for being a reward, is HPS v2.
        let is_open_clips_own = file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("open_clip"));
        Ok(match Self::of_tensors(Weights::open(&file)?) {
            Self::OpenClip { is_hps_v2 } => Self::OpenClip { is_hps_v2: is_hps_v2 && !is_open_clips_own },
            kind => kind,
        })
    }

    fn of_tensors(weights: Weights) -> Self {
        let any = |test: fn(&str) -> bool| weights.names().any(test);
        if any(|name| name.contains("cross_model.layers.")) {
            return Self::Mps;
        }
        if any(|name| name.contains("lora_") || name.contains(".lora.")) {
            return Self::Lora;
        }
        if any(|name| name.starts_with("model.diffusion_model.") || name.starts_with("down_blocks.")) {
            return Self::DiffusionModel;
        }
        if any(|name| name.contains("visual_encoder.")) {
            return if any(|name| name.starts_with("blip.")) { Self::Blip } else { Self::BlipWithoutHead };
        }
        let is_head = |name: &str| name.starts_with("layers.") || name.starts_with("mlp.layers.");
        let is_head_alone = weights.shape("layers.0.weight").is_some_and(|shape| shape.len() == 2) && weights.names().all(is_head);
        if is_head_alone || any(|name| name.starts_with("mlp.layers.")) && any(|name| name.starts_with("clip.vision_model.")) {
            return Self::Aesthetic;
        }
        let weights = without_prefix(weights);
        if is_open_clip(&weights) {
            let width = weights.shape("visual.conv1.weight").and_then(|shape| shape.first().copied()).unwrap_or(0);
            return Self::OpenClip { is_hps_v2: !NOT_VIT_H.contains(&width) };
        }
        let has = |encoder: &str| weights.names().any(|name| name.starts_with(encoder));
        if has("text_model.") && has("vision_model.") { Self::Clip } else { Self::Unknown }
    }

    /// The name of the reward that these are the weights of.
    pub(crate) fn reward(self) -> Option<&'static str> {
        match self {
            Self::Blip => Some("vp_score"),
            Self::Clip | Self::OpenClip { is_hps_v2: false } => Some("clip_score"),
            Self::OpenClip { is_hps_v2: true } => Some("hps_v2"),
            Self::Aesthetic => Some("aesthetic"),
            _ => None,
        }
    }

    /// What follows "it is".
    fn described(self) -> &'static str {
        match self {
            Self::Blip => "a BLIP reward (ImageReward, VP-Score, CycleReward)",
            Self::BlipWithoutHead => "a BLIP without a reward's head; `train-reward` makes a reward of it",
            Self::Clip => "a CLIP as transformers writes it (CLIP score, PickScore)",
            Self::OpenClip { is_hps_v2: true } => "an open_clip checkpoint (HPS v2)",
            Self::OpenClip { is_hps_v2: false } => "an open_clip checkpoint",
            Self::Aesthetic => "an aesthetic predictor (an MLP on a CLIP's embedding, LAION's)",
            Self::Mps => "MPS, which is not among the rewards (`list rewards`)",
            Self::Lora => "a LoRA, not a reward",
            Self::DiffusionModel => "part of a diffusion model, not a reward",
            Self::Unknown => "of a form that no reward has: its tensors are not named as those of a BLIP, a CLIP or an aesthetic predictor",
        }
    }

    /// One line about weights at `path` for who wanted those of another reward.
    pub(crate) fn answer(self, path: &Path) -> String {
        let is = format!("{} is {}", path.display(), self.described());
        match self.reward() {
            Some(reward) => format!("{is}; it belongs under [reward.{reward}]"),
            None => is,
        }
    }
}

/// Why the weights at `path` are not those of the reward `name`, if they are not `expected`, in one line.
pub(crate) fn finding(name: &str, path: &Path, expected: impl Fn(Kind) -> bool) -> Option<String> {
    let found = if path.exists() { Kind::of(path).map_err(|error| error.to_string()) } else { Err(missing(path)) };
    match found {
        Ok(kind) if expected(kind) => None,
        Ok(kind) => Some(format!("reward.{name}.weights: {}", kind.answer(path))),
        Err(found) => Some(format!("reward.{name}.weights: {found}")),
    }
}

/// That there is nothing at `path`.
pub(crate) fn missing(path: &Path) -> String {
    format!("there is no file or folder {}", path.display())
}

/// Whether `path` names what the program itself will find: a model inside it, or one of the hub. It replaces the name by a path before it
/// builds the reward, so that what lies there is checked then.
pub(crate) fn is_found_later(path: &Path) -> bool {
    path.to_str().is_some_and(|name| name.starts_with("embedded:")) || HubId::of(path).is_some()
}
