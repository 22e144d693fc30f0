//! `train`: a config to a tuned model.

mod finish;
mod resume;
mod together;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use burn::tensor::Device;
use vp_core::atomic;
use vp_core::config;
use vp_core::profile::{self, Stage};
use vp_core::run_dir::RunDir;
use vp_models::number_format::is_cpu;
use vp_trainers::Error;
use vp_trainers::assembly::{Assembled, Assembly, Outline, assemble};
use vp_trainers::config::TrainConfig;
use vp_trainers::run::attendant::Attendant;
use vp_trainers::run::checkpoint::{Checkpoint, fingerprint};
use vp_trainers::run::journal::{Journal, Silent};
use vp_trainers::run::{Interrupt, Run, Start};

use crate::args::{RunArgs, TrainArgs};
use crate::commands::{doctor, plan as memory_plan};
use crate::device_check::{CASES, Case, Outcome};
use crate::failure::Failure;
use crate::report::{self, provenance};
use crate::terminal::{Options, Terminal, say, say_where_time_went, warn};
use crate::{device, embedded, fault, memory, out_of_memory, presets, ranks, run_failure, serve, signals};

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
    /// The run is made longer than its folder's config says.
    lengthened: bool,
    interrupt: Interrupt,
    /// The device is checked before anything is trained on it.
    check_device: bool,
    stop_before: Option<u64>,
    dry_run: bool,
    /// Where the pages that show the run are served, if they are.
    serve: Option<TcpListener>,
    options: Options,
}

/// The top-level entry point for `train` and `train-reward`.
pub fn run(args: TrainArgs) -> Result<(), Failure> {
    if args.run.prove_resume {
        return match ranks::own_name() {
            Some(_) => {
                Err(anyhow::anyhow!("--prove-resume stops within an update, which several ranks share; start it without a launcher").into())
            }
            None => resume::prove(args),
        };
    }
    let interrupt = Interrupt::default();
    signals::install(&interrupt)?;
    let mut plan = plan(args, interrupt)?;
    together::agree(&mut plan)?;
    let (output, dry_run) = (plan.output.clone(), plan.dry_run);
    let device = plan.device_name.clone();
    if !dry_run {
        fault::note_in(&output);
    }
    let ended = out_of_memory::told(&device, || train(plan).map(|_| ()));
    if !matches!(ended, Err(Failure::Input(_))) && !dry_run && ranks::all().is_first() {
        run_failure::note(&output, &ended);
        profile::time(Stage::Io, || report::conclude(&output));
    }
    if matches!(ended, Ok(()) | Err(Failure::Stopped(..))) {
        say_where_time_went();
    }
    ended
}

