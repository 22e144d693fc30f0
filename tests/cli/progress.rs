//! What one sees of a run: on the terminal, which here is a pipe, and in TensorBoard.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::util::{files, root, run};

const SHORT: [&str; 5] = [
    "run.num_train_steps=2",
    "scheduler.num_inference_steps=4",
    "algo.refl.min_mid_step=2",
    "algo.refl.max_mid_step=3",
    "preview.num_inference_steps=1",
];

fn train_args<'a>(folder: &'a Path, extra: &[&'a str]) -> Vec<&'a str> {
    let sets = SHORT.iter().flat_map(|set| ["--set", set]);
    ["train", "--config", "configs/refl/tiny.toml", "-o", folder.to_str().unwrap()]
        .into_iter()
        .chain(sets)
        .chain(extra.iter().copied())
        .collect()
}

#[test]
fn a_pipe_gets_a_line_an_update_and_a_summary() {
    let dir = tempfile::tempdir().unwrap();
    let finished = run(&train_args(&dir.path().join("run"), &[])).ok();
    let (stdout, stderr) = (finished.stdout(), finished.stderr());
    let updates: Vec<&str> = stdout.lines().filter(|line| line.starts_with("step ") && line.contains("/2  loss ")).collect();
    assert_eq!(updates.len(), 2, "{stdout}");
    assert!(updates[1].starts_with("step 2/2  loss ") && updates[1].contains("images_per_second"), "{stdout}");
    for text in [&stdout, &stderr] {
        assert!(!text.contains(['\r', '\x1b']), "no cursor is moved in a pipe: {text:?}");
    }
    let lines: Vec<&str> = stdout.lines().collect();
    let head = lines.iter().position(|line| line.split_whitespace().eq(["before", "after", "change"])).expect("a table");
    let cells: Vec<&str> = lines[head + 1].split_whitespace().collect();
    assert!(cells[0] == "vp_score" && cells.len() == 4 && lines[head + 1].len() == lines[head].len(), "{stdout}");
    assert!(lines[head + 4].starts_with("2 updates, 8 images at "), "{stdout}");
}

#[test]
fn quiet_says_what_was_made_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let quiet = run(&train_args(&dir.path().join("run"), &["--quiet"])).ok();
    let stdout = quiet.stdout();
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(
        lines.len() == 3
            && lines[2].ends_with("report.html")
            && lines[0].starts_with("LoRA: ")
            && lines[1].contains(" sample --model ")
            && lines[1].contains(" --lora "),
        "{stdout}"
    );
    assert_eq!(quiet.stderr(), "");
    // A warning is heard.
    let still = run(&train_args(&dir.path().join("still"), &["--quiet", "--set", "optimizer.learning_rate=0"])).ok();
    assert!(still.stderr().starts_with("warning: training changed nothing"), "{}", still.stderr());
}

#[test]
fn a_run_outlives_its_reader() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let mut command = Command::new(env!("CARGO_BIN_EXE_visionprefer"));
    command.current_dir(root()).args(train_args(&output, &[])).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    assert!(output.join("lora.safetensors").is_file());
}

#[test]
fn events_say_what_metrics_say() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    run(&train_args(&output, &["--quiet"])).ok();
    let [path] = files(&output.join("tensorboard")).try_into().expect("one event file");
    let records = records(&std::fs::read(path).unwrap());
    // Two previews, an image each, and two updates, after the version.
    assert_eq!(records.len(), 1 + 2 * 2 + 2);
    let contains = |record: &[u8], text: &str| record.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(contains(&records[0], "brain.Event:2"));
    let metrics = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for line in metrics.lines() {
        let line: BTreeMap<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        for name in line.keys().filter(|name| *name != "step") {
            // A value: its tag (field 1) and its f32 (field 2).
            let mut tagged = vec![0x0a, name.len() as u8];
            tagged.extend(name.as_bytes());
            tagged.push(0x15);
            tagged.extend((line[name].as_f64().unwrap() as f32).to_le_bytes());
            assert!(records.iter().any(|record| record.windows(tagged.len()).any(|window| window == tagged)), "{name} {line:?}");
            *found.entry(name.clone()).or_default() += 1;
        }
    }
    assert_eq!((found["loss"], found["watch/brightness"], found["preview/vp_score"]), (2, 2, 2));
    let images: Vec<_> = records.iter().filter(|record| contains(record, "validation") && contains(record, "IHDR")).collect();
    assert_eq!(images.len(), 2);
}

/// The records of an event file: a length (u64), its CRC, the data, its CRC, all little-endian; checked.
fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let mut take = |count: usize| {
        let (taken, rest) = bytes.split_at_checked(count)?;
        bytes = rest;
        Some(taken)
    };
    while let Some(length) = take(8) {
        let crc = |field: Option<&[u8]>| u32::from_le_bytes(field.unwrap().try_into().unwrap());
        assert_eq!(crc(take(4)), masked_crc32c(length));
        let data = take(u64::from_le_bytes(length.try_into().unwrap()) as usize).expect("a whole record");
        assert_eq!(crc(take(4)), masked_crc32c(data));
        records.push(data.to_vec());
    }
    records
}

/// CRC-32C (Castagnoli), bit by bit, masked as TFRecord does.
fn masked_crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    let crc = !data.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)));
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[test]
fn crc_of_the_standard_check_string() {
    assert_eq!(masked_crc32c(b"123456789"), 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8));
}
