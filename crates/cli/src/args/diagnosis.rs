//! The arguments of `doctor` and `debug-report`.

use std::path::PathBuf;

use clap::Args as ClapArgs;

/// `doctor`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer doctor\n  visionprefer doctor --check vulkan\n\nExit code 1 where something prevents work on a device of this build; with --check, where a case is wrong."
)]
pub struct DoctorArgs {
    /// Run small cases on a device, cpu, wgpu, vulkan[:n], metal or cuda[:n], and compare them with the numbers in this program [default: the
    /// device that VP_DEVICE names, or cpu]
    #[arg(long, value_name = "DEVICE", num_args = 0..=1, default_missing_value = "")]
    pub check: Option<String>,
    /// Print one JSON object per line, instead of text
    #[arg(long)]
    pub json: bool,
}

/// `debug-report`.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  visionprefer debug-report\n  visionprefer debug-report runs/refl-2026-01-31-120000 -o report.zip\n\nNothing is sent. Tokens, keys, passwords, prompts, names of users and hosts, and folders of users are taken out. Images and weights are never packed."
)]
pub struct DebugReportArgs {
    /// The folder of a run [default: the newest one in runs/]
    #[arg(value_name = "RUN_DIR")]
    pub run: Option<PathBuf>,
    /// A new file [default: visionprefer-debug-<date>.zip]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Leave prompts in
    #[arg(long)]
    pub with_prompts: bool,
}
