//! `doctor`: what this program is and sees, and whether a device computes rightly.

use std::path::PathBuf;

use anyhow::anyhow;
use serde_json::json;

use crate::args::DoctorArgs;
use crate::device;
use crate::device_check::{CASES, Outcome, Verdict, WAY_OUT};
use crate::failure::Failure;
use crate::terminal::say;

/// The top-level entry point for `doctor`.
pub fn run(args: DoctorArgs) -> Result<(), Failure> {
    match &args.check {
        Some(name) => check(name, args.json),
        None => {
            describe();
            Ok(())
        }
    }
}

fn describe() {
    let compiled: Vec<_> = device::describe().filter(|backend| backend.compiled).map(|backend| backend.name).collect();
    say(format_args!(
        "visionprefer {}, {}",
        env!("CARGO_PKG_VERSION"),
        if cfg!(feature = "embedded") { "with its small model" } else { "without its small model" }
    ));
    say(format_args!("backends     {}", compiled.join(", ")));
    for backend in device::describe().filter(|backend| backend.compiled) {
        let name = backend.name.split(['[', '|']).next().unwrap_or_default().to_string();
        let found = device::parse(&name).map_or_else(|error| format!("{error:#}"), |_| "found".into());
        say(format_args!("{name:<12} {found}"));
    }
    say(format_args!("processors   {}", std::thread::available_parallelism().map_or(1, usize::from)));
    say(format_args!("tuned kernels are kept in {}", kernel_cache().display()));
    say(format_args!("`visionprefer doctor --check NAME` computes known cases on a device"));
}

/// Where Burn's GPU backends keep what they tuned and compiled.
fn kernel_cache() -> PathBuf {
    let home = || std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from).join("cubecl")
}

fn check(name: &str, as_json: bool) -> Result<(), Failure> {
    let device = device::parse(name)?;
    let mut faults = Vec::new();
    let mut rows = Vec::new();
    for case in CASES {
        let outcome = case.run(&device);
        if as_json {
            rows.push(row(&outcome));
        } else {
            say(format_args!("{outcome}"));
        }
        faults.extend(outcome.is_fault().then_some(outcome));
    }
    if as_json {
        say(format_args!("{}", json!({ "device": name, "right": faults.is_empty(), "cases": rows })));
    }
    match faults.first() {
        None => {
            if !as_json {
                say(format_args!("{name} computes rightly: {} cases", CASES.len()));
            }
            Ok(())
        }
        Some(first) => Err(Failure::run(anyhow!(
            "{name} computes {} of {} cases wrongly, first \"{}\"; {WAY_OUT}",
            faults.len(),
            CASES.len(),
            first.case
        ))),
    }
}

fn row(outcome: &Outcome) -> serde_json::Value {
    let (verdict, deviation, reason) = match &outcome.verdict {
        Verdict::Right { deviation } => ("right", Some(*deviation), None),
        Verdict::Wrong { deviation, tensor } => ("wrong", Some(*deviation), Some(tensor.clone())),
        Verdict::Failed { reason } => ("failed", None, Some(reason.clone())),
        Verdict::Skipped { reason } => ("skipped", None, Some((*reason).to_string())),
    };
    json!({ "case": outcome.case, "verdict": verdict, "deviation": deviation, "tolerance": outcome.tolerance, "seconds": outcome.seconds, "reason": reason })
}
