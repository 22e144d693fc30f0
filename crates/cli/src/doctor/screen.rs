//! Rows with a label, wrapped to the width of a screen.

use std::fmt::Write;

use vp_core::shown;

/// Columns of a screen.
pub const WIDTH: usize = 100;
/// Columns of a label and the space after it.
const LABEL: usize = 12;

/// Rows, one below the other.
#[derive(Debug, Default)]
pub struct Screen {
    text: String,
}

impl Screen {
    /// Adds a row of at most `most` lines, cut at its end if it is longer; how many lines it took.
    pub fn row(&mut self, label: &str, text: &str, most: usize) -> usize {
        let more = label.chars().count().saturating_sub(LABEL - 1);
        let mut lines = wrapped(text, more);
        if lines.len() > most {
            lines.truncate(most.max(1));
            let room = if lines.len() == 1 { WIDTH - LABEL - more } else { WIDTH - LABEL };
            let last = lines.last_mut().expect("a line is left");
            let kept: String = last.chars().take(room - 2).collect();
            *last = format!("{} …", kept.trim_end());
        }
        for (number, line) in lines.iter().enumerate() {
            let label = if number == 0 { label } else { "" };
            let _ = writeln!(self.text, "{}", format!("{label:<0$} {line}", LABEL - 1).trim_end());
        }
        lines.len()
    }

    /// Adds an empty line.
    pub fn gap(&mut self) {
        self.text.push('\n');
    }

    /// How many lines there are.
    pub fn lines(&self) -> usize {
        self.text.lines().count()
    }

    /// All of it.
    pub fn finish(self) -> String {
        self.text
    }
}

/// `text` in lines that fit behind the label, which takes so many more columns than usual in the first one. Words that are longer lose their
/// middle.
fn wrapped(text: &str, more: usize) -> Vec<String> {
    let width = WIDTH - LABEL;
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in shown::one_line(text).split(' ').filter(|word| !word.is_empty()) {
        let room = if lines.is_empty() { width.saturating_sub(more) } else { width };
        let word = if word.chars().count() > width - more { shown::cut(word, width - more).replace(' ', "") } else { word.to_owned() };
        let length = line.chars().count();
        if length > 0 && length + 1 + word.chars().count() > room {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += &word;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_wrap_behind_their_label_and_are_cut() {
        let mut screen = Screen::default();
        assert_eq!(screen.row("short", "text", 1), 1);
        let words = "word ".repeat(40);
        assert_eq!(screen.row("long", &words, 5), 3);
        assert_eq!(screen.row("cut", &words, 2), 2);
        assert_eq!(screen.row("a path", &format!("in /{}", "x".repeat(300)), 2), 2);
        assert_eq!(screen.row("a label that is long", &words, 5), 3);
        let text = screen.finish();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(lines[0], "short       text");
        assert!(lines[1].starts_with("long        word word") && lines[2].starts_with("            word"), "{text}");
        assert!(lines[5].ends_with("word …"), "{text}");
        assert!(lines[7].contains('…') && lines[7].ends_with('x'), "{text}");
    }
}
