//! What open_clip does to a text before it is divided into words: `ftfy.fix_text`, `html.unescape` twice, one space between words, lower case.
//!
//! Of ftfy 6 this does what changes single characters: HTML entities where no `<` is in the line, terminal escapes, ligatures, full and half
//! width, curly quotes, control characters, NFC. **Not done** is the repair of mojibake (`fix_encoding`), text that was decoded in the
//! wrong encoding, such as `cafÃ©`: ftfy guesses there by statistics. Of HTML's 2231 names of characters, those of HTML 4's Latin-1 set and
//! common punctuation are known (`&eacute;`, `&ndash;`), and all numbers (`&#233;`); another name stays as it is written.

use tokenizers::NormalizedString;

/// Windows-1252's characters of the bytes 0x80 to 0x9f, which HTML and ftfy take C1 control codes for.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–',
    '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// HTML's names of the characters U+00A0 to U+00FF. They count without a semicolon too.
const LATIN_1: [&str; 96] = [
    "nbsp", "iexcl", "cent", "pound", "curren", "yen", "brvbar", "sect", "uml", "copy", "ordf", "laquo", "not", "shy", "reg", "macr",
    "deg", "plusmn", "sup2", "sup3", "acute", "micro", "para", "middot", "cedil", "sup1", "ordm", "raquo", "frac14", "frac12", "frac34",
    "iquest", "Agrave", "Aacute", "Acirc", "Atilde", "Auml", "Aring", "AElig", "Ccedil", "Egrave", "Eacute", "Ecirc", "Euml", "Igrave",
    "Iacute", "Icirc", "Iuml", "ETH", "Ntilde", "Ograve", "Oacute", "Ocirc", "Otilde", "Ouml", "times", "Oslash", "Ugrave", "Uacute",
    "Ucirc", "Uuml", "Yacute", "THORN", "szlig", "agrave", "aacute", "acirc", "atilde", "auml", "aring", "aelig", "ccedil", "egrave",
    "eacute", "ecirc", "euml", "igrave", "iacute", "icirc", "iuml", "eth", "ntilde", "ograve", "oacute", "ocirc", "otilde", "ouml",
    "divide", "oslash", "ugrave", "uacute", "ucirc", "uuml", "yacute", "thorn", "yuml",
];

/// Other names that count without a semicolon.
const BARE: [(&str, char); 10] = [
    ("amp", '&'),
    ("AMP", '&'),
    ("lt", '<'),
    ("LT", '<'),
    ("gt", '>'),
    ("GT", '>'),
    ("quot", '"'),
    ("QUOT", '"'),
    ("COPY", '©'),
    ("REG", '®'),
];

/// Names that count with their semicolon only.
const CLOSED: [(&str, char); 21] = [
    ("apos", '\''),
    ("ndash", '–'),
    ("mdash", '—'),
    ("lsquo", '‘'),
    ("rsquo", '’'),
    ("sbquo", '‚'),
    ("ldquo", '“'),
    ("rdquo", '”'),
    ("bdquo", '„'),
    ("bull", '•'),
    ("hellip", '…'),
    ("prime", '′'),
    ("Prime", '″'),
    ("trade", '™'),
    ("euro", '€'),
    ("larr", '←'),
    ("rarr", '→'),
    ("hearts", '♥'),
    ("ensp", '\u{2002}'),
    ("emsp", '\u{2003}'),
    ("thinsp", '\u{2009}'),
];

/// The ligatures and digraphs that ftfy spells out.
const LIGATURES: [(char, &str); 21] = [
    ('Ĳ', "IJ"),
    ('ĳ', "ij"),
    ('ŉ', "ʼn"),
    ('Ǳ', "DZ"),
    ('ǲ', "Dz"),
    ('ǳ', "dz"),
    ('Ǆ', "DŽ"),
    ('ǅ', "Dž"),
    ('ǆ', "dž"),
    ('Ǉ', "LJ"),
    ('ǈ', "Lj"),
    ('ǉ', "lj"),
    ('Ǌ', "NJ"),
    ('ǋ', "Nj"),
    ('ǌ', "nj"),
    ('ﬀ', "ff"),
    ('ﬁ', "fi"),
    ('ﬂ', "fl"),
    ('ﬃ', "ffi"),
    ('ﬄ', "ffl"),
    ('ﬆ', "st"),
];

