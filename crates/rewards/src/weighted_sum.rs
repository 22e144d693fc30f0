//! `weighted_sum`: several rewards as one.
//!
//! ```text
//! score = Σ weightᵢ · (scoreᵢ − meanᵢ) / stdᵢ
//! ```
//!
//! A mean and a standard deviation bring rewards with different units to one scale, so that the weights say how much each counts. A run's
//! metrics have the scores of each term under `reward/<term>`, from which both can be estimated. The defaults, 0 and 1, leave scores as
//! they are.

use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_data::RgbImage;
use vp_models::GradientCheckpointing;
use vp_models::footprint::ScoringNetwork;

use crate::{Build, ImageEncoder, Result, Reward, RewardConfig, Scored, ScoredRgb, Warning, check_batch, check_pairs};

const NAME: &str = "weighted_sum";

/// The `[reward.weighted_sum]` section.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedSumConfig {
    /// The rewards: a `[[reward.weighted_sum.terms]]` for each, with a `[reward.weighted_sum.terms.reward.<name>]` in it.
    pub terms: Vec<Term>,
}

/// A reward, how much it counts and its scale.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// How much it counts; negative where high scores are not wanted.
    pub weight: f64,
    /// What is subtracted from its scores; 0 unless given.
    #[serde(default)]
    pub mean: f64,
    /// What the difference is divided by; 1 unless given.
    #[serde(default = "one")]
    pub std: f64,
    /// The reward's own configuration.
    pub reward: RewardConfig,
}

fn one() -> f64 {
    1.0
}

impl Validate for WeightedSumConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        if self.terms.is_empty() {
            findings.push(format!("reward.{NAME} has no terms; expected at least one [[reward.{NAME}.terms]]"));
        }
        for (i, Term { weight, mean, std, reward }) in self.terms.iter().enumerate() {
            let place = format!("reward.{NAME}.terms[{i}]");
            if !(weight.is_finite() && *weight != 0.0) {
                findings.push(format!("{place}.weight = {weight}: expected a number other than 0 (watch what should not count)"));
            }
            if !mean.is_finite() {
                findings.push(format!("{place}.mean = {mean} is not finite"));
            }
            if !(*std > 0.0 && std.is_finite()) {
                findings.push(format!("{place}.std = {std}: expected a positive number"));
            }
            let mut below = Vec::new();
            reward.findings(&mut below);
            findings.extend(below.into_iter().map(|finding| format!("{place}.{finding}")));
        }
    }
}

impl Build for WeightedSumConfig {
    fn build(&self, device: &Device) -> Result<Box<dyn Reward>> {
        let mut terms: Vec<Weighed> = Vec::with_capacity(self.terms.len());
        for Term { weight, mean, std, reward } in &self.terms {
            let (factor, offset, reward) = (weight / std, -mean * weight / std, reward.build(device)?);
            let namesakes = terms.iter().filter(|term| term.reward.name() == reward.name()).count();
            let name = if namesakes == 0 { reward.name().to_string() } else { format!("{}_{}", reward.name(), namesakes + 1) };
            terms.push(Weighed { name, weight: *weight, factor, offset, reward });
        }
        Ok(Box::new(WeightedSum { terms }))
    }

    /// The terms' files and folders, each once.
    fn weights(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = Vec::new();
        for path in self.terms.iter().flat_map(|term| term.reward.weights()) {
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        paths
    }

    fn networks(&self) -> Result<Vec<ScoringNetwork>> {
        let networks = self.terms.iter().map(|term| term.reward.networks());
        Ok(networks.collect::<Result<Vec<_>>>()?.concat())
    }

    fn weights_mut(&mut self) -> Vec<&mut PathBuf> {
        self.terms.iter_mut().flat_map(|term| term.reward.chosen_mut().weights_mut()).collect()
    }

    fn blank_connection(&mut self) {
        self.terms.iter_mut().for_each(|term| term.reward.chosen_mut().blank_connection());
    }
}

/// A reward that adds `factor · score + offset` to the sum.
struct Weighed {
    /// The reward's name; with a number from the second of that name on, `brightness_2`.
    name: String,
    weight: f64,
    factor: f64,
    offset: f64,
    reward: Box<dyn Reward>,
}

/// A weighted sum of rewards.
pub struct WeightedSum {
    terms: Vec<Weighed>,
}

impl Reward for WeightedSum {
    fn name(&self) -> &'static str {
        NAME
    }

