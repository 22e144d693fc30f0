//! What the rewards say: paired differences as intervals, a reward's terms folded under it.

use super::html::Html;
use super::{Report, numbers};
use crate::comparison::{Contrast, Difference, ModelComparison, RewardContrast};

/// Paired differences as a dot and a bar, a row for each reward.
pub(super) fn forest(html: &mut Html, report: &Report, comparison: &ModelComparison, contrast: &Contrast) {
    if comparison.contrasts.len() > 1 {
        html.leaf("h3", &[], &format!("{} against {}", contrast.candidate, comparison.baseline));
    }
    html.tag("figure", &[("class", "forest")], |html| {
        for (reward, terms) in contrast.families() {
            row(html, reward, &reward.reward, report.is_trained(&reward.reward));
            if terms.is_empty() {
                continue;
            }
            html.tag("details", &[("class", "terms")], |html| {
                html.leaf("summary", &[], &format!("{} of {}", numbers::counted(terms.len(), "term"), reward.reward));
                html.tag("div", &[("class", "forest")], |html| {
                    terms.iter().for_each(|term| row(html, term, &term.reward[reward.reward.len() + 1..], false));
                });
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

fn row(html: &mut Html, reward: &RewardContrast, name: &str, is_trained: bool) {
    let Some(paired) = &reward.paired else { return };
    html.tag("div", &[("class", "row")], |html| {
        html.tag("span", &[("class", "name")], |html| {
            html.text(name);
            if is_trained {
                html.leaf("span", &[("class", "tag")], "trained");
            }
        });
        bar(html, &reward.reward, paired);
        let n = numbers::counted(paired.prompts, "prompt");
        html.tag("span", &[("class", "number")], |html| {
            html.leaf("strong", &[], numbers::verdict(paired));
            html.text(&format!(" {}, {n}", numbers::difference(paired)));
        });
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
