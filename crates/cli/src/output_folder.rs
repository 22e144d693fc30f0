//! Folders that a command fills over several runs. What such a folder is made from is written into it first, so that the same command can go
//! on filling it and another one is refused.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;
use vp_core::{atomic, folder_lock, input_file};

/// At most this many characters of a value are shown in a message.
const SHOWN: usize = 80;

/// Creates `folder` and writes `made_from` into its `file`; or finds the folder there, made from the same. What a killed command left half
/// written in it is removed.
///
/// # Errors
/// When the folder was made from something else, holds other files and no `file`, or cannot be written.
pub fn create_or_continue(folder: &Path, file: &str, made_from: &Value) -> anyhow::Result<()> {
    atomic::sweep(folder);
    let path = folder.join(file);
    let place = folder.display();
    match input_file::read_regular_to_string(&path) {
        Ok(text) => match serde_json::from_str::<Value>(&text).ok() {
            Some(found) if found == *made_from => Ok(()),
            found => {
                // evaluation.json describes an evaluation.
                let what = file.trim_end_matches(".json");
                bail!("{place} holds another {what} (it was made from {}); choose another --output", difference(found.as_ref(), made_from))
            }
        },
        Err(_) if holds_files(folder) => {
            bail!("{place} holds other files and no {file}; choose another --output")
        }
        Err(_) => {
            fs::create_dir_all(folder).with_context(|| format!("create {place}"))?;
            atomic::write(&path, format!("{made_from}\n").as_bytes()).with_context(|| format!("write {}", path.display()))
        }
    }
}

/// Whether anything is in a folder but locks of those who write it.
fn holds_files(folder: &Path) -> bool {
    let is_lock = |name: OsString| name.to_string_lossy().starts_with(folder_lock::FILE);
    folder.read_dir().is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|entry| !is_lock(entry.file_name()))))
}

/// The first key whose values differ.
fn difference(found: Option<&Value>, expected: &Value) -> String {
    let short = |value: &Value| {
        let text = value.to_string();
        let shown: String = text.chars().take(SHOWN).collect();
        if shown.len() < text.len() { shown + "…" } else { shown }
    };
    let Some(found) = found else { return "something that cannot be read".into() };
    let keys = expected.as_object().into_iter().chain(found.as_object()).flat_map(|object| object.keys());
    let differing = keys.into_iter().find(|key| found.get(key.as_str()) != expected.get(key.as_str()));
    let of = |value: &Value, key: &str| format!("\"{key}\":{}", value.get(key).map_or_else(|| "nothing".into(), short));
    differing.map_or_else(String::new, |key| format!("{}, expected {}", of(found, key), of(expected, key)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_folder_is_made_recognised_or_refused_by_what_differs() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        let made_from = json!({ "seed": 1, "prompts": ["a".repeat(200)] });
        create_or_continue(&folder, "it.json", &made_from).unwrap();
        create_or_continue(&folder, "it.json", &made_from).unwrap();
        let refused = |made_from: &Value| create_or_continue(&folder, "it.json", made_from).unwrap_err().to_string();
        assert!(
            refused(&json!({ "seed": 2, "prompts": ["a".repeat(200)] }))
                .contains("holds another it (it was made from \"seed\":1, expected \"seed\":2)")
        );
        let long = refused(&json!({ "seed": 1, "prompts": ["b"] }));
        assert!(long.contains("…, expected \"prompts\":[\"b\"]") && long.len() < 300, "{long}");
        let other = create_or_continue(&folder, "other.json", &made_from).unwrap_err().to_string();
        assert!(other.contains("holds other files and no other.json"), "{other}");
    }
}
