//! Lists of captioned images: one JSON object per line, as Hugging Face's imagefolder has them.

use std::path::{Component, Path};

use serde_json::Value;

use crate::utf8::read_utf8;
use crate::{Error, ImageEntry, Problem, ProblemKind, Result};

/// Reads a list of images and their texts: one object per line with `file_name`, relative to the list's folder, and `text`, `caption`
/// or `prompt`. Its order is kept, and a file may be named again with another text. No image is opened: see [`check_images`].
///
/// [`check_images`]: crate::check_images
///
/// # Errors
/// A list that cannot be read or is empty, and lines that are not such an object, have no text or name a file outside the folder; all of
/// those at once.
pub fn read_manifest(path: impl AsRef<Path>) -> Result<Vec<ImageEntry>> {
    let path = path.as_ref();
    let folder = path.parent().unwrap_or(Path::new(""));
    let (mut entries, mut problems) = (Vec::new(), Vec::new());
    for (index, line) in read_utf8(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match entry_of(line, folder) {
            Ok(entry) => entries.push(entry),
            Err(reason) => problems.push(Problem { name: format!("line {}", index + 1), kind: ProblemKind::BadRow(reason) }),
        }
    }
    match (entries.is_empty(), problems.is_empty()) {
        (_, false) => Err(Error::ProblemsInManifest { path: path.into(), problems }),
        (true, true) => Err(Error::EmptyManifest { path: path.into() }),
        (false, true) => Ok(entries),
    }
}

fn entry_of(line: &str, folder: &Path) -> Result<ImageEntry, String> {
    let (written, text) = parse_row(line)?;
    let file_name = name_within(&written).ok_or_else(|| format!("{written} leads out of the list's folder"))?;
    let caption = text.ok_or_else(|| format!("{written} has no text, caption or prompt"))?;
    Ok(ImageEntry { path: folder.join(&file_name), file_name, caption })
}

/// The name as written, and its text if there is one.
pub(crate) fn parse_row(line: &str) -> Result<(String, Option<String>), String> {
    let row: Value = serde_json::from_str(line).map_err(|error| format!("malformed JSON: {error}"))?;
    let Some(file_name) = row.get("file_name").and_then(Value::as_str) else {
        return Err("expected an object with file_name, a string".into());
    };
    let Some((key, caption)) = ["text", "caption", "prompt"].iter().find_map(|key| Some((key, row.get(key)?))) else {
        return Ok((file_name.into(), None));
    };
    match caption {
        Value::Null => Ok((file_name.into(), None)),
        Value::String(text) => Ok((file_name.into(), Some(text.trim().to_owned()).filter(|text| !text.is_empty()))),
        _ => Err(format!("expected the {key} of {file_name} to be a string")),
    }
}

/// The name without `.` and `..`, with `/` between folders; none if it is absolute, leads out of the folder or is empty.
pub(crate) fn name_within(written: &str) -> Option<String> {
    let mut parts = Vec::new();
    for component in Path::new(written).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::ParentDir => drop(parts.pop()?),
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/")).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (tempfile::TempDir, Result<Vec<ImageEntry>>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.jsonl");
        std::fs::write(&path, text).unwrap();
        let read = read_manifest(path);
        (dir, read)
    }

    #[test]
    fn order_and_repetitions_are_kept_and_nothing_is_opened() {
        let rows = ["b.png\", \"text\": \" a bee \"", "./in/../in/a.png\", \"caption\": \"an ant\"", "b.png\", \"prompt\": \"a wasp\""];
        let text: String = rows.map(|row| format!("{{\"file_name\": \"{row}}}\r\n\n")).concat();
        let (dir, entries) = read(&format!("\u{feff}{text}"));
        let entries = entries.unwrap();
        let found: Vec<_> = entries.iter().map(|entry| (entry.file_name.as_str(), entry.caption.as_str())).collect();
        assert_eq!(found, [("b.png", "a bee"), ("in/a.png", "an ant"), ("b.png", "a wasp")]);
        assert_eq!(entries[1].path, dir.path().join("in/a.png"));
    }

    #[test]
    fn bad_lines_are_all_named() {
        let text = r#"{"file_name": "fine.png", "text": "fine"}
{"file_name": "../up.png", "text": "up"}

{"file_name": "/etc/passwd", "text": "secret"}
{"file_name": "silent.png"}
{"file_name": "blank.png", "text": " "}
{"text": "no name"}
not json
"#;
        let message = read(text).1.unwrap_err().to_string();
        for expected in [
            "list.jsonl: 6 bad line(s)",
            "line 2: ../up.png leads out of the list's folder",
            "line 4: /etc/passwd leads out",
            "line 5: silent.png has no text, caption or prompt",
            "line 6: blank.png has no text",
            "line 7: expected an object with file_name",
            "line 8: malformed JSON",
        ] {
            assert!(message.contains(expected), "{expected:?} is not in: {message}");
        }
        assert!(read("\n").1.unwrap_err().to_string().contains("list.jsonl: it names no image"));
    }
}
