//! Every operation of `ops` on the device under test (`VP_DEVICE`) against the same composed of Burn's on the CPU: values to 1e-5,
//! gradients of every input to 1e-4, relative to the largest, over random shapes, odd sizes, one channel, one element; on the tape and off
//! it, with some inputs frozen.

mod bf16;
#[path = "../device/mod.rs"]
mod device;
mod lora;
mod recompute;

use burn::tensor::{DType, Device, Tensor, TensorData};
use device::device;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use vp_ops::{LoraFactors, Mask, composed};

/// Where a case's inputs come from, and how many draws it has.
struct Draws(ChaCha8Rng);

impl Draws {
    fn size(&mut self, most: usize) -> usize {
        self.0.random_range(1..=most)
    }

    /// One, whose norm is zero, or three and more: the norm of two values is ±1 whatever they are, and the slope of that is all rounding.
    fn count_to_normalise(&mut self, most: usize) -> usize {
        match self.size(most) {
            2 => 3,
            count => count,
        }
    }

    fn tensor<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        let values: Vec<f32> = StandardNormal.sample_iter(&mut self.0).take(shape.iter().product()).collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }
}

/// The values of a tensor on another device, off the tape.
fn moved<const D: usize>(tensor: Tensor<D>, device: &Device) -> Tensor<D> {
    let device = device.clone().without_autodiff();
    Tensor::from_data(tensor.into_data().convert::<f32>(), (&device, DType::F32))
}

/// An input of a case, its rank forgotten.
#[derive(Clone)]
enum Given {
    One(Tensor<1>),
    Two(Tensor<2>),
    Three(Tensor<3>),
    Four(Tensor<4>),
}

macro_rules! given {
    ($($variant:ident $rank:literal),*) => {
        $(impl From<Tensor<$rank>> for Given {
            fn from(tensor: Tensor<$rank>) -> Self {
                Self::$variant(tensor)
            }
        })*
        impl Given {
            fn flat(&self) -> Tensor<1> {
                match self {
                    $(Self::$variant(tensor) => {
                        let count: usize = tensor.dims().iter().product();
                        tensor.clone().reshape([count])
                    })*
                }
            }
            fn shape(&self) -> Vec<usize> {
                match self { $(Self::$variant(tensor) => tensor.dims().to_vec(),)* }
            }
        }
    };
}
given!(One 1, Two 2, Three 3, Four 4);

/// The largest difference, relative to the largest expected value.
fn apart(found: &Tensor<1>, expected: &Tensor<1>) -> f32 {
    let (found, expected) = (moved(found.clone(), &Device::flex()), moved(expected.clone(), &Device::flex()));
    let largest: f32 = expected.clone().abs().max().into_scalar();
    let difference: f32 = (found - expected).abs().max().into_scalar();
    // Gradients that vanish but for rounding are compared with one.
    difference / largest.max(1e-2)
}

