//! What the rewards say: the figures at the top, and paired differences as intervals.

use super::html::Html;
use super::{Report, numbers};
use crate::comparison::{Contrast, Difference, ModelComparison};

/// The figures that a reader in a hurry takes along.
pub(super) fn key_figures(html: &mut Html, report: &Report) {
    for (comparison, contrast) in report.contrasts() {
        if comparison.contrasts.len() > 1 {
            html.leaf("h3", &[], &format!("{} against {}", contrast.candidate, comparison.baseline));
        }
        html.tag("ul", &[("class", "cards")], |html| {
            for reward in &contrast.rewards {
                let kind = if report.is_trained(&reward.reward) { "trained" } else { "not trained" };
                html.tag("li", &[], |html| {
                    card(html, &reward.reward, kind, reward.paired.as_ref());
                    let wins = reward.win_rate.map(|found| format!("wins {}", numbers::share(&found.rate)));
                    html.leaf("span", &[("class", "detail")], &wins.unwrap_or_else(|| "no win rate".into()));
                    let prompts = reward.paired.map_or(0, |paired| paired.prompts);
                    let n = format!("{}, {}", numbers::counted(prompts, "prompt"), numbers::counted(reward.images, "image pair"));
                    html.leaf("span", &[("class", "detail")], &n);
                });
            }
        });
    }
}

fn card(html: &mut Html, name: &str, kind: &str, paired: Option<&Difference>) {
    html.tag("span", &[("class", "label")], |html| {
        html.text(name);
        html.leaf("span", &[("class", "tag")], kind);
    });
    let shown = paired.map_or_else(|| numbers::NONE.to_string(), numbers::difference);
    let (estimate, interval) = shown.split_once(' ').unwrap_or((&shown, ""));
    html.tag("span", &[("class", "figure")], |html| {
        html.text(estimate);
        html.leaf("span", &[("class", "interval")], &format!(" {interval}"));
    });
    html.leaf("span", &[("class", "detail")], paired.map_or("no pair has both scores", numbers::verdict));
}

/// Paired differences as a dot and a bar, a row for each reward.
pub(super) fn forest(html: &mut Html, report: &Report, comparison: &ModelComparison, contrast: &Contrast) {
    html.leaf("h3", &[], &format!("{} against {}", contrast.candidate, comparison.baseline));
    html.tag("figure", &[("class", "forest")], |html| {
        for reward in &contrast.rewards {
            let Some(paired) = &reward.paired else { continue };
            html.tag("div", &[("class", "row")], |html| {
                html.leaf("span", &[("class", "name")], &report.reward_name(&reward.reward));
                bar(html, &reward.reward, paired);
                let n = numbers::counted(paired.prompts, "prompt");
                html.leaf("span", &[("class", "number")], &format!("{}, {n}", numbers::difference(paired)));
            });
        }
        let level = numbers::percent(comparison.options.bootstrap.level);
        let caption = format!(
            "{} minus {}: a dot is the mean over prompts of the paired difference, the bar its {level} interval (bootstrap over prompts), the line \
             in the middle no difference; to the right of it {0} is better. Every row has its own scale.",
            contrast.candidate, comparison.baseline
        );
        html.leaf("figcaption", &[], &caption);
    });
}

/// A row is drawn 200 units wide and stretched to whatever room there is; strokes are not stretched with it.
fn bar(html: &mut Html, reward: &str, paired: &Difference) {
    let (low, high) = paired.interval.map_or((paired.difference, paired.difference), |interval| (interval.low, interval.high));
    let reach = low.abs().max(high.abs()).max(paired.difference.abs());
    // The farther end is at nine tenths of the way.
    let place = |value: f64| format!("{:.2}", if reach > 0.0 { 90.0 * value / reach } else { 0.0 });
    let label = format!("{reward}: {}", numbers::difference(paired));
    let attributes = [("viewBox", "-100 0 200 20"), ("preserveAspectRatio", "none"), ("role", "img"), ("aria-label", &*label)];
    html.tag("svg", &attributes, |html| {
        html.leaf("path", &[("class", "zero"), ("d", "M0 0V20")], "");
        if paired.interval.is_some() {
            html.leaf("path", &[("class", "bar"), ("d", &format!("M{} 10H{}", place(low), place(high)))], "");
        }
        html.leaf("path", &[("class", "dot"), ("d", &format!("M{} 10h0", place(paired.difference)))], "");
    });
}

impl Report {
    /// Every model that is compared with the baseline.
    pub(super) fn contrasts(&self) -> impl Iterator<Item = (&ModelComparison, &Contrast)> {
        self.comparison.iter().flat_map(|comparison| comparison.contrasts.iter().map(move |contrast| (comparison, contrast)))
    }
}
