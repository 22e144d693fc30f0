//! `dataset agreement`: how far annotators agree, with each other and with themselves.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::Context;
use serde::Serialize;
use vp_data::{Aggregation, AnnotatorId, Aspect, Comparison, OnProblem, Preferred, Record, open_dataset, records_by_annotator};
use vp_evaluation::agreement::{Scale, Weights, cohen_kappa, krippendorff_alpha, raw_agreement};
use vp_evaluation::consistency::{Choice, PositionBias, SelfConsistency, position_bias, self_consistency};
use vp_evaluation::correlation::kendall_tau_b;

use crate::args::AgreementArgs;
use crate::failure::Failure;
use crate::terminal::{print, print_json};

/// The confidence level of every interval.
const LEVEL: f64 = 0.95;
/// The name of the order by all aspects together.
const OVERALL: &str = "overall";

/// The answers about one image or pair, by annotator.
type Said = BTreeMap<AnnotatorId, f64>;

/// The whole report.
#[derive(Debug, Serialize)]
struct AgreementReport {
    /// One per annotator.
    annotators: Vec<AnnotatorReport>,
    /// One per aspect, and one for the overall order, with all annotators together.
    aspects: Vec<AspectReport>,
    /// One per aspect and pair of annotators.
    pairs: Vec<PairReport>,
}

#[derive(Debug, Serialize)]
struct AnnotatorReport {
    annotator: String,
    records: usize,
    position_bias: Option<PositionBias>,
    /// Agreement of repeated ratings of the same image.
    self_consistency: BTreeMap<&'static str, SelfConsistency>,
    /// The share of pairs that an aspect rates equally.
    ties: BTreeMap<&'static str, f64>,
}

#[derive(Debug, Serialize)]
struct AspectReport {
    aspect: &'static str,
    units: usize,
    alpha_ordinal: Option<f64>,
    alpha_interval: Option<f64>,
}

#[derive(Debug, Serialize)]
struct PairReport {
    first: String,
    second: String,
    aspect: &'static str,
    /// How many images both rated; for `overall`, how many pairs of images both ordered.
    items: usize,
    agreement: Option<f64>,
    kappa: Option<f64>,
    kappa_quadratic: Option<f64>,
    kendall_tau: Option<f64>,
}

/// The top-level entry point for `dataset agreement`.
pub fn run(args: &AgreementArgs) -> Result<(), Failure> {
    let mut records = Vec::new();
    for path in &args.paths {
        for record in open_dataset(path)?.read(OnProblem::Refuse)?.records {
            records.extend(records_by_annotator(&record)?);
            records.push(record);
        }
    }
    let report = report(&records);
    if args.json {
        return Ok(print_json(&(serde_json::to_string(&report).context("write JSON")? + "\n"))?);
    }
    Ok(print(&table(&report))?)
}

