//! `judge`: the ratings of the world of shapes' own judge, as one number.
//!
//! ```text
//! score = Σ weight · aspect / Σ weight        aspects prompt_following, aesthetic, fidelity, harmlessness, each 1 to 5
//! ```
//!
//! These are the four aspects of VisionPrefer (arXiv 2404.15100, section 3), which weighs them equally. The judge looks at 8-bit pixels, so
//! images get no gradient. A prompt that is not a caption of that world cannot be followed: its images get 1 for prompt_following.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_data::{Aspect, AspectWeights, RgbImage};
use vp_shapes::{Description, Verdict, judge};

use crate::pixels::OfPixels;
use crate::{Build, Result, Reward, ScoredRgb, Warning, aspect_weights};

const NAME: &str = "judge";

/// The `[reward.judge]` section: how much each aspect counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JudgeConfig(pub AspectWeights);

impl Validate for JudgeConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        self.0.findings_in("reward.judge", findings);
    }
}

impl Build for JudgeConfig {
    fn build(&self, _: &Device) -> Result<Box<dyn Reward>> {
        Ok(Box::new(Judge { weights: self.0.as_array() }))
    }
}

/// The judge of the world of shapes.
#[derive(Debug, Clone, Copy)]
pub struct Judge {
    weights: [f64; 4],
}

/// The ratings of an image, and whether every claim of its prompt holds.
#[derive(Debug, Clone, Copy)]
struct Rated {
    aspects: [f64; 4],
    passes: bool,
}

impl Judge {
    fn rate(image: &RgbImage, prompt: &str) -> Rated {
        let caption = Description::parse(prompt);
        let nothing = Description { groups: Vec::new(), relation: None, background: None };
        let verdict: Verdict = judge(image, caption.as_ref().unwrap_or(&nothing));
        let following = if caption.is_ok() { verdict.prompt_following.score } else { 1.0 };
        let aspects = [following, verdict.aesthetic.score, verdict.fidelity.score, verdict.harmlessness.score].map(f64::from);
        Rated { aspects, passes: caption.is_ok() && verdict.passes() }
    }

    fn rate_all(images: &[RgbImage], prompts: &[String]) -> Vec<Rated> {
        images.iter().zip(prompts).map(|(image, prompt)| Self::rate(image, prompt)).collect()
    }

    fn weigh(&self, rated: &[Rated]) -> ScoredRgb {
        let total = self.weights.iter().sum::<f64>();
        let overall = |rated: &Rated| self.weights.iter().zip(rated.aspects).map(|(weight, aspect)| weight * aspect).sum::<f64>() / total;
        let aspect = |(i, aspect): (usize, &Aspect)| (aspect.name().to_string(), rated.iter().map(|rated| rated.aspects[i]).collect());
        let pass = rated.iter().map(|rated| f64::from(u8::from(rated.passes))).collect();
        let terms = Aspect::ALL.iter().enumerate().map(aspect).chain([("pass".to_string(), pass)]).collect();
        ScoredRgb { scores: rated.iter().map(overall).collect(), terms }
    }
}

impl OfPixels for Judge {
    const NAME: &'static str = NAME;

    /// The terms are the aspects, and `pass`: 1 where every claim of the prompt holds, else 0.
    fn score_pixels(&self, images: &[RgbImage], prompts: &[String]) -> Result<ScoredRgb> {
        Ok(self.weigh(&Self::rate_all(images, prompts)))
    }

    fn term_weights(&self) -> Vec<(String, f64)> {
        aspect_weights(self.weights)
    }

    fn check_prompts(&self, prompts: &[String]) -> Vec<Warning> {
        let warning = |(index, prompt): (usize, &String)| {
            let error = Description::parse(prompt).err()?;
            Some(Warning { index, message: format!("{error}; reward judge gives 1 for prompt_following") })
        };
        prompts.iter().enumerate().filter_map(warning).collect()
    }
}
