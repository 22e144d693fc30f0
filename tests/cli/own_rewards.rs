//! Rewards of one's own: a server, a program, a language model. They drive a run, and when they fail, the run goes on later.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::scripted_server::{Answer, ScriptedServer, Seen, completion, ratings};
#[cfg(unix)]
use crate::util::signal;
use crate::util::{Finished, files, root, run};

/// Two epochs of eight images and two updates each. Previews of two images are drawn before and after.
const SMALL: [&str; 11] = [
    "run.num_train_steps=4",
    "model.size=[32, 32]",
    "scheduler.num_inference_steps=2",
    "optimizer.gradient_accumulation_steps=1",
    "preview.num_inference_steps=1",
    "preview.seeds=[1]",
    "checkpoint.every=0",
    "algo.ddpo.sample_batch_size=8",
    "algo.ddpo.num_batches_per_epoch=1",
    "algo.ddpo.train_batch_size=4",
    "algo.ddpo.advantages={ per_prompt = { buffer_size = 4, min_count = 2 } }",
];

/// The config of DDPO with another reward, and with saturation watched unless `reward` says what is.
fn config(folder: &Path, reward: &str) -> PathBuf {
    let tiny = fs::read_to_string(root().join("configs/ddpo/tiny.toml")).unwrap();
    let (head, rest) = tiny.split_once("[reward.jpeg_compressibility]").unwrap();
    let (_, tail) = rest.split_once("[optimizer]").unwrap();
    let path = folder.join("ddpo.toml");
    let watch = if reward.contains("[[watch]]") { "" } else { "[[watch]]\n[watch.saturation]" };
    fs::write(&path, format!("{head}{reward}\n\n{watch}\n\n[optimizer]{tail}")).unwrap();
    path
}

fn train(config: &Path, output: &Path, more: &[&str]) -> Finished {
    let [config, output] = [config, output].map(|path| path.to_str().unwrap());
    let sets: Vec<&str> = SMALL.iter().flat_map(|set| ["--set", set]).collect();
    run(&[&["train", "--config", config, "-o", output], &sets[..], more].concat())
}

fn resume(output: &Path, more: &[&str]) -> Finished {
    run(&[&["train", "--resume", output.to_str().unwrap()], more].concat())
}

/// The weights at the end, and the metrics less the times.
fn result(output: &Path) -> (Vec<u8>, Vec<Value>) {
    let newest = files(&output.join("checkpoints")).pop().expect("a checkpoint");
    assert!(newest.ends_with("step-000004"), "{newest:?}");
    let metrics = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut line: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
        line.retain(|name, _| !name.contains("second"));
        Value::Object(line)
    };
    (fs::read(newest.join("weights.safetensors")).unwrap(), metrics.lines().map(line).collect())
}

/// Minus the bytes of each image as a PNG, in kB: what `examples/reward_server.py` says.
fn sizes(seen: &Seen) -> Answer {
    let size = |image: &Value| STANDARD.decode(image.as_str().unwrap()).unwrap().len() as f64 / -1000.0;
    (200, json!({ "scores": seen.body["images"].as_array().unwrap().iter().map(size).collect::<Vec<_>>() }))
}

fn http(server: &ScriptedServer) -> String {
    format!("[reward.http]\nurl = \"{}/score\"\nmax_attempts = 1", server.address)
}

#[test]
fn a_server_of_ones_own_drives_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start(|seen, _| Some(sizes(seen)));
    let output = dir.path().join("run");
    train(&config(dir.path(), &http(&server)), &output, &[]).ok();
    let seen = server.seen();
    let counts: Vec<usize> = seen.iter().map(|seen| seen.body["images"].as_array().unwrap().len()).collect();
    // A preview has a request for each prompt, an epoch one for its images.
    assert_eq!(counts, [1, 1, 8, 8, 1, 1]);
    assert!(seen.iter().all(|seen| seen.path == "/score" && seen.body["prompts"].as_array().unwrap().len() <= 8));
    assert_eq!(seen[0].body["prompts"], json!(["a watercolor of a sailing boat"]));
    let png = STANDARD.decode(seen[2].body["images"][7].as_str().unwrap()).unwrap();
    let sent = image::load_from_memory(&png).unwrap();
    assert_eq!((sent.color(), sent.width(), sent.height()), (image::ColorType::Rgb8, 32, 32));
    let (_, metrics) = result(&output);
    let rewards: Vec<f64> = metrics.iter().filter_map(|line| line["reward_mean"].as_f64()).collect();
    assert!(rewards.len() == 4 && rewards.iter().all(|reward| *reward < 0.0), "{metrics:?}");
}

