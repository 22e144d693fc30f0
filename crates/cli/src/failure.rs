//! How a command ends when it does not succeed.

use std::process::ExitCode;

use crate::terminal::{self, Unwritten};

/// Why a command failed, and whose fault it was.
#[derive(Debug)]
pub enum Failure {
    /// Usage, config or input: exit 2. Nothing was started.
    Input(anyhow::Error),
    /// The run itself: exit 1.
    Run(anyhow::Error),
    /// The run obeyed a signal, after a checkpoint: exit 128 + its number.
    Stopped(i32, anyhow::Error),
    /// A rule of the sentinel stopped the run, after a checkpoint: exit 3.
    Halted(anyhow::Error),
}

/// Anything that fails before the work begins is the fault of the input, unless it is standard output. Failures of the work itself are made
/// with [`Failure::run`].
impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        if error.is::<Unwritten>() { Self::Run(error) } else { Self::Input(error) }
    }
}

impl Failure {
    /// A failure of the work itself.
    pub fn run(error: impl Into<anyhow::Error>) -> Self {
        Self::Run(error.into())
    }

    /// Prints the failure once, on standard error.
    pub fn report(&self) -> ExitCode {
        let code = match self {
            Self::Input(_) => 2,
            Self::Run(_) => 1,
            Self::Stopped(signal, _) => 128 + *signal as u8,
            Self::Halted(_) => 3,
        };
        let label = if matches!(self, Self::Stopped(..) | Self::Halted(_)) { "stopped" } else { "error" };
        terminal::complain(label, format_args!("{}", self.message()));
        ExitCode::from(code)
    }

    /// What is wrong, and why.
    pub fn message(&self) -> String {
        let (Self::Input(error) | Self::Run(error) | Self::Stopped(_, error) | Self::Halted(error)) = self;
        message(error)
    }
}

/// The error and its causes. A cause that an error's own message repeats, as messages about files do, is printed once.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.ends_with(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = || std::io::Error::other("no room");
        let told = anyhow::Error::new(cause()).context("model.bin: no room").context("--lora");
        assert_eq!(message(&told), "--lora: model.bin: no room");
        assert_eq!(message(&anyhow::Error::new(cause()).context("write model.bin")), "write model.bin: no room");
    }
}
