//! The only place that writes to standard output and standard error: plain lines for files and pipes, and one progress bar where somebody
//! watches. What a terminal would obey is escaped here, for names and texts from files and servers may hold it.

use std::ffi::OsString;
use std::fmt::Arguments;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vp_core::{profile, shown};
use vp_trainers::run::journal::{Voice, clock};

use crate::{closed_output, ranks};

/// The longest line of a warning or an error, in characters: what a message quotes may be of any length.
const LONGEST_LINE: usize = 500;

/// Prints `text` to standard output, for commands whose output is the point.
///
/// # Errors
/// [`Unwritten`] when the output cannot be written, as on a full disk. A reader that went away (`| head`) is not an error.
pub fn print(text: &str) -> anyhow::Result<()> {
    write_out(&shown::lines(text))
}

/// Prints JSON to standard output: as [`print`], but escaped as JSON is, so that it means the same.
///
/// # Errors
/// As [`print`].
pub fn print_json(json: &str) -> anyhow::Result<()> {
    write_out(&shown::json(json))
}

/// What this process does not say, because another rank of its command says it.
static LEFT: AtomicU8 = AtomicU8::new(NOTHING);
const NOTHING: u8 = 0;
const NEWS: u8 = 1;
const ALL: u8 = 2;

/// From now on only errors are told: another rank tells the rest.
pub fn leave_news_to_another() {
    LEFT.store(NEWS, Ordering::Relaxed);
}

/// From now on nothing is told.
pub fn leave_all_to_another() {
    LEFT.store(ALL, Ordering::Relaxed);
}

fn is_left(what: u8) -> bool {
    LEFT.load(Ordering::Relaxed) >= what
}

fn write_out(text: &str) -> anyhow::Result<()> {
    if is_left(NEWS) {
        return Ok(());
    }
    let write = || {
        let mut out = std::io::stdout().lock();
        closed_output::check().and_then(|()| out.write_all(text.as_bytes())).and_then(|()| out.flush())
    };
    match around_the_bar(write) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Unwritten(error).into()),
        _ => Ok(()),
    }
}

/// What was to be told on standard output is lost.
#[derive(Debug)]
pub struct Unwritten(std::io::Error);

impl std::fmt::Display for Unwritten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for Unwritten {}

/// The first line of [`say`] that was lost.
static LOST: Mutex<Option<Unwritten>> = Mutex::new(None);

/// One line on standard output that tells how a command is going. A full disk is not a reason to lose the work: [`finish`] tells of it. A
/// reader that went away (`| head`) is none at all.
pub fn say(line: Arguments<'_>) {
    if is_left(NEWS) {
        return;
    }
    remember(around_the_bar(|| closed_output::check().and_then(|()| writeln!(std::io::stdout(), "{}", shown::lines(&line.to_string())))));
}

/// Ends the output of a command.
///
/// # Errors
/// [`Unwritten`] when something that was said could not be written.
pub fn finish() -> Result<(), Unwritten> {
    remember(std::io::stdout().flush());
    LOST.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
}

/// Keeps the error of something that was written to standard output for [`finish`].
pub fn remember(written: std::io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        LOST.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(Unwritten(error));
    }
}

/// One line on standard error, with `warning: ` before it.
pub fn warn(line: Arguments<'_>) {
    if !is_left(NEWS) {
        complain("warning", line);
    }
}

/// Warns of the first `shown` of many problems, and says how many `more` there are.
pub fn warn_of_some(warnings: impl Iterator<Item = String>, shown: usize, more: &str) {
    let warnings: Vec<String> = warnings.collect();
    warnings.iter().take(shown).for_each(|warning| warn(format_args!("{warning}")));
    if warnings.len() > shown {
        warn(format_args!("… and {} {more}", warnings.len() - shown));
    }
}

/// One message on standard error, with a label before it. A closed pipe must not turn an exit code into a panic.
pub fn complain(label: &str, line: Arguments<'_>) {
    if is_left(ALL) {
        return;
    }
    let line = match ranks::own_name().filter(|_| is_left(NEWS)) {
        Some(name) => format!("{name}: {line}"),
        None => line.to_string(),
    };
    let _ = around_the_bar(|| writeln!(std::io::stderr(), "{}", told(label, &line)));
}

/// A plain line of news on standard error. A closed pipe does not end the program.
pub fn tell(line: &str) {
    if is_left(NEWS) {
        return;
    }
    let _ = writeln!(std::io::stderr(), "{}", shown::lines(line));
}

