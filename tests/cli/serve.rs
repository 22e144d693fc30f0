//! `serve` and `train --serve`: what pages are told, who is refused, and what the two buttons do.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use vp_data::RgbImage;

use crate::served::{Served, wait_for};
use crate::util::{files, root, run};

const HOSTILE: &str = "<script>alert(1)</script>";

/// A run's folder, as training leaves it, with these lines of metrics and previews of these steps.
pub fn write_run(folder: &Path, lines: &str, previews: &[u64]) {
    fs::create_dir_all(folder.join("samples")).unwrap();
    fs::copy(root().join("configs/refl/tiny.toml"), folder.join("config.toml")).unwrap();
    fs::write(folder.join("metrics.jsonl"), lines).unwrap();
    for step in previews {
        let samples = folder.join(format!("samples/step-{step:06}"));
        fs::create_dir_all(&samples).unwrap();
        let mut results = String::new();
        for (index, prompt) in ["a red circle", HOSTILE].iter().enumerate() {
            let image = RgbImage::from_pixel(16, 16, [*step as u8, 90 * index as u8, 40].into());
            vp_data::write_png::<&str, &str>(samples.join(format!("{index:03}-7.png")), &image, &[]).unwrap();
            let pixels = vp_evaluation::pixels::PixelStats::of(image.as_raw(), 16, 16).unwrap();
            let scores = json!({ "vp_score": *step as f64 + index as f64 });
            let row = json!({ "index": index, "prompt": prompt, "category": null, "seed": 7, "model": format!("step {step}"), "scores": scores, "pixels": pixels });
            results += &format!("{row}\n");
        }
        fs::write(samples.join("results.jsonl"), results).unwrap();
    }
}

fn line(step: u64) -> String {
    format!(
        "{{\"step\":{step},\"loss\":{},\"reward_mean\":1.5,\"reward_std\":0.5,\"lr\":0.001,\"images_per_second\":8,\"seconds\":0.5}}\n",
        1.0 / (step + 1) as f64
    )
}

fn serve(folder: &Path) -> Served {
    Served::start(&["serve", folder.to_str().unwrap(), "--address", "127.0.0.1:0"])
}

#[test]
fn a_run_is_listed_and_shown_by_its_folder_alone() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = format!("{{\"step\":0,\"preview/vp_score\":0.5}}\n{}{}{{\"step\":2,\"preview/vp_score\":2.5}}\n", line(1), line(2));
    write_run(&dir.path().join("mine"), &metrics, &[0, 2, 9]);
    let served = serve(dir.path());
    let list = served.get("/api/places").json();
    assert_eq!(
        (&list[0]["id"], &list[0]["state"], &list[0]["step"], &list[0]["reward"]),
        (&json!("0/mine"), &json!("stopped"), &json!(2), &json!(1.5))
    );
    assert_eq!(list[0]["preview"], "samples/step-000002/000-7.png");
    let status = served.get("/api/status?id=0%2Fmine").json();
    assert_eq!((&status["previews"], &status["algorithm"]), (&json!(2), &json!("refl")), "step 9 is of an attempt that went further");

    let charts = served.get("/api/charts?id=0%2Fmine").json();
    let chart = |title: &str| {
        charts["charts"].as_array().unwrap().iter().find(|chart| chart["title"] == title).unwrap_or_else(|| panic!("{title}: {charts}"))
    };
    let reward = charts["charts"].as_array().unwrap().iter().find(|chart| chart["series"][0]["metric"] == "reward_mean").unwrap();
    // 4 images, 0.5 apart: 1.5 ± 1.96 · 0.25.
    assert_eq!((&reward["series"][0]["band"], &reward["series"][0]["points"][0]), (&json!("interval"), &json!([1.0, 1.5, 1.01, 1.99])));
    assert_eq!(chart("Loss")["series"][0]["points"][1], json!([2.0, 0.333333, 0.333333, 0.333333]));
    chart("Images per second");
    let previews = charts["charts"].as_array().unwrap().iter().flat_map(|chart| chart["series"].as_array().unwrap());
    let previews = previews.into_iter().find(|series| series["metric"] == "preview/vp_score").unwrap();
    assert_eq!(previews["band"], "interval", "two prompts make one: {previews}");

    let preview = served.get("/api/preview?id=0%2Fmine").json();
    assert_eq!((&preview["step"], &preview["total"], &preview["images"][1]["prompt"]), (&json!(2), &json!(2), &json!(HOSTILE)));
    assert_eq!(served.get("/api/previews?id=0%2Fmine&from=1&count=5").json()["steps"], json!([2]));
    let image = served.get("/image?id=0%2Fmine&path=samples%2Fstep-000002%2F000-7.png");
    assert!(image.status == 200 && image.head.contains("content-type: image/png") && image.body.starts_with(b"\x89PNG"));
    let version = image.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_string();
    let again = served.ask("GET", "/image?id=0%2Fmine&path=samples%2Fstep-000002%2F000-7.png", &[&format!("If-None-Match: {version}")]);
    assert_eq!((again.status, again.body.len()), (304, 0));
    let gallery = served.get("/api/gallery?id=0%2Fmine%2Fsamples%2Fstep-000002&sort=score:vp_score&descending=on").json();
    assert_eq!((&gallery["total"], &gallery["items"][0]["prompt"]), (&json!(2), &json!(HOSTILE)));
}

