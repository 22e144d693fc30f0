//! `vlm`: a multimodal language model behind an OpenAI-compatible server, as a reward.
//!
//! ```text
//! score = Σ weight · aspect / Σ weight        aspects prompt_following, aesthetic, fidelity, harmlessness, each 1 to 5
//! ```
//!
//! The model is asked as the annotator `openai` asks it, with the same rubric (VisionPrefer, arXiv 2404.15100, section 3), but for one image at
//! a time: a score must not depend on which images are drawn together. What it says is kept in the folder `cache`, if there is one, so that
//! a run that is resumed pays for no image twice.

use std::path::PathBuf;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use vp_annotation::{ApiKey, Budget, Clock, OnlineRater, OpenAi, OpenAiConfig, Picture};
use vp_core::config::Validate;
use vp_data::{Aspect, AspectWeights, Ratings, RgbImage};

use crate::pixels::OfPixels;
use crate::{Build, Error, Result, Reward, ScoredRgb, aspect_weights};

const NAME: &str = "vlm";

/// The `[reward.vlm]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VlmConfig {
    /// `[reward.vlm.openai]`: the server and the model, with the keys of `[annotator.openai]`.
    pub openai: OpenAiConfig,
    /// `[reward.vlm.aspects]`: how much each aspect counts.
    #[serde(default)]
    pub aspects: AspectWeights,
    /// Questions in flight.
    #[serde(default = "VlmConfig::concurrency")]
    pub concurrency: usize,
    /// Spend at most this much before the command ends, in USD; a run that is resumed counts anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_usd: Option<f64>,
    /// The largest number of requests before the command ends; a run that is resumed counts anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u64>,
    /// A folder of answers shared with other runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// What each aspect of an image counts that the model does not rate, however often it is asked; if not set, such an image is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrated: Option<f64>,
}

impl VlmConfig {
    fn concurrency() -> usize {
        4
    }
}

impl Validate for VlmConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        self.openai.findings_in("reward.vlm.openai", findings);
        self.aspects.findings_in("reward.vlm.aspects", findings);
        let mut check = |holds: bool, finding: String| {
            if !holds {
                findings.push(format!("reward.{NAME}.{finding}"));
            }
        };
        check(self.concurrency > 0, "concurrency = 0: expected at least 1".into());
        for (name, value) in [("max_usd", self.max_usd), ("unrated", self.unrated)] {
            check(
                value.is_none_or(|value| value >= 0.0 && value.is_finite()),
                format!("{name} = {value:?}: expected a number of at least 0"),
            );
        }
    }
}

impl Build for VlmConfig {
    fn build(&self, _: &Device) -> Result<Box<dyn Reward>> {
        let rater = OnlineRater {
            annotator: OpenAi::new(self.openai.clone(), ApiKey::from_env(&self.openai.api_key_env), Clock::system()),
            budget: Budget::new(self.max_usd, self.max_requests, 0.0, 0),
            concurrency: self.concurrency,
            cache: self.cache.clone(),
        };
        Ok(Box::new(Vlm { weights: self.aspects.as_array(), unrated: self.unrated, rater }))
    }

    fn blank_connection(&mut self) {
        let server = &mut self.openai;
        (server.base_url, server.api_key_env, server.key_header) = (String::new(), String::new(), None);
        (server.timeout_s, server.max_attempts) = (1.0, 1);
        (server.requests_per_minute, server.tokens_per_minute, server.image_tokens) = (None, None, None);
        (server.usd_per_million_input, server.usd_per_million_output) = (0.0, 0.0);
        (self.concurrency, self.max_usd, self.max_requests, self.cache) = (1, None, None, None);
    }
}

/// Ratings of a language model, as one number.
pub struct Vlm {
    weights: [f64; 4],
    unrated: Option<f64>,
    rater: OnlineRater,
}

impl Vlm {
    fn weigh(&self, aspects: &[[f64; 4]]) -> ScoredRgb {
        let total = self.weights.iter().sum::<f64>();
        let overall = |aspects: &[f64; 4]| self.weights.iter().zip(aspects).map(|(weight, aspect)| weight * aspect).sum::<f64>() / total;
        let term = |(i, aspect): (usize, &Aspect)| (aspect.name().to_string(), aspects.iter().map(|aspects| aspects[i]).collect());
        ScoredRgb { scores: aspects.iter().map(overall).collect(), terms: Aspect::ALL.iter().enumerate().map(term).collect() }
    }
}

impl OfPixels for Vlm {
    const NAME: &'static str = NAME;

    fn term_weights(&self) -> Vec<(String, f64)> {
        aspect_weights(self.weights)
    }

    fn score_pixels(&self, images: &[RgbImage], prompts: &[String]) -> Result<ScoredRgb> {
        let failed = |reason: String| Error::NoScores { reward: NAME, reason };
        let pictures: Vec<Picture> = images.iter().map(|image| Picture::of_pixels(image, "the image")).collect();
        let rated = self.rater.rate(prompts, &pictures).map_err(|error| failed(error.to_string()))?;
        // One image may be refused for what it shows; where all are, the images are not the reason.
        let (count, all_unrated) = (rated.len(), rated.len() > 1 && rated.iter().all(|rated| rated.is_err()));
        let aspects = rated.iter().zip(prompts).map(|(rated, prompt)| match (rated, self.unrated) {
            (Ok(ratings), _) => Ok(aspects(ratings)),
            (Err(_), Some(unrated)) if !all_unrated => Ok([unrated; 4]),
            (Err(reason), None) => {
                Err(failed(format!("an image of {prompt:?} has no rating: {reason}; reward.vlm.unrated gives such images a score")))
            }
            (Err(reason), Some(_)) => Err(failed(format!("none of {count} images has a rating: {reason}"))),
        });
        Ok(self.weigh(&aspects.collect::<Result<Vec<_>>>()?))
    }
}

/// In the order of [`Aspect::ALL`].
fn aspects(ratings: &Ratings) -> [f64; 4] {
    Aspect::ALL.map(|aspect| ratings.get(&aspect).map_or(f64::NAN, |rating| rating.rating))
}
