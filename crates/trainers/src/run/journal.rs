//! What a run tells: a line of `metrics.jsonl` for programs, lines or a bar on the terminal for people, grids for the eye, and
//! the same numbers and grids for TensorBoard.

mod progress;
mod tensorboard;

use std::fmt::Arguments;
use std::path::Path;
use std::time::Instant;

use vp_core::atomic;
use vp_core::run_dir::RunDir;
use vp_data::{RgbImage, grid, write_png};

pub use progress::{Options, Progress, clock, say, warn};
use tensorboard::Events;

use crate::Error;
use crate::run::preview::Preview;
use crate::run::sentinel::{WATCH, Watch};

/// The tag of preview grids in TensorBoard: the one that diffusers' and other trainers use.
const IMAGES: &str = "validation";

/// What is known of the images of a preview, a line each, beside them.
pub const RESULTS: &str = "results.jsonl";

/// The file of an image of a preview.
pub fn image_name(index: usize, seed: u64) -> String {
    format!("{index:03}-{seed}.png")
}

/// The run's voice.
#[derive(Debug)]
pub struct Journal {
    dir: RunDir,
    progress: Progress,
    /// A view of the run: lost, with a warning, when it cannot be written.
    events: Option<Events>,
    /// The update this process started after.
    from: u64,
    began: Instant,
    updates: u64,
    images: f64,
    seconds: f64,
}

impl Journal {
    /// Speaks into a folder just created, and to the terminal.
    pub fn new(dir: RunDir, options: Options) -> Self {
        Self::begin_with(dir, options, None)
    }

    /// Takes up the journal of the run in `root` after update `upto_step`: what `metrics.jsonl` says of later ones is dropped, and so
    /// is a line that was cut.
    ///
    /// # Errors
    /// When there is no run in the folder, or it cannot be written.
    pub fn resume(root: &Path, upto_step: u64, options: Options) -> Result<Self, Error> {
        let mut dir = RunDir::open(root)?;
        dir.rewind(Some(upto_step as usize))?;
        Ok(Self::begin_with(dir, options, Some(upto_step)))
    }

    /// Begins the journal of the run in `root` again: it was killed before its first checkpoint.
    ///
    /// # Errors
    /// When there is no run in the folder, or it cannot be written.
    pub fn restart(root: &Path, options: Options) -> Result<Self, Error> {
        let mut dir = RunDir::open(root)?;
        dir.rewind(None)?;
        // Events of steps that will be drawn again; no more than a view of the run.
        let _ = std::fs::remove_dir_all(root.join("tensorboard"));
        Ok(Self::begin_with(dir, options, None))
    }

    fn begin_with(dir: RunDir, options: Options, resumed_at: Option<u64>) -> Self {
        let events = Events::begin(&dir.root().join("tensorboard"), resumed_at);
        let progress = Progress::new(options);
        let from = resumed_at.unwrap_or(0);
        let mut journal = Self { dir, progress, events: None, from, began: Instant::now(), updates: 0, images: 0.0, seconds: 0.0 };
        match events {
            Ok(events) => journal.events = Some(events),
            Err(error) => journal.lose_events(&error),
        }
        journal
    }

    /// The run's folder.
    pub fn dir(&self) -> &Path {
        self.dir.root()
    }

    /// Shows the bar of `of` updates before the first one is done.
    pub fn begin(&mut self, of: u64) {
        self.progress.begin("update", self.from, of);
    }

    /// One update.
    ///
    /// # Errors
    /// When the run's folder cannot be written.
    pub fn update(&mut self, step: u64, of: u64, metrics: &[(&str, f64)]) -> Result<(), Error> {
        self.dir.log(step as usize, metrics)?;
        self.view(|events| events.scalars(step, metrics));
        self.count(metrics);
        if !self.progress.live() {
            let shown = metrics.iter().filter(|(name, _)| *name != "seconds").map(|(name, value)| format!("{name} {}", short(*value)));
            self.say(format_args!("step {step}/{of}  {}", shown.collect::<Vec<_>>().join("  ")));
            return Ok(());
        }
        if !self.progress.under_way() {
            self.progress.begin("update", step.saturating_sub(1), of);
        }
        self.progress.advance(step, &note(metrics));
        if step >= of {
            self.progress.finish();
        }
        Ok(())
    }

