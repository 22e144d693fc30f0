//! A test that `cargo test` ignores is one that `.ci/run` names and runs: otherwise nobody would.

use std::path::Path;

#[test]
fn every_ignored_test_is_run_by_ci() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ci = std::fs::read_to_string(root.join(".ci/run")).unwrap();
    let mut ignored = Vec::new();
    ignored_below(&root.join("tests"), &mut ignored);
    assert!(!ignored.is_empty(), "found no ignored test; the one in a browser was there");
    for test in ignored {
        assert!(ci.lines().any(|line| line.ends_with(&format!("::{test}"))), ".ci/run does not run {test}, which is ignored");
    }
}

/// The names of the tests below `folder` that have an `#[ignore]`.
fn ignored_below(folder: &Path, ignored: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            ignored_below(&path, ignored);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let after = text.split("\n#[ignore").skip(1);
            ignored.extend(after.filter_map(|text| Some(text.split_once("fn ")?.1.split_once('(')?.0.to_owned())));
        }
    }
}
