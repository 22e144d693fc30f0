//! `init`: a shipped config to start from.

use std::path::Path;

use anyhow::Context;
use vp_core::atomic;

use crate::args::InitArgs;
use crate::failure::Failure;
use crate::presets;
use crate::terminal::print;

/// The top-level entry point for `init`.
pub fn run(args: InitArgs) -> Result<(), Failure> {
    presets::check_algo(&args.algo).with_context(|| format!("init {}", args.algo))?;
    let preset = match &args.preset {
        Some(name) => presets::find(&args.algo, name).context("--preset")?,
        None => presets::published(&args.algo),
    };
    match &args.output {
        None => print(preset.text)?,
        Some(path) => {
            write_new(path, preset.text)?;
            print(&format!("wrote {0}; edit it, then: visionprefer train --config {0}\n", path.display()))?;
        }
    }
    Ok(())
}

/// Writes a file that must not exist yet. It appears whole or not at all, so that the command can be given again.
fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    if path.is_file() || path.is_dir() {
        return Err(anyhow::anyhow!("{} exists; an existing file is not overwritten", path.display()).into());
    }
    atomic::write(path, text.as_bytes()).with_context(|| format!("write {}", path.display())).map_err(Failure::run)
}
