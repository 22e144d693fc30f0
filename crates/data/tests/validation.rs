//! A whole set is looked through, hostile images included, and all that is wrong with it told.

use std::fs;
use std::io::Write;

use image::{Rgb, RgbImage};
use serde_json::json;
use vp_data::{Completion, Record, validate, write_records};

fn ranked(images: &[(&str, u32)]) -> Record {
    let completion = |(image, rank): &(&str, u32)| Completion { image_path: (*image).into(), rank: Some(*rank), ..Completion::default() };
    Record::new("1", "a bee", images.iter().map(completion).collect())
}

/// A PNG that claims to be 100,000 pixels wide, in 57 bytes.
fn wide_png() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = png::Encoder::new(&mut bytes, 100_000, 1).write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]).unwrap();
    drop(writer);
    bytes
}

#[test]
fn validation_opens_everything_and_reports_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let save = |name: &str| RgbImage::from_pixel(20, 20, Rgb([9; 3])).save(dir.path().join(name)).unwrap();
    ["a.png", "b.png"].into_iter().for_each(save);
    fs::write(dir.path().join("wide.png"), wide_png()).unwrap();
    fs::write(dir.path().join("broken.png"), "no picture").unwrap();
    let path = dir.path().join("records.jsonl");
    let records = [ranked(&[("a.png", 1), ("b.png", 2), ("wide.png", 3)]), ranked(&[("a.png", 1), ("broken.png", 2), ("gone.png", 2)])];
    write_records(&path, &records).unwrap();
    fs::write(&path, fs::read_to_string(&path).unwrap() + "not json\n").unwrap();
    let found = validate(&path).unwrap();
    assert_eq!((found.records, found.images, found.problems.len()), (2, 2, 4));
    let told = found.to_string();
    for expected in [
        "records: 2 record(s), 2 image(s), 4 problem(s)\n  line 3: ",
        "\n  wide.png: larger than 16384 pixels per side",
        "\n  broken.png: not an image that is read",
        "\n  gone.png: cannot read ",
    ] {
        assert!(told.contains(expected), "{expected:?} is not in {told}");
    }

    let table = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pick_a_pic.parquet");
    let told = validate(table).unwrap().to_string();
    let expected = "Pick-a-Pic: 4 record(s), 7 image(s), 1 without a label, 2 problem(s)\n  row 6: ";
    assert!(told.starts_with(expected) && told.ends_with("pick_a_pic.parquet!/jpg_0/4: the JPEG is cut off before its end"), "{told}");
}

#[test]
fn hostile_images_in_a_zip_are_refused_before_they_are_decoded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("set.zip");
    let row = json!([{ "image_path": "wide.png", "prompt_id": "1", "prompt": "a bee", "rank": 1, "overall_rating": 1,
                       "image_text_alignment_rating": 1, "fidelity_rating": 1 }]);
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    for (name, bytes) in [("wide.png", wide_png()), ("set.json", row.to_string().into_bytes())] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&bytes).unwrap();
    }
    zip.finish().unwrap();
    let told = validate(&path).unwrap().to_string();
    assert!(told.contains("1 problem(s)\n  set.zip!/wide.png: larger than 16384 pixels per side"), "{told}");
}

/// The reader of tables panics at some of these if it is left alone with them.
#[test]
fn damaged_tables_are_refused_and_no_reason_to_panic() {
    let fixture = |name: &str| fs::read(format!("{}/tests/fixtures/{name}.parquet", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.parquet");
    let (rows, images) = (fixture("metadata-test"), fixture("pick_a_pic"));
    let flips = (0..rows.len()).map(|at| (&rows, at, 0x80)).chain([(&rows, 1229, 0x01), (&images, 1297, 0x80)]);
    let mut noticed = 0;
    for (bytes, at, flip) in flips {
        let mut damaged = bytes.clone();
        damaged[at] ^= flip;
        fs::write(&path, damaged).unwrap();
        noticed += usize::from(validate(&path).is_err());
    }
    assert!(noticed > 1000, "{noticed} of {} tables were refused", rows.len() + 2);
}
