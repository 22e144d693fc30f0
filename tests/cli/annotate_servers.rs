//! `annotate` against servers that do not answer as OpenAI's does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use vp_data::{Aspect, Record};

use crate::scripted_server::{Answer, ScriptedServer, completion, ratings};
use crate::util::{Finished, root, run};

/// A folder with records of one image each, and where annotations go.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new(records: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let line = |number: usize| {
            let name = format!("{number}.png");
            vp_data::RgbImage::from_pixel(8, 6, image::Rgb([200, number as u8, 0])).save(folder.path().join(&name)).unwrap();
            json!({ "id": number.to_string(), "prompt": "a red square", "completions": [{ "image_path": name }] }).to_string()
        };
        let lines: Vec<String> = (0..records).map(line).collect();
        fs::write(folder.path().join("records.jsonl"), lines.join("\n")).unwrap();
        Self { folder }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn annotate(&self, base_url: &str, more: &[&str]) -> Finished {
        let base_url = format!("annotator.openai.base_url={base_url:?}");
        let records = self.folder.path().join("records.jsonl");
        let (records, out) = (records.to_str().unwrap(), self.out());
        let args = ["annotate", "-a", "openai", "--set", "annotator.openai.model=m", "--set", &base_url, "--records", records];
        run(&[&args[..], &["-o", out.to_str().unwrap()], more].concat())
    }

    fn records(&self) -> Vec<Record> {
        let text = fs::read_to_string(self.out().join("records.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn set_aside(&self) -> String {
        fs::read_to_string(self.out().join("set_aside.jsonl")).unwrap()
    }
}

fn v1(server: &ScriptedServer) -> String {
    format!("{}/v1", server.address)
}

fn error(status: u16, message: &str) -> Answer {
    (status, json!({ "error": { "message": message } }))
}

/// Asserts that one question took one request, and that every rating is 4.
#[track_caller]
fn assert_answered(scene: &Scene, finished: &Finished) {
    let said = finished.stdout();
    assert!(said.contains("1 questions: 1 asked (0 put right), 0 known, 0 from the cache, 1 requests"), "{said}");
    let records = scene.records();
    let ratings: Vec<f64> = records[0].completions[0].annotations.values().map(|rating| rating.rating).collect();
    assert_eq!((records.len(), ratings), (1, vec![4.0; Aspect::ALL.len()]));
}

#[test]
fn a_query_stays_behind_the_path() {
    let (scene, server) = (Scene::new(1), ScriptedServer::saying(vec![completion(json!({ "content": ratings(1, 4) }))]));
    let url = format!("{}/openai/deployments/gpt?api-version=2024-10-21", server.address);
    scene.annotate(&url, &[]).ok();
    assert_eq!(server.seen()[0].path, "/openai/deployments/gpt/chat/completions?api-version=2024-10-21");
}

/// A query may hold a token: it is sent, and shown nowhere.
#[test]
fn a_query_is_shown_in_no_message() {
    let (scene, server) = (Scene::new(1), ScriptedServer::saying(vec![error(404, "nothing here")]));
    let stderr = scene.annotate(&format!("{}/v1?token=sesame", server.address), &[]).stderr();
    assert!(stderr.contains("/v1/chat/completions?…: 404 Not Found: nothing here") && !stderr.contains("sesame"), "{stderr}");
    assert!(server.seen()[0].path.ends_with("?token=sesame"));
}

#[test]
fn a_key_is_sent_as_the_server_wants_it() {
    let (scene, server) = (Scene::new(1), ScriptedServer::saying(vec![completion(json!({ "content": ratings(1, 4) }))]));
    let base_url = format!("annotator.openai.base_url={:?}", v1(&server));
    let sent = |out: &str, key: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_visionprefer"));
        command.current_dir(scene.folder.path()).env("VP_TEST_KEY", key).args(["annotate", "-a", "openai", "-o", out]);
        command.args(["--records", "records.jsonl", "--set", "annotator.openai.model=m", "--set", &base_url]);
        let output = command.args(["--set", "annotator.openai.api_key_env=VP_TEST_KEY"]).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let seen = server.seen().pop().unwrap();
        ["authorization", "api-key"].map(|name| seen.header(name).unwrap_or_default().to_owned())
    };
    assert_eq!(sent("a", "sk-12345678", &[]), ["Bearer sk-12345678", ""]);
    assert_eq!(sent("b", "Bearer sk-12345678", &[]), ["Bearer sk-12345678", ""]);
    assert_eq!(sent("c", "sk-12345678", &["--set", "annotator.openai.key_header=api-key"]), ["", "sk-12345678"]);
}

