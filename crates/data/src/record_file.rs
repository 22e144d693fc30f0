//! Preference records in a file of our own: one JSON object per line.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use vp_core::input_file::InputFile;

use crate::manifest::name_within;
use crate::parsed_record::ParsedRecord;
use crate::{Aspect, Error, Problem, ProblemKind, Record, Result};

/// A longer line is not a record; without a bound, a file of zeros would be one that never ends.
const LONGEST_LINE: usize = 64 << 20;

/// Reads preference records, one [`Record`] per line. Blank lines are passed over, and no image is opened: see [`validate`].
///
/// A line is refused if it is not such an object, lacks `id`, `prompt`, `completions` or an `image_path`, has an empty one, names an image
/// twice, or one that is absolute or outside the file's folder, has a rating that is not finite or a rank of 0, or compares an image
/// that is not there, or with itself.
///
/// [`validate`]: crate::validate()
///
/// # Errors
/// A file that cannot be read or holds no record, and every bad line with all that is wrong with it, at once.
pub fn read_records(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    let path = path.as_ref();
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    for ParsedRecord { place, record } in record_lines(path)? {
        let record = record.and_then(|record| record.map_or(Ok(None), |record| checked(record).map(Some)));
        match record {
            Ok(record) => records.extend(record),
            Err(reason) => problems.push(Problem { name: place, kind: ProblemKind::BadRow(reason) }),
        }
    }
    match (problems.is_empty(), records.is_empty()) {
        (false, _) => Err(Error::ProblemsInRecords { path: path.into(), problems, usable: records.len() }),
        (true, true) => Err(Error::NoRecords { path: path.into() }),
        (true, false) => Ok(records),
    }
}

/// Writes preference records so that [`read_records`] reads the same ones back; the file is replaced whole or not at all.
///
/// # Errors
/// Records that [`read_records`] would refuse, all of them at once, and a file that cannot be written.
pub fn write_records(path: impl AsRef<Path>, records: &[Record]) -> Result<()> {
    let path = path.as_ref();
    let refused = |(index, record): (usize, &Record)| {
        let kind = ProblemKind::BadRow(faults(record)?);
        Some(Problem { name: format!("record {} ({})", index + 1, record.id), kind })
    };
    let problems: Vec<Problem> = records.iter().enumerate().filter_map(refused).collect();
    if !problems.is_empty() {
        let usable = records.len() - problems.len();
        return Err(Error::ProblemsInRecords { path: path.into(), problems, usable });
    }
    write_lines(path, records)
}

/// Writes each value as a line of JSON; the file is replaced whole.
pub(crate) fn write_lines<T: serde::Serialize>(path: &Path, values: &[T]) -> Result<()> {
    let write = |file: &mut File| {
        let mut file = BufWriter::new(file);
        for value in values {
            serde_json::to_writer(&mut file, value)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    };
    vp_core::atomic::replace(path, write).map_err(|error| Error::Write { path: path.into(), error })
}

/// The lines of a file as records, one in memory at a time; what the types cannot say is not checked yet.
pub(crate) fn record_lines(path: &Path) -> Result<impl Iterator<Item = ParsedRecord> + use<>> {
    let file = InputFile::open(path).map_err(|error| Error::Read { path: path.into(), error })?;
    Ok(lines(BufReader::new(file), LONGEST_LINE).enumerate().filter_map(|(index, line)| {
        let record = record_of(line, index == 0).transpose()?.map(Some);
        Some(ParsedRecord { place: format!("line {}", index + 1), record })
    }))
}

/// The lines of a file without their ends, up to the first that cannot be read or has more than `longest` bytes.
fn lines(mut file: impl BufRead, longest: usize) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    let mut ended = false;
    std::iter::from_fn(move || {
        let mut line = Vec::new();
        let read = if ended { Ok(0) } else { file.by_ref().take(longest as u64 + 1).read_until(b'\n', &mut line) };
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        // What cannot be read once, such as a failing disk, cannot be read ever after.
        ended = read.is_err() || line.len() > longest;
        match read {
            Ok(0) => None,
            Ok(_) if ended => Some(Err(io::Error::other(format!("it has more than {} MiB", longest >> 20)))),
            Ok(_) => Some(Ok(line)),
            Err(error) => Some(Err(error)),
        }
    })
}

