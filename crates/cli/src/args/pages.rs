//! The arguments of the commands that serve pages.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use crate::serve;

/// `serve`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer serve\n  visionprefer serve runs evaluation out\n  visionprefer serve runs --address 0.0.0.0:8383\n\nPages are served on this machine alone unless another address is given. The address that is printed holds a token, without which nothing is shown. Ctrl-C ends it."
)]
pub struct ServeArgs {
    /// Folders: runs, evaluations, images, and folders of these
    #[arg(value_name = "DIR", default_value = "runs")]
    pub folders: Vec<PathBuf>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = serve::ADDRESS)]
    pub address: SocketAddr,
}

/// `vote`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer vote --evaluation evaluation -o votes\n  visionprefer vote --images before --images after -o votes\n  visionprefer vote --records annotations/records.jsonl --rate -o votes\n\nTo go on with votes, give the same command again. The answers are in votes.jsonl as they were given, and in records.jsonl for other commands."
)]
pub struct VoteArgs {
    /// Images of records, or of any published set that `dataset` reads
    #[arg(long, value_name = "PATH")]
    pub records: Option<PathBuf>,
    /// Images of an evaluation's models, also of one that is still drawing
    #[arg(long, value_name = "DIR", conflicts_with = "records")]
    pub evaluation: Option<PathBuf>,
    /// A folder of one model's images; those of the same name in the others are compared with them (repeatable)
    #[arg(long, value_name = "DIR", conflicts_with_all = ["records", "evaluation"])]
    pub images: Vec<PathBuf>,
    /// Rate single images on the four aspects instead of comparing two
    #[arg(long)]
    pub rate: bool,
    /// The folder for the votes, and for links to the images
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Of the orders in which things are asked; every voter has one of their own
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = serve::ADDRESS)]
    pub address: SocketAddr,
}
