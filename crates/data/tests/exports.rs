//! Records leave as what other trainers read, and lose nothing on the way.

use std::fs;

use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use vp_data::{
    Aggregation, Aspect, Comparison, Completion, OnProblem, Preferences, Preferred, Rating, Record, open_dataset, read_records,
    to_imagereward, write_pairs, write_records,
};

/// Numbers that look random and are the same every time.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A record of up to nine images, rated on all aspects or ranked with ties and gaps.
fn drawn(index: usize, draws: &mut Draws) -> Record {
    let is_rated = draws.below(2) == 0;
    let completion = |image: u64| {
        let mut completion = Completion { image_path: format!("in {index}/é{image}.png"), ..Completion::default() };
        if is_rated {
            let mut rating = |aspect| (aspect, Rating { rating: 1.0 + draws.below(5) as f64, rationale: "so".into() });
            completion.annotations = Aspect::ALL.into_iter().map(&mut rating).collect();
        } else {
            completion.rank = Some(1 + draws.below(7) as u32);
        }
        completion
    };
    let images = 1 + index as u64 % 9;
    Record::new(format!("{index:04}"), format!("prompt \"{index}\"\n of é🙂"), (0..images).map(completion).collect())
}

#[test]
fn records_become_imagereward_and_back_without_loss() {
    let mut draws = Draws(7);
    let records: Vec<Record> = (0..500).map(|index| drawn(index, &mut draws)).collect();
    let aggregations =
        [Aggregation::default(), Aggregation::only(Aspect::Fidelity), Aggregation { weights: [2.0, 0.5, 0.0, 1.0], margin: 0.0 }];
    let dir = tempfile::tempdir().unwrap();
    for aggregation in aggregations {
        let list: Vec<Value> = records.iter().map(|record| to_imagereward(record, &aggregation).unwrap()).collect();
        let path = dir.path().join("train.json");
        fs::write(&path, Value::Array(list.clone()).to_string()).unwrap();
        let back = open_dataset(&path).unwrap().read(OnProblem::Refuse).unwrap().records;
        assert_eq!(back.len(), records.len());
        for (record, back) in records.iter().zip(&back) {
            let images = |record: &Record| record.completions.iter().map(|completion| completion.image_path.clone()).collect::<Vec<_>>();
            assert_eq!((&record.id, &record.prompt, images(record)), (&back.id, &back.prompt, images(back)));
            assert_eq!(record.pairs(&aggregation), back.pairs(&aggregation), "{}", record.id);
            assert_eq!(record.ties(&aggregation), back.ties(&aggregation), "{}", record.id);
            let own = |record: &Record| record.completions.iter().map(|completion| completion.rank).collect::<Option<Vec<u32>>>();
            // Where people ranked, their very numbers come back.
            assert!(own(record).is_none_or(|ranks| Some(ranks) == own(back)), "{}", record.id);
        }
        let again: Vec<Value> = back.iter().map(|record| to_imagereward(record, &aggregation).unwrap()).collect();
        assert_eq!(again, list);
    }
}

#[test]
fn a_rank_is_one_more_than_the_number_of_better_images() {
    let completion = |image: usize, rating| Completion {
        image_path: format!("{image}.png"),
        annotations: [(Aspect::Aesthetic, Rating { rating, rationale: String::new() })].into(),
        ..Completion::default()
    };
    let completions = [2.0, 5.0, 5.0, 1.0].into_iter().enumerate().map(|(image, rating)| completion(image, rating)).collect();
    let mut record = Record::new("7", "a bee", completions);
    let exported = to_imagereward(&record, &Aggregation::only(Aspect::Aesthetic)).unwrap();
    let expected = json!({ "id": "7", "prompt": "a bee", "generations": ["0.png", "1.png", "2.png", "3.png"], "ranking": [3, 1, 1, 4] });
    assert_eq!(exported, expected);

    let refused = |record: &Record, aggregation: &Aggregation| to_imagereward(record, aggregation).unwrap_err().to_string();
    let margin = Aggregation { margin: 3.0, ..Aggregation::only(Aspect::Aesthetic) };
    assert!(refused(&record, &margin).contains("record 7: its pairs do not make a ranking"));
    assert!(refused(&record, &Aggregation::default()).contains("record 7: its images have no ratings that count"));
    record.comparisons =
        [[0, 1], [1, 2], [2, 0]].map(|shown| Comparison { shown, preferred: Preferred::First, rationale: String::new() }).into();
    assert!(refused(&record, &Aggregation::default()).contains("a circle"));
}

