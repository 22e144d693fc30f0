//! Every command line in the README and in the guides is one that the program takes, with a config that it accepts.
//!
//! The blocks of shell are run by a shell in which `visionprefer` and `cargo` only write down their arguments, so that variables, loops and
//! functions say what they would say; then each command line goes through the program's own parser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use clap::Parser;
use regex::Regex;
use vp_core::config;
use vp_trainers::config::TrainConfig;

use crate::args::{Args, Command, TrainArgs};
use crate::presets;

/// Writes down what is called. Nothing else is found, so nothing else runs. Words end with ASCII's unit separator, command lines with its record
/// separator.
const SHELL: &str = "log() { printf '%s\\037' \"$@\" >> \"$LOG\"; printf '\\036' >> \"$LOG\"; }
visionprefer() { log visionprefer \"$@\"; }
cargo() { log cargo \"$@\"; }
PATH=/nowhere
";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README and the guides.
fn pages() -> Vec<PathBuf> {
    let folders = ["docs/guide", "docs/concepts"].map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let mut pages: Vec<PathBuf> = folders.into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    pages.extend(["README.md", "CONTRIBUTING.md", "checkpoints/shapes/README.md"].map(|page| root().join(page)));
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages
}

fn is_command(line: &str) -> bool {
    ["visionprefer", "cargo"].contains(&line.split_whitespace().next().unwrap_or_default())
}

/// Blocks that are fenced as shell; and those with a line that is a command, if they are indented or fenced as nothing in particular.
fn shell_blocks(page: &str) -> Vec<String> {
    let (mut blocks, mut block, mut fence) = (Vec::new(), String::new(), None);
    for line in page.lines().chain([""]) {
        let mark = line.trim_start().strip_prefix("```");
        if mark.is_none() && (fence.is_some() || line.starts_with("    ")) {
            block += &format!("{}\n", line.trim_start().trim_start_matches("$ "));
            continue;
        }
        let is_shell = match fence {
            Some("sh" | "bash" | "shell") => true,
            Some("" | "console") | None => block.lines().any(is_command),
            Some(_) => false,
        };
        let ended = std::mem::take(&mut block);
        if is_shell {
            blocks.push(ended);
        }
        if mark.is_some() {
            fence = if fence.is_some() { None } else { mark };
        }
    }
    blocks
}

/// The command lines that a block comes to.
fn commands(block: &str) -> Vec<Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let script = format!("{SHELL}{block}");
    let output = Process::new("/bin/sh").args(["-c", &script]).current_dir(folder.path()).env("LOG", &log).output().expect("sh runs");
    let log = fs::read_to_string(&log).unwrap_or_default();
    let commands: Vec<Vec<String>> =
        log.split_terminator('\u{1e}').map(|command| command.split_terminator('\u{1f}').map(String::from).collect()).collect();
    let written = block.lines().filter(|line| is_command(line)).count();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(commands.len() >= written, "a shell ran {} of {written} commands of this block:\n{block}\n{said}", commands.len());
    commands
}

/// What is wrong with a command line.
fn refused(words: &[String]) -> Option<String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let words = match words.as_slice() {
        ["cargo", "run", rest @ ..] => {
            match (rest.iter().position(|word| *word == "--example"), rest.iter().position(|word| *word == "--")) {
                (Some(at), _) => {
                    let package = rest.iter().position(|word| *word == "-p").and_then(|at| rest[at + 1].strip_prefix("vp-"));
                    let folder = package.map_or_else(String::new, |package| format!("crates/{package}/"));
                    let example = format!("{folder}examples/{}.rs", rest[at + 1]);
                    return (!root().join(&example).is_file()).then(|| format!("there is no {example}"));
                }
                (None, Some(at)) => [&["visionprefer"], &rest[at + 1..]].concat(),
                (None, None) => return None,
            }
        }
        ["cargo", ..] => return None,
        words => words.to_vec(),
    };
    match Args::try_parse_from(words) {
        Ok(Args { command: Command::Train(args) }) => refused_config(&args),
        Ok(Args { command: Command::TrainReward(args) }) => refused_config(&args.into()),
        Ok(_) => None,
        Err(error) if error.exit_code() == 0 => None,
        Err(error) => Some(error.to_string()),
    }
}

/// What is wrong with the config that `train` would run, files that the reader is to bring aside.
fn refused_config(args: &TrainArgs) -> Option<String> {
    let (text, origin) = match (&args.run.config, &args.algo) {
        (Some(path), _) => (fs::read_to_string(root().join(path)).ok()?, path.display().to_string()),
        (None, Some(algo)) => (presets::default_of(algo).text.to_string(), algo.clone()),
        (None, None) => return None,
    };
    match config::parse::<TrainConfig>(&text, &origin, &args.run.overrides) {
        Ok(_) => None,
        Err(config::ConfigError::Invalid { findings, .. }) => findings.into_iter().find(|finding| !finding.contains("there is no file")),
        Err(error) => Some(error.to_string()),
    }
}

#[test]
fn every_command_of_the_documentation_is_one_of_the_program() {
    let mut found = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let blocks = shell_blocks(&text);
        for line in text.lines().map(str::trim_start).filter(|line| line.starts_with("visionprefer ")) {
            assert!(blocks.iter().any(|block| block.contains(line)), "{}: not in a block of commands: {line}", page.display());
        }
        for command in blocks.iter().flat_map(|block| commands(block)) {
            let refused = refused(&command);
            assert!(refused.is_none(), "{}: `{}`: {}", page.display(), command.join(" "), refused.unwrap_or_default());
            found += usize::from(command[0] == "visionprefer");
        }
    }
    assert!(found >= 50, "found {found} commands only");
}

#[test]
fn every_config_and_script_that_the_documentation_names_is_there() {
    let path = Regex::new(r"\b(configs|scripts|examples)/[a-z0-9_/-]+(\.(toml|rs|py|md|sbatch))?").unwrap();
    let mut found = 0;
    for page in pages() {
        for named in path.find_iter(&fs::read_to_string(&page).unwrap()) {
            let named = named.as_str();
            assert!(root().join(named).exists(), "{}: there is no {named}", page.display());
            found += 1;
        }
    }
    assert!(found >= 20, "found {found} paths only");
}

#[test]
fn a_wrong_command_is_noticed() {
    let page = "Text.\n\n    visionprefer train --algo refl \\\n        --set run.num_train_step=$n\n\n```sh\nfor n in 1 2; do visionprefer score \
                --wrong $n; done\n```\n\n```json\nvisionprefer is not called here\n```\n";
    let commands: Vec<Vec<String>> = shell_blocks(page).iter().flat_map(|block| commands(block)).collect();
    assert_eq!(commands.len(), 3, "{commands:?}");
    let refused: Vec<String> = commands.iter().map(|command| refused(command).unwrap()).collect();
    assert!(refused[0].contains("did you mean `num_train_steps`?"), "{refused:?}");
    assert!(refused[1..].iter().all(|message| message.contains("unexpected argument '--wrong'")), "{refused:?}");
}
