use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::*;
use crate::bootstrap::Bootstrap;
use crate::comparison::{CompareOptions, ImageResult, compare};
use crate::pixels::PixelStats;
use crate::sentinel::{Action, Rule};
use crate::votes::{Vote, count_votes};

/// Ends whatever it stands in, if it can: text, an attribute, a comment, a script, a code block, a table's cell.
const HOSTILE: &str = "</p></td></script></style></pre>--><script>alert(1)</script>\" onload='alert(2)' x=\"`|``` **b**";

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x40\0\0\0\x40";

fn rows() -> Vec<ImageResult> {
    let pixels = PixelStats { brightness: 0.5, saturation: 0.5, edge_density: 0.1, entropy: 6.0, dark_fraction: 0.0 };
    let row = |model: &str, index: usize| ImageResult {
        index,
        prompt: format!("{HOSTILE} {index}"),
        category: Some(HOSTILE.into()),
        seed: 7,
        model: model.into(),
        scores: BTreeMap::from([(HOSTILE.to_string(), index as f64 * if model == HOSTILE { 1.5 } else { 1.0 })]),
        pixels,
    };
    let mut rows: Vec<_> = ["base", HOSTILE].iter().flat_map(|model| (0..4).map(|index| row(model, index))).collect();
    rows.push(row("base", 9));
    rows
}

fn picture(model: &str) -> Picture {
    Picture { model: model.into(), file: Some(HOSTILE.into()), bytes: PNG.to_vec() }
}

/// A report of which every text is hostile.
fn hostile() -> Report {
    let options = CompareOptions { bootstrap: Bootstrap { resamples: 100, ..Bootstrap::default() }, ..CompareOptions::default() };
    let facts = || vec![Fact::new(HOSTILE, HOSTILE)];
    let scores = vec![ScorePair { reward: HOSTILE.into(), baseline: 0.0, candidate: 1.0 }];
    let pair = ImagePair { index: 3, seed: 7, prompt: HOSTILE.into(), baseline: picture("base"), candidate: picture(HOSTILE), scores };
    let vote = Vote { index: 3, seed: 7, models: ["base", HOSTILE].map(String::from), first_is_better: 0.0, voter: HOSTILE.into() };
    let finding = Finding {
        rule: Rule::DarkImages,
        action: Action::Stop,
        step: 20,
        subject: None,
        start: 0.0,
        now: 1.0,
        standard_errors: None,
        images: None,
        reason: HOSTILE.into(),
    };
    Report {
        title: HOSTILE.into(),
        about: HOSTILE.into(),
        trained_rewards: vec![HOSTILE.into()],
        comparison: Some(compare(&rows(), &["base", HOSTILE], None, &options).unwrap()),
        votes: count_votes(&[vote], &rows(), "base", 0.95),
        pairs: vec![pair.clone()],
        extremes: vec![pair],
        curves: vec![Chart {
            title: HOSTILE.into(),
            note: HOSTILE.into(),
            leads: false,
            series: vec![Series { name: HOSTILE.into(), points: vec![(0.0, 1.0), (40.0, 2.0)] }],
        }],
        sentinel: Some(SentinelPanel { steps: vec![0, 20, 40], config: SentinelConfig::default(), findings: vec![finding] }),
        leaks: Some(LeakPanel {
            method: HOSTILE.into(),
            heldout: 4,
            training: 9,
            leaks: vec![Leak { heldout: HOSTILE.into(), training: HOSTILE.into(), similarity: 0.9 }],
        }),
        config: HOSTILE.into(),
        provenance: Provenance { command: HOSTILE.into(), versions: facts(), hardware: facts(), time: facts(), hashes: facts() },
    }
}

/// The text between two marks, the first time.
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    text.split_once(start).unwrap().1.split_once(end).unwrap().0
}

/// The start tags outside of the script and the style sheet, with their attributes; panics where the page is no sequence of well-formed tags and
/// text.
fn tags(html: &str) -> Vec<(String, Vec<(String, String)>)> {
    let style = between(html, "<style>", "</style>");
    let script = between(html, "<script>", "</script>");
    let html = html.replacen(style, "", 1).replacen(script, "", 1);
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut open: Vec<String> = Vec::new();
    for tag in html.split('<').skip(2) {
        let (tag, text) = tag.split_once('>').unwrap_or_else(|| panic!("a tag without an end: {tag}"));
        assert!(!text.contains(['>', '"', '\'']), "{text}");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "after {found:?}");
            continue;
        }
        let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
        let mut attributes = Vec::new();
        while !rest.is_empty() {
            let (attribute, after) = rest.split_once("=\"").unwrap();
            let (value, after) = after.split_once('"').unwrap();
            attributes.push((attribute.to_string(), value.to_string()));
            rest = after.strip_prefix(' ').unwrap_or(after);
        }
        if !["meta", "img"].contains(&name) {
            open.push(name.into());
        }
        found.push((name.into(), attributes));
    }
    assert!(open.is_empty(), "{open:?}");
    found
}