    fn differentiable(&self) -> bool {
        self.terms.iter().all(|term| term.reward.differentiable())
    }

    fn score(&self, images: Tensor<4>, prompts: &[String]) -> Result<Tensor<1>> {
        Ok(self.score_with_terms(images, prompts)?.scores)
    }

    fn score_with_terms(&self, images: Tensor<4>, prompts: &[String]) -> Result<Scored> {
        let [b, ..] = check_batch(NAME, &images, prompts)?;
        // A gradient through some of the terms alone would be that of another sum than the score's.
        let images = if self.differentiable() { images } else { images.without_autodiff() };
        let mut sum = Scored { scores: Tensor::zeros([b], &images.device().without_autodiff()), terms: Vec::new() };
        for Weighed { name, factor, offset, reward, .. } in &self.terms {
            let Scored { scores, terms } = reward.score_with_terms(images.clone(), prompts)?;
            sum.scores = sum.scores + scores.clone() * *factor + *offset;
            sum.terms.push((name.clone(), scores.without_autodiff()));
            sum.terms.extend(terms.into_iter().map(|(below, scores)| (format!("{name}/{below}"), scores)));
        }
        Ok(sum)
    }

    /// The weights as the config has them, for terms that are normalised.
    fn term_weights(&self) -> Vec<(String, f64)> {
        self.terms.iter().map(|term| (term.name.clone(), term.weight)).collect()
    }

    /// Each term scores the images in its own way for files.
    fn score_rgb(&self, images: &[RgbImage], prompts: &[String], device: &Device) -> Result<ScoredRgb> {
        check_pairs(NAME, images, prompts)?;
        let mut sum = ScoredRgb { scores: vec![0.0; images.len()], terms: Vec::new() };
        for Weighed { name, factor, offset, reward, .. } in &self.terms {
            let ScoredRgb { scores, terms } = reward.score_rgb(images, prompts, device)?;
            sum.scores.iter_mut().zip(&scores).for_each(|(sum, score)| *sum += score * factor + offset);
            sum.terms.push((name.clone(), scores));
            sum.terms.extend(terms.into_iter().map(|(below, scores)| (format!("{name}/{below}"), scores)));
        }
        Ok(sum)
    }

    /// That of the first term that has one.
    fn image_encoder(&self) -> Option<&dyn ImageEncoder> {
        self.terms.iter().find_map(|term| term.reward.image_encoder())
    }

    fn set_gradient_checkpointing(&mut self, kept: GradientCheckpointing) {
        self.terms.iter_mut().for_each(|term| term.reward.set_gradient_checkpointing(kept));
    }

