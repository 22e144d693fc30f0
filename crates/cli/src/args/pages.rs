//! The arguments of the commands that serve pages.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use crate::serve;

/// `serve`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer serve\n  visionprefer serve runs evaluation out\n  visionprefer serve runs --address 0.0.0.0:8383\n\nPages are served on this machine alone unless another address is given; that one then needs the token that is printed with it. Ctrl-C ends it."
)]
pub struct ServeArgs {
    /// Folders: runs, evaluations, images, and folders of these
    #[arg(value_name = "DIR", default_value = "runs")]
    pub folders: Vec<PathBuf>,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = serve::ADDRESS)]
    pub address: SocketAddr,
}
