//! What is said of a plan: on one screen, or as JSON.

use serde_json::{Value, json};
use vp_models::footprint::Engine;
use vp_trainers::plan::{ALLOCATOR, Advice, KEPT, MemoryPlan, PROCESS};

use super::{BATCHES, Planned};
use crate::memory::readable;

/// Settings that are advised at most.
const ADVISED: usize = 4;
/// Parts that are smaller are not worth a line.
const SMALL: u64 = 1 << 19;
/// Columns of a line.
const WIDTH: usize = 100;

fn name(engine: Engine) -> &'static str {
    match engine {
        Engine::Cpu => "cpu",
        Engine::Gpu => "gpu",
    }
}

/// The plan in at most 24 lines.
pub fn text(planned: &Planned) -> String {
    let Planned { plan, details, limit, .. } = planned;
    let mut lines = vec![headline(planned)];
    lines.extend(assumed(planned));
    for part in plan.parts.iter().filter(|part| part.bytes >= SMALL) {
        lines.push(format!("  {:<16}{:>10}  {}", part.name, readable(part.bytes), part.note).trim_end().to_string());
    }
    lines.push(format!("  {:<16}{:>10}  for the whole run", "stays", readable(plan.fixed())));
    let phases = plan.phases.iter().filter(|(_, bytes)| *bytes > 0);
    let phases = phases.map(|(phase, bytes)| format!("{} {}", phase.name(), readable(plan.of_phase(*bytes))));
    lines.push(format!("comes and goes: {}", phases.collect::<Vec<_>>().join(", ")));
    let [whole, blocks] = details.tape.map(readable);
    let [image, tiles] = details.decoding.map(readable);
    let scores = if details.scores > 0 { format!("; attention scores {}", readable(details.scores)) } else { String::new() };
    lines.push(format!("tape {whole}, recomputed {blocks}; decoding and scoring an image {image}, in tiles {tiles}{scores}"));
    let (phase, peak) = plan.peak();
    let verdict = if peak <= limit.bytes { "fits into" } else { "does not fit into" };
    let whose = if limit.asked { "--memory" } else { "this machine's" };
    lines.push(format!(
        "peak {} in {}: {verdict} {whose} {}; on the {}: {}",
        readable(peak),
        phase.name(),
        readable(limit.bytes),
        name(planned.elsewhere.0),
        readable(planned.elsewhere.1)
    ));
    let (key, peaks) = &planned.by_batch;
    let each = BATCHES.iter().zip(peaks).map(|(batch, peak)| format!("{batch}: {}", readable(*peak)));
    lines.push(format!("peak by {}: {}", short(key), each.collect::<Vec<_>>().join(", ")));
    lines.push(format!("largest batch that fits: {}", largest(planned)));
    lines.extend(advised(planned));
    lines.into_iter().map(|line| cut(&line) + "\n").collect()
}

fn headline(planned: &Planned) -> String {
    let Planned { config, networks, plan, .. } = planned;
    let [height, width] = config.model.size.unwrap_or(networks.model.default_size);
    let recomputed = match config.model.gradient_checkpointing {
        vp_models::GradientCheckpointing::None => "everything kept",
        vp_models::GradientCheckpointing::Blocks => "blocks recomputed",
    };
    let device = name(plan.engine);
    format!("{} of {} at {width}x{height} on the {device}, {recomputed}", config.algo.name(), config.model.path.display())
}

/// The published networks that were taken for what is not here.
fn assumed(planned: &Planned) -> Option<String> {
    let networks = &planned.networks;
    let rewards = networks.reward.iter().chain(&networks.watched).filter_map(|network| network.assumed);
    let mut names: Vec<&str> = networks.assumed.map(|published| published.name()).into_iter().chain(rewards).collect();
    names.dedup();
    (!names.is_empty()).then(|| format!("not on this machine: the published sizes of {} are taken", names.join(" and ")))
}

