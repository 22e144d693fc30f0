//! What can go wrong between images and scores.

use vp_models::weights::LoadError;

/// A reward that cannot be made, or cannot score what it was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot work. Lists all findings at once.
    #[error("reward {reward}: {}", findings.join("\n  and "))]
    Invalid {
        /// The reward's registered name.
        reward: &'static str,
        /// One sentence each.
        findings: Vec<String>,
    },
    /// A path that no reward has its weights at. Lists what each expected.
    #[error("no reward has its weights at {path}: {}", findings.join("\n  and "))]
    NobodysWeights {
        /// The file or folder.
        path: String,
        /// One sentence each.
        findings: Vec<String>,
    },
    /// Weights, config or vocabulary on disk.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A network's folder.
    #[error(transparent)]
    Model(#[from] vp_models::Error),
    /// The text encoder would be given tokens it has no embedding for.
    #[error(
        "{vocab} has {words} words, but the text encoder of {weights} has embeddings for {embeddings}; \
         pass the vocab.txt that the reward was trained with"
    )]
    VocabularyTooLarge {
        /// The vocabulary's file.
        vocab: String,
        /// Its words, the two that BLIP adds included.
        words: usize,
        /// The weights' file.
        weights: String,
        /// Rows of the word embedding.
        embeddings: usize,
    },
    /// Not a batch of RGB images.
    #[error("reward {reward}: expected images of shape [b, 3, h, w], at least one, found {found:?}")]
    NotImages {
        /// The reward's registered name.
        reward: &'static str,
        /// The shape.
        found: [usize; 4],
    },
    /// Images and prompts come in pairs.
    #[error("reward {reward}: {images} images and {prompts} prompts; expected one prompt for each image")]
    PromptCount {
        /// The reward's registered name.
        reward: &'static str,
        /// Images given.
        images: usize,
        /// Prompts given.
        prompts: usize,
    },
    /// JPEG cannot hold the image.
    #[error("reward {reward}: an image of {width}x{height} pixels cannot be a JPEG: {reason}")]
    Jpeg {
        /// The reward's registered name.
        reward: &'static str,
        /// Pixels across.
        width: usize,
        /// Pixels down.
        height: usize,
        /// What the encoder says.
        reason: String,
    },
}

/// A result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
