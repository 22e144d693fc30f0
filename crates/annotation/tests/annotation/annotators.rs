//! The other annotators, and prompts.

use std::fs;
use std::sync::atomic::AtomicBool;

use vp_annotation::{AnnotatorConfig, BuildContext, Clock, Error, RunOptions, polish};
use vp_data::{Aspect, Preferred, Prompt, Record, RgbImage, read_prompts};

use crate::scene::{Scene, everything, openai};
use crate::server::{Fault, Server};

fn annotator(text: &str) -> AnnotatorConfig {
    toml::from_str(text).unwrap()
}

fn records(scene: &Scene, output: &str) -> Vec<Record> {
    scene.read(&format!("{output}/records.jsonl")).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_judge_rates_pictures_of_its_world() {
    let mut scene = Scene::new(2, 2);
    scene.items[0].prompt = "a red circle on a white background".into();
    // A red disc on white, and nothing at all.
    let disc = RgbImage::from_fn(64, 64, |x, y| {
        let inside = (f64::from(x) - 31.5).hypot(f64::from(y) - 31.5) < 14.0;
        image::Rgb(if inside { [220, 30, 30] } else { [255, 255, 255] })
    });
    disc.save(scene.output("images/0_0.png")).unwrap();
    RgbImage::from_pixel(64, 64, image::Rgb([255; 3])).save(scene.output("images/0_1.png")).unwrap();
    let summary = scene.runs(&annotator("[judge]"), &everything(), "out");
    assert_eq!((summary.asked, summary.requests, summary.usage.usd), (6, 0, 0.0));
    let records = records(&scene, "out");
    let following = |record: &Record, image: usize| record.completions[image].annotations[&Aspect::PromptFollowing].clone();
    assert!(following(&records[0], 0).rating > following(&records[0], 1).rating, "{:?}", records[0]);
    // Whole numbers, unless its own fractions are asked for.
    let of_disc = |record: &Record| record.completions[0].annotations.values().map(|rating| rating.rating).collect::<Vec<_>>();
    assert!(of_disc(&records[0]).iter().all(|rating| rating.fract() == 0.0), "{records:?}");
    scene.runs(&annotator("[judge]\nwhole = false"), &everything(), "exact");
    assert!(of_disc(&self::records(&scene, "exact")[0]).iter().any(|rating| rating.fract() != 0.0));
    assert_eq!(records[1].comparisons.iter().map(|c| c.preferred).collect::<Vec<_>>(), [Preferred::First, Preferred::Second]);
    // "prompt number 1" is no caption of that world.
    assert_eq!(following(&records[2], 0).rating, 1.0);
    assert!(following(&records[2], 0).rationale.contains("prompt number 1"));
}

#[test]
fn a_reward_becomes_bands() {
    let scene = Scene::new(2, 3);
    let score = |images: &[RgbImage], prompt: &str| match prompt.ends_with('1') {
        true => Err("out of memory".to_owned()),
        false => Ok(images.iter().map(|image| f64::from(image.get_pixel(0, 0).0[1])).collect()),
    };
    fs::write(scene.output("scores.txt"), "0\n1\n2\n3\n4\n").unwrap();
    let path = scene.output("scores.txt");
    let config = annotator(&format!("[reward]\nlabel = \"green\"\nquantiles = [0.25, 0.5, 0.75, 1.0]\nreference_scores = {path:?}"));
    let annotator = config.build(BuildContext { score: Some(Box::new(score)), ..BuildContext::default() }).unwrap();
    let output = scene.output("out");
    let summary = vp_annotation::run(scene.job(&output), annotator.as_ref(), &everything(), &|_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!((summary.asked, summary.set_aside.len(), summary.set_aside[0].reason.as_str()), (7, 7, "out of memory"));
    let records = records(&scene, "out");
    let ratings: Vec<f64> = records[0].completions.iter().map(|image| image.annotations[&Aspect::Fidelity].rating).collect();
    assert_eq!(ratings, [1.0, 2.0, 3.0]);
    assert!(records[1].comparisons.iter().all(|c| (c.preferred == Preferred::First) == (c.shown[0] > c.shown[1])), "{records:?}");
    assert!(matches!(config.build(BuildContext::default()), Err(Error::Unable { .. })));
}

#[test]
fn earlier_records_answer_for_the_same_images_elsewhere() {
    let scene = Scene::new(3, 2);
    let server = Server::start(|_| Fault::None);
    scene.runs(&openai(&server.base_url, ""), &everything(), "out");
    let mut other = Scene::new(4, 2);
    other.items.rotate_left(1);
    let path = scene.output("out/records.jsonl");
    let replay = annotator(&format!("[replay]\nrecords = {path:?}\nannotator = \"openai\""));
    let summary = other.runs(&replay, &everything(), "out");
    // Of the fourth prompt nothing was said: a rating and two comparisons.
    assert_eq!((summary.asked, summary.set_aside.len()), (9, 3));
    let (said, replayed) = (records(&scene, "out"), records(&other, "out"));
    let same = |id: &str, at: usize| {
        let of = |records: &[Record]| records.iter().filter(|record| record.id == id).nth(at).cloned().unwrap();
        let (said, replayed) = (of(&said), of(&replayed));
        let annotations = |record: &Record| record.completions.iter().map(|c| c.annotations.clone()).collect::<Vec<_>>();
        assert_eq!((annotations(&said), &said.comparisons), (annotations(&replayed), &replayed.comparisons));
        assert_eq!(replayed.annotator.unwrap().name, "replay");
    };
    ["000", "001", "002"].iter().for_each(|id| (same(id, 0), same(id, 1)).0);
    let nobody = annotator(&format!("[replay]\nrecords = {path:?}\nannotator = \"human\""));
    assert_eq!(other.runs(&nobody, &RunOptions::default(), "nobody").set_aside.len(), 4);
}

#[test]
fn prompts_are_polished_and_can_be_read_again() {
    let scene = Scene::new(1, 1);
    let server = Server::start(|asked| if asked.prompt == "a no" { Fault::Refusal } else { Fault::None });
    let prompts = ["a cat", "a dog gore", "a no", " gore"].map(Prompt::new);
    let annotator = openai(&server.base_url, "").build(BuildContext { clock: Clock::simulated(), ..BuildContext::default() }).unwrap();
    let (output, stop) = (scene.output("polished"), AtomicBool::new(false));
    let run = || polish(&prompts, annotator.as_ref(), &RunOptions::default(), &output, &|_| {}, &stop).unwrap();
    let summary = run();
    assert_eq!((summary.asked, summary.requests, summary.set_aside.len()), (3, 5, 2));
    let read = read_prompts(output.join("prompts.jsonl")).unwrap();
    assert_eq!(
        read.iter().map(|p| (p.id.as_deref().unwrap(), p.text.as_str())).collect::<Vec<_>>(),
        [("000000", "a cat"), ("000001", "a dog")]
    );
    let line = r#"{"id":"000001","prompt":"a dog","prompt_raw":"a dog gore","removed":["unsafe"]}"#;
    assert!(scene.read("polished/prompts.jsonl").contains(line), "{}", scene.read("polished/prompts.jsonl"));
    assert_eq!(run().requests, 0);
    let judge = toml::from_str::<AnnotatorConfig>("[judge]").unwrap().build(BuildContext::default()).unwrap();
    let error = polish(&prompts, judge.as_ref(), &RunOptions::default(), &scene.output("judged"), &|_| {}, &stop).unwrap_err();
    assert!(error.to_string().contains("choose `openai`"), "{error}");
}
