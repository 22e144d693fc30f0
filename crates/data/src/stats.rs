//! What a set of records holds, in numbers.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Serialize;

use crate::{Aggregation, AnnotatorId, Aspect, Record};

/// How many columns the histograms of a table may have; wider ones are shown as their range.
const COLUMNS: usize = 12;

/// Counts over records; see [`stats`](stats()).
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Different prompts, by their id: a set may hold a text twice.
    pub prompts: usize,
    /// Different texts of prompts.
    pub texts: usize,
    /// Records: a prompt may have several, of different annotators.
    pub records: usize,
    /// Different image paths.
    pub images: usize,
    /// Images of all records, each counted as often as it is annotated.
    pub completions: usize,
    /// Strict pairs, under the default [`Aggregation`].
    pub pairs: usize,
    /// Pairs that were rated equal, and say nothing.
    pub ties: usize,
    /// Of each aspect that anything is rated on.
    pub aspects: BTreeMap<Aspect, AspectStats>,
    /// Records of each annotator; of `unnamed` ones those that name none.
    pub annotators: BTreeMap<String, usize>,
    /// Completions of each model, where it is said.
    pub models: BTreeMap<String, usize>,
}

/// The ratings on one aspect.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct AspectStats {
    /// Ratings.
    pub rated: usize,
    pub sum: f64,
    /// Pairs of images of one record with the same rating.
    pub ties: usize,
    /// Pairs of images of one record that are both rated.
    pub pairs: usize,
    /// How many ratings there are of each value, rounded to a whole number.
    pub histogram: BTreeMap<i64, usize>,
}

/// Counts what records hold; they may come one by one, and are not kept.
pub fn stats(records: impl IntoIterator<Item: Borrow<Record>>) -> Stats {
    let (mut stats, mut prompts, mut texts, mut images) = (Stats::default(), HashSet::new(), HashSet::new(), HashSet::new());
    for record in records {
        let record = record.borrow();
        prompts.insert(record.id.clone());
        texts.insert(record.prompt.clone());
        images.extend(record.completions.iter().map(|completion| completion.image_path.clone()));
        stats.add(record);
    }
    (stats.prompts, stats.texts, stats.images) = (prompts.len(), texts.len(), images.len());
    stats
}

impl Stats {
    fn add(&mut self, record: &Record) {
        let aggregation = Aggregation::default();
        self.records += 1;
        self.completions += record.completions.len();
        self.pairs += record.pairs(&aggregation).len();
        self.ties += record.ties(&aggregation);
        *self.annotators.entry(record.annotator.as_ref().map_or("unnamed".into(), name_of)).or_default() += 1;
        for model in record.completions.iter().filter_map(|completion| completion.model.as_ref()) {
            *self.models.entry(model.clone()).or_default() += 1;
        }
        for aspect in Aspect::ALL {
            let ratings = record.completions.iter().filter_map(|completion| Some(completion.annotations.get(&aspect)?.rating));
            let ratings: Vec<f64> = ratings.collect();
            if !ratings.is_empty() {
                self.aspects.entry(aspect).or_default().add(&ratings);
            }
        }
    }
}

impl AspectStats {
    /// The mean rating.
    pub fn mean(&self) -> f64 {
        self.sum / self.rated as f64
    }

    fn add(&mut self, ratings: &[f64]) {
        self.rated += ratings.len();
        self.sum += ratings.iter().sum::<f64>();
        for (index, rating) in ratings.iter().enumerate() {
            *self.histogram.entry(rating.round() as i64).or_default() += 1;
            self.pairs += index;
            self.ties += ratings[..index].iter().filter(|other| *other == rating).count();
        }
    }
}

/// The annotator on one line.
fn name_of(annotator: &AnnotatorId) -> String {
    let repeat = (annotator.repeat > 0).then(|| format!("repeat {}", annotator.repeat));
    [Some(annotator.name.clone()), annotator.model.clone(), annotator.rubric.clone(), repeat]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" ")
}

