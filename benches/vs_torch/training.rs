//! Training: a step of a small network made of our layers, and the shipped algorithms on the tiny golden checkpoint.

use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use regex::Regex;
use tempfile::TempDir;
use vp_core::noise::Noise;
use vp_core::run_dir::RunDir;
use vp_models::blocks::resnet::{ResnetBlock2D, ResnetOptions};
use vp_models::layers::{Activation, Conv2d, GroupNorm, LayerNorm, Linear, Mask, attention};
use vp_models::parameters::{initialize, named_gradients, select_trainable};
use vp_rewards::{Brightness, BrightnessConfig, Reward, RewardConfig};
use vp_trainers::assembly::{Assembled, Assembly, assemble};
use vp_trainers::config::{AlgorithmConfig, TrainConfig};
use vp_trainers::losses::mean_squared_error;
use vp_trainers::optim::{AdamW, AdamWConfig, NamedTensors};
use vp_trainers::policy::advantages::AdvantagesConfig;
use vp_trainers::regularizer::{Nothing, RegularizerConfig};
use vp_trainers::run::journal::{Journal, Silent};
use vp_trainers::run::{Run, Start};

use crate::{Case, Work, random};

pub fn cases() -> Vec<Case> {
    vec![Case::new("small_training_step", small_step), Case::new("refl_step", || beaten(refl)), Case::new("ddpo_epoch", || beaten(ddpo))]
}

/// Channels of the small network.
const CHANNELS: usize = 64;

/// Four residual blocks with an attention block after the first and the third, at one resolution: 400,836 parameters.
#[derive(Module, Debug)]
struct SmallNetwork {
    conv_in: Conv2d,
    resnets: Vec<ResnetBlock2D>,
    attentions: Vec<AttentionBlock>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// Self-attention of 4 heads and a feed-forward part four times as wide, each behind a norm and around a shortcut.
#[derive(Module, Debug)]
struct AttentionBlock {
    norm1: LayerNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl SmallNetwork {
    fn new(device: &Device) -> Self {
        let options = ResnetOptions { groups: 32, eps: 1e-5, time_embedding_dim: None, output_scale_factor: 1.0 };
        Self {
            conv_in: Conv2d::same(4, CHANNELS, 3, device),
            resnets: (0..4).map(|_| ResnetBlock2D::new(CHANNELS, CHANNELS, options, device)).collect(),
            attentions: (0..2).map(|_| AttentionBlock::new(device)).collect(),
            norm_out: GroupNorm::new(32, CHANNELS, 1e-5, device),
            conv_out: Conv2d::same(CHANNELS, 4, 3, device),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let mut x = self.conv_in.forward(x);
        for (level, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(x, None);
            if level % 2 == 0 {
                x = self.attentions[level / 2].forward(x);
            }
        }
        self.conv_out.forward(self.norm_out.forward_silu(x))
    }
}

impl AttentionBlock {
    fn new(device: &Device) -> Self {
        let (norm, projection) = (|| LayerNorm::new(CHANNELS, 1e-5, device), || Linear::without_bias(CHANNELS, CHANNELS, device));
        Self {
            norm1: norm(),
            to_q: projection(),
            to_k: projection(),
            to_v: projection(),
            to_out: Linear::new(CHANNELS, CHANNELS, device),
            norm2: norm(),
            fc1: Linear::new(CHANNELS, 4 * CHANNELS, device),
            fc2: Linear::new(4 * CHANNELS, CHANNELS, device),
        }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, c, h, w] = x.dims();
        let x = x.reshape([b, c, h * w]).swap_dims(1, 2);
        let normed = self.norm1.forward(x.clone());
        let (q, k, v) = (self.to_q.forward(normed.clone()), self.to_k.forward(normed.clone()), self.to_v.forward(normed));
        let x = self.to_out.forward(attention(q, k, v, 4, Mask::None)) + x;
        let x = self.fc2.forward(Activation::Gelu.forward(self.fc1.forward(self.norm2.forward(x.clone())))) + x;
        x.swap_dims(1, 2).reshape([b, c, h, w])
    }
}

/// Forward, backward and AdamW on a batch of 8 maps of 16×16.
fn small_step() -> Work {
    let device = Device::flex();
    let network = initialize(SmallNetwork::new(&device), &Noise::new(0));
    let (network, parameters) = select_trainable(network.train(), &Regex::new("").expect("a pattern"));
    assert_eq!(parameters, 400_836);
    let (x, target) = (random([8, 4, 16, 16], &device), random([8, 4, 16, 16], &device));
    let (mut network, mut optimizer) = (Some(network), AdamW::new(AdamWConfig::default()));
    Box::new(move || {
        let current = network.take().expect("the step before gave it back");
        let mut gradients = mean_squared_error(current.forward(x.clone()), target.clone()).backward();
        let gradients: NamedTensors = named_gradients(&current, &mut gradients).into_iter().collect();
        network = Some(optimizer.step(current, &gradients, 1e-4));
    })
}

/// Divides a training run, which knows no single steps, into them: [`mark`](Self::mark) says that one is done and waits for the next.
struct Beat {
    done: Sender<()>,
    go: Mutex<Receiver<()>>,
}

impl Beat {
    fn mark(&self) {
        if self.done.send(()).is_err() || self.go.lock().expect("one thread waits").recv().is_err() {
            // Nobody is there to be told: the process ends.
            loop {
                std::thread::park();
            }
        }
    }
}

/// A reward that marks the beat after each time it is asked, which in a step of ReFL and in an epoch of DDPO is once.
struct Marked {
    reward: Box<dyn Reward>,
    beat: Beat,
}

impl Reward for Marked {
    fn name(&self) -> &'static str {
        self.reward.name()
    }

