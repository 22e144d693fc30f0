//! Everything that loses people's work elsewhere: kills, signals, full disks, flipped bits, poisoned weights.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[cfg(unix)]
use crate::util::signal;
use crate::util::{MODEL, copy_dir, files, root, run};

/// A small run that saves often: two micro-batches an update.
const SMALL: [&str; 9] = [
    "run.num_train_steps=6",
    "scheduler.num_inference_steps=4",
    "algo.refl.min_mid_step=2",
    "algo.refl.max_mid_step=3",
    "algo.refl.batch_size=1",
    "optimizer.gradient_accumulation_steps=2",
    "preview.num_inference_steps=1",
    "preview.seeds=[1]",
    "checkpoint.every=1",
];

fn args<'a>(output: &'a Path, extra: &[&'a str]) -> Vec<&'a str> {
    let sets = SMALL.into_iter().flat_map(|set| ["--set", set]);
    ["train", "--config", "configs/refl/tiny.toml"].into_iter().chain(sets).chain(extra.iter().copied()).chain(path_args(output)).collect()
}

fn path_args(output: &Path) -> [&str; 2] {
    ["-o", output.to_str().unwrap()]
}

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_visionprefer"));
    command.current_dir(root()).args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs")
}

/// The weights of the newest checkpoint, and the metrics less the times.
fn result(run: &Path) -> (Vec<u8>, Vec<String>) {
    let newest = files(&run.join("checkpoints")).pop().expect("a checkpoint");
    assert!(newest.ends_with("step-000006"), "{newest:?}");
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| line.split(",\"images_per_second\"").next().unwrap().to_string());
    (std::fs::read(newest.join("weights.safetensors")).unwrap(), lines.collect())
}

fn checkpoints(run: &Path) -> Vec<String> {
    files(&run.join("checkpoints")).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

/// A fixed stream of delays between nothing and a little more than a whole run, however fast the machine.
fn delays(whole_run: Duration) -> impl Iterator<Item = Duration> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    std::iter::from_fn(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        Some(whole_run.mul_f64((state % 1000) as f64 / 900.0))
    })
}

/// Fifty kills at scattered moments: every time the run goes on, and it ends as the undisturbed one.
#[test]
fn kill_9_at_50_moments_loses_nothing_but_time() {
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = dir.path().join("undisturbed");
    let began = Instant::now();
    run(&args(&undisturbed, &[])).ok();
    let (mut kills, mut attempt, mut delays) = (0, 0, delays(began.elapsed()));
    let expected = result(&undisturbed);
    while kills < 50 {
        let disturbed = dir.path().join(format!("disturbed-{attempt}"));
        attempt += 1;
        let mut starts = 0;
        loop {
            starts += 1;
            assert!(starts <= 60, "run {attempt} does not come to its end");
            let before = checkpoints(&disturbed).into_iter().filter(|name| !name.starts_with('.')).max();
            let mut child = start(&args(&disturbed, &["--resume", "auto"]));
            let delay = delays.next().unwrap();
            let waited = Instant::now();
            let finished = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break Some(status);
                }
                if waited.elapsed() >= delay {
                    break None;
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            if let Some(status) = finished {
                let mut stderr = String::new();
                std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
                assert!(status.success(), "{stderr}");
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            // Nothing that was saved is lost.
            let after = checkpoints(&disturbed).into_iter().filter(|name| !name.starts_with('.')).max();
            assert!(after >= before, "{before:?} before, {after:?} after");
        }
        assert_eq!(result(&disturbed), expected, "run {attempt} ended elsewhere");
    }
}

/// The first signal finishes the batch, saves and exits 130, 143 or 129; resuming ends as the undisturbed run.
#[cfg(unix)]
#[test]
fn a_signal_saves_and_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = dir.path().join("undisturbed");
    run(&args(&undisturbed, &[])).ok();
    for (name, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let output = dir.path().join(name);
        let mut child = start(&args(&output, &[]));
        wait_for_a_checkpoint(&output);
        signal(&child, name);
        let status = child.wait().unwrap();
        let mut stderr = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
        // The signal comes after the first of six saves, updates before the end.
        assert_eq!(status.code(), Some(code), "{name}; under nohup, which ignores SIGHUP, this test fails: {stderr}");
        assert!(stderr.contains("stopped by signal") && stderr.contains("saved to"), "{stderr}");
        let report = std::fs::read_to_string(output.join("report.json")).unwrap();
        assert!(report.contains("updates.") && output.join("report.html").is_file(), "{report}");
        run(&["train", "--resume", output.to_str().unwrap()]).ok();
        assert_eq!(result(&output), result(&undisturbed));
    }
}

