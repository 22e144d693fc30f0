//! The pages of `serve` and `vote` in a browser: quiet, with no request beyond the server, on a telephone and on a desk, and as a person uses them.

use std::fs;
use std::process::{Command, Stdio};

use crate::browser::{Browser, WIDTHS};
use crate::serve::{SMALL, write_run};
use crate::served::Served;
use crate::util::root;
use crate::vote::{evaluate_folders, vote_on_folders, write_folders};

const HOSTILE: &str = "<script>alert(1)</script>";
/// Both images of a question are there.
const IS_ASKED: &str = "document.querySelectorAll('#images img').length === 2 && [...document.querySelectorAll('#images img')].every(one => one.naturalWidth === 16)";

fn lines(of: std::ops::Range<u64>) -> String {
    let line = |step: u64| {
        let tail = "\"lr\":0.001,\"images_per_second\":8,\"seconds\":0.5";
        let preview = if step.is_multiple_of(10) {
            format!("{{\"step\":{step},\"preview/vp_score\":{}}}\n", step as f64 / 9.0)
        } else {
            String::new()
        };
        format!(
            "{{\"step\":{step},\"loss\":{},\"reward_mean\":{},\"reward_std\":0.5,{tail}}}\n{preview}",
            1.0 / (step + 1) as f64,
            step as f64 / 20.0
        )
    };
    of.map(line).collect()
}

#[test]
#[ignore = "needs Debian's chromium; .ci/run installs it and runs this"]
fn pages_are_quiet_and_fit_a_telephone() {
    let dir = tempfile::tempdir().unwrap();
    let runs = dir.path().join("runs");
    let [first, second] =
        ["first", "a run with a very long name that has no end and goes on and on_and_on_and_on_and_on"].map(|name| runs.join(name));
    write_run(&first, &lines(0..200), &[0, 10, 20]);
    write_run(&second, &lines(0..50), &[0, 10]);
    let config = fs::read_to_string(second.join("config.toml")).unwrap().replacen("num_train_steps = ", "num_train_steps = 9", 1);
    fs::write(second.join("config.toml"), config).unwrap();
    let served = Served::start(&["serve", runs.to_str().unwrap(), "--address", "127.0.0.1:0"]);
    let origin = format!("http://{}/", served.host);
    let of_second = "a%20run%20with%20a%20very%20long%20name%20that%20has%20no%20end%20and%20goes%20on%20and%20on_and_on_and_on_and_on";
    let pages = [
        (String::new(), "document.querySelectorAll('.places a').length === 2"),
        (
            "run?id=0%2Ffirst".to_string(),
            "document.querySelectorAll('.chart path.line').length > 3 && document.querySelectorAll('.cell img').length === 2",
        ),
        (
            format!("run?id=0%2Ffirst&id=0%2F{of_second}"),
            "document.querySelectorAll('.chart path.line').length > 6 && document.querySelectorAll('.keys td').length > 1",
        ),
        ("gallery?id=0%2Ffirst%2Fsamples%2Fstep-000010".to_string(), "document.querySelectorAll('.pair img').length === 2"),
    ];
    let mut browser = Browser::open(dir.path());
    browser.visit(&served.address, 1280, "light");
    for (page, is_there) in &pages {
        for (width, scheme) in WIDTHS.iter().flat_map(|width| [(*width, "light"), (*width, "dark")]) {
            browser.visit(&format!("{origin}{page}"), width, scheme);
            browser.wait_until(is_there);
            let (problems, found) = browser.inspect(&origin, width);
            assert!(problems.is_empty(), "{page} at {width} pixels, {scheme}: {problems:#?}");
            let text = found["text"].as_str().unwrap();
            assert!(page.is_empty() || page.contains("&id=") || text.contains(HOSTILE), "the prompt is text: {text}");
        }
    }

    // What is appended is drawn by itself, and the slider goes over the steps.
    browser.visit(&format!("{origin}run?id=0%2Ffirst"), 1280, "light");
    browser.wait_until("document.querySelectorAll('.chart path.line').length > 3");
    write_run(&first, &lines(0..230), &[220]);
    browser.wait_until("document.getElementById('statuses').innerText.includes('update 229')");
    browser.wait_until("document.getElementById('preview-step').textContent === '220'");
    browser.evaluate("document.getElementById('preview-at').focus()");
    browser.press("Home");
    browser.wait_until("document.getElementById('preview-step').textContent === '0'");
    browser.evaluate("document.querySelector('.cell button').click()");
    browser.wait_until("document.getElementById('large').open && document.getElementById('large-after')?.naturalWidth === 16");
    browser.evaluate("document.querySelector('#large form button').click()");
    browser.wait_until("!document.getElementById('large').open");
    browser.evaluate("document.querySelector('.chart svg').focus()");
    browser.press("ArrowRight");
    browser.wait_until("document.querySelector('.reading').textContent.startsWith('step ')");
    let (problems, _) = browser.inspect(&origin, 1280);
    assert!(problems.is_empty(), "{problems:#?}");
}

