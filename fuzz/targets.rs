//! Every reader of bytes from outside, as a function of these bytes, with the fixtures that mutation starts from.
//!
//! cargo-fuzz (`readers.rs`) and the stable test (`tests/fuzz_corpus.rs`) share this file. A target fails by a panic, an abort, many seconds or much
//! memory; errors are what a reader is expected to return, and are dropped. An input of several files has [`BETWEEN`] between them.

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
use vp_annotation::{AnnotatorConfig, Ask, Budget, BuildContext, Picture};
use vp_core::config::parse;
use vp_core::run_dir::RunDir;
use vp_core::shown;
use vp_data::{Dataset, ImageFolder, ImageFolderOptions, OnProblem, Parameters, Preferences, RgbImage};
use vp_models::hub_id::HubId;
use vp_models::lora::{Adapter, Names, left_out};
use vp_models::pipeline::{LoadedDenoiser, ModelFolder, Pipeline};
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
    /// Reads an input.
    pub read: fn(&[u8]),
    /// How many mutations of each seed the stable test tries: fewer where an input takes long.
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
/// The model whose weights and tokenizer lie beside fuzzed configs.
const MODEL: &str = "tests/golden/unet_bin_tiny/dataparallel";
/// What is tokenized, and what a server is asked about.
const PROMPT: &str = "a Red fox's 3 kits, é🦊 <|endoftext|> [ENC]\0";

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "safetensors",
        mutations: 200,
        read: |input| weights("x.safetensors", input),
        seeds: &[
            &["tests/golden/lora_peft_tiny/fp8_e4m3.safetensors"],
            &["tests/golden/lora_lycoris_tiny/lokr_full.safetensors"],
            &["tests/golden/optim/tensors.safetensors"],
        ],
    },
    Target {
        name: "pytorch",
        mutations: 200,
        read: |input| weights("x.pt", input),
        seeds: &[
            &["tests/golden/aesthetic_tiny/sac+logos+ava1-l14-linearMSE.pth"],
            &["tests/golden/unet_bin_tiny/legacy/text_encoder/pytorch_model.bin"],
            &["tests/golden/lora_peft_tiny/attn_procs/pytorch_lora_weights.bin"],
        ],
    },
    Target {
        name: "lora",
        mutations: 60,
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
        mutations: 20,
        read: single_file,
        seeds: &[&["tests/golden/ldm_sd15_tiny/model.fp16.safetensors#header"]],
    },
    Target {
        name: "model_folder",
        mutations: 20,
        read: model_folder,
        seeds: &[
            &[
                "tests/golden/unet_bin_tiny/dataparallel/model_index.json",
                "tests/golden/unet_bin_tiny/dataparallel/unet/config.json",
                "tests/golden/unet_bin_tiny/dataparallel/vae/config.json",
                "tests/golden/unet_bin_tiny/dataparallel/text_encoder/config.json",
                "tests/golden/unet_bin_tiny/dataparallel/scheduler/scheduler_config.json",
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
        mutations: 20,
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
        mutations: 60,
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
        mutations: 200,
        read: scheduler,
        seeds: &[
            &["tests/golden/sd15_tiny/pipeline/scheduler/scheduler_config.json"],
            &["tests/golden/sdxl_tiny/pipeline/scheduler/scheduler_config.json"],
            &["checkpoints/shapes/scheduler/scheduler_config.json"],
        ],
    },
    Target { name: "image", mutations: 200, read: image, seeds: &[&["checkpoints/tiny-images/00.png"]] },
    Target {
        name: "parquet",
        mutations: 60,
        read: |input| {
            read_dataset("x.parquet", input);
            let _ = vp_data::read_prompts(file("x.parquet", input).1);
        },
        seeds: &[&["crates/data/tests/fixtures/metadata-test.parquet"], &["crates/data/tests/fixtures/pick_a_pic.parquet"]],
    },
    Target { name: "zip", mutations: 200, read: |input| read_dataset("x.zip", input), seeds: &[] },
    Target {
        name: "records",
        mutations: 200,
        read: records,
        seeds: &[&["checkpoints/tiny-images/preferences.jsonl"], &["checkpoints/tiny-images/metadata.jsonl"]],
    },
    Target { name: "prompts", mutations: 200, read: prompts, seeds: &[&["checkpoints/tiny-images/metadata.jsonl"]] },
    Target { name: "image_folder", mutations: 200, read: image_folder, seeds: &[&["", "", "checkpoints/tiny-images/metadata.jsonl"]] },
    Target {
        name: "config",
        mutations: 200,
        read: config,
        seeds: &[
            &["configs/annotate/openai.toml"],
            &["configs/refl/tiny.toml"],
            &["configs/dpo/tiny.toml"],
            &["configs/reward_model/shapes.toml"],
        ],
    },
    Target { name: "reply", mutations: 60, read: reply, seeds: &[] },
    Target { name: "checkpoint", mutations: 200, read: run_folder, seeds: &[] },
    Target { name: "text", mutations: 200, read: text, seeds: &[] },
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

/// The parts of the input as files of these names. An empty part is no file.
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

fn weights(name: &str, input: &[u8]) {
    let (_folder, path) = file(name, input);
    let Ok(weights) = Weights::open(&path) else { return };
    black_box(weights.metadata());
    for (_, stored) in weights.iter() {
        let _ = black_box((stored.read(), stored.read_number()));
    }
}

/// A model's names, and one of its networks, which a LoRA is merged into.
struct Base {
    names: Names,
    denoiser: LoadedDenoiser,
}

thread_local! {
    static BASE: Base = {
        let folder = ModelFolder::open(&root().join(MODEL)).expect("a model of the repository");
        let names = folder.lora_names(&Device::flex());
        Base { names, denoiser: Pipeline::load(folder, &Device::flex()).expect("its weights").1 }
    };
}

fn lora(input: &[u8]) {
    let folder = files(input, &["adapter_config.json"]);
    let path = folder.path().join("adapter_model.safetensors");
    with_zeros(&path, parts(input).nth(1).unwrap_or_default());
    let _ = black_box(left_out(&path));
    BASE.with(|base| {
        let Ok(adapter) = Adapter::read(&path, &base.names) else { return };
        black_box(adapter.warning());
        black_box(adapter.merge(base.denoiser.clone(), 0.5));
        let _ = black_box(adapter.into_factors());
    });
}

fn open_model(path: &Path) {
    let Ok(folder) = ModelFolder::open(path) else { return };
    let _ = black_box(folder.check(folder.default_size(), 7.5));
    let _ = black_box(build_sampler(&folder.scheduler_config, None, 2, 0.0).is_ok());
    let Ok((pipeline, _)) = Pipeline::load(folder, &Device::flex()) else { return };
    black_box(pipeline.text.encode(&[PROMPT.into()], [8, 8], &Device::flex()));
}

fn single_file(input: &[u8]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    with_zeros(&path, input);
    link(&format!("{MODEL}/tokenizer"), &folder.path().join("tokenizer"));
    open_model(&path);
}

fn model_folder(input: &[u8]) {
    let configs = [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "text_encoder_2/config.json",
    ];
    let folder = files(input, &configs);
    for file in [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer",
    ] {
        link(&format!("{MODEL}/{file}"), &folder.path().join(file));
    }
    open_model(folder.path());
}

fn reward(input: &[u8]) {
    let config = parts(input).next().unwrap_or_default();
    let folder = files(input, &["config.json"]);
    put(&folder.path().join("open_clip_config.json"), config);
    link("tests/golden/blip_reward_tiny/model/vocab.txt", &folder.path().join("vocab.txt"));
    for file in ["vocab.json", "merges.txt"] {
        link(&format!("tests/golden/clip_tiny/model/{file}"), &folder.path().join(file));
    }
    let path = folder.path().join("model.safetensors");
    with_zeros(&path, parts(input).nth(1).unwrap_or_default());
    for path in [folder.path(), &path] {
        let Ok(config) = RewardConfig::from_weights(path) else { continue };
        let Ok(reward) = config.build(&Device::flex()) else { continue };
        let _ = black_box(reward.score_rgb(&[RgbImage::new(8, 8)], &[PROMPT.into()], &Device::flex()));
    }
}

fn tokenizer(input: &[u8]) {
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
    if let Ok(clip) = ClipTokenizer::from_folder(folder.path()) {
        black_box((clip.encode(PROMPT).warning(), clip.vocab_size()));
    }
    if let Ok(open_clip) = OpenClipTokenizer::from_folder(folder.path(), 16) {
        black_box((open_clip.encode(PROMPT).warning(), open_clip.vocab_size()));
    }
    if let Ok(bert) = BertTokenizer::from_vocab(&folder.path().join("vocab.txt")) {
        black_box((bert.encode(PROMPT).warning(), bert.vocab_size()));
    }
}

/// The config's own scheduler, and another one, over three steps.
fn scheduler(input: &[u8]) {
    let (_folder, path) = file("scheduler_config.json", input);
    let Ok(config) = SchedulerConfig::read(&path) else { return };
    let latents = Tensor::<4>::ones([1, 1, 2, 2], &Device::flex());
    for entry in [None, SCHEDULERS.get(input.len() % SCHEDULERS.len())] {
        if let Ok(mut sampler) = build_sampler(&config, entry, 3, 0.5) {
            let mut x = latents.clone();
            for step in 0..sampler.timesteps().len() {
                x = sampler.step(x.clone() * 0.1, step, x, Some(latents.clone()));
            }
            black_box(x.into_data());
        }
        if let Ok(scheduler) = build_scheduler(&config, entry, 3, 0.5) {
            black_box(scheduler.transition(latents.clone(), &[0], latents.clone()));
        }
    }
    let _ = black_box(config.write(&path));
}

fn image(input: &[u8]) {
    let (_folder, path) = file("x.png", input);
    let _ = black_box(vp_data::decode_image(input, &path));
    let _ = black_box(vp_data::read_png_text(&path));
    if let Ok(picture) = Picture::read(&path) {
        let _ = black_box((picture.size(), picture.pixels().is_ok()));
    }
}

/// Records and images of a set.
fn use_dataset(set: &Dataset) {
    if let Ok(read) = set.read(OnProblem::Skip) {
        black_box(vp_data::stats(&read.records));
        read.records.iter().for_each(|record| drop(black_box(vp_data::records_by_annotator(record))));
        let _ = black_box(vp_data::split(&read.records, 0.5, 1));
        let _ = black_box(set.usable(read.records, OnProblem::Skip));
    }
}

fn read_dataset(name: &str, input: &[u8]) {
    let (folder, path) = file(name, input);
    for path in [&path, folder.path()] {
        if let Ok(set) = vp_data::open_dataset(path) {
            use_dataset(&set);
        }
    }
    let _ = black_box(vp_data::validate(&path));
}

/// Whatever has JSON in lines or in a list.
fn records(input: &[u8]) {
    for name in ["records.jsonl", "train.json", "test.json"] {
        read_dataset(name, input);
    }
    let (_folder, path) = file("x.jsonl", input);
    let _ = black_box(vp_data::read_records(&path));
    let _ = black_box(vp_data::read_manifest(&path));
    let _ = black_box(Preferences::read(&path, OnProblem::Skip, 1));
}

fn prompts(input: &[u8]) {
    for extension in ["txt", "json", "jsonl", "tsv", "csv"] {
        let (_folder, path) = file(&format!("x.{extension}"), input);
        let _ = black_box(vp_data::read_prompts(&path));
    }
}

fn image_folder(input: &[u8]) {
    let folder = files(input, &["dataset.toml", "metadata.csv", "metadata.jsonl", "a.txt"]);
    put(&folder.path().join("a.png"), &fixture("checkpoints/tiny-images/00.png"));
    let options = ImageFolderOptions { on_problem: OnProblem::Skip, min_size: 1, ..ImageFolderOptions::default() };
    for path in [folder.path(), &folder.path().join("dataset.toml")] {
        let _ = black_box(ImageFolder::open(path, &options));
    }
    for table in ["metadata.csv", "metadata.jsonl"] {
        let _ = black_box(vp_data::read_manifest(folder.path().join(table)));
    }
    if let Ok(set) = vp_data::open_dataset(folder.path()) {
        use_dataset(&set);
    }
}

/// A config and lines of overrides.
fn config(input: &[u8]) {
    let mut parts = parts(input).map(|part| String::from_utf8_lossy(part).into_owned());
    let (text, flags) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let flags: Vec<String> = flags.lines().map(String::from).collect();
    if let Err(error) = parse::<TrainConfig>(&text, "x.toml", &flags) {
        black_box(error.to_string());
    }
    let _ = black_box(parse::<AnnotatorConfig>(&text, "x.toml", &flags).map_err(|error| error.to_string()));
    let _ = black_box(parse::<RewardConfig>(&text, "x.toml", &flags).map_err(|error| error.to_string()));
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
fn reply(input: &[u8]) {
    *ANSWER.lock().expect("nobody panics with it") = input.into();
    let url = format!("http://127.0.0.1:{}", *PORT);
    let text = format!("[openai]\nmodel = \"m\"\nbase_url = \"{url}\"\nmax_attempts = 1\nreasks = 0\ntimeout_s = 5\n");
    let config: AnnotatorConfig = parse(&text, "openai", &[]).expect("a config of an annotator");
    let annotator = config.build(BuildContext::default()).expect("an annotator");
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
    let _ = black_box(annotator.rate(PROMPT, &pictures, &ask));
    let _ = black_box(annotator.compare(PROMPT, [&pictures[0], &pictures[1]], &ask));
    let _ = black_box(annotator.polish(PROMPT, &ask));
    let text = format!("[http]\nurl = \"{url}\"\nmax_attempts = 1\ntimeout_s = 5\n");
    let reward: RewardConfig = parse(&text, "http", &[]).expect("a config of a reward");
    let reward = reward.build(&Device::flex()).expect("a reward");
    let _ = black_box(reward.score_rgb(&[image], &[PROMPT.into()], &Device::flex()));
}

/// A run's folder. Its manifest is made for what is there, since no mutation finds a checksum.
fn run_folder(input: &[u8]) {
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
    black_box(newest_checkpoint(run.path(), &Device::flex()));
    put(&run.path().join("config.toml"), b"");
    if let Ok(mut run) = RunDir::open(run.path()) {
        let _ = black_box(run.rewind(Some(3)));
    }
}

/// Short texts: what an image tells of its making, names of models, and whatever is shown.
fn text(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let parameters = Parameters::parse(&text);
    black_box((parameters.get("Seed"), parameters.to_text()));
    black_box(HubId::of(Path::new(&*text)));
    black_box((shown::one_line(&text), shown::lines(&text), shown::json(&text), shown::value(&text)));
    black_box((shown::cut(&text, input.len() / 2), shown::names(text.split(','))));
}
