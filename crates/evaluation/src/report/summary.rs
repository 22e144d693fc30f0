//! What of a report fits on a screen: per model, the rewards' means and differences, and how different the images of a prompt are.

use super::Report;
use super::tables;

/// How many rows are shown per model.
const SHOWN: usize = 16;
/// How many models are shown.
const MODELS: usize = 2;

pub(super) fn summary(report: &Report) -> String {
    let (mut out, mut contrasts) = (format!("{}\n", report.about), report.contrasts());
    for (comparison, contrast) in contrasts.by_ref().take(MODELS) {
        let table = tables::rewards(report, comparison, contrast);
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
    match contrasts.count() {
        0 => out,
        more => out + &format!("\nand {more} more models\n"),
    }
}

fn level(comparison: &crate::comparison::ModelComparison) -> String {
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