/// A table, its numbers aligned on the right.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prompts, texts, records, images, completions, pairs, ties, .. } = self;
        let counts = [("prompts", prompts), ("different texts", texts), ("records", records), ("images", images)];
        let counts = counts.into_iter().chain([("completions", completions), ("usable pairs", pairs), ("dropped ties", ties)]);
        write_table(f, &counts.map(|(name, count)| vec![name.into(), count.to_string()]).collect::<Vec<_>>())?;
        if !self.aspects.is_empty() {
            writeln!(f)?;
            write_table(f, &self.aspect_rows())?;
        }
        for (title, counts) in [("annotator", &self.annotators), ("model", &self.models)] {
            if !counts.is_empty() {
                writeln!(f)?;
                let unit = if title == "annotator" { "records" } else { "images" };
                let rows = counts.iter().map(|(name, count)| vec![name.clone(), count.to_string()]);
                write_table(f, &[vec![title.into(), unit.into()]].into_iter().chain(rows).collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }
}

impl Stats {
    fn aspect_rows(&self) -> Vec<Vec<String>> {
        let histograms = || self.aspects.values().map(|aspect| &aspect.histogram);
        let lowest = histograms().filter_map(|histogram| histogram.keys().next()).min().copied().unwrap_or(0);
        let highest = histograms().filter_map(|histogram| histogram.keys().last()).max().copied().unwrap_or(0);
        let narrow = highest.saturating_sub(lowest) < COLUMNS as i64;
        let columns: Vec<String> = if narrow { (lowest..=highest).map(|value| value.to_string()).collect() } else { vec!["range".into()] };
        let mut rows = vec![[vec!["aspect".into(), "rated".into(), "mean".into(), "ties".into(), "of pairs".into()], columns].concat()];
        for (aspect, of) in &self.aspects {
            let start =
                [aspect.name().into(), of.rated.to_string(), format!("{:.2}", of.mean()), of.ties.to_string(), of.pairs.to_string()];
            let counted = (lowest..=highest).map(|value| of.histogram.get(&value).map_or("0".into(), usize::to_string));
            let range = || [of.histogram.keys().next(), of.histogram.keys().last()].map(|end| end.copied().unwrap_or(0));
            let end = if narrow { counted.collect() } else { vec![format!("{} to {}", range()[0], range()[1])] };
            rows.push([start.to_vec(), end].concat());
        }
        rows
    }
}

/// Rows of cells in columns: the first on the left, the others on the right.
fn write_table(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| if column == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") });
        writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Completion, Rating};

    fn record(id: &str, ratings: &[[Option<f64>; 2]], annotator: Option<AnnotatorId>) -> Record {
        let completion = |(index, ratings): (usize, &[Option<f64>; 2])| Completion {
            image_path: format!("{id}_{index}.png"),
            model: Some(["sd15", "sdxl"][index % 2].into()),
            annotations: [Aspect::PromptFollowing, Aspect::Fidelity]
                .into_iter()
                .zip(*ratings)
                .filter_map(|(aspect, rating)| Some((aspect, Rating { rating: rating?, rationale: String::new() })))
                .collect(),
            rank: Some(1 + index as u32 / 2),
            ..Completion::default()
        };
        Record { annotator, ..Record::new(id, format!("prompt {id}"), ratings.iter().enumerate().map(completion).collect()) }
    }

    #[test]
    fn counts_by_hand() {
        let judge = AnnotatorId { name: "judge".into(), model: Some("m".into()), rubric: None, repeat: 1 };
        let one = [[Some(5.0), Some(2.0)], [Some(3.0), Some(2.0)], [Some(5.0), None]];
        let records = [record("1", &one, None), record("1", &one[..2], Some(judge)), record("2", &[[None, None]; 2], None)];
        let stats = stats(&records);
        // Ranks 1, 1, 2 order the first record: two pairs and a tie; the two others are a tie each.
        let Stats { prompts, texts, records, images, completions, pairs, ties, .. } = stats;
        assert_eq!([prompts, texts, records, images, completions, pairs, ties], [2, 2, 3, 5, 7, 2, 3]);
        let following = &stats.aspects[&Aspect::PromptFollowing];
        assert_eq!((following.rated, following.ties, following.pairs, following.mean()), (5, 1, 4, 4.2));
        assert_eq!(following.histogram, [(3, 2), (5, 3)].into());
        let fidelity = &stats.aspects[&Aspect::Fidelity];
        assert_eq!((fidelity.rated, fidelity.ties, fidelity.pairs, fidelity.mean()), (4, 2, 2, 2.0));
        let table = "\
prompts          2
different texts  2
records          3
images           5
completions      7
usable pairs     2
dropped ties     3

aspect            rated  mean  ties  of pairs  2  3  4  5
prompt_following      5  4.20     1         4  0  2  0  3
fidelity              4  2.00     2         2  4  0  0  0

annotator         records
judge m repeat 1        1
unnamed                 2

model  images
sd15        4
sdxl        3
";
        assert_eq!(stats.to_string(), table);
        let json = serde_json::to_value(&stats).unwrap();
        assert_eq!((&json["aspects"]["fidelity"]["histogram"]["2"], &json["models"]["sdxl"]), (&4.into(), &3.into()));
    }

    #[test]
    fn wide_scales_are_shown_as_their_range() {
        let stats = stats([record("1", &[[Some(3.2), None], [Some(97.7), None]], None)]);
        assert!(stats.to_string().contains("range\nprompt_following      2  50.45     0         1  3 to 98\n"), "{stats}");
    }
}