fn largest(planned: &Planned) -> String {
    let one = |largest: &vp_trainers::plan::Largest| match largest.value {
        Some(value) => format!("{} = {value}", short(&largest.key)),
        None => format!("{}: none", short(&largest.key)),
    };
    planned.largest.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn advised(planned: &Planned) -> Vec<String> {
    if planned.advice.is_empty() {
        return Vec::new();
    }
    let mut lines = vec!["what would take less, each by itself (* : what is learnt stays the same):".to_string()];
    lines.extend(planned.advice.iter().take(ADVISED).map(|advice| {
        let mark = if advice.alike { '*' } else { ' ' };
        let way = if advice.setting.contains('=') { format!("--set {}", advice.setting) } else { advice.setting.clone() };
        format!(" {mark}{way:<50} {:>10} less", readable(advice.saves))
    }));
    lines
}

/// A key without its section.
fn short(key: &str) -> &str {
    key.splitn(3, '.').nth(2).unwrap_or(key)
}

/// At most so many columns, the end of a longer line replaced by an ellipsis.
fn cut(line: &str) -> String {
    if line.chars().count() <= WIDTH {
        return line.to_string();
    }
    line.chars().take(WIDTH - 1).chain(['…']).collect()
}

/// What to say to a limit that is below what stays for the whole run.
pub fn below_what_stays(plan: &MemoryPlan, limit: u64, advice: &[Advice]) -> String {
    let mut parts: Vec<_> = plan.parts.iter().filter(|part| part.bytes > 0).collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
    let parts: Vec<String> = parts.iter().take(3).map(|part| format!("{} {}", part.name, readable(part.bytes))).collect();
    // A batch or a recomputation changes nothing of what stays.
    let settings = ["dtype", "moments", "lora", "LoRA"];
    let turn: Vec<&str> =
        advice.iter().map(|advice| advice.setting.as_str()).filter(|setting| settings.iter().any(|part| setting.contains(part))).collect();
    let turn = if turn.is_empty() { "a smaller model or reward".into() } else { turn.join(", ") };
    format!(
        "--memory {} is below what stays for the whole run, {} ({}); no batch is small enough. What takes less: {turn}",
        readable(limit),
        readable(plan.fixed()),
        parts.join(", ")
    )
}

/// The plan as one JSON object; sizes are in bytes.
pub fn json(planned: &Planned) -> Value {
    let Planned { config, networks, plan, details, limit, .. } = planned;
    let (phase, peak) = plan.peak();
    let parts: Vec<Value> = plan.parts.iter().map(|part| json!({ "name": part.name, "note": part.note, "bytes": part.bytes })).collect();
    let phases: Vec<Value> =
        plan.phases.iter().map(|(phase, bytes)| json!({ "name": phase.name(), "bytes": plan.of_phase(*bytes), "traced": bytes })).collect();
    let rewards = networks.reward.iter().chain(&networks.watched).filter_map(|network| network.assumed);
    let assumed: Vec<&str> = networks.assumed.map(|published| published.name()).into_iter().chain(rewards).collect();
    let largest: serde_json::Map<String, Value> =
        planned.largest.iter().map(|largest| (largest.key.clone(), json!(largest.value))).collect();
    let by_batch: serde_json::Map<String, Value> =
        BATCHES.iter().zip(&planned.by_batch.1).map(|(batch, peak)| (batch.to_string(), json!(peak))).collect();
    let advice: Vec<Value> = planned
        .advice
        .iter()
        .map(|advice| json!({ "setting": advice.setting, "saves": advice.saves, "learns_the_same": advice.alike }))
        .collect();
    json!({
        "algo": config.algo.name(),
        "model": config.model.path,
        "device": name(plan.engine),
        "size": config.model.size.unwrap_or(networks.model.default_size),
        "assumed": assumed,
        "trained_values": plan.trained,
        "parts": parts,
        "fixed": plan.fixed(),
        "phases": phases,
        "peak": peak,
        "peak_phase": phase.name(),
        "elsewhere": { "device": name(planned.elsewhere.0), "peak": planned.elsewhere.1 },
        "tape": { "everything": details.tape[0], "blocks": details.tape[1] },
        "decoding": { "whole": details.decoding[0], "tiles": details.decoding[1] },
        "attention_scores": details.scores,
        "operations": { "network": details.operations[0], "decoding": details.operations[1], "reward": details.operations[2] },
        "limit": limit.bytes,
        "fits": peak <= limit.bytes,
        "batch_key": planned.by_batch.0,
        "peak_by_batch": by_batch,
        "largest": largest,
        "advice": advice,
        "constants": { "process": PROCESS, "allocator": ALLOCATOR, "kept": KEPT },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_without_its_section_and_a_line_is_cut() {
        assert_eq!(short("algo.refl.batch_size"), "batch_size");
        assert_eq!(short("algo.nft.train.batch_size"), "train.batch_size");
        assert_eq!(cut(&"x".repeat(101)).chars().count(), WIDTH);
        assert_eq!(cut("short"), "short");
    }
}
