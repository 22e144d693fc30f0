//! `docs/reference/` says what the program says, and so do the manual pages and completions that packages install (`packaging/data/share`).
//! `VP_BLESS=1 cargo test --release --test reference` rewrites them, but for the pages that something else writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use toml::Table;
use vp_trainers::config::AlgorithmConfig;

/// Pages that the program knows nothing of: `scripts/bench_vs_torch` writes the table of this one.
const FOREIGN: &[&str] = &["gpu.md", "performance.md"];

/// Pages by name.
fn pages(folder: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let page = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        // A checkout on Windows may have other line ends.
        (path.file_name().unwrap().to_string_lossy().into_owned(), text.replace("\r\n", "\n"))
    };
    entries.map(page).collect()
}

/// The folder of the pages, after they were rewritten where that is asked for: once, before any test reads them.
fn committed() -> PathBuf {
    static REWRITE: Once = Once::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference");
    REWRITE.call_once(|| {
        if std::env::var_os("VP_BLESS").is_some() {
            for name in pages(&folder).keys().filter(|name| !FOREIGN.contains(&name.as_str())) {
                std::fs::remove_file(folder.join(name)).unwrap();
            }
            write_pages(&folder);
        }
    });
    folder
}

fn write_pages(folder: &Path) {
    let status = Command::new(env!("CARGO_BIN_EXE_visionprefer")).arg("docs").arg(folder).status().expect("the binary runs");
    assert!(status.success());
}

#[test]
fn the_reference_is_in_step_with_the_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = committed();
    let fresh = tempfile::tempdir().unwrap();
    write_pages(fresh.path());
    let (expected, found) = (pages(fresh.path()), pages(&committed));
    let names: Vec<&str> = found.keys().map(String::as_str).filter(|name| !FOREIGN.contains(name)).collect();
    assert_eq!(expected.keys().collect::<Vec<_>>(), names, "the pages of docs/reference; {ADVICE}");
    for (name, text) in expected {
        let differs = text.lines().zip(found[&name].lines()).position(|(a, b)| a != b);
        let line = differs.unwrap_or_else(|| text.lines().count().min(found[&name].lines().count())) + 1;
        assert!(text == found[&name], "docs/reference/{name} is out of step from line {line} on; {ADVICE}");
    }
    let index = std::fs::read_to_string(root.join("docs/README.md")).unwrap();
    for name in found.keys() {
        assert!(index.contains(&format!("(reference/{name})")), "docs/README.md does not list reference/{name}");
    }
}

/// Files below a folder by their path within it.
fn files_below(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for path in std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            found.extend(files_below(&path).into_iter().map(|(below, text)| (name.join(below), text)));
        } else {
            found.insert(name, std::fs::read_to_string(&path).unwrap().replace("\r\n", "\n"));
        }
    }
    found
}

/// What packages install beside the program, where Linux and macOS look for it.
fn write_share(share: &Path) {
    let program = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_visionprefer")).args(args).output().expect("the binary runs");
    let pages = share.join("man/man1");
    assert!(program(&["man", pages.to_str().unwrap()]).status.success());
    let scripts = [
        ("bash", "bash-completion/completions/visionprefer"),
        ("fish", "fish/vendor_completions.d/visionprefer.fish"),
        ("zsh", "zsh/site-functions/_visionprefer"),
    ];
    for (shell, path) in scripts {
        let path = share.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, program(&["completions", shell]).stdout).unwrap();
    }
}

#[test]
fn what_packages_install_is_in_step_with_the_program() {
    let share = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/data/share");
    if std::env::var_os("VP_BLESS").is_some() {
        let _ = std::fs::remove_dir_all(&share);
        write_share(&share);
    }
    let fresh = tempfile::tempdir().unwrap();
    write_share(fresh.path());
    let (expected, found) = (files_below(fresh.path()), files_below(&share));
    assert!(expected.len() > 10 && expected.values().all(|text| text.len() > 200), "{:?}", expected.keys());
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "the files of packaging/data/share; {ADVICE}");
    for (path, text) in expected {
        assert!(text == found[&path], "packaging/data/share/{} is out of step; {ADVICE}", path.display());
    }
}

