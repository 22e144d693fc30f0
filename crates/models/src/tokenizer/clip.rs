//! CLIP's byte-level BPE, as in transformers' `models/clip/tokenization_clip.py`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as Steps;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};
use vp_core::input_file;

use super::special_tokens::{self, SpecialTokens, Written};
use super::{Batch, Encoding, Row, starts};
use crate::weights::{LoadError, corrupt, io};

/// Words, single digits and runs of anything else; white space between them is dropped.
const WORDS: &str = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The tokenizer of a Stable Diffusion text encoder.
#[derive(Debug, Clone)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    row: Row,
}

/// A vocabulary, whichever files it came from.
pub(super) struct Vocabulary {
    pub vocab: HashMap<String, u32>,
    pub merges: Merges,
    /// The `added_tokens` of `tokenizer.json`, by id.
    pub added: BTreeMap<u64, Written>,
}

impl Vocabulary {
    /// The vocabulary of a folder, and the file that it is in.
    pub(super) fn of_folder(folder: &Path) -> Result<(PathBuf, Self), LoadError> {
        let json = folder.join("tokenizer.json");
        let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
        if json.exists() {
            let vocabulary = read_tokenizer_json(&json)?;
            Ok((json, vocabulary))
        } else if vocab.exists() && merges.exists() {
            let vocabulary = read_vocab_and_merges(&vocab, &merges)?;
            Ok((vocab, vocabulary))
        } else {
            let expected = "tokenizer.json, or both vocab.json and merges.txt".into();
            Err(LoadError::NoTokenizer { folder: folder.display().to_string(), expected })
        }
    }

    /// Checked here because the BPE builder panics where a merge makes a token longer than any in the vocabulary.
    pub(super) fn check(&self) -> Result<(), String> {
        let known = |token: &str| self.vocab.contains_key(token);
        let unknown = |(a, b): &(String, String)| !known(a) || !known(b) || !known(&format!("{a}{b}"));
        match self.merges.iter().enumerate().find(|(_, merge)| unknown(merge)) {
            Some((rank, (a, b))) => Err(format!("merge {} ({a} {b}): the vocabulary lacks {a}, {b} or {a}{b}", rank + 1)),
            None => Ok(()),
        }
    }
}

impl ClipTokenizer {
    /// The tokenizer of a folder: `tokenizer.json`, or `vocab.json` and `merges.txt`; with `tokenizer_config.json`,
    /// `special_tokens_map.json` and `added_tokens.json` where they exist. Settings that no file gives are CLIP's.
    ///
    /// # Errors
    /// When there is no vocabulary in either form, or a file is not of the format that its name says.
    pub fn from_folder(folder: &Path) -> Result<Self, LoadError> {
        let (origin, vocabulary) = Vocabulary::of_folder(folder)?;
        vocabulary.check().map_err(|found| corrupt(&origin, &found))?;
        let Vocabulary { vocab, merges, added } = vocabulary;
        let special = special_tokens::read(folder, added)?;
        Self::build(vocab, merges, special).map_err(|found| corrupt(&origin, &found))
    }

