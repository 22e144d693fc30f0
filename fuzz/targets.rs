//! Every reader of bytes from outside, as a function of these bytes, with the fixtures that mutation starts from.
//!
//! cargo-fuzz (`readers.rs`) and the stable test (`tests/fuzz_corpus.rs`) share this file. A target fails by a panic, an abort, many seconds or much
//! memory. An error is what most inputs are answered with; the test asks only that fixtures are not. An input of several files has [`BETWEEN`]
//! between them.

use std::cell::RefCell;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::thread;

use burn::tensor::{Device, Tensor};
use serde_json::Value;
use tempfile::TempDir;
use vp_annotation::{AnnotatorConfig, Ask, Budget, BuildContext, Clock, Job, Picture, RunOptions, Score, dry_run};
use vp_core::config::parse;
use vp_core::run_dir::RunDir;
use vp_core::shown;
use vp_data::{AspectWeights, ImageFolder, ImageFolderOptions, Likes, OnProblem, Parameters, Preferences, RatingThresholds, RgbImage};
use vp_models::hub_id::HubId;
use vp_models::lora::{Adapter, Names, left_out};
use vp_models::pipeline::{LoadedDenoiser, ModelFolder, Pipeline, Trainable};
use vp_models::tokenizer::{BertTokenizer, ClipTokenizer, OpenClipTokenizer};
use vp_models::weights::Weights;
use vp_rewards::RewardConfig;
use vp_schedulers::{SCHEDULERS, SchedulerConfig, build_sampler, build_scheduler};
use vp_trainers::config::TrainConfig;
use vp_trainers::run::{checkpoint, newest_checkpoint};