    /// A preview: its grid and its scores.
    ///
    /// # Errors
    /// When the run's folder cannot be written.
    pub fn preview(&mut self, step: u64, preview: &Preview) -> Result<(), Error> {
        let names: Vec<(String, f64)> = preview.values().map(|(name, scores)| (format!("preview/{name}"), mean(scores))).collect();
        let metrics: Vec<(&str, f64)> = names.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        self.dir.log(step as usize, &metrics)?;
        let shown: Vec<String> = names.iter().map(|(name, value)| format!("{name} {}", short(*value))).collect();
        if preview.images.is_empty() {
            self.view(|events| events.scalars(step, &metrics));
            self.say(format_args!("step {step}  {}", shown.join("  ")));
            return Ok(());
        }
        let path = self.dir.sample_path(step as usize);
        let drawn: RgbImage = grid(&preview.images, preview.columns);
        write_png::<&str, &str>(&path, &drawn, &[])?;
        self.results(step, preview)?;
        self.view(|events| events.scalars(step, &metrics).and_then(|()| events.image(IMAGES, step, &drawn)));
        self.say(format_args!("step {step}  {}  -> {}", shown.join("  "), path.display()));
        Ok(())
    }

    /// The images of a preview, each in a file, and what is known of them: what a report compares.
    fn results(&self, step: u64, preview: &Preview) -> Result<(), Error> {
        let results = preview.results(step);
        if results.is_empty() {
            return Ok(());
        }
        let folder = self.dir.preview_dir(step as usize);
        std::fs::create_dir_all(&folder).map_err(|source| Error::Io { path: folder.display().to_string(), source })?;
        for (image, result) in preview.images.iter().zip(&results) {
            write_png::<&str, &str>(folder.join(image_name(result.index, result.seed)), image, &[])?;
        }
        let lines: String = results.iter().map(|result| serde_json::to_string(result).expect("a result is JSON") + "\n").collect();
        self.write(&folder.join(RESULTS), &lines)
    }

    /// All that the sentinel has looked at.
    ///
    /// # Errors
    /// When the run's folder cannot be written.
    pub fn watch(&self, watch: &Watch) -> Result<(), Error> {
        self.write(&self.dir().join(WATCH), &serde_json::to_string(watch).expect("looks are JSON"))
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), Error> {
        atomic::write(path, text.as_bytes()).map_err(|source| Error::Io { path: path.display().to_string(), source })
    }

    /// One line, unless quiet.
    pub fn say(&self, line: Arguments<'_>) {
        self.progress.say(line);
    }

    /// A warning, quiet or not.
    pub fn warn(&self, line: Arguments<'_>) {
        self.progress.warn(line);
    }

    /// What the run was for, quiet or not.
    pub fn conclude(&self, line: Arguments<'_>) {
        self.progress.conclude(line);
    }

    /// A table of names, each before and after, and what it took; unless quiet.
    pub fn summary(&self, rows: &[(String, f64, f64)]) {
        self.progress.finish();
        if !rows.is_empty() {
            self.say(format_args!("{}", table(rows)));
        }
        let wall = clock(self.began.elapsed());
        let images = match (self.images, self.seconds) {
            (images, seconds) if images > 0.0 && seconds > 0.0 => {
                format!(", {images:.0} images at {} images/s of training", short(images / seconds))
            }
            _ => String::new(),
        };
        self.say(format_args!("{} updates{images}; {wall} in all", self.updates));
    }

    /// An update says how many images it drew by their rate and its seconds.
    fn count(&mut self, metrics: &[(&str, f64)]) {
        let value = |wanted| metrics.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
        self.updates += 1;
        if let (Some(rate), Some(seconds)) = (value("images_per_second"), value("seconds"))
            && (rate * seconds).is_finite()
        {
            self.images += (rate * seconds).round();
            self.seconds += seconds;
        }
    }

    fn view(&mut self, write: impl FnOnce(&mut Events) -> std::io::Result<()>) {
        if let Some(Err(error)) = self.events.as_mut().map(write) {
            self.lose_events(&error);
        }
    }

    fn lose_events(&mut self, error: &std::io::Error) {
        self.events = None;
        let folder = self.dir.root().join("tensorboard");
        self.warn(format_args!("no more TensorBoard events: {}: {error}; metrics.jsonl has the same numbers", folder.display()));
    }
}

