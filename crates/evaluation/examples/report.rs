//! Writes a full report of made-up models, so that it can be looked at: `cargo run --release -p vp-evaluation --example report -- FOLDER`.
//!
//! Two tuned models are compared with a base. One learns its reward; the other exploits it: its images go dark and alike, and the reward that was
//! not trained falls. Some prompts are hostile: markup, quotes, other scripts, a word without an end.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

use vp_evaluation::comparison::{CompareOptions, Distances, ImageResult, ModelComparison, compare};
use vp_evaluation::pixels::PixelStats;
use vp_evaluation::report::{Chart, Fact, ImagePair, Leak, LeakPanel, Picture, Provenance, Report, ScorePair, SentinelPanel, Series};
use vp_evaluation::sentinel::{Action, Look, RewardUpHeldoutDown, SentinelConfig, findings};
use vp_evaluation::votes::{Vote, count_votes};

const MODELS: [&str; 3] = ["base", "tuned with ReFL", "tuned with DDPO <b>\"&"];
const REWARDS: [&str; 3] = ["imagereward", "hpsv2", "aesthetic"];
const SEEDS: u64 = 4;
const PROMPTS: [&str; 12] = [
    "a large red circle above a small blue triangle on a white background",
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)> 'quoted' & \"double\"",
    "two green triangles, black background",
    "عبارة من اليمين إلى اليسار \u{202e}reversed",
    "a_word_without_an_end_a_word_without_an_end_a_word_without_an_end_a_word_without_an_end_a_word_without_an_end",
    "東京の夜、ネオンの光、雨に濡れた道路",
    "| a | table | in | a prompt | `code` **bold**",
    "three cyan crosses, gray background",
    "a yellow square right of a red cross",
    "a portrait of an old fisherman, oil on canvas, warm evening light, the sea behind him calm and grey, detailed brush strokes",
    "",
];
const CATEGORIES: [&str; 3] = ["position", "counting", "style </td>"];

/// A number in [−1, 1] that looks random.
fn noise(parts: [usize; 4]) -> f64 {
    let mixed = parts.iter().fold(0x9e37_79b9_7f4a_7c15_u64, |mixed, part| {
        let mixed = (mixed ^ *part as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ mixed >> 29).wrapping_mul(0x94d0_49bb_1331_11eb)
    });
    (mixed >> 11) as f64 / 2f64.powi(52) - 1.0
}

/// A disc on a ground; a model that exploits its reward draws it darker.
fn image(model: usize, index: usize, seed: u64, side: usize) -> Vec<u8> {
    let light = [0.85, 0.92, 0.25][model];
    let of = |part: usize| 0.5 + 0.5 * noise([index, if model == 2 { 0 } else { seed as usize }, part, 7]);
    let (x0, y0, radius) = (0.3 + 0.4 * of(0), 0.3 + 0.4 * of(1), 0.15 + 0.1 * of(2));
    let pixel = |place: usize| {
        let (x, y) = ((place % side) as f64 / side as f64, (place / side) as f64 / side as f64);
        let inside = (x - x0).hypot(y - y0) < radius;
        let shade = if inside { [of(3), of(4), 0.3] } else { [0.75 + 0.25 * x, 0.8, 0.7 + 0.3 * y] };
        shade.map(|value| (255.0 * (light * value)).clamp(0.0, 255.0) as u8)
    };
    (0..side * side).flat_map(pixel).collect()
}

fn png(rgb: &[u8], side: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, side as u32, side as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header()?.write_image_data(rgb)?;
    Ok(bytes)
}

/// The sides of images: one is small, as the images of small models are.
fn side(index: usize) -> usize {
    if index == 3 { 48 } else { 224 }
}

fn scores(model: usize, index: usize, seed: u64) -> BTreeMap<String, f64> {
    let gain = [[0.0, 0.0, 0.0], [0.35, 0.004, 0.02], [0.9, -0.012, 0.0]][model];
    let spread = [0.6, 0.01, 0.3];
    let score = |reward: usize| {
        let base = [0.2, 0.27, 5.4][reward] + spread[reward] * noise([index, reward, 0, 1]);
        base + gain[reward] + 0.5 * spread[reward] * noise([index, seed as usize, reward, 2 + model])
    };
    let of_rewards = REWARDS.iter().enumerate().map(|(place, reward)| (reward.to_string(), score(place)));
    // One of them says what it is made of.
    let terms = ["colours", "composition"]
        .into_iter()
        .zip(1..)
        .map(|(term, place)| (format!("{}/{term}", REWARDS[2]), score(2) / f64::from(place)));
    of_rewards.chain(terms).collect()
}

