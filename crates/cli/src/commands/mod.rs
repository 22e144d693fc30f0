//! One command per file: load, validate, build, call, report.

mod annotate;
mod dataset;
mod debug_report;
mod docs;
mod doctor;
mod evaluate;
mod export;
mod init;
mod list;
mod plan;
mod report;
mod sample;
mod score;
mod serve;
mod shell;
mod train;
mod vote;

pub use self::evaluate::image_in as image_of_evaluation;
use crate::args::{Args, Command};
use crate::failure::Failure;
use crate::{progress, ranks};

/// Runs what was typed.
pub fn run(args: Args) -> Result<(), Failure> {
    if args.command.is_quiet() {
        progress::be_quiet();
    }
    match args.command {
        Command::Train(args) => ranks::together(|| train::run(args)),
        Command::TrainReward(args) => ranks::together(|| train::run(args.into())),
        Command::Plan(args) => plan::run(args),
        Command::Annotate(args) => ranks::together(|| annotate::run(args)),
        Command::Sample(args) => ranks::together(|| sample::run(args)),
        Command::Evaluate(args) => ranks::together(|| evaluate::run(args)),
        Command::Report(args) => report::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Vote(args) => vote::run(args),
        Command::Score(args) => ranks::together(|| score::run(args)),
        Command::Dataset(args) => ranks::together(|| dataset::run(args)),
        Command::Export(args) => export::run(args),
        Command::List(args) => list::run(args),
        Command::Init(args) => init::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => shell::completions(args),
        Command::Man(args) => shell::man(args),
        Command::DebugReport(args) => debug_report::run(args),
        Command::Docs(args) => docs::run(args),
    }
}
