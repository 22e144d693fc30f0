//! The UNet as a list of stages whose fold is `forward`.
//!
//! A stage reads the hidden state and at most one skip, and writes the hidden state and at most one skip: these are the only
//! tensors that cross its boundary, besides the [`Context`] that all stages share. Recomputing a stage needs nothing else.

use burn::tensor::Tensor;

use super::UNet2DConditionModel;
use super::transformer::Transformer2DModel;
use crate::blocks::resnet::{Downsample2D, ResnetBlock2D, Upsample2D};
use crate::footprint::{Ledger, Traced};
use crate::gradient_checkpointing::GradientCheckpointing;
use crate::layers::{Conv2d, GroupNorm};
use crate::number_format::NumberFormat;

/// The inputs that are the same for every stage.
#[derive(Debug, Clone)]
pub struct Context {
    /// The time embedding, `[b, time]`.
    pub time: Tensor<2>,
    /// The text embeddings, `[b, tokens, cross_attention_dim]`.
    pub encoder_hidden_states: Tensor<3>,
    /// How much of each stage the tape keeps.
    pub gradient_checkpointing: GradientCheckpointing,
}

/// The tensors that pass from stage to stage.
#[derive(Debug, Clone)]
pub struct State {
    /// The hidden state, `[b, c, h, w]`.
    pub hidden: Tensor<4>,
    /// The skips that the way down has pushed and the way up has not popped yet, `[b, c, h, w]` each.
    pub skips: Vec<Tensor<4>>,
}