#[test]
fn content_may_come_in_parts() {
    let text = ratings(1, 4);
    let (first, second) = text.split_at(30);
    let parts = json!([{ "type": "text", "text": first }, { "type": "text", "text": second }]);
    let thinking = json!({ "type": "thinking", "thinking": [{ "type": "text", "text": "Perhaps {\"images\": 3}?" }] });
    for content in [parts, json!([thinking, { "type": "text", "text": text }])] {
        let (scene, server) = (Scene::new(1), ScriptedServer::saying(vec![completion(json!({ "content": content }))]));
        assert_answered(&scene, &scene.annotate(&v1(&server), &[]).ok());
    }
}

#[test]
fn an_answer_may_stand_in_the_reasoning() {
    for member in ["reasoning_content", "reasoning"] {
        let mut message = json!({ "content": null });
        message[member] = json!(ratings(1, 4));
        let (scene, server) = (Scene::new(1), ScriptedServer::saying(vec![completion(message)]));
        assert_answered(&scene, &scene.annotate(&v1(&server), &[]).ok());
    }
    let thoughts = json!({ "content": "", "reasoning_content": "The bars look right to me." });
    let (scene, server) = (Scene::new(1), ScriptedServer::saying(vec![completion(thoughts)]));
    scene.annotate(&v1(&server), &[]).ok();
    let expected =
        "content is empty, all of the reply is in reasoning_content: raise max_tokens, or turn the server's reasoning parser off";
    assert!(scene.set_aside().contains(expected), "{}", scene.set_aside());
    assert!(scene.records().is_empty());
}

#[test]
fn a_limit_in_a_200_is_waited_for() {
    let limited = (200, json!({ "error": { "message": "Rate limit exceeded", "code": 429 } }));
    let (scene, server) = (Scene::new(1), ScriptedServer::saying(vec![limited, completion(json!({ "content": ratings(1, 4) }))]));
    let said = scene.annotate(&v1(&server), &[]).ok().stdout();
    assert!(said.contains("1 asked") && said.contains("2 requests") && said.contains("10 tokens in, 5 out"), "{said}");
}

/// A gateway whose provider is down leaves its questions open, and nothing of it is charged.
#[test]
fn an_error_in_a_200_is_shown_and_costs_nothing() {
    let broken = json!({ "message": "Provider returned error", "code": 502, "metadata": { "raw": "upstream overloaded" } });
    let absent = json!("model \"m\" not found, try pulling it first");
    let cut = json!({ "choices": [{ "error": { "message": "cut off", "code": 500 }, "message": { "content": "{" } }] });
    let cases = [
        (json!({ "error": broken }), 4, "502 Bad Gateway: Provider returned error: upstream overloaded"),
        (json!({ "error": absent }), 2, "model \"m\" not found, try pulling it first"),
        (cut, 4, "500 Internal Server Error: cut off"),
        (json!({ "id": "x" }), 2, "the reply has no \"choices\": {\"id\":\"x\"}"),
    ];
    for (body, requests, expected) in cases {
        let (scene, server) = (Scene::new(2), ScriptedServer::saying(vec![(200, body)]));
        let prices = ["--set", "annotator.openai.usd_per_million_input=1000", "--set", "questions.max_usd=10"];
        let finished = scene.annotate(&v1(&server), &[&prices[..], &["--set", "annotator.openai.max_attempts=2"]].concat());
        let (said, stderr) = (finished.stdout(), finished.stderr());
        assert_eq!((finished.code(), server.seen().len()), (Some(1), requests), "{said}{stderr}");
        assert!(stderr.contains(expected) && stderr.contains("2 questions are open"), "{stderr}");
        assert!(!said.contains("tokens in") && said.contains("10.0000 USD of the budget is left"), "{said}");
        assert!(scene.records().is_empty() && scene.set_aside().is_empty());
    }
}

#[test]
fn a_code_in_a_200_ends_the_run_as_the_status_does() {
    for (code, expected) in
        [(json!(401), "check the key"), (json!("402"), "no credit left"), (json!("insufficient_quota"), "no credit left")]
    {
        let refused = (200, json!({ "error": { "message": "Not for you", "code": code } }));
        let (scene, server) = (Scene::new(20), ScriptedServer::saying(vec![refused]));
        let finished = scene.annotate(&v1(&server), &["--set", "questions.concurrency=1"]);
        assert_eq!((finished.code(), server.seen().len()), (Some(1), 1), "{}", finished.stderr());
        assert!(finished.stderr().contains(expected), "{}", finished.stderr());
    }
}

