//! What this crate refuses. Data too scarce or too uniform for a statistic are no error: those functions return `None`.

/// Inputs that contradict themselves, and comparisons that determine no ranking.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A prompt's scores and ranks are not of the same images.
    #[error("a prompt has {scores} scores and {ranks} ranks; expected one of each for every image")]
    Lengths {
        /// How many scores there are.
        scores: usize,
        /// How many ranks there are.
        ranks: usize,
    },
    /// A comparison names a model beyond the last, or one model twice.
    #[error("a comparison of models {first} and {second}; expected two different numbers below {models}")]
    Models {
        /// The first model.
        first: usize,
        /// The second model.
        second: usize,
        /// How many models there are.
        models: usize,
    },
    /// The prior is negative or not finite.
    #[error("a prior of {0}; expected a finite number of virtual ties, 0 or more")]
    Prior(f64),
    /// Some models never won against the rest, so maximum likelihood puts the others infinitely far above.
    #[error(
        "models {winners:?} never lost, nor tied, against models {losers:?} (or were never compared with them), so the distance between the two \
         groups has no finite estimate; compare them more, leave a group out, or set a prior above 0"
    )]
    Separated {
        /// The group above, by index.
        winners: Vec<usize>,
        /// All others.
        losers: Vec<usize>,
    },
    /// The iteration did not settle.
    #[error("Bradley-Terry strengths still move by {step:e} after {iterations} iterations; set a larger prior")]
    Unsettled {
        /// The largest last change of a log-strength.
        step: f64,
        /// Iterations made.
        iterations: usize,
    },
}

/// A result with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;
