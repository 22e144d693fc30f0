//! What of a report fits on a screen: the verdict; per model, the rewards' means and differences, and how different the images of a prompt are; and
//! what people say.

use super::Report;
use super::panels::voters_of;
use super::tables;
use super::verdict::verdicts;
use crate::comparison::ModelComparison;

/// How many rows are shown per model.
const SHOWN: usize = 16;
/// How many models are shown.
const MODELS: usize = 2;

pub(super) fn summary(report: &Report) -> String {
    let (mut out, mut contrasts) = (format!("{}\n\n", report.about), report.contrasts());
    verdicts(report).iter().take(MODELS).for_each(|verdict| out += &format!("{}\n", verdict.text));
    for (comparison, contrast) in contrasts.by_ref().take(MODELS) {
        let shown: Vec<_> = contrast.families().into_iter().map(|(reward, _)| reward).collect();
        let table = tables::rewards(report, comparison, contrast, &shown);
        let looks = tables::looks(comparison, contrast).rows.into_iter().filter(|row| row[0].starts_with("diversity"));
        let first = |row: Vec<String>| row.into_iter().take(5).collect::<Vec<_>>();
        let rows: Vec<Vec<String>> = table.rows.into_iter().chain(looks).map(first).collect();
        let left_out = rows.len().saturating_sub(SHOWN);
        out += &format!("\n{} against {}, {level} intervals:\n\n", contrast.candidate, comparison.baseline, level = level(comparison));
        out += &aligned(std::iter::once(first(table.head)).chain(rows.into_iter().take(SHOWN)).collect());
        if left_out > 0 {
            out += &format!("  and {left_out} more\n");
        }
    }
    let more = contrasts.count();
    if more > 0 {
        out += &format!("\nand {more} more models\n");
    }
    out + &people(report)
}

/// How often rewards prefer what people prefer.
fn people(report: &Report) -> String {
    let (Some(votes), Some(comparison)) = (&report.votes, &report.comparison) else { return String::new() };
    let is_reward = |reward: &str| !comparison.contrasts.iter().any(|contrast| contrast.is_term(reward));
    let table = tables::agreement(report, votes, is_reward);
    if table.rows.is_empty() {
        return String::new();
    }
    let title = format!("\n{} by {}; {}:\n\n", super::numbers::counted(votes.votes, "vote"), voters_of(votes), table.caption);
    title + &aligned(std::iter::once(table.head).chain(table.rows.into_iter().take(SHOWN)).collect())
}

fn level(comparison: &ModelComparison) -> String {
    super::numbers::percent(comparison.options.bootstrap.level)
}

/// Rows of cells, two spaces between columns, each as wide as its longest cell.
fn aligned(rows: Vec<Vec<String>>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let padded = |(cell, width): (&String, &usize)| format!("{cell}{}", " ".repeat(width - cell.chars().count()));
    let line = |row: &Vec<String>| format!("  {}\n", row.iter().zip(&widths).map(padded).collect::<Vec<_>>().join("  ").trim_end());
    rows.iter().map(line).collect()
}
