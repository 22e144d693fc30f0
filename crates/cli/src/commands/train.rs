//! `train`: a config to a tuned model.

mod finish;
mod resume;

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use burn::tensor::Device;
use vp_core::config;
use vp_core::profile::{self, Stage};
use vp_core::run_dir::RunDir;
use vp_models::number_format::is_cpu;
use vp_trainers::Error;
use vp_trainers::assembly::{Assembled, Assembly, Outline, assemble};
use vp_trainers::config::TrainConfig;
use vp_trainers::run::checkpoint::{Checkpoint, fingerprint};
use vp_trainers::run::journal::{Journal, Silent};
use vp_trainers::run::{Interrupt, Run, Start};

use crate::args::TrainArgs;
use crate::failure::Failure;
use crate::report::{self, provenance};
use crate::terminal::{Options, Terminal, say, say_where_time_went, warn};
use crate::{device, device_check, embedded, out_of_memory, presets, signals};

/// What is to be trained, where, and from where on.
struct Plan {
    config: TrainConfig,
    device: Device,
    /// As it was typed.
    device_name: String,
    output: PathBuf,
    resume: Option<Checkpoint>,
    /// The run's folder is there already.
    folder_exists: bool,
    interrupt: Interrupt,
    stop_before: Option<u64>,
    dry_run: bool,
    options: Options,
}

/// The top-level entry point for `train` and `train-reward`.
pub fn run(args: TrainArgs) -> Result<(), Failure> {
    if args.run.prove_resume {
        return resume::prove(args);
    }
    let interrupt = Interrupt::default();
    signals::install(&interrupt)?;
    let unchecked = args.run.unchecked_device;
    let plan = plan(args, interrupt)?;
    check_device(&plan, unchecked)?;
    let (output, dry_run) = (plan.output.clone(), plan.dry_run);
    let device = plan.device_name.clone();
    let ended = out_of_memory::told(&device, || train(plan).map(|_| ()));
    if !matches!(ended, Err(Failure::Input(_))) && !dry_run {
        profile::time(Stage::Io, || report::conclude(&output));
    }
    if matches!(ended, Ok(()) | Err(Failure::Stopped(..))) {
        say_where_time_went();
    }
    ended
}

/// Refuses a GPU that computes wrongly, unless it is to be used all the same.
fn check_device(plan: &Plan, unchecked: bool) -> Result<(), Failure> {
    if is_cpu(&plan.device) || plan.dry_run {
        return Ok(());
    }
    let name = &plan.device_name;
    plan.say(&format!("checking {name}; the first time, its kernels are compiled and tuned, which takes minutes"));
    match device_check::first_fault(&plan.device) {
        None => Ok(()),
        Some(fault) if unchecked => {
            warn(format_args!("{name} computes wrongly: {fault}"));
            Ok(())
        }
        Some(fault) => {
            Err(anyhow!("{name} computes wrongly: {fault}; {}; --unchecked-device trains all the same", device_check::WAY_OUT).into())
        }
    }
}

/// Trains what the plan says, to the end; the run's folder.
fn train(plan: Plan) -> Result<PathBuf, Failure> {
    let resolve = |path: &Path| embedded::resolve(path).map_err(|error| Error::Config(format!("{error:#}")));
    match assemble(&plan.config, &resolve, &plan.device).map_err(anyhow::Error::from)? {
        Assembly::Reward(assembled) => carry_out(plan, *assembled),
        Assembly::Captions(assembled) => carry_out(plan, *assembled),
        Assembly::Pairs(assembled) => carry_out(plan, *assembled),
        Assembly::Autoencoder(assembled) => carry_out(plan, *assembled),
        Assembly::Blip(assembled) => carry_out(plan, *assembled),
        Assembly::Clip(assembled) => carry_out(plan, *assembled),
    }
}

/// Trains what was assembled, to the end, and exports it; the run's folder.
fn carry_out<A: Assembled>(mut plan: Plan, mut assembled: A) -> Result<PathBuf, Failure> {
    assembled.outline().warnings.iter().for_each(|warning| warn(format_args!("{warning}")));
    let start = plan.start(assembled.outline())?;
    plan.say(&assembled.outline().arithmetic);
    let Some(mut run) = plan.begin(&assembled, start)? else { return Ok(plan.output) };
    assembled.train(&mut run).map_err(ended)?;
    let exported = assembled.export(&run).map_err(Failure::run)?;
    finish::finish(&run, &exported, &plan.config);
    Ok(plan.output)
}

fn plan(args: TrainArgs, interrupt: Interrupt) -> anyhow::Result<Plan> {
    let device = device::parse(&args.run.device)?;
    if args.run.profile {
        profile::start(&device);
    }
    let resume::Choice { config, output, resume, folder_exists } = resume::choose(&args, &device)?;
    Ok(Plan {
        config,
        device,
        device_name: args.run.device,
        output,
        resume,
        folder_exists,
        interrupt,
        stop_before: None,
        dry_run: args.run.dry_run,
        options: Options::detect(args.run.quiet),
    })
}

/// The config that the arguments name.
fn read_config(args: &TrainArgs) -> anyhow::Result<TrainConfig> {
    if let Some(algo) = &args.algo {
        presets::check_algo(algo).with_context(|| format!("--algo {algo}"))?;
    }
    let config: TrainConfig = match (&args.run.config, &args.algo) {
        (Some(path), _) => config::read(path, &args.run.overrides)?,
        (None, Some(algo)) => {
            let preset = presets::default_of(algo);
            config::parse(preset.text, preset.path, &args.run.overrides)?
        }
        (None, None) => bail!("expected --algo NAME or --config FILE"),
    };
    match &args.algo {
        Some(algo) if algo != config.algo.name() => bail!("--algo {algo}, but the config has [algo.{}]", config.algo.name()),
        _ => Ok(config),
    }
}

