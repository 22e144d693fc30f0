//! What can go wrong between images and scores.

use vp_models::weights::LoadError;

/// Why a reward cannot be made, or cannot score what it was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot work.
    #[error("reward {reward}: {}", findings.join("\n  and "))]
    Invalid {
        /// The reward's registered name.
        reward: &'static str,
        /// Everything that is wrong with it, in one sentence each.
        findings: Vec<String>,
    },
    /// No reward recognises the weights at a path.
    #[error("no reward has its weights at {path}: {}", findings.join("\n  and "))]
    UnknownWeights {
        /// The file or folder.
        path: String,
        /// What each reward with weights finds wrong with it, in one sentence each.
        findings: Vec<String>,
    },
    /// A file of weights, a config or a vocabulary cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The files of a network do not fit together.
    #[error(transparent)]
    Model(#[from] vp_models::Error),
    /// The vocabulary is larger than the text encoder: some tokens would have no embedding.
    #[error(
        "{vocab} has {words} words, but the text encoder of {weights} has embeddings for {embeddings}; \
         pass the vocabulary that the reward was trained with"
    )]
    VocabularyTooLarge {
        /// The path of the vocabulary.
        vocab: String,
        /// How many words it has, with the two that BLIP adds.
        words: usize,
        /// The path of the weights.
        weights: String,
        /// How many words the text encoder has embeddings for.
        embeddings: usize,
    },
    /// What scores the images is a server or another program, and it did not.
    #[error("reward {reward}: {reason}")]
    NoScores {
        /// The reward's registered name.
        reward: &'static str,
        /// Which server or program, and what became of the request.
        reason: String,
    },
    /// The tensor is not a batch of RGB images.
    #[error("reward {reward}: expected images of shape [b, 3, h, w], at least one, found {found:?}")]
    NotImages {
        /// The reward's registered name.
        reward: &'static str,
        /// The shape that the tensor has.
        found: [usize; 4],
    },
    /// There is not one prompt for each image.
    #[error("reward {reward}: {images} images and {prompts} prompts; expected one prompt for each image")]
    PromptCount {
        /// The reward's registered name.
        reward: &'static str,
        /// How many images were given.
        images: usize,
        /// How many prompts were given.
        prompts: usize,
    },
    /// The image cannot be written as a JPEG.
    #[error("reward {reward}: an image of {width}x{height} pixels cannot be a JPEG: {reason}")]
    Jpeg {
        /// The reward's registered name.
        reward: &'static str,
        /// The image's width in pixels.
        width: usize,
        /// The image's height in pixels.
        height: usize,
        /// Why, in the encoder's words.
        reason: String,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
