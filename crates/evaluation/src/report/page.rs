//! The page around the sections.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::html::Html;
use super::numbers::counted;
use super::verdict::verdicts;
use super::{Chart, Report, chart, gallery, panels, rewards, tables};
use crate::comparison::{ModelComparison, Standings};

/// The style sheet of reports.
pub const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// How many images without a partner are named on the page.
const NAMED: usize = 12;

/// A part of the page with a heading.
struct Section {
    id: &'static str,
    title: &'static str,
    about: &'static str,
    write: fn(&mut Html, &Report),
    is_there: fn(&Report) -> bool,
}

/// What people look at comes first, then what supports it.
const SECTIONS: [Section; 12] = [
    Section {
        id: "pairs",
        title: "Before and after",
        about: "The same prompt and the same seed, drawn by two models.",
        write: |html, report| gallery::before_and_after(html, &report.pairs),
        is_there: |report| !report.pairs.is_empty(),
    },
    Section {
        id: "curves",
        title: "Course of training",
        about: "A dashed line upright marks a step at which the sentinel spoke.",
        write: curves,
        is_there: |report| !report.curves.is_empty(),
    },
    Section {
        id: "people",
        title: "What people prefer",
        about: "Votes on these images. Those on one prompt are averaged, for prompts are what is counted; a tie counts one half.",
        write: panels::people,
        is_there: |report| report.votes.is_some() && report.comparison.is_some(),
    },
    Section {
        id: "figures",
        title: "What the rewards say",
        about: "A reward that was trained goes up by construction; what tells are the others.",
        write: |html, report| report.contrasts().for_each(|(comparison, contrast)| rewards::forest(html, report, comparison, contrast)),
        is_there: has_rewards,
    },
    Section {
        id: "sentinel",
        title: "Sentinel",
        about: "Rules that look for an exploited reward at held-out images.",
        write: |html, report| panels::sentinel(html, report.sentinel.as_ref()),
        is_there: |_| true,
    },
    Section {
        id: "leaks",
        title: "Leaks",
        about: "On a held-out prompt that is like a training prompt, a better score says little about others.",
        write: |html, report| panels::leaks(html, report.leaks.as_ref()),
        is_there: |_| true,
    },
    Section {
        id: "rewards",
        title: "Figures and tests",
        about: "The seeds of a prompt are averaged; prompts are what is counted. Win rates compare those averages, a tie counting one half. P-values \
                are not corrected for the number of rewards.",
        write: reward_section,
        is_there: has_rewards,
    },
    Section {
        id: "standings",
        title: "Standings",
        about: "Every prompt is a game of every two models. 400 points more are odds of 10 to 1; the mean of all is 1500.",
        write: |html, report| each_comparison(html, report, standings),
        is_there: |report| report.comparison.as_ref().is_some_and(|comparison| !comparison.standings.is_empty()),
    },
    Section {
        id: "categories",
        title: "By category",
        about: "With many rows, some will differ by chance. Under 10 prompts a bootstrap interval is too narrow to decide by.",
        write: category_section,
        is_there: |report| report.contrasts().any(|(_, contrast)| !contrast.categories.is_empty()),
    },
    Section {
        id: "changes",
        title: "Worst regressions and best improvements",
        about: "Single images, chosen because they are extreme: they show what can happen, not what usually does.",
        write: |html, report| report.contrasts().for_each(|(_, contrast)| gallery::changes(html, report, contrast)),
        is_there: |report| report.contrasts().any(|(_, contrast)| !contrast.changes.is_empty()),
    },
    Section {
        id: "looks",
        title: "Pixels and diversity",
        about: "What no reward was asked about. Higher is neither better nor worse here; a large shift is a reason to look.",
        write: |html, report| {
            report.contrasts().for_each(|(comparison, contrast)| panels::table(html, &tables::looks(comparison, contrast)));
        },
        is_there: |report| report.comparison.is_some(),
    },
    Section {
        id: "provenance",
        title: "Where this comes from",
        about: "What it takes to get these numbers again.",
        write: panels::provenance,
        is_there: |_| true,
    },
];

/// A run without a reward has images all the same.
fn has_rewards(report: &Report) -> bool {
    report.contrasts().any(|(_, contrast)| !contrast.rewards.is_empty())
}

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let mut html = Html::default();
    html.fixed("<!doctype html>\n<html lang=\"en\">");
    html.tag("head", &[], |html| head(html, &report.title));
    html.tag("body", &[], |html| {
        let there = || SECTIONS.iter().filter(|section| (section.is_there)(report));
        html.tag("header", &[], |html| {
            html.leaf("h1", &[], &report.title);
            for verdict in verdicts(report) {
                html.leaf("p", &[("class", &format!("verdict {}", verdict.tone.class()))], &verdict.text);
            }
            html.leaf("p", &[("class", "about")], &report.about);
            html.tag("details", &[("class", "contents")], |html| {
                html.leaf("summary", &[], "Contents");
                html.tag("nav", &[("aria-label", "Sections")], |html| {
                    there().for_each(|section| html.leaf("a", &[("href", &format!("#{}", section.id))], section.title));
                });
            });
        });
        html.tag("main", &[], |html| there().for_each(|section| write(html, report, section)));
        html.tag("script", &[], |html| html.fixed(SCRIPT));
    });
    html.fixed("</html>\n");
    html.finish()
}

