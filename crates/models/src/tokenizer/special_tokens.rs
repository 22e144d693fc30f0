//! Which strings are tokens of their own, read as transformers 5 reads them (`tokenization_utils_base.py`, `_from_pretrained`):
//! `tokenizer_config.json`, and, unless that lists `added_tokens_decoder`, over it `special_tokens_map.json`,
//! `added_tokens.json` and the `added_tokens` of `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::AddedToken;
use vp_core::input_file;

use super::published::END_OF_TEXT;
use crate::weights::{LoadError, corrupt, io};

/// In the order in which transformers adds them.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// CLIP's own context, for folders that do not say.
const CLIP_MAX_LENGTH: usize = 77;

/// The special tokens and the length that the files beside a vocabulary give.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    pub bos: String,
    pub eos: String,
    pub unk: String,
    pub pad: String,
    /// Ids a text becomes, start and end included.
    pub max_length: usize,
    /// To be given to the tokenizer in this order; a later entry of the same content wins.
    pub added: Vec<AddedToken>,
}

/// A token as the files write it: a plain string, or an object with its matching rules. The two differ even when they mean the
/// same, and transformers tells them apart.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Written {
    Plain(String),
    Full(Rules),
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Rules {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl Written {
    fn content(&self) -> &str {
        match self {
            Self::Plain(content) | Self::Full(Rules { content, .. }) => content,
        }
    }

    fn into_added(self) -> AddedToken {
        match self {
            Self::Plain(content) => AddedToken::from(content, true),
            Self::Full(rules) => AddedToken::from(rules.content, rules.special)
                .normalized(rules.normalized.unwrap_or(!rules.special))
                .single_word(rules.single_word)
                .lstrip(rules.lstrip)
                .rstrip(rules.rstrip),
        }
    }
}

/// Reads what `folder` says about special tokens; files that are absent leave CLIP's defaults.
/// `listed` are the `added_tokens` of `tokenizer.json` by id.
pub(super) fn read(folder: &Path, listed: BTreeMap<u64, Written>) -> Result<SpecialTokens, LoadError> {
    let (path, config) = read_object(folder, "tokenizer_config.json")?;
    for side in ["padding_side", "truncation_side"] {
        match config.get(side) {
            None | Some(Value::Null) => {}
            Some(Value::String(right)) if right == "right" => {}
            Some(other) => return Err(corrupt(&path, &format!("{side} is {other}; only \"right\" is supported"))),
        }
    }
    let mut roles = published_roles(END_OF_TEXT);
    read_roles(&config, &path, false, &mut roles)?;
    let mut extra = read_extra(&config, &path)?;
    let added = match config.get("added_tokens_decoder") {
        Some(decoder) => read_decoder(decoder, &path)?,
        None => {
            let (path, map) = read_object(folder, "special_tokens_map.json")?;
            read_roles(&map, &path, true, &mut roles)?;
            extra.extend(read_extra(&map, &path)?);
            let mut added = read_added_tokens(folder, &roles)?;
            added.extend(listed);
            added.into_values().collect()
        }
    };
    for written in roles.values_mut() {
        if let Some(same) = added.iter().rfind(|token| token.content() == written.content()) {
            *written = same.clone();
        }
    }
    let content = |role: &str| roles[role].content().to_string();
    Ok(SpecialTokens {
        bos: content("bos_token"),
        eos: content("eos_token"),
        unk: content("unk_token"),
        pad: content("pad_token"),
        max_length: max_length(&config, &path)?,
        added: in_order(added, &roles, extra),
    })
}

fn published_roles(pad: &str) -> BTreeMap<&'static str, Written> {
    let roles = [("bos_token", "<|startoftext|>"), ("eos_token", END_OF_TEXT), ("unk_token", END_OF_TEXT), ("pad_token", pad)];
    roles.map(|(role, content)| (role, Written::Plain(content.into()))).into()
}

/// The published special tokens, with another padding token.
pub(super) fn published(pad: &str) -> SpecialTokens {
    let [bos, eos, unk] = ["<|startoftext|>", END_OF_TEXT, END_OF_TEXT].map(String::from);
    let added = in_order(Vec::new(), &published_roles(pad), Vec::new());
    SpecialTokens { bos, eos, unk, pad: pad.into(), max_length: CLIP_MAX_LENGTH, added }
}