/// What the bar says of the last update.
fn note(metrics: &[(&str, f64)]) -> String {
    let shown = metrics.iter().filter_map(|(name, value)| match *name {
        "loss" => Some(format!("loss {}", short(*value))),
        "reward_mean" => Some(format!("reward {}", short(*value))),
        "images_per_second" => Some(format!("{} images/s", short(*value))),
        _ => None,
    });
    shown.collect::<Vec<_>>().join("  ")
}

/// `name  before  after  change`, aligned.
fn table(rows: &[(String, f64, f64)]) -> String {
    let head = ["".to_string(), "before".into(), "after".into(), "change".into()];
    let row = |(name, before, after): &(String, f64, f64)| {
        let change = after - before;
        let sign = if change >= 0.0 { "+" } else { "" };
        [name.clone(), short(*before), short(*after), format!("{sign}{}", short(change))]
    };
    let cells: Vec<[String; 4]> = std::iter::once(head).chain(rows.iter().map(row)).collect();
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (name, before, after, change) = (width(0), width(1), width(2), width(3));
    let lines = cells.iter().map(|[a, b, c, d]| format!("{a:name$}  {b:>before$}  {c:>after$}  {d:>change$}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Four significant digits, in whichever notation is shorter to read.
fn short(value: f64) -> String {
    if value == 0.0 || (1e-3..1e4).contains(&value.abs()) {
        let decimals = (3 - value.abs().max(1e-3).log10().floor() as i32).clamp(0, 6) as usize;
        format!("{value:.decimals$}")
    } else {
        format!("{value:.3e}")
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("vp-journal-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    const QUIET: Options = Options { quiet: true, live: false, color: false };

    #[test]
    fn numbers_show_four_digits() {
        let shown: Vec<String> = [0.5, 12.345, 1234.5, 3.2e-5, -0.04567, 98765.4].into_iter().map(short).collect();
        assert_eq!(shown, ["0.5000", "12.35", "1234", "3.200e-5", "-0.04567", "9.877e4"]);
    }

    #[test]
    fn the_bar_tells_loss_reward_and_speed() {
        let metrics = [("loss", 0.25), ("reward_mean", -1.5), ("lr", 1e-5), ("images_per_second", 8.125)];
        assert_eq!(note(&metrics), "loss 0.2500  reward -1.500  8.125 images/s");
    }

    #[test]
    fn the_table_is_aligned() {
        let rows = [("vp_score".to_string(), 1.03, 1.2), ("saturation".to_string(), 0.5, -12.25)];
        let expected = "            before   after   change\n\
                        vp_score     1.030   1.200  +0.1700\n\
                        saturation  0.5000  -12.25   -12.75";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn images_are_counted() {
        let root = scratch("count");
        let mut journal = Journal::new(RunDir::create(&root, "").unwrap(), QUIET);
        journal.update(1, 2, &[("images_per_second", 3.0), ("seconds", 4.0 / 3.0)]).unwrap();
        journal.update(2, 2, &[("images_per_second", f64::INFINITY), ("seconds", 0.0)]).unwrap();
        assert_eq!((journal.updates, journal.images, journal.seconds), (2, 4.0, 4.0 / 3.0));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_resumed_journal_forgets_later_updates() {
        let root = scratch("resume");
        let mut journal = Journal::new(RunDir::create(&root, "").unwrap(), QUIET);
        for step in 1..=4 {
            journal.update(step, 9, &[("loss", step as f64)]).unwrap();
        }
        drop(journal);
        let mut journal = Journal::resume(&root, 2, QUIET).unwrap();
        journal.update(3, 9, &[("loss", 30.0)]).unwrap();
        let metrics = fs::read_to_string(root.join("metrics.jsonl")).unwrap();
        assert_eq!(metrics, "{\"step\":1,\"loss\":1.0}\n{\"step\":2,\"loss\":2.0}\n{\"step\":3,\"loss\":30.0}\n");
        assert_eq!(fs::read_dir(root.join("tensorboard")).unwrap().count(), 2);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_run_outlives_its_events() {
        let root = scratch("events");
        let dir = RunDir::create(&root, "").unwrap();
        fs::write(root.join("tensorboard"), "in the way").unwrap();
        let mut journal = Journal::new(dir, QUIET);
        journal.update(1, 1, &[("loss", 0.5)]).unwrap();
        assert_eq!(fs::read_to_string(root.join("metrics.jsonl")).unwrap(), "{\"step\":1,\"loss\":0.5}\n");
        fs::remove_dir_all(root).unwrap();
    }
}