#[test]
fn pages_hold_no_markup_of_others_and_may_load_nothing_from_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    write_run(&dir.path().join("<img src=x onerror=alert(1)>"), &line(1), &[0, 1]);
    let served = serve(dir.path());
    for page in ["/", "/run?id=0%2F%3Cimg%3E", "/gallery?id=%22%3E%3Cscript%3E"] {
        let found = served.get(page);
        let text = found.text();
        assert_eq!(found.status, 200, "{page}");
        assert!(!text.contains("onerror") && !text.contains("alert(") && !text.contains("style="), "{page}: {text}");
        let own = text.matches("<script type=\"module\" src=\"/assets/").count();
        assert_eq!((text.matches("<script").count(), own), (1, 1), "{page}: {text}");
        for header in
            ["content-security-policy: default-src 'none'; script-src 'self';", "x-content-type-options: nosniff", "x-frame-options: deny"]
        {
            assert!(found.head.contains(header), "{page}: {}", found.head);
        }
        assert!(found.head.contains("cross-origin-resource-policy: same-origin") && found.head.contains("frame-ancestors 'none'"));
    }
    for path in ["/api/places", "/api/preview?id=0%2F%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E", "/api/nothing"] {
        assert!(served.get(path).head.contains("content-type: application/json"), "{path}");
    }
}

#[test]
fn nothing_outside_the_folders_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let runs = dir.path().join("runs");
    write_run(&runs.join("mine"), &line(1), &[0]);
    let secret = dir.path().join("secret.png");
    fs::copy(runs.join("mine/samples/step-000000/000-7.png"), &secret).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&secret, runs.join("mine/link.png")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(dir.path(), runs.join("up")).unwrap();
    let served = serve(&runs);
    let secret = secret.display().to_string().replace('/', "%2F");
    for path in [
        "..%2Fsecret.png",
        "..%2F..%2Fsecret.png",
        "mine%2F..%2F..%2Fsecret.png",
        "mine%2Flink.png",
        "up%2Fsecret.png",
        "mine%2Fconfig.toml",
        &secret,
    ] {
        assert_eq!(served.get(&format!("/image?id=0&path={path}")).status, 404, "{path}");
    }
    for id in ["0%2F..", "0%2Fup", "1", "0%2Fmine%2F..%2F.."] {
        assert_eq!(served.get(&format!("/api/status?id={id}")).status, 404, "{id}");
        assert_eq!(served.get(&format!("/api/gallery?id={id}")).status, 404, "{id}");
    }
    for path in ["/../secret.png", "/assets/../../secret.png", "/assets/", "/image", "/runs/mine/config.toml"] {
        assert_eq!(served.get(path).status, 404, "{path}");
    }
    assert_eq!(served.get("/image?id=0&path=mine%2Fsamples%2Fstep-000000%2F000-7.png").status, 200);
}

#[test]
fn other_sites_are_refused_and_writing_needs_the_token() {
    let dir = tempfile::tempdir().unwrap();
    write_run(&dir.path().join("mine"), &line(1), &[]);
    let served = serve(dir.path());
    let status = |method: &str, path: &str, headers: &[&str]| served.ask(method, path, headers).status;
    assert_eq!(status("GET", "/api/places", &["Host: evil.example"]), 403);
    assert_eq!(status("GET", "/api/places", &["Origin: http://evil.example"]), 403);
    assert_eq!(status("GET", "/api/places", &["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"]), 403);
    assert_eq!(status("GET", "/events", &["Sec-Fetch-Site: same-site"]), 403);
    assert_eq!(status("DELETE", "/api/places", &[]), 405);
    let stop = "/api/stop?id=0%2Fmine";
    let token = format!("X-Token: {}", served.token());
    assert_eq!(status("POST", stop, &[]), 403);
    assert_eq!(status("POST", stop, &["X-Token: 00"]), 403);
    assert_eq!(status("POST", stop, &[&token, "Origin: http://evil.example"]), 403);
    assert_eq!(status("POST", stop, &[&token, "Sec-Fetch-Site: cross-site"]), 403);
    assert_eq!(status("POST", stop, &[&token, "Host: evil.example"]), 403);
    assert_eq!(status("GET", stop, &[&token]), 404, "a link stops nothing");
    assert_eq!(status("POST", "/api/places", &[&token]), 404);
    let refused = served.press(stop);
    assert_eq!((refused.status, refused.json()), (409, json!({ "error": "nobody trains this run" })));
    assert_eq!(files(&dir.path().join("mine")).len(), 3, "nothing was written");
}

