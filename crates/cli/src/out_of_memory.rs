//! A device that runs out of memory says so by a panic, wherever its result is read. This makes a message of it that helps.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};

use anyhow::anyhow;
use vp_core::profile::{self, Stage};

use crate::failure::Failure;

/// How Burn's backends begin what they say about memory, in lower case.
const SIGNS: [&str; 3] = ["can't allocate", "out of memory", "outofmemory"];

fn is_about_memory(message: &str) -> bool {
    let message = message.to_lowercase();
    SIGNS.iter().any(|sign| message.contains(sign))
}

fn text(payload: &dyn Any) -> &str {
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    owned.or(payload.downcast_ref::<&str>().copied()).unwrap_or_default()
}

/// Does `work`. If the device runs out of memory in it, the failure names the stage and what would take less.
pub fn told<T>(device: &str, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let usual = std::sync::Arc::new(take_hook());
    let before = usual.clone();
    set_hook(Box::new(move |info| {
        if !is_about_memory(text(info.payload())) {
            before(info);
        }
    }));
    let done = catch_unwind(AssertUnwindSafe(work));
    set_hook(Box::new(move |info| usual(info)));
    done.unwrap_or_else(|payload| match text(&*payload) {
        message if is_about_memory(message) => Err(Failure::run(anyhow!("{}", explained(device, profile::under_way(), message)))),
        _ => resume_unwind(payload),
    })
}

fn explained(device: &str, stage: Option<Stage>, message: &str) -> String {
    let during = stage.map_or_else(String::new, |stage| format!(" during {}", stage.name()));
    let less = match stage {
        Some(Stage::Encode | Stage::Decode) => "[vae] slicing = true and tiling = true, model.size, or smaller batches",
        Some(Stage::Reward) => "reward.<name>.dtype = \"bf16\", or smaller batches",
        Some(Stage::Optimizer) => "optimizer.adamw.moments = \"8bit\", or a LoRA instead of whole weights",
        Some(Stage::Rollout) => "model.dtype = \"bf16\", or fewer images at once (algo.<name>.sample_batch_size)",
        _ => "model.gradient_checkpointing = \"blocks\", model.dtype = \"bf16\", model.size, or smaller batches",
    };
    let first = message.lines().map(str::trim).find(|line| is_about_memory(line)).unwrap_or_default();
    format!(
        "{device} ran out of memory{during} ({first}); these take less: {less}. The run's last checkpoint is as it was, and --resume goes on \
         from it; of these settings, model.gradient_checkpointing may change on the way"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stage_and_its_settings_are_named() {
        let work = || -> Result<(), Failure> {
            profile::time(Stage::Decode, || {
                panic!("Error while reading data: launch failed\n  can't allocate buffer of size: 536870912\n  0: f")
            })
        };
        let Err(Failure::Run(error)) = told("vulkan", work) else { panic!("expected a failure") };
        let told = error.to_string();
        assert!(told.starts_with("vulkan ran out of memory during decode (can't allocate buffer of size: 536870912); "), "{told}");
        assert!(told.contains("[vae] slicing"), "{told}");
        assert!(explained("cuda", None, "Out of memory").contains("gradient_checkpointing"));
    }

    #[test]
    fn other_panics_pass() {
        let caught = catch_unwind(|| told("cpu", || -> Result<(), Failure> { panic!("a fault") }));
        assert_eq!(text(&*caught.unwrap_err()), "a fault");
        assert!(matches!(told("cpu", || Ok(3)), Ok(3)));
    }
}
