//! Affine maps on the CPU, of rows ([`linear`](crate::linear)) and of images ([`conv2d`](crate::conv2d)), with the weight alone or with a LoRA's
//! factors beside it.

use std::marker::PhantomData;

use burn::tensor::{DType, Shape, Tensor};
use half::bf16;

use crate::fused::{Format, Fused, Input, Values, apply, cast, in_f32};
use crate::kernel::conv::{self, Geometry};
use crate::kernel::linear;
use crate::kernel::operands::{Left, RowMajor};
use crate::kernel::product::add_product;
use crate::kernel::words::{Element, multiplies_bf16};
use crate::lora::LoraFactors;
use crate::tape::{self, Operation, Ranked};

/// What a weight does to an input, by its sizes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Map {
    /// A product with each row: how many rows, the values of a row of the output, and of the input.
    Rows([usize; 3]),
    /// A convolution of images.
    Images(Geometry),
}

impl Map {
    fn outputs(&self) -> usize {
        match self {
            Self::Rows([rows, d_out, _]) => rows * d_out,
            Self::Images(g) => g.batch * g.d_out * g.out_size().iter().product::<usize>(),
        }
    }

    fn inputs(&self) -> usize {
        match self {
            Self::Rows([rows, _, d_in]) => rows * d_in,
            Self::Images(g) => g.batch * g.d_in * g.size.iter().product::<usize>(),
        }
    }

    /// Values of the output per row or pixel.
    fn d_out(&self) -> usize {
        match self {
            Self::Rows([_, d_out, _]) => *d_out,
            Self::Images(g) => g.d_out,
        }
    }

    fn weight(&self) -> Shape {
        match self {
            Self::Rows([_, d_out, d_in]) => [*d_out, *d_in].into(),
            Self::Images(g) => [g.d_out, g.d_in, g.kernel, g.kernel].into(),
        }
    }

    fn forward<E: Format>(&self, x: &[E], weight: &[E], bias: Option<&[f32]>) -> Vec<E> {
        E::rounded(self.outputs(), |y| match self {
            Self::Rows(shape) => linear::forward(*shape, x, weight, bias, y),
            Self::Images(g) => conv::forward(g, x, weight, bias, y),
        })
    }

    fn input_gradient<E: Format>(&self, dy: &[E], weight: &[E]) -> Vec<E> {
        E::rounded(self.inputs(), |dx| match self {
            Self::Rows(shape) => linear::input_gradient(*shape, dy, weight, dx),
            Self::Images(g) => conv::input_gradient(g, dy, weight, dx),
        })
    }

    fn weight_gradient<E: Format>(&self, x: &[E], dy: &[E]) -> Vec<E> {
        let [x, dy] = [x, dy].map(E::widened);
        E::rounded(self.weight().num_elements(), |dw| match self {
            Self::Rows(shape) => linear::weight_gradient(*shape, &x, &dy, dw),
            Self::Images(g) => conv::weight_gradient(g, &x, &dy, dw),
        })
    }

    fn bias_gradient<E: Format>(&self, dy: &[E]) -> Vec<f32> {
        let (mut db, dy) = (vec![0.0; self.d_out()], E::widened(dy));
        match self {
            Self::Rows(_) => linear::bias_gradient(&dy, &mut db),
            Self::Images(g) => conv::bias_gradient(g, &dy, &mut db),
        }
        db
    }

    /// The same map in two steps: to `rank` values, as `down` does, and from these to the output, as `up` does.
    fn in_two(self, rank: usize) -> [Self; 2] {
        match self {
            Self::Rows([rows, d_out, d_in]) => [Self::Rows([rows, rank, d_in]), Self::Rows([rows, d_out, rank])],
            Self::Images(g) => {
                let up = Geometry { d_in: rank, size: g.out_size(), kernel: 1, stride: 1, padding: (0, 0), ..g };
                [Self::Images(Geometry { d_out: rank, ..g }), Self::Images(up)]
            }
        }
    }
}

/// `y = W x + b`.
#[derive(Debug, Clone)]
struct Affine {
    map: Map,
    biased: bool,
    from: Shape,
    to: Shape,
}

/// [`Affine`] with input, weight and output in one number format, and the bias in f32.
#[derive(Debug, Clone)]
struct In<E>(Affine, PhantomData<E>);

impl<E: Format> Operation<3> for In<E> {
    /// The input where the weight wants a gradient, the weight where the input does: a frozen layer keeps no image.
    type Saved = (Option<Values<E>>, Option<Values<E>>);

    fn forward(&self, [x, weight, bias]: [Ranked; 3], [dx, dw, _]: [bool; 3]) -> (Ranked, Self::Saved) {
        let Affine { map, biased, to, .. } = &self.0;
        let (x, weight, bias) = (Values::<E>::of(x), Values::<E>::of(weight), Values::<f32>::of(bias));
        let y = map.forward(&x, &weight, biased.then_some(&bias));
        (Values::from_vec(y, to.clone()).ranked(), (dw.then_some(x), dx.then_some(weight)))
    }

    fn backward(self, (x, weight): Self::Saved, dy: Ranked, [_, _, db]: [bool; 3]) -> [Option<Ranked>; 3] {
        let (Affine { map, from, .. }, dy) = (self.0, Values::<E>::of(dy));
        [
            weight.map(|weight| Values::from_vec(map.input_gradient(&dy, &weight), from).ranked()),
            x.map(|x| Values::from_vec(map.weight_gradient(&x, &dy), map.weight()).ranked()),
            db.then(|| Values::from_vec(map.bias_gradient(&dy), [map.d_out()]).ranked()),
        ]
    }
}

