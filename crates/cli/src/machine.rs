//! The machine that probes look at: files below a root folder, and an environment. Tests give them folders and variables of their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use vp_core::input_file;

/// Files below a root folder, and an environment.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
    /// Every variable of the environment.
    pub variables: BTreeMap<String, String>,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let lossy = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        };
        Self { root: "/".into(), variables: std::env::vars_os().map(lossy).collect() }
    }

    /// One whose files lie below `root`, for tests.
    #[cfg(test)]
    pub fn at(root: &Path, variables: &[(&str, &str)]) -> Self {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { root: root.to_path_buf(), variables }
    }

    /// Where the file that the machine itself calls `path` is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let inside = path.as_ref().components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        self.root.join(inside.collect::<PathBuf>())
    }

    /// What a file says, without space around it. Files of `/proc` and `/sys` come and go: one that cannot be read says nothing.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = input_file::read_regular_to_string(self.path(path)).ok()?;
        Some(text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned())
    }

    /// Whether there is a file or a folder.
    pub fn has(&self, path: impl AsRef<Path>) -> bool {
        self.path(path).exists()
    }

    /// The names in a folder, in order; none if it is not there.
    pub fn names(&self, folder: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The last part of what a link leads to.
    pub fn link_name(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// A variable that is set to something.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The folders of a variable such as `PATH`.
    pub fn folders(&self, variable: &str) -> Vec<PathBuf> {
        let split = |value| std::env::split_paths(value).filter(|folder| folder.is_absolute()).collect();
        self.variable(variable).map(split).unwrap_or_default()
    }
}

/// Made-up machines.
#[cfg(test)]
pub mod tests {
    use super::*;

    /// A folder with these files.
    pub fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn paths_stay_below_the_root_and_empty_variables_are_not_set() {
        let root = tree(&[("/proc/version", "Linux\n"), ("/sys/b", ""), ("/sys/a", "")]);
        let machine = Machine::at(root.path(), &[("SET", "x"), ("EMPTY", ""), ("PATH", "/a:relative:/b")]);
        assert_eq!(machine.text("/proc/version").as_deref(), Some("Linux"));
        assert_eq!(machine.names("/sys"), ["a", "b"]);
        assert!(machine.has("/sys/a") && !machine.has("/sys/c") && machine.text("/sys").is_none());
        assert_eq!((machine.variable("SET"), machine.variable("EMPTY")), (Some("x"), None));
        assert_eq!(machine.folders("PATH"), [Path::new("/a"), Path::new("/b")]);
    }
}
