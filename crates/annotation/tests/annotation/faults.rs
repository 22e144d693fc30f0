//! What a server does wrong leaves no trace in the records, or a reason why there is none.

use std::collections::HashSet;
use std::time::Duration;

use vp_annotation::{Clock, Error, RunOptions};

use crate::scene::{Scene, everything, openai};
use crate::server::{Asked, Fault, Server};

/// Three requests of every question may meet anything, three more a busy or broken server; then all is well.
fn stormy(seed: u8) -> impl Fn(&Asked) -> Fault {
    move |asked| {
        use Fault::*;
        let any = [
            None,
            Busy(3),
            Broken,
            Cut,
            Fenced,
            MissingAspect,
            OutOfRange,
            WrongCount,
            Chatter,
            Refusal,
            ContentFilter,
            Empty,
            MissingAspect,
            Fenced,
        ];
        let roll = asked.digest[(asked.before + usize::from(seed)) % 32] as usize;
        match asked.before {
            // A time-out is waited for in earnest, so there are few.
            0..3 if roll % 32 == 31 => Hang,
            0..3 => any[roll % any.len()],
            3..6 => [None, Busy(1), Broken, Cut][roll % 4],
            _ => None,
        }
    }
}

#[test]
fn records_under_faults_equal_those_of_an_undisturbed_run() {
    let scene = Scene::new(16, 3);
    let calm = Server::start(|_| Fault::None);
    let summary = scene.runs(&openai(&calm.base_url, ""), &everything(), "calm");
    assert_eq!((summary.questions, summary.asked, summary.open, summary.requests), (16 * 7, 16 * 7, 0, 16 * 7));
    let records = scene.read("calm/records.jsonl");
    assert_eq!((records.lines().count(), scene.read("calm/set_aside.jsonl").as_str()), (32, ""));

    let mut met = HashSet::new();
    for seed in [0, 1] {
        let server = Server::with(stormy(seed), true, Duration::ZERO, Clock::system());
        let output = format!("stormy {seed}");
        let summary = scene.runs(&openai(&server.base_url, "reasks = 3\ntimeout_s = 2.0\nmax_attempts = 12"), &everything(), &output);
        assert_eq!((summary.asked, summary.open, summary.set_aside.len()), (16 * 7, 0, 0), "{summary:?}");
        assert!(summary.repaired > 0 && summary.requests == server.seen().len() as u64, "{summary:?}");
        assert_eq!(scene.read(&format!("{output}/records.jsonl")), records);
        // Each thread may have been refused once before the first refusal was remembered.
        let with_format = server.seen().iter().filter(|seen| seen.body.get("response_format").is_some()).count();
        assert!((1..=4).contains(&with_format), "{with_format}");
        met.extend(server.seen().iter().map(|seen| format!("{:?}", seen.fault)));
    }
    assert_eq!(met.len(), 14, "not every fault was met: {met:?}");
}

#[test]
fn a_repair_shows_the_model_its_reply_and_the_findings() {
    let scene = Scene::new(1, 2);
    let server = Server::start(|asked| if asked.before == 0 { Fault::MissingAspect } else { Fault::None });
    let summary = scene.runs(&openai(&server.base_url, ""), &RunOptions::default(), "out");
    assert_eq!((summary.asked, summary.repaired, summary.requests), (1, 1, 2));
    // Both replies were paid for.
    assert_eq!(summary.usage.input_tokens, 2 * crate::server::INPUT_TOKENS);
    let messages = server.seen()[1].body["messages"].clone();
    assert_eq!(messages.as_array().unwrap().len(), 3);
    assert!(messages[1]["role"] == "assistant" && messages[1]["content"].as_str().unwrap().contains("\"images\""));
    assert!(messages[2]["content"].as_str().unwrap().contains("- image 1: fidelity is missing"), "{messages}");
}

