//! `metrics.jsonl` of a run, read on from where it was read last. A run writes it line by line; one that is resumed replaces it.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Map, Value};
use vp_core::input_file;

use super::series::Series;

/// How much is read at a time.
const PIECE: usize = 1 << 20;
/// A longer line is none.
const LONGEST: usize = 1 << 20;
/// Lines that are kept as they are, for whoever listens.
const RECENT: usize = 256;
/// Metrics by different names; more are left out.
const NAMES: usize = 512;
/// Bytes by which a file is recognised when it has grown.
const MARK: usize = 128;
/// Updates by which the time left is told.
const PACE: usize = 50;

/// The metrics of a run, as far as they were read.
pub struct GrowingMetrics {
    path: PathBuf,
    /// Where the next line begins, and what was in the file before.
    offset: u64,
    mark: Vec<u8>,
    modified: Option<SystemTime>,
    names: Vec<String>,
    series: HashMap<String, Series>,
    last_step: u64,
    seconds: VecDeque<f64>,
    /// Lines with their numbers, the newest last.
    recent: VecDeque<(u64, String)>,
    /// The number of the next line; it never goes back.
    next: u64,
    /// How often the file was found replaced.
    replaced: u64,
}

impl GrowingMetrics {
    /// Of a run's folder; nothing was read yet.
    pub fn of(run: &Path) -> Self {
        Self {
            path: run.join("metrics.jsonl"),
            offset: 0,
            mark: Vec::new(),
            modified: None,
            names: Vec::new(),
            series: HashMap::new(),
            last_step: 0,
            seconds: VecDeque::new(),
            recent: VecDeque::new(),
            next: 0,
            replaced: 0,
        }
    }

    /// Reads what is new. A file that cannot be read has nothing new; it may be replaced this moment.
    pub fn read_on(&mut self) {
        let _ = self.try_read_on();
    }

