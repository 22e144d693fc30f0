//! Concurrency, pace, budget, and what is shared or known before.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vp_annotation::{BuildContext, Clock, Event, RunOptions, Stopped, Usage, dry_run, run};

use crate::scene::{Scene, everything, openai};
use crate::server::{Fault, INPUT_TOKENS, OUTPUT_TOKENS, Server};

#[test]
fn no_more_requests_are_in_flight_than_allowed() {
    let scene = Scene::new(24, 1);
    let server = Server::with(|_| Fault::None, false, Duration::from_millis(40), Clock::system());
    scene.runs(&openai(&server.base_url, ""), &RunOptions { concurrency: 3, ..RunOptions::default() }, "out");
    assert_eq!((server.most_in_flight(), server.seen().len()), (3, 24));
}

#[test]
fn no_more_requests_are_sent_in_any_minute_than_allowed() {
    let scene = Scene::new(25, 1);
    let clock = Clock::simulated();
    let server = Server::with(|_| Fault::None, false, Duration::ZERO, clock.clone());
    let options = RunOptions { concurrency: 1, ..RunOptions::default() };
    scene.run(&openai(&server.base_url, "requests_per_minute = 10"), &options, "out", clock.clone()).0.unwrap();
    let times: Vec<u64> = server.seen().iter().map(|seen| seen.at.as_secs()).collect();
    assert_eq!(times, [[0; 10].as_slice(), &[60; 10], &[120; 5]].concat());

    // Tokens: the server counts 1100 a reply, whatever was estimated.
    let server = Server::with(|_| Fault::None, false, Duration::ZERO, clock.clone());
    let start = clock.now() + Duration::from_secs(60);
    clock.wait_until(start, &|| false);
    scene.run(&openai(&server.base_url, "tokens_per_minute = 5000\nimage_tokens = 1"), &options, "tokens", clock).0.unwrap();
    let times: Vec<u64> = server.seen().iter().map(|seen| (seen.at - start).as_secs()).collect();
    assert!(times.windows(5).all(|five| five[4] - five[0] >= 60), "{times:?}");
    assert!(times[3] == 0 && times[24] <= 420, "{times:?}");
}

#[test]
fn a_busy_server_is_left_alone_as_long_as_it_asks() {
    let scene = Scene::new(1, 1);
    let clock = Clock::simulated();
    let server = Server::with(|asked| if asked.before == 0 { Fault::Busy(500) } else { Fault::None }, false, Duration::ZERO, clock.clone());
    let (summary, notices) = scene.run(&openai(&server.base_url, ""), &RunOptions::default(), "out", clock);
    let times: Vec<u64> = server.seen().iter().map(|seen| seen.at.as_secs()).collect();
    assert_eq!((times, summary.unwrap().asked), (vec![0, 500], 1));
    assert!(notices.len() == 1 && notices[0].contains("waiting 8 minutes (429 Too Many Requests: Slow down.)"), "{notices:?}");
}

#[test]
fn a_server_that_asks_for_years_is_asked_again_by_the_next_run() {
    let scene = Scene::new(2, 1);
    let clock = Clock::simulated();
    let server = Server::with(|_| Fault::Busy(1_000_000_000), false, Duration::ZERO, clock.clone());
    let (summary, notices) = scene.run(&openai(&server.base_url, ""), &RunOptions::default(), "out", clock.clone());
    let summary = summary.unwrap();
    assert_eq!((summary.open, summary.unreached.len(), server.seen().len(), notices.len()), (2, 2, 2, 0), "{notices:?}");
    assert_eq!(clock.now(), Duration::ZERO);
    let reason = &summary.unreached[0].reason;
    assert!(reason.contains("the server asks to wait 31 years, and more than 10 minutes are not waited for"), "{reason}");
    let server = Server::start(|_| Fault::None);
    assert_eq!(scene.runs(&openai(&server.base_url, ""), &RunOptions::default(), "out").asked, 2);
}

const PRICES: &str = "usd_per_million_input = 10.0\nusd_per_million_output = 100.0\nimage_tokens = 100";
/// Of one reply: 1000 · 10 / 10⁶ + 100 · 100 / 10⁶.
const PRICE: f64 = 0.02;

#[test]
fn the_budget_is_not_exceeded_and_the_run_goes_on_with_more() {
    let scene = Scene::new(20, 1);
    let server = Server::start(|_| Fault::None);
    let annotator = openai(&server.base_url, PRICES);
    let options = |max_usd, max_requests| RunOptions { max_usd, max_requests, concurrency: 3, ..RunOptions::default() };
    // Seven replies fit. While others are in flight, the last may seem not to.
    let summary = scene.runs(&annotator, &options(Some(7.5 * PRICE), None), "out");
    let Some(Stopped::BudgetSpent(reason)) = &summary.stopped else { panic!("{summary:?}") };
    assert!(reason.starts_with("max_usd = 0.15"), "{reason}");
    assert!((5..=7).contains(&summary.asked) && summary.open == 20 - summary.asked, "{summary:?}");
    assert!(summary.usage.usd <= 0.15 && summary.usd_left.unwrap() < 0.15 - 4.9 * PRICE, "{summary:?}");
    assert_eq!(scene.read("out/records.jsonl").lines().count(), summary.asked);

    // What was spent before counts, so nothing more can be asked.
    assert!(scene.runs(&annotator, &options(Some(5.0 * PRICE), None), "out").requests == 0);

    let first = summary.asked;
    let summary = scene.runs(&annotator, &options(None, Some(12)), "out");
    assert_eq!((summary.asked, summary.known, summary.requests_left), (12 - first, first, Some(0)));
    assert!(matches!(&summary.stopped, Some(Stopped::BudgetSpent(reason)) if reason.contains("max_requests = 12")));
    let summary = scene.runs(&annotator, &options(None, None), "out");
    assert_eq!((summary.asked, summary.open, summary.stopped), (8, 0, None));
    assert_eq!(server.seen().len(), 20);
}

