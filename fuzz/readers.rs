//! The readers under libFuzzer: one program, which reads the target's name from `VP_FUZZ`. `scripts/fuzz` runs it.
#![no_main]

#[allow(dead_code, reason = "the stable test needs more of it")]
mod targets;

use std::sync::LazyLock;
use std::{env, fs, panic};

use targets::TARGETS;

static READ: LazyLock<fn(&[u8]) -> bool> = LazyLock::new(|| {
    let name = env::var("VP_FUZZ").unwrap_or_default();
    let target = TARGETS.iter().find(|target| target.name == name);
    target.unwrap_or_else(|| panic!("VP_FUZZ is {name:?}: expected a target's name")).read
});

/// With `VP_FUZZ_SEEDS`, writes what every target starts from into that folder, and ends.
fn prepare() {
    if let Some(folder) = env::var_os("VP_FUZZ_SEEDS") {
        for target in TARGETS {
            let folder = std::path::Path::new(&folder).join(target.name);
            fs::create_dir_all(&folder).expect("a folder");
            for (number, (_, seed)) in target.seeds().into_iter().enumerate() {
                fs::write(folder.join(number.to_string()), seed).expect("a seed");
            }
        }
        std::process::exit(0);
    }
    // A panic that is contained is none; libFuzzer's hook would end the program for it.
    let ends = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !vp_core::contained::is_contained() {
            ends(panic);
        }
    }));
}

libfuzzer_sys::fuzz_target!(init: prepare(), |input: &[u8]| {
    READ(input);
});
