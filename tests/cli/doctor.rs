//! `doctor`.

use crate::util::run;

#[test]
fn it_says_what_the_program_is_and_sees() {
    let told = run(&["doctor"]).ok().stdout();
    assert!(told.contains(env!("CARGO_PKG_VERSION")) && told.contains("backends     cpu") && told.lines().count() < 24, "{told}");
}

#[test]
fn the_cpu_computes_rightly() {
    let told = run(&["doctor", "--check"]).ok().stdout();
    assert!(told.contains("attention, gradients") && told.contains("cpu computes rightly"), "{told}");
    assert!(!told.contains("WRONG") && told.lines().count() < 40, "{told}");
    let json: serde_json::Value = serde_json::from_str(&run(&["doctor", "--check", "cpu", "--json"]).ok().stdout()).unwrap();
    assert_eq!(json["right"], true);
    assert!(
        json["cases"].as_array().unwrap().iter().any(|case| case["case"] == "sampling with the model inside" && case["verdict"] == "right")
    );
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    assert!(run(&["doctor", "--check", "gpu"]).refused().contains("no such backend"));
    assert_eq!(run(&["doctor", "--json"]).code(), Some(2));
}
