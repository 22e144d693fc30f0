//! `dataset`: images to train on, made here; preference records, looked at and rewritten.

mod agreement;
mod records;

use anyhow::Context;
use serde_json::json;
use vp_core::atomic;
use vp_core::noise::{Noise, Purpose};
use vp_data::{Completion, Record, write_png, write_records};
use vp_shapes::split::heldout_of;
use vp_shapes::{Description, Scene, Split, Variant, render, variant};

use crate::args::{DatasetArgs, DatasetKind, ShapesArgs, SplitArg};
use crate::failure::Failure;
use crate::output_folder;
use crate::terminal::say;

/// What the folder was made from; a folder of another is not added to.
const ORIGIN: &str = "dataset.json";
/// Written last, when every image of the part is there.
const METADATA: &str = "metadata.jsonl";
/// Written instead where a caption has several images.
const RECORDS: &str = "records.jsonl";
/// More images a caption has not.
const MOST_CANDIDATES: u64 = 26;

/// The top-level entry point for `dataset`.
pub fn run(args: DatasetArgs) -> Result<(), Failure> {
    match args.kind {
        DatasetKind::Shapes(args) => shapes(&args),
        DatasetKind::Validate(args) => records::validate_set(&args),
        DatasetKind::Stats(args) => records::say_stats(&args),
        DatasetKind::Convert(args) => records::convert(&args),
        DatasetKind::Split(args) => records::split_records(&args),
        DatasetKind::Agreement(args) => agreement::run(&args),
    }
}

fn shapes(args: &ShapesArgs) -> Result<(), Failure> {
    let &ShapesArgs { n, side, shard, per_caption, .. } = args;
    if n == 0 {
        return Err(anyhow::anyhow!("--n is 0; expected at least 1").into());
    }
    if !(16..=1024).contains(&side) {
        return Err(anyhow::anyhow!("--side is {side}; expected 16 to 1024 pixels").into());
    }
    if !(1..=MOST_CANDIDATES).contains(&per_caption) {
        return Err(anyhow::anyhow!("--per-caption is {per_caption}; expected 1 to {MOST_CANDIDATES} images").into());
    }
    begin(args)?;
    let drawn = fill(args).map_err(Failure::run)?;
    let of = if shard.of > 1 { format!(" (part {} of {})", shard.index + 1, shard.of) } else { String::new() };
    let images = n * per_caption;
    say(format_args!("{images} images of {side}x{side} pixels in {}{of}, {drawn} of them new", args.out.display()));
    Ok(())
}

/// The folder of captioned images that `args` describe, without a word.
pub fn make(args: &ShapesArgs) -> anyhow::Result<()> {
    begin(args)?;
    fill(args).map(drop)
}

/// Draws what is not there yet and writes what it shows; how many images are new.
fn fill(args: &ShapesArgs) -> anyhow::Result<u64> {
    let part = (0..args.n).filter(|index| index % args.shard.of == args.shard.index);
    let drawn = part.map(|index| draw(args, index)).sum::<anyhow::Result<u64>>()?;
    if args.per_caption > 1 { write_candidates(args) } else { write_metadata(args) }?;
    Ok(drawn)
}

/// Makes the folder, or recognises it.
fn begin(args: &ShapesArgs) -> anyhow::Result<()> {
    let mut origin = json!({ "world": "shapes", "n": args.n, "seed": args.seed, "split": args.split().name(), "side": args.side });
    if args.per_caption > 1 {
        origin["per_caption"] = args.per_caption.into();
    }
    output_folder::create_or_continue(&args.out, ORIGIN, &origin)
}

/// Image `index` and its caption, which hang on the seed, the split and the number alone.
fn scene(args: &ShapesArgs, index: u64) -> (Scene, Description, String) {
    let mut rng = Noise::new(args.seed).stream(Purpose::Scene, args.split() as u64, index);
    let description = args.split().draw(&mut rng);
    let caption = description.phrase(&mut rng);
    (Scene::of(&description, &mut rng), description, caption)
}

fn file_name(index: u64) -> String {
    format!("{index:06}.png")
}

/// The images of caption `index` where there are several: the first as the caption wants it, the others as they come.
fn candidates(args: &ShapesArgs, index: u64, description: &Description) -> impl Iterator<Item = (String, Variant)> {
    let draw = move |number: u64| {
        let mut rng = Noise::new(args.seed).stream(Purpose::Spoiling, args.split() as u64, index * MOST_CANDIDATES + number);
        let variant = if number == 0 { variant::clean } else { variant::variant };
        (format!("{index:06}_{number}.png"), variant(description, args.side, &mut rng))
    };
    (0..args.per_caption).map(draw)
}

/// A caption with its images, on which nobody has said anything yet.
fn write_candidates(args: &ShapesArgs) -> anyhow::Result<()> {
    let mut records = Vec::new();
    for index in 0..args.n {
        let (_, description, caption) = scene(args, index);
        let completion = |(image_path, variant): (String, Variant)| Completion {
            image_path,
            width: Some(args.side),
            height: Some(args.side),
            extra: [("made".to_string(), variant.made.into())].into_iter().collect(),
            ..Completion::default()
        };
        let completions = candidates(args, index, &description).map(completion).collect();
        let mut record = Record::new(format!("{index:06}"), caption, completions);
        record.source = Some(format!("shapes {}", args.split().name()));
        records.push(record);
    }
    Ok(write_records(args.out.join(RECORDS), &records)?)
}

/// Draws the images of a caption that are not there yet; how many were drawn.
fn draw(args: &ShapesArgs, index: u64) -> anyhow::Result<u64> {
    if args.per_caption > 1 {
        let (_, description, _) = scene(args, index);
        let mut drawn = 0;
        for (name, variant) in candidates(args, index, &description) {
            let path = args.out.join(name);
            if !path.exists() {
                write_png::<&str, &str>(&path, &variant.image, &[])?;
                drawn += 1;
            }
        }
        return Ok(drawn);
    }
    let path = args.out.join(file_name(index));
    if path.exists() {
        return Ok(0);
    }
    write_png::<&str, &str>(&path, &render(&scene(args, index).0, args.side), &[])?;
    Ok(1)
}

fn write_metadata(args: &ShapesArgs) -> anyhow::Result<()> {
    let mut lines = String::new();
    for index in 0..args.n {
        let (_, description, caption) = scene(args, index);
        let mut row = json!({ "file_name": file_name(index), "text": caption });
        if let [composition] = heldout_of(&description)[..] {
            row["category"] = composition.category().into();
        }
        lines += &format!("{row}\n");
    }
    let path = args.out.join(METADATA);
    atomic::write(&path, lines.as_bytes()).with_context(|| format!("write {}", path.display()))
}

impl ShapesArgs {
    fn split(&self) -> Split {
        match self.split {
            SplitArg::Train => Split::Train,
            SplitArg::Heldout => Split::Heldout,
            SplitArg::Feedback => Split::Feedback,
            SplitArg::Validation => Split::Validation,
            SplitArg::Test => Split::Test,
        }
    }
}