/// A reader.
pub struct Target {
    /// What it is called, and its folder below `fuzz/corpus`.
    pub name: &'static str,
    /// Reads an input. Whether it was what it should be, to the end of what the target does with it.
    pub read: fn(&[u8]) -> bool,
    /// How many mutations the stable test tries, of all seeds together: fewer where an input takes long.
    pub mutations: u64,
    /// What mutation starts from besides the corpus: files of this repository, those of an input together. Of a name that ends in [`HEADER`], the
    /// header alone.
    seeds: &'static [&'static [&'static str]],
}

/// Stands between the files of an input. It is in no UTF-8 text.
pub const BETWEEN: &[u8] = b"\xff\xff";
/// What a seed's name ends in of whose file the safetensors header alone is meant.
const HEADER: &str = "#header";
/// The largest file that is made up for a header, in bytes.
const LARGEST: u64 = 64 << 20;
/// The models whose weights and tokenizers lie beside configs.
const SD15: &str = "tests/golden/sd15_tiny/pipeline";
const SDXL: &str = "tests/golden/sdxl_tiny/pipeline";
/// The files that an input of `model_folder` holds.
const CONFIGS: [&str; 6] = [
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder_2/config.json",
];
/// What is tokenized, and what a server is asked about.
const PROMPT: &str = "a Red fox's 3 kits, é🦊 <|endoftext|> [ENC]\0";

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "safetensors",
        mutations: 600,
        read: |input| weights("x.safetensors", input),
        seeds: &[
            &["tests/golden/lora_peft_tiny/fp8_e4m3.safetensors"],
            &["tests/golden/lora_lycoris_tiny/lokr_full.safetensors"],
            &["tests/golden/optim/tensors.safetensors"],
        ],
    },
    Target {
        name: "pytorch",
        mutations: 600,
        read: |input| weights("x.pt", input),
        seeds: &[
            &["tests/golden/aesthetic_tiny/sac+logos+ava1-l14-linearMSE.pth"],
            &["tests/golden/unet_bin_tiny/legacy/text_encoder/pytorch_model.bin"],
            &["tests/golden/lora_peft_tiny/attn_procs/pytorch_lora_weights.bin"],
        ],
    },
    Target { name: "shards", mutations: 600, read: shards, seeds: &[] },
    Target {
        name: "lora",
        mutations: 300,
        read: lora,
        seeds: &[
            &[
                "tests/golden/lora_peft_tiny/patterns/adapter_config.json",
                "tests/golden/lora_peft_tiny/patterns/adapter_model.safetensors#header",
            ],
            &["", "tests/golden/lora_peft_tiny/dora_kohya.safetensors#header"],
            &["", "tests/golden/lora_lycoris_tiny/loha_tucker.safetensors#header"],
            &["", "tests/golden/lora_lycoris_tiny/lokr_both_tucker.safetensors#header"],
            &["", "tests/golden/lora_lycoris_tiny/full.safetensors#header"],
        ],
    },
    Target {
        name: "single_file",
        mutations: 100,
        read: single_file,
        seeds: &[&["tests/golden/ldm_sd15_inferred_tiny/model.safetensors#header"]],
    },
    Target {
        name: "model_folder",
        mutations: 100,
        read: model_folder,
        seeds: &[
            &[
                "tests/golden/sd15_tiny/pipeline/model_index.json",
                "tests/golden/sd15_tiny/pipeline/unet/config.json",
                "tests/golden/sd15_tiny/pipeline/vae/config.json",
                "tests/golden/sd15_tiny/pipeline/text_encoder/config.json",
                "tests/golden/sd15_tiny/pipeline/scheduler/scheduler_config.json",
                "",
            ],
            &[
                "tests/golden/sdxl_tiny/pipeline/model_index.json",
                "tests/golden/sdxl_tiny/pipeline/unet/config.json",
                "tests/golden/sdxl_tiny/pipeline/vae/config.json",
                "tests/golden/sdxl_tiny/pipeline/text_encoder/config.json",
                "tests/golden/sdxl_tiny/pipeline/scheduler/scheduler_config.json",
                "tests/golden/sdxl_tiny/pipeline/text_encoder_2/config.json",
            ],
        ],
    },
    Target {
        name: "reward",
        mutations: 100,
        read: reward,
        seeds: &[
            &["tests/golden/blip_reward_tiny/model/config.json", "tests/golden/blip_reward_tiny/model/model.safetensors#header"],
            &["tests/golden/clip_tiny/model/config.json", "tests/golden/clip_tiny/model/model.safetensors#header"],
            &[
                "tests/golden/openclip_tiny/model/open_clip_config.json",
                "tests/golden/openclip_tiny/model/open_clip_model.safetensors#header",
            ],
            &["", "tests/golden/aesthetic_tiny/imscore.safetensors#header"],
        ],
    },
    Target {
        name: "tokenizer",
        mutations: 300,
        read: tokenizer,
        seeds: &[&[
            "checkpoints/shapes/tokenizer/vocab.json",
            "checkpoints/shapes/tokenizer/merges.txt",
            "",
            "checkpoints/shapes/tokenizer/tokenizer_config.json",
            "checkpoints/shapes/tokenizer/special_tokens_map.json",
        ]],
    },
    Target {
        name: "scheduler",
        mutations: 600,
        read: scheduler,
        seeds: &[
            &["tests/golden/sd15_tiny/pipeline/scheduler/scheduler_config.json"],
            &["tests/golden/sdxl_tiny/pipeline/scheduler/scheduler_config.json"],
            &["checkpoints/shapes/scheduler/scheduler_config.json"],
        ],
    },
    Target { name: "image", mutations: 600, read: image, seeds: &[&["checkpoints/tiny-images/00.png"]] },
    Target {
        name: "parquet",
        mutations: 200,
        read: |input| {
            let folder = files(input, &["x.parquet"]);
            let _ = black_box(vp_data::read_prompts(folder.path().join("x.parquet")));
            use_datasets(folder.path(), &["x.parquet", ""])
        },
        seeds: &[&["crates/data/tests/fixtures/metadata-test.parquet"], &["crates/data/tests/fixtures/pick_a_pic.parquet"]],
    },
    Target { name: "zip", mutations: 400, read: |input| use_datasets(files(input, &["x.zip"]).path(), &["x.zip", ""]), seeds: &[] },
    Target { name: "records", mutations: 400, read: records, seeds: &[&["checkpoints/tiny-images/metadata.jsonl"]] },
    Target { name: "prompts", mutations: 400, read: prompts, seeds: &[&["checkpoints/tiny-images/metadata.jsonl"]] },
    Target { name: "image_folder", mutations: 300, read: image_folder, seeds: &[&["", "", "checkpoints/tiny-images/metadata.jsonl"]] },
    Target {
        name: "config",
        mutations: 600,
        read: config,
        seeds: &[
            &["configs/refl/tiny.toml"],
            &["configs/dpo/tiny.toml"],
            &["configs/kto/shapes.toml"],
            &["configs/reward_model/shapes.toml"],
        ],
    },
    Target { name: "reply", mutations: 300, read: reply, seeds: &[] },
    Target { name: "journal", mutations: 600, read: journal, seeds: &[] },
    Target { name: "checkpoint", mutations: 200, read: run_folder, seeds: &[] },
    Target { name: "text", mutations: 600, read: text, seeds: &[] },
];