fn rows() -> Result<Vec<ImageResult>, Box<dyn Error>> {
    let mut rows = Vec::new();
    for (model, name) in MODELS.iter().enumerate() {
        for (index, prompt) in PROMPTS.iter().enumerate() {
            for seed in 0..SEEDS {
                let rgb = image(model, index, seed, side(index));
                let pixels = PixelStats::of(&rgb, side(index), side(index))?;
                let category = (index < 11).then(|| CATEGORIES[index % 3].to_string());
                let mut scores = scores(model, index, seed);
                if (model, index, seed) == (1, 8, 2) {
                    scores.insert("hpsv2".into(), f64::NAN);
                }
                rows.push(ImageResult { index, prompt: prompt.to_string(), category, seed, model: name.to_string(), scores, pixels });
            }
        }
    }
    // Some images were not drawn.
    rows.retain(|row| (row.model.as_str(), row.index, row.seed) != (MODELS[2], 9, 3));
    Ok(rows)
}

fn distances() -> Distances {
    let prompt =
        |model: usize, index: usize| (0..6).map(|pair| [0.42, 0.38, 0.11][model] + 0.05 * noise([index, pair, model, 3])).collect();
    let of = |model: usize| (0..PROMPTS.len()).map(move |index| (index, prompt(model, index)));
    let models = MODELS.iter().enumerate().map(|(model, name)| (name.to_string(), of(model).collect())).collect();
    Distances { metric: "1 − cosine of CLIP embeddings".into(), models }
}

fn pair(model: usize, index: usize, seed: u64) -> Result<ImagePair, Box<dyn Error>> {
    let picture = |model: usize| -> Result<Picture, Box<dyn Error>> {
        let bytes = png(&image(model, index, seed, side(index)), side(index))?;
        Ok(Picture { model: MODELS[model].into(), file: Some(format!("images/{model}-{index}-{seed}.png")), bytes })
    };
    let (before, after) = (scores(0, index, seed), scores(model, index, seed));
    let scores = before.iter().map(|(reward, score)| ScorePair { reward: reward.clone(), baseline: *score, candidate: after[reward] });
    Ok(ImagePair {
        index,
        seed,
        prompt: PROMPTS[index].into(),
        baseline: picture(0)?,
        candidate: picture(model)?,
        scores: scores.collect(),
    })
}

fn extremes(comparison: &ModelComparison) -> Result<Vec<ImagePair>, Box<dyn Error>> {
    let place = |name: &str| MODELS.iter().position(|model| *model == name).unwrap_or(0);
    comparison.extreme_images().into_iter().map(|(candidate, index, seed)| pair(place(candidate), index, seed)).collect()
}

fn looks() -> Vec<Look> {
    let look = |step: u64| {
        let share = step as f64 / 400.0;
        let values = |mean: f64, spread: f64, part: usize| -> Vec<f64> {
            (0..32).map(|image| mean + spread * (noise([image, part, 0, 0]) + 0.3 * noise([image, part, step as usize, 1]))).collect()
        };
        let light = values(0.8 - 0.6 * share, 0.05, 4);
        let pixels = light.into_iter().map(|light| PixelStats {
            brightness: light,
            saturation: 0.3,
            edge_density: 0.2 * (1.0 - 0.7 * share),
            entropy: 6.0,
            dark_fraction: 0.6 * share,
        });
        Look {
            step,
            trained_reward: values(0.2 + 0.9 * share, 0.4, 1),
            watched: BTreeMap::from([("hpsv2".into(), values(0.27 - 0.02 * share, 0.01, 2)), ("aesthetic".into(), values(5.4, 0.3, 3))]),
            weight_distance: 0.02 * share,
            diversity: Some(0.42 - 0.3 * share),
            pixels: pixels.collect(),
        }
    };
    (0..=8).map(|i| look(50 * i)).collect()
}

