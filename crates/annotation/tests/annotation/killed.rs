//! A worker process that is killed loses nothing that was paid for, and tells nobody the key.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use serde_json::Value;
use vp_annotation::{AnnotatorConfig, BuildContext, Clock, Event, RunOptions, run};

use crate::scene::{Scene, everything, openai};
use crate::server::{Fault, Seen, Server};

const KEY: &str = "sk-a-key-that-nobody-may-see";
const THREADS: usize = 3;

/// The body of the worker process: a run as its environment says, its outcome on standard output.
#[test]
#[ignore = "the other tests of this file run it, in a process of its own"]
fn worker() {
    let Ok(folder) = env::var("VP_TEST_FOLDER") else { return };
    let folder = Path::new(&folder);
    let config: AnnotatorConfig = serde_json::from_str(&env::var("VP_TEST_CONFIG").unwrap()).unwrap();
    let items: Vec<vp_data::Record> = serde_json::from_str(&env::var("VP_TEST_ITEMS").unwrap()).unwrap();
    let annotator = config.build(BuildContext { clock: Clock::simulated(), ..BuildContext::default() }).unwrap();
    let options = RunOptions { concurrency: THREADS, ..everything() };
    let output = folder.join(env::var("VP_TEST_OUTPUT").unwrap());
    let job = vp_annotation::Job { items: &items, images_root: folder, output: &output };
    let progress = |event: Event| println!("{event:?}");
    match run(job, annotator.as_ref(), &options, &progress, &AtomicBool::new(false)) {
        Ok(summary) => println!("{summary:#?}\n{config:?}"),
        Err(error) => println!("{error}\n{error:#?}"),
    }
}

fn spawn(scene: &Scene, config: &AnnotatorConfig, output: &str) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["killed::worker", "--exact", "--ignored", "--nocapture"])
        .env("VP_TEST_FOLDER", scene.folder.path())
        .env("VP_TEST_CONFIG", serde_json::to_string(config).unwrap())
        .env("VP_TEST_ITEMS", serde_json::to_string(&scene.items).unwrap())
        .env("VP_TEST_OUTPUT", output)
        .env("VP_TEST_KEY", KEY)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What the journal holds: keys of questions with an answer, and ids of requests whose reply is there. Its last line may be torn.
fn journaled(scene: &Scene) -> (HashSet<String>, HashSet<String>) {
    let text = fs::read_to_string(scene.output("killed/journal.jsonl")).unwrap_or_default();
    let (mut answered, mut replied, mut counts) = (HashSet::new(), HashSet::new(), HashMap::new());
    for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let key = line["key"].as_str().unwrap().to_owned();
        let count = counts.entry(key.clone()).or_insert(0);
        replied.insert(format!("{key}-{count}"));
        *count += 1;
        if line["said"].get("unusable").is_none() {
            answered.insert(key);
        }
    }
    (answered, replied)
}

#[test]
fn a_killed_worker_goes_on_where_it_was() {
    let scene = Scene::new(20, 2);
    let misbehave = |asked: &crate::server::Asked| match (asked.before, asked.digest[0] % 4) {
        (0, 0 | 2) => Fault::MissingAspect,
        (0, 1) => Fault::Chatter,
        _ => Fault::None,
    };
    let calm = Server::start(misbehave);
    scene.runs(&openai(&calm.base_url, ""), &everything(), "calm");

    let server = Server::with(misbehave, false, Duration::from_millis(25), Clock::system());
    let config = openai(&server.base_url, "");
    let kills = [9, 25, 41, 57];
    for requests in kills {
        let mut child = spawn(&scene, &config, "killed");
        let start = Instant::now();
        while server.seen().len() < requests && start.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(status.code().is_none(), "it ended before it was killed: {status}");
        let ((answered, replied), before) = (journaled(&scene), server.seen().len());
        assert!(!answered.is_empty() && answered.len() < 60, "{}", answered.len());
        let mut child = spawn(&scene, &config, "killed");
        while server.seen().len() < before + 4 && start.elapsed() < Duration::from_secs(60) {
            thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let is_known = |seen: &&Seen| answered.contains(seen.key()) || replied.contains(&seen.request_id);
        let again = server.seen()[before..].iter().filter(is_known).count();
        assert_eq!(again, 0, "what is in the journal was asked again");
    }
    let last = spawn(&scene, &config, "killed").wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&last.stdout).contains("open: 0,"), "{last:?}");
    assert_eq!(scene.read("killed/records.jsonl"), scene.read("calm/records.jsonl"));
    assert_eq!(scene.read("killed/records.jsonl").lines().count(), 40);

    let mut counts = HashMap::new();
    server.seen().into_iter().for_each(|seen| *counts.entry(seen.request_id).or_insert(0) += 1);
    let repeated: usize = counts.values().map(|count| count - 1).sum();
    assert!(repeated <= 2 * kills.len() * THREADS, "{repeated} requests were sent again");
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn the_key_is_shown_to_the_server_alone() {
    let scene = Scene::new(12, 2);
    let kinds = [Fault::Broken, Fault::Chatter, Fault::Rejected, Fault::None];
    let server = Server::start(move |asked| if asked.before < 2 { kinds[asked.digest[0] as usize % 4] } else { Fault::None });
    let forbidden = Server::start(|_| Fault::Status(401));
    for (server, output) in [(&server, "out"), (&forbidden, "refused")] {
        let said = spawn(&scene, &openai(&server.base_url, ""), output).wait_with_output().unwrap();
        for text in [&said.stdout, &said.stderr] {
            assert!(!String::from_utf8_lossy(text).contains(KEY), "{}", String::from_utf8_lossy(text));
        }
        let masked = String::from_utf8_lossy(&said.stdout).contains("Bearer [api key]");
        assert!(masked, "the server did not quote the key: {}", String::from_utf8_lossy(&said.stdout));
    }
    let mut masked = 0;
    for path in files(scene.folder.path()) {
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes()), "{}", path.display());
        masked += usize::from(String::from_utf8_lossy(&bytes).contains("[api key]"));
    }
    // The journal, for what was chattered; the list of what was set aside, for what was rejected.
    assert!(masked >= 2, "{masked}");
}
