//! What is beside a run while it trains: a heartbeat that says that it lives, and requests that others make of it, all as files in its folder.
//!
//! Files, because the folder is all that a run on another machine shares with whoever watches it: a signal needs the same machine, the same user and a
//! process number that nobody else has got meanwhile. A thread of its own looks for them, so that the training loop waits for no file system, and
//! a run that waits for a server hears of a request too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use vp_core::{atomic, input_file};

use crate::run::Interrupt;

/// The file that says that a run lives.
const HEARTBEAT: &str = ".heartbeat";
/// How often that file is written.
pub const BEAT: Duration = Duration::from_secs(2);
/// How often requests are looked for.
const LOOK: Duration = Duration::from_millis(250);

/// What a run can be asked for from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// To finish the batch, save and end, as one Ctrl-C does.
    Stop,
    /// To save a checkpoint after the batch, and to go on.
    Save,
}

impl Request {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Stop, Self::Save];

    fn file(self) -> &'static str {
        match self {
            Self::Stop => ".request-stop",
            Self::Save => ".request-save",
        }
    }

    /// Makes the request of the run in a folder. It is taken within a second if the run lives; one that begins later never sees it.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn make(self, run: &Path) -> io::Result<()> {
        atomic::write(&run.join(self.file()), b"")
    }

    /// Whether the request was made and is not taken yet.
    pub fn is_waiting(self, run: &Path) -> bool {
        run.join(self.file()).is_file()
    }

    /// Removes the request; whether there was one.
    fn take(self, run: &Path) -> bool {
        fs::remove_file(run.join(self.file())).is_ok()
    }
}

/// What a run says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The process that trains, on its own machine.
    pub process: u32,
    /// The bytes of memory that it holds, where its system tells.
    #[serde(default)]
    pub memory: Option<u64>,
}

impl Heartbeat {
    /// The last heartbeat of the run in a folder, and when it was written. There is none while nobody trains; what a killed run left gets older.
    pub fn read(run: &Path) -> Option<(Self, SystemTime)> {
        let path = run.join(HEARTBEAT);
        let written = fs::metadata(&path).and_then(|found| found.modified()).ok()?;
        Some((serde_json::from_str(&input_file::read_regular_to_string(&path).ok()?).ok()?, written))
    }
}

/// The thread beside a run, until it is dropped.
#[derive(Debug)]
pub struct Attendant {
    ended: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
    run: PathBuf,
}

impl Attendant {
    /// Begins to write heartbeats into the run's folder and to pass requests on to `interrupt`. Requests that were made before are dropped: they
    /// were meant for a run that has ended. `memory` tells the bytes that the process holds. A folder that cannot be written, or a thread that the
    /// system refuses, does not keep the run from training.
    pub fn begin(run: &Path, interrupt: &Interrupt, memory: fn() -> Option<u64>) -> Self {
        Request::ALL.into_iter().for_each(|request| {
            request.take(run);
        });
        let ended = Arc::new((Mutex::new(false), Condvar::new()));
        let (signal, folder, interrupt) = (ended.clone(), run.to_path_buf(), interrupt.clone());
        let thread = std::thread::Builder::new().name("attendant".into()).spawn(move || attend(&signal, &folder, &interrupt, memory));
        Self { ended, thread: thread.ok(), run: run.to_path_buf() }
    }
}

impl Drop for Attendant {
    fn drop(&mut self) {
        *self.ended.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ended.1.notify_all();
        self.thread.take().map(JoinHandle::join);
        let _ = fs::remove_file(self.run.join(HEARTBEAT));
        Request::ALL.into_iter().for_each(|request| {
            request.take(&self.run);
        });
    }
}

fn attend((ended, told): &(Mutex<bool>, Condvar), run: &Path, interrupt: &Interrupt, memory: fn() -> Option<u64>) {
    let mut since_beat = BEAT;
    let mut over = ended.lock().unwrap_or_else(PoisonError::into_inner);
    while !*over {
        if since_beat >= BEAT {
            since_beat = Duration::ZERO;
            beat(run, memory());
        }
        if Request::Save.take(run) {
            interrupt.ask_to_save();
        }
        if Request::Stop.take(run) {
            interrupt.ask_to_stop();
        }
        over = told.wait_timeout(over, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        since_beat += LOOK;
    }
}

/// Not synced, unlike what must survive a power cut: nobody trains after one.
fn beat(run: &Path, memory: Option<u64>) {
    let heartbeat = Heartbeat { process: std::process::id(), memory };
    let (path, temporary) = (run.join(HEARTBEAT), run.join(format!("{HEARTBEAT}-new")));
    let text = serde_json::to_string(&heartbeat).expect("two numbers are JSON");
    if fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path)).is_err() {
        let _ = fs::remove_file(&temporary);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Instant;

    use super::*;

    fn wait_for(what: &str, is_so: impl Fn() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn requests_reach_the_run_and_leave_no_file() {
        let run = std::env::temp_dir().join(format!("vp-attendant-{}", std::process::id()));
        let _ = fs::remove_dir_all(&run);
        fs::create_dir_all(&run).unwrap();
        // Made of a run that has ended.
        Request::Stop.make(&run).unwrap();
        let interrupt = Interrupt::default();
        let attendant = Attendant::begin(&run, &interrupt, || Some(1 << 20));
        wait_for("a heartbeat", || Heartbeat::read(&run).is_some());
        let (heartbeat, _) = Heartbeat::read(&run).unwrap();
        assert_eq!(heartbeat, Heartbeat { process: std::process::id(), memory: Some(1 << 20) });
        assert_eq!(interrupt.flag().load(Ordering::Relaxed), 0, "an old request stops nothing");
        Request::Save.make(&run).unwrap();
        wait_for("saving", || interrupt.takes_request_to_save());
        assert!(!interrupt.takes_request_to_save() && !Request::Save.is_waiting(&run), "a request is taken once");
        Request::Stop.make(&run).unwrap();
        wait_for("stopping", || interrupt.flag().load(Ordering::Relaxed) == 2);
        drop(attendant);
        assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
        fs::remove_dir_all(run).unwrap();
    }
}
