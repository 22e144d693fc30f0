//! The arguments of the commands that write what a shell and `man` read.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use clap_complete::Shell;

/// `completions`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer completions bash > ~/.local/share/bash-completion/completions/visionprefer\n  visionprefer completions fish > ~/.config/fish/completions/visionprefer.fish\n\nA new shell reads them."
)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// `man`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  visionprefer man ~/.local/share/man/man1\n  visionprefer man | man -l -")]
pub struct ManArgs {
    /// The folder for the pages, one per command [default: print the page of the program itself]
    #[arg(value_name = "DIR")]
    pub folder: Option<PathBuf>,
}