fn head(html: &mut Html, title: &str) {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    let policy = format!(
        "default-src 'none'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    html.fixed("<meta charset=\"utf-8\">");
    html.open("meta", &[("http-equiv", "Content-Security-Policy"), ("content", &policy)]);
    html.fixed(
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">",
    );
    html.leaf("title", &[], title);
    html.tag("style", &[], |html| html.fixed(STYLE));
}

fn write(html: &mut Html, report: &Report, section: &Section) {
    let heading = format!("{}-heading", section.id);
    html.tag("section", &[("id", section.id), ("aria-labelledby", &heading)], |html| {
        html.leaf("h2", &[("id", &heading)], section.title);
        html.leaf("p", &[("class", "about")], section.about);
        (section.write)(html, report);
    });
}

fn reward_section(html: &mut Html, report: &Report) {
    for (comparison, contrast) in report.contrasts() {
        let families = contrast.families();
        let rewards: Vec<_> = families.iter().map(|(reward, _)| *reward).collect();
        panels::table(html, &tables::rewards(report, comparison, contrast, &rewards));
        for (reward, terms) in families.iter().filter(|(_, terms)| !terms.is_empty()) {
            html.tag("details", &[("class", "terms")], |html| {
                html.leaf("summary", &[], &format!("{} of {}", counted(terms.len(), "term"), reward.reward));
                panels::table(html, &tables::rewards(report, comparison, contrast, terms));
            });
        }
        if let Some((what, lines)) = tables::left_out(contrast, NAMED) {
            html.tag("details", &[("class", "left-out")], |html| {
                html.leaf("summary", &[], &what);
                html.tag("ul", &[], |html| lines.iter().for_each(|line| html.leaf("li", &[], line)));
            });
        }
    }
}

fn category_section(html: &mut Html, report: &Report) {
    for (comparison, contrast) in report.contrasts() {
        panels::table(html, &tables::categories(report, comparison, contrast, |reward| !contrast.is_term(reward)));
        let terms = tables::categories(report, comparison, contrast, |reward| contrast.is_term(reward));
        if !terms.rows.is_empty() {
            html.tag("details", &[("class", "terms")], |html| {
                html.leaf("summary", &[], "Terms of the rewards");
                panels::table(html, &terms);
            });
        }
    }
}

fn each_comparison(html: &mut Html, report: &Report, write: fn(&mut Html, &Report, &ModelComparison)) {
    report.comparison.iter().for_each(|comparison| write(html, report, comparison));
}

fn standings(html: &mut Html, report: &Report, comparison: &ModelComparison) {
    let is_term = |of: &&Standings| comparison.contrasts.iter().any(|contrast| contrast.is_term(&of.reward));
    let (terms, rewards): (Vec<&Standings>, Vec<&Standings>) = comparison.standings.iter().partition(is_term);
    let tables = |html: &mut Html, shown: &[&Standings]| {
        html.tag("div", &[("class", "facts")], |html| {
            shown.iter().for_each(|of| panels::table(html, &tables::standings(report, comparison, of)));
        });
    };
    tables(html, &rewards);
    if !terms.is_empty() {
        html.tag("details", &[("class", "terms")], |html| {
            html.leaf("summary", &[], "Terms of the rewards");
            tables(html, &terms);
        });
    }
}

/// The charts to look at first, and the others folded; without such charts, all of them.
fn curves(html: &mut Html, report: &Report) {
    let mut marks: Vec<u64> = report.sentinel.iter().flat_map(|panel| &panel.findings).map(|finding| finding.step).collect();
    marks.dedup();
    let charts = |html: &mut Html, shown: &[&Chart]| {
        html.tag("div", &[("class", "charts")], |html| shown.iter().for_each(|curve| chart::chart(html, curve, &marks)));
    };
    let (leading, others): (Vec<&Chart>, Vec<&Chart>) = report.curves.iter().partition(|chart| chart.leads);
    if leading.is_empty() {
        return charts(html, &others);
    }
    charts(html, &leading);
    if !others.is_empty() {
        html.tag("details", &[], |html| {
            html.leaf("summary", &[], &format!("{} of losses, terms and everything else", counted(others.len(), "more curve")));
            charts(html, &others);
        });
    }
}
