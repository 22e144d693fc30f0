//! `doctor`.

use serde_json::Value;

use crate::util::run;

fn json(args: &[&str]) -> Vec<Value> {
    let stdout = run(&[&["doctor", "--json"], args].concat()).ok().stdout();
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn it_says_what_it_is_and_sees_on_one_screen() {
    let text = run(&["doctor"]).ok().stdout();
    assert!(text.lines().count() <= 24, "{text}");
    let devices = run(&["list", "devices"]).ok().stdout();
    for part in [concat!("visionprefer ", env!("CARGO_PKG_VERSION")), "cores", "memory", "doctor --check DEVICE", &devices] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let objects = json(&[]);
    assert_eq!((&objects[0]["kind"], &objects[0]["version"]), (&"program".into(), &env!("CARGO_PKG_VERSION").into()));
    assert!(objects[0]["cores"].as_u64().unwrap() > 0, "{}", objects[0]);
    assert!(objects[1..].iter().any(|object| object["kind"] == "device" && object["name"] == "cpu|flex"));
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
