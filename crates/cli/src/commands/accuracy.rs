//! How well scores agree with an order, by every protocol that is defined on it.

use vp_evaluation::accuracy::{
    Accuracy, Ranked, filter_at, hpsv2_inversion, imagereward_accuracy, imagereward_accuracy_per_prompt, pickscore_accuracy, recall_at,
};

/// Each names itself. PickScore's ties are scores that are equal: a threshold is to be chosen on other prompts than these.
pub fn accuracies(prompts: &[Ranked]) -> Vec<Accuracy> {
    let found = [
        imagereward_accuracy(prompts),
        imagereward_accuracy_per_prompt(prompts),
        hpsv2_inversion(prompts),
        pickscore_accuracy(prompts, 0.0),
        recall_at(prompts, 1),
        recall_at(prompts, 2),
        filter_at(prompts, 1),
        filter_at(prompts, 2),
    ];
    found.into_iter().flatten().collect()
}