fn ranked(images: &[(&str, u32)]) -> Record {
    let completion = |(image, rank): &(&str, u32)| Completion { image_path: (*image).into(), rank: Some(*rank), ..Completion::default() };
    Record::new("1", "a bee", images.iter().map(completion).collect())
}

#[test]
fn pairs_are_read_by_what_reads_pairs() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("images")).unwrap();
    for (name, level) in [("a", 9), ("b", 90), ("c", 200)] {
        RgbImage::from_pixel(20, 20, Rgb([level; 3])).save(dir.path().join(format!("images/{name}.png"))).unwrap();
    }
    let records = [ranked(&[("a.png", 2), ("b.png", 1), ("c.png", 2)]), ranked(&[("c.png", 1), ("a.png", 1)])];
    for (list, prefix) in
        [("pairs.jsonl".to_owned(), "images/".to_owned()), ("lists/pairs.jsonl".into(), format!("{}/images/", dir.path().display()))]
    {
        let path = dir.path().join(&list);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        assert_eq!(write_pairs(&path, &records, &Aggregation::default(), dir.path().join("images")).unwrap(), 2);
        let pairs = Preferences::read(&path, OnProblem::Refuse, 16).unwrap().pairs;
        let told: Vec<_> =
            pairs.iter().map(|pair| (pair.prompt.as_str(), pair.chosen.file_name.as_str(), pair.rejected.file_name.as_str())).collect();
        let [a, b, c] = ["a", "b", "c"].map(|name| format!("{prefix}{name}.png"));
        assert_eq!(told, [("a bee", b.as_str(), a.as_str()), ("a bee", &b, &c)]);
    }
    // Ranks say nothing of how much better an image is; ratings do.
    let path = dir.path().join("pairs.jsonl");
    assert!(!fs::read_to_string(&path).unwrap().contains("score"));
    let rated = |image: &str, rating: f64| Completion {
        image_path: image.into(),
        annotations: [(Aspect::Aesthetic, Rating { rating, rationale: String::new() })].into(),
        ..Completion::default()
    };
    let record = Record::new("1", "a bee", vec![rated("a.png", 1.0), rated("b.png", 4.0), rated("c.png", 5.0)]);
    let aesthetic = Aggregation { weights: [0.0, 2.0, 0.0, 0.0], margin: 0.0 };
    assert_eq!(write_pairs(&path, &[record], &aesthetic, dir.path().join("images")).unwrap(), 3);
    let first: Value = serde_json::from_str(fs::read_to_string(&path).unwrap().lines().next().unwrap()).unwrap();
    let expected =
        json!({ "prompt": "a bee", "chosen": "images/b.png", "rejected": "images/a.png", "chosen_score": 8.0, "rejected_score": 2.0 });
    assert_eq!(first, expected);
    // Scores from 2 to 10: e^((8 - 2) / 8) to 1.
    let probability = Preferences::read_with_probabilities(&path, OnProblem::Refuse, 16).unwrap().pairs[0].probability.unwrap();
    assert!((probability - 1.0 / (1.0 + (-0.75f64).exp())).abs() < 1e-12, "{probability}");

    let inside = [ranked(&[("set.zip!/a.png", 1), ("b.png", 2)])];
    let message = write_pairs(dir.path().join("no.jsonl"), &inside, &Aggregation::default(), dir.path()).unwrap_err().to_string();
    assert!(message.contains("set.zip!/a.png is inside an archive"), "{message}");
    assert!(!dir.path().join("no.jsonl").exists());
}

#[test]
fn records_of_our_own_are_a_dataset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.jsonl");
    let mut draws = Draws(1);
    let records: Vec<Record> = (0..20).map(|index| drawn(index, &mut draws)).collect();
    write_records(&path, &records).unwrap();
    assert_eq!(read_records(&path).unwrap(), records);
    assert_eq!(open_dataset(&path).unwrap().read(OnProblem::Refuse).unwrap().records, records);
}
