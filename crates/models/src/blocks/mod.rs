//! The blocks that the UNet and the autoencoder are both made of.

pub mod attention;
pub mod resnet;