#[cfg(unix)]
fn wait_for_a_checkpoint(run: &Path) {
    let began = Instant::now();
    while checkpoints(run).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(30), "no checkpoint appears");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `nohup` starts a process that ignores SIGHUP.
#[cfg(unix)]
#[test]
fn a_hangup_that_is_ignored_from_the_start_stays_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_visionprefer")]).args(args(&output, &["-q"]));
    let mut child = command.current_dir(root()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_a_checkpoint(&output);
    signal(&child, "-HUP");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    result(&output);
}

/// Two who train into one folder would write over each other's checkpoints.
#[cfg(unix)]
#[test]
fn a_run_that_somebody_is_writing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let mut child = start(&args(&output, &["--set", "run.num_train_steps=200"]));
    wait_for_a_checkpoint(&output);
    let written = std::fs::read_to_string(output.join("config.toml")).unwrap();
    let path = output.to_str().unwrap();
    for second in [args(&output, &[]), vec!["train", "--resume", path], vec!["train", "--resume", path, "--set", "run.num_train_steps=300"]]
    {
        let told = run(&second).refused();
        assert!(told.contains(&format!("is being written by process {}; wait for it to end", child.id())), "{told}");
    }
    assert_eq!(std::fs::read_to_string(output.join("config.toml")).unwrap(), written);
    child.kill().unwrap();
    child.wait().unwrap();
    // What holds the lock is the process, not its file.
    assert!(output.join(".lock").exists());
    run(&["train", "--resume", path, "--dry-run"]).ok();
    run(&["report", path]).ok();
}

/// The second signal ends the process at once; what was saved before stays valid.
#[cfg(unix)]
#[test]
fn a_second_signal_does_not_wait() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    // A batch of seconds, so that both signals come within one on any machine.
    let long = ["scheduler.num_inference_steps=150", "algo.refl.min_mid_step=148", "algo.refl.max_mid_step=149"];
    let long: Vec<&str> = long.into_iter().flat_map(|set| ["--set", set]).collect();
    let mut child = start(&args(&output, &[long.as_slice(), &["--set", "optimizer.gradient_accumulation_steps=1"]].concat()));
    let began = Instant::now();
    while checkpoints(&output).iter().all(|name| name.starts_with('.')) {
        assert!(began.elapsed() < Duration::from_secs(120), "no checkpoint appears");
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&child, "-TERM");
    // Signals that arrive together count once.
    while child.try_wait().unwrap().is_none() {
        signal(&child, "-TERM");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    // At the end of the batch it would have saved, said so, and ended with the same code.
    assert!(!stderr.contains("stopped by signal"), "{stderr}");
    let finished = run(&["train", "--resume", output.to_str().unwrap(), "--dry-run"]).ok();
    assert!(!finished.stderr().contains("not valid"), "{}", finished.stderr());
}

/// A checkpoint with a flipped bit is named and passed over; the one before is taken, and the end is the same.
#[test]
fn a_flipped_bit_costs_one_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (undisturbed, output) = (dir.path().join("a"), dir.path().join("b"));
    run(&args(&undisturbed, &[])).ok();
    copy_dir(&undisturbed, &output);
    let newest = files(&output.join("checkpoints")).pop().unwrap().join("optimizer.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&newest, bytes).unwrap();
    let finished = run(&["train", "--resume", output.to_str().unwrap()]).ok();
    assert!(finished.stderr().contains("step-000006") && finished.stderr().contains("optimizer.safetensors"), "{}", finished.stderr());
    assert_eq!(result(&output), result(&undisturbed));
}

