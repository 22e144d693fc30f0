//! Compares models by the scores of the images that they drew.
//!
//! Models draw the same prompts with the same seeds, so everything is paired: a difference is `candidate − baseline` on one prompt, where most
//! of the variance, the prompt's own, cancels. Several seeds of one prompt are not independent evidence; they are averaged, and prompts are what
//! is resampled and counted.

mod contrast;
mod diversity;
mod rows;
mod standing;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub(crate) use contrast::is_term_of;
pub use contrast::{CategoryContrast, Change, Changes, Contrast, Difference, PixelContrast, RewardContrast, Unscored};
pub use diversity::{Distances, DiversityContrast, Undiverse};
pub use rows::{ImageResult, Unpaired};
pub use standing::{Standing, Standings};

use crate::bootstrap::Bootstrap;
use crate::{Error, Result};

/// How to compare.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CompareOptions {
    /// Of all intervals. Its `resamples` and `seed` are those of the permutation tests, and its `level` that of win rates too.
    pub bootstrap: Bootstrap,
    /// How many of the worst regressions and of the best improvements to name, by each reward.
    pub extremes: usize,
}

impl Default for CompareOptions {
    /// [`Bootstrap::default`], 8 each.
    fn default() -> Self {
        Self { bootstrap: Bootstrap::default(), extremes: 8 }
    }
}

/// How much of a model was evaluated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelRows {
    pub model: String,
    pub images: usize,
    /// The prompts of those.
    pub prompts: usize,
}

/// The result of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelComparison {
    /// The model that the others are compared with.
    pub baseline: String,
    /// All models, the baseline first.
    pub models: Vec<ModelRows>,
    /// Every other model against the baseline, in the order they were named.
    pub contrasts: Vec<Contrast>,
    /// For three models or more, all of them in order, by each reward; empty for two.
    pub standings: Vec<Standings>,
    /// How it was computed.
    pub options: CompareOptions,
}

impl ModelComparison {
    /// The images that [`Contrast::changes`] names for rewards that are not terms of another one, each once: candidate, prompt number and seed, in
    /// order. Those a report wants to show, with the baseline's of the same number and seed.
    pub fn extreme_images(&self) -> BTreeSet<(&str, usize, u64)> {
        let of = |contrast: &Contrast| {
            let shown = contrast.changes.iter().filter(|changes| !contrast.is_term(&changes.reward));
            let changes = shown.flat_map(|changes| changes.regressions.iter().chain(&changes.improvements));
            changes.map(|change| (change.index, change.seed)).collect::<Vec<_>>()
        };
        let named =
            self.contrasts.iter().flat_map(|contrast| of(contrast).into_iter().map(|(index, seed)| (&*contrast.candidate, index, seed)));
        named.collect()
    }
}

