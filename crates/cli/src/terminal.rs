//! The terminal: plain lines for files and pipes, one bar where somebody watches.

use std::ffi::OsString;
use std::fmt::Arguments;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How much is said, and on what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// Warnings, errors and conclusions only.
    pub quiet: bool,
    /// Somebody watches: one bar instead of a line an update.
    pub live: bool,
    /// The bar may have colour.
    pub color: bool,
}

impl Options {
    /// What this process's standard output, standard error and environment ask for: a bar when both are terminals and `TERM` is not
    /// `dumb`; colour unless `NO_COLOR` is set (<https://no-color.org>).
    pub fn detect(quiet: bool) -> Self {
        let terminals = std::io::stdout().is_terminal() && std::io::stderr().is_terminal();
        Self::judge(quiet, terminals, |name| std::env::var_os(name))
    }

    fn judge(quiet: bool, terminals: bool, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let live = terminals && variable("TERM").is_none_or(|term| term != "dumb");
        Self { quiet, live, color: live && variable("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }
}

/// Says lines and shows how far things are. The bar is on standard error, lines are on standard output and do not tear it.
#[derive(Debug)]
pub struct Progress {
    options: Options,
    bar: ProgressBar,
    began: Instant,
    from: u64,
}

impl Progress {
    /// Nothing is shown before [`Progress::begin`].
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

    /// Shows the bar of `of` things called `what`, `done` of them behind us.
    pub fn begin(&mut self, what: &'static str, done: u64, of: u64) {
        // Narrow enough for loss, reward and speed to be seen in 80 columns.
        let template = match self.options.color {
            true => "{spinner} {prefix:.bold} {pos}/{len} [{bar:8.cyan}]{wide_msg}",
            false => "{spinner} {prefix} {pos}/{len} [{bar:8}]{wide_msg}",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        (self.began, self.from) = (Instant::now(), done);
        self.bar.set_style(style.progress_chars("=> ").tick_chars("|/-\\ "));
        self.bar.set_length(of);
        self.bar.set_prefix(what);
        self.bar.reset();
        self.bar.set_position(done);
        // A step can take minutes; the spinner shows that it is alive.
        self.bar.enable_steady_tick(Duration::from_secs(1));
    }

    /// Whether work has begun and not finished.
    pub fn under_way(&self) -> bool {
        !self.bar.is_finished()
    }

    /// `done` things are behind us; `note` is what there is to say about the last one.
    pub fn advance(&mut self, done: u64, note: &str) {
        let remaining = self.bar.length().unwrap_or(0).saturating_sub(done);
        let eta = self.began.elapsed().div_f64(done.saturating_sub(self.from).max(1) as f64).mul_f64(remaining as f64);
        self.bar.set_position(done);
        self.bar.set_message(format!(" ETA {}  {note}", clock(eta)));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Whether a bar stands for the lines of single updates.
    pub fn live(&self) -> bool {
        self.options.live
    }

    /// One line, unless quiet.
    pub fn say(&self, line: Arguments<'_>) {
        if !self.options.quiet {
            self.bar.suspend(|| say(line));
        }
    }

    /// One line of what all was for, quiet or not.
    pub fn conclude(&self, line: Arguments<'_>) {
        self.finish();
        say(line);
    }

    /// One line on standard error, quiet or not.
    pub fn warn(&self, line: Arguments<'_>) {
        self.bar.suspend(|| warn(line));
    }
}

/// One line on standard output. A reader that went away (`| head`) is no reason to lose a run.
pub fn say(line: Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// One line on standard error, with `warning: ` before it.
pub fn warn(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "warning: {line}");
}

/// `m:ss`, or `h:mm:ss`.
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;

    use super::*;

    /// A terminal that keeps what is written, one entry a piece.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<Vec<String>>>);

    impl Screen {
        fn push(&self, piece: &str) -> std::io::Result<()> {
            self.0.lock().unwrap().push(piece.to_string());
            Ok(())
        }

        fn text(&self) -> String {
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

    fn progress(options: Options) -> (Progress, Screen) {
        let screen = Screen::default();
        (Progress::on(ProgressDrawTarget::term_like(Box::new(screen.clone())), options), screen)
    }

    #[test]
    fn a_bar_needs_a_terminal_and_colour_needs_leave() {
        let judge = |terminals, variables: &[(&str, &str)]| {
            let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
            let options = Options::judge(false, terminals, find);
            (options.live, options.color)
        };
        assert_eq!(judge(true, &[("TERM", "xterm")]), (true, true));
        assert_eq!(judge(true, &[]), (true, true));
        assert_eq!(judge(true, &[("TERM", "xterm"), ("NO_COLOR", "1")]), (true, false));
        assert_eq!(judge(true, &[("NO_COLOR", "")]), (true, true));
        assert_eq!(judge(true, &[("TERM", "dumb")]), (false, false));
        assert_eq!(judge(false, &[("TERM", "xterm")]), (false, false));
    }

    #[test]
    fn the_bar_counts_on_and_goes_away_for_a_line() {
        let (mut progress, screen) = progress(Options { live: true, ..Options::default() });
        progress.say(format_args!("before the bar"));
        assert_eq!(screen.text(), "");
        progress.begin("update", 5, 10);
        assert!(progress.under_way());
        assert!(screen.text().contains("update 5/10 [====>   ]"), "{}", screen.text());
        progress.advance(6, "loss 0.5000");
        assert!(screen.text().contains("update 6/10 [====>   ] ETA 0:00  loss 0.5000"), "{}", screen.text());
        let drawn = screen.0.lock().unwrap().len();
        progress.say(format_args!("a line"));
        let pieces = screen.0.lock().unwrap().clone();
        assert_eq!(pieces[drawn], "<clear>");
        assert!(pieces[drawn..].concat().contains("update 6/10"), "drawn again after the line");
        progress.finish();
        assert!(!progress.under_way());
        assert_eq!(screen.0.lock().unwrap().last().unwrap(), "<clear>");
    }

    #[test]
    fn no_bar_when_quiet_or_when_nobody_watches() {
        for options in [Options { quiet: true, live: true, color: true }, Options::default()] {
            let (mut progress, screen) = progress(options);
            progress.begin("image", 0, 2);
            progress.advance(1, "");
            progress.warn(format_args!("a test's own warning"));
            progress.finish();
            assert_eq!(screen.text(), "");
        }
    }

    #[test]
    fn a_clock() {
        let shown: Vec<String> = [0.4, 59.6, 3725.0, 360_000.0].into_iter().map(|s| clock(Duration::from_secs_f64(s))).collect();
        assert_eq!(shown, ["0:00", "1:00", "1:02:05", "100:00:00"]);
    }
}
