//! Text that was read from a file or a server, made fit to be shown: it cannot move the cursor, turn a line around, or fill the screen.

use std::borrow::Cow;

/// How many characters of a value a message quotes.
const VALUE: usize = 100;
/// How many names a message lists.
const NAMES: usize = 10;

/// Whether a terminal obeys `character` instead of showing it: control characters, line separators, and signs that turn the direction of
/// all that follows them.
fn is_obeyed(character: char) -> bool {
    let turns = matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    character.is_control() || turns || matches!(character, '\u{2028}' | '\u{2029}')
}

fn replaced(text: &str, replaces: impl Fn(char) -> bool, with: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(&replaces) {
        return text.into();
    }
    text.chars()
        .fold(String::with_capacity(text.len()), |mut out, character| {
            match replaces(character) {
                true => out.push_str(&with(character)),
                false => out.push(character),
            }
            out
        })
        .into()
}

/// `text` on one line, with what a terminal would obey as `\u{1b}`.
pub fn one_line(text: &str) -> Cow<'_, str> {
    replaced(text, is_obeyed, |character| character.escape_unicode().to_string())
}

/// As [`one_line`], but newlines and tabs stay: for text that has lines of its own.
pub fn lines(text: &str) -> Cow<'_, str> {
    replaced(text, |character| is_obeyed(character) && !"\n\t".contains(character), |character| character.escape_unicode().to_string())
}

/// JSON of the same value, in which strings hold nothing that a terminal would obey.
pub fn json(text: &str) -> Cow<'_, str> {
    let is_in_a_string = |character| is_obeyed(character) && !"\n\r\t".contains(character);
    replaced(text, is_in_a_string, |character| format!("\\u{:04x}", u32::from(character)))
}

/// The first 100 characters of a value, and `…` if there are more.
pub fn value(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(VALUE) {
        Some((at, _)) => format!("{}…", &text[..at]).into(),
        None => text.into(),
    }
}

/// `line`, or its first two thirds and its end if it has more than `most` characters: messages begin with the place and end with the
/// way out.
pub fn cut(line: &str, most: usize) -> Cow<'_, str> {
    // A byte count is cheap, and never below the count of characters.
    if line.len() <= most {
        return line.into();
    }
    let count = line.chars().count();
    if count <= most {
        return line.into();
    }
    let first = most * 2 / 3;
    let beginning: String = line.chars().take(first).collect();
    let end: String = line.chars().skip(count - (most - first).saturating_sub(3)).collect();
    format!("{beginning} … {end}").into()
}

/// The first ten names, quoted and each cut as a [`value`], and how many more there are.
pub fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names = names.into_iter();
    let mut list: Vec<String> = names.by_ref().take(NAMES).map(|name| format!("{:?}", value(name))).collect();
    match names.count() {
        0 => {}
        more => list.push(format!("… and {more} more")),
    }
    format!("[{}]", list.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_escaped() {
        assert_eq!(one_line("a\u{1b}[2J\n\u{9b}b\u{202e}é"), "a\\u{1b}[2J\\u{a}\\u{9b}b\\u{202e}é");
        assert_eq!(lines("a\tb\r\n\u{7}c\u{2066}"), "a\tb\\u{d}\n\\u{7}c\\u{2066}");
        assert!(matches!(lines("plain\n\"text\" \\"), Cow::Borrowed(_)));
    }

    #[test]
    fn json_keeps_its_value() {
        let told = serde_json::to_string_pretty(&serde_json::json!({ "name": "\u{1b}\u{7f}\u{9b}\u{202e}\u{2028}" })).unwrap();
        assert_eq!(json(&told), "{\n  \"name\": \"\\u001b\\u007f\\u009b\\u202e\\u2028\"\n}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json(&told)).unwrap()["name"], "\u{1b}\u{7f}\u{9b}\u{202e}\u{2028}");
    }

    #[test]
    fn long_values_are_cut() {
        assert_eq!(value(&"é".repeat(100)), "é".repeat(100));
        assert_eq!(value(&"é".repeat(101)), format!("{}…", "é".repeat(100)));
        assert_eq!(cut("éééééé", 6), "éééééé");
        assert_eq!(cut(&format!("{}{}", "a".repeat(50), "z".repeat(50)), 30), format!("{} … {}", "a".repeat(20), "z".repeat(7)));
        assert_eq!(names(["a", "b\u{1b}"]), "[\"a\", \"b\\u{1b}\"]");
        assert!(names(["a"; 13]).ends_with("\"a\", … and 3 more]"));
    }
}
