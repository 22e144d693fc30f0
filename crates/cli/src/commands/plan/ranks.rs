//! `plan --ranks`: how fast a run would be on several devices.

use serde_json::{Value, json};
use vp_trainers::config::TrainConfig;
use vp_trainers::plan::{Link, Predicted, Work};

use crate::args::PlanArgs;
use crate::memory::readable;

/// A run on several numbers of ranks.
pub struct Spread {
    config: TrainConfig,
    work: Work,
    tflops: f64,
    link: Link,
    predicted: Vec<Predicted>,
}

impl Spread {
    /// The run of `config` on the ranks and links that the arguments name.
    pub fn of(args: &PlanArgs, work: Work, config: TrainConfig) -> Self {
        let link = Link { latency: args.latency * 1e-6, bandwidth: args.bandwidth * 1e9 / 8.0 };
        let predicted = args.ranks.iter().map(|&ranks| work.on(ranks, args.tflops * 1e12, link)).collect();
        Self { config, work, tflops: args.tflops, link, predicted }
    }

    /// A line per number of ranks, under what they are computed from.
    pub fn text(&self) -> String {
        let Self { config, work, tflops, link, .. } = self;
        let mut lines = vec![
            format!("{} of {}: an update of {} images", config.algo.name(), config.model.path.display(), work.images),
            format!("computes {:.3} TFLOP, at {tflops} TFLOP/s per rank", work.operations / 1e12),
            format!(
                "and sums {} of gradients over the ranks, at {} Gbit/s and {} us per message",
                readable(work.bytes),
                link.bandwidth * 8.0 / 1e9,
                (link.latency * 1e9).round() / 1e3
            ),
            String::new(),
            format!(
                "{:>6}{:>8}{:>12}{:>12}{:>12}{:>12}{:>22}",
                "ranks", "images", "compute", "ring", "tree", "efficiency", "with larger batches"
            ),
        ];
        lines.extend(self.predicted.iter().map(|on| {
            let [compute, ring, tree] = [on.compute, on.ring, on.tree].map(seconds);
            let percent = |share: f64| format!("{:.1} %", 100.0 * share);
            let grown = format!("{} of {}", percent(on.grown), on.ranks * work.at_once);
            format!("{:>6}{:>8}{compute:>12}{ring:>12}{tree:>12}{:>12}{grown:>22}", on.ranks, on.images, percent(on.efficiency))
        }));
        lines.push(String::new());
        lines.extend([
            "images: of the rank that has the most. efficiency: with the faster of the two sums, against so".to_string(),
            format!("many times one rank; with larger batches: if each rank has {} images per update.", work.at_once),
            "Predicted, not measured; previews, reading, and rewards outside the program are left out.".into(),
        ]);
        lines.into_iter().map(|line| line + "\n").collect()
    }

    /// One JSON object.
    pub fn json(&self) -> Value {
        let Self { config, work, tflops, link, predicted } = self;
        let of = |on: &Predicted| {
            json!({
                "ranks": on.ranks, "images": on.images, "compute": on.compute, "ring": on.ring, "tree": on.tree,
                "efficiency": on.efficiency, "efficiency_with_larger_batches": on.grown,
            })
        };
        json!({
            "algo": config.algo.name(),
            "model": config.model.path,
            "images": work.images,
            "images_at_once": work.at_once,
            "operations": work.operations,
            "bytes": work.bytes,
            "tflops": tflops,
            "latency": link.latency,
            "bandwidth": link.bandwidth,
            "predicted": predicted.iter().map(of).collect::<Vec<_>>(),
        })
    }
}

/// A duration in the unit that fits it.
fn seconds(duration: f64) -> String {
    match duration {
        0.0 => "0".into(),
        short if short < 1e-3 => format!("{:.0} us", short * 1e6),
        short if short < 1.0 => format!("{:.1} ms", short * 1e3),
        long => format!("{long:.1} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_their_unit() {
        assert_eq!([0.0, 2e-5, 0.0123, 61.04].map(seconds), ["0", "20 us", "12.3 ms", "61.0 s"]);
    }
}