/// Values off the tape, and values and gradients on it for each choice of frozen inputs: `fused` against `plain`. Both take the
/// inputs flat, to give them their shapes.
fn agree(what: &str, inputs: Vec<Given>, draws: &mut Draws, fused: impl Fn(&[Tensor<1>]) -> Given, plain: impl Fn(&[Tensor<1>]) -> Given) {
    let shapes: Vec<Vec<usize>> = inputs.iter().map(Given::shape).collect();
    let flat: Vec<Tensor<1>> = inputs.iter().map(Given::flat).collect();
    let on_device: Vec<Tensor<1>> = flat.iter().map(|tensor| moved(tensor.clone(), &device())).collect();
    let (found, expected) = (fused(&on_device), plain(&flat));
    assert_eq!(found.shape(), expected.shape(), "{what} of {shapes:?}");
    let off_tape = apart(&found.flat(), &expected.flat());
    assert!(off_tape < 1e-5, "{what} of {shapes:?}: {off_tape:e}");
    let weights = draws.tensor([found.flat().dims()[0]]);
    for frozen in 0..(1 << flat.len()) - 1_usize {
        let run = |flat: &[Tensor<1>], operation: &dyn Fn(&[Tensor<1>]) -> Given| {
            // A frozen input is off the tape, or on it and wants nothing.
            let on = |(i, tensor): (usize, &Tensor<1>)| match (frozen >> i & 1, i % 2) {
                (0, _) => tensor.clone().autodiff().require_grad(),
                (_, 0) => tensor.clone(),
                _ => tensor.clone().autodiff(),
            };
            let leaves: Vec<Tensor<1>> = flat.iter().enumerate().map(on).collect();
            let output = operation(&leaves).flat();
            let mut gradients = (output.clone() * moved(weights.clone(), &output.device())).sum().backward();
            let gradients: Vec<Option<Tensor<1>>> = leaves.iter().map(|leaf| leaf.grad_remove(&mut gradients)).collect();
            (output.without_autodiff(), gradients)
        };
        let ((found, gradients), (expected, references)) = (run(&on_device, &fused), run(&flat, &plain));
        let on_tape = apart(&found, &expected);
        assert!(on_tape < 1e-5, "{what} of {shapes:?} on the tape: {on_tape:e}");
        for (i, (gradient, reference)) in gradients.iter().zip(&references).enumerate() {
            match (gradient, reference) {
                (Some(gradient), Some(reference)) => {
                    let apart = apart(gradient, reference);
                    assert!(apart < 1e-4, "{what} of {shapes:?}: gradient {i} with {frozen:b} frozen: {apart:e}");
                }
                (None, None) => assert_eq!(frozen >> i & 1, 1, "{what}: input {i} wants a gradient"),
                _ => panic!("{what} of {shapes:?}: gradient {i} is there in one of the two"),
            }
        }
    }
}

/// 24 draws of a case; two on a device that compiles and times kernels for each new shape.
fn each_draw(case: impl Fn(&mut Draws)) {
    let draws = if device() == Device::flex() { 24 } else { 2 };
    for seed in 0..draws {
        case(&mut Draws(ChaCha8Rng::seed_from_u64(seed)));
    }
}

#[test]
fn activations() {
    each_draw(|draws| {
        let shape = [draws.size(3), draws.size(70), draws.size(40)];
        let [a, b, c] = shape;
        for (what, fused, plain) in [
            ("silu", vp_ops::silu::<3> as fn(Tensor<3>) -> Tensor<3>, composed::silu::<3> as fn(Tensor<3>) -> Tensor<3>),
            ("gelu", vp_ops::gelu, composed::gelu),
            ("quick_gelu", vp_ops::quick_gelu, composed::quick_gelu),
            ("softmax", vp_ops::softmax, composed::softmax),
        ] {
            let x = draws.tensor(shape) * 3.0;
            agree(
                what,
                vec![x.into()],
                draws,
                |x| fused(x[0].clone().reshape(shape)).into(),
                |x| plain(x[0].clone().reshape(shape)).into(),
            );
        }
        let x = draws.tensor([a, b, 2 * c]);
        let shaped = |x: &[Tensor<1>]| x[0].clone().reshape([a, b, 2 * c]);
        agree("geglu", vec![x.into()], draws, |x| vp_ops::geglu(shaped(x)).into(), |x| composed::geglu(shaped(x)).into());
    });
}

#[test]
fn norms() {
    each_draw(|draws| {
        let [rows, d] = [draws.size(60), draws.count_to_normalise(90)];
        let inputs = vec![draws.tensor([rows, d]).into(), draws.tensor([d]).into(), draws.tensor([d]).into()];
        let run = |norm: fn(Tensor<2>, Tensor<1>, Tensor<1>, f64) -> Tensor<2>| {
            move |x: &[Tensor<1>]| norm(x[0].clone().reshape([rows, d]), x[1].clone(), x[2].clone(), 1e-5).into()
        };
        agree("layer_norm", inputs, draws, run(vp_ops::layer_norm), run(composed::layer_norm));

        let [b, groups, each, h, w] = [draws.size(3), draws.size(5), draws.size(4), draws.size(20), draws.count_to_normalise(20)];
        let (each, h) = if w == 1 { (1, 1) } else { (each, h) };
        let c = groups * each;
        for silu in [false, true] {
            let inputs = vec![draws.tensor([b, c, h, w]).into(), draws.tensor([c]).into(), draws.tensor([c]).into()];
            let shaped = |x: &[Tensor<1>]| (x[0].clone().reshape([b, c, h, w]), x[1].clone(), x[2].clone());
            let fused = |x: &[Tensor<1>]| {
                let (x, weight, bias) = shaped(x);
                if silu {
                    vp_ops::group_norm_silu(x, weight, bias, groups, 1e-5)
                } else {
                    vp_ops::group_norm(x, weight, bias, groups, 1e-5)
                }
                .into()
            };
            let plain = |x: &[Tensor<1>]| {
                let (x, weight, bias) = shaped(x);
                let y = composed::group_norm(x, weight, bias, groups, 1e-5);
                if silu { composed::silu(y) } else { y }.into()
            };
            agree("group_norm", inputs, draws, fused, plain);
        }
    });
}

