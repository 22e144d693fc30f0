//! What commands that work for long tell on standard error, which here is a pipe, and that `--quiet` ends it.

use std::path::Path;

use crate::util::{Finished, MODEL, files, run};

/// The lines of a command that are on standard error, none of which moves a cursor.
fn told(finished: &Finished) -> Vec<String> {
    let stderr = finished.stderr();
    assert!(!stderr.contains(['\r', '\x1b']), "{stderr:?}");
    stderr.lines().map(str::to_owned).collect()
}

/// Twelve images, four at once.
fn sample(output: &Path, more: &[&str]) -> Finished {
    let args =
        ["sample", "--model", MODEL, "--steps", "1", "-W", "32", "-H", "32", "-p", "a fox", "--num-images", "12", "--batch-size", "4"];
    run(&[&args[..], &["-o", output.to_str().unwrap()], more].concat()).ok()
}

#[test]
fn a_pipe_gets_plain_lines_and_the_result_alone_is_on_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let drawn = sample(&output, &[]);
    let lines = told(&drawn);
    assert!(lines.len() >= 3 && lines.iter().all(|line| line.contains(" of 12 images, ")), "{lines:?}");
    assert!(lines[0].starts_with("4 of 12 images, about ") && lines.last().unwrap().starts_with("12 of 12 images, "), "{lines:?}");
    assert!(drawn.stdout().lines().count() == 12 && drawn.stdout().lines().all(|line| line.ends_with(".png")), "{}", drawn.stdout());

    let images: Vec<String> = files(&output).iter().map(|path| path.display().to_string()).collect();
    let args: Vec<&str> = ["score", "-r", "brightness", "-p", "a fox", "--batch-size", "2", "--json"]
        .into_iter()
        .chain(images.iter().map(String::as_str))
        .collect();
    let scored = run(&args).ok();
    let lines = told(&scored);
    assert!(lines.len() >= 6 && lines.last().unwrap().starts_with("12 of 12 images, "), "{lines:?}");
    assert!(scored.stdout().lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{}", scored.stdout());

    let shapes = dir.path().join("shapes");
    let drawn = run(&["dataset", "shapes", "-n", "20", "--out", shapes.to_str().unwrap()]).ok();
    let lines = told(&drawn);
    assert!(lines.len() >= 10 && lines.last().unwrap().starts_with("20 of 20 captions, "), "{lines:?}");
    assert!(!drawn.stdout().contains("captions"), "{}", drawn.stdout());
}

#[test]
fn quiet_tells_nothing_on_standard_error() {
    let dir = tempfile::tempdir().unwrap();
    let [output, shapes, half] = ["out", "shapes", "half"].map(|name| dir.path().join(name).display().to_string());
    let drawn = sample(Path::new(&output), &["--quiet"]);
    assert_eq!((drawn.stderr().as_str(), drawn.stdout().lines().count()), ("", 12));
    let image = files(Path::new(&output))[0].display().to_string();
    let quiet: [&[&str]; 3] = [
        &["score", "-q", "-r", "brightness", "-p", "a fox", &image],
        &["dataset", "shapes", "--quiet", "-n", "20", "--out", &shapes],
        &["export", "-q", "--model", MODEL, "--half", "-o", &half],
    ];
    for args in quiet {
        assert_eq!(run(args).ok().stderr(), "", "{args:?}");
    }
}

#[test]
fn evaluate_counts_the_images_of_each_side() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("prompts.txt");
    let lines: String = (0..12).map(|number| format!("a fox in room {number}\n")).collect();
    std::fs::write(&prompts, lines).unwrap();
    let evaluate = |name: &str, more: &[&str]| {
        let output = dir.path().join(name);
        let args = ["evaluate", "--base", MODEL, "--tuned", MODEL, "-r", "brightness", "--seeds", "1", "--steps", "1", "--batch-size", "4"];
        run(&[&args[..], &["--prompts", prompts.to_str().unwrap(), "-o", output.to_str().unwrap()], more].concat()).ok()
    };
    let finished = evaluate("told", &[]);
    let lines = told(&finished);
    assert_eq!(lines.iter().filter(|line| line.starts_with("12 of 12 images, ")).count(), 2, "{lines:?}");
    assert!(!finished.stdout().contains(" of 12 images"), "{}", finished.stdout());
    let quiet = evaluate("quiet", &["--quiet"]).stderr();
    assert!(!quiet.contains("images"), "{quiet}");
}
