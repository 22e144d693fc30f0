//! `judge`: the judge of the world of shapes. Exact, free, and only for pictures of that world.
//!
//! Of two images it prefers the one with the larger sum of the four aspects. A prompt that is not a caption of that world cannot be followed:
//! its images get 1 for prompt_following.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vp_core::config::Validate;
use vp_data::{Aspect, Preferred, Rating, Ratings};
use vp_shapes::Description;

use crate::{Annotator, Answered, Ask, Build, BuildContext, Choice, Picture, Result, Unanswered};

/// The `[annotator.judge]` section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JudgeConfig {
    /// Whether ratings are whole numbers, as people and language models give them: images that hardly differ are then equally good.
    /// Otherwise they have the judge's own fractions, and hardly any two are tied.
    pub whole: bool,
}

impl Default for JudgeConfig {
    fn default() -> Self {
        Self { whole: true }
    }
}

impl Validate for JudgeConfig {
    fn findings(&self, _: &mut Vec<String>) {}
}

impl Build for JudgeConfig {
    fn build(&self, _: BuildContext) -> Result<Box<dyn Annotator>> {
        Ok(Box::new(Judge { whole: self.whole }))
    }
}

/// The judge.
#[derive(Debug, Clone, Copy)]
pub struct Judge {
    pub(crate) whole: bool,
}

fn look(picture: &Picture, prompt: &str, whole: bool) -> Result<Ratings, Unanswered> {
    let caption = Description::parse(prompt);
    let nothing = Description { groups: Vec::new(), relation: None, background: None };
    let verdict = vp_shapes::judge(&picture.pixels()?, caption.as_ref().unwrap_or(&nothing));
    let following = match caption {
        Ok(_) => verdict.prompt_following,
        Err(error) => vp_shapes::AspectScore { score: 1.0, rationale: error.to_string() },
    };
    let said = [following, verdict.aesthetic, verdict.fidelity, verdict.harmlessness];
    // Through the shortest decimal, so that 3.4 is not written as 3.4000000953674316.
    let decimal = |score: f32| score.to_string().parse().unwrap_or(f64::from(score));
    let decimal = |score: f32| if whole { decimal(score).round() } else { decimal(score) };
    Ok(Aspect::ALL
        .into_iter()
        .zip(said)
        .map(|(aspect, said)| (aspect, Rating { rating: decimal(said.score), rationale: said.rationale }))
        .collect())
}

impl Annotator for Judge {
    fn name(&self) -> &'static str {
        "judge"
    }

    fn settings(&self) -> Value {
        json!({ "whole": self.whole })
    }

    fn rate(&self, prompt: &str, images: &[Picture], _: &Ask) -> Result<Answered<Vec<Ratings>>, Unanswered> {
        images.iter().map(|picture| look(picture, prompt, self.whole)).collect::<Result<_, _>>().map(Answered::free)
    }

    fn compare(&self, prompt: &str, [first, second]: [&Picture; 2], _: &Ask) -> Result<Answered<Choice>, Unanswered> {
        let sum = |picture| Ok::<f64, Unanswered>(look(picture, prompt, self.whole)?.values().map(|rating| rating.rating).sum());
        let (first, second) = (sum(first)?, sum(second)?);
        let preferred = match first - second {
            difference if difference > 0.0 => Preferred::First,
            difference if difference < 0.0 => Preferred::Second,
            _ => Preferred::Tie,
        };
        Ok(Answered::free(Choice { preferred, rationale: format!("the four aspects sum to {first:.2} and {second:.2}") }))
    }
}
