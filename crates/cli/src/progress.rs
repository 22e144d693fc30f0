//! How far a piece of work is, on standard error: a bar where somebody watches, a plain line now and then elsewhere, nothing with `--quiet`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vp_core::shown;
use vp_trainers::run::journal::clock;

use crate::doctor::human;
use crate::terminal::{self, Options};

/// A plain line comes no sooner after another, unless a further tenth of the work is done.
const WAIT: Duration = Duration::from_secs(10);
/// Work of fewer pieces is told by time alone.
const PIECES: u64 = 10;

static QUIET: AtomicBool = AtomicBool::new(false);

/// Silences all progress of this process from now on.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether progress is silenced.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// The progress of a piece of work. It is over when this is dropped.
#[derive(Debug)]
pub struct Progress {
    told: Told,
    pace: Mutex<Pace>,
}

#[derive(Debug)]
enum Told {
    Bar(ProgressBar),
    Lines,
    Nothing,
}

/// What is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unit {
    /// Things of this name, such as images.
    Things(&'static str),
    /// Bytes of a file of this name.
    Bytes(String),
}

impl Progress {
    /// The progress of `of` things, such as `images`.
    pub fn of(things: &'static str, of: usize) -> Self {
        Self::begin(Unit::Things(things), Some(of as u64))
    }

    /// The progress of things that nobody has counted.
    pub fn uncounted(things: &'static str) -> Self {
        Self::begin(Unit::Things(things), None)
    }

    /// The progress of a file of so many bytes.
    pub fn of_bytes(file: &str, of: u64) -> Self {
        Self::begin(Unit::Bytes(shown::one_line(file).into_owned()), Some(of))
    }

    fn begin(unit: Unit, of: Option<u64>) -> Self {
        let options = Options::on_standard_error(is_quiet());
        let told = match options {
            Options { quiet: true, .. } => Told::Nothing,
            Options { live: true, color, .. } => {
                let bar = bar(ProgressDrawTarget::stderr(), &unit, of, color);
                if terminal::show(&bar) { Told::Bar(bar) } else { Told::Nothing }
            }
            _ => Told::Lines,
        };
        Self { told, pace: Mutex::new(Pace::new(unit, of, Instant::now())) }
    }

    /// So many more are done.
    pub fn advance(&self, more: usize) {
        self.step(|pace| pace.done + more as u64, "");
    }

    /// So many are done in all. Of several threads the furthest counts.
    pub fn reach(&self, done: usize, note: &str) {
        self.step(|pace| pace.done.max(done as u64), note);
    }

    fn step(&self, done: impl FnOnce(&Pace) -> u64, note: &str) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let now = done(&pace);
        let line = pace.reach(now, Instant::now(), note);
        match &self.told {
            Told::Bar(bar) => {
                bar.set_position(pace.done);
                bar.set_message(format!(" {}  {note}", pace.left(Instant::now())));
            }
            Told::Lines => line.into_iter().for_each(|line| terminal::tell(&line)),
            Told::Nothing => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Told::Bar(bar) = &self.told {
            bar.finish_and_clear();
            terminal::hide();
        }
    }
}