/// The text as open_clip divides it into words.
pub(super) fn cleaned(text: &str) -> String {
    let mut html = true;
    let line = |line: &str| {
        html &= !line.contains('<');
        fixed(line, html)
    };
    let lines: Vec<String> = text.split('\n').map(line).collect();
    let unescaped = unescape(&unescape(&lines.join("\n")));
    // Python's split() takes the four separators of ASCII for white space as well.
    let is_space = |c: char| c.is_whitespace() || matches!(c, '\x1c'..='\x1f');
    let words: Vec<&str> = unescaped.split(is_space).filter(|word| !word.is_empty()).collect();
    words.join(" ").to_lowercase()
}

/// What `ftfy.fix_text` does to one line, less the repair of mojibake: it begins again until nothing changes.
fn fixed(line: &str, html: bool) -> String {
    let mut line = line.to_string();
    loop {
        let once = fixed_once(&line, html);
        if once == line {
            return once;
        }
        line = once;
    }
}

fn fixed_once(line: &str, html: bool) -> String {
    let line = if html { ftfy_unescape(line) } else { line.to_string() };
    let mut out = String::with_capacity(line.len());
    for c in without_terminal_escapes(&line).chars() {
        match LIGATURES.iter().find(|(ligature, _)| *ligature == c) {
            Some((_, letters)) => out.extend(letters.chars().filter_map(fixed_char)),
            // The long s of this one is a letter of its own, which NFC keeps.
            None if c == 'ﬅ' => out.push_str("ſt"),
            None if matches!(c, '\u{ff01}'..='\u{ffef}') => out.push_str(NormalizedString::from(c.to_string()).nfkc().get()),
            None => out.extend(fixed_char(c)),
        }
    }
    NormalizedString::from(out).nfc().get().to_string()
}

/// Straight quotes for curly ones, a space for the wide one, Windows' characters for C1 codes, and nothing for control characters.
fn fixed_char(c: char) -> Option<char> {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => Some('\''),
        '\u{201c}'..='\u{201f}' => Some('"'),
        '\u{3000}' => Some(' '),
        '\r' | '\u{2028}' | '\u{2029}' | '\u{85}' => Some('\n'),
        '\u{80}'..='\u{9f}' => Some(WINDOWS_1252[c as usize - 0x80]),
        '\0'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}' => None,
        _ => Some(c),
    }
}

/// The text without escapes such as `ESC [ 1 ; 31 m`.
fn without_terminal_escapes(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';');
        match rest.strip_prefix(|c: char| c.is_ascii_alphabetic()) {
            Some(rest) => out.push_str(rest),
            // The escape character itself goes with the control characters.
            None => out.extend(["[", part]),
        }
    }
    out
}

/// HTML's characters, where they are closed by a semicolon. Unlike HTML, ftfy also takes `&EACUTE;` for `É`.
fn ftfy_unescape(text: &str) -> String {
    replace_entities(text, |entity| {
        let end = entity.find(';')?;
        let name = &entity[..end];
        let upper_case = || {
            let is_upper = name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
            is_upper.then(|| named(&name.to_lowercase()))?.map(|c| c.to_uppercase().to_string())
        };
        let character = if name.starts_with('#') { numbered(name) } else { named(name) };
        Some((character.map(String::from).or_else(upper_case)?, end + 1))
    })
}

