//! The journal of a run: `metrics.jsonl` for programs, lines or a progress bar for people through a [`Voice`], grids of images, and the
//! same numbers and grids for TensorBoard.

mod tensorboard;
mod voice;

use std::fmt::Arguments;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vp_core::atomic;
use vp_core::run_dir::RunDir;
use vp_data::{RgbImage, grid, write_png};

use tensorboard::Events;
pub use voice::{Silent, Voice};

use crate::Error;
use crate::run::preview::Preview;
use crate::run::sentinel::{WATCH, Watch};

/// The tag of preview grids in TensorBoard; diffusers' and other trainers use the same.
const IMAGES: &str = "validation";

/// The file beside a preview's images with their scores and pixel statistics, one line per image.
pub const RESULTS: &str = "results.jsonl";

/// The file name of an image of a preview; `index` is the number of its prompt.
pub fn image_name(index: usize, seed: u64) -> String {
    format!("{index:03}-{seed}.png")
}

/// Writes down how a run goes, and tells people.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    /// `None` on a rank that writes nothing.
    dir: Option<RunDir>,
    voice: Box<dyn Voice>,
    /// TensorBoard's events; given up, with a warning, when they cannot be written.
    events: Option<Events>,
    /// The update after which this process started.
    from: u64,
    began: Instant,
    updates: u64,
    images: f64,
    seconds: f64,
}

impl Journal {
    /// A journal in the folder of a new run, which tells people through `voice`.
    pub fn new(dir: RunDir, voice: impl Voice + 'static) -> Self {
        Self::begin_with(dir, Box::new(voice), None)
    }

    /// Continues the journal of the run in `root` after update `upto_step`. Lines of `metrics.jsonl` about later updates are dropped, and
    /// so is a line that was cut off.
    ///
    /// # Errors
    /// When there is no run in the folder, or the folder cannot be written.
    pub fn resume(root: &Path, upto_step: u64, voice: impl Voice + 'static) -> Result<Self, Error> {
        let mut dir = RunDir::open(root)?;
        dir.rewind(Some(upto_step as usize))?;
        Ok(Self::begin_with(dir, Box::new(voice), Some(upto_step)))
    }

    /// Begins the journal of the run in `root` again, for a run that was killed before its first checkpoint.
    ///
    /// # Errors
    /// When there is no run in the folder, or the folder cannot be written.
    pub fn restart(root: &Path, voice: impl Voice + 'static) -> Result<Self, Error> {
        let mut dir = RunDir::open(root)?;
        dir.rewind(None)?;
        // The events are of steps that will be repeated, and only one view of the run's numbers.
        let _ = std::fs::remove_dir_all(root.join("tensorboard"));
        Ok(Self::begin_with(dir, Box::new(voice), None))
    }

    /// The journal of a rank that writes nothing; another one writes that of the run in `root`.
    pub fn of_another_rank(root: &Path, voice: impl Voice + 'static) -> Self {
        Self { folder: root.to_path_buf(), dir: None, voice: Box::new(voice), ..Self::empty() }
    }

    fn empty() -> Self {
        let (folder, voice, began) = (PathBuf::new(), Box::new(Silent), Instant::now());
        Self { folder, dir: None, voice, events: None, from: 0, began, updates: 0, images: 0.0, seconds: 0.0 }
    }

    fn begin_with(dir: RunDir, voice: Box<dyn Voice>, resumed_at: Option<u64>) -> Self {
        let events = Events::begin(&dir.root().join("tensorboard"), resumed_at);
        let (folder, from) = (dir.root().to_path_buf(), resumed_at.unwrap_or(0));
        let mut journal = Self { folder, dir: Some(dir), voice, from, ..Self::empty() };
        match events {
            Ok(events) => journal.events = Some(events),
            Err(error) => journal.lose_events(&error),
        }
        journal
    }

    /// The run's folder.
    pub fn dir(&self) -> &Path {
        &self.folder
    }

    /// Shows the progress at the start of a run of `of` updates.
    pub fn begin(&mut self, of: u64) {
        self.voice.begin(self.from, of);
    }

