//! The `visionprefer` binary: arguments in, one command run, one exit code out.

mod args;
mod commands;
mod device;
mod failure;
mod listing;
mod presets;
mod score_table;
mod signals;
mod stdout;

use clap::Parser;
use std::process::ExitCode;

/// Tensor code allocates a buffer an operation; the system's allocator gives large ones back and faults them in again each time.
/// See docs/decisions.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match commands::run(args::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