/// How much memory a process has resident, in MiB; `None` where its system does not tell.
fn resident(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().trim_end_matches(" kB").parse::<u64>().ok()? >> 10)
}

#[test]
#[ignore = "needs Debian's chromium; .ci/run installs it and runs this"]
fn a_run_is_watched_stopped_by_the_button_and_watched_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("watched");
    let served = Served::start(&["serve", dir.path().to_str().unwrap(), "--address", "127.0.0.1:0"]);
    let train = |how: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_visionprefer"));
        command.current_dir(root()).args(["train", "--quiet"]).args(how).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let sets = SMALL.iter().chain(&["run.num_train_steps=200", "checkpoint.every=1000"]).flat_map(|set| ["--set", set]);
    let begin: Vec<&str> = ["--config", "configs/refl/tiny.toml", "-o", output.to_str().unwrap()].into_iter().chain(sets).collect();
    let mut training = train(&begin);
    while !output.join("metrics.jsonl").is_file() {
        assert!(training.try_wait().unwrap().is_none(), "the run ended before its first update");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }

    let mut browser = Browser::open(dir.path());
    browser.visit(&served.address, 1280, "light");
    browser.visit(&format!("http://{}/run?id=0%2Fwatched", served.host), 1280, "light");
    let button =
        |name: &str| format!("[...document.querySelectorAll('#statuses button')].find(one => one.textContent.startsWith('{name}'))");
    browser.wait_until(&format!("document.querySelectorAll('.chart path.line').length > 3 && !{}.hidden", button("Stop")));
    browser.evaluate(&format!("{}.click()", button("Stop")));
    browser.wait_until("document.getElementById('stop').open");
    browser.evaluate("document.querySelector('#stop button[value=stop]').click()");
    assert_eq!(training.wait().unwrap().code(), Some(130), "as by Ctrl-C");
    browser.wait_until("document.querySelector('#statuses .state').textContent === 'stopped'");
    let stopped_at = fs::read_to_string(output.join("metrics.jsonl")).unwrap().lines().count();
    assert!(stopped_at < 200, "it did not stop before its end");

    // The command that the page offers.
    let mut training = train(&["--resume", output.to_str().unwrap(), "--set", "run.num_train_steps=200"]);
    browser.wait_until("document.querySelector('#statuses .state').textContent === 'training'");
    assert!(training.wait().unwrap().success());
    browser
        .wait_until("document.querySelector('#statuses .state').textContent === 'finished' && !document.getElementById('report').hidden");
    let (problems, _) = browser.inspect(&format!("http://{}/", served.host), 1280);
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
#[ignore = "needs Debian's chromium; .ci/run installs it and runs this"]
fn a_run_of_a_hundred_thousand_updates_and_ten_thousand_previews_opens_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let steps: Vec<u64> = (0..10_000).map(|step| 10 * step).collect();
    write_run(&dir.path().join("long"), &lines(0..100_000), &steps);
    let served = Served::start(&["serve", dir.path().to_str().unwrap(), "--address", "127.0.0.1:0"]);
    let page = format!("http://{}/run?id=0%2Flong", served.host);
    let mut browser = Browser::open(dir.path());
    browser.visit(&served.address, 1280, "light");
    let is_there = "document.querySelectorAll('.chart path.line').length > 3 && document.querySelectorAll('.cell img').length === 2";
    let mut open = || {
        let began = std::time::Instant::now();
        browser.visit(&page, 1280, "light");
        browser.wait_until(is_there);
        (began.elapsed(), resident(served.process.id()))
    };
    let visits: Vec<_> = (0..60).map(|_| open()).collect();
    println!("{visits:?}");
    // The first visit reads the metrics. An idle machine takes a second.
    assert!(visits.iter().all(|(took, _)| took.as_secs() < 10), "{visits:?}");
    // The allocator keeps what the first visits took, for the next ones.
    if let (Some(early), Some(last)) = (visits[29].1, visits[59].1) {
        assert!(last < early + 12 && last < 160, "memory grows with every visit: {visits:?}");
    }
}

