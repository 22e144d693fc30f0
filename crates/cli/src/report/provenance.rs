//! Command, versions, hardware and times of a run. They are written into its folder when it begins, so that a report can be written whenever and
//! however the run ends.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;
use vp_core::{atomic, input_file};
use vp_evaluation::report::{Fact, Provenance};

use super::curves::Metrics;

const FILE: &str = "provenance.json";
/// The names of two facts about a run's memory.
const PEAK: &str = "peak memory";
const PLANNED: &str = "planned memory";

/// The running command, quoted for a shell.
pub fn command() -> String {
    let quoted = |text: String| {
        if text.chars().all(|c| c.is_alphanumeric() || "-_./:=,".contains(c)) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
    };
    std::env::args().map(quoted).collect::<Vec<_>>().join(" ")
}

/// This program and this machine.
pub fn of_program(device: &str) -> Provenance {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Provenance {
        command: command(),
        versions: vec![Fact::new("visionprefer", env!("CARGO_PKG_VERSION"))],
        hardware: vec![Fact::new("device", device), Fact::new("processors", cores.to_string())],
        ..Provenance::default()
    }
}

/// A time of day.
pub fn date(time: SystemTime) -> String {
    let zoned = jiff::Timestamp::try_from(time).map(|time| time.to_zoned(jiff::tz::TimeZone::system()));
    zoned.map_or_else(|_| "unknown".into(), |time| time.strftime("%Y-%m-%d %H:%M").to_string())
}

/// Notes that a run begins, or that it is resumed after some updates. Of a resumed run all commands are kept, one per line.
pub fn note(run: &Path, device: &str, base: &BTreeMap<String, String>, resumed_at: Option<u64>) -> anyhow::Result<()> {
    let path = run.join(FILE);
    let mut now = of_program(device);
    now.hashes = base.iter().map(|(name, sum)| Fact::new(name, sum)).collect();
    let before = resumed_at
        .and_then(|step| Some((step, serde_json::from_str::<Provenance>(&input_file::read_regular_to_string(&path).ok()?).ok()?)));
    let event = match &before {
        Some((step, before)) => {
            now.command = format!("{}\n{}", before.command, now.command);
            now.time = before.time.clone();
            format!("resumed after update {step}")
        }
        None => "began".into(),
    };
    now.time.push(Fact::new(event, date(SystemTime::now())));
    let text = serde_json::to_string(&now).context("write where the run comes from")?;
    atomic::write(&path, text.as_bytes()).with_context(|| format!("write {}", path.display()))
}

/// Adds to the notes the most memory that the process of a run had resident, and what the plan said.
pub fn note_memory(run: &Path, peak: u64, planned: Option<u64>) -> anyhow::Result<()> {
    let path = run.join(FILE);
    let noted = input_file::read_regular_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut provenance: Provenance = serde_json::from_str(&noted).with_context(|| format!("read {}", path.display()))?;
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    provenance.hardware.retain(|fact| fact.name != PEAK && fact.name != PLANNED);
    provenance.hardware.push(Fact::new(PEAK, mib(peak)));
    provenance.hardware.extend(planned.map(|planned| Fact::new(PLANNED, mib(planned))));
    let text = serde_json::to_string(&provenance).context("write where the run comes from")?;
    atomic::write(&path, text.as_bytes()).with_context(|| format!("write {}", path.display()))
}

/// What was noted, and when the run ended. Runs of versions that wrote no notes have the end alone.
pub fn of_run(run: &Path, metrics: &Metrics) -> Provenance {
    let noted = input_file::read_regular_to_string(run.join(FILE)).ok().and_then(|text| serde_json::from_str(&text).ok());
    let mut provenance: Provenance = noted.unwrap_or_default();
    if let Ok(last) = fs::metadata(run.join("metrics.jsonl")).and_then(|metadata| metadata.modified()) {
        provenance.time.push(Fact::new("last logged", date(last)));
    }
    let seconds: f64 = metrics.points("seconds").iter().map(|(_, seconds)| seconds).filter(|seconds| seconds.is_finite()).sum();
    provenance.time.push(Fact::new("updates took", format!("{seconds:.0} s")));
    provenance
}
