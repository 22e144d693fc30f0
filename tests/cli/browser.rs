//! Reports in a browser: no script of theirs fails, they request nothing, and they fit the width of a telephone. Chromium is told what to do
//! over a pipe, by the DevTools protocol. `.ci/run` installs it, and runs this test, which is ignored elsewhere. `browser_pages.rs` looks at the
//! pages that the program serves.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::util::run;

/// Where Debian puts it.
const CHROMIUM: &str = "/usr/bin/chromium";
/// A telephone and a desk, in pixels.
pub const WIDTHS: [u64; 2] = [390, 1280];
const HOSTILE: &str = "<script>alert(1)</script>";
/// What a page says of itself: its width, what runs in it, what its images came to, all of its text. Everything that folds is open then.
const INSPECT: &str = "new Promise(done => {
    document.querySelectorAll('details').forEach(details => details.open = true);
    requestAnimationFrame(() => setTimeout(() => done({
        width: document.documentElement.scrollWidth,
        scripts: document.scripts.length,
        images: document.images.length,
        broken: [...document.images].filter(image => image.complete && image.naturalWidth === 0).length,
        policies: document.querySelectorAll('meta[http-equiv=\\'Content-Security-Policy\\']').length,
        text: document.body.innerText,
    }), 200));
})";

/// A page in Chromium.
pub struct Browser {
    process: Child,
    commands: File,
    replies: BufReader<File>,
    session: String,
    sent: u64,
    /// What was told without being asked.
    events: Vec<Value>,
    /// Where it complains.
    log: PathBuf,
}

impl Browser {
    /// Starts Chromium with a profile of its own.
    pub fn open(profile: &Path) -> Self {
        assert!(Path::new(CHROMIUM).exists(), "Chromium is not at {CHROMIUM}; install Debian's package chromium and test again");
        let pipes = ["commands", "replies"].map(|name| profile.join(name));
        assert!(Command::new("mkfifo").args(&pipes).status().expect("mkfifo runs").success());
        // Descriptors 3 and 4 are where the browser listens and speaks. Its sandbox does not work for root. One that hangs is ended.
        let script = format!(
            "exec timeout -k 5 300 {CHROMIUM} --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe \
             --user-data-dir=\"$1/profile\" about:blank 3<\"$1/commands\" 4>\"$1/replies\""
        );
        let log = profile.join("log");
        let mut start = Command::new("bash");
        start.args(["-c", &script, "chromium"]).arg(profile).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        let process = start.spawn().expect("bash runs");
        let commands = OpenOptions::new().write(true).open(&pipes[0]).unwrap();
        let replies = BufReader::new(File::open(&pipes[1]).unwrap());
        let mut browser = Self { process, commands, replies, session: String::new(), sent: 0, events: Vec::new(), log };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].as_str().unwrap().to_owned();
        for domain in ["Page", "Runtime", "Log", "Network", "Audits"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    fn next(&mut self) -> Value {
        let mut message = Vec::new();
        let read = self.replies.read_until(0, &mut message).unwrap();
        assert!(read > 0, "Chromium ended: {}", fs::read_to_string(&self.log).unwrap_or_default());
        serde_json::from_slice(&message[..read - 1]).unwrap()
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": params });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let reply = self.next();
            if reply["id"] == self.sent {
                assert!(reply["error"].is_null(), "{method}: {reply}");
                return reply["result"].clone();
            }
            self.note(reply);
        }
    }

    fn note(&mut self, event: Value) {
        // A dialog would wait for somebody to answer it.
        if event["method"] == "Page.javascriptDialogOpening" {
            self.sent += 1;
            let close = json!({ "id": self.sent, "sessionId": self.session, "method": "Page.handleJavaScriptDialog", "params": { "accept": true } });
            self.commands.write_all(format!("{close}\0").as_bytes()).unwrap();
        }
        self.events.push(event);
    }

    /// Opens a page that wide.
    pub fn visit(&mut self, url: &str, width: u64, scheme: &str) {
        self.events.clear();
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        self.call("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] }));
        self.call("Page.navigate", json!({ "url": url }));
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let event = self.next();
            self.note(event);
        }
    }

