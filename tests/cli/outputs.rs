//! What is written is finite, whole, and where it was meant to be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use vp_core::folder_lock::FolderLock;

use crate::crash::overwrite;
use crate::util::{MODEL, copy_dir, files, root, run};

/// Runs the binary in `folder`, with a cache of its own.
fn run_in(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_visionprefer"));
    command.current_dir(folder).env("XDG_CACHE_HOME", folder.join("cache")).args(args).output().expect("the binary runs")
}

fn ok(folder: &Path, args: &[&str]) -> Output {
    let output = run_in(folder, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    output
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The names in a folder, hidden ones too, sorted.
fn names(folder: &Path) -> Vec<String> {
    files(folder).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn model() -> String {
    root().join(MODEL).display().to_string()
}

#[cfg(unix)]
#[test]
fn a_link_keeps_pointing_a_pipe_stays_a_pipe_and_a_full_device_is_told() {
    use std::os::unix::fs::{FileTypeExt, symlink};

    let dir = tempfile::tempdir().unwrap();
    let [pipe, link, full] = ["pipe", "link", "full"].map(|name| dir.path().join(name));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    symlink("real.safetensors", &link).unwrap();
    symlink("/dev/full", &full).unwrap();
    let model = model();
    let save = |name: &str| {
        run_in(dir.path(), &["sample", "--model", &model, "-p", "a circle", "--steps", "1", "-o", "out", "--save-latents", name])
    };
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read(pipe).unwrap()
    });
    for name in ["link", "pipe"] {
        let output = save(name);
        assert!(output.status.success(), "{name}: {}", stderr(&output));
    }
    let through = reader.join().unwrap();
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("real.safetensors"));
    assert!(!through.is_empty() && fs::read(dir.path().join("real.safetensors")).unwrap() == through);
    let refused = save("full");
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("No space left"), "{}", stderr(&refused));
    assert_eq!(fs::read_link(&full).unwrap(), Path::new("/dev/full"));
    let written = run_in(dir.path(), &["init", "refl", "-o", "/dev/stdout"]);
    assert!(written.status.success() && String::from_utf8_lossy(&written.stdout).contains("[algo.refl]"), "{}", stderr(&written));
}

