//! `vote`: a page on which people compare or rate images.

use anyhow::bail;

use crate::args::VoteArgs;
use crate::failure::Failure;
use crate::serve;
use crate::vote::{Ballot, Mode, Source};

/// The top-level entry point for `vote`.
pub fn run(args: VoteArgs) -> Result<(), Failure> {
    let source = source(&args)?;
    let mode = if args.rate { Mode::Rate } else { Mode::Compare };
    let listener = serve::listen(args.address)?;
    let ballot = Ballot::open(source, &args.output, mode, args.seed)?;
    Ok(serve::serve_votes(listener, ballot)?)
}

fn source(args: &VoteArgs) -> anyhow::Result<Source> {
    match (&args.records, &args.evaluation, &args.images[..]) {
        (Some(path), None, []) => Ok(Source::Records(path.clone())),
        (None, Some(folder), []) => Ok(Source::Evaluation(folder.clone())),
        (None, None, [_, _, ..]) => Ok(Source::Folders(args.images.clone())),
        (None, None, [_]) => bail!("--images names one folder; name it twice or more, once for each model"),
        _ => bail!("expected --records FILE, --evaluation DIR, or --images DIR twice or more"),
    }
}