impl Target {
    /// The inputs to start from, with what they are called.
    pub fn seeds(&self) -> Vec<(String, Vec<u8>)> {
        let part = |name: &&str| match name.strip_suffix(HEADER) {
            _ if name.is_empty() => Vec::new(),
            Some(name) => header(&fixture(name)),
            None => fixture(name),
        };
        self.seeds.iter().map(|parts| (parts.join(" "), parts.iter().map(part).collect::<Vec<_>>().join(BETWEEN))).collect()
    }
}

/// The repository, whether this is compiled in it or in its folder `fuzz`.
pub fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().find(|folder| folder.join("tests/golden").is_dir()).unwrap_or(package).into()
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The JSON in front of the values.
fn header(safetensors: &[u8]) -> Vec<u8> {
    let (length, rest) = safetensors.split_first_chunk().expect("a safetensors file begins with a length");
    rest[..u64::from_le_bytes(*length) as usize].into()
}

/// The input as a file, in a folder that goes away with the first of the two.
fn file(name: &str, input: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join(name);
    fs::write(&path, input).expect("a file in it");
    (folder, path)
}

/// The parts of the input as files of these names. An empty part makes no file.
fn files(input: &[u8], names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, part) in names.iter().zip(parts(input)).filter(|(_, part)| !part.is_empty()) {
        put(&folder.path().join(name), part);
    }
    folder
}

fn put(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().expect("it is in a folder"))
        .and_then(|()| fs::write(path, bytes))
        .expect("a file in a temporary folder");
}

fn parts(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut ended = false;
    std::iter::from_fn(move || {
        let found = input.windows(BETWEEN.len()).position(|window| window == BETWEEN);
        let part = if ended { None } else { Some(&input[..found.unwrap_or(input.len())]) };
        ended = found.is_none();
        input = found.map_or(&[], |at| &input[at + BETWEEN.len()..]);
        part
    })
}

/// A safetensors file of this header, as long as the header says, whose values are zeros that take no space.
fn with_zeros(path: &Path, header: &[u8]) {
    let end = |tensor: &Value| tensor["data_offsets"][1].as_u64();
    let parsed: Value = serde_json::from_slice(header).unwrap_or_default();
    let length = parsed.as_object().into_iter().flat_map(|tensors| tensors.values()).filter_map(end).max().unwrap_or(0);
    put(path, &[&(header.len() as u64).to_le_bytes(), header].concat());
    let file = File::options().write(true).open(path).expect("it was just written");
    file.set_len(8 + header.len() as u64 + length.min(LARGEST)).expect("a longer file");
}

fn link(from: &str, to: &Path) {
    fs::create_dir_all(to.parent().expect("it is in a folder")).expect("a folder");
    std::os::unix::fs::symlink(root().join(from), to).expect("a link in a temporary folder");
}

