//! The tokenizer of every published Stable Diffusion text encoder: OpenAI CLIP's vocabulary, for single files, which bring none.
//!
//! Source: OpenAI CLIP `clip/simple_tokenizer.py` (`bytes_to_unicode`, and how the vocabulary follows from the merges).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use serde_json::json;
use tokenizers::models::bpe::Merges;

use super::OpenClipTokenizer;
use super::clip::{ClipTokenizer, Vocabulary, read_merge};
use super::special_tokens;
use crate::weights::{LoadError, corrupt};

/// The published merges.
const MERGES: &str = include_str!("merges.txt");

/// The token that ends a text, and with which CLIP-L's texts are padded.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The number of tokens.
pub const VOCAB_SIZE: usize = 49408;

fn merges() -> Merges {
    let lines = MERGES.lines().filter(|line| !line.is_empty() && !line.starts_with("#version"));
    lines.map(|line| read_merge(line).expect("the published merges are pairs; a test reads them")).collect()
}

/// Every byte as a character that prints, alone and at a word's end; what the merges make of them; the two special tokens.
fn tokens() -> Vec<String> {
    let prints = |byte: &u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let printing = (0..256u32).filter(prints);
    let others = 256..256 + (0..256u32).filter(|byte| !prints(byte)).count() as u32;
    let bytes: Vec<String> = printing.chain(others).filter_map(char::from_u32).map(String::from).collect();
    let at_the_end = bytes.iter().map(|byte| format!("{byte}</w>"));
    let merged = merges().into_iter().map(|(a, b)| a + &b);
    let special = ["<|startoftext|>", "<|endoftext|>"].map(String::from);
    bytes.iter().cloned().chain(at_the_end).chain(merged).chain(special).collect()
}

fn vocab() -> HashMap<String, u32> {
    tokens().into_iter().zip(0..).collect()
}

/// The tokenizer with this padding token: `<|endoftext|>` for CLIP-L, `!` for the encoders of open_clip.
pub fn tokenizer(pad: &str) -> ClipTokenizer {
    let special = special_tokens::published(pad);
    ClipTokenizer::build(vocab(), merges(), special).expect("the published vocabulary fits its merges; a test builds it")
}

/// The tokenizer of open_clip's text encoders, whose rows have `length` ids.
///
/// # Errors
/// When `length` has no room for start and end.
pub fn open_clip(length: usize) -> Result<OpenClipTokenizer, LoadError> {
    let vocabulary = Vocabulary { vocab: vocab(), merges: merges(), added: BTreeMap::new() };
    OpenClipTokenizer::build(vocabulary, length).map_err(|found| corrupt(Path::new("the published tokenizer"), &found))
}

/// Writes the same tokenizer as a folder that transformers opens.
///
/// # Errors
/// When a file cannot be written.
pub fn write(folder: &Path, pad: &str) -> io::Result<()> {
    let mut vocab = serde_json::Map::new();
    vocab.extend(tokens().into_iter().zip(0..).map(|(token, id): (String, u32)| (token, id.into())));
    let special = json!({ "bos_token": "<|startoftext|>", "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT, "pad_token": pad });
    let mut config = json!({ "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": true });
    config.as_object_mut().expect("written as one").extend(special.as_object().expect("written as one").clone());
    std::fs::write(folder.join("vocab.json"), serde_json::Value::Object(vocab).to_string())?;
    std::fs::write(folder.join("merges.txt"), MERGES)?;
    std::fs::write(folder.join("special_tokens_map.json"), format!("{special:#}\n"))?;
    std::fs::write(folder.join("tokenizer_config.json"), format!("{config:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_merges_are_those_of_the_golden_cases() {
        assert!(MERGES == include_str!("../../../../tests/golden/tokenizers/clip/merges.txt"));
    }

    #[test]
    fn the_vocabulary_is_the_published_one() {
        let published = include_str!("../../../../tests/golden/tokenizers/clip/vocab.json");
        let published: HashMap<String, u32> = serde_json::from_str(published).unwrap();
        assert_eq!(vocab(), published);
        assert_eq!(published.len(), VOCAB_SIZE);
    }

    #[test]
    fn what_is_written_reads_back_as_the_same_tokenizer() {
        for pad in ["<|endoftext|>", "!"] {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), pad).unwrap();
            let (ours, read) = (tokenizer(pad), ClipTokenizer::from_folder(folder.path()).unwrap());
            for text in ["a photo of a Red fox", "", "don't <|endoftext|> !"] {
                assert_eq!(ours.encode(text), read.encode(text));
            }
            assert_eq!(ours.encode("").ids[76], if pad == "!" { 0 } else { 49407 });
            let (ours, read) = (open_clip(77).unwrap(), OpenClipTokenizer::from_folder(folder.path(), 77).unwrap());
            assert_eq!(
                ours.encode("A \u{201c}red\u{201d} fox &amp; <end_of_text>"),
                read.encode("A \u{201c}red\u{201d} fox &amp; <end_of_text>")
            );
            assert!(open_clip(1).is_err());
        }
    }
}