/// The record of a line; none if it is blank.
fn record_of(line: io::Result<Vec<u8>>, is_first: bool) -> Result<Option<Record>, String> {
    let line = line.map_err(|error| format!("cannot be read: {error}"))?;
    let text = str::from_utf8(&line).map_err(|error| format!("not UTF-8 at byte {} of the line", error.valid_up_to()))?;
    let text = if is_first { text.trim_start_matches('\u{feff}') } else { text }.trim();
    if text.is_empty() { Ok(None) } else { parsed(text).map(Some) }
}

/// The record that a line's text is; what the types cannot say is not checked yet.
pub(crate) fn parsed(text: &str) -> Result<Record, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    let record = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (path, inner) = (error.path().to_string(), error.inner());
        match path.as_str() {
            "." => format!("expected a record: {inner}"),
            path => format!("{path}: {inner}"),
        }
    })?;
    json.end().map_err(|error| format!("more after the record: {error}"))?;
    Ok(record)
}

/// The record, or all that is wrong with it.
pub(crate) fn checked(record: Record) -> Result<Record, String> {
    faults(&record).map_or(Ok(record), Err)
}

/// All that is wrong with a record beyond its types.
fn faults(record: &Record) -> Option<String> {
    let mut faults = Vec::new();
    for (name, text) in [("id", &record.id), ("prompt", &record.prompt)] {
        if text.trim().is_empty() {
            faults.push(format!("{name} is empty"));
        }
    }
    if record.completions.is_empty() {
        faults.push("completions is empty: expected at least one image".into());
    }
    let mut names = HashSet::new();
    for (index, completion) in record.completions.iter().enumerate() {
        let written = &completion.image_path;
        match path_within(written) {
            Err(reason) => faults.push(format!("completions[{index}].image_path: {reason}")),
            Ok(name) if !names.insert(name.clone()) => faults.push(format!("completions[{index}].image_path: {written} is named twice")),
            Ok(_) => {}
        }
        for (aspect, rating) in completion.annotations.iter().filter(|(_, rating)| !rating.rating.is_finite()) {
            faults.push(format!("completions[{index}]: its {} is {}, not a finite number", Aspect::name(*aspect), rating.rating));
        }
        if completion.rank == Some(0) {
            faults.push(format!("completions[{index}].rank is 0: ranks count from 1, the best"));
        }
    }
    let images = record.completions.len();
    for (index, [first, second]) in record.comparisons.iter().map(|comparison| comparison.shown).enumerate() {
        if first.max(second) >= images {
            faults.push(format!("comparisons[{index}] shows {first} and {second}, but there are {images} completions, counted from 0"));
        } else if first == second {
            faults.push(format!("comparisons[{index}] compares completion {first} with itself"));
        }
    }
    Some(faults.join("; ")).filter(|faults| !faults.is_empty())
}

