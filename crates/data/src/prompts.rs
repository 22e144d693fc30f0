//! Prompt sets, in the layouts in which they are published.

use std::path::Path;

use serde_json::Value;
use vp_core::shown;

use crate::json_list::Placed;
use crate::parquet_file::ParquetFile;
use crate::utf8::read_utf8;
use crate::{Error, Result};

/// Names of the column of prompts in a table, in any case; the first that is there.
const PROMPT_COLUMNS: [&str; 4] = ["prompt", "prompts", "text", "caption"];

/// One prompt, and what its source says about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Prompt {
    /// What the model is asked to paint.
    pub text: String,
    /// The name that the source gives it, such as `005695-0057` in ImageReward's sets.
    pub id: Option<String>,
    /// The group that it belongs to, such as PartiPrompts' `Animals` or GenEval's `two_object`.
    pub category: Option<String>,
}

impl Prompt {
    /// A prompt that is nothing but its text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), id: None, category: None }
    }
}

/// Reads a prompt set; its extension (in any case) names the layout.
///
/// | extension | layout | written by |
/// |---|---|---|
/// | `.txt` | one prompt per line; blank lines are skipped | ddpo-pytorch, flow_grpo, T2I-CompBench |
/// | `.json` | a list of strings, or of objects as in `.jsonl` | HPS v2, `refl_data.json`, `benchmark-prompts.json` |
/// | `.jsonl` | one object per line: `prompt`, `text` or `caption`; `id`; `category` or `tag` | GenEval, image folders |
/// | `.tsv` | a header with `Prompt` and perhaps `Id`, `Category`; other columns are ignored, quotes are text | PartiPrompts |
/// | a folder | its `metadata.jsonl` | image folders |
/// | `.parquet` | a column `prompt`, `text` or `caption` in any case, and perhaps `id`, `category` or `tag`; others are not read | Pick-a-Pic, DiffusionDB, LAION |
///
/// A byte order mark and CRLF line ends are tolerated. The file's order is kept, duplicates included.
///
/// # Errors
/// A missing file, an unknown extension, bytes that are not UTF-8, malformed JSON, a damaged parquet, an entry without text, a NUL
/// character, or no prompt at all; the message names the file and the place.
pub fn read_prompts(path: impl AsRef<Path>) -> Result<Vec<Prompt>> {
    let given = path.as_ref();
    let inside = given.join("metadata.jsonl");
    let path = if inside.is_file() { &inside } else { given };
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let parse = match extension.as_str() {
        "txt" => parse_txt,
        "json" => parse_json,
        "jsonl" => parse_jsonl,
        "tsv" => parse_tsv,
        "parquet" => return read_parquet(path),
        _ => return Err(Error::UnknownPromptFormat { path: path.into(), found: extension }),
    };
    let text = read_utf8(path)?;
    if text.trim().is_empty() {
        return Err(Error::NoPrompts { path: path.into() });
    }
    let prompts = parse(&text).map_err(|Malformed { place, reason }| Error::MalformedPrompts { path: path.into(), place, reason })?;
    if prompts.is_empty() {
        return Err(Error::NoPrompts { path: path.into() });
    }
    Ok(prompts)
}

/// A fault in a prompt file whose path the caller knows.
struct Malformed {
    place: String,
    reason: String,
}

type Parsed<T> = std::result::Result<T, Malformed>;

fn malformed<T>(place: &str, reason: impl Into<String>) -> Parsed<T> {
    Err(Malformed { place: place.into(), reason: reason.into() })
}

fn parse_txt(text: &str) -> Parsed<Vec<Prompt>> {
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
    lines.map(|(index, line)| checked(Prompt::new(line), &format!("line {}", index + 1))).collect()
}

fn parse_json(text: &str) -> Parsed<Vec<Prompt>> {
    let value: Value = serde_json::from_str(text).or_else(|error| {
        let (line, column) = place_of(&error, text);
        malformed(&format!("line {line}, column {column}"), format!("malformed JSON: {}", without_place(&error)))
    })?;
    let Value::Array(entries) = value else {
        return malformed("line 1", format!("expected a list of prompts, found {}", kind(&value)));
    };
    entries.iter().enumerate().map(|(index, entry)| prompt_of(entry, &format!("entry {}", index + 1))).collect()
}

fn parse_jsonl(text: &str) -> Parsed<Vec<Prompt>> {
    let mut prompts = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = format!("line {}", index + 1);
        let value: Value = serde_json::from_str(line).or_else(|error| {
            malformed(&format!("{place}, column {}", error.column()), format!("malformed JSON: {}", without_place(&error)))
        })?;
        prompts.push(prompt_of(&value, &place)?);
    }
    Ok(prompts)
}

