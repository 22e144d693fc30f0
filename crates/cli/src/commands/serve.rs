//! `serve`: pages on which runs are watched, and evaluations and images looked through.

use crate::args::ServeArgs;
use crate::failure::Failure;
use crate::serve;

/// The top-level entry point for `serve`.
pub fn run(args: ServeArgs) -> Result<(), Failure> {
    let listener = serve::listen(args.address)?;
    Ok(serve::serve(listener, &args.folders)?)
}