/// `y = (W + s B A) x + b`. The sum of the weights is made anew each time it is used, so that the tape keeps nothing of it. The gradients
/// of A and B go by way of the rank, as that of the whole weight would cost as much as the forward pass.
#[derive(Debug, Clone)]
struct WithLora {
    affine: Affine,
    rank: usize,
    scale: f32,
}

impl WithLora {
    /// `W + s B A`.
    fn merged(&self, weight: &[f32], down: &[f32], up: &[f32]) -> Vec<f32> {
        let (mut merged, up) = (weight.to_vec(), self.scaled(up));
        let [d_out, d_in] = [self.affine.map.d_out(), down.len() / self.rank];
        let down = RowMajor { values: down, stride: d_in };
        add_product([d_out, d_in, self.rank], Left::Rows(&up, self.rank), &down, &mut merged);
        merged
    }

    fn scaled(&self, values: &[f32]) -> Vec<f32> {
        values.iter().map(|value| value * self.scale).collect()
    }
}

impl Fused<5> for WithLora {
    /// The input where the weight or a factor wants a gradient, the weight where the input does, and both factors.
    type Saved = (Option<Values>, Option<Values>, [Values; 2]);

    fn forward(&self, [x, weight, bias, down, up]: [Values; 5], [dx, dw, _, ddown, dup]: [bool; 5]) -> (Values, Self::Saved) {
        let Affine { map, biased, to, .. } = &self.affine;
        let y = map.forward(&x, &self.merged(&weight, &down, &up), biased.then_some(&bias));
        (Values::from_vec(y, to.clone()), ((dw || ddown || dup).then_some(x), dx.then_some(weight), [down, up]))
    }

    fn backward(self, saved: Self::Saved, dy: Values, [_, dw, db, ddown, dup]: [bool; 5]) -> [Option<Values>; 5] {
        let (x, weight, [down, up]) = saved;
        let map = self.affine.map;
        let dx = weight.map(|weight| map.input_gradient(&dy, &self.merged(&weight, &down, &up)));
        let dw = x.as_ref().filter(|_| dw).map(|x| Values::from_vec(map.weight_gradient(x, &dy), map.weight()));
        let [to_rank, from_rank] = map.in_two(self.rank);
        let dup = x.as_ref().filter(|_| dup).map(|x| {
            let inner = to_rank.forward(x, &down, None);
            Values::from_vec(self.scaled(&from_rank.weight_gradient(&inner, &dy)), up.shape())
        });
        let ddown = x.as_ref().filter(|_| ddown).map(|x| {
            let inner = from_rank.input_gradient(&dy, &self.scaled(&up));
            Values::from_vec(to_rank.weight_gradient(x, &inner), down.shape())
        });
        let db = db.then(|| Values::from_vec(map.bias_gradient(&dy), [map.d_out()]));
        [dx.map(|dx| Values::from_vec(dx, self.affine.from)), dw, db, ddown, dup]
    }
}

/// Whether the CPU multiplies an input and a weight of these formats in bf16. What trains is f32, and so are its products. `shape` is the weight's,
/// `[out, in, ..]`: the sums have even numbers of terms, forward and back, because two are multiplied at a time.
pub fn is_in_bf16(input: DType, weight: DType, shape: &[usize]) -> bool {
    let area: usize = shape[2..].iter().product();
    [input, weight] == [DType::BF16; 2] && multiplies_bf16() && shape[..2].iter().all(|size| (size * area).is_multiple_of(bf16::TERMS))
}

/// The map of `x`, a tensor on the CPU, to a tensor of shape `to`, in the number format of `x`.
pub(crate) fn affine<const D: usize, const W: usize>(
    map: Map,
    to: [usize; D],
    x: Tensor<D>,
    weight: Tensor<W>,
    bias: Option<Tensor<1>>,
    lora: Option<LoraFactors>,
) -> Tensor<D> {
    let bias = bias.map(|bias| cast(bias, DType::F32));
    let affine = Affine { map, biased: bias.is_some(), from: x.shape(), to: to.into() };
    let bias = bias.as_ref().map_or_else(|| Some(Input::absent()), Input::of).expect("f32 on the CPU");
    if lora.is_none() && is_in_bf16(x.dtype(), weight.dtype(), &weight.dims()) {
        return tape::apply(In::<bf16>(affine, PhantomData), [Ranked::of(x), Ranked::of(weight), bias.into()]).tensor();
    }
    let weight = cast(weight, DType::F32);
    in_f32(x, |x| match lora {
        None => tape::apply(In::<f32>(affine, PhantomData), [Ranked::of(x), Ranked::of(weight), bias.into()]).tensor(),
        Some(LoraFactors { down, up, scale }) => {
            let (rank, terms) = (down.dims()[0], map.weight().num_elements() / map.d_out());
            assert_eq!(
                (down.dims(), up.dims()),
                ([rank, terms], [map.d_out(), rank]),
                "a LoRA's factors for a weight of {:?}",
                map.weight()
            );
            let (operation, down, up) = (WithLora { affine, rank, scale: scale as f32 }, cast(down, DType::F32), cast(up, DType::F32));
            let inputs = [Input::of(&x), Input::of(&weight), Some(bias), Input::of(&down), Input::of(&up)];
            apply(operation, inputs).expect("f32 on the CPU")
        }
    })
}
