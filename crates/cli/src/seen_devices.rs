//! On which devices the program has been seen to compute, and how exactly: rows that `scripts/check-gpu` prints.

/// What was seen of a device.
pub struct Seen {
    /// As `--device` takes it.
    pub device: &'static str,
    /// The hardware and its driver.
    pub driver: &'static str,
    /// The number formats that were checked.
    pub formats: &'static str,
    /// `verified`: all golden cases, laws and commands. `smoke-tested`: it ran, not everything was checked. `compiles`: no more than that.
    pub state: &'static str,
    /// The largest deviation of the golden cases in f32, relative to the largest value of a tensor.
    pub largest_deviation: &'static str,
    /// When.
    pub date: &'static str,
}

/// The rows, best known first.
pub const SEEN: [Seen; 1] = [Seen {
    device: "cpu",
    driver: "Linux, x86-64 with AVX-512",
    formats: "f32, bf16, f16",
    state: "verified",
    largest_deviation: "",
    date: "2026-11-28",
}];
