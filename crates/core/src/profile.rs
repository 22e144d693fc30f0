//! Where a run's time goes, by stage.
//!
//! At every moment exactly one row is charged: that of the innermost [`time`] under way, or `other`. The time of a stage within
//! another is therefore not counted in the outer one, and the rows sum to the wall time. The clock belongs to the thread that [`start`]ed it; on
//! other threads, and before a start, [`time`] only calls the work.
//!
//! GPUs work behind the caller's back. While the clock runs, a stage therefore waits for the device where it begins and where it ends,
//! which may make the run a little slower.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::time::{Duration, Instant};

use burn::tensor::Device;

/// What a run spends its time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Prompts to embeddings, images to latents.
    Encode,
    /// Denoising without gradients, to draw images.
    Rollout,
    /// The denoiser's predictions that a loss is computed from: with gradients, of a reference model, and on held-out data.
    TrackedStep,
    /// Latents to images.
    Decode,
    /// Scoring with rewards, both trained on and watched.
    Reward,
    /// From the loss back to the gradients.
    Backward,
    /// Clipping, the update, the moving average.
    Optimizer,
    /// Reading weights and images; writing checkpoints, metrics, images and models, and reading them back to check them.
    Io,
    /// Messages between ranks, and waiting for them.
    Ranks,
}

impl Stage {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        NAMES[self as usize]
    }
}

/// The names of the rows: the stages in their order, then the time outside of any stage.
const NAMES: [&str; 10] = ["encode", "rollout", "tracked step", "decode", "reward", "backward", "optimizer", "I/O", "ranks", "other"];
const OTHER: usize = NAMES.len() - 1;

thread_local! {
    static CLOCK: RefCell<Option<Clock>> = const { RefCell::new(None) };
    static UNDER_WAY: Cell<Option<Stage>> = const { Cell::new(None) };
}

/// A ledger and the clock that it is kept by.
struct Clock {
    device: Device,
    began: Instant,
    ledger: Ledger,
}

impl Clock {
    /// The time since the start, after the device has finished its work.
    fn now(&self) -> Duration {
        // An operation that failed says so where its result is read.
        let _ = self.device.sync();
        self.began.elapsed()
    }
}

/// The time spent in each row. The caller says what time it is.
#[derive(Debug, Clone, Default)]
struct Ledger {
    spent: [Duration; NAMES.len()],
    calls: [u64; NAMES.len()],
    /// The rows that are open, the innermost last.
    open: Vec<usize>,
    /// All time before this is charged to a row.
    until: Duration,
}

impl Ledger {
    fn charge(&mut self, now: Duration) {
        self.spent[self.open.last().copied().unwrap_or(OTHER)] += now.saturating_sub(self.until);
        self.until = now;
    }

    /// A stage directly within itself counts as part of the same call.
    fn begin(&mut self, stage: Stage, now: Duration) {
        self.charge(now);
        let row = stage as usize;
        self.calls[row] += u64::from(self.open.last() != Some(&row));
        self.open.push(row);
    }

    fn end(&mut self, now: Duration) {
        self.charge(now);
        self.open.pop();
    }
}

/// Starts this thread's clock, for work on `device`.
pub fn start(device: &Device) {
    let clock = Clock { device: device.clone(), began: Instant::now(), ledger: Ledger::default() };
    CLOCK.set(Some(clock));
}

/// Does `work` and charges its time to `stage`, except for the time of stages within it.
pub fn time<T>(stage: Stage, work: impl FnOnce() -> T) -> T {
    let charged = charge(|ledger, now| ledger.begin(stage, now));
    let outer = UNDER_WAY.replace(Some(stage));
    let result = work();
    // Not after a panic: who catches it asks where it was.
    UNDER_WAY.set(outer);
    // Not where the clock was started within `work`.
    if charged {
        charge(Ledger::end);
    }
    result
}

/// The stage that this thread is in; after a panic, the stage that it was in.
pub fn under_way() -> Option<Stage> {
    UNDER_WAY.get()
}

