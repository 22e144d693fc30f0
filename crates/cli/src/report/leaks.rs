//! Held-out prompts that nearly equal training prompts.

use vp_data::NearDuplicate;
use vp_evaluation::report::{Leak, LeakPanel};

/// The panel of a report that lists them.
pub fn panel(held_out: &[String], training: &[String], found: &[NearDuplicate]) -> LeakPanel {
    let leak = |found: &NearDuplicate| Leak {
        heldout: held_out[found.held_out].clone(),
        training: training[found.training].clone(),
        similarity: found.similarity,
    };
    LeakPanel {
        method: "equal letters and digits, or word 3-grams with a Jaccard similarity of at least 3/5".into(),
        heldout: held_out.len(),
        training: training.len(),
        leaks: found.iter().map(leak).collect(),
    }
}
