//! `export`: a model folder with LoRAs merged or in half precision, or a LoRA in another format.

use std::path::Path;

use anyhow::{Context, bail};
use burn::tensor::Device;
use vp_models::lora::{Adapter, Dialect};
use vp_models::pipeline::{Component, ModelFolder, Pipeline, Trainable};
use vp_models::weights::SaveType;

use crate::args::{ExportArgs, ExportFormat, LoraArg};
use crate::failure::Failure;
use crate::image_generator::with_loras;
use crate::progress::Progress;
use crate::terminal::{say, warn};
use crate::{device, embedded};

/// The top-level entry point for `export`.
pub fn run(args: ExportArgs) -> Result<(), Failure> {
    let device = device::parse("cpu")?;
    let folder = ModelFolder::open_with(&embedded::resolve(&args.model)?, (&args.files).into())?;
    // Devices and pipes are there to be written to, where the output is a file.
    if args.output.is_file() || args.output.is_dir() || (args.format.is_none() && args.output.exists()) {
        return Err(anyhow::anyhow!("--output {}: it exists already; name a new one", args.output.display()).into());
    }
    match args.format {
        Some(ExportFormat::Ldm) => single_file(&args, folder, &device)?,
        Some(format) => convert(&args, folder, format, &device)?,
        None => merge(&args, folder, &device)?,
    }
    say(format_args!("{}", args.output.display()));
    Ok(())
}

/// A model is read, LoRAs are added, and it is written.
const STEPS: usize = 3;

fn merge(args: &ExportArgs, folder: ModelFolder, device: &Device) -> Result<(), Failure> {
    let progress = Progress::of("steps", STEPS);
    progress.reach(0, "reading the model");
    let (pipeline, unet) = Pipeline::load(folder, device)?;
    progress.reach(1, "adding LoRAs");
    let model = with_loras(&pipeline, unet, &args.loras)?;
    progress.reach(2, "writing the model");
    let mut components = model.components();
    if args.half {
        components.push(Component::vae(&pipeline.vae));
        let untouched = pipeline.text.encoders.iter().filter(|encoder| !model.text_encoders.contains_key(encoder.component));
        components.extend(untouched.map(|encoder| Component::text_encoder(encoder.component, &encoder.model)));
        components = components.into_iter().map(|component| component.with_save_type(SaveType::F16)).collect();
    }
    pipeline.folder.export(&args.output, &components).map_err(Failure::run)
}

/// The whole model with LoRAs in the layout of the original code.
fn single_file(args: &ExportArgs, folder: ModelFolder, device: &Device) -> Result<(), Failure> {
    let progress = Progress::of("steps", STEPS);
    progress.reach(0, "reading the model");
    let (pipeline, unet) = Pipeline::load(folder, device)?;
    progress.reach(1, "adding LoRAs");
    let model: Trainable<_> = with_loras(&pipeline, unet, &args.loras)?;
    progress.reach(2, "writing the file");
    let save_type = if args.half { SaveType::F16 } else { SaveType::F32 };
    pipeline.export_single_file(&model, &args.output, save_type).map_err(Failure::run)
}

fn convert(args: &ExportArgs, folder: ModelFolder, format: ExportFormat, device: &Device) -> Result<(), Failure> {
    let dialect = dialect(args, format)?;
    // Names and shapes alone: no weights are read.
    let names = folder.lora_names(device);
    let adapter = Adapter::read(&args.loras[0].path, &names).context("--lora")?;
    adapter.warning().iter().for_each(|warning| warn(format_args!("{warning}")));
    let factors = adapter.into_factors()?;
    let parent = args.output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    factors.save(&args.output, dialect, &names, &[]).map_err(Failure::run)
}

/// The dialect of a format, if the other arguments ask for one LoRA as it is.
fn dialect(args: &ExportArgs, format: ExportFormat) -> anyhow::Result<Dialect> {
    if args.half {
        bail!("--half is for models (--merge, --format ldm); a LoRA is written in single precision");
    }
    let [LoraArg { path, weight }] = &args.loras[..] else { bail!("--format writes one LoRA; --merge adds several to a model") };
    if *weight != 1.0 {
        bail!("--lora {}:{weight}: --format writes a LoRA as it is; the weight is for --merge and sample", path.display());
    }
    Ok(match format {
        ExportFormat::Kohya => Dialect::Kohya,
        ExportFormat::Diffusers => Dialect::Diffusers,
        ExportFormat::Peft => Dialect::Peft,
        ExportFormat::Ldm => bail!("ldm is a format of whole models"),
    })
}