/// The name of an annotator, the same for all of its repeats.
fn name(of: &AnnotatorId) -> String {
    let parts = [Some(of.name.as_str()), of.model.as_deref(), of.rubric.as_deref()];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// The annotator of a record. Sets ranked by people name none: then it is people.
fn author(record: &Record) -> AnnotatorId {
    record.annotator.clone().unwrap_or_else(AnnotatorId::human)
}

/// The key of an item, the same for every annotator: its prompt and images.
fn item(record: &Record, images: &[usize]) -> String {
    let images = images.iter().map(|index| record.completions[*index].image_path.rsplit('/').next().unwrap_or_default());
    std::iter::once(record.prompt.as_str()).chain(images).collect::<Vec<_>>().join("\n")
}

fn report(records: &[Record]) -> AgreementReport {
    let mut of_aspects: Vec<(&'static str, BTreeMap<String, Said>)> =
        Aspect::ALL.iter().map(|aspect| (aspect.name(), ratings(records, *aspect))).collect();
    of_aspects.push((OVERALL, orders(records)));
    let aspects = of_aspects.iter().filter_map(|(aspect, items)| of_aspect(aspect, items)).collect();
    let pairs = of_aspects.iter().flat_map(|(aspect, items)| of_pairs(aspect, items)).collect();
    AgreementReport { annotators: of_annotators(records, &of_aspects), aspects, pairs }
}

/// The ratings of each image on an aspect.
fn ratings(records: &[Record], aspect: Aspect) -> BTreeMap<String, Said> {
    let mut items: BTreeMap<String, Said> = BTreeMap::new();
    for record in records {
        for (index, completion) in record.completions.iter().enumerate() {
            if let Some(rating) = completion.annotations.get(&aspect) {
                items.entry(item(record, &[index])).or_default().insert(author(record), rating.rating);
            }
        }
    }
    items
}

/// The order of each pair of images of a prompt: 1 where the first is better, −1 where the second is, 0 for a tie.
fn orders(records: &[Record]) -> BTreeMap<String, Said> {
    let mut items: BTreeMap<String, Said> = BTreeMap::new();
    for record in records {
        let aggregation = Aggregation::default();
        let pairs = record.pairs(&aggregation);
        if pairs.is_empty() && record.ties(&aggregation) == 0 {
            continue;
        }
        let n = record.completions.len();
        for (a, b) in (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b))) {
            let order = f64::from(i8::from(pairs.contains(&(a, b))) - i8::from(pairs.contains(&(b, a))));
            // Whoever lists the images in another order must mean the same pair.
            let (first, second) = (item(record, &[a]), item(record, &[b]));
            let (key, order) = if first <= second { (item(record, &[a, b]), order) } else { (item(record, &[b, a]), -order) };
            items.entry(key).or_default().insert(author(record), order);
        }
    }
    items
}

/// The agreement of all annotators, from the first answer of each.
fn of_aspect(aspect: &'static str, items: &BTreeMap<String, Said>) -> Option<AspectReport> {
    let first = |said: &Said| said.iter().filter(|(who, _)| who.repeat == 0).map(|(_, value)| *value).collect::<Vec<f64>>();
    let units: Vec<Vec<f64>> = items.values().map(first).filter(|unit| unit.len() > 1).collect();
    let alpha = |scale| krippendorff_alpha(&units, scale);
    (!units.is_empty()).then(|| AspectReport {
        aspect,
        units: units.len(),
        alpha_ordinal: alpha(Scale::Ordinal),
        alpha_interval: alpha(Scale::Interval),
    })
}

/// The agreement of every two annotators, from the first answer of each.
fn of_pairs(aspect: &'static str, items: &BTreeMap<String, Said>) -> Vec<PairReport> {
    let mut both: BTreeMap<(String, String), Vec<(f64, f64)>> = BTreeMap::new();
    for said in items.values() {
        let said: Vec<_> = said.iter().filter(|(who, _)| who.repeat == 0).collect();
        for (i, (first, a)) in said.iter().enumerate() {
            for (second, b) in &said[i + 1..] {
                both.entry((name(first), name(second))).or_default().push((**a, **b));
            }
        }
    }
    let of = |((first, second), values): ((String, String), Vec<(f64, f64)>)| PairReport {
        first,
        second,
        aspect,
        items: values.len(),
        agreement: raw_agreement(&values),
        kappa: cohen_kappa(&values, Weights::Unweighted),
        kappa_quadratic: cohen_kappa(&values, Weights::Quadratic),
        kendall_tau: kendall_tau_b(&values),
    };
    both.into_iter().map(of).collect()
}

