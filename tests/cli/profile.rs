//! `--profile`: where the time goes.

use std::path::Path;

use crate::util::{MODEL, run};

/// A row's name, seconds, share in percent, and calls (none of what is in no stage).
type Row = (String, f64, f64, Option<u64>);

/// The table's rows, of which seconds and shares must come to the total.
fn rows(stdout: &str) -> Vec<Row> {
    let (_, table) = stdout.split_once(" s by stage  ").unwrap_or_else(|| panic!("no table in {stdout}"));
    let total: f64 = stdout.lines().find(|line| line.contains(" s by stage  ")).unwrap().split(' ').next().unwrap().parse().unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        let share = cells[2].strip_suffix('%').unwrap().parse().unwrap();
        (cells[0].to_string(), cells[1].parse().unwrap(), share, cells.get(3).map(|calls| calls.parse().unwrap()))
    };
    let rows: Vec<Row> = table.lines().skip(1).map(row).collect();
    let sum = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>();
    let (seconds, shares, rounding) = (sum(|row| row.1), sum(|row| row.2), 0.5 * (rows.len() + 1) as f64);
    assert!(total > 0.0 && (seconds - total).abs() <= rounding * 0.01 + 1e-9, "{seconds} of {total} s: {stdout}");
    assert!((shares - 100.0).abs() <= rounding * 0.1 + 1e-9, "{shares} %: {stdout}");
    rows
}

fn names(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|(name, ..)| name.as_str()).collect()
}

fn calls(rows: &[Row], stage: &str) -> u64 {
    rows.iter().find(|(name, ..)| name == stage).and_then(|(.., calls)| *calls).unwrap_or_else(|| panic!("no {stage} in {rows:?}"))
}

fn train(algo: &str, folder: &Path, sets: &[&str], flags: &[&str]) -> String {
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let config = format!("configs/{algo}/tiny.toml");
    run(&[&["train", "--config", &config, "-o", folder.to_str().unwrap()], &sets[..], flags].concat()).ok().stdout()
}

const ALL: [&str; 9] = ["encode", "rollout", "tracked step", "decode", "reward", "backward", "optimizer", "I/O", "other"];

#[test]
fn refl_tells_every_stage() {
    let dir = tempfile::tempdir().unwrap();
    let short = [
        "run.num_train_steps=2",
        "model.size=[32, 32]",
        "scheduler.num_inference_steps=4",
        "algo.refl.min_mid_step=2",
        "algo.refl.max_mid_step=3",
        "preview.num_inference_steps=1",
    ];
    let rows = rows(&train("refl", &dir.path().join("run"), &short, &["--profile"]));
    assert_eq!(names(&rows), ALL);
    // Two updates of one micro-batch; two previews of two prompts, each drawn, decoded and shown to three rewards.
    for (stage, expected) in [("backward", 2), ("optimizer", 2), ("rollout", 2 + 4), ("decode", 2 + 4), ("reward", 2 * 2 + 4 * 3)] {
        assert_eq!(calls(&rows, stage), expected, "{stage} in {rows:?}");
    }
    // In each micro-batch the tracked step and the regulariser; the latter encodes for the model and for the base. Exporting probes the
    // base, the tuned model and the two files.
    assert_eq!((calls(&rows, "tracked step"), calls(&rows, "encode")), (2 * 2, 2 * 3 + 4 + 4), "{rows:?}");
}

#[test]
fn ddpo_tells_every_stage() {
    let dir = tempfile::tempdir().unwrap();
    let short = [
        "run.num_train_steps=2",
        "model.size=[32, 32]",
        "scheduler.num_inference_steps=3",
        "optimizer.gradient_accumulation_steps=2",
        "preview.num_inference_steps=1",
        "preview.seeds=[1]",
        "algo.ddpo.sample_batch_size=4",
        "algo.ddpo.num_batches_per_epoch=2",
        "algo.ddpo.train_batch_size=2",
    ];
    let rows = rows(&train("ddpo", &dir.path().join("run"), &short, &["--profile"]));
    assert_eq!(names(&rows), ALL);
    // One epoch of two batches and two updates, each of two minibatches at three timesteps, and the base once an update for the KL.
    assert_eq!((calls(&rows, "backward"), calls(&rows, "optimizer"), calls(&rows, "tracked step")), (12, 2, 12 + 2), "{rows:?}");
    let drawn = calls(&rows, "rollout");
    assert!(drawn > 2 && calls(&rows, "decode") == drawn, "two batches and the previews: {rows:?}");
}

#[test]
fn an_algorithm_tells_the_stages_it_has_and_nobody_is_told_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let short = ["run.num_train_steps=1", "model.size=[32, 32]", "algo.vae.batch_size=2"];
    let asked = train("vae", &dir.path().join("asked"), &short, &["--profile"]);
    assert_eq!(names(&rows(&asked)), ["encode", "decode", "backward", "optimizer", "I/O", "other"]);
    let unasked = train("vae", &dir.path().join("unasked"), &short, &[]);
    assert!(!unasked.contains("by stage") && !unasked.contains("other"), "{unasked}");
}

#[test]
fn sample_tells_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let args =
        ["sample", "--model", MODEL, "--steps", "2", "-W", "32", "-H", "32", "-p", "a", "-p", "b", "-o", dir.path().to_str().unwrap()];
    let rows = rows(&run(&[&args[..], &["--profile"]].concat()).ok().stdout());
    assert_eq!(names(&rows), ["encode", "rollout", "decode", "I/O", "other"]);
    // Two images, one at once; under guidance the negative prompt is encoded too.
    assert_eq!([calls(&rows, "encode"), calls(&rows, "rollout"), calls(&rows, "decode")], [4, 2, 2]);
    let unasked = run(&args).ok();
    assert!(!unasked.stdout().contains("by stage") && unasked.stderr().is_empty(), "{}{}", unasked.stdout(), unasked.stderr());
}
