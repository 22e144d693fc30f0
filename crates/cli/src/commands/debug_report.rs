//! `debug-report`: what an issue about this program needs, in one file, without what others must not read.

mod run_files;

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use vp_core::{atomic, shown};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::args::DebugReportArgs;
use crate::doctor::Surroundings;
use crate::failure::Failure;
use crate::machine::Machine;
use crate::redaction::Redactor;
use crate::terminal::print;

/// Where `train` puts its runs.
const RUNS: &str = "runs";

/// A file of the report.
struct Packed {
    name: String,
    /// What it is, in a few words.
    what: String,
    text: String,
}

/// The top-level entry point for `debug-report`.
pub fn run(args: DebugReportArgs) -> Result<(), Failure> {
    let run = match &args.run {
        Some(folder) => Some(checked(folder)?),
        None => newest(Path::new(RUNS)),
    };
    let output = args.output.clone().unwrap_or_else(default_output);
    if output.is_file() || output.is_dir() {
        return Err(anyhow::anyhow!("--output {}: it exists already, and an existing file is not overwritten", output.display()).into());
    }
    let machine = Machine::this();
    let mut redactor = Redactor::of(&machine);
    let mut packed = of_machine(&machine);
    if let Some(run) = &run {
        packed.extend(run_files::of_run(run, &mut redactor, args.with_prompts));
    }
    // All prompts are known by now.
    packed.iter_mut().for_each(|file| file.text = redactor.apply(&file.text));
    let bytes = zipped(&packed).map_err(Failure::run)?;
    atomic::write(&output, &bytes).with_context(|| format!("write {}", output.display())).map_err(Failure::run)?;
    Ok(print(&told(&packed, run.as_deref(), &output, bytes.len()))?)
}

/// A run's folder that somebody named.
fn checked(folder: &Path) -> anyhow::Result<PathBuf> {
    if folder.join("config.toml").is_file() {
        return Ok(folder.to_path_buf());
    }
    let found = if folder.is_dir() { "it has no config.toml" } else { "there is no such folder" };
    bail!("{} does not hold a run ({found}); expected a run's folder, or none for the newest one in {RUNS}/", folder.display())
}

/// The run in `folder` that was written to last.
fn newest(folder: &Path) -> Option<PathBuf> {
    let written = |run: &PathBuf| {
        let files = ["metrics.jsonl", "config.toml"].map(|name| run.join(name));
        files.iter().filter_map(|file| file.metadata().ok()?.modified().ok()).max()
    };
    let entries = folder.read_dir().ok()?.flatten().map(|entry| entry.path());
    entries.filter(|run| run.join("config.toml").is_file()).max_by_key(|run| (written(run), run.clone()))
}

fn default_output() -> PathBuf {
    format!("visionprefer-debug-{}.zip", jiff::Zoned::now().strftime("%Y-%m-%d-%H%M%S")).into()
}

/// What there is to say without a run.
fn of_machine(machine: &Machine) -> Vec<Packed> {
    let seen = Surroundings::look();
    let file = |name: &str, what: &str, text: String| Packed { name: name.into(), what: what.into(), text };
    let names: String = seen.variables().map(|name| format!("{name}\n")).collect();
    vec![
        file("doctor.txt", "what `visionprefer doctor` prints", seen.text()),
        file("doctor.json", "the same for programs", seen.json()),
        file("versions.txt", "versions of the program and the system", versions(machine)),
        file("environment.txt", "names of variables that are set and matter, without values", names),
    ]
}

fn versions(machine: &Machine) -> String {
    let manifest: toml::Table = toml::from_str(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))).unwrap_or_default();
    let burn = manifest.get("workspace").and_then(|workspace| workspace.get("dependencies")?.get("burn")?.get("version")?.as_str());
    let release = machine.text("/etc/os-release").unwrap_or_default();
    let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).map(|name| name.trim_matches('"').to_owned());
    let rows = [
        ("visionprefer", Some(env!("CARGO_PKG_VERSION").to_owned())),
        ("burn", burn.map(|version| version.trim_start_matches('=').to_owned())),
        ("target", Some(format!("{} {}", std::env::consts::OS, std::env::consts::ARCH))),
        ("system", system),
        ("kernel", machine.text("/proc/sys/kernel/osrelease")),
        ("time", Some(jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string())),
    ];
    rows.iter().filter_map(|(name, value)| Some(format!("{name}: {}\n", value.as_ref()?))).collect()
}

/// The files as they are: whoever looks into the archive with any tool sees what is in it.
fn zipped(packed: &[Packed]) -> anyhow::Result<Vec<u8>> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for Packed { name, text, .. } in packed {
        archive
            .start_file(name.as_str(), options)
            .and_then(|()| Ok(archive.write_all(text.as_bytes())?))
            .with_context(|| format!("pack {name}"))?;
    }
    Ok(archive.finish().context("pack")?.into_inner())
}

/// What was packed, where it is, and what to do with it.
fn told(packed: &[Packed], run: Option<&Path>, output: &Path, bytes: usize) -> String {
    let width = packed.iter().map(|file| file.name.len()).max().unwrap_or(0);
    let rows: String = packed.iter().map(|Packed { name, what, .. }| format!("  {name:<width$}  {what}\n")).collect();
    let of_run = match run {
        Some(run) => format!("packed, with the run in {}:\n", run.display()),
        None => format!("packed, without a run, as there is none in {RUNS}/:\n"),
    };
    let place = shown::one_line(&output.display().to_string()).into_owned();
    format!(
        "{of_run}{rows}into {place} ({} KiB). Nothing was sent.\nSecrets, names of users and hosts, and folders of users were taken out as far as \
         they can be told: look into it before you attach it to an issue at {}/issues\n",
        bytes.div_ceil(1024),
        env!("CARGO_PKG_REPOSITORY")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_that_was_written_to_last_is_the_newest_whatever_its_name() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(newest(&dir.path().join("runs")), None);
        for (name, age) in [("b", 300), ("a", 100), ("c", 200)] {
            let run = dir.path().join(name);
            std::fs::create_dir(&run).unwrap();
            std::fs::write(run.join("config.toml"), "").unwrap();
            let time = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
            std::fs::File::options().write(true).open(run.join("config.toml")).unwrap().set_modified(time).unwrap();
        }
        std::fs::create_dir(dir.path().join("d, which is not a run")).unwrap();
        assert_eq!(newest(dir.path()), Some(dir.path().join("a")));
        // A run writes its metrics after its config.
        std::fs::write(dir.path().join("b/metrics.jsonl"), "").unwrap();
        assert_eq!(newest(dir.path()), Some(dir.path().join("b")));
    }

    #[test]
    fn versions_name_the_program_and_burn() {
        let text = versions(&Machine::this());
        assert!(text.starts_with(concat!("visionprefer: ", env!("CARGO_PKG_VERSION"), "\nburn: 0.")), "{text}");
    }
}