    /// Writes update `step` of `of`, with its metrics by name.
    ///
    /// # Errors
    /// When the run's folder cannot be written.
    pub fn update(&mut self, step: u64, of: u64, metrics: &[(&str, f64)]) -> Result<(), Error> {
        let Some(dir) = &mut self.dir else { return Ok(()) };
        dir.log(step as usize, metrics)?;
        self.view(|events| events.scalars(step, metrics));
        self.count(metrics);
        if !self.voice.shows_progress() {
            let shown = metrics.iter().filter(|(name, _)| *name != "seconds").map(|(name, value)| format!("{name} {}", short(*value)));
            self.say(format_args!("step {step}/{of}  {}", shown.collect::<Vec<_>>().join("  ")));
            return Ok(());
        }
        self.voice.advance(step, of, &note(metrics));
        if step >= of {
            self.voice.finish();
        }
        Ok(())
    }

    /// Writes a preview: its grid of images and its scores.
    ///
    /// # Errors
    /// When the run's folder cannot be written.
    pub fn preview(&mut self, step: u64, preview: &Preview) -> Result<(), Error> {
        let Some(dir) = &mut self.dir else { return Ok(()) };
        let names: Vec<(String, f64)> = preview.values().map(|(name, scores)| (format!("preview/{name}"), mean(scores))).collect();
        let metrics: Vec<(&str, f64)> = names.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        dir.log(step as usize, &metrics)?;
        let (path, folder) = (dir.sample_path(step as usize), dir.preview_dir(step as usize));
        let shown: Vec<String> = names.iter().map(|(name, value)| format!("{name} {}", short(*value))).collect();
        if preview.images.is_empty() {
            self.view(|events| events.scalars(step, &metrics));
            self.say(format_args!("step {step}  {}", shown.join("  ")));
            return Ok(());
        }
        let drawn: RgbImage = grid(&preview.images, preview.columns);
        write_png::<&str, &str>(&path, &drawn, &[])?;
        self.results(&folder, step, preview)?;
        self.view(|events| events.scalars(step, &metrics).and_then(|()| events.image(IMAGES, step, &drawn)));
        self.say(format_args!("step {step}  {}  -> {}", shown.join("  "), path.display()));
        Ok(())
    }

    /// Writes each image of a preview to a file, and their scores to [`RESULTS`], for reports that compare runs.
    fn results(&self, folder: &Path, step: u64, preview: &Preview) -> Result<(), Error> {
        let results = preview.results(step);
        if results.is_empty() {
            return Ok(());
        }
        std::fs::create_dir_all(folder).map_err(|source| Error::Io { path: folder.display().to_string(), source })?;
        for (image, result) in preview.images.iter().zip(&results) {
            write_png::<&str, &str>(folder.join(image_name(result.index, result.seed)), image, &[])?;
        }
        let lines: String = results.iter().map(|result| serde_json::to_string(result).expect("a result is JSON") + "\n").collect();
        self.write(&folder.join(RESULTS), &lines)
    }

    /// Writes everything that the sentinel has looked at to [`WATCH`].
    ///
    /// # Errors
    /// When the run's folder cannot be written.
    pub fn watch(&self, watch: &Watch) -> Result<(), Error> {
        if self.dir.is_none() {
            return Ok(());
        }
        self.write(&self.dir().join(WATCH), &serde_json::to_string(watch).expect("looks are JSON"))
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), Error> {
        atomic::write(path, text.as_bytes()).map_err(|source| Error::Io { path: path.display().to_string(), source })
    }

    /// Says a line of news.
    pub fn say(&self, line: Arguments<'_>) {
        self.voice.say(line);
    }

    /// Says a line that must not be missed.
    pub fn warn(&self, line: Arguments<'_>) {
        self.voice.warn(line);
    }

    /// Says a line about the result of the run.
    pub fn conclude(&self, line: Arguments<'_>) {
        self.voice.conclude(line);
    }

    /// Shows a table of (name, value before, value after), and how long the run took.
    pub fn summary(&self, rows: &[(String, f64, f64)]) {
        self.voice.finish();
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

    /// Counts an update, and the images that it drew: their rate times its seconds.
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
        let folder = self.folder.join("tensorboard");
        self.warn(format_args!(
            "no more TensorBoard events are written: {}: {error}; metrics.jsonl has the same numbers",
            folder.display()
        ));
    }
}

