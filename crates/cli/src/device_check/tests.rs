//! The numbers of `expected.json`: written with `VP_BLESS=1`, held against f64 always.

use super::inputs::Place;
use super::reference::Exact;
use super::*;

/// Cases whose numbers are this program's own on the CPU: compositions of what the others check, held to the original programs by
/// tests/golden.
const OWN: [&str; 2] = ["UNet, decoder and reward, gradient", "sampling, ten DDIM steps"];
/// Numbers are written as f32, and a central difference has an error of 1e-8.
const WRITTEN: f64 = 1e-6;
/// The program's own numbers are sums in f32. Their order, and so their rounding, depends on how wide the processor's vectors are: a processor
/// without AVX-512 was 4e-6 away from the file.
const ROUNDED: f64 = 1e-5;

fn exact(case: &Case) -> Option<Vec<Computed>> {
    match case.work {
        Work::Forward(operation, inputs) => Some(Exact::output(&operation.exact, inputs)),
        Work::Gradient(operation, inputs) => Some(Exact::gradients(&operation.exact, inputs)),
        Work::Network(network) => network.exact.map(|exact| exact()),
    }
}

fn write(cases: &[(&str, Vec<Computed>)]) {
    let tensor = |tensor: &Computed| {
        let values: Vec<String> = digest(&tensor.values).iter().map(|value| format!("{:e}", *value as f32)).collect();
        format!("    {:?}: [{}]", tensor.name, values.join(", "))
    };
    let case = |(name, tensors): &(&str, Vec<Computed>)| {
        let tensors: Vec<String> = tensors.iter().map(tensor).collect();
        format!("  {name:?}: {{\n{}\n  }}", tensors.join(",\n"))
    };
    let text: Vec<String> = cases.iter().map(case).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crates/cli/src/device_check/expected.json");
    std::fs::write(path, format!("{{\n{}\n}}\n", text.join(",\n"))).unwrap();
}

#[test]
fn the_expected_numbers_are_those_of_loops_in_f64() {
    let mut own = Vec::new();
    let numbers = CASES.iter().filter(|case| case.skip.is_none()).map(|case| {
        let computed = exact(case).unwrap_or_else(|| {
            own.push(case.name);
            case.compute(&Place::new(&Device::flex())).unwrap()
        });
        (case.name, computed)
    });
    let numbers: Vec<(&str, Vec<Computed>)> = numbers.collect();
    let allowed = |name: &str| if OWN.contains(&name) { ROUNDED } else { WRITTEN };
    assert!(own.iter().all(|name| OWN.contains(name)), "{own:?} should have a computation in f64");
    if std::env::var_os("VP_BLESS").is_some() {
        return write(&numbers);
    }
    let expected = expected();
    for (case, tensors) in &numbers {
        let written = expected.get(*case).unwrap_or_else(|| panic!("{case}: not in expected.json; VP_BLESS=1 writes it"));
        assert_eq!(written.len(), tensors.len(), "{case}");
        for tensor in tensors {
            let off = deviation(&digest(&tensor.values), &written[&tensor.name]);
            assert!(off <= allowed(case), "{case}, {}: expected.json is off by {off:e}; VP_BLESS=1 writes it", tensor.name);
        }
    }
    assert!(expected.keys().all(|name| CASES.iter().any(|case| case.name == name)), "expected.json has a case that nobody runs");
}

#[test]
fn the_cpu_computes_every_case_far_within_its_tolerance() {
    for case in CASES.iter().filter(|case| case.skip.is_none()) {
        let verdict = case.run(&Device::flex()).verdict;
        // A tenth of the tolerance: what is left is for devices that add up in another order.
        let within = matches!(verdict, Verdict::Right { deviation } if deviation <= 0.1 * case.tolerance);
        assert!(within, "{}: {verdict:?}, tolerance {:e}", case.name, case.tolerance);
    }
}

/// Cases as they come out on a device that computes wrongly.
pub mod faulty {
    use burn::tensor::{Tensor, activation};

