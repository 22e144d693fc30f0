//! Models of the hub, from a server of the test's own.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use serde_json::json;
use vp_data::load_image;

use crate::util::{MODEL, files, root};

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";

/// What the server was asked: path, byte range, authorization.
type Asked = Arc<Mutex<Vec<[String; 3]>>>;

/// A hub with one model, `org/tiny`, and one that is gated.
struct Hub {
    endpoint: String,
    asked: Asked,
}

impl Hub {
    /// The first answer with `cut` bytes or more is cut off there.
    fn start(cut: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (asked, mut cut) = (Asked::default(), cut);
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &log, &mut cut);
            }
        });
        Self { endpoint, asked }
    }

    fn downloads(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let of_files = asked.iter().filter(|[path, range, _]| path.contains("/resolve/") && range != "bytes=0-0");
        of_files.map(|[path, ..]| path.split("/resolve/").nth(1).unwrap().to_string()).collect()
    }
}

fn answer(stream: TcpStream, log: &Asked, cut: &mut Option<usize>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_string());
    }
    let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)).map(String::from) else { return };
    let header = |name: &str| {
        let found = lines.iter().find(|line| line.to_lowercase().starts_with(&format!("{name}:")));
        found.map_or(String::new(), |line| line[name.len() + 1..].trim().to_string())
    };
    let range = header("range");
    log.lock().unwrap().push([path.clone(), range.clone(), header("authorization")]);
    let mut stream = stream;
    let asked = |prefix: &str| ["tiny", "reward"].into_iter().find(|name| path.starts_with(&format!("{prefix}/org/{name}/")));
    let is_known = ["main", SHA].iter().any(|revision| path.ends_with(&format!("/revision/{revision}")));
    if let Some(name) = asked("/api/models").filter(|_| is_known) {
        let mut siblings: Vec<_> = all_files(folder(name)).into_iter().map(|name| json!({ "rfilename": name })).collect();
        siblings.extend(["v1-5.ckpt", "safety_checker/model.safetensors", "../../evil"].map(|name| json!({ "rfilename": name })));
        let body = json!({ "sha": SHA, "siblings": siblings }).to_string();
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        return;
    }
    let file = path.split("/resolve/").nth(1).and_then(|rest| rest.split_once('/')).map(|(_, file)| file);
    let bytes = asked("").and_then(|name| std::fs::read(root().join(folder(name)).join(file?)).ok());
    let Some(bytes) = bytes else {
        let status = if path.contains("gated") { "401 Unauthorized" } else { "404 Not Found" };
        let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    };
    let (first, last) = range.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
    let first: usize = first.parse().unwrap_or(0);
    if first >= bytes.len() {
        let _ = write!(stream, "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    }
    let end = last.parse::<usize>().map_or(bytes.len(), |last| last + 1);
    let part = &bytes[first.min(bytes.len())..end];
    let etag = path.replace('/', "-");
    let _ = write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{}/{}\r\nETag: \"{etag}\"\r\nx-repo-commit: {SHA}\r\nConnection: close\r\n\r\n",
        part.len(),
        end.max(1) - 1,
        bytes.len()
    );
    match *cut {
        Some(at) if part.len() > at => {
            *cut = None;
            let _ = stream.write_all(&part[..at]);
        }
        _ => drop(stream.write_all(part)),
    }
}

/// The folder with the files of a model on the hub.
fn folder(name: &str) -> &'static str {
    if name == "tiny" { MODEL } else { "tests/golden/blip_reward_tiny/model" }
}

/// The paths of a model's files within its folder.
fn all_files(folder: &str) -> Vec<String> {
    let model = root().join(folder);
    let mut all = Vec::new();
    for path in files(&model) {
        let inside = if path.is_dir() { files(&path) } else { vec![path] };
        all.extend(inside.into_iter().map(|file| file.strip_prefix(&model).unwrap().to_str().unwrap().to_string()));
    }
    all
}

struct Client<'a> {
    home: &'a Path,
    endpoint: &'a str,
    offline: bool,
}