fn default_output(algo: &str) -> PathBuf {
    PathBuf::from(format!("runs/{algo}-{}", jiff::Zoned::now().strftime("%Y-%m-%d-%H%M%S")))
}

impl Plan {
    /// How the run begins. What it starts from must have the checksums that the checkpoint names.
    fn start(&mut self, outline: &Outline) -> anyhow::Result<Start> {
        let (files, mut base) = (&outline.files, outline.lists.clone());
        for (i, path) in files.iter().enumerate() {
            let namesakes = files[..i].iter().filter(|other| other.file_name() == path.file_name()).count();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let prefix = if namesakes == 0 { name.into_owned() } else { format!("{name} ({})", namesakes + 1) };
            base.extend(profile::time(Stage::Io, || fingerprint(path))?.into_iter().map(|(name, sum)| (format!("{prefix}/{name}"), sum)));
        }
        if let Some(checkpoint) = &self.resume {
            let saved = &checkpoint.state.base;
            let names: std::collections::BTreeSet<&String> = base.keys().chain(saved.keys()).collect();
            if let Some(name) = names.into_iter().find(|name| base.get(*name) != saved.get(*name)) {
                bail!("cannot resume {}: {name} is not what the run was started from (its checksum differs)", self.output.display());
            }
        }
        Ok(Start {
            config: serde_json::to_value(&self.config).context("write the config")?,
            base,
            resume: self.resume.take(),
            interrupt: self.interrupt.clone(),
            stop_before: self.stop_before,
            memory_bytes: outline.memory_bytes,
        })
    }

    /// The derived arithmetic of the config, unless quiet.
    fn say(&self, arithmetic: &str) {
        if !self.options.quiet {
            say(format_args!("{arithmetic}"));
        }
    }

    /// The run, ready to train what was assembled; `None` where nothing is to be trained but everything that could be refused was.
    fn begin<A: Assembled>(&self, assembled: &A, start: Start) -> Result<Option<Run<A::Model>>, Failure> {
        let Outline { settings, what_trains, export_bytes, .. } = assembled.outline();
        let (model, settings, export_bytes) = (assembled.model(), settings.clone(), *export_bytes);
        if self.dry_run {
            let scratch = std::env::temp_dir().join(format!("visionprefer-dry-run-{}", std::process::id()));
            let journal = |bytes| {
                self.check_disk(bytes, export_bytes)?;
                Ok(Journal::new(RunDir::create(&scratch, "")?, Silent))
            };
            let run = Run::new(model, settings, start, journal).map_err(anyhow::Error::from);
            let _ = std::fs::remove_dir_all(&scratch);
            let (values, output) = (run?.num_trainable, self.output.display());
            say(format_args!("would train {values} values ({what_trains}) into {output}; nothing was trained (--dry-run)"));
            return Ok(None);
        }
        let resumed_at = start.resume.as_ref().map(|checkpoint| checkpoint.state.cursor.step);
        let base = start.base.clone();
        let journal = |bytes| self.check_disk(bytes, export_bytes).and_then(|()| self.journal(resumed_at));
        let mut run = Run::new(model, settings, start, journal).map_err(anyhow::Error::from)?;
        provenance::note(&self.output, &self.device_name, &base, resumed_at).map_err(Failure::run)?;
        let began = resumed_at.map_or_else(String::new, |step| format!(", from step {step} on"));
        run.journal.say(format_args!("training {} values ({what_trains}), into {}{began}", run.num_trainable, self.output.display()));
        run.journal.begin(self.config.run.num_train_steps);
        Ok(Some(run))
    }

    /// Opens or creates the run's folder.
    fn journal(&self, resumed_at: Option<u64>) -> Result<Journal, Error> {
        if self.folder_exists {
            return match resumed_at {
                Some(step) => Journal::resume(&self.output, step, Terminal::new(self.options)),
                None => Journal::restart(&self.output, Terminal::new(self.options)),
            };
        }
        let resolved = toml::to_string(&self.config).expect("a config that was read from TOML is TOML");
        Ok(Journal::new(RunDir::create(&self.output, &resolved)?, Terminal::new(self.options)))
    }

    /// Refuses to start what the disk cannot hold.
    fn check_disk(&self, checkpoint_bytes: u64, export_bytes: u64) -> Result<(), Error> {
        let parent = self.output.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
        let io = |source| Error::Io { path: parent.display().to_string(), source };
        let free = fs4::available_space(parent).map_err(io)?;
        // Those kept, the best, and the one being written.
        let kept = self.config.checkpoint.keep_last as u64 + 2;
        let needed = kept * checkpoint_bytes + 2 * export_bytes;
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let parts = format!("{kept} checkpoints of {} MiB, the tuned model of {} MiB twice", mib(checkpoint_bytes), mib(export_bytes));
        if needed > free {
            let (place, way_out) = (parent.display(), "free some, or lower checkpoint.keep_last");
            return Err(Error::Config(format!("{place} has {} MiB free, this run needs {} ({parts}): {way_out}", mib(free), mib(needed))));
        }
        if self.dry_run {
            say(format_args!("disk: needs {} MiB of {} MiB free ({parts})", mib(needed), mib(free)));
        }
        Ok(())
    }
}

/// How a run that did not reach its end ends.
fn ended(error: Error) -> Failure {
    match error {
        Error::Interrupted { signal, .. } => Failure::Stopped(signal, error.into()),
        Error::Sentinel { .. } => Failure::Halted(error.into()),
        error => Failure::run(error),
    }
}
