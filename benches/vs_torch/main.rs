//! What the models, training steps and operations cost.
//!
//!     cargo bench --bench vs_torch [-- FILTER]
//!
//! prints our side alone, each case in a process of its own. `scripts/bench_vs_torch` runs the same cases beside torch's: there this
//! program is a worker (`--worker`) that is told on its standard input, one line each, to `setup` a case, `run` it for some seconds
//! (answered by milliseconds), tell its `peak` memory in KiB and the `vectors` it computes with, and `quit`. What a case is: `docs/reference/performance.md`.

/// The shipped binary's.
#[path = "../../crates/cli/src/allocator.rs"]
mod allocator;
mod models;
mod operations;
mod training;

use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Tensor};

/// Rounds of the table that is printed without a peer.
const ROUNDS: usize = 5;
/// Shortest round, in seconds: what is quicker is repeated.
const SECONDS: f64 = 0.1;

/// Work that is ready to be done, and done again.
type Work = Box<dyn FnMut()>;

/// Something that is timed.
struct Case {
    name: String,
    setup: Box<dyn Fn() -> Work>,
}

impl Case {
    fn new(name: impl Into<String>, setup: impl Fn() -> Work + 'static) -> Self {
        Self { name: name.into(), setup: Box::new(setup) }
    }

    /// A case whose work gives a value, which is kept from being optimised away and dropped within the time, as Python drops its.
    fn of<T: 'static>(name: impl Into<String>, setup: impl Fn() -> Box<dyn FnMut() -> T> + 'static) -> Self {
        Self::new(name, move || {
            let mut work = setup();
            Box::new(move || drop(black_box(work())))
        })
    }
}

fn cases() -> Vec<Case> {
    [models::cases(), training::cases(), operations::cases()].into_iter().flatten().collect()
}

/// Standard normal.
fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median milliseconds of as many repetitions as begin within `seconds`, one at least.
fn round(work: &mut Work, seconds: f64) -> f64 {
    let (began, limit, mut times) = (Instant::now(), Duration::from_secs_f64(seconds), Vec::new());
    while times.is_empty() || began.elapsed() < limit {
        let began = Instant::now();
        work();
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    median(times)
}

/// The most memory that this process ever had resident, in KiB; 0 where the system does not say.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|value| value.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn serve() {
    let (cases, mut work) = (cases(), None);
    for line in std::io::stdin().lines() {
        let line = line.expect("standard input is text");
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("setup", name) => {
                let case = cases.iter().find(|case| case.name == name).unwrap_or_else(|| panic!("no case {name:?}"));
                work = Some((case.setup)());
                println!("ready");
            }
            ("run", seconds) => {
                let work = work.as_mut().expect("setup comes before run");
                println!("{}", round(work, seconds.parse().expect("seconds")));
            }
            ("peak", _) => println!("{}", peak_kib()),
            ("vectors", _) => println!("{}", vp_ops::vector_unit()),
            ("quit", _) => break,
            other => panic!("unknown request {other:?}"),
        }
    }
}

/// This program as a worker, in a process of its own.
struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn start() -> Self {
        let program = std::env::current_exe().expect("the path of this program");
        let mut command = Command::new(program);
        let mut child = command.arg("--worker").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start a worker");
        let (requests, answers) = (child.stdin.take().expect("a pipe"), BufReader::new(child.stdout.take().expect("a pipe")));
        Self { child, requests, answers }
    }

    fn ask(&mut self, request: &str) -> String {
        writeln!(self.requests, "{request}").expect("the worker listens");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the worker answers");
        assert!(!answer.is_empty(), "the worker ended at {request:?}");
        answer.trim().to_string()
    }

    fn quit(mut self) {
        writeln!(self.requests, "quit").expect("the worker listens");
        self.child.wait().expect("the worker ends");
    }
}

fn print_table(filter: &str) {
    println!("{:<44}{:>12}{:>12}", "case", "ms", "peak MiB");
    for case in cases().iter().filter(|case| case.name.contains(filter)) {
        let mut worker = Worker::start();
        worker.ask(&format!("setup {}", case.name));
        let request = format!("run {SECONDS}");
        worker.ask(&request);
        let times = (0..ROUNDS).map(|_| worker.ask(&request).parse().expect("milliseconds")).collect();
        let peak: f64 = worker.ask("peak").parse().expect("KiB");
        println!("{:<44}{:>12.3}{:>12.0}", case.name, median(times), peak / 1024.0);
        worker.quit();
    }
}

fn main() {
    allocator::keep_freed_memory();
    // Cargo tells a benchmark that it is one.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    match arguments.next().as_deref() {
        Some("--worker") => serve(),
        Some("--list") => cases().iter().for_each(|case| println!("{}", case.name)),
        filter => print_table(filter.unwrap_or("")),
    }
}
