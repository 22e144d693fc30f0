//! Running the binary in the repository's root, with outputs in a folder of the test's own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

/// The 1.x golden pipeline, a complete diffusers folder.
pub const MODEL: &str = "tests/golden/sd15_tiny/pipeline";

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the binary.
pub fn run(args: &[&str]) -> Finished {
    let output = Command::new(env!("CARGO_BIN_EXE_visionprefer")).current_dir(root()).args(args).output().expect("the binary runs");
    Finished { args: args.join(" "), output }
}

/// What a run left.
pub struct Finished {
    args: String,
    output: Output,
}

impl Finished {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    pub fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// Asserts that it succeeded.
    pub fn ok(self) -> Self {
        assert!(self.output.status.success(), "`{}` failed: {}", self.args, self.stderr());
        self
    }

    /// Asserts exit code 2 and one error line; returns it.
    pub fn refused(self) -> String {
        let stderr = self.stderr();
        assert_eq!(self.output.status.code(), Some(2), "`{}`: {stderr}", self.args);
        assert!(!stderr.contains("panicked"), "`{}`: {stderr}", self.args);
        stderr
    }
}

/// The files of a folder, sorted.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Copies a folder.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for path in files(from) {
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Sends a signal, such as `-INT`; by the shell, since not every machine has a program for it.
#[cfg(unix)]
pub fn signal(child: &Child, name: &str) {
    assert!(Command::new("sh").args(["-c", &format!("kill {name} {}", child.id())]).status().unwrap().success());
}
