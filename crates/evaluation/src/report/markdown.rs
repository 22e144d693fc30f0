//! The report's numbers as GitHub's Markdown.

use super::Report;
use super::numbers::counted;
use super::panels::{leaks_say, sentinel_says, voters_of};
use super::tables::{self, Table};
use super::verdict::verdicts;

/// How many images without a partner are named.
const NAMED: usize = 12;

pub(super) fn markdown(report: &Report) -> String {
    let mut out = format!("# {}\n", escaped(&report.title));
    verdicts(report).iter().for_each(|verdict| paragraph(&mut out, &escaped(&verdict.text)));
    paragraph(&mut out, &escaped(&report.about));
    people(&mut out, report);
    for (comparison, contrast) in report.contrasts() {
        heading(&mut out, &format!("{} against {}", contrast.candidate, comparison.baseline));
        table(&mut out, &tables::rewards(report, comparison, contrast, &contrast.rewards.iter().collect::<Vec<_>>()));
        if !contrast.rewards.is_empty() {
            paragraph(
                &mut out,
                "The seeds of a prompt are averaged, prompts are resampled. P-values are not corrected for the number of rewards. A reward that was \
             trained goes up by construction.",
            );
        }
        if let Some((what, lines)) = tables::left_out(contrast, NAMED) {
            paragraph(&mut out, &format!("{what}."));
            list(&mut out, lines.iter());
        }
        table(&mut out, &tables::categories(report, comparison, contrast, |_| true));
        table(&mut out, &tables::looks(comparison, contrast));
        for changes in contrast.changes.iter().filter(|changes| !contrast.is_term(&changes.reward)) {
            extremes(&mut out, report, changes);
        }
    }
    for (comparison, of) in report.comparison.iter().flat_map(|comparison| comparison.standings.iter().map(move |of| (comparison, of))) {
        table(&mut out, &tables::standings(report, comparison, of));
    }
    doubts(&mut out, report);
    provenance(&mut out, report);
    out
}

fn extremes(out: &mut String, report: &Report, changes: &crate::comparison::Changes) {
    let kinds = [("Worst regressions", &changes.regressions), ("Best improvements", &changes.improvements)];
    for (title, changes_of) in kinds.into_iter().filter(|(_, changes)| !changes.is_empty()) {
        let row = |change: &crate::comparison::Change| {
            let numbers = [change.baseline, change.candidate].map(super::numbers::plain);
            let difference = super::numbers::change(change.baseline, change.candidate);
            let [baseline, candidate] = numbers;
            vec![change.prompt.clone(), change.index.to_string(), change.seed.to_string(), baseline, candidate, difference]
        };
        table(
            out,
            &Table {
                caption: format!("{title} by {}", report.reward_name(&changes.reward)),
                head: ["prompt", "number", "seed", "baseline", "candidate", "change"].map(String::from).to_vec(),
                rows: changes_of.iter().map(row).collect(),
                words: 1,
                prose: true,
            },
        );
    }
}

fn people(out: &mut String, report: &Report) {
    let (Some(votes), Some(comparison)) = (&report.votes, &report.comparison) else { return };
    heading(out, "What people prefer");
    paragraph(out, &format!("{} by {}.", counted(votes.votes, "vote"), voters_of(votes)));
    table(out, &tables::wins(comparison, votes));
    table(out, &tables::agreement(report, votes, |_| true));
}

fn doubts(out: &mut String, report: &Report) {
    heading(out, "Sentinel");
    match &report.sentinel {
        Some(panel) => {
            paragraph(out, &sentinel_says(panel));
            let line = |finding: &crate::sentinel::Finding| {
                let (rule, action) = (finding.rule.name().replace('_', " "), tables::action(finding.action));
                format!("Step {}, {rule} ({action}): {}", finding.step, finding.reason)
            };
            list(out, panel.findings.iter().map(line));
            table(out, &tables::rules(panel));
        }
        None => paragraph(out, "The sentinel did not watch."),
    }
    heading(out, "Leaks");
    match &report.leaks {
        Some(panel) => {
            paragraph(out, &escaped(&leaks_say(panel)));
            table(out, &tables::leaks(panel));
        }
        None => paragraph(out, "Held-out prompts were not compared with training prompts."),
    }
}

fn provenance(out: &mut String, report: &Report) {
    heading(out, "Where this comes from");
    fenced(out, "sh", &report.provenance.command);
    tables::facts(&report.provenance).iter().chain(&tables::hashes(&report.provenance)).for_each(|facts| table(out, facts));
    fenced(out, "toml", &report.config);
}

fn heading(out: &mut String, text: &str) {
    out.push_str(&format!("\n## {}\n", escaped(text)));
}

/// Text that is escaped already, or holds nothing to escape.
fn paragraph(out: &mut String, text: &str) {
    if !text.is_empty() {
        out.push_str(&format!("\n{text}\n"));
    }
}

fn list(out: &mut String, lines: impl Iterator<Item = impl AsRef<str>>) {
    let lines: Vec<_> = lines.map(|line| format!("- {}\n", escaped(line.as_ref()))).collect();
    out.extend((!lines.is_empty()).then(|| format!("\n{}", lines.concat())));
}

/// A table under its caption; nothing if it has no row.
fn table(out: &mut String, table: &Table) {
    if table.rows.is_empty() {
        return;
    }
    let row = |cells: &[String]| format!("| {} |\n", cells.iter().map(|cell| escaped(cell)).collect::<Vec<_>>().join(" | "));
    let rule = (0..table.head.len()).map(|column| if column < table.words { "---" } else { "---:" });
    out.push_str(&format!("\n{}:\n\n{}| {} |\n", escaped(&table.caption), row(&table.head), rule.collect::<Vec<_>>().join(" | ")));
    table.rows.iter().for_each(|cells| out.push_str(&row(cells)));
}

/// A block that its text cannot end: the fence is longer than any run of backticks inside.
fn fenced(out: &mut String, language: &str, text: &str) {
    if text.is_empty() {
        return;
    }
    let longest = text.split(|character| character != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    // As everywhere else, but the lines of a block are its own.
    let unfit = |character: char| is_turning(character) || character.is_control() && !"\n\t".contains(character);
    let text = text.trim_end_matches('\n').replace(unfit, " ");
    out.push_str(&format!("\n{fence}{language}\n{text}\n{fence}\n"));
}

/// On one line, with every sign that means something to Markdown or HTML taken literally.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            character if character.is_control() || is_turning(character) => out.push(' '),
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' | '~' | '!' | '&' | '$' => out.extend(['\\', character]),
            character => out.push(character),
        }
    }
    out
}

/// Signs that turn the direction of all that follows them in a line, which Markdown cannot confine as HTML can.
fn is_turning(character: char) -> bool {
    matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        assert_eq!(escaped("\u{202e}a|b\n<i>*_`[x](y)&\\"), " a\\|b \\<i\\>\\*\\_\\`\\[x\\](y)\\&\\\\");
    }

    #[test]
    fn a_fence_is_longer_than_what_it_holds() {
        let mut out = String::new();
        fenced(&mut out, "toml", "a = '````'\n");
        assert_eq!(out, "\n`````toml\na = '````'\n`````\n");
        out.clear();
        fenced(&mut out, "sh", "ls");
        assert_eq!(out, "\n```sh\nls\n```\n");
        out.clear();
        fenced(&mut out, "sh", "a\u{1b}[2J\n\tb\u{202e}");
        assert_eq!(out, "\n```sh\na [2J\n\tb \n```\n");
    }
}