/// The server dies in the second epoch, in the last preview, and before anything was trained; elsewhere it is started again, and the run goes on as if
/// nothing had happened.
#[test]
fn a_run_whose_server_dies_goes_on_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let alive = ScriptedServer::start(|seen, _| Some(sizes(seen)));
    let undisturbed = dir.path().join("undisturbed");
    train(&config(dir.path(), &http(&alive)), &undisturbed, &[]).ok();
    let expected = result(&undisturbed);
    for (requests, saved) in [(3, Some("step-000002")), (4, Some("step-000004")), (5, Some("step-000004")), (0, None)] {
        let mortal = ScriptedServer::start(move |seen, before| (before < requests).then(|| sizes(seen)));
        let output = dir.path().join(format!("disturbed-{requests}"));
        let finished = train(&config(dir.path(), &http(&mortal)), &output, &[]);
        let stderr = finished.stderr();
        assert_eq!(finished.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&format!("reward http: {}/score: no reply in 1 attempt(s)", mortal.address)), "{stderr}");
        let checkpoints: Vec<String> =
            files(&output.join("checkpoints")).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert_eq!(checkpoints, saved.into_iter().collect::<Vec<_>>(), "{requests}: {stderr}");
        assert_eq!(stderr.contains("--resume goes on from there once the reward works again"), saved.is_some(), "{stderr}");
        let moved = format!("reward.http.url=\"{}/score\"", alive.address);
        resume(&output, &["--set", &moved]).ok();
        assert!(result(&output) == expected, "{requests}: the run ended elsewhere\n{:#?}\n{:#?}", result(&output).1, expected.1);
        assert!(output.join("lora.safetensors").is_file() && output.join("report.html").is_file());
    }
}

#[test]
fn a_server_of_ones_own_is_watched_weighed_and_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start(|seen, _| Some(sizes(seen)));
    let url = format!("url = \"{}/score\"", server.address);
    let reward = format!(
        "[[reward.weighted_sum.terms]]\nweight = 2.0\n[reward.weighted_sum.terms.reward.http]\n{url}\n\
         [[reward.weighted_sum.terms]]\nweight = 1.0\n[reward.weighted_sum.terms.reward.brightness]\n[[watch]]\n[watch.http]\n{url}\nbatch_size = 3"
    );
    let output = dir.path().join("run");
    let config = config(dir.path(), &reward);
    train(&config, &output, &["--set", "run.num_train_steps=2"]).ok();
    let metrics = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let updates: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let update = updates.iter().find(|line| line["reward_mean"].is_number()).unwrap();
    let value = |name: &str| update[name].as_f64().unwrap();
    assert!((value("reward_mean") - 2.0 * value("reward/http") - value("reward/brightness")).abs() < 1e-5, "{update}");
    assert_eq!(value("watch/http"), value("reward/http"));

    // On the command line, a config names it.
    let alone = dir.path().join("alone.toml");
    fs::write(&alone, format!("[reward.http]\n{url}")).unwrap();
    let folder = dir.path().join("images");
    fs::create_dir(&folder).unwrap();
    for name in ["0", "1"] {
        fs::copy(root().join("tests/cli/pictures/bars.webp"), folder.join(format!("{name}.webp"))).unwrap();
        fs::write(folder.join(format!("{name}.txt")), "bars").unwrap();
    }
    let image = folder.join("0.webp");
    let [alone, folder, image] = [&alone, &folder, &image].map(|path| path.to_str().unwrap());
    let scored = run(&["score", "-r", alone, "-p", "bars", image, "--json"]).ok().stdout();
    let score = serde_json::from_str::<Value>(&scored).unwrap()["score"].as_f64().unwrap();
    assert!(score < -0.05, "{scored}");
    let evaluation = dir.path().join("evaluation");
    let evaluation = evaluation.to_str().unwrap();
    let args = ["evaluate", "--base-images", folder, "--tuned-images", folder, "-r", alone, "-o", evaluation];
    assert!(run(&args).ok().stdout().contains("alone.toml"));
    let refused = run(&["score", "-r", "http", "-p", "bars", image]).refused();
    assert!(refused.contains("this reward needs a config (missing field `url`); give a .toml with a [reward.http]"), "{refused}");
}