#[test]
fn what_the_model_refuses_is_set_aside_and_left_alone() {
    let scene = Scene::new(6, 1);
    let server = Server::start(|asked| if asked.prompt.ends_with('2') { Fault::Refusal } else { Fault::None });
    let annotator = openai(&server.base_url, "");
    let summary = scene.runs(&annotator, &RunOptions::default(), "out");
    assert_eq!((summary.asked, summary.set_aside.len(), summary.requests), (5, 1, 7));
    let line = r#"{"id":"002","task":"rate","shown":[0],"repeat":0,"reason":"the model refused: I cannot help with that."}"#;
    assert_eq!(scene.read("out/set_aside.jsonl").trim_end(), line);
    assert_eq!(scene.read("out/records.jsonl").lines().count(), 5);
    assert_eq!(scene.runs(&annotator, &RunOptions::default(), "out").requests, 0);
    let again = RunOptions { retry_set_aside: true, ..RunOptions::default() };
    assert_eq!(scene.runs(&annotator, &again, "out").requests, 2);
}

#[test]
fn a_pair_with_an_answer_in_one_order_counts_for_nothing() {
    let scene = Scene::new(1, 3);
    // The second order of the first pair, and it alone, is refused: its first image is the prompt's second, its other the first.
    let options = RunOptions { rate: false, concurrency: 1, ..everything() };
    let server = {
        let count = std::sync::atomic::AtomicUsize::new(0);
        Server::start(move |_| match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            1 | 2 => Fault::Refusal,
            _ => Fault::None,
        })
    };
    let summary = scene.runs(&openai(&server.base_url, ""), &options, "out");
    assert_eq!((summary.set_aside.len(), &summary.set_aside[0].shown[..]), (1, &[1, 0][..]));
    let record: vp_data::Record = serde_json::from_str(&scene.read("out/records.jsonl")).unwrap();
    assert_eq!(record.comparisons.iter().map(|c| c.shown).collect::<Vec<_>>(), [[0, 2], [2, 0], [1, 2], [2, 1]]);
}

#[test]
fn an_image_that_cannot_be_read_costs_nothing() {
    let scene = Scene::new(3, 2);
    std::fs::remove_file(scene.output("images/0_1.png")).unwrap();
    std::fs::write(scene.output("images/1_0.png"), b"\x89PNG\r\n\x1a\n half").unwrap();
    let server = Server::start(|_| Fault::None);
    let summary = scene.runs(&openai(&server.base_url, ""), &RunOptions::default(), "out");
    assert_eq!((summary.asked, summary.requests), (1, 1));
    assert!(summary.set_aside[0].reason.contains("0_1.png") && summary.set_aside[1].reason.contains("1_0.png"), "{summary:?}");
}

fn fails(status: u16) -> (Error, usize) {
    let scene = Scene::new(30, 1);
    let server = Server::start(move |_| Fault::Status(status));
    let options = RunOptions { concurrency: 1, ..RunOptions::default() };
    let error = scene.run(&openai(&server.base_url, "max_attempts = 3"), &options, "out", Clock::simulated()).0.unwrap_err();
    (error, server.seen().len())
}

#[test]
fn a_server_that_refuses_everything_ends_the_run_and_says_what_to_check() {
    for (status, advice) in [(401, "VP_TEST_KEY"), (403, "api_key_env"), (404, "end in /v1"), (402, "no credit"), (308, "base_url")] {
        let (error, requests) = fails(status);
        let text = error.to_string();
        assert!(text.contains(advice) && text.contains(&status.to_string()) && requests == 1, "{requests} {text}");
    }
    for (status, requests) in [(400, 5), (413, 5), (503, 15)] {
        let (error, seen) = fails(status);
        assert!(matches!(error, Error::GivenUp { count: 5, .. }) && seen == requests, "{status} {seen} {error}");
    }
}

#[test]
fn a_server_that_is_away_leaves_its_questions_open() {
    let scene = Scene::new(2, 1);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = openai(&format!("http://{port}/v1"), "max_attempts = 2");
    let summary = scene.runs(&away, &RunOptions::default(), "out");
    assert_eq!((summary.open, summary.unreached.len(), summary.set_aside.len()), (2, 2, 0));
    assert!(summary.unreached[0].reason.contains("no reply in 2 attempt(s)"), "{summary:?}");
    let server = Server::start(|_| Fault::None);
    assert_eq!(scene.runs(&openai(&server.base_url, ""), &RunOptions::default(), "out").asked, 2);
}