/// Compares models, the baseline first, on the rows of their images. The order of the rows does not matter. `distances` of images of one prompt
/// give diversity.
///
/// # Errors
/// If fewer than two models are named or one is named twice, a model has no row, a row is of another model, two rows are of the same image, or rows
/// disagree about a prompt.
pub fn compare(rows: &[ImageResult], models: &[&str], distances: Option<&Distances>, options: &CompareOptions) -> Result<ModelComparison> {
    let different: BTreeSet<_> = models.iter().collect();
    if models.len() < 2 || different.len() < models.len() {
        return Err(Error::ModelNames(models.iter().map(ToString::to_string).collect()));
    }
    let images = rows::by_model(rows, models)?;
    let baseline = models[0];
    let contrast = |(candidate, of_candidate): (&&str, &rows::Images)| {
        let (pairs, unpaired) = rows::paired(&images[0], of_candidate, [baseline, candidate]);
        let diversity = distances.map(|distances| DiversityContrast::of(distances, [baseline, candidate], &options.bootstrap));
        Contrast { diversity, ..Contrast::of(candidate, &pairs, unpaired, options) }
    };
    let rows_of = |(model, images): (&&str, &rows::Images)| {
        let prompts: BTreeSet<_> = images.keys().map(|(index, _)| index).collect();
        ModelRows { model: model.to_string(), images: images.len(), prompts: prompts.len() }
    };
    Ok(ModelComparison {
        baseline: baseline.to_string(),
        models: models.iter().zip(&images).map(rows_of).collect(),
        contrasts: models.iter().zip(&images).skip(1).map(contrast).collect(),
        standings: if models.len() > 2 { standing::standings(&images, models, options)? } else { Vec::new() },
        options: *options,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bootstrap::bootstrap_paired_difference;
    use crate::pixels::PixelStats;
    use crate::significance::sign_test;

    const OPTIONS: CompareOptions = CompareOptions {
        bootstrap: Bootstrap { resamples: 400, level: 0.95, method: crate::bootstrap::Method::Bca, seed: 3 },
        extremes: 2,
    };

    fn row(model: &str, index: usize, seed: u64, score: f64) -> ImageResult {
        let pixels = PixelStats { brightness: score / 100.0, saturation: 0.5, edge_density: 0.1, entropy: 6.0, dark_fraction: 0.0 };
        ImageResult {
            index,
            prompt: format!("prompt {index}"),
            category: None,
            seed,
            model: model.into(),
            scores: BTreeMap::from([("r".to_string(), score)]),
            pixels,
        }
    }

    /// Scores by prompt, one list a prompt, one number a seed.
    fn rows(model: &str, scores: &[&[f64]]) -> Vec<ImageResult> {
        let of = |(index, seeds): (usize, &&[f64])| {
            seeds.iter().enumerate().map(|(seed, score)| row(model, index, seed as u64, *score)).collect::<Vec<_>>()
        };
        scores.iter().enumerate().flat_map(of).collect()
    }

    fn against(baseline: &[&[f64]], candidate: &[&[f64]]) -> Contrast {
        let all = [rows("a", baseline), rows("b", candidate)].concat();
        compare(&all, &["a", "b"], None, &OPTIONS).unwrap().contrasts.remove(0)
    }

    #[test]
    fn seeds_are_averaged_and_prompts_are_counted() {
        // Prompt means 2, 5, 1 and 3, 5, 4: one tie although no single image ties.
        let found = against(&[&[1.0, 3.0], &[4.0, 6.0], &[1.0, 1.0]], &[&[2.0, 4.0], &[5.0, 5.0], &[3.0, 5.0]]);
        let reward = &found.rewards[0];
        assert_eq!((found.images, found.prompts, reward.images), (6, 3, 6));
        let means = [(3.0, 2.0), (5.0, 5.0), (4.0, 1.0)];
        let paired = reward.paired.unwrap();
        assert_eq!((paired.prompts, paired.baseline, paired.candidate), (3, 8.0 / 3.0, 4.0));
        assert_eq!(paired.difference, 4.0 / 3.0);
        assert_eq!(paired.interval, bootstrap_paired_difference(&means, &OPTIONS.bootstrap));
        assert!(paired.interval.is_some());
        let wins = reward.win_rate.unwrap();
        assert_eq!((wins.wins, wins.ties, wins.losses), (2, 1, 0));
        assert_eq!(reward.sign_test, sign_test(&means));
        assert_eq!(reward.permutation_test.unwrap().p_value, 0.5);
        assert_eq!(found.pixels[0].statistic, "brightness");
        assert!((found.pixels[0].paired.difference - paired.difference / 100.0).abs() < 1e-15);
    }

    #[test]
    fn a_prompt_with_more_seeds_weighs_no_more() {
        let found = against(&[&[0.0], &[0.0, 0.0, 0.0]], &[&[4.0], &[0.0, 0.0, 0.0]]);
        assert_eq!(found.rewards[0].paired.unwrap().difference, 2.0);
    }

    #[test]
    fn the_order_of_rows_does_not_show() {
        let score = |model: usize, index: usize, seed: u64| ((index * 7 + seed as usize * 3 + model * 5) % 11) as f64 / 7.0;
        let mut all: Vec<_> = (0..180)
            .map(|i| {
                let (model, index, seed) = (i % 3, i / 3 % 20, (i / 60) as u64);
                let category = (index % 3 > 0).then(|| format!("c{}", index % 3));
                ImageResult { category, ..row(["a", "b", "c"][model], index, seed, score(model, index, seed)) }
            })
            .filter(|row| (row.index, row.seed, row.model.as_str()) != (4, 1, "b"))
            .collect();
        let first = compare(&all, &["a", "b", "c"], None, &OPTIONS).unwrap();
        all.reverse();
        all.rotate_left(50);
        assert_eq!(first, compare(&all, &["a", "b", "c"], None, &OPTIONS).unwrap());
        assert_eq!(first.contrasts[0].categories.len(), 3);
        assert_eq!(first.contrasts[0].categories[0].category, None);
        let by_category: usize = first.contrasts[0].categories.iter().map(|category| category.rewards[0].images).sum();
        assert_eq!(by_category, 59);
    }

    #[test]
    fn what_lacks_a_partner_or_a_score_is_named() {
        let mut all = [rows("a", &[&[1.0, 1.0], &[1.0]]), rows("b", &[&[2.0], &[2.0, 2.0]])].concat();
        all[2].scores.insert("r".into(), f64::NAN);
        let found = compare(&all, &["a", "b"], None, &OPTIONS).unwrap().contrasts.remove(0);
        let named: Vec<_> = found.unpaired.iter().map(|lost| (lost.index, lost.seed, lost.missing_from.as_str())).collect();
        assert_eq!(named, [(0, 1, "b"), (1, 1, "a")]);
        let reward = &found.rewards[0];
        assert_eq!(reward.unscored, [Unscored { index: 1, seed: 0, model: "a".into() }]);
        assert_eq!((found.images, reward.images, reward.paired.unwrap().prompts), (2, 1, 1));
    }

    #[test]
    fn one_prompt_gives_means_and_no_interval() {
        let found = against(&[&[1.0, 2.0]], &[&[2.0, 4.0]]);
        let reward = &found.rewards[0];
        let paired = reward.paired.unwrap();
        assert_eq!((paired.baseline, paired.candidate, paired.difference, paired.interval), (1.5, 3.0, 1.5, None));
        assert_eq!((reward.win_rate, reward.sign_test, reward.permutation_test), (None, None, None));
        // No common prompt at all: nothing but the names of what is missing.
        let apart = [row("a", 0, 0, 1.0), row("b", 1, 0, 1.0)];
        let found = compare(&apart, &["a", "b"], None, &OPTIONS).unwrap().contrasts.remove(0);
        assert_eq!((found.images, found.unpaired.len(), found.rewards.len(), found.pixels.len()), (0, 2, 0, 0));
    }

    #[test]
    fn extremes_are_the_largest_changes_in_order() {
        let found = against(&[&[0.0, 0.0], &[0.0, 0.0], &[0.0, 0.0]], &[&[-1.0, 2.0], &[-3.0, 0.0], &[-1.0, 1.0]]);
        let changes = &found.changes[0];
        let named = |changes: &[Change]| changes.iter().map(|change| (change.index, change.seed, change.difference)).collect::<Vec<_>>();
        assert_eq!(named(&changes.regressions), [(1, 0, -3.0), (0, 0, -1.0)]);
        assert_eq!(named(&changes.improvements), [(0, 1, 2.0), (2, 1, 1.0)]);
        let all = ModelComparison { baseline: "a".into(), models: vec![], contrasts: vec![found], standings: vec![], options: OPTIONS };
        assert_eq!(all.extreme_images().into_iter().collect::<Vec<_>>(), [("b", 0, 0), ("b", 0, 1), ("b", 1, 0), ("b", 2, 1)]);
    }

    #[test]
    fn terms_stand_below_their_reward() {
        let mut all = [rows("a", &[&[1.0]]), rows("b", &[&[2.0]])].concat();
        for row in &mut all {
            let more = ["r/x", "r/y", "rx", "other/x"].map(|name| (name.to_string(), row.scores["r"]));
            row.scores.extend(more);
        }
        let found = compare(&all, &["a", "b"], None, &OPTIONS).unwrap().contrasts.remove(0);
        let name = |of: &RewardContrast| of.reward.clone();
        let families: Vec<(String, Vec<String>)> =
            found.families().into_iter().map(|(reward, terms)| (name(reward), terms.into_iter().map(name).collect())).collect();
        let expected = [("other/x", vec![]), ("r", vec!["r/x", "r/y"]), ("rx", vec![])];
        assert_eq!(families, expected.map(|(reward, terms)| (reward.to_string(), terms.into_iter().map(String::from).collect())));
    }

    #[test]
    fn diversity_is_paired_by_prompt() {
        let of = |prompts: &[(usize, &[f64])]| prompts.iter().map(|(index, distances)| (*index, distances.to_vec())).collect();
        let distances = Distances {
            metric: "cosine".into(),
            models: BTreeMap::from([
                ("a".to_string(), of(&[(0, &[0.4, 0.6]), (1, &[0.3]), (2, &[0.9])])),
                ("b".to_string(), of(&[(0, &[0.2]), (1, &[0.1]), (2, &[])])),
            ]),
        };
        let all = [rows("a", &[&[1.0]]), rows("b", &[&[1.0]])].concat();
        let found = compare(&all, &["a", "b"], Some(&distances), &OPTIONS).unwrap().contrasts.remove(0).diversity.unwrap();
        let paired = found.paired.unwrap();
        assert!((paired.baseline - 0.4).abs() < 1e-15 && (paired.candidate - 0.15).abs() < 1e-15);
        assert!((paired.interval.unwrap().estimate + 0.25).abs() < 1e-15);
        assert_eq!(found.unpaired, [Undiverse { index: 2, missing_from: "b".into() }]);
    }

    #[test]
    fn three_models_are_ranked_by_prompts() {
        // c beats b beats a on 9 prompts of 10, the other way round on the last.
        let scores = |model: f64| (0..10).map(|i| vec![if i == 9 { -model } else { model }]).collect::<Vec<_>>();
        let of = |name, model| rows(name, &scores(model).iter().map(Vec::as_slice).collect::<Vec<_>>());
        let all = [of("a", 1.0), of("b", 2.0), of("c", 3.0)].concat();
        let found = compare(&all, &["a", "b", "c"], None, &OPTIONS).unwrap();
        assert_eq!(found.contrasts.len(), 2);
        let standings = &found.standings[0];
        let order: Vec<_> = standings.models.iter().map(|standing| standing.model.as_str()).collect();
        assert_eq!((order, standings.prompts), (vec!["c", "b", "a"], 10));
        let [first, second, third] = &standings.models[..] else { panic!("{standings:?}") };
        assert_eq!((first.comparisons, first.wins, second.wins, third.wins), (20, 18.0, 10.0, 2.0));
        assert!((second.elo - 1500.0).abs() < 1e-9 && (first.elo + third.elo - 3000.0).abs() < 1e-9);
        let interval = first.interval.unwrap();
        assert!(interval.low < first.elo && first.elo < interval.high, "{interval:?}");
        // A model that always won has an interval too, though on every resample it has won as often.
        let always =
            compare(&[of("a", 1.0), of("b", 1.0), rows("c", &[&[9.0][..]; 10])].concat(), &["a", "b", "c"], None, &OPTIONS).unwrap();
        let first = &always.standings[0].models[0];
        assert_eq!((first.model.as_str(), first.wins), ("c", 20.0));
        assert!(first.interval.unwrap().high - first.elo > 100.0, "{first:?}");
        let two = [of("a", 1.0), of("b", 2.0)].concat();
        assert!(compare(&two, &["a", "b"], None, &OPTIONS).unwrap().standings.is_empty());
    }

    #[test]
    fn contradictions_are_refused() {
        let all = [rows("a", &[&[1.0]]), rows("b", &[&[1.0]])].concat();
        let with = |row: ImageResult| compare(&[&all[..], &[row]].concat(), &["a", "b"], None, &OPTIONS).unwrap_err();
        assert!(matches!(with(row("c", 0, 0, 1.0)), Error::UnknownModel { .. }));
        assert!(matches!(with(row("b", 0, 0, 1.0)), Error::RepeatedImage { index: 0, seed: 0, .. }));
        let renamed = with(ImageResult { prompt: "another".into(), ..row("b", 0, 1, 1.0) });
        assert!(renamed.to_string().contains("\"another\" (no category)"), "{renamed}");
        assert!(matches!(with(ImageResult { category: Some("x".into()), ..row("b", 0, 1, 1.0) }), Error::Prompts { .. }));
        for models in [&["a"][..], &["a", "a"], &[]] {
            assert!(matches!(compare(&all, models, None, &OPTIONS), Err(Error::ModelNames(_))), "{models:?}");
        }
        assert_eq!(compare(&all[..1], &["a", "b"], None, &OPTIONS), Err(Error::NoRows("b".into())));
    }

    #[test]
    fn a_row_is_a_line_of_json() {
        let mut first = row("a", 3, 5, 0.1);
        first.scores.insert("failed".into(), f64::NAN);
        let line = serde_json::to_string(&first).unwrap();
        assert!(line.contains("\"failed\":null") && !line.contains('\n'), "{line}");
        let read: ImageResult = serde_json::from_str(&line).unwrap();
        assert_eq!((read.score("failed"), read.score("r"), read.index), (None, Some(0.1), 3));
        assert!(serde_json::from_str::<ImageResult>(&line.replace("\"seed\"", "\"sead\"")).unwrap_err().to_string().contains("sead"));
        serde_json::to_string(&against(&[&[1.0]], &[&[2.0]])).unwrap();
    }
}
