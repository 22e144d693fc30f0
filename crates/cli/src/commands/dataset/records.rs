//! `dataset validate`, `stats`, `convert`, `split`: preference records, ours and published ones.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use vp_core::atomic::{self, Begun, TemporaryFolder, begun};
use vp_data::{
    Dataset, OnProblem, Record, UsableRecords, open_dataset, split, stats, to_imagereward, validate_with, write_pairs, write_records,
};

use crate::args::{ConvertArgs, ConvertTo, SplitArgs, StatsArgs, ValidateArgs};
use crate::failure::Failure;
use crate::image_copies::copy_images;
use crate::progress::Progress;
use crate::terminal::{print, print_json, say, warn, warn_of_some};

/// How many of the records, and of the images, that are left out are shown.
const SHOWN: usize = 5;

/// Reads every record and decodes every image, and fails if anything is wrong.
pub fn validate_set(args: &ValidateArgs) -> Result<(), Failure> {
    let progress = Progress::uncounted("images");
    let found = validate_with(&args.path, &mut |done| progress.reach(done, ""))?;
    drop(progress);
    print(&format!("{found}\n"))?;
    match found.problems.len() {
        0 => Ok(()),
        count => Err(anyhow::anyhow!("{}: {count} problem(s)", args.path.display()).into()),
    }
}

/// Prints what a set holds.
pub fn say_stats(args: &StatsArgs) -> Result<(), Failure> {
    let dataset = open_dataset(&args.path)?;
    let mut problems = Vec::new();
    let mut records = dataset.records()?;
    let found = stats(records.by_ref().filter_map(|record| record.map_err(|problem| problems.push(problem)).ok()));
    if args.json {
        return Ok(print_json(&(serde_json::to_string(&found).context("write JSON")? + "\n"))?);
    }
    print(&format!("{}: {}\n{found}\n", args.path.display(), dataset.format()))?;
    if records.unlabelled() > 0 {
        print(&format!("{} rows without a label were passed over\n", records.unlabelled()))?;
    }
    if !problems.is_empty() {
        warn(format_args!("{} records cannot be used, the first: {}", problems.len(), problems[0]));
    }
    Ok(())
}

/// Writes a set in another format, with the images beside it.
pub fn convert(args: &ConvertArgs) -> Result<(), Failure> {
    clear(&args.output)?;
    let dataset = open_dataset(&args.path)?;
    let dataset = match &args.images {
        Some(folder) => dataset.with_images(folder),
        None => dataset,
    };
    let on_problem = if args.skip_problems { OnProblem::Skip } else { OnProblem::Refuse };
    let found = dataset.read(on_problem)?;
    warn_of_some(found.skipped.iter().map(|problem| format!("left out: {problem}")), SHOWN, "more records are left out");
    // Images that are not copied may be anywhere.
    let records = if args.without_images { found.records } else { with_images(&dataset, found.records, on_problem)? };
    fs::create_dir_all(&args.output).with_context(|| format!("create {}", args.output.display()))?;
    let begun = TemporaryFolder::beside(&args.output.join(BEGUN)).with_context(|| format!("write to {}", args.output.display()))?;
    write(&dataset, records, args, begun.path()).map_err(Failure::run)
}

/// The folder within the output in which a set is written before its parts are moved to their places, the records last. While it is there,
/// what lies beside it is of a conversion that was killed.
const BEGUN: &str = "conversion";
/// The images' folder.
const IMAGES: &str = "images";
/// The files of the three formats.
const WRITTEN: [&str; 3] = ["records.jsonl", "imagereward.json", "pairs.jsonl"];

/// Removes what a killed conversion left in the output.
///
/// # Errors
/// When there is anything else in it.
fn clear(output: &Path) -> anyhow::Result<()> {
    let names = || -> Vec<String> {
        let entries = fs::read_dir(output).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| !name.starts_with('.')).collect()
    };
    // The mark goes last, so that this can be interrupted too.
    if begun(output, BEGUN) == Begun::LeftOver {
        let names = names();
        if names.iter().all(|name| name == IMAGES || WRITTEN.contains(&name.as_str())) {
            for path in names.iter().map(|name| output.join(name)) {
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.with_context(|| format!("remove {}", path.display()))?;
            }
        }
        atomic::sweep(output);
    }
    if output.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty; choose another --output", output.display());
    }
    Ok(())
}

/// The records without the images that cannot be decoded.
fn with_images(dataset: &Dataset, records: Vec<Record>, on_problem: OnProblem) -> anyhow::Result<Vec<Record>> {
    let way_out = "restore them, or leave them out with --skip-problems";
    let progress = Progress::uncounted("images looked at");
    let usable = dataset.usable_with(records, on_problem, &mut |done| progress.reach(done, ""));
    drop(progress);
    let UsableRecords { records, skipped } = usable.with_context(|| format!("{}: {way_out}", dataset.path().display()))?;
    warn_of_some(skipped.iter().map(|problem| format!("left out: {problem}")), SHOWN, "more images are left out");
    Ok(records)
}

/// Writes into the folder `begun`, then moves it all into the output.
fn write(dataset: &Dataset, mut records: Vec<Record>, args: &ConvertArgs, begun: &Path) -> anyhow::Result<()> {
    if !args.without_images {
        copy_images(dataset, &mut records, begun)?;
    }
    let aggregation = args.aggregation();
    let (name, count) = match args.to {
        ConvertTo::Records => {
            write_records(begun.join("records.jsonl"), &records)?;
            ("records.jsonl", format!("{} records", records.len()))
        }
        ConvertTo::Imagereward => {
            let entries = records.iter().map(|record| to_imagereward(record, &aggregation)).collect::<Result<Vec<_>, _>>()?;
            let path = begun.join("imagereward.json");
            let text = serde_json::to_string_pretty(&entries).context("write JSON")? + "\n";
            atomic::write(&path, text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
            ("imagereward.json", format!("{} entries", entries.len()))
        }
        ConvertTo::Pairs => {
            let pairs = write_pairs(begun.join("pairs.jsonl"), &records, &aggregation, begun)?;
            ("pairs.jsonl", format!("{pairs} pairs"))
        }
    };
    for part in [IMAGES, name].into_iter().filter(|part| begun.join(part).exists()) {
        let path = args.output.join(part);
        fs::rename(begun.join(part), &path).with_context(|| format!("write {}", path.display()))?;
    }
    say(format_args!("{}: {count}", args.output.join(name).display()));
    Ok(())
}

/// Writes two files beside the records; no prompt has a near-duplicate in the other file.
pub fn split_records(args: &SplitArgs) -> Result<(), Failure> {
    let records = vp_data::read_records(&args.path)?;
    let parts = split(&records, args.fraction, args.seed)?;
    for (name, indices) in [("train", parts.train), ("heldout", parts.held_out)] {
        let path = beside(&args.path, name);
        let part: Vec<Record> = indices.iter().map(|index| records[*index].clone()).collect();
        write_records(&path, &part).map_err(Failure::run)?;
        say(format_args!("{}: {} records", path.display(), part.len()));
    }
    Ok(())
}

/// `records.jsonl` to `records.train.jsonl`: in the same folder, so that the images' paths still hold.
fn beside(path: &Path, part: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}.{part}.jsonl"))
}
