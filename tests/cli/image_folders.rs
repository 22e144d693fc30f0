//! Images and captions as other tools leave them: what is read, what is named, and what is broken before a run starts.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageFormat};
use serde_json::json;
use vp_data::RgbImage;

use crate::util::{Finished, files, run};

fn picture(level: u8) -> DynamicImage {
    RgbImage::from_fn(24, 20, |x, y| [level, x as u8 * 9, y as u8 * 9].into()).into()
}

/// Writes `picture(level)` in a format, whatever its name says.
fn save(path: &Path, format: ImageFormat, level: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut bytes = Cursor::new(Vec::new());
    picture(level).write_to(&mut bytes, format).unwrap();
    fs::write(path, bytes.into_inner()).unwrap();
}

/// Looks at a run of SFT on a folder or dataset config, and trains nothing.
fn sft(data: &Path) -> Finished {
    let output = data.with_extension("run");
    let data = format!("data.folder={:?}", data.to_str().unwrap());
    let args = ["train", "--algo", "sft", "--dry-run", "-o", output.to_str().unwrap(), "--set", &data];
    run(&[&args[..], &["--set", "data.validation_fraction=0.0"]].concat())
}

#[test]
fn every_kind_of_image_is_read_or_named() {
    let dir = tempfile::tempdir().unwrap();
    let kinds = [
        ("a.png", ImageFormat::Png),
        ("b.JPG", ImageFormat::Jpeg),
        ("c.jpeg", ImageFormat::Jpeg),
        ("d.jfif", ImageFormat::Jpeg),
        ("e.gif", ImageFormat::Gif),
        ("f.tif", ImageFormat::Tiff),
    ];
    for (number, (name, format)) in kinds.into_iter().enumerate() {
        save(&dir.path().join(name), format, 20 * number as u8);
    }
    fs::write(dir.path().join("g.avif"), b"\0\0\0\x20ftypavif\0\0\0\0avifmif1").unwrap();
    for name in "abcdefg".chars() {
        fs::write(dir.path().join(format!("{name}.txt")), format!("picture {name}")).unwrap();
    }
    let finished = sft(dir.path()).ok();
    let (said, stderr) = (finished.stdout(), finished.stderr());
    assert!(said.contains("epochs of 6;") && stderr.contains("1 image of a kind that is not read: g.avif"), "{said}{stderr}");

    let folder = dir.path().to_str().unwrap();
    let validated = run(&["dataset", "validate", folder]);
    assert_eq!(validated.code(), Some(2));
    assert!(
        validated.stdout().contains("6 record(s), 6 image(s), 1 problem(s)") && validated.stdout().contains("g.avif"),
        "{}",
        validated.stdout()
    );
    let elsewhere = tempfile::tempdir().unwrap();
    let evaluation = elsewhere.path().join("evaluation");
    let args = ["evaluate", "--base-images", folder, "--tuned-images", folder, "-r", "brightness", "-o", evaluation.to_str().unwrap()];
    assert!(run(&args).ok().stderr().contains("1 image of a kind that is not read: g.avif"));
}

#[test]
fn captions_come_from_csv_from_folders_below_and_from_caption_files() {
    let dir = tempfile::tempdir().unwrap();
    let [csv, beside, linked] = ["csv", "beside", "linked"].map(|name| dir.path().join(name));
    for folder in [&csv, &beside] {
        ["a.png", "b.png", "cats/c.png"].iter().for_each(|name| save(&folder.join(name), ImageFormat::Png, 9));
    }
    let table = "file_name,text\r\na.png,\"a red fox, sitting\"\r\nb.png,\"a dog that says \"\"hello\"\"\"\r\n";
    fs::write(csv.join("metadata.csv"), table).unwrap();
    fs::write(csv.join("cats/metadata.csv"), "file_name,text\nc.png,ein Kätzchen\n").unwrap();
    ["a", "b", "cats/c"].iter().for_each(|name| fs::write(beside.join(format!("{name}.caption")), "a caption").unwrap());
    for folder in [&csv, &beside] {
        let said = sft(folder).ok().stdout();
        assert!(said.contains("epochs of 3;"), "{said}");
    }
    let converted = dir.path().join("converted");
    run(&["dataset", "convert", csv.to_str().unwrap(), "-o", converted.to_str().unwrap()]).ok();
    let mut prompts: Vec<String> =
        vp_data::read_records(converted.join("records.jsonl")).unwrap().into_iter().map(|record| record.prompt).collect();
    prompts.sort();
    assert_eq!(prompts, ["a dog that says \"hello\"", "a red fox, sitting", "ein Kätzchen"]);
    #[cfg(unix)]
    {
        fs::create_dir(&linked).unwrap();
        std::os::unix::fs::symlink(&beside, linked.join("elsewhere")).unwrap();
        assert!(sft(&linked).ok().stdout().contains("epochs of 3;"));
    }
    // A caption that is nowhere is looked for in all of these places.
    fs::remove_file(beside.join("a.caption")).unwrap();
    let refused = sft(&beside).refused();
    assert!(refused.contains("a.png: no caption, neither in a metadata.jsonl or metadata.csv nor in a .txt or .caption"), "{refused}");
}