#[test]
#[ignore = "needs Debian's chromium; .ci/run installs it and runs this"]
fn forty_votes_by_keyboard_become_records() {
    let dir = tempfile::tempdir().unwrap();
    write_folders(dir.path(), 36);
    let served = vote_on_folders(dir.path());
    let origin = format!("http://{}/", served.host);
    let mut browser = Browser::open(dir.path());
    browser.visit(&format!("{}&voter=anna", served.address), 1280, "light");
    assert_eq!(browser.evaluate("location.search"), "?voter=anna", "the token does not stay in the address");
    for (width, scheme) in WIDTHS.iter().flat_map(|width| [(*width, "light"), (*width, "dark")]) {
        browser.visit(&format!("{origin}?voter=anna"), width, scheme);
        browser.wait_until(IS_ASKED);
        let (problems, found) = browser.inspect(&origin, width);
        assert!(problems.is_empty(), "at {width} pixels, {scheme}: {problems:#?}");
        assert!(found["text"].as_str().unwrap().contains("<b>prompt</b>"), "the prompt is text: {found}");
    }
    // The voter likes it bright, and reads that from the pixels, as a person would.
    let look = "(() => { const level = image => { const c = document.createElement('canvas'); c.width = c.height = 1; const x = c.getContext('2d');
        x.drawImage(image, 0, 0, 1, 1); return x.getImageData(0, 0, 1, 1).data[0]; };
        const [left, right] = document.querySelectorAll('#images img'); return level(left) > level(right) ? 'ArrowLeft' : 'ArrowRight'; })()";
    for turn in 0..40 {
        browser.wait_until(IS_ASKED);
        if turn == 11 {
            // A slip, taken back.
            let (key, before) = (browser.evaluate(look), browser.evaluate("document.querySelector('#images img').src"));
            browser.press(if key == "ArrowLeft" { "ArrowRight" } else { "ArrowLeft" });
            browser.wait_until(&format!("document.querySelector('#images img').src !== {before}"));
            browser.press("u");
            browser.wait_until(&format!("document.querySelector('#images img').src === {before}"));
        }
        if turn == 20 {
            browser.visit(&origin, 390, "dark");
            browser.wait_until(IS_ASKED);
        }
        let (key, before) = (browser.evaluate(look), browser.evaluate("document.querySelector('#images img').src"));
        browser.press(key.as_str().unwrap());
        browser.wait_until(&format!("document.querySelector('#images img')?.src !== {before}"));
    }
    browser.wait_until("document.getElementById('prompt').textContent.startsWith('That was all')");
    browser.evaluate("document.getElementById('results').open = true");
    browser.wait_until("document.getElementById('results-body').innerText.includes('bright is preferred to dark in 100 %')");
    let (problems, _) = browser.inspect(&origin, 390);
    assert!(problems.is_empty(), "{problems:#?}");
    let records = vp_data::read_records(dir.path().join("votes/records.jsonl")).unwrap();
    assert_eq!(records.iter().map(|record| record.comparisons.len()).sum::<usize>(), 40);
    assert!(
        records
            .iter()
            .flat_map(|record| &record.comparisons)
            .all(|one| (one.preferred == vp_data::Preferred::First) == (one.shown[0] == 1))
    );
}

#[test]
#[ignore = "needs Debian's chromium; .ci/run installs it and runs this"]
fn the_images_of_an_evaluation_are_rated_by_digits() {
    let dir = tempfile::tempdir().unwrap();
    write_folders(dir.path(), 2);
    evaluate_folders(dir.path(), &[]).ok();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let served = Served::start(&["vote", "--evaluation", &path("evaluation"), "--rate", "-o", &path("votes"), "--address", "127.0.0.1:0"]);
    let origin = format!("http://{}/", served.host);
    let mut browser = Browser::open(dir.path());
    browser.visit(&format!("{}&voter=anna", served.address), 1280, "light");
    let is_asked = "document.querySelectorAll('#images img').length === 1 && document.querySelector('#images img').naturalWidth === 16";
    for (width, scheme) in WIDTHS.iter().flat_map(|width| [(*width, "light"), (*width, "dark")]) {
        browser.visit(&format!("{origin}?voter=anna"), width, scheme);
        browser.wait_until(is_asked);
        let (problems, _) = browser.inspect(&origin, width);
        assert!(problems.is_empty(), "at {width} pixels, {scheme}: {problems:#?}");
    }
    for done in 0..4 {
        browser.wait_until(&format!("{is_asked} && document.getElementById('progress').value === {done}"));
        let bright = browser.evaluate(
            "(() => { const c = document.createElement('canvas'); c.width = c.height = 1; const x = c.getContext('2d');
             x.drawImage(document.querySelector('#images img'), 0, 0, 1, 1); return x.getImageData(0, 0, 1, 1).data[0] > 100; })()",
        );
        for _ in 0..4 {
            browser.press(if bright == true { "5" } else { "2" });
        }
    }
    browser.wait_until("document.getElementById('prompt').textContent.startsWith('That was all')");
    let (problems, _) = browser.inspect(&origin, 1280);
    assert!(problems.is_empty(), "{problems:#?}");
    let said = evaluate_folders(dir.path(), &["--votes", &path("votes")]).ok().stdout();
    assert!(said.contains("2 votes by one person"), "two images that are rated differently are a vote: {said}");
}