    pub(super) fn build(vocab: HashMap<String, u32>, merges: Merges, special: SpecialTokens) -> Result<Self, String> {
        let known = |token: &str| vocab.contains_key(token);
        // With an unknown token, encoding cannot fail.
        if !known(&special.unk) {
            return Err(format!("the vocabulary of {} tokens lacks the unknown token {}", vocab.len(), special.unk));
        }
        let bpe = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges)
            .unk_token(special.unk)
            .continuing_subword_prefix(String::new())
            .end_of_word_suffix("</w>".into())
            .build();
        let mut tokenizer = Tokenizer::new(bpe.map_err(|e| e.to_string())?);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(|e| e.to_string())?;
        let normalizer = Sequence::new(vec![NFC.into(), spaces.into(), Lowercase.into()]);
        let words = Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Removed, true).map_err(|e| e.to_string())?;
        tokenizer.with_normalizer(Some(normalizer)).map_err(|e| e.to_string())?;
        tokenizer.with_pre_tokenizer(Some(Steps::new(vec![words.into(), ByteLevel::new(false, true, true).into()])));
        tokenizer.add_tokens(special.added).map_err(|e| e.to_string())?;
        let id = |token: &str| tokenizer.token_to_id(token).ok_or_else(|| format!("the vocabulary lacks the special token {token}"));
        let row = Row { first: id(&special.bos)?, last: id(&special.eos)?, pad: id(&special.pad)?, length: special.max_length };
        Ok(Self { tokenizer, row })
    }

    /// The number of ids that every text becomes: 77 unless the folder says otherwise.
    pub fn length(&self) -> usize {
        self.row.length
    }

    /// The number of rows that an embedding table needs: one more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The id that ends a text, where CLIP's text encoder pools.
    pub fn eos_token_id(&self) -> u32 {
        self.row.last
    }

    /// `<|startoftext|>`, the text, `<|endoftext|>`, padding. A special token that is written in the text is that token.
    pub fn encode(&self, text: &str) -> Encoding {
        let tokens = self.tokenizer.encode(text, false).expect("the unknown token stands in for every byte without one");
        self.row.fit(&starts(&tokens), text)
    }

    /// Encodes several texts and puts them onto a device.
    pub fn encode_batch(&self, texts: &[String], device: &Device) -> Batch {
        self.row.batch(texts.iter().map(|text| self.encode(text)).collect(), device)
    }
}

fn read_vocab_and_merges(vocab: &Path, merges: &Path) -> Result<Vocabulary, LoadError> {
    let text = input_file::read_regular_to_string(vocab).map_err(io(vocab))?;
    let ids = serde_json::from_str(&text).map_err(|e| corrupt(vocab, &format!("not a map of tokens to ids: {e}")))?;
    let text = input_file::read_regular_to_string(merges).map_err(io(merges))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"));
    let pairs = lines.map(|(number, line)| {
        read_merge(line).ok_or_else(|| corrupt(merges, &format!("line {}: {line:?} is not two tokens with a space between", number + 1)))
    });
    Ok(Vocabulary { vocab: ids, merges: pairs.collect::<Result<_, _>>()?, added: BTreeMap::new() })
}

pub(super) fn read_merge(line: &str) -> Option<(String, String)> {
    let (a, b) = line.split_once(' ')?;
    (!a.is_empty() && !b.is_empty() && !b.contains(' ')).then(|| (a.into(), b.into()))
}

/// Vocabulary and added tokens only: as in transformers, the rest of the file does not change how CLIP splits text.
fn read_tokenizer_json(path: &Path) -> Result<Vocabulary, LoadError> {
    #[derive(Deserialize)]
    struct File {
        model: Value,
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(Deserialize)]
    struct Added {
        id: u64,
        #[serde(flatten)]
        token: Written,
    }
    #[derive(Deserialize)]
    struct Model {
        vocab: HashMap<String, u32>,
        merges: Vec<Merge>,
    }
    /// transformers 4 wrote `"a b"`, transformers 5 writes `["a", "b"]`.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Merge {
        Line(String),
        Pair(String, String),
    }
    let text = input_file::read_regular_to_string(path).map_err(io(path))?;
    let File { model, added_tokens } = serde_json::from_str(&text).map_err(|e| corrupt(path, &format!("not a tokenizer: {e}")))?;
    match model.get("type") {
        None => {}
        Some(Value::String(bpe)) if bpe == "BPE" => {}
        Some(other) => return Err(corrupt(path, &format!("holds a tokenizer of type {other}; CLIP's is of type \"BPE\""))),
    }
    let Model { vocab, merges } = Model::deserialize(model).map_err(|e| corrupt(path, &format!("model: {e}")))?;
    let merges = merges.into_iter().enumerate().map(|(rank, merge)| match merge {
        Merge::Pair(a, b) => Ok((a, b)),
        Merge::Line(line) => {
            read_merge(&line).ok_or_else(|| corrupt(path, &format!("merge {}: {line:?} is not two tokens with a space between", rank + 1)))
        }
    });
    Ok(Vocabulary {
        vocab,
        merges: merges.collect::<Result<_, _>>()?,
        added: added_tokens.into_iter().map(|added| (added.id, added.token)).collect(),
    })
}
