//! `reward`: pseudo-labels. A reward's score becomes one of the five bands by four thresholds, given as scores or as quantiles of a list of
//! reference scores. Every aspect that it is used for gets the same rating, because the score is one number.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vp_core::config::Validate;
use vp_core::input_file;
use vp_data::{Aspect, Preferred, Rating, Ratings, RgbImage};

use crate::{Annotator, Answered, Ask, Build, BuildContext, Choice, Error, Picture, Result, Unanswered};

const NAME: &str = "reward";

/// Scores images for one prompt: one score per image, larger is better; or why there are none.
pub type Score = Box<dyn Fn(&[RgbImage], &str) -> Result<Vec<f64>, String> + Send>;

/// The `[annotator.reward]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardBandsConfig {
    /// What the reward is called in records; two rewards must not share a name.
    pub label: String,
    /// Where bands 2, 3, 4 and 5 begin, as scores. Either this or `quantiles`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thresholds: Option<[f64; 4]>,
    /// Where they begin, as shares of `reference_scores` that lie below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantiles: Option<[f64; 4]>,
    /// A file of scores of other images, one per line; the quantiles are taken from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_scores: Option<PathBuf>,
    /// The aspects that get a rating.
    #[serde(default = "RewardBandsConfig::aspects")]
    pub aspects: Vec<Aspect>,
    /// Two images whose scores differ by at most this are equally good.
    #[serde(default)]
    pub tie_margin: f64,
}

impl RewardBandsConfig {
    fn aspects() -> Vec<Aspect> {
        Aspect::ALL.to_vec()
    }

    /// Where the bands begin, as scores.
    fn bands(&self) -> Result<[f64; 4]> {
        match (self.thresholds, self.quantiles, &self.reference_scores) {
            (Some(thresholds), ..) => Ok(thresholds),
            (None, Some(quantiles), Some(path)) => {
                let text = input_file::read_to_string(path).map_err(Error::io("read", path))?;
                let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
                let score = |(index, line): (usize, &str)| match line.trim().parse::<f64>() {
                    Ok(score) if score.is_finite() => Ok(score),
                    _ => Err(Error::BadLine { path: path.clone(), line: index + 1, reason: format!("expected a score, found {line:?}") }),
                };
                let scores: Vec<f64> = lines.map(score).collect::<Result<_>>()?;
                if scores.is_empty() {
                    return Err(Error::BadLine { path: path.clone(), line: 1, reason: "expected one score per line, found none".into() });
                }
                Ok(bands_at(&scores, quantiles))
            }
            _ => unreachable!("configurations are checked before they are built"),
        }
    }
}

/// The scores below which the given shares of `scores` lie, interpolated linearly between neighbours.
///
/// # Panics
/// When there are no scores.
pub fn bands_at(scores: &[f64], quantiles: [f64; 4]) -> [f64; 4] {
    let mut sorted = scores.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantiles.map(|quantile| {
        let place = quantile * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
        low + (high - low) * place.fract()
    })
}

impl Validate for RewardBandsConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        let mut check = |holds: bool, finding: String| {
            if !holds {
                findings.push(format!("annotator.reward: {finding}"));
            }
        };
        let rises = |values: &[f64; 4]| values.is_sorted() && values.iter().all(|value| value.is_finite());
        check(!self.label.is_empty(), "label is empty: expected the reward's name".into());
        match (&self.thresholds, &self.quantiles, &self.reference_scores) {
            (Some(thresholds), None, None) => check(rises(thresholds), format!("thresholds {thresholds:?} do not rise")),
            (None, Some(quantiles), Some(_)) => {
                let shares = quantiles.iter().all(|value| (0.0..=1.0).contains(value));
                check(rises(quantiles) && shares, format!("quantiles {quantiles:?}: expected four rising numbers from 0 to 1"));
            }
            _ => check(false, "expected thresholds alone, or quantiles with reference_scores".into()),
        }
        check(!self.aspects.is_empty(), "aspects is empty: name at least one".into());
        check(self.tie_margin >= 0.0, format!("tie_margin = {}: expected at least 0", self.tie_margin));
    }
}

impl Build for RewardBandsConfig {
    fn build(&self, context: BuildContext) -> Result<Box<dyn Annotator>> {
        let Some(score) = context.score else {
            return Err(Error::Unable { annotator: NAME, reason: "there is no reward to score with; name one in [reward.<name>]".into() });
        };
        Ok(Box::new(RewardBands { bands: self.bands()?, config: self.clone(), score: Mutex::new(score) }))
    }
}

/// A reward as an annotator.
pub struct RewardBands {
    config: RewardBandsConfig,
    bands: [f64; 4],
    score: Mutex<Score>,
}

