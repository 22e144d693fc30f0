//! `command`: a program of one's own, in any language, that is started once.
//!
//! ```text
//! its standard input    {"images": ["<PNG in base64>", …], "prompts": ["…", …]}     a line per batch
//! its standard output   {"scores": [0.25, …]}                                       a line in answer, before the next batch is sent
//! ```
//!
//! Its standard error is the command's own. It ends when its input does; what it has started, and itself if it does not, is killed then.
//! `examples/reward_command.py` is such a program.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use vp_core::config::Validate;
use vp_data::RgbImage;

use crate::pixels::OfPixels;
#[cfg(unix)]
use crate::process_group::ProcessGroup;
use crate::{Build, Error, Result, Reward, ScoredRgb, batch_json};

const NAME: &str = "command";
/// How long a program may take to end once its input has.
const GRACE: Duration = Duration::from_secs(2);
/// How often to check.
const SLICE: Duration = Duration::from_millis(10);

/// Bytes of an answer, at most.
const LONGEST_ANSWER: u64 = 1 << 24;

/// What a program answers, or why it does not.
type Answered<T> = std::result::Result<T, String>;

/// The `[reward.command]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandConfig {
    /// The program and its arguments; it runs in the folder in which the command is run.
    pub program: Vec<String>,
    /// Images per line.
    #[serde(default = "CommandConfig::batch_size")]
    pub batch_size: usize,
    /// Seconds from a line to its answer; the first one waits for the program to be ready too.
    #[serde(default = "CommandConfig::timeout_s")]
    pub timeout_s: f64,
}

impl CommandConfig {
    fn batch_size() -> usize {
        16
    }

    fn timeout_s() -> f64 {
        600.0
    }
}

impl Validate for CommandConfig {
    fn findings(&self, findings: &mut Vec<String>) {
        if self.program.first().is_none_or(|program| program.trim().is_empty()) {
            findings.push(format!("reward.{NAME}.program is empty: expected a program and its arguments, [\"python3\", \"reward.py\"]"));
        }
        if self.batch_size == 0 {
            findings.push(format!("reward.{NAME}.batch_size = 0: expected at least 1"));
        }
        if !(self.timeout_s > 0.0 && self.timeout_s <= 86_400.0) {
            findings.push(format!("reward.{NAME}.timeout_s = {}: expected seconds, above 0", self.timeout_s));
        }
    }
}

impl Build for CommandConfig {
    /// Starts the program.
    fn build(&self, _: &Device) -> Result<Box<dyn Reward>> {
        let failed = |reason: String| Error::NoScores { reward: NAME, reason: format!("{}: {reason}", self.program.join(" ")) };
        let program = Program::start(&self.program).map_err(|error| failed(format!("cannot be started: {error}")))?;
        Ok(Box::new(CommandReward { config: self.clone(), program: Mutex::new(Ok(program)) }))
    }

    fn blank_connection(&mut self) {
        (self.batch_size, self.timeout_s) = (1, 1.0);
    }
}

/// A program that runs, with a thread for each of its pipes: neither side waits for the other to read.
struct Program {
    child: Child,
    /// None once it was ended.
    #[cfg(unix)]
    group: Option<ProcessGroup>,
    /// Closed before it is waited for.
    lines: Option<Sender<String>>,
    answers: Receiver<std::io::Result<String>>,
}

impl Program {
    fn start(words: &[String]) -> std::io::Result<Self> {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A Ctrl-C is for the run, which finishes its batch first.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let (stdin, stdout) = (child.stdin.take().expect("it is piped"), child.stdout.take().expect("it is piped"));
        let ((lines, to_write), (from_read, answers)) = (channel(), sync_channel(1));
        thread::spawn(move || write_lines(stdin, &to_write));
        thread::spawn(move || read_lines(stdout, &from_read));
        Ok(Self {
            #[cfg(unix)]
            group: Some(ProcessGroup::led_by(&child)),
            child,
            lines: Some(lines),
            answers,
        })
    }

