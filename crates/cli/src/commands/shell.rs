//! `completions` and `man`: what a shell and `man` read, from the table of arguments that the program itself goes by.

use std::fs;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use vp_core::atomic;

use crate::args::{Args, CompletionsArgs, ManArgs};
use crate::failure::Failure;
use crate::terminal::print;

/// The top-level entry point for `completions`.
pub fn completions(args: CompletionsArgs) -> Result<(), Failure> {
    let (mut program, mut script) = (program(), Vec::new());
    let name = program.get_name().to_owned();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    Ok(print(&String::from_utf8(script).context("the completions are not text")?)?)
}

/// The top-level entry point for `man`.
pub fn man(args: ManArgs) -> Result<(), Failure> {
    let mut program = program();
    program.build();
    let Some(folder) = args.folder else { return Ok(print(&page(&program)?.1)?) };
    let mut pages = Vec::new();
    pages_of(&program, &mut pages)?;
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    for (name, text) in &pages {
        let path = folder.join(name);
        atomic::write(&path, text.as_bytes()).with_context(|| format!("write {}", path.display())).map_err(Failure::run)?;
    }
    Ok(print(&format!("wrote {} pages to {}\n", pages.len(), folder.display()))?)
}

/// The program without its hidden commands, which the generators would offer, and without `help`, under which they would repeat every other.
fn program() -> Command {
    let program = Args::command();
    let shown: Vec<Command> = program.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let about = program.get_about().cloned().unwrap_or_default();
    Command::new(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .about(about)
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommands(shown)
}

/// The pages of a command and of those below it.
fn pages_of(command: &Command, pages: &mut Vec<(String, String)>) -> anyhow::Result<()> {
    pages.push(page(command)?);
    command.get_subcommands().try_for_each(|command| pages_of(command, pages))
}

/// The name and the text of a command's page.
fn page(command: &Command) -> anyhow::Result<(String, String)> {
    let source = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
    let (man, mut text) = (Man::new(command.clone()).source(source).manual("VisionPrefer"), Vec::new());
    man.render(&mut text).context("render a page")?;
    // What follows the help are examples and notes; clap_mangen's heading for them says nothing.
    let text = String::from_utf8(text).context("a page is not text")?.replace("\n.SH EXTRA\n", "\n.SH NOTES\n");
    Ok((man.get_filename(), text))
}
