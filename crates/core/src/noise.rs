//! The only source of random numbers.
//!
//! Every draw is named by what it is for: (run seed, [`Purpose`], step, sample). The four numbers *are* the 256-bit key of a
//! ChaCha8 stream, so a draw does not depend on the device, on the batch it is computed in, or on what was drawn before it:
//! a resumed run needs no generator state, and image 7 of a seed is the same alone and in a batch of 64.

use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// What a stream of random numbers is for. Streams of different purposes are independent.
///
/// Purposes that several files share are the constants here. Their numbers never change, so that a seed draws the same values in every version.
/// A file that draws something of its own names the purpose itself, beside the code that draws:
///
/// ```
/// use vp_core::noise::Purpose;
///
/// /// The noise level of a training example.
/// const NOISE_LEVEL: Purpose = Purpose::named("awm.noise_level");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose(u64);

impl Purpose {
    /// The latents that an image starts from.
    pub const INITIAL_LATENTS: Self = Self::numbered(1);
    /// Noise of a stochastic sampler's step.
    pub const SAMPLER_STEP: Self = Self::numbered(2);
    /// The order in which prompts, or the data of a supervised run, are visited.
    pub const DATA_ORDER: Self = Self::numbered(3);
    /// Noise added to clean latents for a denoising loss.
    pub const DENOISING_NOISE: Self = Self::numbered(5);
    /// The timestep of a denoising loss.
    pub const DENOISING_TIMESTEP: Self = Self::numbered(6);
    /// The initial value of a parameter.
    pub const PARAMETER_INIT: Self = Self::numbered(7);
    /// Whether a caption is replaced by the empty one.
    pub const CAPTION_DROPOUT: Self = Self::numbered(8);
    /// Sampling from an autoencoder's posterior.
    pub const POSTERIOR: Self = Self::numbered(9);
    /// Flips and crops.
    pub const AUGMENTATION: Self = Self::numbered(10);
    /// The order in which a regulariser's images are visited.
    pub const IMAGE_ORDER: Self = Self::numbered(11);
    /// The order in which a policy gradient visits the images of an epoch.
    pub const MINIBATCH_ORDER: Self = Self::numbered(12);
    /// The order in which a policy gradient visits the steps of one image.
    pub const TIMESTEP_ORDER: Self = Self::numbered(13);
    /// A scene of the world of shapes.
    pub const SCENE: Self = Self::numbered(18);
    /// Which values dropout keeps.
    pub const DROPOUT: Self = Self::numbered(19);
    /// How a scene is spoilt.
    pub const SPOILING: Self = Self::numbered(20);
    /// The guidance scale of an image that will be annotated.
    pub const GUIDANCE_SCALE: Self = Self::numbered(21);

    /// The purpose of this number, less than 2^32. Every number has one meaning: those up to 21 are taken, by the constants here and by the
    /// algorithms that had a number before purposes had names. New purposes are [`named`](Self::named).
    pub const fn numbered(number: u32) -> Self {
        Self(number as u64)
    }

    /// The purpose of this name, as in `"awm.noise_level"`: the owner, then what is drawn.
    ///
    /// It is the 64-bit FNV-1a hash of the name with the highest bit set, so that it never equals a number. Two names collide as rarely
    /// as two random 63-bit numbers.
    pub const fn named(name: &str) -> Self {
        const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let (bytes, mut hash, mut at) = (name.as_bytes(), OFFSET, 0);
        // `for` is not const yet.
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u64).wrapping_mul(PRIME);
            at += 1;
        }
        Self(hash | 1 << 63)
    }
}

/// The step under which the noise of one scheduler step is drawn: `draw` names the chain (0 for sampling; training counts its
/// micro-batches from 1), `scheduler_step` the position in the chain.
pub fn chain_step(draw: u64, scheduler_step: usize) -> u64 {
    (draw << 16) | scheduler_step as u64
}

/// The run's noise: a seed, and streams named by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noise {
    seed: u64,
}