    /// Sends a line, and waits for the answer.
    fn ask(&mut self, line: String, timeout: Duration) -> Answered<String> {
        if let Ok(Ok(surplus)) = self.answers.try_recv() {
            let found = batch_json::cut(&surplus);
            return Err(format!("it wrote more lines than it was asked for: {found:?}; one line answers one line"));
        }
        // If the program has gone, the answers tell.
        let _ = self.lines.as_ref().map(|lines| lines.send(line));
        match self.answers.recv_timeout(timeout) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(format!("its answer cannot be read: {error}")),
            Err(RecvTimeoutError::Timeout) => Err(format!("no answer within timeout_s = {} seconds", timeout.as_secs_f64())),
            Err(RecvTimeoutError::Disconnected) => Err(match self.ended() {
                Some(status) => format!("it ended ({status}) before it answered; what it wrote to standard error says why"),
                None => "it closed its standard output before it answered".into(),
            }),
        }
    }

    /// How it ended, if it does so soon.
    fn ended(&mut self) -> Option<ExitStatus> {
        let until = Instant::now() + GRACE;
        while !self.has_ended() {
            if Instant::now() >= until {
                return None;
            }
            thread::sleep(SLICE);
        }
        self.end()
    }

    #[cfg(unix)]
    fn has_ended(&mut self) -> bool {
        self.group.as_ref().is_none_or(ProcessGroup::leader_has_ended)
    }

    #[cfg(not(unix))]
    fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|ended| ended.is_some())
    }

    /// Ends it, and all that it has started.
    fn end(&mut self) -> Option<ExitStatus> {
        #[cfg(unix)]
        if let Some(group) = self.group.take() {
            group.end();
        }
        #[cfg(not(unix))]
        let _ = self.child.kill();
        self.child.wait().ok()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.lines = None;
        if self.ended().is_none() {
            self.end();
        }
    }
}

fn write_lines(mut stdin: ChildStdin, lines: &Receiver<String>) {
    for line in lines {
        if writeln!(stdin, "{line}").and_then(|()| stdin.flush()).is_err() {
            return;
        }
    }
}

/// The program waits while its last answer has not been taken, however much it writes.
fn read_lines(stdout: ChildStdout, answers: &SyncSender<std::io::Result<String>>) {
    let mut reader = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = reader.by_ref().take(LONGEST_ANSWER).read_until(b'\n', &mut line);
        let answer = match read {
            Ok(0) => return,
            Ok(_) if line.len() as u64 == LONGEST_ANSWER => Err(std::io::Error::other("a line of more than 16 MiB")),
            Ok(_) => String::from_utf8(line).map(|line| line.trim_end().into()).map_err(std::io::Error::other),
            Err(error) => Err(error),
        };
        let ends = answer.is_err();
        if answers.send(answer).is_err() || ends {
            return;
        }
    }
}

/// Scores that a program gives.
pub struct CommandReward {
    config: CommandConfig,
    /// `None` once it has failed: what it says after that would answer an earlier line.
    program: Mutex<std::result::Result<Program, String>>,
}

impl CommandReward {
    fn score_batch(&self, program: &mut Program, images: &[RgbImage], prompts: &[String]) -> Answered<Vec<f64>> {
        let line = batch_json::request(images, prompts).to_string();
        let answer = program.ask(line, Duration::from_secs_f64(self.config.timeout_s))?;
        let answer = serde_json::from_str(&answer).map_err(|error| {
            let found = batch_json::cut(&answer);
            format!("expected a line of JSON, found {found:?} ({error}); whatever else it has to say belongs on standard error")
        })?;
        batch_json::scores(&answer, images.len())
    }
}

impl OfPixels for CommandReward {
    const NAME: &'static str = NAME;

