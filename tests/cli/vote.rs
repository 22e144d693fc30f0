//! `vote`: what a voter is asked and shown, what their answers become, and who knows them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use vp_data::{Preferred, RgbImage, read_records};

use crate::served::Served;
use crate::util::{Finished, run};

/// Two folders of images under the same names, the second brighter.
pub fn write_folders(dir: &Path, images: u8) {
    for (folder, level) in [("dark", 20), ("bright", 200)] {
        fs::create_dir_all(dir.join(folder)).unwrap();
        let mut list = String::new();
        for number in 0..images {
            let image = RgbImage::from_pixel(16, 16, [level, level, number].into());
            vp_data::write_png::<&str, &str>(dir.join(folder).join(format!("{number}.png")), &image, &[]).unwrap();
            list += &format!("{{\"file_name\": \"{number}.png\", \"text\": \"<b>prompt</b> {number}\"}}\n");
        }
        fs::write(dir.join(folder).join("metadata.jsonl"), list).unwrap();
    }
}

pub fn vote_on_folders(dir: &Path) -> Served {
    let path = |name: &str| dir.join(name).display().to_string();
    Served::start(&["vote", "--images", &path("dark"), "--images", &path("bright"), "-o", &path("votes"), "--address", "127.0.0.1:0"])
}

/// The level of the image at a place of a question.
fn level(served: &Served, voter: &str, question: &Value, at: usize) -> u8 {
    let reply = served.get(&format!("/image?voter={voter}&question={}&at={at}", question["question"].as_str().unwrap()));
    assert_eq!(reply.status, 200, "{}", reply.text());
    vp_data::decode_image(&reply.body, Path::new("image")).unwrap().get_pixel(0, 0)[0]
}

