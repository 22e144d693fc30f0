//! What casts doubt on the numbers, and where they come from.

use super::html::Html;
use super::numbers::counted;
use super::tables::{self, Table};
use super::{LeakPanel, Provenance, Report, SentinelPanel};
use crate::votes::VoteCounts;

/// A table in a box of its own, which scrolls where it is too wide.
pub(super) fn table(html: &mut Html, table: &Table) {
    let box_of = [("class", "scroll"), ("role", "region"), ("aria-label", &*table.caption), ("tabindex", "0")];
    // One with many columns is a list of its rows where it does not fit.
    let class = if table.head.len() > 3 { "table stacks" } else { "table" };
    html.tag("figure", &[("class", class)], |html| {
        // Not a caption of the table's own, which would be as wide as the table and scroll with it.
        html.leaf("figcaption", &[], &table.caption);
        html.tag("div", &box_of, |html| rows(html, table));
    });
}

fn rows(html: &mut Html, table: &Table) {
    html.tag("table", &[("aria-label", &table.caption)], |html| {
        let class = |column: usize| match (column < table.words, table.prose) {
            (true, true) => "prose",
            (true, false) => "name",
            (false, _) => "number",
        };
        html.tag("thead", &[], |html| {
            html.tag("tr", &[], |html| {
                let cells = table.head.iter().enumerate();
                cells.for_each(|(column, cell)| html.leaf("th", &[("scope", "col"), ("class", class(column))], cell));
            });
        });
        html.tag("tbody", &[], |html| {
            for row in &table.rows {
                html.tag("tr", &[], |html| {
                    for (column, cell) in row.iter().enumerate() {
                        let name = if column == 0 { "th" } else { "td" };
                        let about: &[_] = if column == 0 { &[("scope", "row")] } else { &[("data-head", &*table.head[column])] };
                        html.leaf(name, &[&[("class", class(column)), ("dir", "auto")], about].concat(), cell);
                    }
                });
            }
        });
    });
}

/// What people say of the images, and who agrees with them.
pub(super) fn people(html: &mut Html, report: &Report) {
    let (Some(votes), Some(comparison)) = (&report.votes, &report.comparison) else { return };
    html.leaf("p", &[], &format!("{} by {}.", counted(votes.votes, "vote"), voters_of(votes)));
    if !votes.wins.is_empty() {
        table(html, &tables::wins(comparison, votes));
    }
    let is_term = |reward: &str| comparison.contrasts.iter().any(|contrast| contrast.is_term(reward));
    table(html, &tables::agreement(report, votes, |reward| !is_term(reward)));
    let terms = tables::agreement(report, votes, is_term);
    if !terms.rows.is_empty() {
        html.tag("details", &[("class", "terms")], |html| {
            html.leaf("summary", &[], "Terms of the rewards");
            table(html, &terms);
        });
    }
}

/// `3 people`
pub(super) fn voters_of(votes: &VoteCounts) -> String {
    if votes.voters == 1 { "one person".into() } else { format!("{} people", votes.voters) }
}

pub(super) fn sentinel(html: &mut Html, panel: Option<&SentinelPanel>) {
    let Some(panel) = panel else {
        return html.leaf(
            "p",
            &[("class", "notice")],
            "The sentinel did not watch: nothing here speaks for or against an exploited reward.",
        );
    };
    html.leaf("p", &[("class", if panel.findings.is_empty() { "notice good" } else { "notice bad" })], &sentinel_says(panel));
    html.tag("ul", &[("class", "findings")], |html| {
        for finding in &panel.findings {
            html.tag("li", &[], |html| {
                html.leaf("strong", &[], &format!("Step {}, {}", finding.step, finding.rule.name().replace('_', " ")));
                html.leaf("span", &[("class", "tag")], tables::action(finding.action));
                html.leaf("p", &[], &finding.reason);
            });
        }
    });
    table(html, &tables::rules(panel));
}

/// In a sentence.
pub(super) fn sentinel_says(panel: &SentinelPanel) -> String {
    let looks = counted(panel.steps.len(), "look");
    let steps = match (panel.steps.first(), panel.steps.last()) {
        (Some(first), Some(last)) => format!(", steps {first} to {last}"),
        _ => String::new(),
    };
    match panel.findings.len() {
        // One look has nothing to be compared with.
        0 if panel.steps.len() < 2 => format!("No rule could fire at {looks}{steps}: it takes two or more."),
        0 => format!("No rule fired at {looks}{steps}."),
        findings => format!("{} at {looks}{steps}.", counted(findings, "finding")),
    }
}

pub(super) fn leaks(html: &mut Html, panel: Option<&LeakPanel>) {
    let Some(panel) = panel else {
        return html.leaf("p", &[("class", "notice")], "Held-out prompts were not compared with training prompts.");
    };
    html.leaf("p", &[("class", if panel.leaks.is_empty() { "notice good" } else { "notice bad" })], &leaks_say(panel));
    if !panel.leaks.is_empty() {
        table(html, &tables::leaks(panel));
    }
}

/// In a sentence.
pub(super) fn leaks_say(panel: &LeakPanel) -> String {
    let (found, heldout, training) =
        (panel.leaks.len(), counted(panel.heldout, "held-out prompt"), counted(panel.training, "training prompt"));
    format!("{found} of {heldout} {} like one of {training} ({}).", if found == 1 { "is" } else { "are" }, panel.method)
}

pub(super) fn provenance(html: &mut Html, report: &Report) {
    let Provenance { command, .. } = &report.provenance;
    if !command.is_empty() {
        html.leaf("h3", &[], "Command");
        html.leaf("pre", &[("tabindex", "0"), ("class", "command")], command);
    }
    html.tag("div", &[("class", "facts")], |html| tables::facts(&report.provenance).iter().for_each(|facts| table(html, facts)));
    if let Some(hashes) = tables::hashes(&report.provenance) {
        html.tag("details", &[], |html| {
            html.leaf("summary", &[], &format!("Checksums of {}", counted(hashes.rows.len(), "input")));
            table(html, &hashes);
        });
    }
    if !report.config.is_empty() {
        html.tag("details", &[], |html| {
            html.leaf("summary", &[], "Resolved configuration");
            html.leaf("pre", &[("tabindex", "0")], &report.config);
        });
    }
}