#[test]
fn convolutions() {
    each_draw(|draws| {
        let [b, d_in, d_out, h, w] = [draws.size(3), draws.size(40), draws.size(40), draws.size(20), draws.size(20)];
        let (k, stride) = ([1, 3][draws.size(2) - 1], draws.size(2));
        let padding = if k == 1 { (0, 0) } else { [(1, 1), (1, 2)][draws.size(2) - 1] };
        let biased = draws.size(2) == 1;
        let mut inputs = vec![draws.tensor([b, d_in, h, w]).into(), draws.tensor([d_out, d_in, k, k]).into()];
        inputs.extend(biased.then(|| draws.tensor([d_out]).into()));
        type Convolution = fn(Tensor<4>, Tensor<4>, Option<Tensor<1>>, usize, (usize, usize)) -> Tensor<4>;
        let run = |convolution: Convolution| {
            move |x: &[Tensor<1>]| {
                let (image, weight) = (x[0].clone().reshape([b, d_in, h, w]), x[1].clone().reshape([d_out, d_in, k, k]));
                convolution(image, weight, x.get(2).cloned(), stride, padding).into()
            }
        };
        agree(&format!("conv2d {k} {stride} {padding:?}"), inputs, draws, run(vp_ops::conv2d), run(composed::conv2d));
    });
}

#[test]
fn linear_maps() {
    each_draw(|draws| {
        let [b, tokens, d_in, d_out] = [draws.size(3), draws.size(150), draws.size(90), draws.size(90)];
        let biased = draws.size(2) == 1;
        let mut inputs = vec![draws.tensor([b, tokens, d_in]).into(), draws.tensor([d_out, d_in]).into()];
        inputs.extend(biased.then(|| draws.tensor([d_out]).into()));
        let run = |linear: fn(Tensor<3>, Tensor<2>, Option<Tensor<1>>) -> Tensor<3>| {
            move |x: &[Tensor<1>]| {
                linear(x[0].clone().reshape([b, tokens, d_in]), x[1].clone().reshape([d_out, d_in]), x.get(2).cloned()).into()
            }
        };
        agree("linear", inputs, draws, run(vp_ops::linear), run(composed::linear));
    });
}

#[test]
fn attentions() {
    each_draw(|draws| {
        let [b, heads, d, queries] = [draws.size(2), draws.size(4), draws.size(24), draws.size(150)];
        let kind = draws.size(3);
        let (keys, c) = (if kind == 1 { queries } else { draws.size(150) }, heads * d);
        let mask = draws.tensor([b, 1, 1, keys]) * 5.0;
        let rows = draws.size(queries);
        let inputs: Vec<Given> = [queries, keys, keys].map(|tokens| draws.tensor([b, tokens, c]).into()).into();
        type Attention<'a> = &'a dyn Fn(Tensor<3>, Tensor<3>, Tensor<3>, usize, Mask<'_>) -> Tensor<3>;
        let run = |attention: Attention<'_>, x: &[Tensor<1>]| -> Given {
            let mask = moved(mask.clone(), &x[0].device());
            let mask = match kind {
                1 => Mask::Causal,
                2 => Mask::Additive(&mask),
                _ => Mask::None,
            };
            let [q, k, v] = [(0, queries), (1, keys), (2, keys)].map(|(i, tokens)| x[i].clone().reshape([b, tokens, c]));
            attention(q, k, v, heads, mask).into()
        };
        let in_tiles = |q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, heads, mask: Mask<'_>| {
            composed::attention_in_tiles(q, k, v, heads, mask, Some(rows))
        };
        let expected = |x: &[Tensor<1>]| run(&composed::attention, x);
        agree("attention", inputs.clone(), draws, |x| run(&vp_ops::attention, x), expected);
        agree(&format!("attention, {rows} queries at a time"), inputs, draws, |x| run(&in_tiles, x), expected);
    });
}