#[test]
fn kohyas_folders_and_dataset_config_repeat_images() {
    let dir = tempfile::tempdir().unwrap();
    ["10_red fox/a.png", "10_red fox/b.png", "2_dog/c.png"].iter().for_each(|name| save(&dir.path().join(name), ImageFormat::Png, 9));
    let finished = sft(dir.path()).ok();
    assert!(finished.stdout().contains("epochs of 22;"), "{}", finished.stdout());
    assert!(finished.stderr().contains("10_red fox: 2 images, each 10 times per epoch"), "{}", finished.stderr());

    let config = dir.path().join("dataset.toml");
    let text = "[general]\nresolution = 512\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = '10_red fox'\nnum_repeats = 5\nclass_tokens = 'fox'\n\
                [[datasets.subsets]]\nimage_dir = '2_dog'\nclass_tokens = 'dog'\n";
    fs::write(&config, text).unwrap();
    let finished = sft(&config).ok();
    let (said, stderr) = (finished.stdout(), finished.stderr());
    assert!(said.contains("epochs of 11;"), "{said}");
    assert!(stderr.contains("dataset.toml: not used: resolution") && stderr.contains("2 images, each 5 times per epoch"), "{stderr}");
}

/// Six prompts with four images each, ranked 1 2 3 3: 30 strict pairs. One image is an empty file, another a page of HTML.
fn broken_set(folder: &Path) -> String {
    let entry = |prompt: usize| {
        let name = |image: usize| format!("generations/{prompt}_{image}.webp");
        (0..4).for_each(|image| save(&folder.join(name(image)), ImageFormat::WebP, (prompt * 40 + image) as u8));
        let generations: Vec<String> = (0..4).map(name).collect();
        json!({ "id": format!("{prompt:06}-0001"), "prompt": format!("thing {prompt}"), "generations": generations, "ranking": [1, 2, 3, 3] })
    };
    let entries: Vec<_> = (0..6).map(entry).collect();
    let path = folder.join("train.json");
    fs::write(&path, json!(entries).to_string()).unwrap();
    fs::write(folder.join("generations/2_1.webp"), "").unwrap();
    fs::write(folder.join("generations/4_2.webp"), "<html>Not found</html>").unwrap();
    path.to_str().unwrap().to_owned()
}

fn assert_names_both(text: &str) {
    assert!(text.contains("generations/2_1.webp: the file is empty") && text.contains("generations/4_2.webp: not an image"), "{text}");
}

#[test]
fn broken_images_of_a_set_are_found_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let set = broken_set(dir.path());
    let out = dir.path().join("pairs");
    let convert = ["dataset", "convert", &set, "--to", "pairs", "-o", out.to_str().unwrap()];
    let refused = run(&convert).refused();
    assert_names_both(&refused);
    assert!(refused.contains("2 of 24 image(s) cannot be read") && refused.contains("--skip-problems") && !out.exists(), "{refused}");
    let finished = run(&[&convert[..], &["--skip-problems"]].concat()).ok();
    assert_names_both(&finished.stderr());
    assert!(finished.stdout().contains("25 pairs"), "{}", finished.stdout());
    let pairs = fs::read_to_string(out.join("pairs.jsonl")).unwrap();
    assert!(pairs.lines().count() == 25 && !pairs.contains("2_1.webp") && !pairs.contains("4_2.webp"));
    assert_eq!(files(&out.join("images/generations")).len(), 22);

    let scored = run(&["score", "-r", "brightness", "--records", &set]).refused();
    assert_names_both(&scored);
}

#[test]
fn broken_images_of_rankings_are_found_before_a_run_starts() {
    let dir = tempfile::tempdir().unwrap();
    let set = broken_set(dir.path());
    let output = dir.path().join("run");
    let sets = ["algo.reward_model.aspects=false", "algo.reward_model.objective=pairs", "rankings.validation_fraction=0.0"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let args = ["train-reward", "--records", &set, "--dry-run", "-o", output.to_str().unwrap()];
    let train = |more: &[&str]| run(&[&args[..], &sets[..], more].concat());
    let refused = train(&[]).refused();
    assert_names_both(&refused);
    assert!(refused.contains("rankings.on_problem = \"skip\"") && !output.exists(), "{refused}");
    let finished = train(&["--set", "rankings.on_problem=skip"]).ok();
    assert!(finished.stdout().contains("6 prompts with 22 images in 25 strict pairs"), "{}", finished.stdout());
    assert_names_both(&finished.stderr());
}

#[test]
fn given_images_are_compared_by_their_names_and_nothing_is_said_of_noise() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    for number in 0..3u8 {
        save(&a.join(format!("{number}.png")), ImageFormat::Png, 40 * number);
        // The other program wrote JPEGs.
        save(&b.join(format!("{number}.jpg")), ImageFormat::Jpeg, 40 * number + 60);
        [&a, &b].iter().for_each(|folder| fs::write(folder.join(format!("{number}.txt")), format!("gradient {number}")).unwrap());
    }
    let output = dir.path().join("evaluation");
    let [a_path, b_path, out] = [&a, &b, &output].map(|path| path.to_str().unwrap());
    let evaluate = || run(&["evaluate", "--base-images", a_path, "--tuned-images", b_path, "-r", "brightness", "-o", out]);
    let said = evaluate().ok().stdout();
    let reports = ["report.md", "report.html"].map(|name| fs::read_to_string(output.join(name)).unwrap());
    for text in [&said, &reports[0], &reports[1]] {
        assert!(text.contains("3 images on each side, which were given; how they were drawn is not known"), "{text}");
        assert!(!text.contains("same noise") && !text.contains("guidance scale"), "{text}");
    }
    // What is missing on one side is found before anything is scored.
    fs::remove_dir_all(&output).unwrap();
    fs::remove_file(b.join("1.jpg")).unwrap();
    let refused = evaluate().refused();
    assert!(refused.contains("has no image called 1, which the other side has") && !output.exists(), "{refused}");
    save(&a.join("1.webp"), ImageFormat::WebP, 1);
    assert!(evaluate().refused().contains("two images are called 1"));
}