/// A bar of the work, that draws on `target`.
fn bar(target: ProgressDrawTarget, unit: &Unit, of: Option<u64>, color: bool) -> ProgressBar {
    let bold = if color { ":.bold" } else { "" };
    let filled = if color { ".cyan" } else { "" };
    let template = match (unit, of) {
        (_, None) => format!("{{spinner}} {{prefix{bold}}} {{pos}}{{wide_msg}}"),
        (Unit::Things(_), Some(_)) => format!("{{spinner}} {{prefix{bold}}} {{pos}}/{{len}} [{{bar:20{filled}}}]{{wide_msg}}"),
        (Unit::Bytes(_), Some(_)) => format!("{{spinner}} {{prefix{bold}}} {{bytes}}/{{total_bytes}} [{{bar:20{filled}}}]{{wide_msg}}"),
    };
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::with_draw_target(of, target).with_style(style.progress_chars("=> ").tick_chars("|/-\\ "));
    bar.set_prefix(match unit {
        Unit::Things(name) => (*name).to_owned(),
        Unit::Bytes(file) => file.clone(),
    });
    // One piece can take minutes; the spinner shows that it is alive.
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

/// When a line is due, and what it says.
#[derive(Debug)]
struct Pace {
    unit: Unit,
    of: Option<u64>,
    done: u64,
    began: Instant,
    /// When the last line was told.
    told: Instant,
    /// The tenths that were done then.
    tenths: u64,
}

impl Pace {
    fn new(unit: Unit, of: Option<u64>, now: Instant) -> Self {
        Self { unit, of, done: 0, began: now, told: now, tenths: 0 }
    }

    /// Counts what is done; the line that is due.
    fn reach(&mut self, done: u64, now: Instant, note: &str) -> Option<String> {
        self.done = done;
        let tenths = match (&self.unit, self.of) {
            (Unit::Things(_), Some(of)) if of >= PIECES => done.saturating_mul(10) / of,
            _ => 0,
        };
        // Work of hours is told less often than work of minutes.
        let wait = WAIT.max(now.duration_since(self.began) / 20);
        if tenths <= self.tenths && now.duration_since(self.told) < wait {
            return None;
        }
        (self.tenths, self.told) = (tenths.max(self.tenths), now);
        let note = if note.is_empty() { String::new() } else { format!(", {note}") };
        let count = match (&self.unit, self.of) {
            (Unit::Things(name), Some(of)) => format!("{done} of {of} {name}"),
            (Unit::Things(name), None) => format!("{done} {name}"),
            (Unit::Bytes(file), Some(of)) => format!("{file}: {} of {}", human(done), human(of)),
            (Unit::Bytes(file), None) => format!("{file}: {}", human(done)),
        };
        Some(format!("{count}{note}, {}", self.left(now)))
    }

    /// How long it will take yet, or has taken.
    fn left(&self, now: Instant) -> String {
        let elapsed = now.duration_since(self.began);
        match self.of {
            Some(of) if self.done > 0 && self.done < of => {
                let left = elapsed.mul_f64((of - self.done) as f64 / self.done as f64);
                format!("about {} left", clock(left))
            }
            _ => format!("{} so far", clock(elapsed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::tests::Screen;

    /// The lines of work whose pieces are done at these times, in seconds.
    fn lines(unit: Unit, of: Option<u64>, done: impl Iterator<Item = (u64, f64)>) -> Vec<String> {
        let began = Instant::now();
        let mut pace = Pace::new(unit, of, began);
        done.filter_map(|(done, seconds)| pace.reach(done, began + Duration::from_secs_f64(seconds), "")).collect()
    }

    fn images() -> Unit {
        Unit::Things("images")
    }

    #[test]
    fn quick_work_is_told_by_tenths() {
        let told = lines(images(), Some(100), (1..=100).map(|done| (done, done as f64 * 0.01)));
        assert_eq!(told.len(), 10, "{told:?}");
        assert_eq!((told[0].as_str(), told[9].as_str()), ("10 of 100 images, about 0:01 left", "100 of 100 images, 0:01 so far"));
        assert_eq!(lines(images(), Some(9), (1..=9).map(|done| (done, done as f64))), [""; 0]);
    }

    #[test]
    fn slow_work_is_told_every_ten_seconds_and_more_seldom_when_it_takes_hours() {
        let told = lines(images(), Some(6), (1..=6).map(|done| (done, done as f64 * 7.0)));
        assert_eq!(told, ["2 of 6 images, about 0:28 left", "4 of 6 images, about 0:14 left", "6 of 6 images, 0:42 so far"]);
        let hours = lines(Unit::Things("records"), None, (1..=20_000).map(|done| (done, done as f64)));
        assert!((40..160).contains(&hours.len()), "{}", hours.len());
        assert_eq!(hours[0], "10 records, 0:10 so far");
    }

    #[test]
    fn a_download_is_told_by_time_in_bytes() {
        let told = lines(Unit::Bytes("unet.safetensors".into()), Some(4 << 20), (1..=4).map(|done| (done << 20, done as f64 * 6.0)));
        assert_eq!(told, ["unet.safetensors: 2.0 MiB of 4.0 MiB, about 0:12 left", "unet.safetensors: 4.0 MiB of 4.0 MiB, 0:24 so far"]);
        assert_eq!(lines(Unit::Bytes("config.json".into()), Some(100), [(50, 0.1), (100, 0.2)].into_iter()), [""; 0]);
    }

    #[test]
    fn bars_of_every_kind_have_a_style() {
        for (unit, of) in [(images(), Some(4)), (images(), None), (Unit::Bytes("a".into()), Some(4)), (Unit::Bytes("a".into()), None)] {
            let screen = Screen::default();
            let bar = bar(ProgressDrawTarget::term_like(Box::new(screen.clone())), &unit, of, false);
            bar.set_position(3);
            bar.set_message(" a note");
            let expected = match (&unit, of) {
                (Unit::Things(_), Some(_)) => "images 3/4 [===============>    ]",
                (Unit::Things(_), None) => "images 3",
                (Unit::Bytes(_), Some(_)) => "a 3 B/4 B [",
                (Unit::Bytes(_), None) => "a 3",
            };
            assert!(screen.text().contains(expected), "{:?}", screen.text());
        }
    }
}