/// One step of the network.
#[derive(Debug, Clone, Copy)]
pub enum UNetStage<'a> {
    /// Latents to features; pushes a skip.
    ConvIn(&'a Conv2d),
    /// A residual block and perhaps attention; pushes a skip.
    Down(&'a ResnetBlock2D, Option<&'a Transformer2DModel>),
    /// Halves the resolution; pushes a skip.
    Downsample(&'a Downsample2D),
    /// A residual block and perhaps attention, at the lowest resolution.
    Mid(&'a ResnetBlock2D, Option<&'a Transformer2DModel>),
    /// Pops a skip; a residual block and perhaps attention.
    Up(&'a ResnetBlock2D, Option<&'a Transformer2DModel>),
    /// Raises the resolution to that of the next skip.
    Upsample(&'a Upsample2D),
    /// Features to the prediction.
    ConvOut(&'a GroupNorm, &'a Conv2d),
}

impl UNet2DConditionModel {
    /// The stages in order, each under the name of its part in a checkpoint.
    pub fn stages(&self) -> Vec<(String, UNetStage<'_>)> {
        let mut stages = vec![("conv_in".into(), UNetStage::ConvIn(&self.conv_in))];
        for (level, block) in self.down_blocks.iter().enumerate() {
            let layers = block.resnets.iter().enumerate();
            stages.extend(
                layers.map(|(i, resnet)| (format!("down_blocks.{level}.resnets.{i}"), UNetStage::Down(resnet, block.attentions.get(i)))),
            );
            stages.extend(
                block.downsamplers.iter().map(|stage| (format!("down_blocks.{level}.downsamplers.0"), UNetStage::Downsample(stage))),
            );
        }
        let layers = self.mid_block.resnets.iter().enumerate();
        stages
            .extend(layers.map(|(i, resnet)| (format!("mid_block.resnets.{i}"), UNetStage::Mid(resnet, self.mid_block.attentions.get(i)))));
        for (step, block) in self.up_blocks.iter().enumerate() {
            let layers = block.resnets.iter().enumerate();
            stages.extend(
                layers.map(|(i, resnet)| (format!("up_blocks.{step}.resnets.{i}"), UNetStage::Up(resnet, block.attentions.get(i)))),
            );
            stages.extend(block.upsamplers.iter().map(|stage| (format!("up_blocks.{step}.upsamplers.0"), UNetStage::Upsample(stage))));
        }
        stages.push(("conv_out".into(), UNetStage::ConvOut(&self.conv_norm_out, &self.conv_out)));
        stages
    }
}

impl UNetStage<'_> {
    /// Runs the stage on the state that the one before it left.
    pub fn forward(&self, State { hidden, mut skips }: State, context: &Context) -> State {
        let Context { time, encoder_hidden_states, gradient_checkpointing } = context.clone();
        let hidden = match self {
            Self::ConvIn(conv) => conv.forward(hidden),
            Self::Down(resnet, attention) | Self::Mid(resnet, attention) => {
                let modules = ((*resnet).clone(), attention.cloned());
                gradient_checkpointing.run(&modules, (hidden, time, encoder_hidden_states), |modules, (hidden, time, states)| {
                    residual(modules, hidden, &time, &states)
                })
            }
            Self::Downsample(downsample) => downsample.forward(hidden),
            Self::Up(resnet, attention) => {
                let skip = skips.pop().expect("the way down left one skip for each residual block of the way up");
                let modules = ((*resnet).clone(), attention.cloned());
                gradient_checkpointing.run(
                    &modules,
                    (hidden, time, encoder_hidden_states, skip),
                    |modules, (hidden, time, states, skip)| residual(modules, Tensor::cat(vec![hidden, skip], 1), &time, &states),
                )
            }
            Self::Upsample(upsample) => {
                let [_, _, h, w] = skips.last().expect("a level below the first has skips left").dims();
                let kept = gradient_checkpointing.where_trained(*upsample);
                kept.run(*upsample, (hidden,), move |upsample, (hidden,)| upsample.forward(hidden, [h, w]))
            }
            Self::ConvOut(norm, conv) => {
                let modules = ((*norm).clone(), (*conv).clone());
                let kept = gradient_checkpointing.where_trained(&modules);
                kept.run(&modules, (hidden,), |(norm, conv), (hidden,)| conv.forward(norm.forward_silu(hidden)))
            }
        };
        if matches!(self, Self::ConvIn(_) | Self::Down(..) | Self::Downsample(_)) {
            skips.push(hidden.clone());
        }
        State { hidden, skips }
    }
}

/// What passes from stage to stage of a trace, and what all of them share: [`State`] and [`Context`] of shapes.
#[derive(Debug)]
pub(super) struct TracedState {
    pub hidden: Traced,
    pub skips: Vec<Traced>,
}

/// [`Context`] of shapes.
#[derive(Debug)]
pub(super) struct TracedContext {
    pub time: Traced,
    pub encoder_hidden_states: Traced,
    pub gradient_checkpointing: GradientCheckpointing,
    /// That of the network's frozen weights.
    pub format: NumberFormat,
}

impl UNetStage<'_> {
    /// [`forward`](Self::forward) of shapes.
    pub(super) fn trace(&self, ledger: &Ledger, state: TracedState, context: &TracedContext) -> TracedState {
        let TracedState { hidden, mut skips } = state;
        let &TracedContext { ref time, ref encoder_hidden_states, gradient_checkpointing, format } = context;
        let residual =
            |ledger: &Ledger, resnet: &ResnetBlock2D, attention: Option<&Transformer2DModel>, hidden, time: &Traced, text: &Traced| {
                let hidden = resnet.trace(ledger, hidden, Some(time), format);
                match attention {
                    Some(attention) => attention.trace(ledger, hidden, text, format),
                    None => hidden,
                }
            };
        let hidden = match self {
            Self::ConvIn(conv) => conv.trace(ledger, hidden, format),
            Self::Down(resnet, attention) | Self::Mid(resnet, attention) => {
                let inputs = vec![hidden, time.clone(), encoder_hidden_states.clone()];
                ledger.block(gradient_checkpointing, inputs, |ledger, mut inputs| {
                    let hidden = inputs.remove(0);
                    residual(ledger, resnet, *attention, hidden, &inputs[0], &inputs[1])
                })
            }
            Self::Downsample(downsample) => downsample.trace(ledger, hidden, format),
            Self::Up(resnet, attention) => {
                let skip = skips.pop().expect("the way down left one skip for each residual block of the way up");
                let inputs = vec![hidden, skip, time.clone(), encoder_hidden_states.clone()];
                ledger.block(gradient_checkpointing, inputs, |ledger, mut inputs| {
                    let both = ledger.cat(inputs.drain(..2).collect(), 1);
                    residual(ledger, resnet, *attention, both, &inputs[0], &inputs[1])
                })
            }
            Self::Upsample(upsample) => {
                let above = skips.last().expect("a level below the first has skips left").dims();
                let size = [above[2], above[3]];
                let kept = ledger.where_trained(gradient_checkpointing, *upsample);
                ledger.block(kept, vec![hidden], |ledger, mut x| upsample.trace(ledger, x.remove(0), size, format))
            }
            Self::ConvOut(norm, conv) => {
                let kept = ledger.where_trained(gradient_checkpointing, &((*norm).clone(), (*conv).clone()));
                ledger.block(kept, vec![hidden], |ledger, mut x| conv.trace(ledger, norm.trace(ledger, x.remove(0), format, true), format))
            }
        };
        if matches!(self, Self::ConvIn(_) | Self::Down(..) | Self::Downsample(_)) {
            skips.push(hidden.clone());
        }
        TracedState { hidden, skips }
    }
}

/// A residual block, and attention if there is any.
fn residual(
    (resnet, attention): &(ResnetBlock2D, Option<Transformer2DModel>),
    hidden: Tensor<4>,
    time: &Tensor<2>,
    encoder_hidden_states: &Tensor<3>,
) -> Tensor<4> {
    let hidden = resnet.forward(hidden, Some(time));
    match attention {
        Some(attention) => attention.forward(hidden, encoder_hidden_states),
        None => hidden,
    }
}