#[test]
fn hostile_text_stays_text() {
    let html = hostile().to_html();
    let tags = tags(&html);
    assert_eq!(tags.iter().filter(|(name, _)| name == "script").count(), 1);
    assert!(!tags.iter().any(|(name, _)| ["b", "iframe", "object", "link", "base", "form"].contains(&&**name)));
    for (name, attributes) in &tags {
        for (attribute, value) in attributes {
            assert!(!attribute.starts_with("on") && attribute != "style", "{name} {attribute}");
            assert!(!value.contains(['<', '>', '\'']), "{name} {attribute}: {value}");
        }
    }
    // It is all there: title twice, prompt, model, config and so on.
    assert!(html.matches("&lt;script&gt;alert(1)&lt;/script&gt;").count() > 40);
}

#[test]
fn nothing_is_fetched_and_only_what_is_hashed_runs() {
    let html = hostile().to_html();
    let policy = between(&html, "http-equiv=\"Content-Security-Policy\" content=\"", "\"").replace("&#39;", "'");
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    let style = hash(between(&html, "<style>", "</style>"));
    let script = hash(between(&html, "<script>", "</script>"));
    let expected =
        format!("default-src 'none'; img-src data:; style-src {style}; script-src {script}; base-uri 'none'; form-action 'none'");
    assert_eq!(policy, expected);
    // Policies hold for what follows them.
    assert!(html.find("Content-Security-Policy") < html.find("<style>"));
    for (name, attributes) in tags(&html) {
        for (attribute, value) in attributes.iter().filter(|(attribute, _)| ["src", "href", "srcset", "action"].contains(&&**attribute)) {
            let is_inside = value.starts_with("data:image/png;base64,") || value.starts_with('#');
            assert!(is_inside, "{name} {attribute} {value}");
        }
    }
    for outside in ["http://", "https://", "@import", "url("] {
        assert!(!html.contains(outside), "{outside}");
    }
}

#[test]
fn links_lead_somewhere_and_images_are_described() {
    let html = hostile().to_html();
    let tags = tags(&html);
    let values = |wanted: &str| {
        tags.iter().flat_map(|(_, attributes)| attributes).filter(|(name, _)| name == wanted).map(|(_, value)| &**value).collect::<Vec<_>>()
    };
    let ids = values("id");
    let links = values("href");
    assert!(links.len() >= 8 && links.iter().all(|link| ids.contains(&&link[1..])), "{links:?} {ids:?}");
    assert_eq!(ids.len(), ids.iter().collect::<std::collections::BTreeSet<_>>().len());
    let images: Vec<_> = tags.iter().filter(|(name, _)| name == "img").collect();
    // A pair before and after, and one improvement with images; three improvements have none.
    assert_eq!(images.len(), 4);
    for (_, attributes) in images {
        let of = |wanted: &str| attributes.iter().find(|(name, _)| name == wanted).map(|(_, value)| &**value);
        assert!(of("alt").is_some_and(|alt| alt.contains(": ")), "{attributes:?}");
        assert_eq!((of("width"), of("height"), of("class")), (Some("64"), Some("64"), Some("small")));
    }
}

#[test]
fn every_number_comes_with_its_interval_and_n() {
    let report = hostile();
    let paired = report.comparison.as_ref().unwrap().contrasts[0].rewards[0].paired.unwrap();
    let shown = numbers::difference(&paired);
    assert!(shown.contains('[') && paired.prompts == 4, "{shown}");
    let html = report.to_html();
    assert!(html.contains(&format!("{shown}, 4 prompts")));
    assert!(html.contains("(n = 2)") && html.contains("100.0 % [20.7, 100.0]"));
    assert!(html.contains("image without a partner: 1") && html.contains("prompt 9, seed 7: no image of &lt;/p&gt;"));
    // Means of 0 to 3, and of one and a half times that.
    let markdown = report.to_markdown();
    assert!(markdown.contains(&format!(" | 1.50 | 2.25 | {} | ", shown.replace('[', "\\[").replace(']', "\\]"))), "{markdown}");
}