impl Client<'_> {
    fn sample(&self, model: &str, output: &Path) -> Output {
        self.run(&["sample", "--model", model, "-p", "a fox", "--steps", "1", "-o", output.to_str().unwrap()])
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_visionprefer"));
        command.current_dir(root()).args(args);
        command.env("HF_HOME", self.home).env("HF_ENDPOINT", self.endpoint).env("HF_TOKEN", TOKEN).env_remove("HF_HUB_CACHE");
        if self.offline {
            command.env("HF_HUB_OFFLINE", "1");
        }
        command.output().unwrap()
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_model_is_downloaded_once_and_found_again() {
    let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = Hub::start(None);
    let mut client = Client { home: home.path(), endpoint: &hub.endpoint, offline: false };
    let first = client.sample("org/tiny", out.path());
    assert!(first.status.success(), "{}", told(&first));
    let downloads = hub.downloads();
    assert!(downloads.contains(&"main/unet/diffusion_pytorch_model.safetensors".to_string()), "{downloads:?}");
    assert!(!downloads.iter().any(|file| file.contains("ckpt") || file.contains("safety") || file.contains("evil")), "{downloads:?}");
    assert!(hub.asked.lock().unwrap().iter().all(|[.., authorization]| authorization == &format!("Bearer {TOKEN}")));
    assert!(home.path().join(format!("hub/models--org--tiny/snapshots/{SHA}/model_index.json")).is_file());
    assert!(!told(&first).contains(TOKEN));

    let again = client.sample("org/tiny@main", out.path());
    assert!(again.status.success(), "{}", told(&again));
    assert_eq!(hub.downloads(), downloads);
    let of_commit = client.sample(&format!("org/tiny@{SHA}"), out.path());
    assert!(of_commit.status.success(), "{}", told(&of_commit));
    // Neither without asking, nor without a server.
    client.offline = true;
    assert!(client.sample("org/tiny", out.path()).status.success());
    let nowhere = Client { endpoint: "http://127.0.0.1:9", offline: false, ..client };
    let cached = nowhere.sample("org/tiny", out.path());
    assert!(cached.status.success() && told(&cached).contains("the copy in the cache is used"), "{}", told(&cached));
    let mut images: Vec<Vec<u8>> = files(out.path()).iter().map(|image| load_image(image).unwrap().into_raw()).collect();
    assert_eq!(images.len(), 5);
    images.dedup();
    assert_eq!(images.len(), 1);
}

/// As `--reward` and in a config, where a run's plan is made before anything of the reward is known.
#[test]
fn a_reward_may_be_a_models_id_too() {
    let home = tempfile::tempdir().unwrap();
    let hub = Hub::start(None);
    let client = Client { home: home.path(), endpoint: &hub.endpoint, offline: false };
    let scored = client.run(&["score", "-r", "org/reward", "-p", "a fox", "checkpoints/tiny-images/00.png"]);
    assert!(scored.status.success(), "{}", told(&scored));
    let local = client.run(&["score", "-r", folder("reward"), "-p", "a fox", "checkpoints/tiny-images/00.png"]);
    let number = |output: &Output| String::from_utf8_lossy(&output.stdout).split_whitespace().find_map(|word| word.parse::<f64>().ok());
    assert!(number(&scored).is_some() && number(&scored) == number(&local));
    let run = home.path().join("run");
    let set = "reward={vp_score={weights=\"org/reward\"}}";
    let plan = ["train", "--config", "configs/refl/tiny.toml", "--set", set, "--dry-run", "-o", run.to_str().unwrap()];
    let planned = client.run(&plan);
    assert!(planned.status.success(), "{}", told(&planned));
}

#[test]
fn a_download_that_is_cut_off_goes_on() {
    let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = Hub::start(Some(50_000));
    let client = Client { home: home.path(), endpoint: &hub.endpoint, offline: false };
    let output = client.sample("org/tiny", out.path());
    assert!(output.status.success(), "{}", told(&output));
    assert!(hub.asked.lock().unwrap().iter().any(|[_, range, _]| range == "bytes=50000-"));
}

/// Killed before the last rename, or with something else under the temporary name.
#[test]
fn a_download_that_was_complete_is_taken() {
    let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = Hub::start(None);
    let client = Client { home: home.path(), endpoint: &hub.endpoint, offline: false };
    assert!(client.sample("org/tiny", out.path()).status.success());
    let name = "unet/diffusion_pytorch_model.safetensors";
    let place = home.path().join(format!("hub/models--org--tiny/snapshots/{SHA}/{name}"));
    let whole = std::fs::read(root().join(MODEL).join(name)).unwrap();
    let blob = std::fs::canonicalize(&place).unwrap();
    let longer = [&whole[..], &whole[..]].concat();
    for (left, asked) in [(&whole[..], format!("bytes={}-", whole.len() - 1)), (&longer, "bytes=0-".into())] {
        std::fs::remove_file(&place).unwrap();
        std::fs::remove_file(&blob).unwrap();
        std::fs::write(blob.with_extension("part"), left).unwrap();
        hub.asked.lock().unwrap().clear();
        let output = client.sample("org/tiny", out.path());
        assert!(output.status.success(), "{}", told(&output));
        assert!(std::fs::read(&place).unwrap() == whole, "{} bytes", std::fs::metadata(&place).unwrap().len());
        assert!(hub.asked.lock().unwrap().iter().any(|[_, range, _]| *range == asked), "{asked}");
    }
}

#[test]
fn what_the_hub_does_not_give_is_explained() {
    let (home, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = Hub::start(None);
    let client = Client { home: home.path(), endpoint: &hub.endpoint, offline: false };
    for (model, expected) in [
        ("org/nothing", "the hub has no model org/nothing"),
        ("org/tiny@v9", "with a revision v9"),
        ("org/gated", "HF_TOKEN"),
        ("org/tiny/unet/none.safetensors", "it has no file unet/none.safetensors"),
    ] {
        let output = client.sample(model, out.path());
        assert_eq!(output.status.code(), Some(2), "{}", told(&output));
        assert!(told(&output).contains(expected) && told(&output).lines().count() == 1, "{model}: {}", told(&output));
    }
    let offline = Client { offline: true, ..client };
    let output = offline.sample("org/nothing", out.path());
    assert!(output.status.code() == Some(2) && told(&output).contains("HF_HUB_OFFLINE"), "{}", told(&output));
}
