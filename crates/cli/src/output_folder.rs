//! What a folder was made from, written into it first: so it can be added to, and one of another origin is not.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;
use vp_core::atomic;

/// Of a value that is shown, at most so many characters.
const SHOWN: usize = 80;

/// Makes `folder` with `origin` in its `file`, or recognises it.
///
/// # Errors
/// When it was made from something else, or holds files of unknown origin.
pub fn begin(folder: &Path, file: &str, origin: &Value) -> anyhow::Result<()> {
    let path = folder.join(file);
    let place = folder.display();
    match fs::read_to_string(&path) {
        Ok(text) => match serde_json::from_str::<Value>(&text).ok() {
            Some(found) if found == *origin => Ok(()),
            found => {
                // evaluation.json describes an evaluation.
                let what = file.trim_end_matches(".json");
                bail!("{place} holds another {what} (it was made from {}); choose another --output", difference(found.as_ref(), origin))
            }
        },
        Err(_) if folder.read_dir().is_ok_and(|mut entries| entries.next().is_some()) => {
            bail!("{place} holds other files and no {file}; choose another --output")
        }
        Err(_) => {
            fs::create_dir_all(folder).with_context(|| format!("create {place}"))?;
            atomic::write(&path, format!("{origin}\n").as_bytes()).with_context(|| format!("write {}", path.display()))
        }
    }
}

/// The first key of which the two differ.
fn difference(found: Option<&Value>, expected: &Value) -> String {
    let short = |value: &Value| {
        let text = value.to_string();
        let shown: String = text.chars().take(SHOWN).collect();
        if shown.len() < text.len() { shown + "…" } else { shown }
    };
    let Some(found) = found else { return "what cannot be read".into() };
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
        let origin = json!({ "seed": 1, "prompts": ["a".repeat(200)] });
        begin(&folder, "it.json", &origin).unwrap();
        begin(&folder, "it.json", &origin).unwrap();
        let refused = |origin: &Value| begin(&folder, "it.json", origin).unwrap_err().to_string();
        assert!(
            refused(&json!({ "seed": 2, "prompts": ["a".repeat(200)] }))
                .contains("holds another it (it was made from \"seed\":1, expected \"seed\":2)")
        );
        let long = refused(&json!({ "seed": 1, "prompts": ["b"] }));
        assert!(long.contains("…, expected \"prompts\":[\"b\"]") && long.len() < 300, "{long}");
        let other = begin(&folder, "other.json", &origin).unwrap_err().to_string();
        assert!(other.contains("holds other files and no other.json"), "{other}");
    }
}
