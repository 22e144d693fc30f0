//! What ended a run before its end, in a file of its folder: for whoever finds the folder later, and for `debug-report`.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use vp_core::atomic;

use crate::failure::Failure;
use crate::report::provenance::date;

/// The file. A run that goes on and reaches its end has none.
pub const FILE: &str = "failure.txt";

/// Notes how a run ended, if a run is in the folder.
pub fn note(run: &Path, ended: &Result<(), Failure>) {
    match ended {
        Ok(()) => drop(fs::remove_file(run.join(FILE))),
        Err(failure) => write(run, &failure.message()),
    }
}

/// Writes a reason, if a run is in the folder. The reason is told on the terminal too: a full disk loses nothing.
pub fn write(run: &Path, reason: &str) {
    if run.join("config.toml").is_file() {
        let text = format!("{}, visionprefer {}\n{reason}\n", date(SystemTime::now()), env!("CARGO_PKG_VERSION"));
        let _ = atomic::write(&run.join(FILE), text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_noted_in_a_run_alone_and_an_end_removes_it() {
        let dir = tempfile::tempdir().unwrap();
        let failed = || Err(Failure::run(anyhow::anyhow!("the disk is full")));
        note(dir.path(), &failed());
        assert!(!dir.path().join(FILE).exists());
        fs::write(dir.path().join("config.toml"), "").unwrap();
        note(dir.path(), &failed());
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(text.ends_with("\nthe disk is full\n") && text.contains(env!("CARGO_PKG_VERSION")), "{text}");
        note(dir.path(), &Ok(()));
        assert!(!dir.path().join(FILE).exists());
    }
}