    fn check_prompts(&self, prompts: &[String]) -> Vec<Warning> {
        self.terms.iter().flat_map(|term| term.reward.check_prompts(prompts)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VpScoreConfig;
    use burn::tensor::Tolerance;

    fn parse(terms: &str) -> std::result::Result<RewardConfig, String> {
        vp_core::config::parse(&format!("[weighted_sum]\n{terms}"), "sum.toml", &[]).map_err(|error| error.to_string())
    }

    fn sum(terms: &str) -> Box<dyn Reward> {
        parse(terms).unwrap().build(&Device::flex()).unwrap()
    }

    const TWO: &str = "[[weighted_sum.terms]]\nweight = 2.0\nmean = 0.25\nstd = 0.5\n[weighted_sum.terms.reward.brightness]\n\
                       [[weighted_sum.terms]]\nweight = -1.0\n[weighted_sum.terms.reward.brightness]\n";

    /// An image of one grey pixel for each level.
    fn greys(levels: [f32; 2], device: &Device) -> Tensor<4> {
        Tensor::<1>::from_data(levels, device).reshape([2, 1, 1, 1]).repeat_dim(1, 3)
    }

    #[test]
    fn terms_are_normalised_weighed_and_told() {
        let device = Device::flex();
        let prompts = ["".to_string(), "".to_string()];
        let Scored { scores, terms } = sum(TWO).score_with_terms(greys([0.25, 0.75], &device), &prompts).unwrap();
        // 2 (0.25 − 0.25) / 0.5 − 0.25 and 2 (0.75 − 0.25) / 0.5 − 0.75.
        scores.into_data().assert_approx_eq::<f32>(&[-0.25, 1.25].into(), Tolerance::default());
        assert_eq!(terms.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["brightness", "brightness_2"]);
        for (_, scores) in terms {
            scores.into_data().assert_approx_eq::<f32>(&[0.25, 0.75].into(), Tolerance::default());
        }
        let images = [64, 191].map(|level| RgbImage::from_pixel(1, 1, [level; 3].into()));
        let files = sum(TWO).score_rgb(&images, &prompts, &device).unwrap().scores;
        assert!((files[0] + 0.25).abs() < 0.01 && (files[1] - 1.25).abs() < 0.01, "{files:?}");
    }

    #[test]
    fn sums_of_sums_name_their_terms_by_their_place() {
        let nested = "[[weighted_sum.terms]]\nweight = 3.0\n[[weighted_sum.terms.reward.weighted_sum.terms]]\nweight = 1.0\nmean = 1.0\n\
                      [weighted_sum.terms.reward.weighted_sum.terms.reward.brightness]\n";
        let scored = sum(nested).score_with_terms(greys([0.5, 1.0], &Device::flex()), &["".into(), "".into()]).unwrap();
        scored.scores.into_data().assert_approx_eq::<f32>(&[-1.5, 0.0].into(), Tolerance::default());
        let names: Vec<&str> = scored.terms.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["weighted_sum", "weighted_sum/brightness"]);
    }

    #[test]
    fn the_gradient_is_the_sums_or_none() {
        let prompts = ["".to_string(), "".to_string()];
        let images = greys([0.25, 0.75], &Device::flex().autodiff()).require_grad();
        let scores = sum(TWO).score(images.clone(), &prompts).unwrap();
        // 2 / 0.5 − 1 = 3, spread over the channels by their luma.
        let gradient = images.grad(&scores.sum().backward()).unwrap();
        gradient.narrow(0, 0, 1).sum().into_data().assert_approx_eq::<f32>(&[3.0].into(), Tolerance::default());
        let mixed = sum(&format!("{TWO}[[weighted_sum.terms]]\nweight = 1.0\n[weighted_sum.terms.reward.jpeg_incompressibility]\n"));
        assert!(!mixed.differentiable());
        assert!(!mixed.score(images, &prompts).unwrap().is_autodiff());
    }

    #[test]
    fn every_finding_says_which_term() {
        let message = parse("terms = []").unwrap_err();
        assert!(message.contains("reward.weighted_sum has no terms"), "{message}");
        let message = parse(
            "[[weighted_sum.terms]]\nweight = 0.0\n[weighted_sum.terms.reward.brightness]\n\
             [[weighted_sum.terms]]\nweight = nan\nmean = inf\nstd = -1.0\n[weighted_sum.terms.reward.jpeg_compressibility]\nquality = 0\n",
        )
        .unwrap_err();
        for expected in [
            "reward.weighted_sum.terms[0].weight = 0: expected a number other than 0",
            "reward.weighted_sum.terms[1].weight = NaN",
            "reward.weighted_sum.terms[1].mean = inf is not finite",
            "reward.weighted_sum.terms[1].std = -1: expected a positive number",
            "reward.weighted_sum.terms[1].reward.jpeg_compressibility.quality = 0: expected 1 to 100",
        ] {
            assert!(message.contains(expected), "{expected} is not in: {message}");
        }
    }

    #[test]
    fn every_file_is_listed_once() {
        let reward = |weights: &str| RewardConfig::VpScore(VpScoreConfig::new(weights));
        let terms = ["a", "b", "a"].map(|weights| Term { weight: 1.0, mean: 0.0, std: 1.0, reward: reward(weights) }).to_vec();
        let config = RewardConfig::WeightedSum(WeightedSumConfig { terms });
        assert_eq!(config.weights(), ["a", "b"].map(PathBuf::from));
    }
}