fn answer(served: &Served, voter: &str, question: &Value, answer: &str) -> Value {
    let reply = served.post("/api/vote", &json!({ "voter": voter, "question": question["question"], "answer": answer }).to_string());
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

#[test]
fn votes_are_blind_and_become_records_that_other_commands_know() {
    let dir = tempfile::tempdir().unwrap();
    write_folders(dir.path(), 20);
    let served = vote_on_folders(dir.path());
    assert!(!served.get("/").text().contains("bright"));
    let mut question = served.get("/api/question?voter=anna").json();
    assert_eq!((&question["done"], &question["of"], &question["images"]), (&json!(0), &json!(20), &json!(2)));
    let mut shown_left = 0;
    while question["question"].is_string() {
        let text = question.to_string();
        assert!(!text.contains("bright") && !text.contains("dark"), "a question tells who drew what: {text}");
        // The simulated voter likes it bright.
        let bright_is_left = level(&served, "anna", &question, 0) > level(&served, "anna", &question, 1);
        shown_left += u32::from(bright_is_left);
        question = answer(&served, "anna", &question, if bright_is_left { "left" } else { "right" });
    }
    assert!((3..=19).contains(&shown_left), "the sides are by chance: {shown_left}");
    let results = served.get("/api/results").json();
    assert_eq!((&results["votes"], &results["wins"][0]["model"], &results["wins"][0]["won"]), (&json!(22), &json!("bright"), &json!(20)));
    assert_eq!((&results["swapped"]["changed"]["estimate"], &results["same"]["same"]["estimate"]), (&json!(0.0), &json!(1.0)));
    drop(served);

    let records = read_records(dir.path().join("votes/records.jsonl")).unwrap();
    assert_eq!(records.len(), 21, "one of them is of what was asked the same again");
    for record in &records {
        assert_eq!(
            (record.annotator.as_ref().unwrap().name.as_str(), record.completions[1].model.as_deref()),
            ("human:anna", Some("bright"))
        );
        assert!(record.comparisons.iter().all(|one| (one.preferred == Preferred::First) == (one.shown[0] == 1)), "{record:?}");
    }
    let path = dir.path().join("votes/records.jsonl").display().to_string();
    let agreement = run(&["dataset", "agreement", &path]).ok().stdout();
    assert!(agreement.contains("human:anna vote-1: 21 records") && agreement.contains("shown in both orders: 1 pairs"), "{agreement}");
    let scored = run(&["score", "-r", "brightness", "--records", &path]).ok().stdout();
    assert!(scored.contains("brightness"), "{scored}");
    run(&["dataset", "validate", &path]).ok();
}

#[test]
fn votes_go_on_after_an_undo_a_reload_and_another_start_and_voters_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    write_folders(dir.path(), 6);
    let served = vote_on_folders(dir.path());
    let ask = |served: &Served, voter: &str| served.get(&format!("/api/question?voter={voter}")).json();
    let first = ask(&served, "anna");
    let second = answer(&served, "anna", &first, "tie");
    assert_eq!(ask(&served, "anna"), second, "a page that is loaded again asks the same");
    let late = served.post("/api/vote", &json!({ "voter": "anna", "question": first["question"], "answer": "left" }).to_string());
    assert_eq!(late.status, 409, "it was answered in another window");
    let undone = served.post("/api/undo?voter=anna", "").json();
    assert_eq!((&undone["question"], &undone["undone"], &undone["done"]), (&first["question"], &json!(true), &json!(0)));
    let second = answer(&served, "anna", &first, "both_bad");
    let third = answer(&served, "anna", &second, "skip");
    answer(&served, "ben", &ask(&served, "ben"), "left");
    drop(served);
    let served = vote_on_folders(dir.path());
    assert_eq!((ask(&served, "anna"), &ask(&served, "ben")["done"], &ask(&served, "")["done"]), (third, &json!(1), &json!(0)));
    let records = read_records(dir.path().join("votes/records.jsonl")).unwrap();
    let names: Vec<&str> = records.iter().map(|record| record.annotator.as_ref().unwrap().name.as_str()).collect();
    assert_eq!(names, ["human:anna", "human:ben"], "nothing is said of what was skipped or undone");
    assert_eq!(records[0].comparisons[0].rationale, "both are bad");
    for (body, status) in [("nonsense", 400), ("{\"voter\":\"a\\nb\",\"question\":\"\",\"answer\":\"left\"}", 400)] {
        assert_eq!(served.post("/api/vote", body).status, status, "{body}");
    }
    assert_eq!(served.ask("POST", "/api/undo?voter=anna", &[]).status, 403, "writing needs the token");
    assert_eq!((served.get("/image?voter=anna&question=0&at=0").status, served.get("/api/places").status), (404, 404));
    // Somebody else may not write the same folder meanwhile.
    let path = |name: &str| dir.path().join(name).display().to_string();
    let told =
        run(&["vote", "--images", &path("dark"), "--images", &path("bright"), "-o", &path("votes"), "--address", "127.0.0.1:0"]).refused();
    assert!(told.contains("is being written by process"), "{told}");
}

#[test]
fn ratings_are_on_four_aspects_of_records_of_others() {
    let dir = tempfile::tempdir().unwrap();
    write_folders(dir.path(), 1);
    let completion = |folder: &str| json!({ "image_path": format!("{folder}/0.png"), "annotations": { "aesthetic": { "rating": 2 } } });
    let record =
        json!({ "id": "1", "prompt": "a", "completions": [completion("dark"), completion("bright")], "annotator": { "name": "judge" } });
    let records = dir.path().join("records.jsonl");
    fs::write(&records, format!("{record}\n")).unwrap();
    let output = dir.path().join("votes");
    let args = ["vote", "--records", records.to_str().unwrap(), "--rate", "-o", output.to_str().unwrap(), "--address", "127.0.0.1:0"];
    let served = Served::start(&args);
    let question = served.get("/api/question?voter=").json();
    assert_eq!((&question["mode"], &question["images"], &question["of"]), (&json!("rate"), &json!(1), &json!(2)));
    let send = |ratings: Value| {
        served
            .post("/api/vote", &json!({ "voter": "", "question": question["question"], "answer": "rate", "ratings": ratings }).to_string())
    };
    assert_eq!(send(json!({ "aesthetic": 3 })).status, 400, "all four");
    assert_eq!(send(json!({ "prompt_following": 5, "aesthetic": 9, "fidelity": 4, "harmlessness": 5 })).status, 400);
    assert_eq!(send(json!({ "prompt_following": 5, "aesthetic": 3, "fidelity": 4, "harmlessness": 5 })).status, 200);
    let written = read_records(output.join("records.jsonl")).unwrap();
    assert_eq!((written.len(), written[0].completions.len(), written[0].annotator.as_ref().unwrap().name.as_str()), (1, 1, "human"));
    assert_eq!(written[0].completions[0].annotations.len(), 4);
    assert!(output.join(&written[0].completions[0].image_path).is_file(), "the folder is complete in itself");
}