/// A tensor that lies strangely in memory is the same tensor.
#[test]
fn views_are_read_as_what_they_are() {
    let mut draws = Draws(ChaCha8Rng::seed_from_u64(99));
    let x = draws.tensor([2, 5, 6, 7]);
    let views = [x.clone().swap_dims(2, 3), x.clone().narrow(2, 1, 4), x.clone().flip([1]), x.narrow(0, 0, 1).expand([3, 5, 6, 7])];
    for view in views {
        let copy = Tensor::<4>::from_data(view.to_data(), &device());
        for operation in [vp_ops::silu, vp_ops::softmax] {
            let (of_view, of_copy): (Tensor<4>, Tensor<4>) = (operation(view.clone()), operation(copy.clone()));
            if device() == Device::flex() {
                of_view.into_data().assert_eq(&of_copy.into_data(), true);
            } else {
                let count: usize = copy.dims().iter().product();
                assert!(apart(&of_view.reshape([count]), &of_copy.reshape([count])) < 1e-6);
            }
        }
    }
}

/// An output is the caller's own: writing into it leaves what the tape keeps as it was.
#[test]
fn what_is_kept_is_not_written_over() {
    let device = device().autodiff();
    let x = Tensor::<1>::from_data([0.5, -1.0, 2.0], &device).require_grad();
    let y = vp_ops::softmax(x.clone());
    let z = y.clone() * y * 2.0;
    let gradient = x.grad(&z.sum().backward()).unwrap();
    let reference = Tensor::<1>::from_data([0.5, -1.0, 2.0], &device).require_grad();
    let y = composed::softmax(reference.clone());
    let expected = reference.grad(&(y.clone() * y * 2.0).sum().backward()).unwrap();
    assert!(apart(&gradient, &expected) < 1e-5);
}