fn weights(name: &str, input: &[u8]) -> bool {
    let (_folder, path) = file(name, input);
    let Ok(weights) = Weights::open(&path) else { return false };
    black_box(weights.metadata());
    for (_, stored) in weights.iter() {
        let _ = black_box((stored.read_number(), stored.read()));
    }
    true
}

/// The index of a checkpoint in two files.
fn shards(input: &[u8]) -> bool {
    let folder = files(input, &["x.safetensors.index.json"]);
    link("tests/golden/optim/tensors.safetensors", &folder.path().join("1.safetensors"));
    link("tests/golden/lora_lycoris_tiny/lokr_full.safetensors", &folder.path().join("2.safetensors"));
    Weights::open(&folder.path().join("x.safetensors.index.json")).is_ok_and(|weights| black_box(weights.into_names().count()) > 0)
}

thread_local! {
    /// What LoRAs are merged into, and the names of its layers.
    static BASE: (Trainable<LoadedDenoiser>, Names) = {
        let folder = ModelFolder::open(&root().join(SD15)).expect("a model of the repository");
        let (pipeline, denoiser) = Pipeline::load(folder, &Device::flex()).expect("its weights");
        let names = pipeline.lora_names(&denoiser);
        (pipeline.adaptable(denoiser), names)
    };
}

fn lora(input: &[u8]) -> bool {
    let folder = files(input, &["adapter_config.json"]);
    let path = folder.path().join("adapter_model.safetensors");
    with_zeros(&path, parts(input).nth(1).unwrap_or_default());
    let _ = black_box(left_out(&path));
    BASE.with(|(base, names)| {
        let Ok(adapter) = Adapter::read(&path, names) else { return false };
        black_box(adapter.warning());
        black_box(adapter.merge(base.clone(), 0.5));
        let _ = black_box(adapter.into_factors());
        true
    })
}

fn open_model(path: &Path) -> bool {
    let Ok(folder) = ModelFolder::open(path) else { return false };
    let _ = black_box(folder.check(folder.default_size(), 7.5));
    let _ = black_box(build_sampler(&folder.scheduler_config, None, 2, 0.0).is_ok());
    let Ok((pipeline, _)) = Pipeline::load(folder, &Device::flex()) else { return false };
    black_box(pipeline.text.encode(&[PROMPT.into()], [8, 8], &Device::flex()));
    true
}

fn single_file(input: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    with_zeros(&path, input);
    link("tests/golden/ldm_sd15_inferred_tiny/tokenizer", &folder.path().join("tokenizer"));
    open_model(&path)
}

/// The configs of a model whose weights are those of one of the repository.
fn model_folder(input: &[u8]) -> bool {
    let folder = files(input, &CONFIGS);
    let is_xl = folder.path().join(CONFIGS[5]).is_file();
    let model = if is_xl { SDXL } else { SD15 };
    for file in ["unet", "vae", "text_encoder", "text_encoder_2"] {
        let of_model = fs::read_dir(root().join(model).join(file)).into_iter().flatten().flatten();
        for name in of_model.map(|entry| entry.file_name()).filter(|name| name != "config.json") {
            link(&format!("{model}/{file}/{}", name.display()), &folder.path().join(file).join(&name));
        }
    }
    for tokenizer in ["tokenizer", "tokenizer_2"] {
        link(&format!("{model}/{tokenizer}"), &folder.path().join(tokenizer));
    }
    open_model(folder.path())
}

fn reward(input: &[u8]) -> bool {
    let config = parts(input).next().unwrap_or_default();
    let folder = files(input, &["config.json"]);
    put(&folder.path().join("open_clip_config.json"), config);
    link("tests/golden/blip_reward_tiny/model/vocab.txt", &folder.path().join("vocab.txt"));
    for file in ["vocab.json", "merges.txt"] {
        link(&format!("tests/golden/openclip_tiny/model/{file}"), &folder.path().join(file));
    }
    let path = folder.path().join("model.safetensors");
    with_zeros(&path, parts(input).nth(1).unwrap_or_default());
    [folder.path(), &path].map(|path| {
        let Ok(config) = RewardConfig::from_weights(path) else { return false };
        let Ok(reward) = config.build(&Device::flex()) else { return false };
        black_box(reward.score_rgb(&[RgbImage::new(8, 8)], &[PROMPT.into()], &Device::flex())).is_ok()
    }) != [false; 2]
}

