//! Published sets, as they lie on disk, become records with their images.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use tempfile::TempDir;
use vp_data::{
    Aggregation, AnnotatorId, Aspect, Dataset, Error, Format, OnProblem, Preferred, Problem, ReadRecords, Record, open_dataset,
    records_by_annotator, stats,
};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn folder(files: &[(&str, &Value)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value.to_string()).unwrap();
    }
    dir
}

/// A grey PNG of 16 x 16 pixels.
fn png(level: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    RgbImage::from_pixel(16, 16, Rgb([level; 3])).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn zipped(path: &Path, files: &[(&str, &[u8])]) {
    let mut zip = ZipWriter::new(fs::File::create(path).unwrap());
    for (name, bytes) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

fn read(dataset: &Dataset) -> Vec<Record> {
    dataset.read(OnProblem::Refuse).unwrap().records
}

fn pairs(records: &[Record]) -> Vec<Vec<(usize, usize)>> {
    records.iter().map(|record| record.pairs(&Aggregation::default())).collect()
}

fn level(dataset: &Dataset, image_path: &str) -> u8 {
    dataset.image(image_path).unwrap().load().unwrap().get_pixel(3, 3).0[0]
}

/// What is found wrong, one line each.
fn findings(path: &Path) -> Vec<String> {
    let found = open_dataset(path).unwrap().records().unwrap();
    found.filter_map(Result::err).map(|problem: Problem| problem.to_string()).collect()
}

#[test]
fn imagereward_counts_by_hand() {
    let list = json!([
        { "id": "1-1", "prompt": "a bee", "generations": ["p/a.webp", "p/b.webp", "p/c.webp", "p/d.webp"], "ranking": [1, 2, 5, 2] },
        { "id": "1-2", "prompt": "an ant", "generations": ["p/e.webp", "p/f.webp", "p/g.webp"], "ranking": [3, 3, 3] }]);
    let dir = folder(&[("train.json", &list)]);
    let dataset = open_dataset(dir.path().join("train.json")).unwrap();
    assert_eq!(dataset.format(), Format::ImageReward);
    let records = read(&dataset);
    assert_eq!(pairs(&records), [vec![(0, 1), (0, 2), (0, 3), (1, 2), (3, 2)], vec![]]);
    let stats = stats(&records);
    assert_eq!([stats.prompts, stats.images, stats.pairs, stats.ties], [2, 7, 5, 4]);
    assert_eq!(stats.annotators, [("human".into(), 2)].into());
}

/// The published test set, where `VP_PROMPTS_DIR` names the folder that it lies in.
#[test]
fn imagereward_counts_of_the_published_test_set() {
    let Some(dir) = std::env::var_os("VP_PROMPTS_DIR") else { return };
    let records = read(&open_dataset(Path::new(&dir).join("imagereward_test.json")).unwrap());
    let stats = stats(&records);
    // Three texts come twice, under ids of their own.
    assert_eq!([stats.records, stats.prompts, stats.pairs, stats.ties], [466, 466, 6399, 831]);
    let text = fs::read_to_string(Path::new(&dir).join("imagereward_test.json")).unwrap();
    let exported: Vec<Value> = records.iter().map(|record| vp_data::to_imagereward(record, &Aggregation::default()).unwrap()).collect();
    assert_eq!(Value::Array(exported), serde_json::from_str::<Value>(&text).unwrap());
}

/// Rows of one part of ImageRewardDB, as `make.py` has them.
fn imagereward_db_rows() -> Value {
    let row = |name: &str, id: &str, prompt: &str, total: u32, [rank, overall, alignment]: [u32; 3], fidelity: Value| {
        json!({ "image_path": format!("images/test/test_1/{name}.png"), "prompt_id": id, "prompt": prompt, "classification": "Animals",
                "image_amount_in_total": total, "rank": rank, "overall_rating": overall, "image_text_alignment_rating": alignment,
                "fidelity_rating": fidelity })
    };
    json!([
        row("a", "000001-0001", "a bee", 3, [2, 4, 5], json!(3.5)),
        row("b", "000001-0001", "a bee", 3, [1, 7, 6], json!(6.0)),
        row("c", "000002-0007", "an ant", 1, [1, 5, 5], json!(5.0)),
        row("d", "000001-0001", "a bee", 3, [2, 4, 3], Value::Null)
    ])
}

fn check_imagereward_db(dataset: &Dataset) {
    assert_eq!(dataset.format(), Format::ImageRewardDb);
    let records = read(dataset);
    assert_eq!(
        records.iter().map(|record| (record.id.as_str(), record.prompt.as_str())).collect::<Vec<_>>(),
        [("000001-0001", "a bee"), ("000002-0007", "an ant")]
    );
    let bees = &records[0];
    // Fidelity was not rated everywhere and aesthetic nowhere: the ranks decide, unless alignment alone is asked for.
    assert_eq!(bees.pairs(&Aggregation::default()), [(1, 0), (1, 2)]);
    assert_eq!(bees.pairs(&Aggregation::only(Aspect::PromptFollowing)), [(0, 2), (1, 0), (1, 2)]);
    let first = &bees.completions[0];
    assert_eq!((first.annotations[&Aspect::PromptFollowing].rating, first.annotations[&Aspect::Fidelity].rating), (5.0, 3.5));
    assert_eq!((&first.extra["overall_rating"], first.rank), (&json!(4), Some(2)));
    assert_eq!(bees.completions[2].annotations.len(), 1);
    assert_eq!((&bees.extra["classification"], &bees.extra["image_amount_in_total"]), (&json!("Animals"), &json!(3)));
    assert_eq!(bees.annotator, Some(AnnotatorId::human()));
    let levels: Vec<u8> =
        records.iter().flat_map(|record| &record.completions).map(|completion| level(dataset, &completion.image_path)).collect();
    assert_eq!(levels, [10, 20, 40, 30]);
}

#[test]
fn imagereward_db_is_read_from_tables_folders_and_zips_alike() {
    let (rows, images) = (imagereward_db_rows(), [("a", 10), ("b", 20), ("c", 30), ("d", 40)]);
    let part = "images/test/test_1";
    let unpacked = folder(&[("images/test/test_1/test_1.json", &rows)]);
    images.iter().for_each(|(name, level)| fs::write(unpacked.path().join(format!("{part}/{name}.png")), png(*level)).unwrap());
    check_imagereward_db(&open_dataset(unpacked.path()).unwrap());
    check_imagereward_db(&open_dataset(unpacked.path().join(part)).unwrap());
    check_imagereward_db(&open_dataset(unpacked.path().join(part).join("test_1.json")).unwrap());
    fs::copy(fixture("metadata-test.parquet"), unpacked.path().join("metadata-test.parquet")).unwrap();
    check_imagereward_db(&open_dataset(unpacked.path()).unwrap());

    let packed = tempfile::tempdir().unwrap();
    fs::create_dir_all(packed.path().join("images/test")).unwrap();
    let zip = packed.path().join("images/test/test_1.zip");
    let encoded: Vec<(String, Vec<u8>)> = images.iter().map(|(name, level)| (format!("test_1/{name}.png"), png(*level))).collect();
    let mut files: Vec<(&str, &[u8])> = encoded.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let list = rows.to_string();
    files.push(("test_1/test_1.json", list.as_bytes()));
    zipped(&zip, &files);
    check_imagereward_db(&open_dataset(packed.path()).unwrap());
    check_imagereward_db(&open_dataset(&zip).unwrap());
    fs::copy(fixture("metadata-test.parquet"), packed.path().join("metadata-test.parquet")).unwrap();
    let by_table = open_dataset(packed.path()).unwrap();
    check_imagereward_db(&by_table);
    let shown = by_table.image("images/test/test_1/a.png").unwrap().to_string();
    assert!(shown.ends_with("images/test/test_1.zip!/test_1/a.png"), "{shown}");
    check_imagereward_db(&open_dataset(packed.path().join("metadata-test.parquet")).unwrap());
}

#[test]
fn hpd_v2_is_read_with_its_annotators() {
    let train = json!([{ "human_preference": [0, 1], "prompt": "a bee", "file_path": ["0.jpg", "1.jpg"] },
                       { "human_preference": [1, 1], "prompt": "an ant", "file_path": ["2.jpg", "3.jpg"] }]);
    let test = json!([{ "prompt": "a wasp", "image_path": ["a.jpg", "b.jpg", "c.jpg"], "rank": [2, 0, 1],
                        "raw_annotations": [{ "rank": [1, 2, 3], "user_hash": "ada" }, { "rank": [2, 0, 0], "user_hash": 7 }] },
                      { "prompt": "a fly", "image_path": ["d.jpg", "e.jpg"], "rank": [1, 2] }]);
    let dir = folder(&[("train.json", &train), ("test.json", &test)]);
    fs::create_dir(dir.path().join("train")).unwrap();
    fs::write(dir.path().join("train/1.jpg"), png(77)).unwrap();
    let dataset = open_dataset(dir.path().join("train.json")).unwrap();
    let records = read(&dataset);
    assert_eq!((dataset.format(), pairs(&records)), (Format::HpdTrain, vec![vec![(1, 0)], vec![]]));
    assert_eq!((records[1].id.as_str(), records[1].ties(&Aggregation::default())), ("train-000002", 1));
    assert_eq!(level(&dataset, &records[0].completions[1].image_path), 77);
    assert_eq!(level(&open_dataset(dir.path().join("test.json")).unwrap().with_images(dir.path().join("train")), "1.jpg"), 77);

    let dataset = open_dataset(dir.path().join("test.json")).unwrap();
    let records = read(&dataset);
    assert_eq!((dataset.format(), pairs(&records)), (Format::HpdTest, vec![vec![(1, 0), (1, 2), (2, 0)], vec![(0, 1)]]));
    let single = records_by_annotator(&records[0]).unwrap();
    assert_eq!(pairs(&single), [vec![(0, 1), (0, 2), (1, 2)], vec![(1, 0), (2, 0)]]);
    let names: Vec<_> = single.iter().map(|record| record.annotator.as_ref().unwrap().name.as_str()).collect();
    assert_eq!(names, ["human:ada", "human:7"]);
    assert!(single.iter().all(|record| record.id == "test-000001" && record.extra.is_empty()));
    assert!(records_by_annotator(&records[1]).unwrap().is_empty());
}

#[test]
fn pick_a_pic_is_read_with_its_images() {
    let dataset = open_dataset(fixture("pick_a_pic.parquet")).unwrap();
    assert_eq!(dataset.format(), Format::PickAPic);
    let ReadRecords { records, skipped, unlabelled } = dataset.read(OnProblem::Skip).unwrap();
    assert_eq!((records.len(), unlabelled), (4, 1));
    assert_eq!(skipped.iter().map(Problem::to_string).collect::<Vec<_>>(), ["row 6: expected label_0 to be 0, 0.5 or 1, found 0.7"]);
    assert!(matches!(dataset.read(OnProblem::Refuse), Err(Error::ProblemsInRecords { usable: 4, .. })));
    assert_eq!(pairs(&records), [vec![(0, 1)], vec![(1, 0)], vec![], vec![(0, 1)]]);
    assert_eq!((records[2].comparisons[0].preferred, records[2].ties(&Aggregation::default())), (Preferred::Tie, 1));
    assert_eq!((records[1].id.as_str(), records[1].prompt.as_str(), &records[1].extra["user_id"]), ("101", "an ant", &json!(8)));
    let right = &records[1].completions[1];
    assert_eq!((right.model.as_deref(), &right.extra["image_uid"]), (Some("sdxl"), &json!("right-1")));
    // In any order, across row groups, and again.
    for (row, side, expected) in [(1, 1, 210), (0, 1, 200), (0, 1, 200), (2, 0, 20), (5, 1, 250), (5, 0, 50), (3, 1, 230), (1, 0, 10)] {
        let found = level(&dataset, &format!("pick_a_pic.parquet!/jpg_{side}/{row}"));
        assert!(found.abs_diff(expected) <= 1, "row {row}, jpg_{side}: {found}, not {expected}");
    }
    assert_eq!(level(&dataset, &right.image_path), 210);
    let message = dataset.image("pick_a_pic.parquet!/jpg_0/4").unwrap().load().unwrap_err().to_string();
    assert!(message.contains("pick_a_pic.parquet!/jpg_0/4: the JPEG is cut off"), "{message}");
    for (place, reason) in [("jpg_0/6", "no row 6; there are 6"), ("jpg_7/0", "no column jpg_7"), ("label_0/0", "holds no bytes")] {
        let message = dataset.image(&format!("pick_a_pic.parquet!/{place}")).unwrap().load().unwrap_err().to_string();
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn shards_of_pick_a_pic_are_one_set() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    for name in ["a", "b"] {
        fs::copy(fixture("pick_a_pic.parquet"), dir.path().join(format!("data/{name}.parquet"))).unwrap();
    }
    let dataset = open_dataset(dir.path()).unwrap();
    let ReadRecords { records, skipped, unlabelled } = dataset.read(OnProblem::Skip).unwrap();
    assert_eq!((records.len(), unlabelled), (8, 2));
    assert!(skipped[1].to_string().starts_with("data/b.parquet row 6: "), "{}", skipped[1]);
    assert_eq!(level(&dataset, &records[7].completions[1].image_path), 240);
    assert_eq!(records[7].completions[1].image_path, "data/b.parquet!/jpg_1/4");
}

#[test]
fn images_of_a_text_are_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let rows = [("a.png", "a bee"), ("b.png", "an ant"), ("in/c.png", "a bee")];
    let lines: String = rows.iter().map(|(name, text)| json!({ "file_name": name, "text": text }).to_string() + "\n").collect();
    fs::write(dir.path().join("metadata.jsonl"), lines).unwrap();
    let dataset = open_dataset(dir.path()).unwrap();
    let records = read(&dataset);
    assert_eq!(dataset.format(), Format::ImageFolder);
    let told: Vec<_> = records.iter().map(|record| (record.prompt.as_str(), record.completions.len())).collect();
    assert_eq!(told, [("a bee", 2), ("an ant", 1)]);
    assert_eq!((pairs(&records), records[0].ties(&Aggregation::default())), (vec![vec![], vec![]], 0));
}

/// An entry of each format, and the fields without which it is refused.
fn entries() -> [(Value, &'static [&'static str]); 4] {
    [
        (
            json!({ "id": "1", "prompt": "a", "generations": ["a.png", "b.png"], "ranking": [1, 2] }),
            &["id", "prompt", "generations", "ranking"],
        ),
        (
            json!({ "human_preference": [1, 0], "prompt": "a", "file_path": ["a.png", "b.png"] }),
            &["human_preference", "prompt", "file_path"],
        ),
        (
            json!({ "prompt": "a", "image_path": ["a.png", "b.png"], "rank": [1, 2], "raw_annotations": [{ "rank": [1, 2], "user_hash": "x" }] }),
            &["prompt", "image_path", "rank"],
        ),
        (
            imagereward_db_rows()[0].clone(),
            &["image_path", "prompt_id", "prompt", "rank", "overall_rating", "image_text_alignment_rating", "fidelity_rating"],
        ),
    ]
}

#[test]
fn no_field_of_an_entry_may_be_missing_or_of_another_type() {
    for (entry, fields) in entries() {
        let mut list = vec![entry.clone()];
        for &field in fields {
            let (mut without, mut mistyped) = (entry.clone(), entry.clone());
            without.as_object_mut().unwrap().shift_remove(field);
            mistyped[field] = json!({ "no": "such type" });
            list.extend([without, mistyped]);
        }
        list.push(json!(3));
        let dir = folder(&[("set.json", &Value::Array(list))]);
        let found = findings(&dir.path().join("set.json"));
        assert_eq!(found.len(), 2 * fields.len() + 1, "{found:#?}");
        for (index, found) in found.iter().enumerate() {
            let place = format!("entry {}: ", index + 2);
            assert!(found.contains(&place) && fields.get(index / 2).is_none_or(|field| found.contains(field)), "{found}");
        }
    }
}

#[test]
fn what_entries_say_is_checked() {
    let refused = |entry: usize, pointer: &str, value: Value| {
        let mut entry = entries()[entry].0.clone();
        *entry.pointer_mut(pointer).unwrap() = value;
        let dir = folder(&[("set.json", &json!([entry]))]);
        findings(&dir.path().join("set.json")).join("\n")
    };
    for (entry, pointer, value, reason) in [
        (0, "/generations/1", json!("/etc/a.png"), "entry 1: completions[1].image_path: /etc/a.png is absolute"),
        (0, "/generations/1", json!("../a.png"), "../a.png leads out of the set's folder"),
        (0, "/generations/1", json!("./a.png"), "./a.png is named twice"),
        (0, "/generations/1", json!(3), "expected generations to be a list of strings"),
        (0, "/generations", json!([]), "ranking has 2 numbers for 0 images"),
        (0, "/ranking", json!([1]), "ranking has 1 numbers for 2 images"),
        (0, "/ranking/0", json!(0), "completions[0].rank is 0"),
        (0, "/ranking/0", json!(1.5), "expected ranking to be a list of whole numbers"),
        (0, "/ranking/0", json!(-1), "expected ranking to be a list of whole numbers"),
        (0, "/prompt", json!("  "), "prompt is empty"),
        (0, "/id", json!(""), "id is empty"),
        (1, "/file_path/0", json!("C:\\a.png"), "C:\\a.png is absolute"),
        (1, "/human_preference", json!([1, 0, 0]), "human_preference has 3 numbers for 2 images"),
        (2, "/image_path/0", json!("a/../../b.png"), "leads out of the set's folder"),
        (2, "/raw_annotations", json!("none"), "expected raw_annotations to be a list"),
        (2, "/raw_annotations/0/rank", json!([1]), "raw_annotations[0]: rank has 1 numbers for 2 images"),
        (2, "/raw_annotations/0/user_hash", json!(null), "raw_annotations[0]: it has no user_hash"),
        (3, "/image_path", json!("../../up.png"), "../../up.png leads out of the set's folder"),
        (3, "/rank", json!(0), "completions[0].rank is 0"),
        (3, "/overall_rating", json!("good"), "expected overall_rating to be a number"),
    ] {
        let found = refused(entry, pointer, value);
        assert!(found.contains(reason) && found.lines().count() == 1, "{reason:?} is not in {found:?}");
    }
    let mut rows = imagereward_db_rows();
    rows[3]["prompt"] = json!("a wasp");
    let dir = folder(&[("set.json", &rows)]);
    assert_eq!(findings(&dir.path().join("set.json")), ["set.json entry 4: prompt_id 000001-0001 has another prompt in set.json entry 1"]);
}

#[test]
fn our_own_records_are_found_in_their_folder() {
    let record =
        json!({"id": "1", "prompt": "a bee", "completions": [{"image_path": "a.png", "rank": 1}, {"image_path": "b.png", "rank": 2}]});
    let dir = folder(&[("records.jsonl", &record)]);
    let dataset = open_dataset(dir.path()).unwrap();
    assert_eq!(dataset.format(), Format::Records);
    assert_eq!(pairs(&read(&dataset)), [vec![(0, 1)]]);
    assert_eq!(dataset.image("a.png").unwrap().path(), Some(dir.path().join("a.png").as_path()));
}

#[test]
fn unknown_formats_are_refused_with_those_that_are_known() {
    let dir = folder(&[
        ("words.json", &json!(["a", "b"])),
        ("keys.json", &json!([{ "text": "a", "image": "b" }])),
        ("pairs.jsonl", &json!({ "prompt": "a", "chosen": "b", "rejected": "c" })),
        ("likes.jsonl", &json!({ "prompt": "a", "image": "b", "label": true })),
        ("empty.json", &json!([])),
    ]);
    fs::write(dir.path().join("bytes.bin"), [0xff, 0xd8, 0xff]).unwrap();
    fs::write(dir.path().join("nothing.jsonl"), "").unwrap();
    for (name, reason) in [
        ("words.json", "entry 1: expected an object, found \"a\""),
        ("keys.json", "a JSON list whose entries have [\"text\", \"image\"]"),
        ("pairs.jsonl", "pairs of chosen and rejected images"),
        ("likes.jsonl", "liked and disliked images"),
        ("empty.json", "an empty list"),
        ("bytes.bin", "neither text nor parquet nor zip"),
        ("nothing.jsonl", "text without a line or entry that tells its format"),
        ("", "a folder that holds none of the formats"),
    ] {
        let message = open_dataset(dir.path().join(name)).unwrap_err().to_string();
        assert!(message.contains(reason), "{reason:?} is not in {message:?}");
        for format in Format::ALL {
            assert!(message.contains(&format!("\n  {format}: ")), "{format} is not in {message:?}");
        }
    }
    assert!(matches!(open_dataset(dir.path().join("gone")), Err(Error::Read { .. })));
}