    fn differentiable(&self) -> bool {
        self.reward.differentiable()
    }

    fn score(&self, images: Tensor<4>, prompts: &[String]) -> vp_rewards::Result<Tensor<1>> {
        let scores = self.reward.score(images, prompts)?;
        self.beat.mark();
        Ok(scores)
    }
}

/// A run of `train` on a thread of its own, one beat each time it is called. Ready once the preview that a run begins with is drawn;
/// the first call then goes to the first reward alone, which is why a round of warming up is needed.
fn beaten(train: fn(Beat, &Path)) -> Work {
    let folder = TempDir::new().expect("a temporary folder");
    let ((done, is_done), (start, go)) = (channel(), channel());
    let path = folder.path().join("run");
    std::thread::Builder::new().stack_size(64 << 20).spawn(move || train(Beat { done, go: Mutex::new(go) }, &path)).expect("a thread");
    is_done.recv().expect("the run begins");
    Box::new(move || {
        // Held here, so that it is removed with the work.
        let _ = &folder;
        start.send(()).expect("the run goes on");
        is_done.recv().expect("the run goes on");
    })
}

/// The shipped config with a fixed tracked step, and of everything beside the algorithm (regulariser, moving average, watched rewards,
/// previews, checkpoints) nothing.
fn refl(beat: Beat, folder: &Path) {
    let mut config = config("configs/refl/tiny.toml", &["algo.refl.min_mid_step=17", "algo.refl.max_mid_step=17"]);
    config.regularizer = Some(RegularizerConfig::None(Nothing {}));
    train(config, beat, folder);
}

/// The shipped config with 8 images an epoch, minibatches of 4, guidance 5 and brightness for a reward; beside the algorithm, as above.
fn ddpo(beat: Beat, folder: &Path) {
    let overrides = [
        "algo.ddpo.sample_batch_size=8",
        "algo.ddpo.num_batches_per_epoch=1",
        "algo.ddpo.train_batch_size=4",
        "algo.ddpo.guidance_scale=5.0",
        "optimizer.gradient_accumulation_steps=1",
    ];
    let mut config = config("configs/ddpo/tiny.toml", &overrides);
    config.reward = Some(RewardConfig::Brightness(BrightnessConfig::default()));
    let AlgorithmConfig::Ddpo(ddpo) = &mut config.algo else { panic!("a config of DDPO") };
    ddpo.advantages = AdvantagesConfig::Batch(Default::default());
    train(config, beat, folder);
}

fn config(path: &str, overrides: &[&str]) -> TrainConfig {
    const OF_ALL: [&str; 5] = [
        "run.num_train_steps=1000000000",
        "checkpoint.every=0",
        "preview.prompts=[\"a fox\"]",
        "preview.seeds=[1]",
        "preview.num_inference_steps=1",
    ];
    let overrides: Vec<String> = OF_ALL.iter().chain(overrides).map(|flag| flag.to_string()).collect();
    let mut config: TrainConfig = vp_core::config::read(Path::new(path), &overrides).expect("a shipped config");
    config.ema = None;
    config.watch.clear();
    config
}

/// Trains what the `train` command makes of a config, with a reward that marks each time it is asked.
fn train(config: TrainConfig, beat: Beat, folder: &Path) {
    let assembly = assemble(&config, &|path| Ok(path.to_path_buf()), &Device::flex()).expect("the golden checkpoint");
    let Assembly::Reward(mut assembled) = assembly else { panic!("a config driven by a reward") };
    let unmarked = std::mem::replace(&mut assembled.environment.reward, Box::new(Brightness));
    assembled.environment.reward = Box::new(Marked { reward: unmarked, beat });
    let journal = |_| Ok(Journal::new(RunDir::create(folder, "")?, Silent));
    let mut run = Run::new(assembled.model(), assembled.outline.settings.clone(), Start::default(), journal).expect("a run");
    assembled.train(&mut run).expect("the run goes on");
}
