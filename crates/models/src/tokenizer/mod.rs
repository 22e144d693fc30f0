//! Text to token ids, as transformers 5 tokenizes: [CLIP's](ClipTokenizer) byte-level BPE and [BERT's](BertTokenizer) WordPiece; and CLIP's as
//! [open_clip](OpenClipTokenizer) does.
//!
//! Every text becomes a row of one fixed length, padded or cut. The text that a cut loses is handed back, so that a
//! warning can show it.

mod bert;
mod clip;
mod open_clip;
mod open_clip_text;
pub mod published;
mod special_tokens;

pub use bert::BertTokenizer;
pub use clip::ClipTokenizer;
pub use open_clip::OpenClipTokenizer;

use burn::tensor::{Device, Int, Tensor, TensorData};

/// One text as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// The ids, start and end tokens included, padded to the tokenizer's length.
    pub ids: Vec<u32>,
    /// As many values as ids: 1 for a token, 0 for padding.
    pub attention_mask: Vec<u32>,
    /// The text after the last token that fitted.
    pub lost: Option<String>,
}

impl Encoding {
    /// One line for the user when the text did not fit, with the first 200 characters of what was lost.
    pub fn warning(&self) -> Option<String> {
        const SHOWN: usize = 200;
        let lost = self.lost.as_ref()?;
        let shown: String = lost.chars().take(SHOWN).collect();
        let rest = lost.chars().skip(SHOWN).count();
        let more = if rest > 0 { format!(" … and {rest} more characters") } else { String::new() };
        Some(format!("prompt cut at {} tokens; lost: {shown:?}{more}", self.ids.len()))
    }
}

/// Several texts as token ids, on a device.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The ids, `[b, length]`.
    pub ids: Tensor<2, Int>,
    /// The attention mask, `[b, length]`: 1 for a token, 0 for padding.
    pub attention_mask: Tensor<2, Int>,
    /// A [warning](Encoding::warning) for each text that did not fit.
    pub warnings: Vec<String>,
}

/// The row of fixed length into which every text is fitted.
#[derive(Debug, Clone)]
struct Row {
    first: u32,
    last: u32,
    pad: u32,
    length: usize,
}

/// The ids of an encoding, and the places in its text where they begin.
fn starts(tokens: &tokenizers::Encoding) -> Vec<(u32, usize)> {
    tokens.get_ids().iter().copied().zip(tokens.get_offsets().iter().map(|(start, _)| *start)).collect()
}

impl Row {
    /// `first`, as many tokens as fit, `last`, and padding. `tokens` are ids and the places in `text` where they begin.
    fn fit(&self, tokens: &[(u32, usize)], text: &str) -> Encoding {
        let room = self.length - 2;
        let kept = tokens.len().min(room);
        let mut ids = Vec::with_capacity(self.length);
        ids.push(self.first);
        ids.extend(tokens[..kept].iter().map(|(id, _)| id));
        ids.push(self.last);
        let mut attention_mask = vec![1; ids.len()];
        ids.resize(self.length, self.pad);
        attention_mask.resize(self.length, 0);
        // A token may begin inside a character, as the second of an emoji does.
        let lost = tokens.get(room).map(|&(_, start)| text[text.floor_char_boundary(start)..].trim_end().to_string());
        Encoding { ids, attention_mask, lost }
    }