/// A resume that cannot be honoured is an error that says which field or file differs.
#[test]
fn what_cannot_be_resumed_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (model, output) = (dir.path().join("model"), dir.path().join("run"));
    copy_dir(&root().join(MODEL), &model);
    let path = format!("model.path={}", model.display());
    run(&args(&output, &["--set", &path])).ok();
    let resume = |extra: &[&str]| run(&[&["train", "--resume", output.to_str().unwrap()], extra].concat());
    let line = resume(&["--set", "optimizer.learning_rate=1e-5"]).refused();
    assert!(line.contains("optimizer.learning_rate is 0.00001, but the run was started with 0.002"), "{line}");
    // What does not touch the weights may change.
    resume(&["--set", "checkpoint.keep_last=5"]).ok();
    let line = run(&["train", "--resume", dir.path().join("nothing").to_str().unwrap()]).refused();
    assert!(line.contains("no run is there"), "{line}");
    let weights = model.join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let line = resume(&[]).refused();
    assert!(line.contains("unet/diffusion_pytorch_model.safetensors is not what the run was started from"), "{line}");
}

/// A finished run is made longer: what follows is what would have followed, to the bit.
#[test]
fn a_finished_run_is_made_longer() {
    let dir = tempfile::tempdir().unwrap();
    let [longer, whole, cosine] = ["longer", "whole", "cosine"].map(|name| dir.path().join(name));
    run(&args(&whole, &[])).ok();
    run(&args(&longer, &["--set", "run.num_train_steps=3"])).ok();
    let resume = |output: &Path, extra: &[&str]| run(&[&["train", "--resume", output.to_str().unwrap()], extra].concat());
    resume(&longer, &["--set", "run.num_train_steps=6"]).ok();
    let ((weights, metrics), (expected, expected_metrics)) = (result(&longer), result(&whole));
    assert!(weights == expected, "the weights differ");
    // All but the preview that ended the shorter run.
    assert_eq!(metrics.len(), expected_metrics.len() + 1);
    assert!(expected_metrics.iter().all(|line| metrics.contains(line)), "{metrics:#?}");
    let [lora, expected] = [&longer, &whole].map(|output| std::fs::read(output.join("lora.safetensors")).unwrap());
    assert!(lora == expected, "the LoRAs differ");
    // The folder's config is that of the longer run, which cannot be made shorter.
    let config = |output: &Path| std::fs::read_to_string(output.join("config.toml")).unwrap();
    assert_eq!(config(&longer), config(&whole));
    let line = resume(&longer, &["--set", "run.num_train_steps=5"]).refused();
    assert!(line.contains("run.num_train_steps is 5, but the run was started with 6"), "{line}");
    // A rate that falls over the whole run.
    run(&args(&cosine, &["--set", "run.num_train_steps=2", "--set", "lr_scheduler={cosine={}}"])).ok();
    let line = resume(&cosine, &["--set", "run.num_train_steps=3"]).refused();
    assert!(line.contains("cannot make") && line.contains("[lr_scheduler.cosine] spreads the learning rate"), "{line}");
    assert!(config(&cosine).contains("num_train_steps = 2"));
}

/// Makes what a tensor of a safetensors file is for overflow: all its values become the largest finite number.
pub(crate) fn poison(path: &Path, name: &str) {
    change(path, name, |values| values.chunks_exact_mut(4).for_each(|value| value.copy_from_slice(&f32::MAX.to_le_bytes())));
}

/// Writes another first value into one tensor of a safetensors file.
pub(crate) fn overwrite(path: &Path, name: &str, value: f32) {
    change(path, name, |values| values[..4].copy_from_slice(&value.to_le_bytes()));
}

/// Changes the bytes of one tensor of a safetensors file.
fn change(path: &Path, name: &str, change: impl FnOnce(&mut [u8])) {
    let mut bytes = std::fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let offset = |i: usize| 8 + header_len + header[name]["data_offsets"][i].as_u64().unwrap() as usize;
    change(&mut bytes[offset(0)..offset(1)]);
    std::fs::write(path, bytes).unwrap();
}