    fn score_pixels(&self, images: &[RgbImage], prompts: &[String]) -> Result<ScoredRgb> {
        let mut running = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scores = Vec::with_capacity(images.len());
        for (images, prompts) in images.chunks(self.config.batch_size).zip(prompts.chunks(self.config.batch_size)) {
            let of_batch = match &mut *running {
                Ok(program) => self.score_batch(program, images, prompts),
                Err(reason) => Err(format!("it has failed before: {reason}")),
            };
            scores.extend(of_batch.map_err(|reason| {
                if running.is_ok() {
                    *running = Err(reason.clone());
                }
                Error::NoScores { reward: NAME, reason: format!("{}: {reason}", self.config.program.join(" ")) }
            })?);
        }
        Ok(ScoredRgb { scores, terms: Vec::new() })
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn reward(script: &str, timeout_s: f64) -> Result<Box<dyn Reward>> {
        let program = ["/bin/sh", "-c", script].map(String::from).to_vec();
        CommandConfig { program, batch_size: 2, timeout_s }.build(&Device::flex())
    }

    fn score(reward: &dyn Reward, count: usize) -> Result<Vec<f64>> {
        let images: Vec<RgbImage> = (0..count).map(|level| RgbImage::from_pixel(2, 2, [level as u8; 3].into())).collect();
        Ok(reward.score_rgb(&images, &vec![String::new(); count], &Device::flex())?.scores)
    }

    /// Three images are two lines; the second call finds the same program, which has counted on.
    #[test]
    fn a_program_is_started_once_and_answers_line_by_line() {
        let script = "n=0; while read -r line; do n=$((n + 1)); case $line in *,*,*) echo \"{\\\"scores\\\": [$n, $n]}\";; *) echo \"[$n]\";; esac; done";
        let reward = reward(script, 60.0).unwrap();
        assert_eq!(score(&*reward, 3).unwrap(), [1.0, 1.0, 2.0]);
        assert_eq!(score(&*reward, 1).unwrap(), [3.0]);
    }

    #[test]
    fn what_goes_wrong_names_the_program_and_the_way_out() {
        let told = |script: &str, timeout_s: f64| score(&*reward(script, timeout_s).unwrap(), 1).unwrap_err().to_string();
        let ended = told("read -r line; exit 3", 60.0);
        assert!(
            ended.starts_with("reward command: /bin/sh -c read -r line; exit 3: it ended (exit status: 3) before it answered"),
            "{ended}"
        );
        let chatty = told("echo Loading the model", 60.0);
        assert!(chatty.contains("found \"Loading the model\"") && chatty.contains("belongs on standard error"), "{chatty}");
        let slow = told("sleep 30", 0.2);
        assert!(slow.contains("no answer within timeout_s = 0.2 seconds"), "{slow}");
        let wrong = told("echo '[1, 2]'", 60.0);
        assert!(wrong.contains("with 1 number(s)") && wrong.ends_with("found 2 of them"), "{wrong}");
        let missing = CommandConfig { program: vec!["no/such/program".into()], batch_size: 1, timeout_s: 1.0 };
        let missing = missing.build(&Device::flex()).map(|_| ()).unwrap_err().to_string();
        assert!(missing.starts_with("reward command: no/such/program: cannot be started: "), "{missing}");
    }

    /// Whether it ends by itself when its input does, or not.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_program_has_started_ends_with_it() {
        for then in ["read -r line", "sleep 600"] {
            let reward = reward(&format!("sleep 601 & read -r line; echo \"[$!]\"; {then}"), 60.0).unwrap();
            let pid = score(&*reward, 1).unwrap()[0].to_string();
            // The state stands behind the name, which ends in a bracket; Z is one that has ended and that nobody asked about.
            let state =
                || vp_core::input_file::read_regular_to_string(format!("/proc/{pid}/stat")).ok()?.rsplit_once(") ")?.1.chars().next();
            let is_there = || state().is_some_and(|state| state != 'Z');
            assert!(is_there(), "{pid}");
            drop(reward);
            let until = Instant::now() + Duration::from_secs(10);
            while is_there() && Instant::now() < until {
                thread::sleep(SLICE);
            }
            assert!(!is_there(), "{then}: {pid} is left");
        }
    }

    /// After a failure the answers no longer belong to the questions.
    #[test]
    fn a_program_that_failed_is_not_asked_again() {
        let reward = reward("while read -r line; do echo oops; done", 60.0).unwrap();
        assert!(score(&*reward, 1).unwrap_err().to_string().contains("oops"));
        assert!(score(&*reward, 1).unwrap_err().to_string().contains("it has failed before: expected a line of JSON"));
    }
}
