//! `sample`.

use std::path::Path;

use vp_data::{Parameters, load_image, read_png_text};

use crate::util::{MODEL, files, run};

fn sample(folder: &Path, extra: &[&str]) {
    let folder = folder.to_str().unwrap();
    run(&[&["sample", "--model", MODEL, "--steps", "3", "-o", folder], extra].concat()).ok();
}

fn pixels(folder: &Path) -> Vec<Vec<u8>> {
    files(folder).iter().map(|path| load_image(path).unwrap().into_raw()).collect()
}

fn assert_within_one(a: &[Vec<u8>], b: &[Vec<u8>]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
        assert!(a.abs_diff(*b) <= 1, "{a} and {b}");
    }
}

#[test]
fn an_image_depends_on_its_seed_and_index_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (one, four, later, noisy_one, noisy_four) =
        (dir.path().join("1"), dir.path().join("4"), dir.path().join("later"), dir.path().join("n1"), dir.path().join("n4"));
    let all = ["-p", "a red fox", "-p", "the sea", "--num-images", "2", "-s", "11"];
    sample(&one, &all);
    sample(&four, &[&all[..], &["--batch-size", "4"]].concat());
    assert_within_one(&pixels(&one), &pixels(&four));
    // Image i of seed s is image 0 of seed s + i.
    sample(&later, &["-p", "the sea", "-s", "14"]);
    assert_within_one(&pixels(&one)[3..], &pixels(&later));
    // The same holds for the noise of a stochastic sampler.
    let stochastic = [&all[..], &["--scheduler", "Euler a"]].concat();
    sample(&noisy_one, &stochastic);
    sample(&noisy_four, &[&stochastic[..], &["--batch-size", "3"]].concat());
    assert_within_one(&pixels(&noisy_one), &pixels(&noisy_four));
    assert_ne!(pixels(&one), pixels(&noisy_one));
}

#[test]
fn parameters_are_written_as_a1111_does() {
    let dir = tempfile::tempdir().unwrap();
    let size = ["-W", "48", "-H", "64"];
    sample(dir.path(), &[&["-p", "a fox, red", "-n", "blurry", "-s", "5", "-g", "4.5", "--scheduler", "DDIM"], &size[..]].concat());
    let [path] = files(dir.path()).try_into().expect("one image");
    assert_eq!(path.file_name().unwrap(), "00000-5.png");
    let image = load_image(&path).unwrap();
    assert_eq!((image.width(), image.height()), (48, 64));
    let text = read_png_text(&path).unwrap();
    let (key, text) = &text[0];
    assert_eq!(key, "parameters");
    let parameters = Parameters::parse(text);
    assert_eq!((parameters.prompt.as_str(), parameters.negative_prompt.as_str()), ("a fox, red", "blurry"));
    for (key, value) in [("Steps", "3"), ("Sampler", "DDIM"), ("CFG scale", "4.5"), ("Seed", "5"), ("Size", "48x64"), ("Model", "pipeline")]
    {
        assert_eq!(parameters.get(key), Some(value), "{text}");
    }
}

#[test]
fn saved_latents_draw_the_same_image_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let latents = dir.path().join("latents.safetensors");
    let (latents, first, second) = (latents.to_str().unwrap(), dir.path().join("a"), dir.path().join("b"));
    sample(&first, &["-p", "a", "-p", "b", "-s", "3", "--save-latents", latents]);
    // Another seed: the latents decide.
    sample(&second, &["-p", "a", "-p", "b", "-s", "77", "--latents", latents]);
    assert_eq!(pixels(&first), pixels(&second));
    sample(&first, &["-p", "c", "-s", "3"]);
    let names: Vec<_> = files(&first).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["00000-3.png", "00001-4.png", "00002-3.png"]);
}

#[test]
fn a_prompt_that_is_cut_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let long = "word ".repeat(80) + "last";
    let finished = run(&["sample", "--model", MODEL, "--steps", "1", "-p", &long, "-o", dir.path().to_str().unwrap()]).ok();
    let stderr = finished.stderr();
    assert!(stderr.contains("prompt cut at 77 tokens; lost:") && stderr.contains("word"), "{stderr}");
}