    fn try_read_on(&mut self) -> std::io::Result<()> {
        let mut file = input_file::open_regular(&self.path)?;
        let found = file.metadata()?;
        let modified = found.modified().ok();
        if found.len() == self.offset && modified == self.modified {
            return Ok(());
        }
        if found.len() < self.offset || !self.is_at_mark(&mut file)? {
            *self = Self { next: self.next, replaced: self.replaced + 1, ..Self::of(self.path.parent().unwrap_or(Path::new(""))) };
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let (mut unread, mut piece) = (Vec::new(), vec![0; PIECE]);
        loop {
            let read = file.read(&mut piece)?;
            unread.extend_from_slice(&piece[..read]);
            let whole = unread.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            unread[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).for_each(|line| self.add(line));
            if whole > 0 {
                self.offset += whole as u64;
                self.mark = unread[..whole][whole.saturating_sub(MARK)..].to_vec();
                unread.drain(..whole);
            }
            if read == 0 || unread.len() > LONGEST {
                break;
            }
        }
        // With half a line at its end the file is looked at again.
        self.modified = modified.filter(|_| unread.is_empty());
        Ok(())
    }

    /// Whether the file still has, before the offset, what was read there.
    fn is_at_mark(&self, file: &mut std::fs::File) -> std::io::Result<bool> {
        let mut found = vec![0; self.mark.len()];
        file.seek(SeekFrom::Start(self.offset - self.mark.len() as u64))?;
        file.read_exact(&mut found)?;
        Ok(found == self.mark)
    }

    fn add(&mut self, line: &[u8]) {
        let Ok(text) = std::str::from_utf8(line) else { return };
        let Ok(values) = serde_json::from_str::<Map<String, Value>>(text) else { return };
        let Some(step) = values.get("step").and_then(Value::as_u64) else { return };
        self.last_step = self.last_step.max(step);
        let number = |name: &str| values.get(name).and_then(value);
        let error = error_of_reward(number("reward_std"), number("images_per_second"), number("seconds"));
        for (name, found) in values.iter().filter(|(name, _)| *name != "step") {
            let Some(found) = value(found) else { continue };
            if !self.series.contains_key(name) {
                if self.names.len() >= NAMES {
                    continue;
                }
                self.names.push(name.clone());
            }
            let error = if name == "reward_mean" { error } else { f64::NAN };
            self.series.entry(name.clone()).or_default().push(step as f64, found, error);
        }
        if let Some(seconds) = number("seconds") {
            self.seconds.push_back(seconds);
            keep_last(&mut self.seconds, PACE);
        }
        self.recent.push_back((self.next, text.to_owned()));
        keep_last(&mut self.recent, RECENT);
        self.next += 1;
    }

    /// The names, in the order in which they occur.
    pub fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    /// The values of a metric.
    pub fn series(&self, name: &str) -> Option<&Series> {
        self.series.get(name)
    }

    /// The value of a metric that came last.
    pub fn latest(&self, name: &str) -> Option<f64> {
        self.series(name)?.latest().filter(|value| value.is_finite())
    }

    /// How many updates there were.
    pub fn last_step(&self) -> u64 {
        self.last_step
    }

    /// The seconds of one of the last updates, on average.
    pub fn pace(&self) -> Option<f64> {
        let finite: Vec<f64> = self.seconds.iter().copied().filter(|seconds| seconds.is_finite()).collect();
        (!finite.is_empty()).then(|| finite.iter().sum::<f64>() / finite.len() as f64)
    }

    /// The number of the next line, and how often the file was replaced.
    pub fn position(&self) -> (u64, u64) {
        (self.next, self.replaced)
    }

    /// The lines from a number on; `None` if some of them are not kept any more.
    pub fn lines_from(&self, number: u64) -> Option<Vec<&str>> {
        let first = self.recent.front().map_or(self.next, |(number, _)| *number);
        (number >= first).then(|| self.recent.iter().filter(|(known, _)| *known >= number).map(|(_, line)| line.as_str()).collect())
    }
}

/// A number; the file holds values that are not finite as text.
fn value(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

/// The standard error of an update's mean reward, if it drew two images or more: how many is their rate times the seconds.
fn error_of_reward(std: Option<f64>, rate: Option<f64>, seconds: Option<f64>) -> f64 {
    match (std, rate, seconds) {
        (Some(std), Some(rate), Some(seconds)) if (rate * seconds).round() >= 2.0 => std / (rate * seconds).round().sqrt(),
        _ => f64::NAN,
    }
}

/// Forgets what came first.
fn keep_last<T>(values: &mut VecDeque<T>, most: usize) {
    while values.len() > most {
        values.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_read_on_line_by_line_and_anew_when_it_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut metrics = GrowingMetrics::of(dir.path());
        metrics.read_on();
        assert_eq!((metrics.position(), metrics.names().len()), ((0, 0), 0));
        fs::write(&path, "{\"step\":1,\"loss\":0.5,\"seconds\":2}\n{\"step\":2,\"lo").unwrap();
        metrics.read_on();
        assert_eq!((metrics.position(), metrics.last_step(), metrics.latest("loss"), metrics.pace()), ((1, 0), 1, Some(0.5), Some(2.0)));
        fs::write(&path, "{\"step\":1,\"loss\":0.5,\"seconds\":2}\n{\"step\":2,\"loss\":\"NaN\",\"seconds\":4}\nnonsense\n").unwrap();
        metrics.read_on();
        assert_eq!((metrics.position(), metrics.latest("loss"), metrics.pace()), ((2, 0), None, Some(3.0)));
        assert_eq!(metrics.lines_from(1).unwrap(), ["{\"step\":2,\"loss\":\"NaN\",\"seconds\":4}"]);
        assert_eq!(metrics.lines_from(2).unwrap().len(), 0);
        // Of the same length, and longer.
        for text in ["{\"step\":1,\"loss\":0.7,\"seconds\":2}\n".to_string(), "{\"step\":1,\"loss\":0.9,\"seconds\":2}\n".repeat(40)] {
            let (_, replaced) = metrics.position();
            fs::write(&path, text).unwrap();
            metrics.read_on();
            assert_eq!((metrics.position().1, metrics.last_step()), (replaced + 1, 1));
        }
        assert_eq!(metrics.series("loss").unwrap().curve(100).1.len(), 40);
    }

    #[test]
    fn lines_that_are_long_gone_are_missed() {
        let dir = tempfile::tempdir().unwrap();
        let lines: String = (0..3 * RECENT).map(|step| format!("{{\"step\":{step},\"loss\":1}}\n")).collect();
        fs::write(dir.path().join("metrics.jsonl"), lines).unwrap();
        let mut metrics = GrowingMetrics::of(dir.path());
        metrics.read_on();
        assert_eq!(metrics.lines_from(0), None);
        assert_eq!(metrics.lines_from(2 * RECENT as u64).unwrap().len(), RECENT);
    }

    #[test]
    fn rewards_of_several_images_have_an_error() {
        assert_eq!(error_of_reward(Some(1.0), Some(2.0), Some(8.0)), 0.25);
        assert!(error_of_reward(Some(1.0), Some(0.5), Some(2.0)).is_nan());
        assert!(error_of_reward(None, Some(2.0), Some(8.0)).is_nan());
    }
}
