//! The networks of rewards.

use super::{Engine, Ledger, Traced, bytes_of, nowhere, values};
use crate::blip::{BlipConfig, BlipReward};
use crate::clip::{ClipConfig, ClipImageEncoder};
use crate::gradient_checkpointing::GradientCheckpointing;
use crate::number_format::NumberFormat;

/// The config of a network that scores images.
#[derive(Debug, Clone)]
pub enum ScoringKind {
    /// A BLIP with a head.
    Blip(BlipConfig),
    /// Both encoders of a CLIP.
    Clip(ClipConfig),
    /// The image encoder of a CLIP alone.
    ClipImage(ClipConfig),
}

/// A network that scores images, known by its config.
#[derive(Debug, Clone)]
pub struct ScoringNetwork {
    /// The network.
    pub kind: ScoringKind,
    /// The number format of its encoders.
    pub format: NumberFormat,
    /// Where its files are not there: the published network that is taken for it.
    pub assumed: Option<&'static str>,
}

impl ScoringNetwork {
    /// Its number of values.
    pub fn values(&self) -> u64 {
        match &self.kind {
            ScoringKind::Blip(config) => values(&BlipReward::new(config, &nowhere())),
            ScoringKind::Clip(config) => values(&config.init(&nowhere())),
            ScoringKind::ClipImage(config) => values(&ClipImageEncoder::new(&config.vision, config.projection_dim, &nowhere())),
        }
    }

    /// Bytes of its weights.
    pub fn bytes(&self) -> u64 {
        self.values() * bytes_of(self.format)
    }

    /// Height and width of the images that it takes, in pixels.
    pub fn image_size(&self) -> usize {
        match &self.kind {
            ScoringKind::Blip(config) => config.image_size,
            ScoringKind::Clip(config) | ScoringKind::ClipImage(config) => config.vision.image_size,
        }
    }

    /// Scores images `[b, 3, h, w]`, in shapes: what the scores are made of.
    pub fn trace(&self, ledger: &Ledger, images: Traced, kept: GradientCheckpointing) -> Traced {
        let &[rows, channels, ..] = images.dims() else { panic!("a reward scores images, not {:?}", images.dims()) };
        let size = self.image_size();
        let pixel_values = ledger.resized(images, &[rows, channels, size, size]);
        let device = nowhere();
        match &self.kind {
            ScoringKind::Blip(config) => {
                let mut network = BlipReward::new(config, &device);
                network.gradient_checkpointing = kept;
                network.trace(ledger, pixel_values, config.max_length, self.format)
            }
            ScoringKind::Clip(config) => {
                let network = config.init(&device);
                ledger.constantly(|| drop(network.text_model.trace(ledger, rows, self.format)));
                network.vision_model.trace(ledger, pixel_values, self.format)
            }
            ScoringKind::ClipImage(config) => {
                ClipImageEncoder::new(&config.vision, config.projection_dim, &device).vision_model.trace(ledger, pixel_values, self.format)
            }
        }
    }

    /// The most that it takes to score so many images of this size, beyond its weights.
    pub fn forward_peak(&self, engine: Engine, images: usize, [height, width]: [usize; 2]) -> u64 {
        let ledger = Ledger::off_the_tape(engine);
        let images = ledger.constant(&[images, 3, height, width], NumberFormat::F32);
        drop(self.trace(&ledger, images, GradientCheckpointing::None));
        ledger.peak()
    }
}