fn parse_tsv(text: &str) -> Parsed<Vec<Prompt>> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let Some((index, header)) = lines.next() else { return Ok(Vec::new()) };
    let columns: Vec<String> = header.split('\t').map(|name| name.trim().to_lowercase()).collect();
    let column = |wanted: &str| columns.iter().position(|name| name == wanted);
    let Some(prompt) = PROMPT_COLUMNS.into_iter().find_map(column) else {
        let reason = format!(
            "expected a header with a column named Prompt, found {:?}; prompts without a header go in a .txt file",
            shown::value(header)
        );
        return malformed(&format!("line {}", index + 1), reason);
    };
    let (id, category) = (column("id"), column("category"));

    let mut prompts = Vec::new();
    for (index, line) in lines {
        let fields: Vec<&str> = line.split('\t').map(str::trim).collect();
        let field =
            |column: Option<usize>| column.and_then(|at| fields.get(at)).filter(|text| !text.is_empty()).map(|text| text.to_string());
        let place = format!("line {}", index + 1);
        let Some(text) = field(Some(prompt)) else { return malformed(&place, "the prompt is empty") };
        prompts.push(checked(Prompt { text, id: field(id), category: field(category) }, &place)?);
    }
    Ok(prompts)
}

/// Reads the columns it needs and no other: tables of images are large.
fn read_parquet(path: &Path) -> Result<Vec<Prompt>> {
    let file = ParquetFile::open(path)?;
    let refused = |Malformed { place, reason }| Error::MalformedPrompts { path: path.into(), place, reason };
    let columns = file.columns();
    let column = |wanted: &str| columns.iter().copied().find(|name| name.eq_ignore_ascii_case(wanted));
    let Some(text) = PROMPT_COLUMNS.into_iter().find_map(column) else {
        let reason = format!(
            "expected a column named prompt, text or caption, found {}; rename the column that holds the prompts",
            shown::names(columns.iter().copied())
        );
        return Err(refused(Malformed { place: "columns".into(), reason }));
    };
    let (id, category) = (column("id"), column("category").or_else(|| column("tag")));
    let wanted = [Some(text), id, category];
    let others: Vec<&str> = columns.iter().copied().filter(|name| !wanted.contains(&Some(name))).collect();
    let prompt = |(place, row): Placed| {
        let mut row = row.or_else(|reason| malformed(&place, reason))?;
        let mut label = |column: Option<&str>| column.and_then(|name| row.label(name)).filter(|label| !label.is_empty());
        let (id, category) = (label(id), label(category));
        let text = match row.0.shift_remove(text) {
            Some(Value::String(text)) => text,
            None | Some(Value::Null) => return malformed(&place, format!("the prompt is missing (column {text} is null)")),
            Some(other) => return malformed(&place, format!("expected column {text} to hold text, found {}", kind(&other))),
        };
        checked(Prompt { text, id, category }, &place)
    };
    let prompts = ParquetFile::rows(path, &others)?.map(|row| prompt(row).map_err(refused)).collect::<Result<Vec<_>>>()?;
    if prompts.is_empty() { Err(Error::NoPrompts { path: path.into() }) } else { Ok(prompts) }
}

fn prompt_of(entry: &Value, place: &str) -> Parsed<Prompt> {
    let object = match entry {
        Value::String(text) => return checked(Prompt::new(text), place),
        Value::Object(object) => object,
        other => return malformed(place, format!("expected a string or an object, found {}", kind(other))),
    };
    let Some((key, text)) = ["prompt", "text", "caption"].into_iter().find_map(|key| object.get_key_value(key)) else {
        let keys = shown::names(object.keys().map(String::as_str));
        return malformed(place, format!("expected a key named prompt, text or caption, found {keys}"));
    };
    let Some(text) = text.as_str() else {
        return malformed(place, format!("expected {key:?} to be a string, found {}", kind(text)));
    };
    let label = |key: &str| match object.get(key)? {
        Value::String(label) => Some(label.clone()),
        Value::Number(label) => Some(label.to_string()),
        _ => None,
    };
    checked(Prompt { text: text.into(), id: label("id"), category: label("category").or_else(|| label("tag")) }, place)
}

/// An empty prompt would paint anything at all, and a NUL means UTF-16 or a binary file: neither is meant.
fn checked(prompt: Prompt, place: &str) -> Parsed<Prompt> {
    if prompt.text.trim().is_empty() {
        malformed(place, "the prompt is empty")
    } else if prompt.text.contains('\0') {
        malformed(place, "the prompt holds a NUL character: is the file UTF-16, or no text at all?")
    } else {
        Ok(prompt)
    }
}

