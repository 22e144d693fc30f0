//! The largest numbers that a network's config may have. They are checked before anything is built, so that a wrong or hostile one is named
//! instead of taking all memory.

use serde_json::{Map, Value};

/// Layers, or blocks, of one kind. The deepest published networks have about 100.
const MOST_LAYERS: u64 = 1024;
/// Any other size: channels, tokens, pixels. The largest published vocabularies have 256,000 tokens.
const LARGEST: u64 = 1 << 24;

/// Checks every whole number of a config, in lists and sections too.
///
/// # Errors
/// The field, its value, and what is allowed.
pub fn check(config: &Map<String, Value>) -> Result<(), String> {
    config.iter().try_for_each(|(field, value)| check_value(field, value))
}

fn check_value(field: &str, value: &Value) -> Result<(), String> {
    let counts_layers = ["layers", "depth"].iter().any(|word| field.contains(word));
    let most = if counts_layers { MOST_LAYERS } else { LARGEST };
    match value {
        Value::Number(number) if number.as_u64().is_some_and(|number| number > most) => {
            Err(format!("{field} = {number} is out of range; expected at most {most}"))
        }
        Value::Array(items) if items.len() as u64 > MOST_LAYERS => {
            Err(format!("{field} lists {} values; expected at most {MOST_LAYERS}", items.len()))
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_value(field, item)),
        Value::Object(section) => check(section),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_number_out_of_range_is_named() {
        let found = |config: Value| check(config.as_object().unwrap());
        assert_eq!(found(json!({ "num_hidden_layers": 1024, "vocab_size": 256_000, "layer_norm_eps": 1e-5, "x": -1, "y": null })), Ok(()));
        for (config, told) in [
            (json!({ "num_hidden_layers": 1u64 << 62 }), "num_hidden_layers = 4611686018427387904"),
            (json!({ "vision_depth": 2_000_000 }), "vision_depth = 2000000 is out of range; expected at most 1024"),
            (json!({ "layers_per_block": [2, 1_000_000] }), "layers_per_block = 1000000"),
            (json!({ "text_config": { "hidden_size": 1u64 << 40 } }), "hidden_size = 1099511627776"),
            (json!({ "block_out_channels": vec![32; 2000] }), "block_out_channels lists 2000 values"),
        ] {
            assert!(found(config).unwrap_err().contains(told), "{told}");
        }
    }
}
