//! What a run's folder says of the run: whether it trains, how far it is, its config, where it comes from.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};
use toml::Table;
use vp_core::{config, input_file};
use vp_evaluation::sentinel::findings;
use vp_trainers::config::TrainConfig;
use vp_trainers::run::attendant::{BEAT, Heartbeat, Request};
use vp_trainers::run::sentinel::{WATCH, Watch};

use super::metrics::GrowingMetrics;
use super::places::{ShownFolder, changed};
use super::reply::Reply;
use super::{Site, previews};

/// A heartbeat that is older was a killed run's, or its machine is gone.
const SILENCE: Duration = Duration::from_secs(10 * BEAT.as_secs());
/// How much of the end of `metrics.jsonl` is read for a list: a line is shorter.
const END: u64 = 16 << 10;

/// What was read of a run, to be read on.
pub struct Watched {
    pub metrics: GrowingMetrics,
    /// The config, when it was written, and how it reads.
    config: Option<(SystemTime, Option<TrainConfig>)>,
    /// What the sentinel found, and when it looked last.
    findings: Option<(SystemTime, Value)>,
}

impl Watched {
    /// Of a run's folder; nothing was read yet.
    pub fn of(folder: &Path) -> Self {
        Self { metrics: GrowingMetrics::of(folder), config: None, findings: None }
    }

    /// The config of the run, unless it is one of another version.
    pub fn config(&mut self, folder: &Path) -> Option<&TrainConfig> {
        let path = folder.join("config.toml");
        let written = fs::metadata(&path).and_then(|found| found.modified()).ok()?;
        if self.config.as_ref().is_none_or(|(known, _)| *known != written) {
            self.config = Some((written, config::read(&path, &[]).ok()));
        }
        self.config.as_ref()?.1.as_ref()
    }

    /// What the sentinel found.
    pub fn findings(&mut self, folder: &Path) -> Value {
        let path = folder.join(WATCH);
        let Ok(written) = fs::metadata(&path).and_then(|found| found.modified()) else { return json!([]) };
        let known = self.findings.take().filter(|(known, _)| *known == written);
        self.findings.insert(known.unwrap_or_else(|| (written, found(&path)))).1.clone()
    }
}

/// Whether somebody trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Training,
    /// It was killed, or its machine cannot be reached: it has not been heard of for so long.
    Silent(Duration),
    Finished,
    Stopped,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Silent(_) => "silent",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
        }
    }

    /// By the heartbeat's age, and by how far the run is.
    fn of(heartbeat: Option<Duration>, step: u64, of: Option<u64>) -> Self {
        match heartbeat {
            Some(age) if age <= SILENCE => Self::Training,
            Some(age) => Self::Silent(age),
            None if of.is_some_and(|of| step >= of) => Self::Finished,
            None => Self::Stopped,
        }
    }
}

/// What a list says of a run: the end of its metrics is enough for that.
pub fn listed(site: &Site, place: &ShownFolder) -> Value {
    let last = last_line(&place.folder);
    let step = last.get("step").and_then(Value::as_u64).unwrap_or(0);
    let config = table(&place.folder);
    let reward = last.get("reward_mean").and_then(Value::as_f64);
    let mut about = summary(place, &config, step);
    let steps = previews::steps(site, &place.id, &place.folder);
    about["reward"] = json!(reward);
    about["preview"] = json!(previews::first_image(&place.folder, &steps, step));
    about
}

/// What the page of a run says of it, and keeps up to date.
pub fn status(site: &Site, place: &ShownFolder) -> Value {
    let watched = site.watched(&place.id, &place.folder);
    let mut watched = watched.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    watched.metrics.read_on();
    let (step, pace) = (watched.metrics.last_step(), watched.metrics.pace());
    let mut about = summary(place, &table(&place.folder), step);
    let left = about["of"].as_u64().map(|of| of.saturating_sub(step) as f64);
    about["seconds_left"] = json!(left.zip(pace).map(|(left, pace)| (left * pace).round()).filter(|_| about["state"] == "training"));
    about["reward"] = json!(watched.metrics.latest("reward_mean"));
    about["images_per_second"] = json!(watched.metrics.latest("images_per_second"));
    let steps = previews::steps(site, &place.id, &place.folder);
    about["previews"] = json!(previews::upto(&steps, step).len());
    about["findings"] = watched.findings(&place.folder);
    about["report"] = json!(site.places.report(&place.id).is_some());
    about
}

fn summary(place: &ShownFolder, config: &Table, step: u64) -> Value {
    let heartbeat = Heartbeat::read(&place.folder);
    let age = |written: &SystemTime| SystemTime::now().duration_since(*written).unwrap_or_default();
    let of = config.get("run").and_then(|run| run.get("num_train_steps")?.as_integer()).and_then(|of| u64::try_from(of).ok());
    let first_key = |section: &str| config.get(section).and_then(|section| section.as_table()?.keys().next().cloned());
    let state = State::of(heartbeat.as_ref().map(|(_, written)| age(written)), step, of);
    let asked = [(Request::Stop, "stop"), (Request::Save, "save")].into_iter().filter(|(request, _)| request.is_waiting(&place.folder));
    json!({
        "id": place.id,
        "name": place.name,
        "kind": place.kind.name(),
        "folder": place.folder.display().to_string(),
        "algorithm": first_key("algo"),
        "trained_reward": first_key("reward"),
        "state": state.name(),
        "silent_for": match state { State::Silent(age) => Some(age.as_secs()), _ => None },
        "step": step,
        "of": of,
        "memory": heartbeat.and_then(|(heartbeat, _)| heartbeat.memory).filter(|_| state == State::Training),
        "changed": changed(&place.folder),
        "asked": asked.map(|(_, name)| name).collect::<Vec<_>>(),
    })
}