/// The bar of a [`crate::progress::Progress`] that is on the screen.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Lets lines that are written go around a bar; whether it is the only one. There is room for one.
pub fn show(bar: &ProgressBar) -> bool {
    let mut shown = BAR.lock().unwrap_or_else(PoisonError::into_inner);
    if shown.is_some() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
        return false;
    }
    *shown = Some(bar.clone());
    true
}

/// The bar that was shown is gone.
pub fn hide() {
    *BAR.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Writes while the bar, if there is one, is off the screen.
fn around_the_bar<T>(write: impl FnOnce() -> T) -> T {
    let bar = BAR.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// A message with its label, each line of which is fit to be shown.
fn told(label: &str, message: &str) -> String {
    let message = format!("{label}: {message}");
    shown::lines(&message).lines().map(|line| shown::cut(line, LONGEST_LINE)).collect::<Vec<_>>().join("\n")
}

/// With `--profile`, where the time went.
pub fn say_where_time_went() {
    if let Some(breakdown) = profile::stop() {
        say(format_args!("{breakdown}"));
    }
}

/// How much is said, and on what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Warnings, errors and conclusions only.
    pub quiet: bool,
    /// Somebody watches: one bar instead of a line per update.
    pub live: bool,
    /// The bar may have colour.
    pub color: bool,
}

impl Options {
    /// What this process's standard output, standard error and environment ask for: a bar when both are terminals and `TERM` is not
    /// `dumb`; colour unless `NO_COLOR` is set (<https://no-color.org>).
    pub fn detect(quiet: bool) -> Self {
        let terminals = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        Self::choose(quiet, terminals, |name| std::env::var_os(name))
    }

    /// As [`detect`](Self::detect), for bars of commands whose standard output is their result and may go elsewhere.
    pub fn on_standard_error(quiet: bool) -> Self {
        Self::choose(quiet, std::io::stderr().is_terminal(), |name| std::env::var_os(name))
    }

    fn choose(quiet: bool, terminals: bool, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let live = terminals && variable("TERM").is_none_or(|term| term != "dumb");
        Self { quiet, live, color: live && variable("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }
}

/// Tells how a run is going. The bar is on standard error, lines are on standard output and do not tear it.
#[derive(Debug)]
pub struct Terminal {
    options: Options,
    bar: ProgressBar,
    began: Instant,
    from: u64,
}

impl Terminal {
    /// Nothing is shown before [`Voice::begin`].
    pub fn new(options: Options) -> Self {
        Self::on(ProgressDrawTarget::stderr(), options)
    }

    fn on(target: ProgressDrawTarget, options: Options) -> Self {
        let target = if options.live && !options.quiet { target } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        // Until work begins there is nothing to draw again after a line.
        bar.finish_and_clear();
        Self { options, bar, began: Instant::now(), from: 0 }
    }

    /// Shows the bar of `of` updates, `done` of which are behind us.
    fn show(&mut self, done: u64, of: u64) {
        // Narrow enough for loss, reward and speed to be seen in 80 columns.
        let template = match self.options.color {
            true => "{spinner} {prefix:.bold} {pos}/{len} [{bar:8.cyan}]{wide_msg}",
            false => "{spinner} {prefix} {pos}/{len} [{bar:8}]{wide_msg}",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        (self.began, self.from) = (Instant::now(), done);
        self.bar.set_style(style.progress_chars("=> ").tick_chars("|/-\\ "));
        self.bar.set_length(of);
        self.bar.set_prefix("update");
        self.bar.reset();
        self.bar.set_position(done);
        // An update can take minutes; the spinner shows that it is alive.
        self.bar.enable_steady_tick(Duration::from_secs(1));
    }
}

impl Voice for Terminal {
    /// On standard output, unless quiet.
    fn say(&self, line: Arguments<'_>) {
        if !self.options.quiet {
            self.bar.suspend(|| say(line));
        }
    }

    /// On standard error, quiet or not.
    fn warn(&self, line: Arguments<'_>) {
        self.bar.suspend(|| warn(line));
    }

    /// On standard output, quiet or not.
    fn conclude(&self, line: Arguments<'_>) {
        self.finish();
        say(line);
    }

    fn shows_progress(&self) -> bool {
        self.options.live
    }

    fn begin(&mut self, done: u64, of: u64) {
        self.show(done, of);
    }

    fn advance(&mut self, done: u64, of: u64, note: &str) {
        if self.bar.is_finished() {
            self.show(done.saturating_sub(1), of);
        }
        let remaining = of.saturating_sub(done);
        let eta = self.began.elapsed().div_f64(done.saturating_sub(self.from).max(1) as f64).mul_f64(remaining as f64);
        self.bar.set_position(done);
        self.bar.set_message(format!(" ETA {}  {note}", clock(eta)));
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
pub mod tests {
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;

    use super::*;

    /// A terminal that keeps what is written, one entry per piece.
    #[derive(Debug, Clone, Default)]
    pub struct Screen(Arc<Mutex<Vec<String>>>);

    impl Screen {
        fn push(&self, piece: &str) -> std::io::Result<()> {
            self.0.lock().unwrap().push(piece.to_string());
            Ok(())
        }

        /// All of it.
        pub fn text(&self) -> String {
            self.0.lock().unwrap().concat()
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            100
        }
        fn move_cursor_up(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> std::io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> std::io::Result<()> {
            self.push(&format!("{text}\n"))
        }
        fn write_str(&self, text: &str) -> std::io::Result<()> {
            self.push(text)
        }
        fn clear_line(&self) -> std::io::Result<()> {
            self.push("<clear>")
        }
        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn terminal(options: Options) -> (Terminal, Screen) {
        let screen = Screen::default();
        (Terminal::on(ProgressDrawTarget::term_like(Box::new(screen.clone())), options), screen)
    }

    #[test]
    fn a_message_shows_what_a_terminal_would_obey_and_cuts_long_lines() {
        assert_eq!(told("error", "a\u{1b}[2J\n  \u{202e}b\n"), "error: a\\u{1b}[2J\n  \\u{202e}b");
        let long = told("warning", &format!("p.tsv: {}; the way out\nshort", "x".repeat(90_000)));
        let lines: Vec<&str> = long.lines().collect();
        assert!(
            lines[0].starts_with("warning: p.tsv: xxx") && lines[0].ends_with("xxx; the way out") && lines[0].chars().count() == 500,
            "{long}"
        );
        assert_eq!(lines[1], "short");
    }

    #[test]
    fn a_bar_needs_a_terminal_and_colour_needs_leave() {
        let chosen = |terminals, variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
            let options = Options::choose(false, terminals, find);
            (options.live, options.color)
        };
        assert_eq!(chosen(true, &[("TERM", "xterm")]), (true, true));
        assert_eq!(chosen(true, &[]), (true, true));
        assert_eq!(chosen(true, &[("TERM", "xterm"), ("NO_COLOR", "1")]), (true, false));
        assert_eq!(chosen(true, &[("NO_COLOR", "")]), (true, true));
        assert_eq!(chosen(true, &[("TERM", "dumb")]), (false, false));
        assert_eq!(chosen(false, &[("TERM", "xterm")]), (false, false));
    }

    #[test]
    fn the_bar_counts_on_and_goes_away_for_a_line() {
        let (mut terminal, screen) = terminal(Options { live: true, ..Options::default() });
        terminal.say(format_args!("before the bar"));
        assert_eq!(screen.text(), "");
        terminal.begin(5, 10);
        assert!(!terminal.bar.is_finished());
        assert!(screen.text().contains("update 5/10 [====>   ]"), "{}", screen.text());
        terminal.advance(6, 10, "loss 0.5000");
        assert!(screen.text().contains("update 6/10 [====>   ] ETA 0:00  loss 0.5000"), "{}", screen.text());
        let drawn = screen.0.lock().unwrap().len();
        terminal.say(format_args!("a line"));
        let pieces = screen.0.lock().unwrap().clone();
        assert_eq!(pieces[drawn], "<clear>");
        assert!(pieces[drawn..].concat().contains("update 6/10"), "drawn again after the line");
        terminal.finish();
        assert!(terminal.bar.is_finished());
        assert_eq!(screen.0.lock().unwrap().last().unwrap(), "<clear>");
    }

    #[test]
    fn no_bar_when_quiet_or_when_nobody_watches() {
        for options in [Options { quiet: true, live: true, color: true }, Options::default()] {
            let (mut terminal, screen) = terminal(options);
            terminal.begin(0, 2);
            terminal.advance(1, 2, "");
            terminal.warn(format_args!("a test's own warning"));
            terminal.finish();
            assert_eq!(screen.text(), "");
        }
    }
}
