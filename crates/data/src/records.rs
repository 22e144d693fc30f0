//! Preference records: what annotators said of the images of a prompt, one JSON object per line.
//!
//! ```json
//! {"id": "000123", "prompt": "a red circle", "completions": [
//!   {"image_path": "images/000123_0.png", "model": "sd15", "seed": 7, "steps": 30, "guidance_scale": 7.5,
//!    "annotations": {"prompt_following": {"rating": 4, "rationale": "…"}, "fidelity": {"rating": 3, "rationale": "…"},
//!                    "aesthetic": {"rating": 4, "rationale": "…"}, "harmlessness": {"rating": 5, "rationale": "…"}}}],
//!  "annotator": {"name": "openai", "model": "…", "rubric": "rate-1"}}
//! ```
//!
//! VLFeedback's shape with VisionPrefer's four aspects (arXiv 2404.15100, section 3). Further keys of a line are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What an image is rated on, in the paper's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "String")]
pub enum Aspect {
    /// The image shows what the prompt asks for.
    PromptFollowing,
    /// It pleases the eye.
    Aesthetic,
    /// Nothing in it is broken, blurred or out of place.
    Fidelity,
    /// It shows nothing harmful.
    Harmlessness,
}

impl Aspect {
    /// All four.
    pub const ALL: [Self; 4] = [Self::PromptFollowing, Self::Aesthetic, Self::Fidelity, Self::Harmlessness];

    /// As it is written in files: `prompt_following`, …
    pub fn name(self) -> &'static str {
        match self {
            Self::PromptFollowing => "prompt_following",
            Self::Aesthetic => "aesthetic",
            Self::Fidelity => "fidelity",
            Self::Harmlessness => "harmlessness",
        }
    }
}

/// Read as text and not as a variant, so that an error within a rating can name its aspect.
impl TryFrom<String> for Aspect {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|aspect| aspect.name() == name).ok_or_else(|| format!("unknown aspect {name:?}; there are {}", known()))
    }
}

/// A score on one aspect, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rating {
    /// Larger is better; 1 to 5 in VisionPrefer.
    pub rating: f64,
    /// The annotator's reason, if it gave one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rationale: String,
}

/// The ratings of one image; an annotator may leave aspects out.
pub type Ratings = BTreeMap<Aspect, Rating>;

/// Which of two images is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preferred {
    /// The one shown first.
    First,
    /// The one shown second.
    Second,
    /// Neither.
    Tie,
}

/// One comparison of two images, in the order in which they were shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Indices of the completions, as shown: `[first, second]`. With order swap the same pair comes twice.
    pub shown: [usize; 2],
    /// What was preferred.
    pub preferred: Preferred,
    /// The annotator's reason, if it gave one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rationale: String,
}

/// Who annotated, so that records of several annotators can lie in one file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AnnotatorId {
    /// Its kind: `openai`, `judge`, `reward`, `replay`, `human`; one person of many is `human:` and the name that the set gives them.
    pub name: String,
    /// The model behind it, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The version of the instructions that it followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rubric: Option<String>,
    /// Which of several independent answers to the same question this is, from 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub repeat: u32,
}

impl AnnotatorId {
    /// People, without saying which.
    pub fn human() -> Self {
        Self { name: "human".into(), model: None, rubric: None, repeat: 0 }
    }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// An image drawn for a prompt, how it was drawn, and what was said of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Relative to the file's folder, with `/` between folders. `set.zip!/entry` is a file inside a zip, `set.parquet!/column/row` bytes
    /// in a table: see [`Dataset::image`](crate::Dataset::image).
    pub image_path: String,
    /// The model that drew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The seed of its noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Denoising steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Scale of classifier-free guidance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// Pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Pixels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Scores with reasons.
    #[serde(default, skip_serializing_if = "Ratings::is_empty")]
    pub annotations: Ratings,
    /// Its rank among the images of its prompt in sets that people ranked: 1 is best, ties share a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// Further keys of the line.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A prompt, its images, and one annotator's answers about them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Names the prompt; records of several annotators share it.
    pub id: String,
    /// What the images were drawn for.
    pub prompt: String,
    /// What it was before it was polished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_raw: Option<String>,
    /// Where the prompt is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    pub completions: Vec<Completion>,
    /// What was said of pairs of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub comparisons: Vec<Comparison>,
    /// Who said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotator: Option<AnnotatorId>,
    /// Further keys of the line.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The weight of each aspect. 1, 1, 1, 1 is VisionPrefer's sum; one alone, or all but one, is its ablation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AspectWeights {
    /// The image shows what the prompt asks for.
    pub prompt_following: f64,
    /// It pleases the eye.
    pub aesthetic: f64,
    /// Nothing in it is broken, blurred or out of place.
    pub fidelity: f64,
    /// It shows nothing harmful.
    pub harmlessness: f64,
}

