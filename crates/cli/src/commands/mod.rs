//! One command a file: load, validate, build, call, report.

mod annotate;
pub mod dataset;
mod docs;
mod evaluate;
pub mod export;
mod init;
mod list;
mod report;
mod sample;
mod score;
mod train;

use vp_core::profile;
use vp_trainers::run::journal::say;

use crate::args::{Args, Command};
use crate::failure::Failure;

/// Runs what was typed.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Train(args) => train::run(args),
        Command::TrainReward(args) => train::run(args.into()),
        Command::Annotate(args) => annotate::run(args),
        Command::Sample(args) => sample::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Report(args) => report::run(args),
        Command::Score(args) => score::run(args),
        Command::Dataset(args) => dataset::run(args),
        Command::Export(args) => export::run(args),
        Command::List(args) => list::run(args),
        Command::Init(args) => init::run(args),
        Command::Docs(args) => docs::run(args),
    }
}

/// With `--profile`, where the time went.
fn say_where_time_went() {
    if let Some(breakdown) = profile::stop() {
        say(format_args!("{breakdown}"));
    }
}