#[test]
fn a_value_that_cannot_be_held_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    copy_dir(&root().join(MODEL), &model);
    let lora = root().join("tests/golden/rl_sd15_tiny/kohya_lora.safetensors").display().to_string();
    let merge = ["--merge", "--lora", &lora];
    let export = |how: &[&str], value: f32, file: &str, name: &str, code: i32| {
        copy_dir(&root().join(MODEL), &model);
        overwrite(&model.join(file), name, value);
        let refused = run_in(dir.path(), &[&["export", "--model", "model", "-o", "exported"], how].concat());
        assert_eq!(refused.status.code(), Some(code), "{}", stderr(&refused));
        assert_eq!(names(dir.path()), ["model"], "{}", stderr(&refused));
        stderr(&refused)
    };
    let (unet, vae) = ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors");
    let said = export(&["--half"], 1e6, unet, "conv_in.weight", 1);
    assert!(said.contains(&format!("exported/{unet}: conv_in.weight holds 1000000, and half precision ends at 65504")), "{said}");
    let said = export(&merge, f32::INFINITY, unet, "conv_in.weight", 2);
    assert!(said.contains("conv_in.weight holds inf"), "{said}");
    // Of a component that is copied too.
    let said = export(&merge, f32::NAN, vae, "decoder.conv_in.bias", 2);
    assert!(said.contains("decoder.conv_in.bias holds NaN"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_an_error_and_a_closed_pipe_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let shell = |line: &str| {
        let line = line.replace("visionprefer", env!("CARGO_BIN_EXE_visionprefer"));
        Command::new("sh").current_dir(dir.path()).args(["-c", &line]).output().unwrap()
    };
    let shapes = "visionprefer dataset shapes --out shapes --n 1";
    let short = ["visionprefer init refl", "visionprefer list", "visionprefer completions bash", "visionprefer man"];
    for line in [&short[..], &["visionprefer --help", "visionprefer --version", shapes]].concat() {
        let output = shell(&format!("{line} > /dev/full"));
        assert_eq!(output.status.code(), Some(1), "{line}");
        let told = stderr(&output);
        assert!(told.contains("cannot write to standard output: No space left on device"), "{line}: {told}");
    }
    // The work itself was done.
    assert!(dir.path().join("shapes/metadata.jsonl").is_file());
    for line in ["visionprefer list", "visionprefer --help", "visionprefer dataset shapes --out others --n 1"] {
        let output = shell(&format!("{line} >&-"));
        assert_eq!(output.status.code(), Some(1), "{line}");
        let told = stderr(&output);
        assert!(told.contains("cannot write to standard output: it is closed"), "{line}: {told}");
    }
    assert!(dir.path().join("others/metadata.jsonl").is_file());
    // What a shell and what Python open for those who want to hear nothing.
    for nowhere in ["> /dev/null", "1<> /dev/null"] {
        let output = shell(&format!("visionprefer list {nowhere}"));
        assert!(output.status.success(), "{nowhere}: {}", stderr(&output));
    }
    for line in short {
        let closed = shell(&format!("({line}; echo $? >&2) | true"));
        assert_eq!(stderr(&closed), "0\n", "{line}");
    }
}

#[test]
fn the_embedded_model_is_put_right_where_its_copy_was_changed() {
    let dir = tempfile::tempdir().unwrap();
    let draw = |output: &str| ok(dir.path(), &["sample", "-p", "a red circle", "--steps", "2", "-o", output]);
    draw("a");
    let [copy] = &files(&dir.path().join("cache/visionprefer"))[..] else { panic!("one folder") };
    let weights = copy.join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    bytes[200_000..200_004].copy_from_slice(b"XXXX");
    fs::write(&weights, bytes).unwrap();
    let told = stderr(&draw("b"));
    assert!(told.contains("diffusion_pytorch_model.safetensors") && told.contains("written anew"), "{told}");
    let [a, b] = ["a", "b"].map(|output| fs::read(dir.path().join(output).join("00000-0.png")).unwrap());
    assert!(a == b, "another image");
    assert_eq!(stderr(&draw("c")), "");
}

/// Leaves what a killed process leaves: a file, and a folder with a file in it.
fn plant(folder: &Path, name: &str) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join(format!(".{name}.tmp-4194304-0")), "half").unwrap();
    fs::create_dir_all(folder.join(format!(".{name}.tmp-4194304-1/unet"))).unwrap();
}

/// What is under a temporary name anywhere below a folder.
fn leftovers(folder: &Path) -> Vec<PathBuf> {
    let (folders, rest): (Vec<PathBuf>, Vec<PathBuf>) = files(folder).into_iter().partition(|path| path.is_dir());
    let is_leftover = |path: &&PathBuf| path.to_string_lossy().contains(".tmp-");
    let mut found: Vec<PathBuf> = folders.iter().chain(&rest).filter(is_leftover).cloned().collect();
    found.extend(folders.iter().filter(|folder| !is_leftover(folder)).flat_map(|folder| leftovers(folder)));
    found
}

