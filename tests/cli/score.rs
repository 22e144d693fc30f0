//! `score`.

use std::path::{Path, PathBuf};

use serde_json::Value;
use vp_data::{RgbImage, write_png};

use crate::util::run;

const REWARD: &str = "tests/golden/blip_reward_tiny/model";

/// A folder with pictures of three sizes and brightnesses, `a.png` the darkest.
fn pictures() -> (tempfile::TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let picture = |(name, size, level): (&str, (u32, u32), u8)| {
        let path = dir.path().join(name);
        let image = RgbImage::from_fn(size.0, size.1, |x, y| [level, level + (x % 7) as u8, level + (y % 5) as u8].into());
        write_png::<&str, &str>(&path, &image, &[]).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let paths = [("a.png", (40, 50), 10), ("b.png", (64, 64), 200), ("c.png", (30, 20), 100)].map(picture);
    (dir, paths.to_vec())
}

fn json(args: &[&str]) -> Vec<Value> {
    let stdout = run(&[args, &["--json"]].concat()).ok().stdout();
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_table_and_the_json_agree() {
    let (_dir, paths) = pictures();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let args = [&["score", "--reward", "brightness", "-r", REWARD, "-p", "a red fox"], &paths[..]].concat();
    let objects = json(&args);
    assert_eq!(objects.len(), 6);
    let score = |file: &str, reward: &str| {
        let mut found = objects.iter().filter(|object| object["file"] == file && object["reward"] == reward);
        let object = found.next().unwrap_or_else(|| panic!("no {reward} of {file}"));
        assert!(found.next().is_none() && object["prompt"] == "a red fox", "{object}");
        object["score"].as_f64().unwrap()
    };
    let table = run(&args).ok().stdout();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[..2], [vec!["a", "red", "fox"], vec!["rank", "brightness", "model", "file"]]);
    for (rank, path) in [(1, paths[1]), (2, paths[2]), (3, paths[0])] {
        let scores = ["brightness", REWARD].map(|reward| format!("{:.4}", score(path, reward)));
        assert_eq!(lines[1 + rank], [&rank.to_string(), &scores[0], &scores[1], path], "{table}");
    }
    let mean = |reward: &str| format!("{:.4}", paths.iter().map(|path| score(path, reward)).sum::<f64>() / 3.0);
    assert_eq!(lines[6], ["mean", &mean("brightness"), &mean(REWARD), "3", "images"], "{table}");
}

#[test]
fn scores_do_not_depend_on_the_batch() {
    let (_dir, paths) = pictures();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let args = [&["score", "-r", REWARD, "-p", "a red fox"], &paths[..]].concat();
    let (together, alone) = (json(&args), json(&[&args[..], &["--batch-size", "1"]].concat()));
    assert_eq!(together.len(), 3);
    for (a, b) in together.iter().zip(&alone) {
        assert_eq!(a["file"], b["file"]);
        assert!((a["score"].as_f64().unwrap() - b["score"].as_f64().unwrap()).abs() < 1e-4, "{a} {b}");
    }
}

fn manifest(dir: &Path, lines: &[&str]) -> PathBuf {
    let path = dir.join("metadata.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[test]
fn a_manifest_has_a_prompt_for_each_image() {
    let (dir, paths) = pictures();
    let list = manifest(
        dir.path(),
        &[
            r#"{"file_name": "a.png", "text": "a fox"}"#,
            r#"{"file_name": "./b.png", "caption": "the sea"}"#,
            r#"{"file_name": "c.png", "prompt": "a fox"}"#,
        ],
    );
    let args = ["score", "--reward", REWARD, "--manifest", list.to_str().unwrap()];
    let objects = json(&args);
    let named: Vec<_> = objects.iter().map(|object| (object["file"].as_str().unwrap(), object["prompt"].as_str().unwrap())).collect();
    assert_eq!(named, [("a.png", "a fox"), ("b.png", "the sea"), ("c.png", "a fox")]);
    // The prompt counts: the same file scores the same with -p, and otherwise with another.
    let with = |prompt: &str| json(&["score", "--reward", REWARD, "-p", prompt, &paths[1]])[0]["score"].as_f64().unwrap();
    let sea = objects[1]["score"].as_f64().unwrap();
    assert!((with("the sea") - sea).abs() < 1e-4 && (with("a fox") - sea).abs() > 1e-3);
    // Ranks begin anew with each prompt.
    let table = run(&args).ok().stdout();
    let ranks: Vec<_> = table.lines().filter_map(|line| line.split_whitespace().next()?.parse::<usize>().ok()).collect();
    assert_eq!(ranks, [1, 2, 1], "{table}");
}

#[test]
fn a_prompt_that_is_cut_is_named_by_its_image() {
    let (_dir, paths) = pictures();
    let long = "fox ".repeat(40) + "last";
    let stderr = run(&["score", "--reward", REWARD, "-p", &long, &paths[0], &paths[1]]).ok().stderr();
    assert!(stderr.contains("a.png: vp_score reads 35 tokens") && stderr.contains("last"), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn what_cannot_be_scored_is_refused_by_name() {
    let (dir, paths) = pictures();
    let refused = |extra: &[&str], expected: &[&str]| {
        let finished = run(&[&["score"], extra].concat());
        assert_eq!(finished.stdout(), "", "{extra:?}");
        let message = finished.refused();
        for expected in expected {
            assert!(message.contains(expected), "{extra:?}: expected {expected:?} in: {message}");
        }
    };
    let image = paths[0].as_str();
    refused(&["-r", "brightnes", "-p", "x", image], &["--reward brightnes", "did you mean `brightness`?"]);
    refused(&["-r", "vp_score", "-p", "x", image], &["--reward vp_score", "needs weights"]);
    refused(&["-r", "weighted_sum", "-p", "x", image], &["--reward weighted_sum", "[reward.weighted_sum]", "`terms`"]);
    refused(
        &["-r", "nothing", "-p", "x", image],
        &["known: brightness, saturation, jpeg_compressibility, jpeg_incompressibility, judge; or the"],
    );
    refused(&["-r", "no/such/ImageReward", "-p", "x", image], &["there is no file or folder no/such/ImageReward"]);
    refused(&["-r", "docs", "-p", "x", image], &["docs: no weights found"]);
    refused(&["-r", "brightness", "-r", "brightness", "-p", "x", image], &["given twice"]);
    refused(&["-r", "brightness", "--batch-size", "0", "-p", "x", image], &["--batch-size"]);
    refused(&["-r", "brightness", "-p", "x"], &["IMAGE"]);
    refused(&["-r", "brightness", image], &["--prompt"]);
    refused(&["-p", "x", image], &["--reward"]);
    refused(&["-r", "brightness", "--manifest", "no-such.jsonl", image], &["--manifest"]);
    refused(&["-r", "brightness", "--manifest", "no-such.jsonl"], &["no-such.jsonl"]);

    // A cut image among good ones: nothing is scored.
    let cut = dir.path().join("cut.png");
    let bytes = std::fs::read(image).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    refused(&["-r", "brightness", "-p", "x", image, cut.to_str().unwrap(), "gone.png"], &["2 of 3", "cut.png: ", "gone.png: "]);

    let list = |lines: &[&str]| manifest(dir.path(), lines).to_str().unwrap().to_owned();
    let outside = list(&[r#"{"file_name": "a.png", "text": "x"}"#, r#"{"file_name": "../a.png", "text": "x"}"#]);
    refused(&["-r", "brightness", "--manifest", &outside], &["metadata.jsonl", "line 2: ../a.png leads out"]);
    let silent = list(&[r#"{"file_name": "a.png"}"#]);
    refused(&["-r", "brightness", "--manifest", &silent], &["line 1: a.png has no text"]);
    let missing = list(&[r#"{"file_name": "z.png", "text": "x"}"#]);
    refused(&["-r", "brightness", "--manifest", &missing], &["z.png"]);
    refused(&["-r", "brightness", "--manifest", &list(&[])], &["names no image"]);
}

/// Told by the names of its tensors: an open_clip checkpoint, and an MLP on a CLIP's features.
#[test]
fn a_published_reward_is_scored_or_answered_with_what_it_lacks() {
    let (_dir, paths) = pictures();
    let score = |reward: &str| run(&["score", "-r", reward, "-p", "a fox", &paths[0], "--json"]);
    for reward in
        ["hpsv2_tiny/HPS_v2.1_compressed.pt", "openclip_tiny/model", "aesthetic_tiny/imscore.safetensors", "cyclereward_tiny/model"]
    {
        assert!(score(&format!("tests/golden/{reward}")).ok().stdout().contains("\"score\":"), "{reward}");
    }
    let dir = tempfile::tempdir().unwrap();
    for (case, file, lacks) in [
        ("hpsv2_tiny", "HPS_v2.1_compressed.pt", "there is no tokenizer beside"),
        ("aesthetic_tiny", "sac+logos+ava1-l14-linearMSE.pth", "set reward.aesthetic.clip to the folder of openai/clip-vit-large-patch14"),
    ] {
        let copy = dir.path().join(file);
        std::fs::copy(format!("tests/golden/{case}/{file}"), &copy).unwrap();
        let message = score(copy.to_str().unwrap()).refused();
        assert!(message.contains(lacks) && message.trim_end().lines().count() == 1, "{message}");
    }
}
