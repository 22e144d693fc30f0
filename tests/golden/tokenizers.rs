//! CLIP and BERT ids against transformers'.

use crate::device::device;
use std::path::Path;

use vp_models::tokenizer::{BertTokenizer, ClipTokenizer};

use crate::support::{case_dir, case_json, load_tensors};

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn golden_tokenizers_clip_and_bert() {
    let folder = case_dir("tokenizers");
    let clip = ClipTokenizer::from_folder(&folder.join("clip")).unwrap();
    let bert = BertTokenizer::from_vocab(&folder.join("bert/vocab.txt")).unwrap();
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let text = case["text"].as_str().unwrap();
        assert_eq!(clip.encode(text).ids, ids(&case["clip_ids_77"]), "CLIP: {text:?}");
        let encoding = bert.encode(text);
        assert_eq!(encoding.ids, ids(&case["bert_ids_35"]), "BERT: {text:?}");
        assert_eq!(encoding.attention_mask, ids(&case["bert_mask_35"]), "BERT mask: {text:?}");
    }
}

/// The tokenizers inside a pipeline's folder, each with its own padding.
fn check_pipeline(case: &str) {
    let prompts = case_json(case)["prompts"].as_array().unwrap().iter().map(|p| p.as_str().unwrap().to_string()).collect::<Vec<_>>();
    let tensors = load_tensors(case);
    let pipeline = case_dir(case).join("pipeline");
    let mut checked = 0;
    for (folder, name) in [("tokenizer", "input_ids"), ("tokenizer_2", "input_ids_2")] {
        if tensors.contains(name) {
            check(&pipeline.join(folder), &prompts, tensors.values(name));
            checked += 1;
        }
    }
    assert!(checked > 0, "{case} has no input_ids");
}

fn check(folder: &Path, prompts: &[String], expected: &[f64]) {
    let tokenizer = ClipTokenizer::from_folder(folder).unwrap();
    let batch = tokenizer.encode_batch(prompts, &device());
    assert_eq!(batch.ids.dims(), [prompts.len(), tokenizer.length()]);
    let got: Vec<f64> = batch.ids.into_data().iter::<f64>().collect();
    assert_eq!(got, expected, "{}", folder.display());
}

#[test]
fn golden_tokenizers_sd15() {
    check_pipeline("sd15_tiny");
}

#[test]
fn golden_tokenizers_sd21() {
    check_pipeline("sd21_tiny");
}

#[test]
fn golden_tokenizers_sdxl() {
    check_pipeline("sdxl_tiny");
}