/// Python's `html.unescape`.
fn unescape(text: &str) -> String {
    replace_entities(text, |entity| {
        if let Some(number) = entity.strip_prefix('#') {
            let digits = match number.strip_prefix(['x', 'X']) {
                Some(hex) => 1 + hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len()),
                None => number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len()),
            };
            let end = 1 + digits;
            let closed = usize::from(entity[end..].starts_with(';'));
            // Nothing stands for what is no character.
            let has_digits = !number[..digits].trim_start_matches(['x', 'X']).is_empty();
            return has_digits.then(|| (numbered(&entity[..end]).map(String::from).unwrap_or_default(), end + closed));
        }
        let end = entity.find(['\t', '\n', '\x0c', ' ', '<', '&', '#', ';']).unwrap_or(entity.len());
        let name = &entity[..end];
        if entity[end..].starts_with(';')
            && let Some(c) = named(name)
        {
            return Some((c.to_string(), end + 1));
        }
        // The longest beginning that is a name by itself.
        let begins = (2..=end).rev().filter(|end| name.is_char_boundary(*end));
        let bare = begins.filter_map(|end| Some((bare_name(&name[..end])?.to_string(), end)));
        bare.into_iter().next()
    })
}

/// `text` with what follows each `&` replaced: `replace` returns what to put there, and how many bytes it stands for.
fn replace_entities(text: &str, replace: impl Fn(&str) -> Option<(String, usize)>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find('&') {
        out.push_str(&rest[..place]);
        let entity = &rest[place + 1..];
        match replace(entity) {
            Some((characters, length)) => {
                out.push_str(&characters);
                rest = &entity[length..];
            }
            None => {
                out.push('&');
                rest = entity;
            }
        }
    }
    out + rest
}

/// The character of `#233` or `#xe9`. HTML reads C1 codes as Windows' characters.
fn numbered(name: &str) -> Option<char> {
    let number = name.strip_prefix('#')?;
    let (digits, radix) = number.strip_prefix(['x', 'X']).map_or((number, 10), |hex| (hex, 16));
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    match u32::from_str_radix(digits, radix).unwrap_or(u32::MAX) {
        code if code == 0 || char::from_u32(code).is_none() => Some('\u{fffd}'),
        code @ 0x80..=0x9f => Some(WINDOWS_1252[code as usize - 0x80]),
        code => char::from_u32(code).filter(|c| !c.is_control() || c.is_whitespace()),
    }
}

fn bare_name(name: &str) -> Option<char> {
    let latin = LATIN_1.iter().position(|known| *known == name).and_then(|i| char::from_u32(0xa0 + i as u32));
    latin.or_else(|| BARE.iter().find(|(known, _)| *known == name).map(|(_, c)| *c))
}

fn named(name: &str) -> Option<char> {
    bare_name(name).or_else(|| CLOSED.iter().find(|(known, _)| *known == name).map(|(_, c)| *c))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `_clean_lower` of open_clip 3.3 does, with ftfy 6.
    #[test]
    fn text_is_cleaned_as_open_clip_does() {
        for (text, expected) in [
            ("“curly” quotes, it’s\ta  Café \n", "\"curly\" quotes, it's a café"),
            ("e\u{301}tude ﬁn ｆｕｌｌ　½ ﾊﾟ", "étude fin full ½ パ"),
            ("a &amp; b &lt;3 &quot;x&quot; &#39;y&#x27;", "a & b <3 \"x\" 'y'"),
            // Twice over, and without a semicolon where HTML allows it.
            ("&amp;amp;lt; &ltb &eacutex &copy", "< <b éx ©"),
            ("&#128; &#0; &#8364 &unknown; & &;", "€ \u{fffd} € &unknown; & &;"),
            ("a\u{feff}\x07b \x1b[1;31mred\x1b[0m", "ab red"),
            ("<b>x&ndash;y</b>", "<b>x–y</b>"),
            ("", ""),
        ] {
            assert_eq!(cleaned(text), expected, "{text:?}");
        }
    }
}
