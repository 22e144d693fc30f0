//! BERT's uncased WordPiece with BLIP's two extra tokens, as in ImageReward's `init_tokenizer` (`models/BLIP/blip.py`) on
//! transformers' `models/bert/tokenization_bert.py`.

use std::path::Path;

use burn::tensor::Device;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Tokenizer};
use vp_core::input_file;

use super::{Batch, Encoding, Row, starts};
use crate::weights::{LoadError, corrupt, io};

/// The tokens that the vocabulary must hold, and those that BLIP adds to it (their ids follow the vocabulary's last).
const REQUIRED: [&str; 5] = ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"];
const ADDED: [&str; 2] = ["[DEC]", "[ENC]"];

/// The tokenizer of BLIP and ImageReward.
#[derive(Debug, Clone)]
pub struct BertTokenizer {
    tokenizer: Tokenizer,
    row: Row,
}

impl BertTokenizer {
    /// The length in ids to which ImageReward pads or cuts prompts.
    pub const LENGTH: usize = 35;

    /// The tokenizer of a `vocab.txt`: one token per line, and its line number, counted from 0, is its id.
    ///
    /// # Errors
    /// When the file cannot be read, or lacks one of BERT's special tokens.
    pub fn from_vocab(path: &Path) -> Result<Self, LoadError> {
        let text = input_file::read_regular_to_string(path).map_err(io(path))?;
        let refused = |e: tokenizers::Error| corrupt(path, &format!("not a BERT vocabulary: {e}"));
        let vocab = WordPiece::read_bytes(text.as_bytes()).map_err(refused)?;
        let mut tokenizer = Tokenizer::new(WordPiece::builder().vocab(vocab).build().map_err(refused)?);
        tokenizer.with_normalizer(Some(BertNormalizer::new(true, true, None, true))).map_err(refused)?;
        tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
        let id = |token: &str| {
            let found = tokenizer.token_to_id(token);
            found.ok_or_else(|| {
                corrupt(path, &format!("lacks the token {token}; expected bert-base-uncased's vocab.txt, one token per line"))
            })
        };
        for token in REQUIRED {
            id(token)?;
        }
        let row = Row { first: id("[CLS]")?, last: id("[SEP]")?, pad: id("[PAD]")?, length: Self::LENGTH };
        let special = REQUIRED.into_iter().chain(ADDED).map(|token| AddedToken::from(token, true));
        tokenizer.add_tokens(special).map_err(refused)?;
        Ok(Self { tokenizer, row })
    }

    /// The same tokenizer with rows of another length.
    ///
    /// # Panics
    /// When there is no room for `[CLS]` and `[SEP]`.
    pub fn with_length(mut self, length: usize) -> Self {
        assert!(length >= 2, "a row of {length} has no room for [CLS] and [SEP]");
        self.row.length = length;
        self
    }

    /// The number of ids that every text becomes.
    pub fn length(&self) -> usize {
        self.row.length
    }

    /// The number of rows that an embedding table needs: one more than the largest id, BLIP's two included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// `[CLS]`, the text, `[SEP]`, padding. A special token that is written in the text is that token.
    pub fn encode(&self, text: &str) -> Encoding {
        let tokens = self.tokenizer.encode(text, false).expect("[UNK] stands in for every word without tokens");
        self.row.fit(&starts(&tokens), text)
    }

    /// Encodes several texts and puts them onto a device.
    pub fn encode_batch(&self, texts: &[String], device: &Device) -> Batch {
        self.row.batch(texts.iter().map(|text| self.encode(text)).collect(), device)
    }
}