// What follows knows nothing of how the pages are generated.

/// The part of docs/reference/algorithms.md about each algorithm.
fn algorithms() -> BTreeMap<&'static str, String> {
    let page = pages(&committed()).remove("algorithms.md").unwrap();
    let section = |name: &'static str| {
        let from = page.find(&format!("\n## {name}\n")).unwrap_or_else(|| panic!("algorithms.md says nothing of {name}"));
        let section = &page[from + 1..];
        (name, section[..section.find("\n## ").unwrap_or(section.len())].to_owned())
    };
    AlgorithmConfig::ENTRIES.iter().map(|entry| section(entry.name)).collect()
}

/// What is in backticks behind `words`.
fn quoted<'a>(text: &'a str, words: &str) -> &'a str {
    text.split_once(&format!("{words} `")).and_then(|(_, behind)| behind.split('`').next()).unwrap_or_else(|| panic!("no {words}: {text}"))
}

#[test]
fn the_reference_names_the_preset_that_train_runs() {
    for (name, section) in algorithms() {
        // A run of no steps is refused, and the refusal names the config.
        let mut train = Command::new(env!("CARGO_BIN_EXE_visionprefer"));
        let output = train.args(["train", "--algo", name, "--set", "run.num_train_steps=0"]).output().expect("the binary runs");
        let refusal = String::from_utf8_lossy(&output.stderr).into_owned();
        let preset = quoted(&section, "runs the preset");
        assert!(refusal.contains(&format!("config configs/{name}/{preset}.toml: run.num_train_steps is 0")), "{preset}: {refusal}");
    }
}

#[test]
fn the_reference_has_every_key_of_an_algorithm_with_its_value() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, section) in algorithms() {
        let preset = if name == "reward_model" { "imagereward" } else { "sd15" };
        let config = std::fs::read_to_string(root.join(format!("configs/{name}/{preset}.toml"))).unwrap();
        let config: Table = config.parse().unwrap();
        let mut tables = vec![(format!("algo.{name}"), &config["algo"][name])];
        while let Some((header, table)) = tables.pop() {
            let (below, own): (Vec<_>, Vec<_>) = table.as_table().unwrap().iter().partition(|(_, value)| value.is_table());
            tables.extend(below.into_iter().map(|(key, table)| (format!("{header}.{key}"), table)));
            let rows =
                section.split("\nThe keys of ").find(|rows| rows.starts_with(&format!("`[{header}]`, with the values of `{preset}`.")));
            for (key, value) in own {
                let row = rows.and_then(|rows| rows.lines().find(|row| row.starts_with(&format!("| `{key}` |"))));
                let row = row.unwrap_or_else(|| panic!("there is no row of {header}.{key}"));
                let cells: Vec<&str> = row.split(" | ").collect();
                let shown = format!("value = {}", cells[1].trim_matches('`')).parse::<Table>().unwrap();
                assert_eq!(&shown["value"], value, "{header}.{key}");
                assert!(cells[2].trim_end_matches('|').len() > 3, "{header}.{key} is not explained: {row}");
            }
        }
    }
}

#[test]
fn headings_and_tables_stand_apart() {
    for (name, text) in pages(&committed()) {
        let lines: Vec<&str> = text.lines().collect();
        for (above, line) in lines.iter().zip(&lines[1..]) {
            let begins = line.starts_with('#') || line.starts_with('|') && !above.starts_with('|');
            assert!(!begins || above.is_empty() || above.starts_with("```"), "{name}: no blank line above: {line}");
        }
    }
}

const ADVICE: &str = "`VP_BLESS=1 cargo test --release --test reference` rewrites it";