/// The config as it lies there, whatever version wrote it.
fn table(folder: &Path) -> Table {
    input_file::read_regular_to_string(folder.join("config.toml")).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The last whole line of the metrics, and a reward of one before it.
fn last_line(folder: &Path) -> Map<String, Value> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = input_file::open_regular(folder.join("metrics.jsonl"))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(END)))?;
        let mut end = Vec::new();
        file.take(END).read_to_end(&mut end)?;
        Ok(end)
    };
    let end = read().unwrap_or_default();
    let lines = end.rsplit(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Map<String, Value>>(line).ok());
    let mut lines = lines.filter(|line| line.contains_key("step"));
    let Some(mut last) = lines.next() else { return Map::new() };
    // The last line may be that of a preview.
    if let Some(reward) = lines.find_map(|mut line| line.remove("reward_mean")).filter(|_| !last.contains_key("reward_mean")) {
        last.insert("reward_mean".into(), reward);
    }
    last
}

/// What is found in the sentinel's record.
fn found(path: &Path) -> Value {
    let watch = || -> Option<Watch> { serde_json::from_str(&input_file::read_regular_to_string(path).ok()?).ok() };
    let found = watch().and_then(|Watch { config, looks }| findings(&looks, &config).ok());
    let found = found.unwrap_or_default().into_iter();
    found.map(|found| json!({ "step": found.step, "rule": found.rule.name(), "reason": found.reason })).collect()
}

/// What does not change while a run trains: its config, key by key and as text, and where it comes from.
pub fn details(place: &ShownFolder) -> Reply {
    let read = |name: &str| input_file::read_regular_to_string(place.folder.join(name)).ok();
    let provenance = read("provenance.json").and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let mut keys = Map::new();
    flatten("", &toml::Value::Table(table(&place.folder)), &mut keys);
    Reply::json(&json!({ "id": place.id, "name": place.name, "config": read("config.toml"), "keys": keys, "provenance": provenance }))
}

/// `section.key` and its value.
fn flatten(name: &str, value: &toml::Value, keys: &mut Map<String, Value>) {
    match value {
        toml::Value::Table(table) => table.iter().for_each(|(key, value)| {
            let below = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
            flatten(&below, value, keys);
        }),
        value => {
            keys.insert(name.to_string(), value.to_string().into());
        }
    }
}

/// Asks the run to stop or to save.
pub fn ask(place: &ShownFolder, request: Request) -> Reply {
    let heartbeat = Heartbeat::read(&place.folder).map(|(_, written)| SystemTime::now().duration_since(written).unwrap_or_default());
    if heartbeat.is_none_or(|age| age > SILENCE) {
        return Reply::refused(409, "nobody trains this run");
    }
    match request.make(&place.folder) {
        Ok(()) => Reply::json(&json!({ "asked": true })),
        Err(error) => Reply::refused(500, &format!("cannot write to the run's folder: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_nobody_hears_of_is_silent_and_one_without_heartbeat_has_ended() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(State::of(seconds(3), 1, Some(9)), State::Training);
        assert_eq!(State::of(seconds(90), 1, Some(9)), State::Silent(Duration::from_secs(90)));
        assert_eq!(State::of(None, 9, Some(9)), State::Finished);
        assert_eq!((State::of(None, 8, Some(9)), State::of(None, 8, None)), (State::Stopped, State::Stopped));
    }

    #[test]
    fn the_end_of_the_metrics_tells_step_and_reward() {
        let dir = tempfile::tempdir().unwrap();
        assert!(last_line(dir.path()).is_empty());
        let line = "{\"step\":7,\"reward_mean\":1.5,\"loss\":0.25}\n".repeat(1000);
        fs::write(dir.path().join("metrics.jsonl"), line + "{\"step\":7,\"preview/judge\":2}\n{\"step\":8,\"re").unwrap();
        let last = last_line(dir.path());
        assert_eq!((last["step"].as_u64(), last["reward_mean"].as_f64()), (Some(7), Some(1.5)));
    }

    #[test]
    fn a_config_is_a_list_of_keys() {
        let table: Table = "seed = 1\n[a.b]\nc = [1, 2]\nd = 'x'\n".parse().unwrap();
        let mut keys = Map::new();
        flatten("", &toml::Value::Table(table), &mut keys);
        assert_eq!(Value::Object(keys), json!({ "seed": "1", "a.b.c": "[1, 2]", "a.b.d": "\"x\"" }));
    }
}
