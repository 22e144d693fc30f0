//! `docs/reference/` says what the program says. `VP_BLESS=1 cargo test --release --test reference` rewrites it, but for the pages that
//! something else writes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Pages that the program knows nothing of: `scripts/bench_vs_torch` writes the table of this one.
const FOREIGN: &[&str] = &["performance.md"];

/// Pages by name.
fn pages(folder: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let page = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        // A checkout on Windows may have other line ends.
        (path.file_name().unwrap().to_string_lossy().into_owned(), text.replace("\r\n", "\n"))
    };
    entries.map(page).collect()
}

fn write_pages(folder: &Path) {
    let status = Command::new(env!("CARGO_BIN_EXE_visionprefer")).arg("docs").arg(folder).status().expect("the binary runs");
    assert!(status.success());
}

#[test]
fn the_reference_is_in_step_with_the_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = root.join("docs/reference");
    if std::env::var_os("VP_BLESS").is_some() {
        for name in pages(&committed).keys().filter(|name| !FOREIGN.contains(&name.as_str())) {
            std::fs::remove_file(committed.join(name)).unwrap();
        }
        write_pages(&committed);
    }
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

const ADVICE: &str = "`VP_BLESS=1 cargo test --release --test reference` rewrites it";