/// OpenAI's reasoning models take `max_completion_tokens` alone. One refusal is enough to know.
#[test]
fn the_limit_is_renamed_for_a_server_that_asks_for_it() {
    let refusal = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.";
    let answer = move |seen: &crate::scripted_server::Seen, _: usize| match seen.body.get("max_tokens") {
        Some(_) => Some(error(400, refusal)),
        None => Some(completion(json!({ "content": ratings(1, 4) }))),
    };
    let (scene, server) = (Scene::new(3), ScriptedServer::start(answer));
    let limit = ["--set", "annotator.openai.max_tokens=77", "--set", "questions.concurrency=1"];
    let said = scene.annotate(&v1(&server), &limit).ok().stdout();
    assert!(said.contains("3 asked (0 put right)") && said.contains("4 requests"), "{said}");
    let limits: Vec<Value> = server.seen().iter().map(|seen| seen.body["max_completion_tokens"].clone()).collect();
    assert_eq!(limits, [Value::Null, json!(77), json!(77), json!(77)]);

    // Whoever sets the newer name by hand does not get the older one too.
    let by_hand = Scene::new(1);
    by_hand.annotate(&v1(&server), &["--set", "annotator.openai.extra.max_completion_tokens=9"]).ok();
    assert_eq!(server.seen().len(), 5);
    // A server that refuses the newer name as well is not asked for ever.
    let (scene, server) = (Scene::new(1), ScriptedServer::saying(vec![error(400, refusal)]));
    scene.annotate(&v1(&server), &[]).ok();
    assert_eq!(server.seen().len(), 2);
    assert!(scene.set_aside().contains("400 Bad Request: Unsupported parameter"), "{}", scene.set_aside());
}

/// The phone's JPEG is stored sideways, the WebP is lossless, the print is CMYK: all of them are 48x32, a red bar above a green one.
#[test]
fn what_is_sent_is_what_the_rewards_see() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["phone.jpg", "bars.webp", "print.jpg"];
    for name in names {
        fs::copy(root().join("tests/cli/pictures").join(name), folder.path().join(name)).unwrap();
    }
    let completions: Vec<Value> = names.iter().map(|name| json!({ "image_path": name })).collect();
    let record = json!({ "id": "1", "prompt": "a red bar above a green one", "completions": completions });
    fs::write(folder.path().join("records.jsonl"), record.to_string()).unwrap();
    let (scene, server) = (Scene { folder }, ScriptedServer::saying(vec![completion(json!({ "content": ratings(3, 4) }))]));
    scene.annotate(&v1(&server), &[]).ok();
    let seen = server.seen();
    let urls = seen[0].body["messages"][0]["content"].as_array().unwrap().iter().filter_map(|part| part["image_url"]["url"].as_str());
    let mut count = 0;
    for (url, name) in urls.zip(names) {
        let (kind, data) = url.split_once(";base64,").unwrap();
        assert!(["data:image/png", "data:image/jpeg"].contains(&kind), "{name}: {kind}");
        let bytes = STANDARD.decode(data).unwrap();
        // This decoder, as many servers', leaves EXIF alone.
        let sent = image::load_from_memory(&bytes).unwrap();
        assert_eq!((sent.color(), sent.width(), sent.height()), (image::ColorType::Rgb8, 48, 32), "{name}");
        let sent = sent.to_rgb8();
        assert_eq!(sent, vp_data::load_image(scene.folder.path().join(name)).unwrap(), "{name}");
        for (row, colour) in [(0, [220, 30, 30]), (31, [30, 160, 40])] {
            let found = sent.get_pixel(24, row).0;
            assert!(found.iter().zip(colour).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 3), "{name}, row {row}: {found:?}");
        }
        count += 1;
    }
    assert_eq!(count, 3);
}

/// Records in the folder that one stands in.
#[test]
fn a_set_may_be_a_bare_file_name() {
    let scene = Scene::new(2);
    let annotate = |records: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_visionprefer"));
        let command = command.current_dir(scene.folder.path()).args(["annotate", "-a", "judge", "--records", records, "-o", "out"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{records}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(annotate("records.jsonl").contains("2 questions: 2 asked"));
    assert_eq!(scene.records().len(), 2);
    assert!(annotate("./records.jsonl").contains("0 asked"));
    let rows = "{\"file_name\": \"0.png\", \"text\": \"a red square\"}\n{\"file_name\": \"1.png\", \"text\": \"a red square\"}\n";
    fs::write(scene.folder.path().join("metadata.jsonl"), rows).unwrap();
    assert!(annotate("metadata.jsonl").contains("1 questions: 1 asked"));
    assert!(Path::new(&scene.out()).join("images/1.png").is_file());
}