#[test]
fn every_address_needs_the_token_that_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    write_run(&dir.path().join("mine"), &line(1), &[]);
    // Other users of the machine reach a loopback address too.
    for (address, host, of_host) in
        [("127.0.0.1:0", "localhost", 200), ("127.0.0.1:0", "desk.example", 403), ("0.0.0.0:0", "desk.example", 200)]
    {
        let served = Served::start(&["serve", dir.path().to_str().unwrap(), "--address", address]);
        let token = served.address.split_once("token=").expect("a token in the address").1.trim_end().to_string();
        let stranger = |path: &str| served.ask("GET", path, &["Cookie: other=1"]);
        for path in ["/", "/api/places", "/?token=00", "/assets/run.js", "/events", "/image?id=0&path=x.png"] {
            let refused = stranger(path);
            assert_eq!(refused.status, 401, "{path}");
            assert!(!refused.text().contains(&token) && refused.text().contains("open the one that the program printed"), "{path}");
        }
        let entered = stranger(&format!("/run?id=0%2Fmine&token={token}"));
        assert_eq!(entered.status, 303);
        assert!(entered.head.lines().any(|line| line == "location: /run?id=0%2fmine"), "{}", entered.head);
        let cookie =
            entered.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap().split(';').next().unwrap().to_string();
        assert!(entered.head.contains("httponly; samesite=strict"), "{}", entered.head);
        let known = format!("Cookie: {cookie}");
        assert_eq!(served.ask("GET", "/api/places", &[&known, &format!("Host: {host}")]).status, of_host, "{address} as {host}");
        let post = served.ask("POST", "/api/stop?id=0%2Fmine", &[&known]);
        assert_eq!(post.status, 403, "a cookie goes along with what other sites send; the header does not");
    }
}

#[test]
fn a_report_is_shown_apart_from_the_other_pages() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("mine");
    write_run(&folder, &line(1), &[0]);
    let served = serve(dir.path());
    assert_eq!(served.get("/api/status?id=0%2Fmine").json()["report"], false);
    assert_eq!(served.get("/report?id=0%2Fmine").status, 404);
    fs::write(folder.join("report.html"), "<!doctype html><title>mine</title>").unwrap();
    assert_eq!(served.get("/api/status?id=0%2Fmine").json()["report"], true);
    let report = served.get("/report?id=0%2Fmine");
    assert_eq!((report.status, report.text().as_str()), (200, "<!doctype html><title>mine</title>"));
    // Whoever wrote the run wrote the report: it may not act as one of the program's own pages.
    let policies: Vec<&str> = report.head.lines().filter(|line| line.starts_with("content-security-policy:")).collect();
    assert!(
        policies.len() == 1 && policies[0].contains("sandbox allow-scripts;") && !policies[0].contains("allow-same-origin"),
        "{policies:?}"
    );
    assert!(!policies[0].contains("connect-src") && policies[0].contains("default-src 'none'"), "{policies:?}");
    for id in ["0%2F..", "0%2Fnothing", "0", "9", ""] {
        assert_eq!(served.get(&format!("/report?id={id}")).status, 404, "{id}");
    }
}

#[test]
fn what_is_appended_arrives_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("mine");
    write_run(&folder, &line(1), &[]);
    let served = serve(dir.path());
    let position = served.get("/api/charts?id=0%2Fmine").json()["positions"][0].clone();
    let append = || {
        let mut file = fs::OpenOptions::new().append(true).open(folder.join("metrics.jsonl")).unwrap();
        file.write_all(line(2).as_bytes()).unwrap();
    };
    let seen = served.events_until(&format!("/events?id=0%2Fmine&after={},{}", position[0], position[1]), append, "event: metrics");
    assert!(seen.contains("\"lines\":[{\"step\":2,") && !seen.contains("\"lines\":[{\"step\":1,"), "{seen}");
    // A run that is resumed replaces the file.
    let replace = || fs::write(folder.join("metrics.jsonl"), line(7)).unwrap();
    served.events_until("/events?id=0%2Fmine", replace, "event: reload");
    let begin = || write_run(&dir.path().join("another"), &line(1), &[]);
    served.events_until("/events", begin, "0/another");
}

