//! The device that tests run on: what `VP_DEVICE` names, read by the program's own `--device`; without it the CPU.

use burn::tensor::Device;

#[allow(dead_code, reason = "tests parse a name; the program also lists devices")]
#[path = "../../crates/cli/src/device.rs"]
mod named;

/// The device.
///
/// # Panics
/// When this machine has no device of that name.
pub fn device() -> Device {
    let name = std::env::var("VP_DEVICE").unwrap_or_else(|_| "cpu".into());
    named::parse(&name).unwrap_or_else(|error| panic!("VP_DEVICE: {error:#}"))
}
