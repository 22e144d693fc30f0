//! Residual blocks and changes of resolution.
//!
//! Source: diffusers `models/resnet.py`, `models/downsampling.py`, `models/upsampling.py`.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::footprint::{Ledger, Traced};
use crate::layers::{Conv2d, GroupNorm, Linear};
use crate::number_format::NumberFormat;

/// norm → SiLU → conv → (+ time) → norm → SiLU → conv, around a shortcut.
#[derive(Module, Debug)]
pub struct ResnetBlock2D {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    #[module(skip)]
    output_scale_factor: f64,
}

/// The settings that the residual blocks of one network share.
#[derive(Debug, Clone, Copy)]
pub struct ResnetOptions {
    /// Groups of channels in the group norms.
    pub groups: usize,
    /// Epsilon of the group norms.
    pub eps: f64,
    /// Width of the time embedding; `None` for blocks without one, as in the autoencoder.
    pub time_embedding_dim: Option<usize>,
    /// The sum of shortcut and residual is divided by this.
    pub output_scale_factor: f64,
}

impl ResnetBlock2D {
    /// A block from `d_in` to `d_out` channels.
    pub fn new(d_in: usize, d_out: usize, options: ResnetOptions, device: &Device) -> Self {
        let ResnetOptions { groups, eps, time_embedding_dim, output_scale_factor } = options;
        Self {
            norm1: GroupNorm::new(groups, d_in, eps, device),
            conv1: Conv2d::same(d_in, d_out, 3, device),
            time_emb_proj: time_embedding_dim.map(|dim| Linear::new(dim, d_out, device)),
            norm2: GroupNorm::new(groups, d_out, eps, device),
            conv2: Conv2d::same(d_out, d_out, 3, device),
            conv_shortcut: (d_in != d_out).then(|| Conv2d::same(d_in, d_out, 1, device)),
            output_scale_factor,
        }
    }

    /// `[b, d_in, h, w]` and the time embedding `[b, time]` → `[b, d_out, h, w]`.
    pub fn forward(&self, x: Tensor<4>, time: Option<&Tensor<2>>) -> Tensor<4> {
        let h = self.conv1.forward(self.norm1.forward_silu(x.clone()));
        let h = match (&self.time_emb_proj, time) {
            (Some(project), Some(time)) => {
                let time = project.forward(vp_ops::silu(time.clone()));
                let [b, c] = time.dims();
                h + time.reshape([b, c, 1, 1])
            }
            _ => h,
        };
        let h = self.conv2.forward(self.norm2.forward_silu(h));
        let shortcut = match &self.conv_shortcut {
            Some(conv) => conv.forward(x),
            None => x,
        };
        let sum = shortcut + h;
        if self.output_scale_factor == 1.0 { sum } else { sum / self.output_scale_factor }
    }

    /// [`forward`](Self::forward) of shapes. `time` is there wherever the block takes it.
    pub fn trace(&self, ledger: &Ledger, x: Traced, time: Option<&Traced>, format: NumberFormat) -> Traced {
        let h = self.conv1.trace(ledger, self.norm1.trace(ledger, x.clone(), format, true), format);
        let h = match (&self.time_emb_proj, time) {
            (Some(project), Some(time)) => ledger.add(h, project.trace(ledger, ledger.activation(time.clone()), format)),
            _ => h,
        };
        let h = self.conv2.trace(ledger, self.norm2.trace(ledger, h, format, true), format);
        let shortcut = match &self.conv_shortcut {
            Some(conv) => conv.trace(ledger, x, format),
            None => x,
        };
        ledger.add(shortcut, h)
    }
}

/// A strided 3×3 convolution that halves height and width.
#[derive(Module, Debug)]
pub struct Downsample2D {
    conv: Conv2d,
}

impl Downsample2D {
    /// Padded by one on every side, as the UNet does.
    pub fn symmetric(channels: usize, device: &Device) -> Self {
        Self { conv: Conv2d::strided(channels, channels, 3, 2, (1, 1), device) }
    }

    /// Padded on the right and below only, as the autoencoder does.
    pub fn asymmetric(channels: usize, device: &Device) -> Self {
        Self { conv: Conv2d::strided(channels, channels, 3, 2, (0, 1), device) }
    }

    /// `[b, c, h, w]` → `[b, c, ⌈h/2⌉, ⌈w/2⌉]` (or ⌊·⌋ for odd sizes without left padding).
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.conv.forward(x)
    }

    /// [`forward`](Self::forward) of shapes.
    pub fn trace(&self, ledger: &Ledger, x: Traced, format: NumberFormat) -> Traced {
        self.conv.trace(ledger, x, format)
    }
}

/// Nearest-neighbour upsampling, then a 3×3 convolution.
#[derive(Module, Debug)]
pub struct Upsample2D {
    conv: Conv2d,
}

impl Upsample2D {
    /// Upsampling that keeps the number of channels.
    pub fn new(channels: usize, device: &Device) -> Self {
        Self { conv: Conv2d::same(channels, channels, 3, device) }
    }

    /// `[b, c, h, w]` → `[b, c, size[0], size[1]]`.
    pub fn forward(&self, x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
        self.conv.forward(nearest(x, size))
    }

    /// [`forward`](Self::forward) of shapes.
    pub fn trace(&self, ledger: &Ledger, x: Traced, [height, width]: [usize; 2], format: NumberFormat) -> Traced {
        let shape = [x.dims()[0], x.dims()[1], height, width];
        self.conv.trace(ledger, ledger.resized(x, &shape), format)
    }
}

/// Nearest-neighbour resize, PyTorch's rule: output pixel `i` copies input pixel `⌊i · in / out⌋`.
pub fn nearest(x: Tensor<4>, [height, width]: [usize; 2]) -> Tensor<4> {
    let [b, c, h, w] = x.dims();
    if [height, width] == [2 * h, 2 * w] {
        return x.reshape([b, c, h, 1, w, 1]).expand([b, c, h, 2, w, 2]).reshape([b, c, height, width]);
    }
    let pick = |from: usize, to: usize, device: &Device| {
        let indices: Vec<i64> = (0..to).map(|i| (i * from / to) as i64).collect();
        Tensor::<1, Int>::from_data(TensorData::new(indices, [to]), device)
    };
    let device = x.device();
    x.select(2, pick(h, height, &device)).select(3, pick(w, width, &device))
}
