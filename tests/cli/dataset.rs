//! `dataset shapes`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use vp_shapes::split::heldout_of;
use vp_shapes::{Description, judge};

use crate::util::{files, run};

fn dataset(folder: &Path, more: &[&str]) -> crate::util::Finished {
    run(&[&["dataset", "shapes", "--out", folder.to_str().unwrap()], more].concat())
}

/// Every file of a folder and its bytes.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    files(folder).into_iter().map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap())).collect()
}

#[test]
fn parts_and_interruptions_make_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, parts, resumed, other] = ["whole", "parts", "resumed", "other"].map(|name| dir.path().join(name));
    dataset(&whole, &["--n", "30", "--seed", "5"]).ok();
    let expected = contents(&whole);
    assert_eq!(expected.len(), 30 + 2, "{:?}", expected.keys());
    for part in ["3/3", "1/3", "2/3"] {
        dataset(&parts, &["--n", "30", "--seed", "5", "--shard", part]).ok();
    }
    assert!(contents(&parts) == expected);
    // As after a kill: the list is not there yet, nor are some images.
    dataset(&resumed, &["--n", "30", "--seed", "5"]).ok();
    for name in ["metadata.jsonl", "000003.png", "000029.png"] {
        fs::remove_file(resumed.join(name)).unwrap();
    }
    let again = dataset(&resumed, &["--n", "30", "--seed", "5"]).ok();
    assert!(again.stdout().contains("2 of them new"), "{}", again.stdout());
    assert!(contents(&resumed) == expected);
    dataset(&other, &["--n", "30", "--seed", "6"]).ok();
    assert!(contents(&other)["000000.png"] != expected["000000.png"]);
    // The first ten of a longer list are the same images.
    let longer = dir.path().join("longer");
    dataset(&longer, &["--n", "40", "--seed", "5"]).ok();
    assert!(contents(&longer)["000009.png"] == expected["000009.png"]);
}

#[test]
fn a_split_has_its_compositions_and_says_which() {
    let dir = tempfile::tempdir().unwrap();
    for split in ["train", "feedback", "test"] {
        let folder = dir.path().join(split);
        dataset(&folder, &["--n", "60", "--split", split, "--side", "48"]).ok();
        let text = fs::read_to_string(folder.join("metadata.jsonl")).unwrap();
        for line in text.lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let description = Description::parse(row["text"].as_str().unwrap()).unwrap();
            let heldout: Vec<&str> = heldout_of(&description).iter().map(|composition| composition.category()).collect();
            let category = row.get("category").and_then(serde_json::Value::as_str);
            assert_eq!(category.is_none(), split == "train", "{line}");
            match category.and_then(|category| category.strip_prefix("held-out ")) {
                Some(category) => assert!(split == "test" && heldout == [category], "{line}"),
                None => assert!(heldout.is_empty(), "{line}"),
            }
        }
        assert_eq!(text.contains("\"held-out "), split == "test", "{text}");
        let image = vp_data::load_image(folder.join("000000.png")).unwrap();
        assert_eq!(image.dimensions(), (48, 48));
    }
}

#[test]
fn pretraining_images_come_with_what_is_known_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
    dataset(&whole, &["--n", "80", "--split", "pretraining"]).ok();
    for part in ["2/2", "1/2"] {
        dataset(&parts, &["--n", "80", "--split", "pretraining", "--shard", part]).ok();
    }
    assert!(contents(&parts) == contents(&whole));
    let text = fs::read_to_string(whole.join("metadata.jsonl")).unwrap();
    let (mut clean, mut checked) = (0, 0);
    for line in text.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| row[name].as_str().unwrap().to_string();
        let [caption, shows] = ["text", "shows"].map(|name| Description::parse(&field(name)).unwrap());
        clean += usize::from(field("image_is") == "clean");
        if field("image_is") == "clean" {
            let image = vp_data::load_image(whole.join(field("file_name"))).unwrap();
            assert!(judge(&image, &shows).passes(), "{line}");
            assert_eq!(judge(&image, &shows).harmlessness.score < 5.0, row["emblem"].as_bool().unwrap(), "{line}");
            if field("caption_is") == "true" {
                assert!(judge(&image, &caption).passes(), "{line}");
                checked += 1;
            }
        }
    }
    assert!((15..50).contains(&clean) && checked > 5, "{clean} of 80 are clean, {checked} of them with true captions");
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("data");
    for (more, expected) in [
        (&["--n", "0"][..], "--n is 0"),
        (&["--n", "5", "--side", "3"], "--side is 3; expected 16 to 1024"),
        (&["--n", "5", "--shard", "3/2"], "expected I/K"),
        (&["--n", "5", "--split", "tset"], "invalid value 'tset'"),
        (&["--n", "5", "--split", "pretraining", "--per-caption", "2"], "--split pretraining has one image per caption"),
    ] {
        let stderr = dataset(&folder, more).refused();
        assert!(stderr.contains(expected), "{stderr}");
        assert!(!folder.exists());
    }
    dataset(&folder, &["--n", "5"]).ok();
    let stderr = dataset(&folder, &["--n", "6"]).refused();
    assert!(stderr.contains("\"n\":5") && stderr.contains("expected") && stderr.contains("another --out"), "{stderr}");
    let stderr = dataset(dir.path(), &["--n", "5"]).refused();
    assert!(stderr.contains("holds other files"), "{stderr}");
}