/// `serde_json` ends its messages with the place; ours begins with it.
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.split(" at line ").next().unwrap_or_default().to_owned()
}

/// Line and column, from 1. `serde_json` counts the end of a line as column 0 of the next.
fn place_of(error: &serde_json::Error, text: &str) -> (usize, usize) {
    match (error.line(), error.column()) {
        (line @ 2.., 0) => (line - 1, text.lines().nth(line - 2).map_or(0, str::len) + 1),
        place => place,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    fn read(name: &str, bytes: impl AsRef<[u8]>) -> Result<Vec<Prompt>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        read_prompts(path)
    }

    fn texts(name: &str, bytes: impl AsRef<[u8]>) -> Vec<String> {
        read(name, bytes).unwrap().into_iter().map(|prompt| prompt.text).collect()
    }

    /// The message must hold each of `parts`, the file's name among them, on one line.
    #[track_caller]
    fn refuses(name: &str, bytes: impl AsRef<[u8]>, parts: &[&str]) {
        let message = read(name, bytes).unwrap_err().to_string();
        assert!(!message.contains('\n'), "{message}");
        for part in parts.iter().chain([&name]) {
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }

    #[test]
    fn txt_is_a_prompt_a_line() {
        assert_eq!(texts("p.txt", "a cat\n\n  \na dog, sleeping  "), ["a cat", "a dog, sleeping"]);
        assert_eq!(texts("P.TXT", "\u{feff}a cat\r\nun élan\r\n"), ["a cat", "un élan"]);
        assert_eq!(texts("p.txt", "twice\ntwice"), ["twice", "twice"]);
    }

    #[test]
    fn json_holds_strings_or_objects() {
        assert_eq!(texts("p.json", r#"["a cat", "a dog"]"#), ["a cat", "a dog"]);
        assert_eq!(texts("p.json", r#"[{"text": "a cat ", "image": "000044-0048"}]"#), ["a cat "]);
        let prompts =
            read("p.json", "\u{feff}[{\"id\": \"005695-0057\", \"prompt\": \"a cat\"}, {\"id\": 7, \"prompt\": \"a dog\"}]").unwrap();
        assert_eq!(prompts[0], Prompt { text: "a cat".into(), id: Some("005695-0057".into()), category: None });
        assert_eq!(prompts[1].id.as_deref(), Some("7"));
    }

    #[test]
    fn jsonl_is_an_object_a_line() {
        let lines = "{\"prompt\": \"a cat\", \"tag\": \"single_object\"}\r\n\r\n{\"text\": \"a dog\"}\n{\"caption\": \"a fox\", \"category\": \"animals\"}\n";
        let prompts = read("p.jsonl", lines).unwrap();
        assert_eq!(prompts[0], Prompt { text: "a cat".into(), id: None, category: Some("single_object".into()) });
        assert_eq!(prompts[1], Prompt::new("a dog"));
        assert_eq!(prompts[2].category.as_deref(), Some("animals"));
    }

    #[test]
    fn tsv_has_a_header() {
        let table =
            "Prompt\tCategory\tChallenge\tNote\r\na club called \"The Wanderers\"\tWorld Knowledge\tImagination\t\r\nbond\t\tBasic\tx\r\n";
        let prompts = read("p.tsv", table).unwrap();
        assert_eq!(prompts[0].text, "a club called \"The Wanderers\"");
        assert_eq!(prompts[0].category.as_deref(), Some("World Knowledge"));
        assert_eq!(prompts[1], Prompt::new("bond"));
        refuses("p.tsv", "a cat\tanimals\n", &["line 1", "column named Prompt", ".txt"]);
        refuses("p.tsv", "Id\tPrompt\n1\ta cat\n2\n", &["line 3", "empty"]);
        refuses("p.tsv", "Prompt\tCategory\n", &["no prompts"]);
    }

    /// A table of text; `None` is null.
    fn parquet(columns: &[(&str, &[Option<&str>])]) -> Vec<u8> {
        let fields = columns.iter().map(|(name, _)| format!("optional binary {name} (UTF8);")).collect::<String>();
        let schema = parse_message_type(&format!("message table {{ {fields} }}")).unwrap();
        let mut bytes = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut bytes, schema.into(), Default::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for (_, cells) in columns {
            let levels: Vec<i16> = cells.iter().map(|cell| i16::from(cell.is_some())).collect();
            let values: Vec<ByteArray> = cells.iter().flatten().map(|cell| ByteArray::from(*cell)).collect();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        bytes
    }

    #[test]
    fn parquet_has_a_column_of_prompts() {
        let images = ("jpg", &[Some("bytes"), None][..]);
        let table =
            parquet(&[images, ("Prompt", &[Some("a cat"), Some("a \"dog\"")]), ("ID", &[Some("7"), None]), ("tag", &[None, Some("x")])]);
        let prompts = read("p.Parquet", table).unwrap();
        assert_eq!(prompts[0], Prompt { text: "a cat".into(), id: Some("7".into()), category: None });
        assert_eq!(prompts[1], Prompt { text: "a \"dog\"".into(), id: None, category: Some("x".into()) });
        for name in ["prompt", "caption", "text", "TEXT"] {
            assert_eq!(texts("p.parquet", parquet(&[(name, &[Some("a cat")])])), ["a cat"]);
        }
        // Of a table with captions and prompts the prompts are meant.
        assert_eq!(texts("p.parquet", parquet(&[("caption", &[Some("seen")]), ("prompt", &[Some("asked")])])), ["asked"]);
    }

    #[test]
    fn published_tables_are_prompt_sets() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        for table in ["pick_a_pic.parquet", "metadata-test.parquet"] {
            assert!(!read_prompts(fixtures.join(table)).unwrap().is_empty(), "{table}");
        }
    }

    #[test]
    fn parquet_without_prompts_is_refused() {
        refuses(
            "p.parquet",
            parquet(&[("url", &[Some("x")]), ("alt", &[None])]),
            &["prompt, text or caption", "[\"url\", \"alt\"]", "rename"],
        );
        refuses("p.parquet", parquet(&[("prompt", &[Some("a cat"), None])]), &["row 2", "prompt is null"]);
        refuses("p.parquet", parquet(&[("prompt", &[Some(" "), None])]), &["row 1", "empty"]);
        refuses("p.parquet", parquet(&[("prompt", &[])]), &["no prompts"]);
        let whole = parquet(&[("prompt", &[Some("a cat")])]);
        for damaged in [&b""[..], b"a cat\n", &whole[..whole.len() - 20]] {
            let message = read("p.parquet", damaged).unwrap_err().to_string();
            assert!(message.contains("p.parquet") && message.contains("not a parquet that can be read"), "{message}");
        }
        let mut torn = whole;
        torn[4..40].fill(0xff);
        refuses("p.parquet", torn, &["row 1", "not a parquet that can be read"]);
    }

    #[test]
    fn empty_files_are_refused() {
        for (name, text) in
            [("p.txt", ""), ("p.txt", "\u{feff}\n \r\n"), ("p.json", ""), ("p.json", "[]"), ("p.jsonl", "\n"), ("p.tsv", "")]
        {
            refuses(name, text, &["no prompts"]);
        }
    }

    #[test]
    fn bytes_that_are_not_utf8_are_placed() {
        refuses("p.txt", b"a cat\n\xe9lan\n", &["byte 6", "line 2", "UTF-8"]);
        refuses("p.txt", b"\xff\xfea\0 \0", &["byte 0", "line 1", "UTF-16"]);
        refuses("p.txt", b"fine\na\0 \0c\0", &["line 2", "NUL"]);
    }

    #[test]
    fn malformed_json_is_placed() {
        refuses("p.json", "[\n  \"a cat\",\n  \"a dog\n]", &["line 3, column 9", "malformed JSON"]);
        refuses("p.json", "[\"a cat\"", &["line 1, column 8", "EOF"]);
        refuses("p.json", r#"{"prompts": []}"#, &["expected a list", "an object"]);
        refuses("p.json", r#"["a cat", 3]"#, &["entry 2", "a number"]);
        refuses("p.json", r#"["a cat", " "]"#, &["entry 2", "empty"]);
        refuses("p.json", r#"[{"Prompt": "a cat", "id": 1}]"#, &["entry 1", "prompt, text or caption", "Prompt"]);
        refuses("p.json", r#"[{"prompt": null}]"#, &["entry 1", "\"prompt\"", "null"]);
        refuses("p.jsonl", "{\"prompt\": \"a cat\"}\n{\"prompt\": \"a d", &["line 2, column", "malformed JSON"]);
        refuses("p.jsonl", "\n[1]\n", &["line 2", "a list"]);
    }

    #[test]
    fn unknown_and_missing_files_are_refused() {
        refuses("p.csv", "a cat", &["\"csv\"", ".txt", ".tsv"]);
        refuses("prompts", "a cat", &["unknown extension \"\""]);
        let message = read_prompts("nowhere/p.txt").unwrap_err().to_string();
        assert!(message.contains("p.txt") && message.contains("cannot read"), "{message}");
    }
}
