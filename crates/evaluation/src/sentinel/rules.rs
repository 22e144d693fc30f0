//! Each rule's condition at one look, against the first.

use super::{Action, Finding, Look, Rule, SentinelConfig};
use crate::pixels::PixelStats;

/// All conditions that hold, of rules on or off.
pub(super) fn conditions(start: &Look, now: &Look, config: &SentinelConfig) -> Vec<Finding> {
    let mut found = watched_rewards(start, now, config.z);
    found.extend(diversity_collapse(start, now, config.diversity_collapse.share));
    found.extend(pixels(start, now, config));
    found.extend(weights_run_away(start, now, config.weights_run_away.limit));
    found.into_iter().map(|finding| Finding { action: config.action(finding.rule), step: now.step, ..finding }).collect()
}

/// A finding about a number without an error; [`conditions`] says what is done about it, and when it was.
fn of_number(rule: Rule, start: f64, now: f64, reason: String) -> Finding {
    Finding { rule, action: Action::Off, step: 0, subject: None, start, now, standard_errors: None, images: None, reason }
}

/// A mean over the same images at two looks.
struct Moved {
    start: f64,
    now: f64,
    /// `mean(d) / (sd(d) / √n)` of the differences `d`, `sd` over `n − 1`; infinite if every image has moved alike, 0 if none has.
    standard_errors: f64,
    images: usize,
}

impl Moved {
    /// `None` with fewer than two images, of which nothing can be said.
    fn between(start: &[f64], now: &[f64]) -> Option<Self> {
        let n = start.len() as f64;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / n;
        let differences: Vec<f64> = now.iter().zip(start).map(|(now, start)| now - start).collect();
        let shift = mean(&differences);
        let variance = differences.iter().map(|difference| (difference - shift).powi(2)).sum::<f64>() / (n - 1.0);
        let standard_errors = if shift == 0.0 { 0.0 } else { shift / (variance / n).sqrt() };
        (start.len() > 1).then(|| Self { start: mean(start), now: mean(now), standard_errors, images: start.len() })
    }

    fn shift(&self) -> f64 {
        self.now - self.start
    }

    /// `0.2100 to 0.4500 (+7.2 standard errors of 32 values)`
    fn in_words(&self) -> String {
        let Self { start, now, standard_errors, images } = self;
        // Beyond that, all images have moved alike but for rounding, or the error is 0.
        let size = if standard_errors.abs() >= 1000.0 { "over 1000".into() } else { format!("{standard_errors:+.1}") };
        format!("{start:.4} to {now:.4} ({size} standard errors of {images} values)")
    }

    fn finding(&self, rule: Rule, subject: Option<&str>, reason: String) -> Finding {
        let Self { start, now, standard_errors, images } = *self;
        let (subject, standard_errors, images) = (subject.map(str::to_string), Some(standard_errors), Some(images));
        Finding { subject, standard_errors, images, ..of_number(rule, start, now, reason) }
    }
}

/// Watched rewards that have fallen: [`Rule::WatchedRewardDown`], and [`Rule::RewardUpHeldoutDown`] where the trained one has risen meanwhile.
fn watched_rewards(start: &Look, now: &Look, z: f64) -> Vec<Finding> {
    let watched = start.watched.iter().filter_map(|(name, start)| Some((name, Moved::between(start, now.watched.get(name)?)?)));
    let fallen: Vec<_> = watched.filter(|(_, watched)| watched.standard_errors <= -z).collect();
    let risen = Moved::between(&start.trained_reward, &now.trained_reward).filter(|trained| trained.standard_errors >= z);
    let while_it_rose = |(name, watched): &(&String, Moved)| {
        let reason = format!(
            "The trained reward went up from {} while {name}, which is not trained, went down from {}: the images please the trained reward alone.",
            risen.as_ref()?.in_words(),
            watched.in_words()
        );
        Some(watched.finding(Rule::RewardUpHeldoutDown, Some(name), reason))
    };
    let alone = |(name, watched): &(&String, Moved)| {
        let reason = format!("{name}, which is not trained, went down from {}: by this reward, the images got worse.", watched.in_words());
        watched.finding(Rule::WatchedRewardDown, Some(name), reason)
    };
    fallen.iter().filter_map(while_it_rose).chain(fallen.iter().map(alone)).collect()
}

fn diversity_collapse(start: &Look, now: &Look, share: f64) -> Option<Finding> {
    let (start, now) = start.diversity.zip(now.diversity)?;
    let reason = format!(
        "Images of one prompt differ less: their mean distance went from {start:.4} to {now:.4}, below {share} of where it started."
    );
    (now < share * start).then(|| of_number(Rule::DiversityCollapse, start, now, reason))
}

fn pixels(start: &Look, now: &Look, config: &SentinelConfig) -> Vec<Finding> {
    let moved = |of: fn(&PixelStats) -> f64| {
        let values = |look: &Look| look.pixels.iter().map(of).collect::<Vec<f64>>();
        Moved::between(&values(start), &values(now)).filter(|moved| moved.standard_errors.abs() >= config.z)
    };
    let drift = |rule, name, of, shift: f64| {
        let moved: Moved = moved(of).filter(|moved| moved.shift().abs() >= shift)?;
        Some(moved.finding(rule, None, format!("The mean {name} of the images went from {}.", moved.in_words())))
    };
    let edges = moved(|pixels| pixels.edge_density).filter(|moved| moved.now < config.edge_collapse.share * moved.start);
    let edges = edges.map(|moved| {
        let reason = format!("The images lose detail: the share of pixels on an edge went from {}.", moved.in_words());
        moved.finding(Rule::EdgeCollapse, None, reason)
    });
    let dark = moved(|pixels| pixels.dark_fraction).filter(|moved| moved.shift() >= config.dark_images.rise);
    let dark = dark.map(|moved| {
        let reason = format!("The images go dark: the share of dark pixels went from {}.", moved.in_words());
        moved.finding(Rule::DarkImages, None, reason)
    });
    let drifts = [
        drift(Rule::SaturationDrift, "saturation", |pixels| pixels.saturation, config.saturation_drift.shift),
        drift(Rule::BrightnessDrift, "brightness", |pixels| pixels.brightness, config.brightness_drift.shift),
    ];
    drifts.into_iter().chain([edges, dark]).flatten().collect()
}

fn weights_run_away(start: &Look, now: &Look, limit: Option<f64>) -> Option<Finding> {
    let limit = limit.filter(|limit| now.weight_distance > *limit)?;
    let (start, now) = (start.weight_distance, now.weight_distance);
    let reason = format!("The weights are {now:.4e} away from where they started, beyond the limit of {limit:e}.");
    Some(of_number(Rule::WeightsRunAway, start, now, reason))
}
