//! The arguments of `export`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

use super::{LoraArg, ModelArgs};

/// `export`.
#[derive(Debug, ClapArgs)]
#[command(
    group = clap::ArgGroup::new("what").required(true).multiple(true).args(["merge", "half", "format"]),
    after_help = "Examples:\n  visionprefer export --model ./sd15 --lora runs/mine/lora.safetensors --merge -o ./sd15-tuned\n  visionprefer export --model ./sd15 --lora runs/mine/lora.safetensors --format ldm --half -o sd15-tuned.safetensors\n  visionprefer export --model ./sd15 --lora from-the-web.safetensors --format diffusers -o pytorch_lora_weights.safetensors"
)]
pub struct ExportArgs {
    /// The model that the LoRA was made for: a diffusers folder, a single-file checkpoint or a hub id
    #[arg(long, value_name = "MODEL")]
    pub model: PathBuf,
    /// Options for the model's files.
    #[command(flatten)]
    pub files: ModelArgs,
    /// A LoRA file or the folder of an adapter, with this weight [default: 1] (repeatable with --merge and --format ldm)
    #[arg(long = "lora", value_name = "FILE[:WEIGHT]", required_unless_present_any = ["half", "format"])]
    pub loras: Vec<LoraArg>,
    /// Write a diffusers folder with the LoRAs added to its weights
    #[arg(long, requires = "loras")]
    pub merge: bool,
    /// Write in half precision, with LoRAs added where --merge names any
    #[arg(long)]
    pub half: bool,
    /// Write the LoRA in another format, or with `ldm` the whole model, LoRAs added, as one file for A1111 and ComfyUI
    #[arg(long, value_enum, value_name = "NAME", conflicts_with = "merge")]
    pub format: Option<ExportFormat>,
    /// A new folder with --merge, a new file with --format
    #[arg(short, long, value_name = "PATH")]
    pub output: PathBuf,
    /// Print nothing on standard error but warnings and errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// How a file names its tensors: three of LoRAs, one of whole models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// `lora_unet_…lora_down.weight`, with alpha: sd-scripts, A1111, ComfyUI
    Kohya,
    /// `unet.….lora.down.weight`: diffusers
    Diffusers,
    /// `unet.….lora_A.weight`: PEFT
    Peft,
    /// `model.diffusion_model.…`: a whole model in one file, as A1111 and ComfyUI read it
    Ldm,
}
