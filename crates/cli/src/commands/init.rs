//! `init`: a shipped config to start from.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Context;

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

/// Writes a file that must not exist yet. A file that cannot be finished is removed.
fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = File::create_new(path).with_context(|| format!("create {} (an existing file is not overwritten)", path.display()))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(|| format!("write {}", path.display())).inspect_err(|_| {
        // The first error is the one to tell.
        let _ = fs::remove_file(path);
    })
}