/// Weights that overflow: exit 1, and the first part of the network that is not finite is named.
#[test]
fn a_poisoned_weight_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (model, output) = (dir.path().join("model"), dir.path().join("run"));
    copy_dir(&root().join(MODEL), &model);
    poison(&model.join("unet/diffusion_pytorch_model.safetensors"), "up_blocks.1.resnets.0.conv1.weight");
    let path = format!("model.path={}", model.display());
    let finished = run(&args(&output, &["--set", &path]));
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    assert!(finished.stderr().contains("unet.up_blocks.1.resnets.0 is not finite"), "{}", finished.stderr());
    assert!(checkpoints(&output).is_empty());
}

/// A reward that overflows: the first bad loss stops the run, which keeps what it has.
#[test]
fn a_loss_that_is_not_finite_ends_the_run_or_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("reward");
    copy_dir(&root().join("tests/golden/blip_reward_tiny/model"), &images);
    poison(&images.join("model.safetensors"), "mlp.layers.0.weight");
    std::fs::remove_file(images.join("model.pt")).unwrap();
    let weights = format!("reward={{ vp_score = {{ weights = \"{}\" }} }}", images.display());
    let output = dir.path().join("stop");
    let finished = run(&args(&output, &["--set", &weights]));
    assert_eq!(finished.code(), Some(1), "{}", finished.stderr());
    let stderr = finished.stderr();
    assert!(stderr.contains("update 1: the reward") && stderr.contains("resuming from it repeats this update"), "{stderr}");
    // The state it names is there and is good: resuming repeats the failure.
    assert_eq!(checkpoints(&output), ["step-000000"]);
    let again = run(&["train", "--resume", output.to_str().unwrap()]);
    assert!(again.code() == Some(1) && again.stderr().contains("update 1: the reward"), "{}", again.stderr());

    // Left out: nothing is ever updated, and the run says so.
    let output = dir.path().join("skip");
    let finished = run(&args(&output, &["--set", &weights, "--set", "guard.max_skips=6"])).ok();
    assert_eq!(finished.stderr().matches("left out").count(), 6, "{}", finished.stderr());
    assert!(finished.stderr().contains("training changed nothing"), "{}", finished.stderr());
}

/// A limit on file sizes stands in for a full disk: checkpoints fail, training goes on, what was saved before stays.
#[cfg(unix)]
#[test]
fn a_full_disk_costs_no_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    // Whole weights: the files of a LoRA would fit.
    let first = args(&output, &["--set", r"model.trainable=^unet\."]);
    // A run with a good checkpoint in the middle: stop it by a signal after its first save.
    let child = start(&first);
    let began = Instant::now();
    while checkpoints(&output).is_empty() && began.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&child, "-INT");
    let mut child = child;
    child.wait().unwrap();
    let good = checkpoints(&output);
    let limited = format!("ulimit -f 1000; exec {} train --resume {}", env!("CARGO_BIN_EXE_visionprefer"), output.display());
    let finished = Command::new("sh").current_dir(root()).args(["-c", &limited]).output().unwrap();
    let stderr = String::from_utf8_lossy(&finished.stderr).into_owned();
    // The tuned model cannot be written either, so the run fails in the end, in so many words.
    assert_eq!(finished.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("no checkpoint of step") && stderr.contains("training goes on"), "{stderr}");
    assert_eq!(checkpoints(&output), good);
    // With room again it goes on from there.
    run(&["train", "--resume", output.to_str().unwrap()]).ok();
    assert!(files(&output.join("model")).contains(&output.join("model/model_index.json")));
}

#[test]
fn a_dry_run_checks_everything_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("run");
    let finished = run(&args(&output, &["--dry-run"])).ok();
    let stdout = finished.stdout();
    assert!(stdout.contains("6 updates of 2 images") && stdout.contains("nothing was trained") && stdout.contains("MiB free"), "{stdout}");
    assert!(!output.exists());
    run(&args(&output, &["--dry-run", "--set", "lora.targets=attn9"])).refused();
}

#[test]
fn resuming_is_proved_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let finished = run(&args(&dir.path().join("proof"), &["--prove-resume"])).ok();
    assert!(finished.stdout().contains("proved: stopped before batch 7 of 12 and resumed"), "{}", finished.stdout());
}