#[test]
fn a_dry_run_sends_and_writes_nothing() {
    let scene = Scene::new(4, 2);
    let server = Server::start(|_| Fault::None);
    let config = openai(&server.base_url, PRICES);
    let annotator = config.build(BuildContext::default()).unwrap();
    let output = scene.output("out");
    let dry = dry_run(scene.job(&output), annotator.as_ref(), &everything()).unwrap();
    assert_eq!((dry.questions, dry.requests, dry.known, dry.unreadable), (12, 12, 0, 0));
    let Usage { input_tokens, output_tokens, usd } = dry.usage;
    assert!(input_tokens > 12 * 200 && output_tokens == 4 * (500 + 80 + 80), "{dry:?}");
    assert!((usd - (input_tokens as f64 * 1e-5 + output_tokens as f64 * 1e-4)).abs() < 1e-9, "{dry:?}");
    assert!(server.seen().is_empty() && !output.exists());

    let summary = scene.runs(&config, &everything(), "out");
    assert_eq!((summary.requests, summary.usage.input_tokens, summary.usage.output_tokens), (12, 12 * INPUT_TOKENS, 12 * OUTPUT_TOKENS));
    assert_eq!(dry_run(scene.job(&output), annotator.as_ref(), &everything()).unwrap().known, 12);
}

#[test]
fn a_cache_is_shared_between_outputs() {
    let scene = Scene::new(5, 2);
    let server = Server::start(|asked| if asked.prompt.ends_with('3') { Fault::Refusal } else { Fault::None });
    let options = RunOptions { cache: Some(scene.output("cache")), ..RunOptions::default() };
    scene.runs(&openai(&server.base_url, ""), &options, "one");
    let before = server.seen().len();
    let summary = scene.runs(&openai(&server.base_url, PRICES), &options, "two");
    // What was set aside is not shared, so it is asked again.
    assert_eq!((summary.cached, summary.asked, summary.set_aside.len(), summary.usage.usd > 0.0), (4, 0, 1, true));
    assert_eq!(server.seen().len(), before + 2);
    assert_eq!(scene.read("one/records.jsonl"), scene.read("two/records.jsonl"));
}

#[test]
fn equal_questions_are_asked_once_and_repeats_are_not_equal() {
    let mut scene = Scene::new(2, 1);
    scene.items.insert(1, vp_data::Record { id: "again".into(), ..scene.items[0].clone() });
    // Slow, so that equal questions are taken on while the first of them is in flight.
    let server = Server::with(|_| Fault::None, false, Duration::from_millis(60), Clock::system());
    let options = RunOptions { repeats: 2, ..RunOptions::default() };
    let summary = scene.runs(&openai(&server.base_url, "seed = 40"), &options, "out");
    assert_eq!((summary.questions, summary.asked, summary.known, server.seen().len()), (6, 4, 2, 4));
    let mut seeds: Vec<u64> = server.seen().iter().map(|seen| seen.body["seed"].as_u64().unwrap()).collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [40, 40, 41, 41]);
    let records: Vec<vp_data::Record> = scene.read("out/records.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let places: Vec<_> = records.iter().map(|record| (record.id.as_str(), record.annotator.as_ref().unwrap().repeat)).collect();
    assert_eq!(places, [("000", 0), ("000", 1), ("again", 0), ("again", 1), ("001", 0), ("001", 1)]);
    assert_eq!(records[0].completions, records[2].completions);
}

#[test]
fn a_run_that_is_told_to_stop_goes_on_later() {
    let scene = Scene::new(12, 1);
    let server = Server::start(|_| Fault::None);
    let (stop, events) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let progress = |event: Event| {
        if let Event::Settled { done, of, .. } = event {
            events.lock().unwrap().push((done, of));
            stop.fetch_or(done == 4, Ordering::SeqCst);
        }
    };
    let (config, options) = (openai(&server.base_url, ""), RunOptions { concurrency: 2, ..RunOptions::default() });
    let (annotator, output) = (config.build(BuildContext::default()).unwrap(), scene.output("out"));
    let summary = run(scene.job(&output), annotator.as_ref(), &options, &progress, &stop).unwrap();
    assert!(summary.stopped == Some(Stopped::Told) && (4..=6).contains(&summary.asked), "{summary:?}");
    assert_eq!(events.lock().unwrap().len(), summary.asked);
    let later = scene.runs(&config, &options, "out");
    assert_eq!((later.known, later.open, server.seen().len()), (summary.asked, 0, 12));
}