/// A program that scores a batch of one by the length of its line, and says on standard error when it begins and when it ends.
const PROGRAM: &str = "echo begun >&2; while read -r line; do echo \"[-${#line}]\"; done; echo ended >&2";

#[cfg(unix)]
#[test]
fn a_program_of_ones_own_drives_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let reward = format!("[reward.command]\nprogram = [\"/bin/sh\", \"-c\", '{PROGRAM}']\nbatch_size = 1");
    let output = dir.path().join("run");
    let stderr = train(&config(dir.path(), &reward), &output, &[]).ok().stderr();
    assert_eq!((stderr.matches("begun").count(), stderr.matches("ended").count()), (1, 1), "{stderr}");
    let (_, metrics) = result(&output);
    // 32x32 pixels are some kB of base64.
    assert!(
        metrics.iter().filter_map(|line| line["reward_mean"].as_f64()).all(|reward| (-9000.0..-1000.0).contains(&reward)),
        "{metrics:?}"
    );
}

/// It answers the two images of the first preview and eleven of training, which is within the second epoch.
#[cfg(unix)]
#[test]
fn a_run_whose_program_dies_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let dying = "n=0; while [ $n -lt 13 ] && read -r line; do n=$((n + 1)); echo \"[-${#line}]\"; done; exit 7";
    let reward = format!("[reward.command]\nprogram = [\"/bin/sh\", \"-c\", '{dying}']\nbatch_size = 1");
    let output = dir.path().join("run");
    let finished = train(&config(dir.path(), &reward), &output, &[]);
    let stderr = finished.stderr();
    assert_eq!(finished.code(), Some(1), "{stderr}");
    assert!(stderr.contains("reward command: /bin/sh -c ") && stderr.contains("it ended (exit status: 7)"), "{stderr}");
    assert!(stderr.contains("step-000002"), "{stderr}");
    // The reason stays in the folder until the run has reached its end.
    let reason = std::fs::read_to_string(output.join("failure.txt")).unwrap();
    assert!(reason.contains("it ended (exit status: 7)") && reason.contains(env!("CARGO_PKG_VERSION")), "{reason}");
    // What is left takes ten answers.
    resume(&output, &[]).ok();
    assert!(!output.join("failure.txt").exists());
    assert_eq!(result(&output).1.iter().filter(|line| line["reward_mean"].is_number()).count(), 4);
}

/// Rates an image by how bright it is, on every aspect alike.
fn by_brightness(seen: &Seen) -> Answer {
    let parts = seen.body["messages"][0]["content"].as_array().unwrap();
    let url = parts.iter().find_map(|part| part["image_url"]["url"].as_str()).unwrap();
    let png = STANDARD.decode(url.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
    let image = image::load_from_memory(&png).unwrap().to_rgb8();
    let mean = image.as_raw().iter().map(|value| f64::from(*value)).sum::<f64>() / image.as_raw().len() as f64;
    completion(json!({ "content": ratings(1, 1 + (mean as u32 * 13 % 5)) }))
}

fn vlm(server: &ScriptedServer, more: &str) -> String {
    format!(
        "[reward.vlm]\n{more}\n[reward.vlm.openai]\nmodel = \"m\"\nbase_url = \"{}/v1\"\nmax_attempts = 1\nusd_per_million_input = 1000.0",
        server.address
    )
}

#[test]
fn a_language_model_drives_a_run_and_is_asked_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start(|seen, _| Some(by_brightness(seen)));
    let cache = format!("cache = {:?}", dir.path().join("cache"));
    let config = config(dir.path(), &vlm(&server, &cache));
    train(&config, &dir.path().join("run"), &[]).ok();
    // Two previews of two images, and two epochs of eight.
    assert_eq!(server.seen().len(), 2 * 2 + 2 * 8);
    let expected = result(&dir.path().join("run"));
    let update = expected.1.iter().find(|line| line["reward_mean"].is_number()).unwrap();
    let aspects = ["prompt_following", "aesthetic", "fidelity", "harmlessness"].map(|aspect| update[format!("reward/{aspect}")].as_f64());
    assert!(aspects.iter().all(|aspect| *aspect == update["reward_mean"].as_f64() && aspect.is_some()), "{update}");
    let asked = &server.seen()[0].body;
    assert!(
        asked["messages"][0]["content"][0]["text"].as_str().unwrap().contains("prompt_following") && asked["response_format"].is_object()
    );

    train(&config, &dir.path().join("again"), &[]).ok();
    assert_eq!(server.seen().len(), 20, "everything was in the cache");
    assert!(result(&dir.path().join("again")) == expected);
}

