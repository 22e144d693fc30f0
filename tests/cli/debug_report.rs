//! `debug-report`: what is packed, and what must not be.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// A part of every planted secret.
const PLANTED: &str = "s3same";

fn run_in(folder: &Path, args: &[&str]) -> Output {
    let home = folder.join("homes/marie");
    fs::create_dir_all(&home).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_visionprefer"));
    command.current_dir(folder).env("HOME", home).env("USER", "marie").env("HOSTNAME", "workhorse");
    command
        .env("HF_TOKEN", "hf_s3same")
        .env("SOME_API_KEY", "no looks but s3same")
        .env("HTTPS_PROXY", "http://eve:s3same@proxy.lab.example:3128");
    command.env("NO_PROXY", "secretive.lab.example").arg("debug-report").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A run's folder with secrets in every file that is packed, and in some that are not.
fn plant(run: &Path) {
    fs::create_dir_all(run.join("samples")).unwrap();
    let home = run.parent().unwrap().parent().unwrap().join("homes/marie").display().to_string();
    let config = format!(
        "[run]\nnum_train_steps = 7\n[model]\npath = \"{home}/models/sd15\"\n[preview]\nprompts = [\"a fox that nobody may see\"]\n\
         [reward.http]\nurl = \"https://eve:s3same@gpu7.lab.example/score?token=s3same\"\napi_key_env = \"s3same_itself\"\n\
         [annotator.openai]\napi_key = \"s3same\"\nbase_url = \"https://api.openai.com/v1\"\n"
    );
    let provenance = "{\"command\":\"visionprefer train --set 'preview.prompts=[\\\"a fox that nobody may see\\\"]'\",\"hardware\":[[\"machine\",\"workhorse\"]]}";
    let log = "step 1\nAuthorization: Bearer s3same\nasked https://gpu7.lab.example/x as marie at workhorse\nwarning: \"a fox that nobody may see\" is cut\n";
    let files = [
        ("config.toml", config.as_str()),
        ("metrics.jsonl", "{\"step\":1,\"loss\":0.5}\n{\"step\":2,\"loss\":0.25}\n"),
        ("provenance.json", provenance),
        ("failure.txt", "the reward failed: HTTP 401 for sk-s3same-key\n"),
        ("train.log", log),
        ("lora.safetensors", "weights of s3same"),
        ("samples/step-000001.png", "pixels of s3same"),
    ];
    for (name, text) in files {
        fs::write(run.join(name), text).unwrap();
    }
}

/// The packed files by name.
fn unpacked(path: &Path) -> BTreeMap<String, String> {
    let mut archive = zip::ZipArchive::new(fs::File::open(path).unwrap()).unwrap();
    (0..archive.len())
        .map(|index| {
            let mut file = archive.by_index(index).unwrap();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut file, &mut text).unwrap();
            (file.name().unwrap().into_owned(), text)
        })
        .collect()
}

#[test]
fn nothing_planted_is_in_the_packed_bytes() {
    let dir = tempfile::tempdir().unwrap();
    plant(&dir.path().join("runs/mine"));
    let output = run_in(dir.path(), &["-o", "report.zip"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let bytes = text(&fs::read(dir.path().join("report.zip")).unwrap());
    for gone in [PLANTED, "nobody may see", "marie", "workhorse", "lab.example", &dir.path().join("homes").display().to_string()] {
        assert!(!bytes.to_lowercase().contains(&gone.to_lowercase()), "{gone}:\n{bytes}");
    }
    let files = unpacked(&dir.path().join("report.zip"));
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let expected = [
        "doctor.json",
        "doctor.txt",
        "environment.txt",
        "run/config.toml",
        "run/failure.txt",
        "run/files.txt",
        "run/metrics.jsonl",
        "run/provenance.json",
        "run/train.log",
        "versions.txt",
    ];
    assert_eq!(names, expected);
    // What is of use is still there.
    for (name, kept) in [
        ("run/config.toml", "num_train_steps = 7"),
        ("run/config.toml", "~/models/sd15"),
        ("run/config.toml", "https://api.openai.com/v1"),
        ("run/failure.txt", "the reward failed: HTTP 401"),
        ("run/files.txt", "samples/step-000001.png"),
        ("run/metrics.jsonl", "\"loss\":0.25"),
        ("run/train.log", "step 1"),
        ("environment.txt", "HF_TOKEN\n"),
        ("versions.txt", concat!("visionprefer: ", env!("CARGO_PKG_VERSION"))),
        ("doctor.txt", "processor"),
    ] {
        assert!(files[name].contains(kept), "{name}: {kept}: {}", files[name]);
    }
    let objects = files["doctor.json"].lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON is still JSON"));
    assert!(objects.map(|object| object["kind"].clone()).any(|kind| kind == "program"));
    let told = text(&output.stdout);
    assert!(names.iter().all(|name| told.contains(name)), "{told}");
    assert!(told.contains("into report.zip (") && told.contains("Nothing was sent.") && told.contains("runs/mine"), "{told}");
}

#[test]
fn prompts_are_packed_where_they_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("runs/mine");
    plant(&run);
    let output = run_in(dir.path(), &[run.to_str().unwrap(), "--with-prompts", "-o", "report.zip"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let files = unpacked(&dir.path().join("report.zip"));
    for name in ["run/config.toml", "run/train.log", "run/provenance.json"] {
        assert!(files[name].contains("nobody may see") && !files[name].contains(PLANTED), "{name}: {}", files[name]);
    }
}

#[test]
fn without_a_run_the_machine_is_packed_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let output = run_in(dir.path(), &[]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let made: Vec<String> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".zip"))
        .collect();
    let [made] = made.try_into().expect("one archive");
    assert!(made.starts_with("visionprefer-debug-"), "{made}");
    let files = unpacked(&dir.path().join(&made));
    assert!(files.contains_key("doctor.txt") && files.keys().all(|name| !name.starts_with("run/")), "{:?}", files.keys());
    assert!(text(&output.stdout).contains("without a run"), "{}", text(&output.stdout));
}

#[test]
fn what_is_no_run_and_what_is_there_already_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    for (name, found) in [("empty", "it has no config.toml"), ("nowhere", "there is no such folder")] {
        let output = run_in(dir.path(), &[name, "-o", "report.zip"]);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(&format!("{name} does not hold a run ({found})")) && told.contains("the newest one in runs/"), "{told}");
        assert!(!dir.path().join("report.zip").exists());
    }
    fs::write(dir.path().join("report.zip"), "mine").unwrap();
    let output = run_in(dir.path(), &["-o", "report.zip"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--output report.zip: it exists already"), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(dir.path().join("report.zip")).unwrap(), "mine");
}
