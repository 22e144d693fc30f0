//! `doctor`.

use serde_json::Value;

use crate::util::{root, run};

fn json(args: &[&str]) -> Vec<Value> {
    let stdout = run(&[&["doctor", "--json"], args].concat()).ok().stdout();
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn it_says_what_it_is_and_sees_on_one_screen() {
    let text = run(&["doctor"]).ok().stdout();
    assert!(text.lines().count() <= 30 && text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let parts =
        ["processor", "memory", "free for runs", "hub cache", "models", "kernels", "\ncpu", "doctor --check DEVICE", "debug-report"];
    for part in [concat!("visionprefer ", env!("CARGO_PKG_VERSION"))].into_iter().chain(parts) {
        assert!(text.contains(part), "{part}: {text}");
    }
    let objects = json(&[]);
    let program = &objects[0];
    assert_eq!((&program["kind"], &program["version"]), (&"program".into(), &env!("CARGO_PKG_VERSION").into()));
    assert!(program["cores"].as_u64().unwrap() > 0 && program["processor"]["logical_cores"].as_u64().unwrap() > 0, "{program}");
    let kernels = program["processor"]["kernels"].as_str().unwrap();
    assert!(text.contains(&format!("kernels use {kernels}")), "{text}");
    let caches: Vec<&str> = program["caches"].as_array().unwrap().iter().map(|cache| cache["name"].as_str().unwrap()).collect();
    assert_eq!(caches, ["hub cache", "models", "kernels"]);
    assert!(objects[1..].iter().any(|object| object["kind"] == "device" && object["name"] == "cpu|flex"));
    let told = objects.iter().filter(|object| object["kind"] == "finding").count();
    assert_eq!(told > 0, text.contains("\nwarning "), "{text}");
}

#[test]
fn it_tells_which_variables_are_set_and_none_of_their_secrets() {
    for args in [&["doctor"][..], &["doctor", "--json"]] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_visionprefer"));
        // Alone, so that they are not cut from the line.
        for (name, _) in
            std::env::vars().filter(|(name, _)| ["VP_", "CUDA_", "CUBECL_", "BURN_"].iter().any(|begin| name.starts_with(begin)))
        {
            command.env_remove(name);
        }
        command.current_dir(root()).env("HF_TOKEN", "hf_s3same").env("ALL_PROXY", "http://eve:s3same@proxy.example:3128");
        let output = command.args(args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && !text.contains("s3same"), "{text}");
        assert!(text.contains("HF_TOKEN") && text.contains("http://proxy.example:3128"), "{text}");
    }
}

#[test]
fn what_prevents_work_is_told_with_exit_code_1() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_visionprefer"));
    let output = command.current_dir(root()).env("VP_DEVICE", "tpu").arg("doctor").output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stdout.contains("WRONG       VP_DEVICE: device `tpu`: no such backend"), "{stdout}");
    assert!(stderr.starts_with("error: VP_DEVICE: device `tpu`") && stderr.lines().count() == 1, "{stderr}");
}

#[test]
fn the_cpu_computes_rightly() {
    let text = run(&["doctor", "--check"]).ok().stdout();
    assert!(text.ends_with("\ncpu computes rightly\n"), "{text}");
    let objects = json(&["--check", "cpu"]);
    for object in &objects {
        let (case, number) = (object["case"].as_str().unwrap(), |key: &str| object[key].as_f64().unwrap());
        let line =
            text.lines().find(|line| line.trim_end().starts_with(&format!("{case:<40}"))).unwrap_or_else(|| panic!("{case}: {text}"));
        assert!(line.contains(" ok "), "{line}");
        assert_eq!((&object["kind"], &object["verdict"], &object["device"]), (&"case".into(), &"ok".into(), &"cpu".into()));
        assert!(number("deviation") <= number("tolerance") && number("seconds") >= 0.0, "{object}");
    }
    let named = |part: &str| objects.iter().filter(|object| object["case"].as_str().unwrap().contains(part)).count();
    for part in ["matmul", "convolution", "attention", "GELU", "AdamW", "LoRA", "UNet", "DDIM"] {
        assert!(named(part) > 0, "{part}");
    }
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let message = run(&["doctor", "--check", "tpu"]).refused();
    assert!(message.contains("device `tpu`: no such backend"), "{message}");
}

#[test]
fn training_on_the_cpu_checks_nothing() {
    let finished = run(&["train", "--algo", "refl", "--dry-run", "--unchecked-device"]).ok();
    let told = finished.stdout() + &finished.stderr();
    assert!(!told.contains("checking") && !told.contains("--unchecked-device"), "{told}");
}