#[test]
fn an_annotation_and_an_evaluation_have_one_writer() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    fs::write(here.join("p.txt"), "a red circle\n").unwrap();
    ok(here, &["dataset", "shapes", "--out", "cand", "--n", "2", "--per-caption", "2"]);
    let evaluate = ["evaluate", "--tuned", "embedded:shapes", "--prompts", "p.txt", "-r", "brightness", "--steps", "1", "-o", "e"];
    let annotate = ["annotate", "-a", "judge", "--records", "cand/records.jsonl", "-o", "rated"];
    for (args, folder) in [(&evaluate[..], "e"), (&annotate, "rated")] {
        let writer = FolderLock::take(&here.join(folder), "").unwrap();
        let output = run_in(here, args);
        let told = format!("error: {folder} is being written by process {}; ", std::process::id());
        assert!(output.status.code() == Some(2) && stderr(&output).starts_with(&told), "{}", stderr(&output));
        drop(writer);
        ok(here, args);
        assert!(!here.join(folder).join(".lock").exists());
    }
    // Several machines share an evaluation, each with its own part.
    let half = [&evaluate[..], &["--shard", "1/2"]].concat();
    let _writer = FolderLock::take(&here.join("e"), "2-of-2").unwrap();
    ok(here, &half);
}

#[test]
fn the_next_command_removes_what_a_killed_one_left() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    fs::write(here.join("p.txt"), "a red circle\n").unwrap();
    plant(here, "exported");
    plant(here, "lora.safetensors");
    plant(&here.join("drawn"), "00003-3.png");
    plant(&here.join("cache/visionprefer"), "shapes-0123");
    ok(here, &["sample", "-p", "a circle", "--steps", "1", "-o", "drawn"]);
    ok(here, &["export", "--model", &model(), "--half", "-o", "exported"]);
    // A name that nobody writes again is not ours to remove.
    assert_eq!(leftovers(here), [0, 1].map(|number| here.join(format!(".lora.safetensors.tmp-4194304-{}", 1 - number))));
    let shapes = ["dataset", "shapes", "--out", "cand", "--n", "2", "--per-caption", "2"];
    let evaluate = ["evaluate", "--tuned", "embedded:shapes", "--prompts", "p.txt", "-r", "brightness", "--steps", "1", "-o", "e"];
    let annotate = ["annotate", "-a", "judge", "--records", "cand/records.jsonl", "-o", "rated"];
    for (args, images) in [(&shapes[..], "cand"), (&evaluate, "e/images"), (&annotate, "rated/images")] {
        ok(here, args);
        plant(&here.join(images), "0-000000-9.png");
        ok(here, args);
        assert_eq!(names(&here.join(images)).iter().filter(|name| name.contains(".tmp-")).count(), 0, "{images}");
    }
}

#[test]
fn a_killed_conversion_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    ok(here, &["dataset", "shapes", "--out", "cand", "--n", "2", "--per-caption", "3"]);
    ok(here, &["dataset", "convert", "cand", "-o", "whole"]);
    assert_eq!(names(&here.join("whole")), ["images", "records.jsonl"]);
    let records = fs::read(here.join("whole/records.jsonl")).unwrap();
    // Killed while images were copied, and between their move and that of the records.
    for moved in [&[][..], &["images"], &["images", "records.jsonl"]] {
        let output = here.join(format!("killed-{}", moved.len()));
        fs::create_dir_all(output.join(".conversion.tmp-4194304-0/images")).unwrap();
        for name in moved.iter().map(|name| output.join(name)) {
            fs::create_dir_all(&name).unwrap();
        }
        ok(here, &["dataset", "convert", "cand", "-o", output.to_str().unwrap()]);
        assert_eq!(names(&output), ["images", "records.jsonl"]);
        assert!(fs::read(output.join("records.jsonl")).unwrap() == records);
        assert_eq!(names(&output.join("images")).len(), 6);
    }
    // What is somebody's own stays.
    fs::write(here.join("killed-0/notes.txt"), "mine").unwrap();
    fs::create_dir(here.join("killed-0/.conversion.tmp-4194304-0")).unwrap();
    let refused =
        run(&["dataset", "convert", &here.join("cand").display().to_string(), "-o", &here.join("killed-0").display().to_string()]);
    assert!(refused.refused().contains("is not empty"));
    assert!(here.join("killed-0/notes.txt").is_file() && here.join("killed-0/records.jsonl").is_file());
}