fn curves(looks: &[Look]) -> Vec<Chart> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let dense = |slope: f64, part: usize| {
        let value = |step: usize| 0.2 + slope * (step as f64 / 1000.0) + 0.25 * noise([step, part, 0, 9]);
        (0..2000).map(|step| (0.2 * step as f64, if (700..760).contains(&step) { f64::NAN } else { value(step) })).collect()
    };
    let of_looks = |value: &dyn Fn(&Look) -> f64| looks.iter().map(|look| (look.step as f64, value(look))).collect();
    let series = |name: &str, points| Series { name: name.into(), points };
    vec![
        Chart {
            title: "reward_mean, imagereward".into(),
            note: "Of the images drawn in training. The gap is a stretch without a finite value.".into(),
            leads: true,
            series: vec![series("tuned with DDPO <b>", dense(0.45, 0)), series("tuned with ReFL", dense(0.2, 1))],
        },
        Chart {
            title: "Held-out hpsv2".into(),
            note: String::new(),
            leads: true,
            series: vec![series("hpsv2", of_looks(&|look| mean(&look.watched["hpsv2"])))],
        },
        Chart {
            title: "Pixels of held-out images".into(),
            note: String::new(),
            leads: false,
            series: PixelStats::NAMES
                .iter()
                .enumerate()
                .filter(|(place, _)| *place != 3)
                .map(|(place, name)| {
                    series(name, of_looks(&|look| look.pixels.iter().map(|pixels| pixels.values()[place]).sum::<f64>() / 32.0))
                })
                .collect(),
        },
        Chart { title: "loss".into(), series: vec![series("never finite", vec![(0.0, f64::NAN)])], ..Chart::default() },
    ]
}

fn provenance() -> Provenance {
    Provenance {
        command:
            "visionprefer evaluate --model base --model 'runs/ddpo/model' --prompts \"prompts/<heldout>.txt\" --seeds 4 --out evaluation"
                .into(),
        versions: vec![Fact::new("visionprefer", "0.1.0"), Fact::new("burn", "0.22.1")],
        hardware: vec![Fact::new("processor", "2 × AMD EPYC"), Fact::new("device", "cpu (flex)")],
        time: vec![Fact::new("began", "2026-11-25 09:00"), Fact::new("took", "12 min 31 s")],
        hashes: vec![
            Fact::new("base", "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
            Fact::new("prompts.txt", "sha256:60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"),
        ],
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).map_or_else(|| std::env::temp_dir().join("visionprefer-report"), PathBuf::from);
    let comparison = compare(&rows()?, &MODELS, Some(&distances()), &CompareOptions { extremes: 3, ..CompareOptions::default() })?;
    let looks = looks();
    let stop = RewardUpHeldoutDown { action: Action::Stop };
    let config = SentinelConfig { reward_up_heldout_down: stop, ..SentinelConfig::default() };
    let leak =
        |heldout: usize, training: &str, similarity| Leak { heldout: PROMPTS[heldout].into(), training: training.into(), similarity };
    let vote = |place: usize| Vote {
        index: place % PROMPTS.len(),
        seed: place as u64 % SEEDS,
        models: [MODELS[0].into(), MODELS[1 + place % 2].into()],
        first_is_better: [0.0, 0.0, 0.5, 1.0][place * 7 % 4],
        voter: ["anna", "ben"][place % 2].into(),
    };
    let votes: Vec<Vote> = (0..80).map(vote).collect();
    let report = Report {
        votes: count_votes(&votes, &rows()?, MODELS[0], 0.95),
        title: "Two ways to tune, against the base".into(),
        about: "12 held-out prompts, 4 seeds each, drawn by a base model and by two models tuned from it. Made-up data.".into(),
        trained_rewards: vec!["imagereward".into()],
        pairs: (0..PROMPTS.len()).map(|index| pair(1 + index % 2, index, index as u64 % SEEDS)).collect::<Result<_, _>>()?,
        extremes: extremes(&comparison)?,
        comparison: Some(comparison),
        curves: curves(&looks),
        sentinel: Some(SentinelPanel { steps: looks.iter().map(|look| look.step).collect(), findings: findings(&looks, &config)?, config }),
        leaks: Some(LeakPanel {
            method: "Jaccard similarity of word 3-grams of 0.8 or more".into(),
            heldout: PROMPTS.len(),
            training: 5000,
            leaks: vec![leak(1, "<script>alert(2)</script>", 0.82), leak(9, "a yellow square right of a red cross, 8k", 0.91)],
        }),
        config: "[run]\nseed = 3 # \"quoted\" <b>\n\n[algo.ddpo]\nclip_range = 1e-4\nprompt = '''</pre><script>alert(3)</script>'''\n"
            .into(),
        provenance: provenance(),
    };
    std::fs::create_dir_all(&folder)?;
    for (name, text) in [("report.html", report.to_html()), ("report.md", report.to_markdown()), ("report.json", report.to_json())] {
        let path = folder.join(name);
        std::fs::write(&path, &text)?;
        println!("{} ({} KB)", path.display(), text.len() / 1024);
    }
    Ok(())
}
