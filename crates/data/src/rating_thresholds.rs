//! Which ratings are likes, and which dislikes.

use serde::{Deserialize, Serialize};

use crate::{Aggregation, AspectWeights, Ratings};

/// From which rating on an image counts as liked, and up to which rating as disliked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RatingThresholds {
    /// Images with this rating or a higher one are liked; above `dislike_to`.
    pub like_from: f64,
    /// Images with this rating or a lower one are disliked; below `like_from`.
    pub dislike_to: f64,
    /// How much each aspect counts in the rating of an image of a record, which is the weighted mean of its aspects (1 each).
    #[serde(default)]
    pub weights: AspectWeights,
}

impl RatingThresholds {
    /// Appends what cannot be, under the section's name.
    pub fn findings_in(&self, section: &str, findings: &mut Vec<String>) {
        let Self { like_from, dislike_to, weights } = self;
        if !(like_from.is_finite() && dislike_to.is_finite() && dislike_to < like_from) {
            findings.push(format!(
                "{section}.like_from is {like_from} and dislike_to {dislike_to}; expected two numbers, the first above the second"
            ));
        }
        weights.findings_in(&format!("{section}.weights"), findings);
    }

    /// The rating of an image of a record; `None` if an aspect that counts was not rated.
    pub(crate) fn rating(&self, ratings: &Ratings) -> Option<f64> {
        let weights = self.weights.as_array();
        Some(Aggregation { weights, margin: 0.0 }.overall(ratings)? / weights.iter().sum::<f64>())
    }

    /// Whether an image of this rating is liked or disliked; `None` for neither.
    pub(crate) fn verdict(&self, rating: f64) -> Option<bool> {
        if rating >= self.like_from {
            Some(true)
        } else if rating <= self.dislike_to {
            Some(false)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Aspect, Rating};

    const THRESHOLDS: RatingThresholds = RatingThresholds {
        like_from: 4.0,
        dislike_to: 2.0,
        weights: AspectWeights { prompt_following: 1.0, aesthetic: 1.0, fidelity: 0.0, harmlessness: 2.0 },
    };

    #[test]
    fn the_rating_is_the_weighted_mean_and_the_thresholds_belong_to_their_sides() {
        let rated = |ratings: [f64; 4]| -> Ratings {
            Aspect::ALL.into_iter().zip(ratings).map(|(aspect, rating)| (aspect, Rating { rating, rationale: String::new() })).collect()
        };
        // (4 + 2 + 2 · 5) / 4, (1 + 1 + 2 · 3) / 4 and (4 + 4 + 2 · 2) / 4; fidelity counts nothing.
        let means = [[4.0, 2.0, 1.0, 5.0], [1.0, 1.0, 5.0, 3.0], [4.0, 4.0, 5.0, 2.0]].map(|ratings| THRESHOLDS.rating(&rated(ratings)));
        assert_eq!(means, [Some(4.0), Some(2.0), Some(3.0)]);
        assert_eq!(means.map(|mean| THRESHOLDS.verdict(mean.unwrap())), [Some(true), Some(false), None]);
        let mut ratings = rated([5.0; 4]);
        ratings.remove(&Aspect::Fidelity);
        assert_eq!(THRESHOLDS.rating(&ratings), Some(5.0));
        ratings.remove(&Aspect::Aesthetic);
        assert_eq!(THRESHOLDS.rating(&ratings), None);
    }

    #[test]
    fn thresholds_that_cannot_be_are_found() {
        let findings = |thresholds: RatingThresholds| {
            let mut findings = Vec::new();
            thresholds.findings_in("preferences.ratings", &mut findings);
            findings
        };
        assert_eq!(findings(THRESHOLDS), [""; 0]);
        for (like_from, dislike_to) in [(2.0, 4.0), (3.0, 3.0), (f64::NAN, 1.0), (f64::INFINITY, 1.0)] {
            let found = findings(RatingThresholds { like_from, dislike_to, ..THRESHOLDS });
            assert!(found.len() == 1 && found[0].starts_with("preferences.ratings.like_from is "), "{found:?}");
        }
        let found = findings(RatingThresholds { weights: AspectWeights { aesthetic: -1.0, ..THRESHOLDS.weights }, ..THRESHOLDS });
        assert_eq!(found, ["preferences.ratings.weights.aesthetic = -1: expected a number of at least 0"]);
    }
}
