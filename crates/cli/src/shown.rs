//! Text from files and servers, made fit for a terminal.

use std::borrow::Cow;
use std::fmt::Write;

/// The longest line that is shown, in characters.
const LONGEST: usize = 500;

/// Whether a character acts on a terminal instead of being shown: control characters, less the line's end and the tab, and those that turn the
/// direction of text.
fn acts(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || c.is_control() && !matches!(c, '\n' | '\t')
}

/// `text` with those characters as JSON escapes them, `\u001b`. JSON stays JSON.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) {
            let _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

/// The same for a message: lines that are too long end in `…`, after what is left of them.
pub fn message(text: &str) -> String {
    escaped(text).split('\n').map(cut).collect::<Vec<_>>().join("\n")
}

/// The same in one line.
pub fn line(text: &str) -> String {
    cut(&escaped(text).replace('\n', " "))
}

/// The beginning and the end of a line: a path or a value stands before, what to do about it behind.
fn cut(line: &str) -> String {
    let count = line.chars().count();
    if count <= LONGEST {
        return line.into();
    }
    let half = LONGEST / 2 - 10;
    let begin: String = line.chars().take(half).collect();
    let end: String = line.chars().skip(count - half).collect();
    format!("{begin} … {end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_escaped() {
        assert_eq!(escaped("a\u{1b}[2Jb\u{202e}c\rd\te\n"), "a\\u001b[2Jb\\u202ec\\u000dd\te\n");
        assert!(matches!(escaped("ein Kätzchen 猫"), Cow::Borrowed(_)));
    }

    #[test]
    fn long_lines_lose_their_middle() {
        let long = format!("file.tsv: {}\nsecond", "x".repeat(90_000));
        let shown = message(&long);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(
            lines[0].chars().count() <= LONGEST
                && lines[0].starts_with("file.tsv: xxx")
                && lines[0].contains(" … ")
                && lines[1] == "second"
        );
        assert_eq!(line("a\nb"), "a b");
    }
}