fn tokenizer(input: &[u8]) -> bool {
    let names = [
        "vocab.json",
        "merges.txt",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.txt",
    ];
    let folder = files(input, &names);
    let clip = ClipTokenizer::from_folder(folder.path()).map(|clip| black_box((clip.encode(PROMPT).warning(), clip.vocab_size())));
    let open_clip = OpenClipTokenizer::from_folder(folder.path(), 16);
    let open_clip = open_clip.map(|open_clip| black_box((open_clip.encode(PROMPT).warning(), open_clip.vocab_size())));
    let bert = BertTokenizer::from_vocab(&folder.path().join("vocab.txt"));
    let bert = bert.map(|bert| black_box((bert.encode(PROMPT).warning(), bert.vocab_size())));
    clip.is_ok() || open_clip.is_ok() || bert.is_ok()
}

/// The config's own scheduler, and another one, over three steps.
fn scheduler(input: &[u8]) -> bool {
    let (_folder, path) = file("scheduler_config.json", input);
    let Ok(config) = SchedulerConfig::read(&path) else { return false };
    let latents = Tensor::<4>::ones([1, 1, 2, 2], &Device::flex());
    let mut is_built = false;
    for entry in [None, SCHEDULERS.get(input.len() % SCHEDULERS.len())] {
        if let Ok(mut sampler) = build_sampler(&config, entry, 3, 0.5) {
            let mut x = latents.clone();
            for step in 0..sampler.timesteps().len() {
                x = sampler.step(x.clone() * 0.1, step, x, Some(latents.clone()));
            }
            black_box(x.into_data());
            is_built = true;
        }
        if let Ok(scheduler) = build_scheduler(&config, entry, 3, 0.5) {
            black_box(scheduler.transition(latents.clone(), &[0], latents.clone()));
        }
    }
    config.write(&path).is_ok() && is_built
}

fn image(input: &[u8]) -> bool {
    let (_folder, path) = file("x.png", input);
    let _ = black_box(vp_data::read_png_text(&path));
    if let Ok(picture) = Picture::read(&path) {
        let _ = black_box((picture.size(), picture.pixels().is_ok()));
    }
    black_box(vp_data::decode_image(input, &path)).is_ok()
}

/// Records and images of whatever these are, each as a set. Whether one of them is.
fn use_datasets(folder: &Path, names: &[&str]) -> bool {
    let one = |name: &&str| {
        let path = folder.join(name);
        let _ = black_box(vp_data::validate(&path));
        let Ok(read) = vp_data::open_dataset(&path).and_then(|set| Ok((set.read(OnProblem::Skip)?, set))) else { return false };
        let (read, set) = read;
        black_box(vp_data::stats(&read.records));
        read.records.iter().for_each(|record| drop(black_box(vp_data::records_by_annotator(record))));
        let _ = black_box(vp_data::split(&read.records, 0.5, 1));
        black_box(set.usable(read.records, OnProblem::Skip)).is_ok()
    };
    names.iter().map(one).fold(false, |any, one| any | one)
}