    use super::super::inputs::Input;
    use super::super::operations::{Given, Operation};
    use super::super::*;

    /// An operation with a fault, in place of the one that has its name in the table.
    const fn fault(name: &'static str, work: Work) -> Case {
        Case { name, tolerance: 1e-4, quick: true, skip: None, work }
    }

    macro_rules! faulty {
        ($($name:ident = $forward:expr;)+) => {
            $(static $name: Operation = Operation { forward: $forward, exact: Exact::Function(|_| unreachable!("it is wrong")) };)+
        };
    }
    use super::Exact;

    faulty! {
        RIGHT = |given| activation::softmax(given.tensor::<2>(0) * 4.0, 1).flatten(0, 1);
        // The last 16 columns are never written.
        HALF_A_TILE = |given| {
            let product = given.tensor::<2>(0).matmul(given.tensor::<2>(1));
            let [rows, columns] = product.dims();
            let written = product.narrow(1, 0, columns - 16);
            let rest = Tensor::<2>::zeros([rows, 16], &written.device());
            Tensor::cat(vec![written, rest], 1).flatten(0, 1)
        };
        // One value in 16,000 that no comparison of single values meets.
        ONE_NAN = |given| {
            let x = given.tensor::<2>(0) * 4.0;
            let nan = Tensor::<2>::full([1, 1], f32::NAN, &x.device());
            vp_ops::gelu(x).slice_assign([0..1, 1..2], nan).flatten(0, 1)
        };
        // The derivative of the tanh approximation, as Burn's GPU backends had it.
        TANH_GELU = |given| {
            let x = given.tensor::<2>(0) * 4.0;
            let inner = (x.clone() + x.clone().powf_scalar(3.0) * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
            (x * 0.5 * (inner.tanh() + 1.0)).flatten(0, 1)
        };
        PANIC = |_: &Given<'_>| panic!("no such\n  instruction");
    }

    const SOFTMAX: &[Input] = &[Input::of("x", &[40, 77])];
    const GELU: &[Input] = &[Input::of("x", &[31, 67])];

    /// One right case, then one of each fault.
    pub static CASES: &[Case] = &[
        fault("softmax", Work::Forward(&RIGHT, SOFTMAX)),
        fault("matmul 64x96 by 96x80", Work::Forward(&HALF_A_TILE, &[Input::of("a", &[64, 96]), Input::of("b", &[96, 80])])),
        fault("GELU", Work::Forward(&ONE_NAN, GELU)),
        fault("GELU, gradient", Work::Gradient(&TANH_GELU, GELU)),
        fault("layer norm", Work::Forward(&PANIC, GELU)),
    ];
}

#[test]
fn faults_are_found() {
    let verdicts: Vec<Verdict> = faulty::CASES.iter().map(|case| case.run(&Device::flex()).verdict).collect();
    assert!(matches!(verdicts[0], Verdict::Right { .. }), "{:?}", verdicts[0]);
    assert!(matches!(verdicts[1], Verdict::Wrong { deviation, .. } if deviation > 0.1), "{:?}", verdicts[1]);
    assert!(matches!(verdicts[2], Verdict::Wrong { deviation: f64::INFINITY, .. }), "{:?}", verdicts[2]);
    assert!(matches!(verdicts[3], Verdict::Wrong { deviation, .. } if deviation < 1e-3), "{:?}", verdicts[3]);
    assert_eq!(verdicts[4], Verdict::Failed { reason: "no such instruction".into() });
}

#[test]
fn a_value_that_is_not_compared_alone_still_counts() {
    let (right, mut wrong) = (vec![1.0; 1000], vec![1.0; 1000]);
    wrong[1] = 2.0;
    assert_eq!(digest(&right).len(), KEPT + 1);
    // √(1003 / 1000) against 1.
    assert!((deviation(&digest(&wrong), &digest(&right)) - 0.0015).abs() < 1e-5);
}