fn of_annotators(records: &[Record], of_aspects: &[(&'static str, BTreeMap<String, Said>)]) -> Vec<AnnotatorReport> {
    let mut by_name: BTreeMap<String, Vec<&Record>> = BTreeMap::new();
    for record in records {
        by_name.entry(name(&author(record))).or_default().push(record);
    }
    let of = |(annotator, records): (String, Vec<&Record>)| {
        let swapped: Vec<(Choice, Choice)> = records.iter().flat_map(|record| both_orders(&record.comparisons)).collect();
        let repeated = |items: &BTreeMap<String, Said>| {
            let answers =
                |said: &Said| said.iter().filter(|(who, _)| name(who) == annotator).map(|(_, value)| *value).collect::<Vec<f64>>();
            self_consistency(&items.values().map(answers).collect::<Vec<_>>(), LEVEL)
        };
        AnnotatorReport {
            records: records.len(),
            position_bias: position_bias(&swapped, LEVEL),
            self_consistency: of_aspects.iter().filter_map(|(aspect, items)| Some((*aspect, repeated(items)?))).collect(),
            ties: Aspect::ALL.into_iter().filter_map(|aspect| Some((aspect.name(), ties(&records, aspect)?))).collect(),
            annotator,
        }
    };
    by_name.into_iter().map(of).collect()
}

/// The answers to pairs that were shown in both orders.
fn both_orders(comparisons: &[Comparison]) -> Vec<(Choice, Choice)> {
    let choice = |comparison: &Comparison| match comparison.preferred {
        Preferred::First => Choice::First,
        Preferred::Second => Choice::Second,
        Preferred::Tie => Choice::Tie,
    };
    let asked = comparisons.iter().filter(|comparison| comparison.shown[0] < comparison.shown[1]);
    let other = |one: &Comparison| comparisons.iter().find(|other| other.shown == [one.shown[1], one.shown[0]]);
    asked.filter_map(|one| Some((choice(one), choice(other(one)?)))).collect()
}

/// The share of pairs of a prompt's images that an aspect rates equally.
fn ties(records: &[&Record], aspect: Aspect) -> Option<f64> {
    let only = Aggregation::only(aspect);
    let rated = records.iter().filter(|record| record.completions.iter().all(|completion| completion.annotations.contains_key(&aspect)));
    let counts = rated.map(|record| (record.ties(&only), record.pairs(&only).len()));
    let (ties, pairs) = counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    (ties + pairs > 0).then(|| ties as f64 / (ties + pairs) as f64)
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.3}"))
}

fn table(report: &AgreementReport) -> String {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").expect("a string can be written to");
    for AnnotatorReport { annotator, records, position_bias, self_consistency, ties } in &report.annotators {
        line(format!("{annotator}: {records} records"));
        for (aspect, share) in ties {
            line(format!("  {aspect:18} ties {:5.1} % of pairs", 100.0 * share));
        }
        if let Some(bias) = position_bias {
            let first = bias.first_rate.map_or_else(|| "-".into(), |rate| rate.to_string());
            line(format!(
                "  shown in both orders: {} pairs; the order changed {}; the first was preferred {first}",
                bias.pairs, bias.flip_rate
            ));
        }
        for (aspect, found) in self_consistency {
            line(format!(
                "  {aspect:18} asked again: {} items, the same answer {:.3}, always the same {}",
                found.items, found.pairwise, found.unanimous
            ));
        }
    }
    if !report.aspects.is_empty() {
        line("\nall annotators      items   alpha (ordinal)  alpha (interval)".into());
    }
    for AspectReport { aspect, units, alpha_ordinal, alpha_interval } in &report.aspects {
        line(format!("{aspect:18} {units:6}   {:>15}  {:>16}", number(*alpha_ordinal), number(*alpha_interval)));
    }
    for (i, pair) in report.pairs.iter().enumerate() {
        if i == 0 {
            line("\ntwo annotators      items  agreement   kappa  kappa (quadratic)  Kendall's tau".into());
        }
        let PairReport { first, second, aspect, items, agreement, kappa, kappa_quadratic, kendall_tau } = pair;
        let [agreement, kappa, quadratic, tau] = [agreement, kappa, kappa_quadratic, kendall_tau].map(|value| number(*value));
        line(format!("{aspect:18} {items:6}  {agreement:>9}  {kappa:>6}  {quadratic:>17}  {tau:>13}   {first} / {second}"));
    }
    text
}