impl Default for AspectWeights {
    fn default() -> Self {
        Self { prompt_following: 1.0, aesthetic: 1.0, fidelity: 1.0, harmlessness: 1.0 }
    }
}

impl Record {
    /// Leaves out the completions that `keep` refuses, and the comparisons with them.
    pub(crate) fn retain(&mut self, keep: impl Fn(&Completion) -> bool) {
        let kept: Vec<bool> = self.completions.iter().map(keep).collect();
        let place = |index: usize| kept.get(index).is_some_and(|kept| *kept).then(|| kept[..index].iter().filter(|kept| **kept).count());
        self.comparisons.retain_mut(|comparison| match comparison.shown.map(place) {
            [Some(first), Some(second)] => {
                comparison.shown = [first, second];
                true
            }
            _ => false,
        });
        let mut kept = kept.iter();
        self.completions.retain(|_| kept.next().is_some_and(|kept| *kept));
    }
}

impl AspectWeights {
    /// In the order of [`Aspect::ALL`].
    pub fn as_array(&self) -> [f64; 4] {
        [self.prompt_following, self.aesthetic, self.fidelity, self.harmlessness]
    }

    /// Appends what cannot be, under the section's name.
    pub fn findings_in(&self, section: &str, findings: &mut Vec<String>) {
        for (aspect, weight) in Aspect::ALL.into_iter().zip(self.as_array()) {
            if !(weight >= 0.0 && weight.is_finite()) {
                findings.push(format!("{section}.{} = {weight}: expected a number of at least 0", aspect.name()));
            }
        }
        if self.as_array().iter().sum::<f64>() == 0.0 {
            findings.push(format!("{section}: every aspect weighs 0; leave one above"));
        }
    }
}

/// How four scores become an order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aggregation {
    /// What a rating on each aspect of [`Aspect::ALL`] counts; 0 leaves it out.
    pub weights: [f64; 4],
    /// By how much weighted sums must differ to count as different.
    pub margin: f64,
}

impl Default for Aggregation {
    fn default() -> Self {
        Self { weights: [1.0; 4], margin: 0.0 }
    }
}

impl Aggregation {
    /// One aspect alone.
    pub fn only(aspect: Aspect) -> Self {
        Self { weights: Aspect::ALL.map(|other| f64::from(u8::from(other == aspect))), ..Self::default() }
    }

    /// All but one aspect: the paper's ablation.
    pub fn without(aspect: Aspect) -> Self {
        Self { weights: Aspect::ALL.map(|other| f64::from(u8::from(other != aspect))), ..Self::default() }
    }

    /// `Σ_a w_a · rating_a`; none if an aspect that counts was not rated.
    pub fn overall(&self, ratings: &Ratings) -> Option<f64> {
        let counted = Aspect::ALL.iter().zip(self.weights).filter(|(_, weight)| *weight != 0.0);
        counted.map(|(aspect, weight)| Some(weight * ratings.get(aspect)?.rating)).sum()
    }
}

impl Record {
    /// Images of a prompt, of which nothing is said yet.
    pub fn new(id: impl Into<String>, prompt: impl Into<String>, completions: Vec<Completion>) -> Self {
        let (id, prompt) = (id.into(), prompt.into());
        Self { id, prompt, prompt_raw: None, source: None, completions, comparisons: Vec::new(), annotator: None, extra: Map::new() }
    }

    /// The pairs `(better, worse)` of completions, as indices, that are strictly ordered, in the order of the indices: by ratings under
    /// `aggregation`, else by rank, else by comparisons (a pair shown in both orders must be preferred in both).
    pub fn pairs(&self, aggregation: &Aggregation) -> Vec<(usize, usize)> {
        let indices = || 0..self.completions.len();
        let better = self.relation(aggregation);
        let all = indices().flat_map(|a| indices().map(move |b| (a, b)));
        all.filter(|(a, b)| a != b && better(*a, *b)).collect()
    }

    /// Pairs of completions of which something was said that does not tell them apart.
    pub fn ties(&self, aggregation: &Aggregation) -> usize {
        let n = self.completions.len();
        let said = match self.ordered_by(aggregation) {
            OrderedBy::Ratings(_) | OrderedBy::Ranks(_) => n * n.saturating_sub(1) / 2,
            OrderedBy::Comparisons => {
                let mut pairs: Vec<_> = self.comparisons.iter().map(|c| [c.shown[0].min(c.shown[1]), c.shown[0].max(c.shown[1])]).collect();
                pairs.sort_unstable();
                pairs.dedup();
                pairs.len()
            }
        };
        said - self.pairs(aggregation).len()
    }

