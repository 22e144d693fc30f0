//! `docs`, hidden: the pages of `docs/reference/`, from the tables that the program itself goes by.

use std::fs;

use anyhow::Context;
use clap::{Command, CommandFactory};
use vp_trainers::config::AlgorithmConfig;

use crate::args::{Args, DocsArgs};
use crate::failure::Failure;
use crate::{listing, presets};

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
                 `[watch.<name>]`.\n`score --reward` takes the names of those that need no weights, the folder or file of a `vp_score` and the folder of a `clip_score`.\nA `weighted_sum` \
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
        let name = entry.name;
        body += &format!("## {name}\n\n{}\n\n", entry.summary);
        body += &format!(
            "`visionprefer train --algo {name}` runs the preset `tiny`; `visionprefer init {name} --preset NAME` writes one to start from:\n\n"
        );
        for preset in presets::of(name) {
            body += &format!("- `{}`: [{1}](../../{1})\n", preset.name, preset.path);
        }
        if let Some(preset) = presets::of(name).into_iter().find(|preset| preset.name == "sd15") {
            body += &format!("\nEvery knob, as in `{}`:\n\n```toml\n{}\n```\n\n", preset.name, preset.text.trim_end());
        }
    }
    body += &format!("## Learning-rate schedulers\n\n`[lr_scheduler.<name>]`\n\n{}\n", listing::lr_schedulers().to_markdown());
    body += &format!("## Regularizers\n\n`[regularizer.<name>]`\n\n{}", listing::regularizers().to_markdown());
    page("Algorithms", &body)
}

fn devices() -> String {
    let intro = "What `--device` takes. `n` counts from 0 the devices that the backend finds; `visionprefer list devices` says which \
                 backends a build has.";
    page("Devices", &format!("{intro}\n\n{}", listing::devices_of_any_build().to_markdown()))
}
