//! `docs`, hidden: the pages of `docs/reference/`, from the tables that the program itself goes by.

use std::fs;

use anyhow::Context;
use clap::{Command, CommandFactory};
use vp_trainers::config::AlgorithmConfig;

use crate::args::{Args, DocsArgs};
use crate::failure::Failure;
use crate::knobs::{self, Knob};
use crate::listing::{self, code};
use crate::presets;

/// Columns that help is wrapped at, whatever the terminal.
const WIDTH: usize = 120;

/// The top-level entry point for `docs`.
pub fn run(args: DocsArgs) -> Result<(), Failure> {
    let folder = &args.folder;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let pages = [
        ("commands.md", commands()),
        ("rewards.md", rewards()),
        ("annotators.md", annotators()),
        ("schedulers.md", schedulers()),
        ("algorithms.md", algorithms()),
        ("devices.md", devices()),
    ];
    for (name, text) in pages {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn page(title: &str, body: &str) -> String {
    format!("# {title}\n\n<!-- Generated: VP_BLESS=1 cargo test --release --test reference -->\n\n{}\n", body.trim_end())
}

fn commands() -> String {
    let mut program = Args::command();
    program.build();
    let shown: Vec<Command> = program.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let mut body = help(program);
    for command in shown.into_iter().filter(|command| command.get_name() != "help") {
        body += &format!("\n## {}\n\n", command.get_name());
        body += &help(command);
    }
    page("Commands", &body)
}

fn help(command: Command) -> String {
    let help = command.term_width(WIDTH).render_help().to_string();
    let lines: Vec<&str> = help.trim().lines().map(str::trim_end).collect();
    format!("```text\n{}\n```\n", lines.join("\n"))
}

fn annotators() -> String {
    let intro = "A config of `annotate` names its annotator by a section, `[annotator.<name>]`; `annotate --annotator <name>` takes it with its \
                 defaults and what\n`--set` says. [How they are used](../guide/annotate.md).";
    page("Annotators", &format!("{intro}\n\n{}", listing::annotators().to_markdown()))
}

fn rewards() -> String {
    let intro = "A config names its reward by a section, `[reward.<name>]`, and those that are only looked at by `[[watch]]` and \
                 `[watch.<name>]`.\n`score --reward` takes the names of those that need no weights, and the files or folders that hold the weights of the others.\nA `weighted_sum` \
                 is a list of `[[reward.weighted_sum.terms]]`, each with its `weight`, the `mean` and `std` that bring it to scale (0 \
                 and 1),\nand a `[reward.weighted_sum.terms.reward.<name>]`; every term is logged as `reward/<name>`.";
    page("Rewards", &format!("{intro}\n\n{}", listing::rewards().to_markdown()))
}

fn schedulers() -> String {
    let intro = "`sample --scheduler` and `scheduler.name` in a config take any of the names, in any case, with spaces, hyphens and \
                 underscores alike: ours,\nA1111's, or the diffusers class, which means the first where several share it. Training needs \
                 a single-step scheduler; the transitions of a\nstochastic one have a density (DDIM's with `eta` above 0).";
    page("Schedulers", &format!("{intro}\n\n{}", listing::schedulers().to_markdown()))
}

fn algorithms() -> String {
    let mut body = String::new();
    for entry in AlgorithmConfig::ENTRIES {
        let (name, default) = (entry.name, presets::default_of(entry.name).name);
        body += &format!("## {name}\n\n{}\n\n", entry.summary);
        body += &format!(
            "`visionprefer train --algo {name}` runs the preset `{default}`. `visionprefer init {name} --preset NAME` writes a preset as a config to start from:\n\n"
        );
        for preset in presets::of(name) {
            // By the repository's address, which leads there from the site too.
            body += &format!("- `{}`: [{1}]({2}/blob/main/{1})\n", preset.name, preset.path, env!("CARGO_PKG_REPOSITORY"));
        }
        body += &own_knobs(presets::published(name));
    }
    body += &format!("\n## Sections that algorithms share\n\n{}", shared_sections());
    body += &format!("\n## Learning-rate schedulers\n\n`[lr_scheduler.<name>]`\n\n{}", listing::lr_schedulers().to_markdown());
    body += &format!("\n## Regularizers\n\n`[regularizer.<name>]`\n\n{}", listing::regularizers().to_markdown());
    page("Algorithms", &body)
}

/// A table for each `[algo.…]` section of a config.
fn own_knobs(preset: &presets::Config) -> String {
    let mut text = String::new();
    for section in knobs::sections(preset.text).into_iter().filter(|section| section.name.starts_with("algo.")) {
        text += &format!("\nThe keys of `[{}]`, with the values of `{}`.", section.name, preset.name);
        if !section.comment.is_empty() {
            text += &format!(" {}", words(&section.comment));
        }
        text += "\n\n| key | value | meaning |\n| --- | --- | --- |\n";
        for Knob { key, value, meaning } in section.knobs {
            text += &format!("| `{key}` | {} | {} |\n", value.map_or_else(|| "absent".into(), code), words(meaning));
        }
    }
    text + "\n"
}

/// A key outside `[algo.…]`, and what each published recipe that has it says of it.
struct SharedKnob {
    section: &'static str,
    key: &'static str,
    uses: Vec<(&'static str, Knob)>,
}

/// The keys of the published recipes outside `[algo.…]`, each once, in the order of the recipes.
fn shared_knobs() -> Vec<SharedKnob> {
    let mut shared: Vec<SharedKnob> = Vec::new();
    for entry in AlgorithmConfig::ENTRIES {
        for section in knobs::sections(presets::published(entry.name).text).into_iter().filter(|section| !section.name.starts_with("algo."))
        {
            for knob in section.knobs {
                let place = shared.iter().position(|known| known.section == section.name && known.key == knob.key).unwrap_or_else(|| {
                    // Behind the last key of its section.
                    let place = shared.iter().rposition(|known| known.section == section.name).map_or(shared.len(), |last| last + 1);
                    shared.insert(place, SharedKnob { section: section.name, key: knob.key, uses: Vec::new() });
                    place
                });
                shared[place].uses.push((entry.name, knob));
            }
        }
    }
    shared
}

/// A table of [`shared_knobs`].
fn shared_sections() -> String {
    let mut text = "What the published recipes (`sd15`, and `imagereward` for `reward_model`) set, and what it means.\n\n\
                    | key | values | recipes | meaning |\n| --- | --- | --- | --- |\n"
        .to_owned();
    for SharedKnob { section, key, uses } in shared_knobs() {
        let values = once(uses.iter().map(|(_, knob)| knob.value.map_or_else(|| "absent".into(), code)));
        let mut meanings: Vec<&str> = uses.iter().map(|(_, knob)| knob.general_meaning()).filter(|meaning| !meaning.is_empty()).collect();
        meanings.sort_by_key(|meaning| meaning.len());
        // What most recipes say; else the longest.
        let times = |meaning: &&str| meanings.iter().filter(|other| *other == meaning).count();
        let meaning = meanings.iter().copied().max_by_key(times).unwrap_or_default();
        let algorithms: Vec<&str> = uses.iter().map(|(algorithm, _)| *algorithm).collect();
        text += &format!("| `{section}.{key}` | {} | {} | {} |\n", values.join(", "), recipes(&algorithms), words(meaning));
    }
    text
}

/// Each text once, in the order of their first occurrence.
fn once(texts: impl Iterator<Item = String>) -> Vec<String> {
    texts.fold(Vec::new(), |mut seen, text| {
        if !seen.contains(&text) {
            seen.push(text);
        }
        seen
    })
}

/// The algorithms, or those that are missing where they are fewer.
fn recipes(algorithms: &[&str]) -> String {
    let missing: Vec<&str> = AlgorithmConfig::ENTRIES.iter().map(|entry| entry.name).filter(|name| !algorithms.contains(name)).collect();
    match missing.len() {
        0 => "all".into(),
        missing_count if missing_count < algorithms.len() => format!("all but {}", missing.join(", ")),
        _ => algorithms.join(", "),
    }
}

/// A comment of a config as Markdown: sections set as code, what would be markup escaped.
fn words(comment: &str) -> String {
    let word = |word: &str| match word.starts_with('[') && word.ends_with(']') {
        true => code(word),
        false => word.replace('\\', "\\\\").replace('*', "\\*").replace('<', "\\<").replace('|', "\\|"),
    };
    comment.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

fn devices() -> String {
    let intro = "What `--device` takes. `n` counts from 0 the devices that the backend finds; `visionprefer list devices` says which \
                 backends a build has.";
    let seen = "*verified*: every golden case within its tolerance (1e-4 for values, 1e-3 for gradients \
                and long chains), the laws of the operations, one update of every algorithm, resuming, and the commands. *smoke-tested*: it ran, \
                and not everything was checked. *compiles*: no more than that. The largest deviation is that of the golden cases in f32, relative \
                to the largest value of the tensor. `scripts/check-gpu DEVICE` prints a row. [How to use a GPU](../guide/gpu.md).";
    let gaps = "*not tried*: nobody has reported anything, good or bad. The number formats are those that were checked.";
    let (devices, matrix, rows) =
        (listing::devices_of_any_build().to_markdown(), listing::support_matrix(), listing::seen_devices().to_markdown());
    page(
        "Devices",
        &format!("{intro}\n\n{devices}\n## Where it has been seen to work\n\n{matrix}\n{seen} {gaps}\n\n## What was seen\n\n{rows}"),
    )
}