/// Trains what the plan says, to the end; the run's folder.
fn train(plan: Plan) -> Result<PathBuf, Failure> {
    let resolve = |path: &Path| embedded::resolve(path).map_err(|error| Error::Config(format!("{error:#}")));
    match assemble(&plan.config, &resolve, &plan.device).map_err(anyhow::Error::from)? {
        Assembly::Reward(assembled) => carry_out(plan, *assembled),
        Assembly::Captions(assembled) => carry_out(plan, *assembled),
        Assembly::Pairs(assembled) => carry_out(plan, *assembled),
        Assembly::Likes(assembled) => carry_out(plan, *assembled),
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
    plan.check_device(CASES)?;
    let Some(mut run) = plan.begin(&assembled, start)? else { return Ok(plan.output) };
    let _attendant = run.ranks.is_first().then(|| Attendant::begin(&plan.output, &plan.interrupt, memory::held));
    if let Some(listener) = plan.serve.take() {
        serve::beside(listener, &plan.output).map_err(Failure::run)?;
    }
    assembled.train(&mut run).map_err(|error| ended(run.secured(error)))?;
    if run.ranks.is_first() {
        let exported = assembled.export(&run).map_err(Failure::run)?;
        finish::finish(&run, &exported, &plan.config);
        plan.note_memory();
    }
    // What the first rank has not written is not done.
    run.ranks.gather(&[]).map_err(Failure::run)?;
    Ok(plan.output)
}

fn plan(args: TrainArgs, interrupt: Interrupt) -> anyhow::Result<Plan> {
    let device = device::parse(&args.run.device)?;
    if args.run.profile {
        profile::start(&device);
    }
    let resume::Choice { config, output, resume, folder_exists, lengthened } = resume::choose(&args, &device)?;
    Ok(Plan {
        config,
        device_name: args.run.device.clone(),
        output,
        resume,
        folder_exists,
        lengthened,
        interrupt,
        check_device: needs_check(&args.run, &device),
        device,
        stop_before: None,
        dry_run: args.run.dry_run,
        serve: args.run.serve.filter(|_| ranks::all().is_first()).map(serve::listen_or_elsewhere).transpose()?,
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

/// Whether the device is to be checked: the CPU's kernels are those that our tests have run.
fn needs_check(args: &RunArgs, device: &Device) -> bool {
    let is_gpu = !is_cpu(device);
    if is_gpu && args.unchecked_device {
        warn(format_args!("--unchecked-device: nothing has shown that {} computes rightly", args.device));
    }
    is_gpu && !args.unchecked_device
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
            ranks: ranks::all(),
        })
    }

    /// The derived arithmetic of the config, unless quiet.
    fn say(&self, arithmetic: &str) {
        if !self.options.quiet {
            say(format_args!("{arithmetic}"));
        }
    }

    /// Refuses a device that computes wrongly, by the quick ones of `cases`. A signal cuts the check short: the run then obeys it.
    fn check_device(&self, cases: &'static [Case]) -> anyhow::Result<()> {
        if !self.check_device || self.dry_run {
            return Ok(());
        }
        let (name, quick) = (&self.device_name, cases.iter().filter(|case| case.quick));
        let count = quick.clone().count();
        self.say(&format!("checking {name}: kernels are tuned for it and {count} small cases computed; the first time this takes minutes"));
        let asked = self.interrupt.flag();
        let outcomes: Vec<Outcome> = quick.take_while(|_| asked.load(Ordering::Relaxed) == 0).map(|case| case.run(&self.device)).collect();
        let Some(worst) = doctor::faults(&outcomes) else { return Ok(()) };
        let (advice, check) = (doctor::ADVICE, format!("visionprefer doctor --check {name}"));
        bail!(
            "device `{name}` computes wrongly: {worst}; nothing was trained. `{check}` shows every case. {advice} --unchecked-device trains anyway"
        )
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
            if let Some(planned) = memory_plan::in_short(&self.config, &self.device_name) {
                say(format_args!("{planned}"));
            }
            say(format_args!("would train {values} values ({what_trains}) into {output}; nothing was trained (--dry-run)"));
            return Ok(None);
        }
        let resumed_at = start.resume.as_ref().map(|checkpoint| checkpoint.state.cursor.step);
        let base = start.base.clone();
        let writes = start.ranks.is_first();
        let journal = |bytes| match writes {
            true => self.check_disk(bytes, export_bytes).and_then(|()| self.journal(resumed_at)),
            false => Ok(Journal::of_another_rank(&self.output, Silent)),
        };
        let mut run = Run::new(model, settings, start, journal).map_err(anyhow::Error::from)?;
        if writes {
            provenance::note(&self.output, &self.device_name, &base, resumed_at).map_err(Failure::run)?;
        }
        let began = resumed_at.map_or_else(String::new, |step| format!(", from step {step} on"));
        run.journal.say(format_args!("training {} values ({what_trains}), into {}{began}", run.num_trainable, self.output.display()));
        run.journal.begin(self.config.run.num_train_steps);
        Ok(Some(run))
    }

    /// Notes in the run's folder what memory it took, and what was planned for it.
    fn note_memory(&self) {
        let Some(peak) = memory::peak() else { return };
        let planned = memory_plan::peak(&self.config, &self.device_name);
        if let Err(error) = provenance::note_memory(&self.output, peak, planned) {
            warn(format_args!("the run's peak memory is not noted: {error:#}"));
        }
    }

    /// Opens or creates the run's folder.
    fn journal(&self, resumed_at: Option<u64>) -> Result<Journal, Error> {
        let resolved = toml::to_string(&self.config).expect("a config that was read from TOML is TOML");
        let voice = Terminal::new(self.options);
        let journal = match resumed_at {
            _ if !self.folder_exists => Journal::new(RunDir::create(&self.output, &resolved)?, voice),
            Some(step) => Journal::resume(&self.output, step, voice)?,
            None => Journal::restart(&self.output, voice)?,
        };
        if self.lengthened {
            // Whoever resumes it next goes on to the new end.
            let path = self.output.join("config.toml");
            atomic::write(&path, resolved.as_bytes()).map_err(|source| Error::Io { path: path.display().to_string(), source })?;
        }
        Ok(journal)
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};
    use crate::device_check::tests::faulty;

    fn plan_of(words: &[&str]) -> Plan {
        let words = ["visionprefer", "train", "--algo", "refl", "--quiet"].iter().chain(words);
        let Command::Train(args) = Args::parse_from(words).command else { panic!("train") };
        plan(args, Interrupt::default()).unwrap()
    }

    #[test]
    fn a_device_that_computes_wrongly_is_refused_before_anything_is_trained() {
        let plan = Plan { check_device: true, device_name: "vulkan".into(), ..plan_of(&[]) };
        plan.check_device(&faulty::CASES[..1]).unwrap();
        let told = plan.check_device(faulty::CASES).unwrap_err().to_string();
        assert!(told.starts_with("device `vulkan` computes wrongly: `matmul 64x96 by 96x80` deviates by "), "{told}");
        assert!(told.contains("visionprefer doctor --check vulkan") && told.contains("--unchecked-device trains anyway"), "{told}");
        // Somebody asked the run to stop meanwhile: it does that itself, after a checkpoint.
        plan.interrupt.flag().store(15, Ordering::Relaxed);
        plan.check_device(faulty::CASES).unwrap();
    }

    #[test]
    fn the_cpu_is_not_checked() {
        assert!(!plan_of(&[]).check_device);
        plan_of(&["--unchecked-device"]).check_device(faulty::CASES).unwrap();
    }
}