/// The path without `.` and `..`, if it stays within the folder.
pub(crate) fn path_within(written: &str) -> Result<String, String> {
    if written.is_empty() {
        return Err("the path is empty".into());
    }
    // What is absolute on one system must be refused on all.
    let drive = written.as_bytes().get(1) == Some(&b':') && written.as_bytes()[0].is_ascii_alphabetic();
    if written.starts_with(['/', '\\']) || drive {
        return Err(format!("{written} is absolute; expected a path relative to the set's folder"));
    }
    let climbs = written.contains('\\') && written.split('\\').any(|part| part == "..");
    name_within(written).filter(|_| !climbs).ok_or_else(|| format!("{written} leads out of the set's folder"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{Completion, Rating};

    fn read(text: &[u8]) -> Result<Vec<Record>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.jsonl");
        std::fs::write(&path, text).unwrap();
        read_records(path)
    }

    fn full() -> Value {
        json!({ "id": "7", "prompt": "a bee", "prompt_raw": "bee", "source": "here", "completions": [
            { "image_path": "in/a.png", "model": "m", "seed": 3, "steps": 30, "guidance_scale": 7.5, "width": 8, "height": 8, "rank": 1,
              "annotations": { "aesthetic": { "rating": 4.5, "rationale": "calm" } } },
            { "image_path": "b.png", "rank": 2, "lens": "50 mm" }],
          "comparisons": [{ "shown": [0, 1], "preferred": "first", "rationale": "sharp" }],
          "annotator": { "name": "judge", "model": "m", "rubric": "rate-1", "repeat": 2 }, "licence": "cc0" })
    }

    #[test]
    fn what_is_written_is_read_back() {
        let records = read(format!("\u{feff}{}\r\n\n", full()).as_bytes()).unwrap();
        assert_eq!(records[0].completions[1].extra["lens"], "50 mm");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        write_records(&path, &records).unwrap();
        assert_eq!(read_records(&path).unwrap(), records);
        assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()).unwrap(), full());
    }

    #[test]
    fn no_required_field_may_be_missing_and_every_field_has_its_type() {
        let (mut lines, mut expected) = (Vec::new(), Vec::new());
        for (pointer, field) in [
            ("", "id"),
            ("", "prompt"),
            ("", "completions"),
            ("/completions/1", "image_path"),
            ("/completions/0/annotations/aesthetic", "rating"),
            ("/comparisons/0", "shown"),
            ("/comparisons/0", "preferred"),
            ("/annotator", "name"),
        ] {
            let mut value = full();
            value.pointer_mut(pointer).unwrap().as_object_mut().unwrap().shift_remove(field).unwrap();
            lines.push(value.to_string());
            expected.push(format!("missing field `{field}`"));
        }
        for pointer in [
            "/id",
            "/prompt",
            "/prompt_raw",
            "/source",
            "/completions",
            "/completions/0",
            "/completions/0/image_path",
            "/completions/0/model",
            "/completions/0/seed",
            "/completions/0/steps",
            "/completions/0/guidance_scale",
            "/completions/0/width",
            "/completions/0/height",
            "/completions/0/rank",
            "/completions/0/annotations",
            "/completions/0/annotations/aesthetic",
            "/completions/0/annotations/aesthetic/rating",
            "/completions/0/annotations/aesthetic/rationale",
            "/comparisons",
            "/comparisons/0/shown",
            "/comparisons/0/preferred",
            "/comparisons/0/rationale",
            "/annotator",
            "/annotator/name",
            "/annotator/model",
            "/annotator/rubric",
            "/annotator/repeat",
        ] {
            let mut value = full();
            *value.pointer_mut(pointer).unwrap() = json!(true);
            lines.push(value.to_string());
            expected.push(pointer[1..].replace("/0", "[0]").replace('/', "."));
        }
        let Err(Error::ProblemsInRecords { problems, usable: 0, .. }) = read(lines.join("\n").as_bytes()) else { panic!("not refused") };
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (index, (problem, expected)) in problems.iter().zip(expected).enumerate() {
            let told = problem.to_string();
            assert!(told.starts_with(&format!("line {}: ", index + 1)) && told.contains(&expected), "{expected:?} is not in {told:?}");
        }
    }

    #[test]
    fn bad_lines_are_all_named_with_all_that_is_wrong() {
        let mut lines = vec![full().to_string(), String::new(), "not json".into(), "[]".into(), format!("{} x", full())];
        for (pointer, value) in [
            ("/id", json!(" ")),
            ("/prompt", json!("")),
            ("/completions", json!([])),
            ("/completions/1/image_path", json!("./in/../in/a.png")),
            ("/completions/1/image_path", json!("/etc/passwd")),
            ("/completions/1/image_path", json!("C:\\a.png")),
            ("/completions/1/image_path", json!("in/../../up.png")),
            ("/completions/1/image_path", json!("in\\..\\..\\up.png")),
            ("/completions/1/image_path", json!("")),
            ("/completions/1/rank", json!(0)),
            ("/comparisons/0/shown", json!([0, 2])),
            ("/comparisons/0/shown", json!([1, 1])),
        ] {
            let mut line = full();
            *line.pointer_mut(pointer).unwrap() = value;
            lines.push(line.to_string());
        }
        lines.push(full().to_string().replace("4.5", "1e999"));
        lines.push(r#"{"id": "", "prompt": "", "completions": []}"#.into());
        let mut bytes = lines.join("\n").into_bytes();
        bytes.extend(b"\n{\"id\": \"\xff\"}\n");
        let Err(error @ Error::ProblemsInRecords { usable: 1, .. }) = read(&bytes) else { panic!("not refused") };
        assert!(error.to_string().contains("records.jsonl: 18 problem(s), 1 usable record(s)\n  line 3: "), "{error}");
        let Error::ProblemsInRecords { problems, .. } = error else { unreachable!() };
        let expected = [
            "line 3: expected a record: expected",
            "line 4: expected a record: ",
            "line 5: more after the record",
            "line 6: id is empty",
            "line 7: prompt is empty",
            "line 8: completions is empty",
            "line 9: completions[1].image_path: ./in/../in/a.png is named twice",
            "line 10: completions[1].image_path: /etc/passwd is absolute",
            "line 11: completions[1].image_path: C:\\a.png is absolute",
            "line 12: completions[1].image_path: in/../../up.png leads out",
            "line 13: completions[1].image_path: in\\..\\..\\up.png leads out",
            "line 14: completions[1].image_path: the path is empty",
            "line 15: completions[1].rank is 0",
            "line 16: comparisons[0] shows 0 and 2, but there are 2 completions",
            "line 17: comparisons[0] compares completion 1 with itself",
            "line 18: completions[0].annotations.aesthetic.rating: number out of range",
            "line 19: id is empty; prompt is empty; completions is empty",
            "line 20: not UTF-8 at byte 8",
        ];
        let told: Vec<String> = problems.iter().map(Problem::to_string).collect();
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.contains(expected), "{told:?} does not hold {expected:?}");
        }
        assert!(matches!(read(b"\n"), Err(Error::NoRecords { .. })));
        assert!(matches!(read_records("nowhere/records.jsonl"), Err(Error::Read { .. })));
    }

    /// A reader that fails as often as it is asked.
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("no more"))
        }
    }

    #[test]
    fn lines_end_at_the_first_that_cannot_be_read() {
        let read =
            |text: &[u8]| lines(BufReader::new(text.chain(Failing)), 4).map(|line| line.map_err(|e| e.to_string())).collect::<Vec<_>>();
        assert_eq!(read(b"one\n\nfour\n"), [Ok(b"one".to_vec()), Ok(b"".to_vec()), Ok(b"four".to_vec()), Err("no more".to_owned())]);
        assert_eq!(read(b"12345\nx\n"), [Err("it has more than 0 MiB".to_owned())]);
        assert_eq!(lines(BufReader::new(&b"a\nb"[..]), 4).map(Result::unwrap).collect::<Vec<_>>(), [b"a", b"b"]);
        let folder = tempfile::tempdir().unwrap();
        let message = read_records(folder.path()).unwrap_err().to_string();
        assert!(message.contains("it is a folder; expected a file"), "{message}");
    }

    #[test]
    fn what_could_not_be_read_is_not_written() {
        let rated = |rating| Completion {
            image_path: "a.png".into(),
            annotations: [(Aspect::Fidelity, Rating { rating, rationale: String::new() })].into(),
            ..Completion::default()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let message = write_records(&path, &[Record::new("1", "a bee", vec![rated(f64::NAN)])]).unwrap_err().to_string();
        assert!(message.contains("record 1 (1): completions[0]: its fidelity is NaN"), "{message}");
        assert!(!path.exists());
        write_records(&path, &[Record::new("1", "a bee", vec![rated(0.1)])]).unwrap();
        assert_eq!(read_records(&path).unwrap()[0].completions[0], rated(0.1));
    }
}
