//! Text embeddings that are kept: a frozen encoder gives a prompt the same ones each time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;

/// The most bytes kept. SD 1.5's embeddings of a prompt take 231 KiB, SDXL's 621.
pub const BYTES: usize = 256 << 20;

/// What an encoder makes of prompts, one row each.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// `[b, tokens, cross_attention_dim]`.
    pub states: Tensor<3>,
    /// `[b, projection_dim]`, in SDXL.
    pub pooled: Option<Tensor<2>>,
}

impl Encoded {
    fn row(&self, row: usize) -> Self {
        let pooled = self.pooled.clone().map(|pooled| pooled.narrow(0, row, 1));
        Self { states: self.states.clone().narrow(0, row, 1), pooled }
    }

    fn together(rows: Vec<Self>) -> Self {
        let pooled: Option<Vec<_>> = rows.iter().map(|row| row.pooled.clone()).collect();
        let states = rows.into_iter().map(|row| row.states).collect();
        Self { states: Tensor::cat(states, 0), pooled: pooled.map(|pooled| Tensor::cat(pooled, 0)) }
    }

    fn bytes(&self) -> usize {
        let pooled = self.pooled.as_ref().map_or(0, |pooled| pooled.shape().num_elements());
        4 * (self.states.shape().num_elements() + pooled)
    }
}

/// The embeddings of prompts that were encoded before; shared by its clones.
#[derive(Debug, Clone, Default)]
pub struct Embeddings(Arc<Mutex<HashMap<String, Encoded>>>);

impl Embeddings {
    /// The embeddings of `prompts`; `encode` makes those that are not kept yet.
    pub fn of(&self, prompts: &[String], encode: impl FnOnce(&[String]) -> Encoded) -> Encoded {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing: Vec<String> = Vec::new();
        for prompt in prompts {
            if !kept.contains_key(prompt) && !missing.contains(prompt) {
                missing.push(prompt.clone());
            }
        }
        let found = (!missing.is_empty()).then(|| encode(&missing));
        if let Some(found) = found.as_ref().filter(|_| missing == prompts) {
            Self::keep(&mut kept, &missing, found);
            return found.clone();
        }
        let row = |prompt: &String| match missing.iter().position(|missing| missing == prompt).zip(found.as_ref()) {
            Some((row, found)) => found.row(row),
            None => kept[prompt].clone(),
        };
        let all = Encoded::together(prompts.iter().map(row).collect());
        if let Some(found) = &found {
            Self::keep(&mut kept, &missing, found);
        }
        all
    }

    fn keep(kept: &mut HashMap<String, Encoded>, prompts: &[String], encoded: &Encoded) {
        for (row, prompt) in prompts.iter().enumerate() {
            let row = encoded.row(row);
            if (kept.len() + 1) * row.bytes() <= BYTES {
                kept.insert(prompt.clone(), row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use std::cell::RefCell;

    #[test]
    fn each_prompt_is_encoded_once_and_found_in_its_place() {
        let (embeddings, asked) = (Embeddings::default(), RefCell::new(Vec::new()));
        let of = |prompts: &[&str]| -> Vec<f32> {
            let prompts: Vec<String> = prompts.iter().map(|prompt| (*prompt).to_string()).collect();
            let encode = |prompts: &[String]| {
                asked.borrow_mut().extend(prompts.to_vec());
                let lengths: Vec<f32> = prompts.iter().map(|prompt| prompt.len() as f32).collect();
                let lengths = Tensor::<1>::from_data(lengths.as_slice(), &Device::flex());
                Encoded { states: lengths.clone().reshape([prompts.len(), 1, 1]), pooled: Some(lengths.reshape([prompts.len(), 1]) + 0.5) }
            };
            let Encoded { states, pooled } = embeddings.of(&prompts, encode);
            let host = |tensor: Tensor<1>| tensor.into_data().try_to_vec::<f32>().unwrap();
            let count = prompts.len();
            [host(states.reshape([count])), host(pooled.unwrap().reshape([count]))].concat()
        };
        assert_eq!(of(&["a", "bbb"]), [1.0, 3.0, 1.5, 3.5]);
        assert_eq!(of(&["bbb", "cc", "cc", "a"]), [3.0, 2.0, 2.0, 1.0, 3.5, 2.5, 2.5, 1.5]);
        assert_eq!(of(&["cc", "a"]), [2.0, 1.0, 2.5, 1.5]);
        assert_eq!(*asked.borrow(), ["a", "bbb", "cc"]);
    }
}
