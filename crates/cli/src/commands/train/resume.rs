//! Going on with a run, and the proof that it changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use burn::tensor::Device;
use vp_core::config;
use vp_core::input_file;
use vp_core::profile::{self, Stage};
use vp_trainers::Error;
use vp_trainers::config::TrainConfig;
use vp_trainers::run::checkpoint::{Checkpoint, Checkpoints, fingerprint};
use vp_trainers::run::export::LORA_FILES;
use vp_trainers::run::{Interrupt, newest_checkpoint};

use super::{Plan, default_output, needs_check, read_config, train};
use crate::args::TrainArgs;
use crate::device;
use crate::failure::Failure;
use crate::terminal::{Options, say, warn};

/// What `--resume` came to.
pub struct Choice {
    pub config: TrainConfig,
    pub output: PathBuf,
    pub resume: Option<Checkpoint>,
    pub folder_exists: bool,
    /// The run is made longer than its folder's config says.
    pub lengthened: bool,
}

/// Which run, which config, from where on.
pub fn choose(args: &TrainArgs, device: &Device) -> anyhow::Result<Choice> {
    let named = args.algo.is_some() || args.run.config.is_some();
    let begin = |config: TrainConfig| {
        let output = args.run.output.clone().unwrap_or_else(|| default_output(config.algo.name()));
        Ok(Choice { config, output, resume: None, folder_exists: false, lengthened: false })
    };
    let Some(folder) = &args.run.resume else { return begin(read_config(args)?) };
    let auto = folder == Path::new("auto");
    let folder = if auto {
        let Some(output) = &args.run.output else { bail!("--resume auto goes on with the run in --output DIR; name it") };
        output
    } else {
        if args.run.output.as_ref().is_some_and(|output| output != folder) {
            bail!("--resume {} goes on in that folder; leave --output away", folder.display());
        }
        folder
    };
    let saved_config = folder.join("config.toml");
    if !saved_config.is_file() {
        if auto {
            return begin(read_config(args)?);
        }
        bail!("--resume {}: no run is there (it has no config.toml)", folder.display());
    }
    // The run's own config, unless another is named, which must then agree with it.
    let config = if named { read_config(args)? } else { config::read(&saved_config, &args.run.overrides)? };
    let mut saved: TrainConfig = config::read(&saved_config, &[])?;
    let lengthened = config.run.num_train_steps > saved.run.num_train_steps;
    if lengthened {
        config.check_lengthening(&saved).with_context(|| format!("cannot make {} longer", folder.display()))?;
        saved.run.num_train_steps = config.run.num_train_steps;
    }
    let differences = config.differences(&serde_json::to_value(&saved).context("read the run's config")?);
    if !differences.is_empty() {
        bail!("cannot resume {} with another config: {}", folder.display(), differences.join("; "));
    }
    let (resume, warnings) = profile::time(Stage::Io, || newest_checkpoint(folder, device));
    warnings.iter().for_each(|line| warn(format_args!("{line}")));
    if resume.is_none() {
        say(format_args!("{} has no checkpoint to go on from; it begins again", folder.display()));
    }
    Ok(Choice { config, output: folder.clone(), resume, folder_exists: true, lengthened })
}

/// `--prove-resume`: the run, and the run stopped in the middle of an accumulation and resumed, compared to the bit.
pub fn prove(args: TrainArgs) -> Result<(), Failure> {
    let config = read_config(&args)?;
    let device = device::parse(&args.run.device)?;
    let output = args.run.output.clone().unwrap_or_else(|| default_output(config.algo.name()));
    let batches = config.run.num_train_steps * config.settings().micro_batches as u64;
    if batches < 2 {
        return Err(anyhow::anyhow!("a run of one batch cannot be stopped half-way; raise run.num_train_steps").into());
    }
    // Off the middle where that is the edge of an update, so that gradients are half added up.
    let middle = batches / 2 + u64::from((batches / 2).is_multiple_of(config.settings().micro_batches as u64));
    let stop_before = middle.min(batches - 1);
    let (options, check_device) = (Options::detect(args.run.quiet), needs_check(&args.run, &device));
    let plan = |name: &str, stop_before, resume, folder_exists| Plan {
        config: config.clone(),
        device: device.clone(),
        device_name: args.run.device.clone(),
        output: output.join(name),
        resume,
        folder_exists,
        lengthened: false,
        interrupt: Interrupt::default(),
        // Once is enough for all three.
        check_device: check_device && name == "uninterrupted",
        stop_before,
        dry_run: false,
        serve: None,
        options,
    };
    train(plan("uninterrupted", None, None, false))?;
    match train(plan("interrupted", Some(stop_before), None, false)) {
        Err(Failure::Run(error)) if matches!(error.downcast_ref(), Some(Error::StoppedForProof { .. })) => {}
        Err(failure) => return Err(failure),
        Ok(_) => return Err(Failure::run(anyhow::anyhow!("the run was to stop before batch {stop_before} and did not"))),
    }
    let (resume, warnings) = newest_checkpoint(&output.join("interrupted"), &device);
    if resume.is_none() || !warnings.is_empty() {
        return Err(Failure::run(anyhow::anyhow!("the checkpoint that was just written does not read back: {}", warnings.join("; "))));
    }
    train(plan("interrupted", None, resume, true))?;
    let (a, b) = (record(&output.join("uninterrupted"))?, record(&output.join("interrupted"))?);
    let differing: Vec<&String> = a.keys().chain(b.keys()).filter(|name| a.get(*name) != b.get(*name)).collect();
    if !differing.is_empty() {
        return Err(Failure::run(anyhow::anyhow!(
            "resuming changed the run: {differing:?} differ between the two in {}",
            output.display()
        )));
    }
    say(format_args!(
        "proved: stopped before batch {stop_before} of {batches} and resumed, all {} files and the metrics are the same",
        a.len() - 1
    ));
    Ok(())
}

/// The checksums of a run's results: model, samples, last checkpoint; and its metrics less the times.
fn record(run: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut record = BTreeMap::new();
    let newest = Checkpoints::of(run).list().into_iter().next().context("a finished run has a checkpoint")?;
    let results = ["model", LORA_FILES[0].0, LORA_FILES[1].0, "samples"].map(|name| (name, run.join(name)));
    for (name, path) in results.into_iter().filter(|(_, path)| path.exists()).chain([("checkpoint", newest)]) {
        record.extend(fingerprint(&path)?.into_iter().map(|(file, sum)| (format!("{name}/{file}"), sum)));
    }
    let metrics = run.join("metrics.jsonl");
    let text = input_file::read_regular_to_string(&metrics).with_context(|| format!("read {}", metrics.display()))?;
    let lines = text.lines().map(|line| {
        let mut line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line)?;
        line.retain(|name, _| !name.contains("second"));
        Ok(serde_json::to_string(&line)?)
    });
    record.insert("metrics.jsonl".into(), lines.collect::<anyhow::Result<Vec<String>>>()?.join("\n"));
    Ok(record)
}
