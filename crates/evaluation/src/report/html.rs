//! Writes HTML. Text and attributes are escaped here and nowhere else; only what is known at compile time goes in as it is.

/// HTML that is being written.
#[derive(Default)]
pub(super) struct Html(String);

impl Html {
    /// An element and what is in it.
    pub fn tag(&mut self, name: &'static str, attributes: &[(&'static str, &str)], inside: impl FnOnce(&mut Self)) {
        self.open(name, attributes);
        inside(self);
        self.0.extend(["</", name, ">"]);
    }

    /// An element and its text.
    pub fn leaf(&mut self, name: &'static str, attributes: &[(&'static str, &str)], text: &str) {
        self.tag(name, attributes, |html| html.text(text));
    }

    /// The start of an element; for those that have no end.
    pub fn open(&mut self, name: &'static str, attributes: &[(&'static str, &str)]) {
        self.0.extend(["<", name]);
        for (attribute, value) in attributes {
            self.0.extend([" ", attribute, "=\""]);
            self.text(value);
            self.0.push('"');
        }
        self.0.push('>');
    }

    /// Text, or the value of an attribute in double quotes.
    pub fn text(&mut self, text: &str) {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // HTML may not hold other control characters, not even escaped.
                character if character.is_control() && !"\n\t".contains(character) => self.0.push('\u{fffd}'),
                character => self.0.push(character),
            }
        }
    }

    /// Markup that was written by hand.
    pub fn fixed(&mut self, markup: &'static str) {
        self.0.push_str(markup);
    }

    /// The page so far.
    pub fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out_of_text_or_an_attribute() {
        let mut html = Html::default();
        html.leaf("p", &[("title", "\"><script>'&")], "</p><b>&amp;\0\u{1b}\n");
        let expected = "<p title=\"&quot;&gt;&lt;script&gt;&#39;&amp;\">&lt;/p&gt;&lt;b&gt;&amp;amp;\u{fffd}\u{fffd}\n</p>";
        assert_eq!(html.finish(), expected);
    }
}
