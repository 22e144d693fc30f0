//! What is read is shown, not obeyed: control characters, lines without end, panics of readers; and what is not a file is not read for ever.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::scripted_server::{ScriptedServer, completion};
use crate::util::{root, run};

/// Clears the screen, moves to its corner, writes, and hides what follows; the last turns the line around.
const NAME: &str = "\u{1b}[2J\u{1b}[1;1Hall is well\u{1b}[8m\u{9b}0m\u{202e}";
const ESCAPED: &str = "\\u{1b}[2J\\u{1b}[1;1Hall is well\\u{1b}[8m\\u{9b}0m\\u{202e}";

fn assert_plain(text: &str) {
    assert!(!text.chars().any(|c| (c.is_control() && !"\n\t".contains(c)) || c == '\u{202e}'), "{text:?}");
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

#[test]
fn names_of_files_are_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = path(dir.path(), "metadata.jsonl");
    fs::write(&manifest, json!({ "file_name": NAME, "text": "x" }).to_string()).unwrap();
    let score = ["score", "-r", "brightness", "--manifest", &manifest];
    let refused = run(&score).refused();
    let found = run(&["dataset", "validate", dir.path().to_str().unwrap()]);
    for told in [&refused, &found.stdout()] {
        assert_plain(told);
        assert!(told.contains(ESCAPED), "{told:?}");
    }
    // A name that is there, and a prompt.
    let image = path(dir.path(), "\u{1b}[1m.png");
    vp_data::RgbImage::from_pixel(8, 8, image::Rgb([9, 9, 9])).save(&image).unwrap();
    fs::write(&manifest, json!({ "file_name": "\u{1b}[1m.png", "text": NAME }).to_string()).unwrap();
    let table = run(&score).ok().stdout();
    assert_plain(&table);
    assert!(table.contains(ESCAPED) && table.contains("\\u{1b}[1m.png"), "{table:?}");
    // JSON is escaped as JSON is, and means the same.
    let line = run(&[&score[..], &["--json"]].concat()).ok().stdout();
    assert_plain(&line);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["prompt"], NAME);
}

#[test]
fn names_of_tensors_are_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let (lora, out) = (path(dir.path(), "lora.safetensors"), path(dir.path(), "out"));
    let header = json!({ format!("{NAME}.lora_A.weight"): { "dtype": "F32", "shape": [1], "data_offsets": [0, 4] } }).to_string();
    fs::write(&lora, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat()).unwrap();
    let line = run(&["sample", "--lora", &lora, "-p", "x", "--steps", "1", "-o", &out]).refused();
    assert_plain(&line);
    assert!(line.contains(ESCAPED), "{line:?}");
}

#[test]
fn no_line_shows_more_than_a_part_of_a_long_value() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x".repeat(90_000);
    let file = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        path(dir.path(), name)
    };
    let out = path(dir.path(), "out");
    let prompts = |file: &str| run(&["annotate", "-a", "judge", "--dry-run", "-o", &out, "--prompts", file]).refused();
    let train = |file: &str, more: &[&str]| run(&[&["train", "--dry-run", "-o", &out, "--config", file], more].concat()).refused();
    let config = root().join("configs/sft/tiny.toml");
    let seed = file("c.toml", &format!("[run]\nseed = \"{long}\"\n"));
    for (told, expected) in [
        (prompts(&file("p.tsv", &format!("{long}\na\n"))), "p.tsv, line 1: expected a header with a column named Prompt"),
        (prompts(&file("p.jsonl", &json!({ long.clone(): 1 }).to_string())), "p.jsonl, line 1: expected a key named prompt"),
        (train(&seed, &[]), "line 2, column 8"),
        (train(&file("d.toml", &format!("{long} = 3\n")), &[]), "line 1, column 1"),
        (train(config.to_str().unwrap(), &["--set", &format!("run.seed={long}")]), "--set run.seed=xxx"),
        (run(&["score", "-r", &long, "--manifest", &seed]).refused(), "xxx"),
    ] {
        assert!(told.contains(expected) && told.contains('…'), "{expected}: {told:.600}");
        assert!(told.lines().all(|line| line.chars().count() <= 500) && told.len() < 2000, "{expected}: {} bytes", told.len());
    }
}