/// A wait that a busy server asks for is told once, with who asks and how long, and a Ctrl-C ends it: the run is saved and goes on later.
#[cfg(unix)]
#[test]
fn a_wait_for_a_busy_server_is_told_and_ended() {
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = ScriptedServer::start(|seen, _| Some(sizes(seen)));
    let http = |server: &ScriptedServer| format!("[reward.http]\nurl = \"{}/score\"", server.address);
    let expected = dir.path().join("undisturbed");
    train(&config(dir.path(), &http(&undisturbed)), &expected, &[]).ok();
    // Busy from the second epoch on.
    let busy = ScriptedServer::start(|seen, before| Some(if before < 3 { sizes(seen) } else { (429, json!("Slow down.")) }));
    let (config, output) = (config(dir.path(), &http(&busy)), dir.path().join("run"));
    let sets = SMALL.iter().flat_map(|set| ["--set", set]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_visionprefer"));
    child.current_dir(root()).args(["train", "--quiet", "--config"]).arg(config).arg("-o").arg(&output).args(sets);
    let mut child = child.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(|line| line.unwrap());
    let told = lines.find(|line| line.contains("waiting")).expect("the wait is told");
    assert!(told.starts_with(&format!("warning: {}/score: waiting 5 minutes (429 Too Many Requests", busy.address)), "{told}");
    let asked = std::time::Instant::now();
    signal(&child, "-INT");
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(asked.elapsed().as_secs() < 60 && !rest.iter().any(|line| line.contains("waiting")), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("stopped by signal 2; saved to") && line.contains("step-000002")), "{rest:?}");
    let moved = format!("reward.http.url=\"{}/score\"", undisturbed.address);
    resume(&output, &["--set", &moved]).ok();
    assert!(result(&output) == result(&expected));
}

/// The second Ctrl-C of a run, and the first of a command that has nothing to save.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_that_ends_a_command_ends_the_programs_of_its_rewards() {
    let dir = tempfile::tempdir().unwrap();
    let started = dir.path().join("started");
    // It tells the number of a program that it has started, and never answers.
    let script = format!("sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait", started.display());
    let reward = format!("[reward.command]\nprogram = [\"/bin/sh\", \"-c\", \"{script}\"]");
    let path = dir.path().join("reward.toml");
    fs::write(&path, &reward).unwrap();
    let (run, path) = (dir.path().join("run"), path.to_str().unwrap());
    let config = config(dir.path(), &reward);
    let train = ["train", "--config", config.to_str().unwrap(), "-o", run.to_str().unwrap(), "--set", "run.num_train_steps=1"];
    let score = ["score", "-r", path, "-p", "a fox", "checkpoints/tiny-images/00.png"];
    for (args, signals) in [(&train[..], 2), (&score, 1)] {
        let _ = fs::remove_file(&started);
        let mut child = Command::new(env!("CARGO_BIN_EXE_visionprefer"));
        let mut child = child.current_dir(root()).args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let wait = |what: &dyn Fn() -> bool| {
            let began = std::time::Instant::now();
            while !what() && began.elapsed().as_secs() < 60 {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            what()
        };
        assert!(wait(&|| started.exists()), "{args:?}");
        let pid = fs::read_to_string(&started).unwrap();
        // The state stands behind the name, which ends in a bracket; Z is one that has ended and that nobody asked about.
        let state = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).ok()?.rsplit_once(") ")?.1.chars().next();
        let is_there = || state().is_some_and(|state| state != 'Z');
        assert!(is_there());
        for _ in 0..signals {
            signal(&child, "-INT");
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        assert!(!child.wait().unwrap().success());
        assert!(wait(&|| !is_there()), "{args:?} left {pid}");
    }
}