    fn batch(&self, encodings: Vec<Encoding>, device: &Device) -> Batch {
        let shape = [encodings.len(), self.length];
        let tensor = |pick: fn(&Encoding) -> &Vec<u32>| {
            let values: Vec<i32> = encodings.iter().flat_map(|e| pick(e).iter().map(|&id| id as i32)).collect();
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        Batch {
            ids: tensor(|e| &e.ids),
            attention_mask: tensor(|e| &e.attention_mask),
            warnings: encodings.iter().filter_map(Encoding::warning).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// Ids in the order of the list; the merge `a b</w>` makes 4.
    const VOCAB: &str =
        r#"{"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "!": 5, "!</w>": 6, "<|startoftext|>": 7, "<|endoftext|>": 8}"#;
    const MERGES: &str = "#version: 0.2\na b</w>\n";

    /// A folder of its own for one test, with these files, gone when the test ends.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let folder = std::env::temp_dir().join(format!("vp-tokenizer-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir_all(&folder).unwrap();
            for (file, text) in files {
                std::fs::write(folder.join(file), text).unwrap();
            }
            Self(folder)
        }

        fn clip(&self) -> ClipTokenizer {
            ClipTokenizer::from_folder(&self.0).unwrap()
        }

        fn error(&self) -> String {
            ClipTokenizer::from_folder(&self.0).unwrap_err().to_string()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn six(name: &str) -> Folder {
        Folder::new(name, &[("vocab.json", VOCAB), ("merges.txt", MERGES), ("tokenizer_config.json", r#"{"model_max_length": 6}"#)])
    }

    #[test]
    fn a_text_is_framed_and_padded() {
        let encoding = six("framed").clip().encode("AB  a");
        assert_eq!(encoding, Encoding { ids: vec![7, 4, 2, 8, 8, 8], attention_mask: vec![1, 1, 1, 1, 0, 0], lost: None });
        assert_eq!(encoding.warning(), None);
    }

    #[test]
    fn what_a_cut_loses_is_shown_as_text() {
        let clip = six("cut").clip();
        let encoding = clip.encode("a b ab a Lost é🦊 \n");
        assert_eq!(encoding.ids, [7, 2, 3, 4, 2, 8]);
        assert_eq!(encoding.lost.as_deref(), Some("Lost é🦊"));
        assert_eq!(encoding.warning().unwrap(), r#"prompt cut at 6 tokens; lost: "Lost é🦊""#);
        // The cut falls inside the fox, whose four bytes are a token each.
        assert_eq!(clip.encode("a b 🦊b").lost.as_deref(), Some("🦊b"));
        let long = clip.encode(&"a ".repeat(1 << 19));
        assert_eq!(long.lost.as_ref().map(String::len), Some((1 << 20) - 9));
        assert!(long.warning().unwrap().ends_with("a a \" … and 1048367 more characters"), "{}", long.warning().unwrap());
    }

    #[test]
    fn awkward_texts_are_encoded() {
        let clip = six("awkward").clip();
        assert_eq!(clip.encode("").ids, [7, 8, 8, 8, 8, 8]);
        assert_eq!(clip.encode(" \t\r\n").ids, [7, 8, 8, 8, 8, 8]);
        assert_eq!(clip.encode("a<|startoftext|>b").ids, [7, 2, 7, 3, 8, 8], "written special tokens are themselves");
        assert_eq!(clip.encode("\0").ids, [7, 8, 8, 8, 8, 8], "an unknown byte is the unknown token");
        assert_eq!(clip.encode("\0").attention_mask, [1, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn the_padding_token_is_read_in_every_form() {
        for (name, pad) in [("string", r#""!""#), ("object", r#"{"content": "!", "normalized": false}"#)] {
            let config = format!(r#"{{"pad_token": {pad}, "model_max_length": 6}}"#);
            let in_config = [("vocab.json", VOCAB), ("merges.txt", MERGES), ("tokenizer_config.json", &config)];
            assert_eq!(Folder::new(name, &in_config).clip().encode("a").ids, [7, 2, 8, 5, 5, 5]);
        }
        // As in Stable Diffusion 2: the map wins, and a written ! is the padding token, not the word.
        let config = r#"{"pad_token": "<|endoftext|>", "model_max_length": 6}"#;
        let map = r#"{"pad_token": "!"}"#;
        let files = [("vocab.json", VOCAB), ("merges.txt", MERGES), ("tokenizer_config.json", config), ("special_tokens_map.json", map)];
        assert_eq!(Folder::new("map", &files).clip().encode("a!").ids, [7, 2, 5, 8, 5, 5]);
        assert_eq!(six("word").clip().encode("a!").ids, [7, 2, 6, 8, 8, 8]);
    }

    #[test]
    fn tokenizer_json_is_read_with_both_forms_of_merges() {
        for (name, merges) in [("lines", r#"["a b</w>"]"#), ("pairs", r#"[["a", "b</w>"]]"#)] {
            let json = format!(r#"{{"added_tokens": [], "model": {{"type": "BPE", "vocab": {VOCAB}, "merges": {merges}}}}}"#);
            let clip = Folder::new(name, &[("tokenizer.json", &json)]).clip();
            assert_eq!((clip.length(), clip.vocab_size(), clip.eos_token_id()), (77, 9, 8));
            assert_eq!(clip.encode("ab").ids[..4], [7, 4, 8, 8]);
        }
    }

    #[test]
    fn errors_name_the_file_and_what_is_wrong() {
        let says = |name: &str, files: &[(&str, &str)], file: &str, what: &str| {
            let message = Folder::new(name, files).error();
            assert!(message.contains(file) && message.contains(what), "{message}");
        };
        says("none", &[("vocab.json", VOCAB)], "vp-tokenizer-none", "expected tokenizer.json, or both vocab.json and merges.txt");
        says("json", &[("vocab.json", "{"), ("merges.txt", MERGES)], "vocab.json", "EOF");
        says("merge", &[("vocab.json", VOCAB), ("merges.txt", "a b c\n")], "merges.txt", "line 1");
        // Longer than every token of the vocabulary.
        let long = "<|endoftext|> <|startoftext|>\n";
        says("long", &[("vocab.json", VOCAB), ("merges.txt", long)], "vocab.json", "merge 1");
        says("unk", &[("vocab.json", r#"{"a": 0}"#), ("merges.txt", "")], "vocab.json", "lacks the unknown token <|endoftext|>");
        says("t5", &[("tokenizer.json", r#"{"model": {"type": "Unigram", "vocab": []}}"#)], "tokenizer.json", "\"Unigram\"");
        let config = |text| [("vocab.json", VOCAB), ("merges.txt", MERGES), ("tokenizer_config.json", text)];
        says("pad", &config(r#"{"pad_token": 3}"#), "tokenizer_config.json", "pad_token is 3");
        says("length", &config(r#"{"model_max_length": 1}"#), "tokenizer_config.json", "model_max_length is 1");
        says("side", &config(r#"{"padding_side": "left"}"#), "tokenizer_config.json", "padding_side is \"left\"");
        let lacking = BertTokenizer::from_vocab(Path::new("no/such/vocab.txt")).unwrap_err().to_string();
        assert!(lacking.contains("no/such/vocab.txt"), "{lacking}");
        let bert = Folder::new("bert", &[("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n")]);
        let lacking = BertTokenizer::from_vocab(&bert.0.join("vocab.txt")).unwrap_err().to_string();
        assert!(lacking.contains("lacks the token [MASK]"), "{lacking}");
    }

    #[test]
    fn bert_knows_blips_two_tokens_whether_or_not_the_file_lists_them() {
        let vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfox\n##es\n";
        let folder = Folder::new("blip", &[("without.txt", vocab), ("with.txt", &format!("{vocab}[DEC]\n[ENC]\n"))]);
        for file in ["without.txt", "with.txt"] {
            let bert = BertTokenizer::from_vocab(&folder.0.join(file)).unwrap();
            assert_eq!((bert.length(), bert.vocab_size()), (35, 9));
            assert_eq!(bert.with_length(8).encode("Foxes [ENC] 🦊").ids, [2, 5, 6, 8, 1, 3, 0, 0]);
        }
    }

    #[test]
    fn a_batch_is_one_row_a_text() {
        let batch = six("batch").clip().encode_batch(&["ab".into(), "a a a a a".into()], &Device::flex());
        assert_eq!(batch.ids.into_data().iter::<i64>().collect::<Vec<_>>(), [7, 4, 8, 8, 8, 8, 7, 2, 2, 2, 2, 8]);
        assert_eq!(batch.attention_mask.into_data().iter::<i64>().sum::<i64>(), 9);
        assert_eq!(batch.warnings, [r#"prompt cut at 6 tokens; lost: "a""#]);
    }
}