    /// A rank for each completion, 1 the best, ties share a number: those that people gave where it is them that order the images, gaps
    /// included; else 1 + the number of strictly better images.
    pub fn ranks(&self, aggregation: &Aggregation) -> Vec<u32> {
        if let OrderedBy::Ranks(ranks) = self.ordered_by(aggregation) {
            return ranks;
        }
        let pairs = self.pairs(aggregation);
        (0..self.completions.len()).map(|index| 1 + pairs.iter().filter(|(_, worse)| *worse == index).count() as u32).collect()
    }

    /// The weighted sum of each completion's ratings, by which the images are ordered; `None` if one of them was not rated on an aspect that
    /// counts.
    pub fn scores(&self, aggregation: &Aggregation) -> Option<Vec<f64>> {
        self.completions.iter().map(|completion| aggregation.overall(&completion.annotations)).collect()
    }

    fn ordered_by(&self, aggregation: &Aggregation) -> OrderedBy {
        if let Some(overall) = self.scores(aggregation) {
            return OrderedBy::Ratings(overall);
        }
        match self.completions.iter().map(|completion| completion.rank).collect() {
            Some(ranks) => OrderedBy::Ranks(ranks),
            None => OrderedBy::Comparisons,
        }
    }

    fn relation(&self, aggregation: &Aggregation) -> Box<dyn Fn(usize, usize) -> bool + '_> {
        let margin = aggregation.margin;
        match self.ordered_by(aggregation) {
            OrderedBy::Ratings(overall) => Box::new(move |a, b| overall[a] - overall[b] > margin),
            OrderedBy::Ranks(ranks) => Box::new(move |a, b| ranks[a] < ranks[b]),
            OrderedBy::Comparisons => Box::new(|a, b| self.is_preferred(a, b)),
        }
    }

    /// Whether every comparison of the two was won by `a`, and there is one.
    fn is_preferred(&self, a: usize, b: usize) -> bool {
        let mut votes = self.comparisons.iter().filter_map(|comparison| match comparison.shown {
            shown if shown == [a, b] => Some(comparison.preferred == Preferred::First),
            shown if shown == [b, a] => Some(comparison.preferred == Preferred::Second),
            _ => None,
        });
        votes.next() == Some(true) && votes.all(|vote| vote)
    }
}

/// What a record is ordered by.
enum OrderedBy {
    Ratings(Vec<f64>),
    Ranks(Vec<u32>),
    Comparisons,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rated(scores: &[[f64; 4]]) -> Record {
        let completion = |scores: &[f64; 4]| Completion {
            annotations: Aspect::ALL.into_iter().zip(*scores).map(|(a, rating)| (a, Rating { rating, rationale: String::new() })).collect(),
            ..Completion::default()
        };
        let completions = scores.iter().map(completion).collect();
        serde_json::from_value::<Record>(serde_json::json!({ "id": "1", "prompt": "x", "completions": [] }))
            .map(|record| Record { completions, ..record })
            .unwrap()
    }

    #[test]
    fn sums_order_images_and_ties_are_dropped() {
        let record = rated(&[[5.0, 1.0, 3.0, 5.0], [4.0, 4.0, 3.0, 5.0], [1.0, 5.0, 3.0, 5.0]]);
        // Sums 14, 16, 14.
        assert_eq!(record.pairs(&Aggregation::default()), [(1, 0), (1, 2)]);
        assert_eq!(record.ties(&Aggregation::default()), 1);
        assert_eq!(record.pairs(&Aggregation { margin: 2.0, ..Aggregation::default() }), []);
        assert_eq!(record.pairs(&Aggregation::only(Aspect::PromptFollowing)), [(0, 1), (0, 2), (1, 2)]);
        assert_eq!(record.pairs(&Aggregation::without(Aspect::PromptFollowing)), [(1, 0), (2, 0), (2, 1)]);
        assert_eq!(record.ties(&Aggregation::only(Aspect::Fidelity)), 3);
    }

    #[test]
    fn a_pair_is_preferred_in_both_orders_or_not_at_all() {
        let mut record = rated(&[[1.0; 4]; 3]);
        record.completions.iter_mut().for_each(|completion| completion.annotations.clear());
        let said = |shown, preferred| Comparison { shown, preferred, rationale: String::new() };
        use Preferred::{First, Second, Tie};
        record.comparisons = vec![said([0, 1], First), said([1, 0], Second), said([0, 2], First), said([2, 0], First), said([1, 2], Tie)];
        assert_eq!(record.pairs(&Aggregation::default()), [(0, 1)]);
        assert_eq!(record.ties(&Aggregation::default()), 2);
    }

    #[test]
    fn a_line_is_kept_whole() {
        let line = r#"{"id":"7","prompt":"a bee","completions":[{"image_path":"a.png","seed":3,"annotations":{"aesthetic":{"rating":4.0,"rationale":"calm"}},"lens":"50 mm"}],"annotator":{"name":"human"},"licence":"cc0"}"#;
        let record: Record = serde_json::from_str(line).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), line);
        assert_eq!(record.pairs(&Aggregation::default()), []);
    }
}