/// Each reply costs 0.01 USD, 10 tokens at 1000 USD per million.
#[test]
fn a_budget_ends_a_run_that_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let server = ScriptedServer::start(|seen, _| Some(by_brightness(seen)));
    let more = format!("max_requests = 12\ncache = {:?}", dir.path().join("cache"));
    let output = dir.path().join("run");
    let finished = train(&config(dir.path(), &vlm(&server, &more)), &output, &[]);
    let stderr = finished.stderr();
    assert_eq!((finished.code(), server.seen().len()), (Some(1), 12), "{stderr}");
    assert!(
        stderr.contains("reward vlm: max_requests = 12: 12 were sent; raise it to go on") && stderr.contains("step-000002"),
        "{stderr}"
    );
    resume(&output, &["--set", "reward.vlm.max_requests=20"]).ok();
    result(&output);
}

#[test]
fn an_image_that_the_model_refuses_is_an_error_or_has_the_score_that_is_set() {
    let dir = tempfile::tempdir().unwrap();
    // The second image of the first epoch.
    let refusing = |seen: &Seen, before: usize| match before {
        3..5 => Some(completion(json!({ "content": null, "refusal": "I would rather not." }))),
        _ => Some(by_brightness(seen)),
    };
    let told = |more: &str, output: &str| {
        let server = ScriptedServer::start(refusing);
        let more = format!("concurrency = 1\n{more}");
        train(&config(dir.path(), &vlm(&server, &more)), &dir.path().join(output), &["--set", "run.num_train_steps=2"])
    };
    let stderr = told("", "refused").stderr();
    assert!(
        stderr.contains("has no rating: the model refused: I would rather not.; reward.vlm.unrated gives such images a score"),
        "{stderr}"
    );
    told("unrated = 0.0", "unrated").ok();
}

#[test]
fn sections_of_ones_own_rewards_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |reward: &str, expected: &[&str]| {
        let stderr = train(&config(dir.path(), reward), &dir.path().join("run"), &["--dry-run"]).refused();
        assert!(expected.iter().all(|part| stderr.contains(part)), "{reward}: {stderr}");
    };
    let http = "[reward.http]\nurl = \"localhost:8100\"\nbatch_size = 0\ntimeout_s = 0.0\napi_key_env = \"sk-secret\"";
    refused(http, &["reward.http.url = \"localhost:8100\"", "batch_size = 0", "timeout_s = 0", "api_key_env is not the name"]);
    refused("[reward.http]\nuri = \"http://a\"", &["did you mean `url`?"]);
    refused("[reward.command]\nprogram = []", &["reward.command.program is empty: expected a program and its arguments"]);
    refused("[reward.command]\nprogram = [\"no/such/program\"]", &["reward command: no/such/program: cannot be started"]);
    let vlm = "[reward.vlm]\nconcurrency = 0\n[reward.vlm.openai]\nmodel = \"\"\n[reward.vlm.aspects]\naesthetic = -1.0";
    refused(vlm, &["reward.vlm.openai.model is empty", "reward.vlm.aspects.aesthetic = -1", "reward.vlm.concurrency = 0"]);
}

/// The two examples, as they are in `examples/`.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Needs python3, which is not on every machine; `.ci/run` runs it.
#[test]
#[ignore = "needs python3; .ci/run runs it"]
fn the_examples_in_python_score_alike_and_drive_a_run() {
    let version = Command::new("python3").arg("--version").output();
    assert!(version.is_ok_and(|version| version.status.success()), "python3 is not there: install it, and test again");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Command::new("python3");
    server.args(["examples/reward_server.py", &port.to_string()]).current_dir(root()).stderr(Stdio::piped());
    let mut server = Served(server.spawn().expect("python3 runs"));
    let dir = tempfile::tempdir().unwrap();
    // The first request is sent again until the server listens.
    let http = format!("[reward.http]\nurl = \"http://127.0.0.1:{port}/score\"");
    train(&config(dir.path(), &http), &dir.path().join("http"), &[]).ok();
    let command = "[reward.command]\nprogram = [\"python3\", \"examples/reward_command.py\"]";
    train(&config(dir.path(), command), &dir.path().join("command"), &[]).ok();
    assert!(result(&dir.path().join("http")).0 == result(&dir.path().join("command")).0, "the same scores train the same weights");
    let mut line = String::new();
    BufReader::new(server.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("POST /score"), "{line}");
}
