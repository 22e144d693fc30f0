//! The page around the sections.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::html::Html;
use super::{Report, chart, gallery, panels, rewards, tables};
use crate::comparison::ModelComparison;

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

const SECTIONS: [Section; 11] = [
    Section {
        id: "figures",
        title: "Key figures",
        about: "Paired differences, candidate minus baseline, with their intervals. A reward that was trained goes up by construction; what tells \
                are the others.",
        write: rewards::key_figures,
        is_there: has_rewards,
    },
    Section {
        id: "rewards",
        title: "Rewards",
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
        id: "categories",
        title: "By category",
        about: "With many rows, some will differ by chance. Under 10 prompts a bootstrap interval is too narrow to decide by.",
        write: |html, report| {
            report.contrasts().for_each(|(comparison, contrast)| panels::table(html, &tables::categories(report, comparison, contrast)));
        },
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
            html.leaf("p", &[("class", "about")], &report.about);
            html.tag("nav", &[("aria-label", "Sections")], |html| {
                there().for_each(|section| html.leaf("a", &[("href", &format!("#{}", section.id))], section.title));
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
        rewards::forest(html, report, comparison, contrast);
        panels::table(html, &tables::rewards(report, comparison, contrast));
        if let Some((what, lines)) = tables::left_out(contrast, NAMED) {
            html.tag("details", &[("class", "left-out")], |html| {
                html.leaf("summary", &[], &what);
                html.tag("ul", &[], |html| lines.iter().for_each(|line| html.leaf("li", &[], line)));
            });
        }
    }
}

fn each_comparison(html: &mut Html, report: &Report, write: fn(&mut Html, &Report, &ModelComparison)) {
    report.comparison.iter().for_each(|comparison| write(html, report, comparison));
}

fn standings(html: &mut Html, report: &Report, comparison: &ModelComparison) {
    html.tag("div", &[("class", "facts")], |html| {
        comparison.standings.iter().for_each(|of| panels::table(html, &tables::standings(report, comparison, of)));
    });
}

fn curves(html: &mut Html, report: &Report) {
    let mut marks: Vec<u64> = report.sentinel.iter().flat_map(|panel| &panel.findings).map(|finding| finding.step).collect();
    marks.dedup();
    html.tag("div", &[("class", "charts")], |html| report.curves.iter().for_each(|curve| chart::chart(html, curve, &marks)));
}