/// The note about the last update beside the progress bar.
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

/// `m:ss`, or `h:mm:ss`.
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// `value` with four significant digits, in decimal or scientific notation.
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
    use std::sync::{Arc, Mutex};

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("vp-journal-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn numbers_show_four_digits() {
        let shown: Vec<String> = [0.5, 12.345, 1234.5, 3.2e-5, -0.04567, 98765.4].into_iter().map(short).collect();
        assert_eq!(shown, ["0.5000", "12.35", "1234", "3.200e-5", "-0.04567", "9.877e4"]);
    }

    #[test]
    fn progress_tells_loss_reward_and_speed() {
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
    fn a_clock() {
        let shown: Vec<String> = [0.4, 59.6, 3725.0, 360_000.0].into_iter().map(|s| clock(Duration::from_secs_f64(s))).collect();
        assert_eq!(shown, ["0:00", "1:00", "1:02:05", "100:00:00"]);
    }

    /// What was told, with progress shown or not.
    #[derive(Debug, Clone, Default)]
    struct Notebook {
        shows_progress: bool,
        told: Arc<Mutex<Vec<String>>>,
    }

    impl Voice for Notebook {
        fn say(&self, line: Arguments<'_>) {
            self.told.lock().unwrap().push(line.to_string());
        }
        fn warn(&self, line: Arguments<'_>) {
            self.say(format_args!("warning: {line}"));
        }
        fn conclude(&self, line: Arguments<'_>) {
            self.say(line);
        }
        fn shows_progress(&self) -> bool {
            self.shows_progress
        }
        fn advance(&mut self, done: u64, of: u64, note: &str) {
            self.say(format_args!("{done} of {of}: {note}"));
        }
        fn finish(&self) {
            self.say(format_args!("over"));
        }
    }

    #[test]
    fn an_update_is_a_line_or_progress() {
        let told = |shows_progress| {
            let root = scratch(&format!("voice-{shows_progress}"));
            let voice = Notebook { shows_progress, ..Notebook::default() };
            let mut journal = Journal::new(RunDir::create(&root, "").unwrap(), voice.clone());
            for step in 1..=2 {
                journal.update(step, 2, &[("loss", 0.5), ("lr", 0.1), ("seconds", 3.0)]).unwrap();
            }
            fs::remove_dir_all(root).unwrap();
            voice.told.lock().unwrap().clone()
        };
        assert_eq!(told(false), ["step 1/2  loss 0.5000  lr 0.1000", "step 2/2  loss 0.5000  lr 0.1000"]);
        assert_eq!(told(true), ["1 of 2: loss 0.5000", "2 of 2: loss 0.5000", "over"]);
    }

    #[test]
    fn images_are_counted() {
        let root = scratch("count");
        let mut journal = Journal::new(RunDir::create(&root, "").unwrap(), Silent);
        journal.update(1, 2, &[("images_per_second", 3.0), ("seconds", 4.0 / 3.0)]).unwrap();
        journal.update(2, 2, &[("images_per_second", f64::INFINITY), ("seconds", 0.0)]).unwrap();
        assert_eq!((journal.updates, journal.images, journal.seconds), (2, 4.0, 4.0 / 3.0));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_resumed_journal_forgets_later_updates() {
        let root = scratch("resume");
        let mut journal = Journal::new(RunDir::create(&root, "").unwrap(), Silent);
        for step in 1..=4 {
            journal.update(step, 9, &[("loss", step as f64)]).unwrap();
        }
        drop(journal);
        let mut journal = Journal::resume(&root, 2, Silent).unwrap();
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
        let mut journal = Journal::new(dir, Silent);
        journal.update(1, 1, &[("loss", 0.5)]).unwrap();
        assert_eq!(fs::read_to_string(root.join("metrics.jsonl")).unwrap(), "{\"step\":1,\"loss\":0.5}\n");
        fs::remove_dir_all(root).unwrap();
    }
}
