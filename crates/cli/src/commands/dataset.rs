//! `dataset`: images to train on, made here.

use std::fs;

use anyhow::{Context, bail};
use serde_json::json;
use vp_core::atomic;
use vp_core::noise::{Noise, Purpose};
use vp_data::write_png;
use vp_shapes::split::heldout_of;
use vp_shapes::{Description, Scene, Split, render};
use vp_trainers::journal::say;

use crate::args::{DatasetArgs, DatasetKind, ShapesArgs, SplitArg};
use crate::failure::Failure;

/// What the folder was made from; a folder of another is not added to.
const ORIGIN: &str = "dataset.json";
/// Written last, when every image of the part is there.
const METADATA: &str = "metadata.jsonl";

/// The top-level entry point for `dataset`.
pub fn run(args: DatasetArgs) -> Result<(), Failure> {
    let DatasetKind::Shapes(args) = args.kind;
    let ShapesArgs { n, side, shard, .. } = args;
    if n == 0 {
        return Err(anyhow::anyhow!("--n is 0; expected at least 1").into());
    }
    if !(16..=1024).contains(&side) {
        return Err(anyhow::anyhow!("--side is {side}; expected 16 to 1024 pixels").into());
    }
    begin(&args)?;
    let part = (0..n).filter(|index| index % shard.of == shard.index);
    let drawn = part.map(|index| draw(&args, index)).sum::<anyhow::Result<u64>>().map_err(Failure::run)?;
    write_metadata(&args).map_err(Failure::run)?;
    let of = if shard.of > 1 { format!(" (part {} of {})", shard.index + 1, shard.of) } else { String::new() };
    say(format_args!("{} images of {side}x{side} pixels in {}{of}, {drawn} of them new", n, args.out.display()));
    Ok(())
}

/// Makes the folder, or recognises it.
fn begin(args: &ShapesArgs) -> anyhow::Result<()> {
    let origin = json!({ "world": "shapes", "n": args.n, "seed": args.seed, "split": args.split().name(), "side": args.side });
    let text = format!("{origin}\n");
    let (folder, path) = (args.out.display(), args.out.join(ORIGIN));
    match fs::read_to_string(&path) {
        Ok(found) if found == text => Ok(()),
        Ok(found) => bail!("{folder} holds {}, expected {}; choose another --out", found.trim(), text.trim()),
        Err(_) if args.out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) => {
            bail!("{folder} holds other files and no {ORIGIN}; choose another --out")
        }
        Err(_) => {
            fs::create_dir_all(&args.out).with_context(|| format!("create {folder}"))?;
            atomic::write(&path, text.as_bytes()).with_context(|| format!("write {}", path.display()))
        }
    }
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

/// Draws an image that is not there yet; how many were drawn.
fn draw(args: &ShapesArgs, index: u64) -> anyhow::Result<u64> {
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
        }
    }
}