#[test]
fn a_hundred_thousand_lines_and_ten_thousand_previews_are_shown_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("long");
    write_run(&folder, &(0..100_000).map(line).collect::<String>(), &[0]);
    for step in 1..10_000 {
        fs::create_dir(folder.join(format!("samples/step-{:06}", step * 10))).unwrap();
    }
    let served = serve(dir.path());
    let began = Instant::now();
    let charts = served.get("/api/charts?id=0%2Flong");
    assert_eq!(served.get("/api/status?id=0%2Flong").json()["previews"], 10_000);
    assert_eq!(served.get("/api/previews?id=0%2Flong&from=9900&count=100").json()["steps"][99], 99_990);
    // Half a second on an idle machine.
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    assert!(charts.body.len() < 400_000, "{} bytes", charts.body.len());
    if let Ok(status) = fs::read_to_string(format!("/proc/{}/status", served.process.id())) {
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        assert!(peak < 160 << 10, "{} MiB", peak >> 10);
    }
}

/// Updates of two micro-batches; long enough that a button can be pressed in the middle.
pub const SMALL: [&str; 9] = [
    "run.num_train_steps=40",
    "scheduler.num_inference_steps=4",
    "algo.refl.min_mid_step=2",
    "algo.refl.max_mid_step=3",
    "algo.refl.batch_size=1",
    "optimizer.gradient_accumulation_steps=2",
    "preview.num_inference_steps=1",
    "preview.seeds=[1]",
    "checkpoint.every=1000",
];

#[test]
fn the_buttons_save_and_stop_a_run_and_it_goes_on_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let [undisturbed, output] = ["undisturbed", "stopped"].map(|name| dir.path().join(name));
    let sets: Vec<&str> = SMALL.into_iter().flat_map(|set| ["--set", set]).collect();
    let train = |output: &'static str| [&["train", "--config", "configs/refl/tiny.toml", "-o", output], &sets[..]].concat();
    let path = |path: &Path| -> &'static str { Box::leak(path.display().to_string().into_boxed_str()) };
    run(&train(path(&undisturbed))).ok();

    let mut served = Served::start(&[&train(path(&output))[..], &["--serve", "127.0.0.1:0"]].concat());
    let status = || served.get("/api/status?id=0").json();
    wait_for("an update", || (status()["step"].as_u64()? > 0).then_some(()));
    assert_eq!(status()["state"], "training");
    assert_eq!(served.press("/api/save?id=0").status, 200);
    let checkpoints = || {
        files(&output.join("checkpoints")).into_iter().filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.')).count()
    };
    wait_for("a checkpoint", || (checkpoints() > 0).then_some(()));
    assert_eq!(served.press("/api/stop?id=0").status, 200);
    let ended = served.process.wait().unwrap();
    assert_eq!(ended.code(), Some(130), "as by Ctrl-C");
    let left: Vec<String> = files(&output).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert!(left.iter().all(|name| !name.starts_with('.')), "no heartbeat, request or lock stays: {left:?}");
    let updates = fs::read_to_string(output.join("metrics.jsonl")).unwrap().lines().count();
    assert!(updates < 41, "it did not stop before its end");

    run(&["train", "--resume", output.to_str().unwrap()]).ok();
    let result = |run: &Path| {
        let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let lines: Vec<String> = metrics.lines().map(|line| line.split(",\"images_per_second\"").next().unwrap().to_string()).collect();
        (lines, fs::read(run.join("checkpoints/step-000040/weights.safetensors")).unwrap())
    };
    assert!(result(&output) == result(&undisturbed), "saving, stopping and resuming changed the run");
}

#[test]
fn what_cannot_be_served_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let told = run(&["serve", dir.path().join("nothing").to_str().unwrap(), "--address", "127.0.0.1:0"]).refused();
    assert!(told.contains("nothing: expected a folder of runs, evaluations or images; name the ones to show"), "{told}");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let told = run(&["serve", file.to_str().unwrap(), "--address", "127.0.0.1:0"]).refused();
    assert!(told.contains("file is a file; expected a folder"), "{told}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let told = run(&["serve", dir.path().to_str().unwrap(), "--address", &address]).refused();
    assert!(
        told.contains(&format!("listen on {address}; another --address serves elsewhere, and --address 127.0.0.1:0 takes a free port")),
        "{told}"
    );
}
