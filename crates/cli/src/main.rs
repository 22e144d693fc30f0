//! Floor 6: the `visionprefer` binary. Arguments in, one command run, one exit code out.

mod allocator;
mod args;
mod closed_output;
mod commands;
mod device;
mod device_check;
mod doctor;
#[cfg(all(test, unix))]
mod documented;
mod embedded;
mod failure;
mod fault;
mod hub;
mod image_copies;
mod image_generator;
mod knobs;
mod listing;
mod machine;
mod memory;
mod named_rewards;
mod out_of_memory;
mod output_folder;
mod presets;
mod progress;
mod ranks;
mod redaction;
mod report;
mod run_failure;
mod score_table;
mod seen_devices;
mod serve;
mod shapes_dataset;
mod shard;
mod signals;
mod terminal;
mod vote;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    fault::told(|| {
        vp_core::waits::tell_with(|line| terminal::warn(format_args!("{line}")));
        let ended = match args::Args::try_parse() {
            Ok(args) => commands::run(args),
            Err(told) if told.use_stderr() => told.exit(),
            // --help and --version.
            Err(told) => {
                terminal::remember(closed_output::check().and_then(|()| told.print()));
                Ok(())
            }
        };
        match ended.and_then(|()| Ok(terminal::finish()?)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => failure.report(),
        }
    })
}
