//! Standard output, for commands whose output is the point.

use std::io::{ErrorKind, Write};

use anyhow::Context;

/// Prints `text` as it is. A reader that went away (`| head`) is no error; a full disk is.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("write to standard output"),
        _ => Ok(()),
    }
}
