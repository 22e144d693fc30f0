//! `doctor`: what this program is and sees, and whether a device computes rightly.

use std::fmt::Write;

use burn::tensor::Device;
use serde_json::json;
use vp_models::number_format::is_cpu;

use crate::args::DoctorArgs;
use crate::device;
use crate::device_check::{CASES, Case, Outcome, Verdict};
use crate::doctor::Surroundings;
use crate::failure::Failure;
use crate::terminal::{print, print_json};

/// What to do about a device that computes wrongly.
pub const ADVICE: &str = "Ways out, in this order: a newer driver; another backend (`visionprefer list devices`); the environment variable \
                          BURN_FUSION_MAX_EXPLORATIONS=0, which turns fusion off; CUBECL_AUTOTUNE_LEVEL=minimal, which tries fewer kernels; \
                          --device cpu (docs/guide/gpu.md).";

/// The top-level entry point for `doctor`.
pub fn run(args: DoctorArgs) -> Result<(), Failure> {
    match &args.check {
        None => look_around(args.json),
        Some(given) => {
            let chosen = std::env::var("VP_DEVICE").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "cpu".into());
            let name = if given.is_empty() { &chosen } else { given };
            check(CASES, &Examined { name, device: device::parse(name)?, json: args.json })
        }
    }
}

/// Prints what the program is and sees.
fn look_around(json: bool) -> Result<(), Failure> {
    let seen = Surroundings::look();
    if json {
        print_json(&seen.json())?
    } else {
        print(&seen.text())?
    }
    let obstacles: Vec<&str> = seen.obstacles().collect();
    match obstacles.len() {
        0 => Ok(()),
        1 => Err(Failure::run(anyhow::anyhow!("{}", obstacles[0]))),
        count => Err(Failure::run(anyhow::anyhow!("{}; and {} more of this weight, above", obstacles[0], count - 1))),
    }
}

/// The device that is checked, and how that is told.
struct Examined<'a> {
    /// As it was typed.
    name: &'a str,
    device: Device,
    json: bool,
}

/// Runs every case and prints a line for each as it ends.
fn check(cases: &'static [Case], examined: &Examined<'_>) -> Result<(), Failure> {
    let Examined { name, device, json } = examined;
    if !json {
        let tuning = if is_cpu(device) { "" } else { "; the first time on a GPU, kernels are tuned, which takes minutes" };
        print(&format!("{} cases on {name}, in f32{tuning}\n\n", cases.len()))?;
        print(&format!("{:<40} {:>9}  {:>9}  {:<6} {:>8}\n", "case", "deviation", "tolerance", "", "seconds"))?;
    }
    let mut outcomes = Vec::new();
    for case in cases {
        let outcome = case.run(device);
        print(&if *json { json_line(name, &outcome) } else { line(&outcome) })?;
        outcomes.push(outcome);
    }
    match faults(&outcomes) {
        Some(worst) => Err(Failure::run(anyhow::anyhow!(
            "device `{name}` computes wrongly: {worst}. {ADVICE} `train --unchecked-device` trains anyway"
        ))),
        None if *json => Ok(()),
        None => Ok(print(&format!("\n{name} computes rightly\n"))?),
    }
}

/// The first fault among the outcomes, which lies in the smallest part, and how many more there are.
pub fn faults(outcomes: &[Outcome]) -> Option<String> {
    let faults: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.is_fault()).collect();
    let first = faults.first()?;
    let mut told = match &first.verdict {
        Verdict::Failed { reason } => format!("`{}` failed ({reason})", first.case),
        Verdict::Wrong { deviation, tensor } => {
            format!("`{}` deviates by {deviation:.1e} in `{tensor}`, tolerance {:.0e}", first.case, first.tolerance)
        }
        Verdict::Right { .. } | Verdict::Skipped { .. } => unreachable!("not a fault"),
    };
    if faults.len() > 1 {
        let _ = write!(told, ", and {} more of {} cases", faults.len() - 1, outcomes.len());
    }
    Some(told)
}

fn line(outcome: &Outcome) -> String {
    let (deviation, verdict, remark) = match &outcome.verdict {
        Verdict::Right { deviation } => (format!("{deviation:.1e}"), "ok", String::new()),
        Verdict::Wrong { deviation, tensor } => (format!("{deviation:.1e}"), "WRONG", format!("  in {tensor}")),
        Verdict::Failed { reason } => (String::new(), "WRONG", format!("  {reason}")),
        Verdict::Skipped { reason } => (String::new(), "skip", format!("  {reason}")),
    };
    let Outcome { case, tolerance, seconds, .. } = outcome;
    format!("{case:<40} {deviation:>9}  {tolerance:>9.0e}  {verdict:<6} {seconds:>8.2}{remark}\n")
}

/// The deviation is null where it is not a number.
fn json_line(device: &str, outcome: &Outcome) -> String {
    let (verdict, deviation, remark) = match &outcome.verdict {
        Verdict::Right { deviation } => ("ok", Some(*deviation), None),
        Verdict::Wrong { deviation, tensor } => ("wrong", Some(*deviation), Some(tensor.as_str())),
        Verdict::Failed { reason } => ("wrong", None, Some(reason.as_str())),
        Verdict::Skipped { reason } => ("skipped", None, Some(*reason)),
    };
    let Outcome { case, tolerance, seconds, .. } = outcome;
    let line = json!({
        "kind": "case", "case": case, "device": device, "dtype": "f32", "verdict": verdict, "deviation": deviation,
        "tolerance": tolerance, "seconds": seconds, "remark": remark,
    });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device_check::tests::faulty;

    #[test]
    fn a_device_that_computes_wrongly_ends_with_exit_code_1_and_the_way_out() {
        let failure = check(faulty::CASES, &Examined { name: "cuda:1", device: Device::flex(), json: false }).unwrap_err();
        let Failure::Run(error) = &failure else { panic!("{failure:?}") };
        let told = error.to_string();
        assert!(told.starts_with("device `cuda:1` computes wrongly: `matmul 64x96 by 96x80` deviates by "), "{told}");
        assert!(told.contains(", tolerance 1e-4, and 3 more of 5 cases. "), "{told}");
        for way_out in ["driver", "backend", "BURN_FUSION_MAX_EXPLORATIONS=0", "CUBECL_AUTOTUNE_LEVEL=minimal", "train --unchecked-device"]
        {
            assert!(told.contains(way_out), "{way_out}: {told}");
        }
        assert_eq!(format!("{:?}", failure.report()), format!("{:?}", std::process::ExitCode::from(1)));
    }

    #[test]
    fn lines_and_json_tell_the_same() {
        let wrong = Verdict::Wrong { deviation: 0.25, tensor: "k".into() };
        let outcome = Outcome { case: "attention, gradient", tolerance: 1e-3, verdict: wrong, seconds: 1.5 };
        let words: Vec<String> = line(&outcome).split_whitespace().map(String::from).collect();
        assert_eq!(words.join(" "), "attention, gradient 2.5e-1 1e-3 WRONG 1.50 in k");
        let json: serde_json::Value = serde_json::from_str(&json_line("vulkan", &outcome)).unwrap();
        assert_eq!((&json["case"], &json["verdict"], &json["deviation"]), (&"attention, gradient".into(), &"wrong".into(), &0.25.into()));
        let outcome = Outcome { verdict: Verdict::Wrong { deviation: f64::INFINITY, tensor: "k".into() }, ..outcome };
        let json: serde_json::Value = serde_json::from_str(&json_line("vulkan", &outcome)).unwrap();
        assert!(json["deviation"].is_null() && json["verdict"] == "wrong", "{json}");
    }
}
