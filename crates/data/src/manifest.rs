//! Lists of captioned images: one JSON object per line, or comma-separated values, as Hugging Face's imagefolder has them.

use std::path::{Component, Path};

use serde_json::Value;
use vp_core::shown;

use crate::csv_rows::{Row, rows};
use crate::utf8::read_found_utf8;
use crate::{Error, ImageEntry, Problem, ProblemKind, Result};

/// Reads a list of images and their texts: one object per line with `file_name`, relative to the list's folder, and `text`, `caption`
/// or `prompt`; or, in a `.csv`, a header with these names and a row per image. Its order is kept, and a file may be named again with another text. No image is opened: see [`check_images`].
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
    for TableRow { place, row } in table_rows(path)? {
        match row.and_then(|row| entry_of(row, folder)) {
            Ok(entry) => entries.push(entry),
            Err(reason) => problems.push(Problem { name: place, kind: ProblemKind::BadRow(reason) }),
        }
    }
    match (entries.is_empty(), problems.is_empty()) {
        (_, false) => Err(Error::ProblemsInManifest { path: path.into(), problems }),
        (true, true) => Err(Error::EmptyManifest { path: path.into() }),
        (false, true) => Ok(entries),
    }
}

fn entry_of(CaptionRow { file_name: written, caption }: CaptionRow, folder: &Path) -> Result<ImageEntry, String> {
    let file_name = name_within(&written).ok_or_else(|| format!("{written} leads out of the list's folder"))?;
    let caption = caption.ok_or_else(|| format!("{written} has no text, caption or prompt"))?;
    Ok(ImageEntry { path: folder.join(&file_name), file_name, caption })
}

/// What a row of a table says: a name as written, and its caption if there is one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CaptionRow {
    pub(crate) file_name: String,
    pub(crate) caption: Option<String>,
}

/// A row, or what is wrong with it, and where it stands: `line 3`.
#[derive(Debug)]
pub(crate) struct TableRow {
    pub(crate) place: String,
    pub(crate) row: Result<CaptionRow, String>,
}

/// The keys and columns that hold a caption; the first that is there counts.
const CAPTIONS: [&str; 3] = ["text", "caption", "prompt"];

/// The rows of a table, which is a `.csv` or else JSON lines.
///
/// # Errors
/// A table that cannot be read. What is wrong with its rows, or with a header, is among them.
pub(crate) fn table_rows(path: &Path) -> Result<Vec<TableRow>> {
    let text = read_found_utf8(path)?;
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv")) {
        return Ok(csv_table(&text).unwrap_or_else(|reason| vec![TableRow { place: "header".into(), row: Err(reason) }]));
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    Ok(lines.map(|(index, line)| TableRow { place: format!("line {}", index + 1), row: parse_row(line) }).collect())
}

fn csv_table(text: &str) -> Result<Vec<TableRow>, String> {
    let mut rows = rows(text)?.into_iter();
    let header = rows.next().map(|row| row.fields).unwrap_or_default();
    let column = |names: &[&str]| names.iter().find_map(|name| header.iter().position(|field| field.trim().eq_ignore_ascii_case(name)));
    let Some(file_name) = column(&["file_name"]) else {
        return Err(format!("expected a header with file_name and text, caption or prompt, found {:?}", shown::value(&header.join(","))));
    };
    let caption = column(&CAPTIONS);
    let one = |Row { line, fields }: Row| {
        let field = |column: usize| fields.get(column).map(|field| field.trim()).filter(|field| !field.is_empty());
        let row = match field(file_name) {
            Some(name) => Ok(CaptionRow { file_name: name.into(), caption: caption.and_then(field).map(str::to_owned) }),
            None => Err("it names no file".into()),
        };
        TableRow { place: format!("line {line}"), row }
    };
    Ok(rows.map(one).collect())
}

fn parse_row(line: &str) -> Result<CaptionRow, String> {
    let row: Value = serde_json::from_str(line).map_err(|error| format!("malformed JSON: {error}"))?;
    let Some(file_name) = row.get("file_name").and_then(Value::as_str) else {
        return Err("expected an object with file_name, a string".into());
    };
    let caption = match CAPTIONS.iter().find_map(|key| Some((key, row.get(key)?))) {
        None | Some((_, Value::Null)) => None,
        Some((_, Value::String(text))) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
        Some((key, _)) => return Err(format!("expected the {key} of {file_name} to be a string")),
    };
    Ok(CaptionRow { file_name: file_name.into(), caption })
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
    fn a_csv_is_a_list_too() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            std::fs::write(dir.path().join("list.csv"), text).unwrap();
            read_manifest(dir.path().join("list.csv"))
        };
        let entries = read("\u{feff}id,Caption,file_name\r\n7,\"a bee, asleep\",b.png\r\n8,an ant,a.png\r\n").unwrap();
        let found: Vec<_> = entries.iter().map(|entry| (entry.file_name.as_str(), entry.caption.as_str())).collect();
        assert_eq!(found, [("b.png", "a bee, asleep"), ("a.png", "an ant")]);
        let message = read("file_name,text\n../up.png,up\n,nothing\nb.png,\n").unwrap_err().to_string();
        for expected in ["line 2: ../up.png leads out", "line 3: it names no file", "line 4: b.png has no text, caption or prompt"] {
            assert!(message.contains(expected), "{expected:?} is not in: {message}");
        }
        assert!(read("image,text\nb.png,bee\n").unwrap_err().to_string().contains("found \"image,text\""));
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