    /// The value of an expression in the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let reply = self.call("Runtime.evaluate", asked);
        assert!(reply["exceptionDetails"].is_null(), "{expression}: {reply}");
        reply["result"]["value"].clone()
    }

    /// Waits until an expression in the page is true.
    pub fn wait_until(&mut self, expression: &str) {
        let began = Instant::now();
        while self.evaluate(expression) != true {
            let text = if began.elapsed() > Duration::from_secs(90) { self.evaluate("document.body.innerText") } else { Value::Null };
            assert!(
                text.is_null(),
                "{expression} does not come true in: {text}; {:#?}",
                self.events.iter().filter_map(|event| problem(event, "http")).collect::<Vec<_>>()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses a key, as a keyboard does.
    pub fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            let text = if key.chars().count() == 1 && kind == "keyDown" { json!(key) } else { Value::Null };
            let mut event = json!({ "type": kind, "key": key, "code": key });
            if !text.is_null() {
                event["text"] = text;
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// What is wrong with the page as it is, and what it says of itself; it may ask for addresses that begin with `origin`.
    pub fn inspect(&mut self, origin: &str, width: u64) -> (Vec<String>, Value) {
        let found = self.evaluate(INSPECT);
        let mut problems: Vec<String> = self.events.iter().filter_map(|event| problem(event, origin)).collect();
        if found["width"].as_u64().is_none_or(|found| found > width) {
            problems.push(format!("it is {} pixels wide on {width}", found["width"]));
        }
        if found["broken"] != 0 {
            problems.push(format!("{} broken images", found["broken"]));
        }
        (problems, found)
    }

    /// Opens a file that wide, and what is wrong with it, beside what it says of itself.
    fn look(&mut self, page: &Path, width: u64, scheme: &str) -> (Vec<String>, Value) {
        let url = format!("file://{}", page.display());
        self.visit(&url, width, scheme);
        self.inspect(&url, width)
    }
}

/// What an event has to say against a page that may ask for what begins with `page`.
fn problem(event: &Value, page: &str) -> Option<String> {
    let params = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(format!("an exception: {params}")),
        "Runtime.consoleAPICalled" if ["error", "warning"].iter().any(|kind| params["type"] == *kind) => {
            Some(format!("the console: {params}"))
        }
        "Log.entryAdded" if ["error", "warning"].iter().any(|level| params["entry"]["level"] == *level) => {
            Some(format!("the log: {params}"))
        }
        "Audits.issueAdded" => Some(format!("an issue: {params}")),
        "Page.javascriptDialogOpening" => Some(format!("a dialog: {params}")),
        "Network.requestWillBeSent" => {
            let url = params["request"]["url"].as_str()?;
            (!url.starts_with(page) && !url.starts_with("data:")).then(|| format!("a request: {url}"))
        }
        _ => None,
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.commands.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "needs Debian's chromium; .ci/run installs it and runs this"]
fn reports_are_quiet_and_fit_a_telephone() {
    let dir = tempfile::tempdir().unwrap();
    let [trained, evaluation, prompts] = ["run", "evaluation", "prompts.txt"].map(|name| dir.path().join(name));
    let sets = [
        "run.num_train_steps=3",
        "optimizer.learning_rate=0.02",
        &format!("preview.prompts=['a red circle', '{HOSTILE}']"),
        "preview.seeds=[1, 2]",
        "preview.every=1",
        "preview.num_inference_steps=3",
        "sentinel.looks=1",
    ];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    run(&["train", "--algo", "refl", "-q", "-o", trained.to_str().unwrap()].into_iter().chain(sets).collect::<Vec<_>>()).ok();
    fs::write(&prompts, format!("a red circle\n{HOSTILE}\n")).unwrap();
    let lora = trained.join("lora.safetensors");
    let [lora, prompts, output] = [&lora, &prompts, &evaluation].map(|path| path.to_str().unwrap());
    let evaluate =
        ["evaluate", "--lora", lora, "--tuned", "embedded:shapes", "--prompts", prompts, "--train-prompts", prompts, "-o", output];
    run(&[&evaluate[..], &["-r", "judge", "-r", "saturation", "--seeds", "2", "--steps", "3"]].concat()).ok();

    let mut browser = Browser::open(dir.path());
    // What is looked for is found where it is.
    let bad = dir.path().join("bad.html");
    let faults = format!("<p style='width: 2000px'>wide</p><img src='http://127.0.0.1:9/x.png'>{HOSTILE}<script>null.x</script>");
    fs::write(&bad, format!("<!doctype html><title>bad</title>{faults}")).unwrap();
    let (problems, _) = browser.look(&bad, 390, "light");
    for expected in ["pixels wide on 390", "a request: http://127.0.0.1:9/x.png", "an exception", "a dialog", "broken images"] {
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{expected} is not among {problems:#?}");
    }

    for report in [trained, evaluation].map(|folder| folder.join("report.html")) {
        for (width, scheme) in WIDTHS.iter().flat_map(|width| [(*width, "light"), (*width, "dark")]) {
            let (problems, found) = browser.look(&report, width, scheme);
            assert!(problems.is_empty(), "{} at {width} pixels, {scheme}: {problems:#?}", report.display());
            assert_eq!((&found["scripts"], &found["policies"]), (&json!(1), &json!(1)), "{}", report.display());
            assert!(found["images"].as_u64() >= Some(8), "{found}");
            assert!(found["text"].as_str().unwrap().contains(HOSTILE), "the prompt is text: {}", report.display());
        }
    }
}