impl RewardBands {
    fn scores(&self, images: &[&Picture], prompt: &str) -> Result<Vec<f64>, Unanswered> {
        let pixels: Vec<RgbImage> = images.iter().map(|picture| picture.pixels()).collect::<vp_data::Result<_>>()?;
        let score = self.score.lock().unwrap_or_else(PoisonError::into_inner);
        let scores = score(&pixels, prompt).map_err(Unanswered::SetAside)?;
        match scores.iter().position(|score| !score.is_finite()) {
            _ if scores.len() != images.len() => {
                Err(Unanswered::SetAside(format!("reward {}: {} scores for {} images", self.config.label, scores.len(), images.len())))
            }
            Some(at) => Err(Unanswered::SetAside(format!("reward {}: the score of image {} is {}", self.config.label, at + 1, scores[at]))),
            None => Ok(scores),
        }
    }

    fn ratings(&self, score: f64) -> Ratings {
        let band = 1 + self.bands.iter().filter(|begin| score >= **begin).count();
        let rationale = match (band.checked_sub(2).map(|i| self.bands[i]), self.bands.get(band - 1)) {
            (Some(from), Some(to)) => format!("{} scores it {score:.4}, from {from:.4} to {to:.4}", self.config.label),
            (None, Some(to)) => format!("{} scores it {score:.4}, below {to:.4}", self.config.label),
            (Some(from), None) => format!("{} scores it {score:.4}, at least {from:.4}", self.config.label),
            (None, None) => unreachable!("there are four thresholds"),
        };
        self.config.aspects.iter().map(|aspect| (*aspect, Rating { rating: band as f64, rationale: rationale.clone() })).collect()
    }
}

impl Annotator for RewardBands {
    fn name(&self) -> &'static str {
        NAME
    }

    fn model(&self) -> Option<&str> {
        Some(&self.config.label)
    }

    fn settings(&self) -> Value {
        json!({ "bands": self.bands, "aspects": self.config.aspects, "tie_margin": self.config.tie_margin })
    }

    fn rate(&self, prompt: &str, images: &[Picture], _: &Ask) -> Result<Answered<Vec<Ratings>>, Unanswered> {
        let scores = self.scores(&images.iter().collect::<Vec<_>>(), prompt)?;
        Ok(Answered::free(scores.into_iter().map(|score| self.ratings(score)).collect()))
    }

    fn compare(&self, prompt: &str, pair: [&Picture; 2], _: &Ask) -> Result<Answered<Choice>, Unanswered> {
        let scores = self.scores(&pair, prompt)?;
        let difference = scores[0] - scores[1];
        let preferred = if difference.abs() <= self.config.tie_margin {
            Preferred::Tie
        } else if difference > 0.0 {
            Preferred::First
        } else {
            Preferred::Second
        };
        let rationale = format!("{} scores them {:.4} and {:.4}", self.config.label, scores[0], scores[1]);
        Ok(Answered::free(Choice { preferred, rationale }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_quantiles_of_a_reference() {
        let scores: Vec<f64> = (0..=10).rev().map(f64::from).collect();
        assert_eq!(bands_at(&scores, [0.0, 0.25, 0.5, 1.0]), [0.0, 2.5, 5.0, 10.0]);
        assert_eq!(bands_at(&[3.0], [0.2, 0.4, 0.6, 0.8]), [3.0; 4]);
    }

    #[test]
    fn a_score_falls_into_a_band() {
        let config: RewardBandsConfig = toml::from_str("label = \"r\"\nthresholds = [0, 1, 2, 3]\naspects = [\"aesthetic\"]").unwrap();
        let reward = RewardBands { bands: config.bands().unwrap(), config, score: Mutex::new(Box::new(|_, _| Ok(vec![]))) };
        let rating = |score| reward.ratings(score)[&Aspect::Aesthetic].clone();
        assert_eq!([-0.1, 0.0, 0.99, 2.5, 3.0, 99.0].map(|score| rating(score).rating), [1.0, 2.0, 2.0, 4.0, 5.0, 5.0]);
        assert_eq!(rating(0.5).rationale, "r scores it 0.5000, from 0.0000 to 1.0000");
        assert_eq!(reward.ratings(1.0).len(), 1);
    }

    #[test]
    fn one_way_to_name_the_bands_is_asked_for() {
        let count = |text: &str| {
            let mut findings = Vec::new();
            toml::from_str::<RewardBandsConfig>(&format!("label = \"r\"\n{text}")).unwrap().findings(&mut findings);
            findings.len()
        };
        assert_eq!(count("thresholds = [0, 1, 2, 3]"), 0);
        assert_eq!(count("quantiles = [0.1, 0.2, 0.3, 0.4]\nreference_scores = \"a.txt\""), 0);
        assert_eq!(count(""), 1);
        assert_eq!(count("thresholds = [0, 2, 1, 3]"), 1);
        assert_eq!(count("quantiles = [0.1, 0.2, 0.3, 1.4]\nreference_scores = \"a.txt\""), 1);
        assert_eq!(count("thresholds = [0, 1, 2, 3]\nquantiles = [0.1, 0.2, 0.3, 0.4]\naspects = []\ntie_margin = -1"), 3);
    }
}