/// Evaluates the two folders of [`write_folders`], with what else is given.
pub fn evaluate_folders(dir: &Path, more: &[&str]) -> Finished {
    let path = |name: &str| dir.join(name).display().to_string();
    let folders = ["evaluate", "--base-images", &path("dark"), "--tuned-images", &path("bright"), "-o", &path("evaluation")];
    run(&[&folders[..], &["-r", "brightness", "-r", "saturation", "--trained-reward", "brightness"], more].concat())
}

#[test]
fn votes_on_an_evaluation_are_in_its_report() {
    let dir = tempfile::tempdir().unwrap();
    write_folders(dir.path(), 12);
    let path = |name: &str| dir.path().join(name).display().to_string();
    let before = evaluate_folders(dir.path(), &[]).ok().stdout();
    assert!(before.contains("The trained reward brightness rose") && !before.contains("People"), "{before}");
    assert!(before.lines().count() < 24, "it fits on a screen: {before}");

    let served = Served::start(&["vote", "--evaluation", &path("evaluation"), "-o", &path("votes"), "--address", "127.0.0.1:0"]);
    for voter in ["anna", "ben"] {
        let mut question = served.get(&format!("/api/question?voter={voter}")).json();
        while question["question"].is_string() {
            let is_tie = voter == "ben" && question["done"] == 0;
            let bright_is_left = level(&served, voter, &question, 0) > level(&served, voter, &question, 1);
            question = answer(
                &served,
                voter,
                &question,
                if is_tie {
                    "tie"
                } else if bright_is_left {
                    "left"
                } else {
                    "right"
                },
            );
        }
    }
    drop(served);

    let after = evaluate_folders(dir.path(), &["--votes", &path("votes")]).ok().stdout();
    assert!(after.contains("People prefer bright to dark: 98 % of 24 votes"), "{after}");
    assert!(after.contains("24 votes by 2 people"), "{after}");
    let report: Value = serde_json::from_slice(&fs::read(dir.path().join("evaluation/report.json")).unwrap()).unwrap();
    let wins = &report["votes"]["wins"][0];
    assert_eq!(
        (&wins["candidate"], &wins["prompts"], &wins["won"], &wins["tied"], &wins["lost"]),
        (&json!("bright"), &json!(12), &json!(23), &json!(1), &json!(0))
    );
    let agreement = &report["votes"]["agreement"][0];
    assert_eq!(
        (&agreement["reward"], &agreement["votes"], &agreement["rate"]["estimate"]),
        (&json!("brightness"), &json!(23), &json!(1.0))
    );
    let read = |name: &str| fs::read_to_string(dir.path().join("evaluation").join(name)).unwrap();
    assert!(read("report.html").contains("What people prefer") && read("report.md").contains("What people prefer"));

    // Votes on other images are none on these.
    let served =
        Served::start(&["vote", "--images", &path("dark"), "--images", &path("bright"), "-o", &path("others"), "--address", "127.0.0.1:0"]);
    answer(&served, "anna", &served.get("/api/question?voter=anna").json(), "left");
    drop(served);
    let told = evaluate_folders(dir.path(), &["--votes", &path("others")]).refused();
    assert!(told.contains("is not about images of this evaluation"), "{told}");
    let told = evaluate_folders(dir.path(), &["--votes", &path("nothing")]).refused();
    assert!(told.contains("--votes") && told.contains("nothing"), "{told}");
}

#[test]
fn what_cannot_be_voted_on_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("votes").display().to_string();
    let refused = |args: &[&str]| run(&[&["vote", "-o", &output, "--address", "127.0.0.1:0"], args].concat()).refused();
    assert!(refused(&[]).contains("expected --records FILE, --evaluation DIR, or --images DIR twice or more"));
    assert!(refused(&["--images", "docs"]).contains("--images names one folder"));
    assert!(refused(&["--evaluation", "docs"]).contains("it has no evaluation.json"));
    assert!(refused(&["--images", "docs/images", "--images", "docs/guide"]).contains("no image under the same name"));
}