/// Whether this thread has a clock.
fn charge(entry: impl FnOnce(&mut Ledger, Duration)) -> bool {
    CLOCK.with_borrow_mut(|clock| {
        let Some(clock) = clock else { return false };
        let now = clock.now();
        entry(&mut clock.ledger, now);
        true
    })
}

/// Stops this thread's clock and returns what it measured; `None` if it was not running.
pub fn stop() -> Option<Breakdown> {
    let mut clock = CLOCK.take()?;
    let now = clock.now();
    clock.ledger.charge(now);
    Some(Breakdown(clock.ledger))
}

/// Seconds, share and calls of each stage that was entered, and of the rest: a table.
#[derive(Debug, Clone)]
pub struct Breakdown(Ledger);

impl fmt::Display for Breakdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ledger { spent, calls, until, .. } = &self.0;
        let total = until.as_secs_f64();
        write!(f, "{total:.2} s by stage  seconds   share  calls")?;
        let width = format!("{total:.2} s by stage").len();
        for (row, name) in NAMES.iter().enumerate().filter(|(row, _)| calls[*row] > 0 || *row == OTHER) {
            let seconds = spent[row].as_secs_f64();
            let share = if total > 0.0 { 100.0 * seconds / total } else { 0.0 };
            write!(f, "\n{name:width$}  {seconds:>7.2}  {share:>5.1}%")?;
            if row != OTHER {
                write!(f, "  {:>5}", calls[row])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn an_inner_stage_is_taken_from_the_outer_one() {
        let mut ledger = Ledger::default();
        ledger.begin(Stage::TrackedStep, at(1));
        ledger.begin(Stage::Encode, at(3));
        ledger.begin(Stage::Io, at(6));
        ledger.end(at(10));
        ledger.end(at(11));
        ledger.begin(Stage::TrackedStep, at(13));
        ledger.end(at(21));
        ledger.end(at(24));
        ledger.begin(Stage::TrackedStep, at(30));
        ledger.end(at(50));
        ledger.charge(at(100));
        // By hand: the tracked step 1..3, 11..24 and 30..50, encode 3..6 and 10..11, I/O 6..10; the rest of 100 s is in no stage.
        let of = |stage: Stage| (ledger.spent[stage as usize], ledger.calls[stage as usize]);
        assert_eq!(of(Stage::TrackedStep), (at(2 + 13 + 20), 2));
        assert_eq!(of(Stage::Encode), (at(4), 1));
        assert_eq!(of(Stage::Io), (at(4), 1));
        assert_eq!(ledger.spent[OTHER], at(57));
        assert_eq!(ledger.spent.iter().sum::<Duration>(), at(100));
    }

    #[test]
    fn the_table_is_aligned() {
        let mut ledger = Ledger::default();
        ledger.begin(Stage::Rollout, at(0));
        ledger.end(at(100));
        for step in 0..20 {
            ledger.begin(Stage::TrackedStep, at(100 + step));
            ledger.end(at(101 + step));
        }
        ledger.charge(at(125));
        let expected = "\
125.00 s by stage  seconds   share  calls
rollout             100.00   80.0%      1
tracked step         20.00   16.0%     20
other                 5.00    4.0%";
        assert_eq!(Breakdown(ledger).to_string(), expected);
    }

    #[test]
    fn the_clock_is_the_threads_own_and_off_until_it_is_started() {
        assert_eq!(time(Stage::Reward, || 7), 7);
        assert!(stop().is_none());
        start(&Device::flex());
        let twice = |stage| time(stage, || time(Stage::Encode, || std::thread::spawn(|| time(Stage::Io, || 1)).join().unwrap()));
        assert_eq!(twice(Stage::Decode) + twice(Stage::Encode), 2);
        let Breakdown(ledger) = stop().unwrap();
        let mut calls = [0; NAMES.len()];
        (calls[Stage::Decode as usize], calls[Stage::Encode as usize]) = (1, 2);
        assert_eq!(ledger.calls, calls);
        assert!(ledger.open.is_empty() && ledger.spent.iter().sum::<Duration>() == ledger.until);
        assert!(stop().is_none());
    }
}