/// Whatever has JSON in lines or in a list.
fn records(input: &[u8]) -> bool {
    let (folder, path) = file("x.jsonl", input);
    put(&folder.path().join("x.json"), input);
    for (image, of) in [("a.png", "00.png"), ("b.png", "00.png"), ("c.png", "01.png")] {
        link(&format!("checkpoints/tiny-images/{of}"), &folder.path().join(image));
    }
    let _ = black_box(vp_data::read_records(&path));
    let thresholds = RatingThresholds { like_from: 4.0, dislike_to: 2.0, weights: AspectWeights::default() };
    let likes = [None, Some(&thresholds)].map(|thresholds| black_box(Likes::read(&path, OnProblem::Skip, 1, thresholds)).is_ok());
    let pairs = [Preferences::read(&path, OnProblem::Skip, 1), Preferences::read_with_probabilities(&path, OnProblem::Skip, 1)];
    let pairs = pairs.map(|pairs| {
        // A probability is one, whatever the scores.
        let probable = |pairs: Preferences| pairs.pairs.iter().filter_map(|pair| pair.probability).all(|p| (0.0..=1.0).contains(&p));
        black_box(pairs).is_ok_and(|pairs| {
            assert!(probable(pairs), "a probability is out of range");
            true
        })
    });
    let lists = black_box(vp_data::read_manifest(&path)).is_ok() | (likes != [false; 2]) | (pairs != [false; 2]);
    use_datasets(folder.path(), &["x.jsonl", "x.json", ""]) | lists
}

fn prompts(input: &[u8]) -> bool {
    let read = |extension| {
        let (_folder, path) = file(&format!("x.{extension}"), input);
        black_box(vp_data::read_prompts(&path)).is_ok()
    };
    ["txt", "json", "jsonl", "tsv"].map(read) != [false; 4]
}

fn image_folder(input: &[u8]) -> bool {
    let folder = files(input, &["dataset.toml", "metadata.csv", "metadata.jsonl", "in/00.txt"]);
    link("checkpoints/tiny-images/00.png", &folder.path().join("in/00.png"));
    let options = ImageFolderOptions { on_problem: OnProblem::Skip, min_size: 1, ..ImageFolderOptions::default() };
    let opened = ["", "dataset.toml"].map(|name| black_box(ImageFolder::open(folder.path().join(name), &options)).is_ok());
    for table in ["metadata.csv", "metadata.jsonl"] {
        let _ = black_box(vp_data::read_manifest(folder.path().join(table)));
    }
    use_datasets(folder.path(), &["", "metadata.csv", "metadata.jsonl"]) | (opened != [false; 2])
}

/// A config and lines of overrides.
fn config(input: &[u8]) -> bool {
    let mut parts = parts(input).map(|part| String::from_utf8_lossy(part).into_owned());
    let (text, flags) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let flags: Vec<String> = flags.lines().map(String::from).collect();
    let told = |error: vp_core::config::ConfigError| black_box(error.to_string());
    let train = black_box(parse::<TrainConfig>(&text, "x.toml", &flags).map_err(told)).is_ok();
    let annotator = black_box(parse::<AnnotatorConfig>(&text, "x.toml", &flags).map_err(told)).is_ok();
    black_box(parse::<RewardConfig>(&text, "x.toml", &flags).map_err(told)).is_ok() | train | annotator
}

/// What the server answers next, whoever asks what.
static ANSWER: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static PORT: LazyLock<u16> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("it has an address").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = BufReader::new(stream);
            let (mut length, mut line) = (0, String::new());
            while matches!(stream.read_line(&mut line), Ok(2..)) && line != "\r\n" {
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap_or(0);
                }
                line.clear();
            }
            let mut body = vec![0; length];
            let _ = stream.read_exact(&mut body);
            let answer = ANSWER.lock().expect("nobody panics with it").clone();
            let _ = stream.get_mut().write_all(&answer);
        }
    });
    port
});