#[test]
fn a_reader_that_panics_is_not_heard() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(root().join("crates/data/tests/fixtures/pick_a_pic.parquet")).unwrap();
    // In the header of the first page.
    bytes[14] = 4;
    let set = path(dir.path(), "set.parquet");
    fs::write(&set, bytes).unwrap();
    let out = path(dir.path(), "out");
    for args in [
        &["dataset", "validate", &set][..],
        &["dataset", "stats", &set],
        &["dataset", "convert", &set, "--to", "records", "-o", &out],
        &["dataset", "agreement", &set],
    ] {
        let found = run(args);
        let told = found.stdout() + &found.stderr();
        assert!(told.contains("it is damaged") || told.contains("column"), "{args:?}: {told}");
        assert!(!told.contains("panicked") && !told.contains("backtrace"), "{args:?}: {told}");
    }
}

#[test]
fn folders_are_not_read_as_files() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    for args in [&["dataset", "split", folder][..], &["train", "--dry-run", "--config", folder]] {
        let line = run(args).refused();
        assert!(line.contains(folder) && line.contains("it is a folder; expected a file"), "{args:?}: {line}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn devices_without_end_are_read_up_to_a_bound() {
    for args in [
        &["dataset", "split", "/dev/zero"][..],
        &["dataset", "validate", "/dev/zero"],
        &["train", "--dry-run", "--config", "/dev/zero"],
        &["score", "-r", "brightness", "--manifest", "/dev/zero"],
        &["annotate", "-a", "replay", "--set", "annotator.replay.records=/dev/zero", "--records", "Cargo.toml", "-o", "target/none"],
    ] {
        let line = run(args).refused();
        assert!(line.contains("MiB") || line.contains("a device or a pipe"), "{args:?}: {line}");
    }
}

#[test]
fn another_choice_by_set() {
    let dir = tempfile::tempdir().unwrap();
    let out = path(dir.path(), "out");
    let train = |flags: &[&str]| {
        let flags: Vec<&str> = flags.iter().flat_map(|flag| ["--set", *flag]).collect();
        run(&[&["train", "--algo", "refl", "--dry-run", "-o", &out], &flags[..]].concat())
    };
    train(&["reward.saturation={}"]).ok();
    train(&["lr_scheduler.cosine.num_warmup_steps=1", "run.seed=3"]).ok();
    let line = train(&["run.seed=3", "lr_scheduler.cosin.num_warmup_steps=2"]).refused();
    assert!(line.starts_with("error: --set lr_scheduler.cosin.num_warmup_steps=2: ") && line.contains("unknown variant"), "{line}");
    assert!(line.contains("did you mean `cosine`?"), "{line}");
    let args = ["annotate", "-a", "replay", "--set", "annotator.replay.records=[\"a.jsonl\"]", "--records", ".", "-o", &out];
    let line = run(&args).refused();
    assert!(line.contains("annotator.replay.records: expected a path, found a list"), "{line}");
}

#[test]
fn a_reply_is_read_to_no_great_depth() {
    let dir = tempfile::tempdir().unwrap();
    vp_data::RgbImage::from_pixel(8, 6, image::Rgb([200, 0, 0])).save(dir.path().join("a.png")).unwrap();
    let records = path(dir.path(), "records.jsonl");
    fs::write(&records, json!({ "id": "1", "prompt": "red", "completions": [{ "image_path": "a.png" }] }).to_string()).unwrap();
    for content in ["[".repeat(200_000), "{\"a\":".repeat(100_000)] {
        let server = ScriptedServer::saying(vec![completion(json!({ "content": content }))]);
        let base_url = format!("annotator.openai.base_url=\"{}/v1\"", server.address);
        let out = path(dir.path(), &format!("out{}", content.len()));
        let args = ["annotate", "-a", "openai", "--set", "annotator.openai.model=m", "--set", &base_url, "--records", &records, "-o", &out];
        let found = run(&args).ok();
        assert!(found.stderr().contains("set aside") && found.stderr().len() < 2000, "{}", found.stderr());
    }
}