/// In bf16 and f16 an operation is the f32 one, rounded: values to four roundings, gradients to thirty-two, relative to the largest.
#[test]
fn half_precision_is_f32_rounded() {
    let device = device();
    let mut draws = Draws(ChaCha8Rng::seed_from_u64(5));
    let [b, c, h, tokens] = [2, 16, 8, 20];
    let image: Given = draws.tensor([b, c, h, h]).into();
    let text: Given = draws.tensor([b, tokens, c]).into();
    let [kernel, matrix, vector]: [Given; 3] =
        [(draws.tensor([c, c, 3, 3]) * 0.1).into(), (draws.tensor([c, c]) * 0.2).into(), draws.tensor([c]).into()];
    type Operation = fn(&[Tensor<1>]) -> Given;
    let (down, up): (Given, Given) = ((draws.tensor([4, c]) * 0.2).into(), (draws.tensor([c, 4]) * 0.2).into());
    let cases: [(&str, &Given, Vec<&Given>, Operation); 8] = [
        ("conv2d", &image, vec![&kernel, &vector], |x| {
            vp_ops::conv2d(x[0].clone().reshape([2, 16, 8, 8]), x[1].clone().reshape([16, 16, 3, 3]), Some(x[2].clone()), 1, (1, 1)).into()
        }),
        ("linear", &text, vec![&matrix, &vector], |x| {
            vp_ops::linear(x[0].clone().reshape([2, 20, 16]), x[1].clone().reshape([16, 16]), Some(x[2].clone())).into()
        }),
        ("linear with a LoRA", &text, vec![&matrix, &vector, &down, &up], |x| {
            let factors = LoraFactors { down: x[3].clone().reshape([4, 16]), up: x[4].clone().reshape([16, 4]), scale: 0.5 };
            let (text, weight) = (x[0].clone().reshape([2, 20, 16]), x[1].clone().reshape([16, 16]));
            vp_ops::linear_with_lora(text, weight, Some(x[2].clone()), factors).into()
        }),
        ("group_norm_silu", &image, vec![&vector, &vector], |x| {
            vp_ops::group_norm_silu(x[0].clone().reshape([2, 16, 8, 8]), x[1].clone(), x[2].clone(), 4, 1e-5).into()
        }),
        ("layer_norm", &text, vec![&vector, &vector], |x| {
            vp_ops::layer_norm(x[0].clone().reshape([2, 20, 16]), x[1].clone(), x[2].clone(), 1e-5).into()
        }),
        ("geglu", &text, vec![], |x| vp_ops::geglu(x[0].clone().reshape([2, 20, 16])).into()),
        ("softmax", &text, vec![], |x| vp_ops::softmax(x[0].clone().reshape([2, 20, 16])).into()),
        ("attention", &text, vec![], |x| {
            let x: Tensor<3> = x[0].clone().reshape([2, 20, 16]);
            vp_ops::attention(x.clone() * 0.5, x.clone(), x, 2, Mask::Causal).into()
        }),
    ];
    for (format, epsilon) in [(DType::BF16, 2f32.powi(-7)), (DType::F16, 2f32.powi(-10))] {
        if device != Device::flex() && !device.supports_dtype(format) {
            continue;
        }
        for ((what, input, weights, operation), frozen) in cases.iter().flat_map(|case| [(case, true), (case, false)]) {
            let run = |format: DType| {
                let x = moved(input.flat(), &device).cast(format).autodiff().require_grad();
                // Weights that train stay f32: the operation casts them.
                let rest = weights.iter().map(|weight| moved(weight.flat(), &device).cast(if frozen { format } else { DType::F32 }));
                let output = operation(&std::iter::once(x.clone()).chain(rest).collect::<Vec<_>>()).flat();
                assert_eq!(output.dtype(), format, "{what}");
                let mut gradients = output.clone().cast(DType::F32).square().sum().backward();
                [output, x.grad_remove(&mut gradients).unwrap()]
            };
            let ([value, gradient], [expected, expected_gradient]) = (run(format), run(DType::F32));
            assert_eq!(gradient.dtype(), format, "{what}");
            let (value, gradient) = (apart(&value, &expected), apart(&gradient, &expected_gradient));
            assert!(value < 4.0 * epsilon && gradient < 32.0 * epsilon, "{what} in {format:?}: {value:e}, gradient {gradient:e}");
            assert!(value > 0.0, "{what} in {format:?} was not rounded");
        }
    }
}

/// A fault upstream stays visible: the guards of a run look for it.
#[test]
fn a_nan_stays_one() {
    let mut draws = Draws(ChaCha8Rng::seed_from_u64(7));
    let mut values: Vec<f32> = draws.tensor([40]).into_data().try_to_vec().unwrap();
    values[11] = f32::NAN;
    let x = Tensor::<3>::from_data(TensorData::new(values, [1, 2, 20]), &device());
    let nans = |y: Tensor<3>| y.is_nan().int().sum().into_scalar::<i32>();
    assert_eq!((nans(vp_ops::silu(x.clone())), nans(vp_ops::gelu(x.clone())), nans(vp_ops::quick_gelu(x.clone()))), (1, 1, 1));
    assert_eq!(nans(vp_ops::softmax(x.clone())), 20);
    let fine = moved(draws.tensor([1, 2, 20]), &device());
    // The first query's scores are none: its row of each head that holds the fault.
    assert_eq!(nans(vp_ops::attention(x.clone(), fine.clone(), fine.clone(), 2, Mask::None)), 10);
    assert_eq!(nans(vp_ops::attention(fine.clone(), x, fine, 2, Mask::None)), 20);
}

#[test]
#[should_panic(expected = "conv2d of an empty tensor, [0, 3, 8, 8]")]
fn an_empty_batch_is_refused() {
    let _ = vp_ops::conv2d(Tensor::zeros([0, 3, 8, 8], &device()), Tensor::zeros([4, 3, 3, 3], &device()), None, 1, (1, 1));
}

#[test]
#[should_panic(expected = "attention of an empty tensor")]
fn attention_over_no_key_is_refused() {
    let none = Tensor::zeros([1, 0, 4], &device());
    let _ = vp_ops::attention(Tensor::zeros([1, 2, 4], &device()), none.clone(), none, 1, Mask::None);
}