/// A server's answer, with status and headers, to every question.
fn reply(input: &[u8]) -> bool {
    *ANSWER.lock().expect("nobody panics with it") = input.into();
    let url = format!("http://127.0.0.1:{}", *PORT);
    let text = format!("[openai]\nmodel = \"m\"\nbase_url = \"{url}\"\nmax_attempts = 1\nreasks = 0\ntimeout_s = 5\n");
    let config: AnnotatorConfig = parse(&text, "openai", &[]).expect("a config of an annotator");
    let annotator = config.build(BuildContext { clock: Clock::simulated(), ..BuildContext::default() }).expect("an annotator");
    let unusable = RefCell::new(Vec::new());
    let keep = |reply: &vp_annotation::Unusable, _| {
        unusable.borrow_mut().push(reply.clone());
        Ok(())
    };
    let key = "0".repeat(64);
    let budget = Budget::new(None, None, 0.0, 0);
    let ask = Ask { key: &key, repeat: 0, stopped: &|| false, notice: &|_| {}, budget: &budget, unusable: &[], keep: &keep };
    let image = RgbImage::new(2, 2);
    let pictures = [Picture::of_pixels(&image, "a"), Picture::of_pixels(&image, "b")];
    let rated = black_box(annotator.rate(PROMPT, &pictures, &ask)).is_ok();
    let compared = black_box(annotator.compare(PROMPT, [&pictures[0], &pictures[1]], &ask)).is_ok();
    let polished = black_box(annotator.polish(PROMPT, &ask)).is_ok();
    let text = format!("[http]\nurl = \"{url}\"\nmax_attempts = 1\ntimeout_s = 5\n");
    let reward: RewardConfig = parse(&text, "http", &[]).expect("a config of a reward");
    let reward = reward.build(&Device::flex()).expect("a reward");
    black_box(reward.score_rgb(&[image], &[PROMPT.into()], &Device::flex())).is_ok() | rated | compared | polished
}

/// What an annotation that goes on reads, and files of the annotators that ask nobody.
fn journal(input: &[u8]) -> bool {
    let folder = files(input, &["journal.jsonl", "records.jsonl", "scores.txt"]);
    link("checkpoints/tiny-images/00.png", &folder.path().join("a.png"));
    let path = |name: &str| folder.path().join(name).display().to_string();
    let replay = format!("[replay]\nrecords = {:?}\n", path("records.jsonl"));
    let bands = format!("[reward]\nlabel = \"r\"\nquantiles = [0.1, 0.4, 0.6, 0.9]\nreference_scores = {:?}\n", path("scores.txt"));
    let build = |text: &str| {
        let config: AnnotatorConfig = parse(text, "annotator", &[]).expect("a config of an annotator");
        let score: Score = Box::new(|_, _| Ok(vec![0.5]));
        config.build(BuildContext { score: Some(score), ..BuildContext::default() })
    };
    let (replay, bands) = (build(&replay), build(&bands));
    let job = Job { items: &[], images_root: folder.path(), output: folder.path() };
    let known = replay.as_ref().is_ok_and(|replay| black_box(dry_run(job, &**replay, &RunOptions::default())).is_ok());
    known || bands.is_ok()
}

/// A run's folder. Its manifest is made for what is there, since no mutation finds a checksum.
fn run_folder(input: &[u8]) -> bool {
    // The header stands between the others, and is made a file of below.
    let run = files(input, &["checkpoints/step-000001/state.json", "header", "metrics.jsonl"]);
    let folder = run.path().join("checkpoints/step-000001");
    with_zeros(&folder.join("weights.safetensors"), parts(input).nth(1).unwrap_or_default());
    let mut records = serde_json::Map::new();
    for name in ["state.json", "weights.safetensors"] {
        if let Ok((sha256, bytes)) = checkpoint::sha256(&folder.join(name)) {
            records.insert(name.into(), serde_json::json!({ "bytes": bytes, "sha256": sha256 }));
        }
    }
    put(&folder.join("manifest.json"), serde_json::json!({ "files": records }).to_string().as_bytes());
    let is_valid = black_box(newest_checkpoint(run.path(), &Device::flex())).0.is_some();
    put(&run.path().join("config.toml"), b"");
    if let Ok(mut run) = RunDir::open(run.path()) {
        let _ = black_box(run.rewind(Some(3)));
    }
    is_valid
}

/// Short texts: what an image tells of its making, names of models, and whatever is shown.
fn text(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let parameters = Parameters::parse(&text);
    black_box((parameters.get("Seed"), parameters.to_text()));
    black_box(HubId::of(Path::new(&*text)));
    black_box((shown::one_line(&text), shown::lines(&text), shown::json(&text), shown::value(&text)));
    black_box((shown::cut(&text, input.len() / 2), shown::names(text.split(','))));
    true
}
