//! open_clip's tokenizer: CLIP's byte-level BPE on text that was cleaned first, as in `src/open_clip/tokenizer.py`, which HPS v2 uses too.

use std::path::Path;

use regex::Regex;
use tokenizers::Tokenizer;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::clip::Vocabulary;
use super::open_clip_text::cleaned;
use super::{Encoding, Row};
use crate::weights::LoadError;

/// Special tokens, words, single digits and runs of anything else; white space between them is dropped.
const WORDS: &str = r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
/// The texts that stand for a start and an end, and their names in CLIP's vocabulary.
const SPECIAL: [(&str, &str); 2] = [("<start_of_text>", "<|startoftext|>"), ("<end_of_text>", "<|endoftext|>")];

/// The tokenizer of an open_clip text encoder. It differs from [`ClipTokenizer`](super::ClipTokenizer) in three things: text is cleaned (see
/// `open_clip_text.rs` for how, and for what is not done), `<|endoftext|>` is ordinary text, and rows are padded with 0.
#[derive(Debug, Clone)]
pub struct OpenClipTokenizer {
    tokenizer: Tokenizer,
    words: Regex,
    row: Row,
}

impl OpenClipTokenizer {
    /// The tokenizer of a folder with CLIP's vocabulary: `tokenizer.json`, or `vocab.json` and `merges.txt`. Texts become rows of `length`
    /// ids. What the folder says about padding, special tokens and length is passed over: open_clip has its own.
    ///
    /// # Errors
    /// When there is no vocabulary in either form, or it is not CLIP's.
    pub fn from_folder(folder: &Path, length: usize) -> Result<Self, LoadError> {
        let (origin, vocabulary) = Vocabulary::of_folder(folder)?;
        vocabulary.check().and_then(|()| Self::build(vocabulary, length)).map_err(|found| crate::weights::corrupt(&origin, &found))
    }

    pub(super) fn build(Vocabulary { vocab, merges, .. }: Vocabulary, length: usize) -> Result<Self, String> {
        if length < 2 {
            return Err(format!("rows of {length} ids have no room for start and end"));
        }
        let id = |token: &str| vocab.get(token).copied().ok_or_else(|| format!("the vocabulary lacks the special token {token}"));
        let [first, last] = SPECIAL.map(|(_, token)| id(token));
        let row = Row { first: first?, last: last?, pad: 0, length };
        let bpe = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges)
            .unk_token(SPECIAL[1].1.into())
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix("</w>".into())
            .build();
        let mut tokenizer = Tokenizer::new(bpe.map_err(|error| error.to_string())?);
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, false)));
        Ok(Self { tokenizer, words: Regex::new(WORDS).expect("it was tried"), row })
    }

    /// The number of rows that an embedding table needs: one more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// Start, the cleaned text, end, and zeros. Of a text that is too long the end is cut off.
    pub fn encode(&self, text: &str) -> Encoding {
        let text = cleaned(text);
        let mut tokens = Vec::new();
        for word in self.words.find_iter(&text) {
            match SPECIAL.iter().position(|(written, _)| *written == word.as_str()) {
                Some(0) => tokens.push((self.row.first, word.start())),
                Some(_) => tokens.push((self.row.last, word.start())),
                None => {
                    let pieces =
                        self.tokenizer.encode(word.as_str(), false).expect("the unknown token stands in for every byte without one");
                    let starts = pieces.get_offsets().iter().map(|(start, _)| word.start() + start);
                    tokens.extend(pieces.get_ids().iter().copied().zip(starts));
                }
            }
        }
        self.row.fit(&tokens, &text)
    }
}
