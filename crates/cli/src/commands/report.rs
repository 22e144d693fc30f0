//! `report`: the report of a run that has ended, or was killed.

use crate::args::ReportArgs;
use crate::failure::Failure;
use crate::report;
use crate::terminal::say;

/// The top-level entry point for `report`.
pub fn run(args: ReportArgs) -> Result<(), Failure> {
    let written = report::of_run(&args.run)?;
    let path = report::write(&args.run, &written).map_err(Failure::run)?;
    say(format_args!("{}", path.display()));
    Ok(())
}