#[test]
fn a_summary_fits_on_a_screen_and_its_columns_stand_below_each_other() {
    let summary = hostile().to_summary();
    assert!(summary.lines().count() <= 50, "{summary}");
    let head = summary.lines().find(|line| line.trim_start().starts_with("reward ")).expect("a row of heads");
    let at = |line: &str, byte: usize| line[..byte].chars().count();
    let column = at(head, head.find("baseline").expect("a column of the baseline"));
    let rows: Vec<&str> = summary.lines().skip_while(|line| *line != head).skip(1).take_while(|line| line.starts_with("  ")).collect();
    assert!(!rows.is_empty(), "{summary}");
    for row in rows {
        let before: Vec<char> = row.chars().skip(column - 2).take(2).collect();
        assert_eq!(before, [' ', ' '], "{summary}");
    }
}

/// What people look at is above what supports it, and what few read is folded.
#[test]
fn it_opens_with_the_verdict_and_the_images() {
    let mut report = hostile();
    let chart = |title: &str, leads| Chart {
        title: title.into(),
        leads,
        series: vec![Series { name: "a".into(), points: vec![(0.0, 1.0)] }],
        ..Chart::default()
    };
    report.curves = vec![chart("Norm", false), chart("Trained beside watched", true)];
    let pair = report.pairs[0].clone();
    let scores = ["judge", "judge/fidelity"].map(|reward| ScorePair { reward: reward.into(), baseline: 1.0, candidate: 2.0 });
    report.pairs = (0..5).map(|index| ImagePair { index, scores: scores.to_vec(), ..pair.clone() }).collect();
    let html = report.to_html();
    let order = [
        "<h1>",
        "class=\"verdict",
        "id=\"pairs\"",
        "<summary>2 more</summary>",
        "id=\"curves\"",
        "Trained beside watched",
        "<summary>1 more curve",
        "<h3>Norm",
        "id=\"people\"",
        "id=\"figures\"",
        "id=\"rewards\"",
        "id=\"provenance\"",
    ];
    let places: Vec<usize> = order.iter().map(|part| html.find(part).unwrap_or_else(|| panic!("{part} is missing"))).collect();
    assert!(places.is_sorted(), "{places:?}");
    let of_pairs = between(&html, "id=\"pairs\"", "</section>");
    assert_eq!(
        of_pairs
            .matches("<details class=\"terms\"><summary>1 term</summary><ul class=\"scores\"><li><span class=\"name\">judge/fidelity")
            .count(),
        5
    );
}

#[test]
fn what_was_not_measured_is_said() {
    let html = Report { title: "Nothing".into(), ..Report::default() }.to_html();
    tags(&html);
    assert!(html.contains("The sentinel did not watch") && html.contains("were not compared with training prompts"));
    assert!(!html.contains("id=\"figures\"") && !html.contains("id=\"pairs\"") && !html.contains("<img"));
    let quiet = SentinelPanel { steps: vec![0, 10], config: SentinelConfig::default(), findings: vec![] };
    let html = Report { sentinel: Some(quiet.clone()), leaks: Some(LeakPanel::default()), ..Report::default() }.to_html();
    assert!(html.contains("No rule fired at 2 looks, steps 0 to 10.") && html.contains("0 of 0 held-out prompts are like"));
    let first = SentinelPanel { steps: vec![0], ..quiet };
    assert!(Report { sentinel: Some(first), ..Report::default() }.to_html().contains("No rule could fire at 1 look"));
}

#[test]
fn tables_of_markdown_are_whole_whatever_they_hold() {
    let markdown = hostile().to_markdown();
    let cells = |line: &str| line.replace("\\\\", "").replace("\\|", "").matches('|').count();
    let mut fence: Option<&str> = None;
    let mut tables = 0;
    let lines: Vec<&str> = markdown.lines().collect();
    for (place, line) in lines.iter().enumerate() {
        let ticks = &line[..line.len() - line.trim_start_matches('`').len()];
        match fence {
            Some(open) if *line == open => fence = None,
            None if ticks.len() > 2 => fence = Some(ticks),
            Some(_) => {}
            None => {
                assert!(!line.replace("\\<", "").contains('<'), "{line}");
                let starts = line.starts_with('|') && !lines[place - 1].starts_with('|');
                tables += usize::from(starts);
                if line.starts_with('|') && !starts {
                    assert_eq!(cells(line), cells(lines[place - 1]), "{line}");
                }
            }
        }
    }
    // What people prefer and who agrees, rewards, categories, pixels, improvements, rules, leaks, and four of where it comes from.
    assert_eq!((fence, tables), (None, 12));
}

#[test]
fn json_holds_the_numbers_and_no_images() {
    let report = hostile();
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["comparison"]["contrasts"][0]["rewards"][0]["paired"]["difference"], 0.75);
    assert_eq!(json["pairs"][0]["candidate"], serde_json::json!({"model": HOSTILE, "file": HOSTILE}));
    assert_eq!(json["sentinel"]["findings"][0]["rule"], "dark_images");
    assert_eq!(json["title"], HOSTILE);
}
