use std::path::Path;

use super::*;

/// `VP_BLESS=1 cargo test --release --bin visionprefer device_check` writes the numbers anew.
#[test]
fn the_numbers_are_those_of_the_cpu() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/cli/src/device_check/expected.json");
    let place = Place::new(&Device::flex());
    let computed = |case: &Case| -> BTreeMap<String, Vec<f64>> {
        let tensors = case.compute(&place).unwrap();
        // Enough digits to tell one f32 from the next.
        let rounded = |value: f64| format!("{value:.8e}").parse().unwrap();
        tensors.iter().map(|tensor| (tensor.name.clone(), digest(&tensor.values).into_iter().map(rounded).collect())).collect()
    };
    if std::env::var_os("VP_BLESS").is_some() {
        let all: Expected = CASES.iter().map(|case| (case.name.to_string(), computed(case))).collect();
        std::fs::write(&path, serde_json::to_string(&all).unwrap() + "\n").unwrap();
        return;
    }
    let expected = expected();
    assert_eq!(expected.len(), CASES.len());
    for case in CASES.iter().filter(|case| case.skip.is_none()) {
        for (name, values) in computed(case) {
            let off = deviation(&values, &expected[case.name][&name]);
            assert!(off <= case.tolerance / 10.0, "{}, {name}: {off:e}", case.name);
        }
    }
}

#[test]
fn a_wrong_value_is_found_wherever_it_is() {
    let case = &CASES[0];
    let right = case.compute(&Place::new(&Device::flex())).unwrap();
    assert!(matches!(case.judge(&right), Verdict::Right { .. }));
    let wrong = |change: fn(&mut f64)| {
        let mut computed = CASES[9].compute(&Place::new(&Device::flex())).unwrap();
        let middle = computed[0].values.len() / 2 + 1;
        change(&mut computed[0].values[middle]);
        CASES[9].judge(&computed)
    };
    assert!(matches!(wrong(|value| *value = f64::NAN), Verdict::Wrong { deviation, .. } if deviation.is_infinite()));
    assert!(matches!(wrong(|value| *value += 1e4), Verdict::Wrong { .. }));
}

#[test]
fn a_panic_of_the_backend_is_an_outcome() {
    let case = Case { name: "x", tolerance: 1.0, quick: true, skip: None, work: Work::Network(|_| panic!("no such kernel")) };
    assert_eq!(case.run(&Device::flex()).verdict, Verdict::Failed { reason: "no such kernel".into() });
}
