//! The keys of a shipped config with the comments that explain them, for the reference pages.

/// A section of a config.
#[derive(Debug, PartialEq)]
pub struct Section {
    /// As in the config, `algo.ddpo`.
    pub name: &'static str,
    /// The comment right above its header.
    pub comment: String,
    /// Its keys in the config's order.
    pub knobs: Vec<Knob>,
}

/// A key of a section.
#[derive(Debug, PartialEq)]
pub struct Knob {
    /// As in the config, `batch_size`.
    pub key: &'static str,
    /// As in the config; `None` for a key that the config only offers, in a comment.
    pub value: Option<&'static str>,
    /// The comment on its line.
    pub meaning: &'static str,
}

/// The sections of a config's text, each with its keys.
pub fn sections(text: &'static str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut above: Vec<&str> = Vec::new();
    // The keys of a section that the config only offers, in comments, are not those of the section above it.
    let mut in_offered_section = false;
    for line in text.lines() {
        let commented = line.strip_prefix('#').map(str::trim_start);
        if let Some(header) = line.strip_prefix('[') {
            in_offered_section = false;
            let name = header.trim_start_matches('[').split(']').next().unwrap_or_default();
            sections.push(Section { name, comment: above.join(" "), knobs: Vec::new() });
        } else if let Some(knob) = knob(line) {
            sections.last_mut().expect("a config begins with a section").knobs.push(knob);
        } else if let Some(knob) = commented.and_then(knob).filter(|knob| !knob.meaning.is_empty() && !in_offered_section) {
            let knob = Knob { value: None, ..knob };
            sections.last_mut().expect("a config begins with a section").knobs.push(knob);
        } else if let Some(comment) = commented {
            in_offered_section |= comment.starts_with('[');
            above.push(comment);
            continue;
        }
        above.clear();
    }
    sections
}

/// `key = value  # meaning`.
fn knob(line: &'static str) -> Option<Knob> {
    let (key, rest) = line.split_once(" = ")?;
    let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let (value, meaning) = rest.split_at(comment_at(rest));
    // A list that goes on is not shown.
    let value = if value.trim() == "[" { "[…]" } else { value.trim() };
    is_key.then(|| Knob { key, value: Some(value), meaning: meaning.trim_start_matches('#').trim() })
}

/// Where the comment of `value # comment` begins, or the end.
fn comment_at(text: &str) -> usize {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, '#') => return at,
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            _ => {}
        }
    }
    text.len()
}

impl Knob {
    /// The meaning without what one recipe's source says of its value: `prompts per batch (paper: 4)` is `prompts per batch`.
    pub fn general_meaning(&self) -> &'static str {
        match self.meaning.strip_suffix(')').and_then(|meaning| meaning.rsplit_once('(')) {
            Some((general, source)) if source.contains(": ") => general.trim(),
            _ => self.meaning,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_with_their_values_and_comments() {
        let text = "# A config.\n\n[run]\nseed = 0  # of all random numbers (paper: 1)\n\n# Which layers,\n# by name.\n[lora]  # small\n\
                    targets = '#.'  # a # b\n# alpha = 8.0  # absent: the rank\n# folder = \"x\"\nfiles = [  # two\n  \"a = b\",\n]\n\
                    # [ema]\n# decay = 0.9  # of the mean\n";
        let knob = |key, value, meaning| Knob { key, value, meaning };
        let seed = knob("seed", Some("0"), "of all random numbers (paper: 1)");
        assert_eq!(seed.general_meaning(), "of all random numbers");
        let lora = [knob("targets", Some("'#.'"), "a # b"), knob("alpha", None, "absent: the rank"), knob("files", Some("[…]"), "two")];
        let expected = [
            Section { name: "run", comment: String::new(), knobs: vec![seed] },
            Section { name: "lora", comment: "Which layers, by name.".into(), knobs: lora.into() },
        ];
        assert_eq!(sections(text), expected);
    }
}