/// transformers' order, with its two ways of telling that a token is there already.
fn in_order(added: Vec<Written>, roles: &BTreeMap<&str, Written>, extra: Vec<Written>) -> Vec<AddedToken> {
    let known: Vec<String> = added.iter().map(|token| token.content().to_string()).collect();
    let mut tokens = added;
    for token in ROLES.iter().filter_map(|role| roles.get(role)).chain(&extra) {
        if !known.iter().any(|content| content == token.content()) && !tokens.contains(token) {
            tokens.push(token.clone());
        }
    }
    tokens.into_iter().map(Written::into_added).collect()
}

fn max_length(config: &Map<String, Value>, path: &Path) -> Result<usize, LoadError> {
    match config.get("model_max_length") {
        None | Some(Value::Null) => Ok(CLIP_MAX_LENGTH),
        Some(value) => match value.as_f64() {
            // transformers writes 1e30 for "not said".
            Some(unsaid) if unsaid >= 1e9 => Ok(CLIP_MAX_LENGTH),
            Some(length) if length >= 2.0 => Ok(length as usize),
            _ => Err(corrupt(path, &format!("model_max_length is {value}; expected a number of tokens, at least 2"))),
        },
    }
}

fn read_roles(map: &Map<String, Value>, path: &Path, special: bool, roles: &mut BTreeMap<&str, Written>) -> Result<(), LoadError> {
    for role in ROLES {
        if let Some(value) = map.get(role).filter(|value| !value.is_null()) {
            let mut token = read_token(value, role, path)?;
            if let Written::Full(rules) = &mut token {
                rules.special |= special;
            }
            roles.insert(role, token);
        }
    }
    Ok(())
}

fn read_extra(map: &Map<String, Value>, path: &Path) -> Result<Vec<Written>, LoadError> {
    let keys = ["extra_special_tokens", "additional_special_tokens"];
    let Some((key, list)) = keys.iter().find_map(|key| map.get(*key)?.as_array().map(|list| (key, list))) else {
        return Ok(Vec::new());
    };
    list.iter().map(|value| read_token(value, key, path)).collect()
}

fn read_decoder(decoder: &Value, path: &Path) -> Result<Vec<Written>, LoadError> {
    let wrong = || corrupt(path, "added_tokens_decoder should map ids to tokens, as in {\"49406\": {\"content\": \"<|startoftext|>\"}}");
    let mut tokens = BTreeMap::new();
    for (id, value) in decoder.as_object().ok_or_else(wrong)? {
        tokens.insert(id.parse::<u32>().map_err(|_| wrong())?, read_token(value, "added_tokens_decoder", path)?);
    }
    Ok(tokens.into_values().collect())
}

fn read_added_tokens(folder: &Path, roles: &BTreeMap<&str, Written>) -> Result<BTreeMap<u64, Written>, LoadError> {
    let (path, map) = read_object(folder, "added_tokens.json")?;
    let mut tokens = BTreeMap::new();
    for (content, id) in map {
        let id = id.as_u64().ok_or_else(|| corrupt(&path, &format!("{content:?} has the id {id}; expected a whole number")))?;
        let special = roles.values().any(|role| role.content() == content);
        let rules = Rules { content, single_word: false, lstrip: false, rstrip: false, normalized: Some(!special), special };
        tokens.insert(id, Written::Full(rules));
    }
    Ok(tokens)
}

fn read_token(value: &Value, what: &str, path: &Path) -> Result<Written, LoadError> {
    let token = Written::deserialize(value).ok().filter(|token| !token.content().is_empty());
    token.ok_or_else(|| corrupt(path, &format!("{what} is {value}; expected a string, or an object with its `content`")))
}

/// The JSON object in a file, empty when there is no such file.
fn read_object(folder: &Path, name: &str) -> Result<(PathBuf, Map<String, Value>), LoadError> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok((path, Map::new()));
    }
    let text = input_file::read_regular_to_string(&path).map_err(io(&path))?;
    let map = serde_json::from_str(&text).map_err(|e| corrupt(&path, &format!("not a JSON object: {e}")))?;
    Ok((path, map))
}