impl Noise {
    /// The noise of the run with this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The seed this noise was made from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The stream for `sample` of `step`, for one purpose.
    pub fn stream(&self, purpose: Purpose, step: u64, sample: u64) -> ChaCha8Rng {
        let mut key = [0u8; 32];
        for (bytes, word) in key.chunks_exact_mut(8).zip([self.seed, purpose.0, step, sample]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        ChaCha8Rng::from_seed(key)
    }

    /// Standard normal values of one sample.
    pub fn normal_values(&self, purpose: Purpose, step: u64, sample: u64, count: usize) -> Vec<f32> {
        self.stream(purpose, step, sample).sample_iter(StandardNormal).take(count).collect()
    }

    /// Standard normal `[samples.len(), c, h, w]`; row `i` belongs to `samples[i]` and to nothing else.
    pub fn normal(&self, purpose: Purpose, step: u64, samples: &[u64], [c, h, w]: [usize; 3], device: &Device) -> Tensor<4> {
        let values: Vec<f32> = samples.iter().flat_map(|sample| self.normal_values(purpose, step, *sample, c * h * w)).collect();
        Tensor::from_data(TensorData::new(values, [samples.len(), c, h, w]), device)
    }

    /// A uniform integer in `low..=high`.
    ///
    /// # Panics
    /// When `low > high`.
    pub fn integer(&self, purpose: Purpose, step: u64, sample: u64, low: usize, high: usize) -> usize {
        assert!(low <= high, "an integer was asked for in the empty range {low}..={high}");
        // 64 bits of stream modulo the width: the bias is below 2^-40 for any width met here, and the rule stays ours rather
        // than the `rand` crate's, which is free to change its own between versions.
        let word: u64 = self.stream(purpose, step, sample).random();
        low + (word % (high - low + 1) as u64) as usize
    }

    /// A uniform number in `[0, 1)`.
    pub fn uniform(&self, purpose: Purpose, step: u64, sample: u64) -> f64 {
        self.uniform_values(purpose, step, sample, 1)[0]
    }

    /// `count` uniform numbers in `[0, 1)`.
    pub fn uniform_values(&self, purpose: Purpose, step: u64, sample: u64, count: usize) -> Vec<f64> {
        let mut stream = self.stream(purpose, step, sample);
        let mut next = || {
            let word: u64 = stream.random();
            (word >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..count).map(|_| next()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_the_same_alone_and_in_a_batch() {
        let (noise, device) = (Noise::new(7), Device::flex());
        let batch = noise.normal(Purpose::INITIAL_LATENTS, 0, &[3, 4, 5], [4, 2, 2], &device);
        let alone = noise.normal(Purpose::INITIAL_LATENTS, 0, &[4], [4, 2, 2], &device);
        batch.narrow(0, 1, 1).into_data().assert_eq(&alone.into_data(), true);
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let base = Noise::new(1).normal_values(Purpose::INITIAL_LATENTS, 2, 3, 4);
        let others = [
            Noise::new(2).normal_values(Purpose::INITIAL_LATENTS, 2, 3, 4),
            Noise::new(1).normal_values(Purpose::SAMPLER_STEP, 2, 3, 4),
            Noise::new(1).normal_values(Purpose::INITIAL_LATENTS, 3, 3, 4),
            Noise::new(1).normal_values(Purpose::INITIAL_LATENTS, 2, 4, 4),
        ];
        assert!(others.iter().all(|other| *other != base));
    }

    #[test]
    fn the_stream_never_changes_between_versions() {
        // Written down once: a seed must draw the same image for as long as the project lives.
        let values = Noise::new(42).normal_values(Purpose::INITIAL_LATENTS, 0, 0, 4);
        assert_eq!(values, PINNED, "{values:?}");
    }
    const PINNED: [f32; 4] = [0.07446186, -0.5460138, -0.0020893635, 1.3139458];

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let values = Noise::new(0).normal_values(Purpose::SAMPLER_STEP, 0, 0, 100_000);
        let mean = values.iter().sum::<f32>() / 1e5;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.015 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn integers_cover_their_range() {
        let noise = Noise::new(0);
        let seen: std::collections::BTreeSet<_> = (0..200).map(|s| noise.integer(Purpose::numbered(4), s, 0, 30, 39)).collect();
        assert_eq!(seen, (30..=39).collect());
    }

    #[test]
    fn a_named_purpose_equals_no_number_and_never_changes() {
        // FNV-1a, computed elsewhere; the highest bit of the second hash is 0 before it is set.
        assert_eq!(Purpose::named("awm.noise_level"), Purpose(0xa3fa_af21_23f1_2e9d));
        assert_eq!(Purpose::named("ddpo.step"), Purpose(0xecb5_96c0_fd7e_63f8));
        assert!(Purpose::named("").0 > u64::from(u32::MAX));
        let draw = |purpose| Noise::new(1).uniform(purpose, 0, 0);
        assert!(draw(Purpose::named("a.b")) != draw(Purpose::named("a.c")));
        assert_eq!(draw(Purpose::numbered(1)), draw(Purpose::INITIAL_LATENTS));
    }
}
