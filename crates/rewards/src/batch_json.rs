//! The JSON in which a batch goes to a server or a program, and in which its scores come back.
//!
//! ```json
//! {"images": ["iVBORw0KGgo…", …], "prompts": ["a red circle", …]}
//! {"scores": [0.25, …]}
//! ```
//!
//! Images are PNG files in base64, 8-bit RGB. There is one score per image, in their order, each a number; the bare list does too.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use vp_annotation::Picture;
use vp_data::RgbImage;

/// The member of a reply that holds the scores.
pub(crate) const SCORES: &str = "scores";
/// How much of a reply is shown, in characters.
const SHOWN: usize = 200;

/// A batch, ready to be sent.
pub(crate) fn request(images: &[RgbImage], prompts: &[String]) -> Value {
    let encoded = |image: &RgbImage| STANDARD.encode(Picture::of_pixels(image, "an image of the batch").bytes());
    json!({ "images": images.iter().map(encoded).collect::<Vec<_>>(), "prompts": prompts })
}

/// The scores of `count` images.
///
/// # Errors
/// What was expected, and what was found.
pub(crate) fn scores(reply: &Value, count: usize) -> Result<Vec<f64>, String> {
    let expected = format!("expected {{\"{SCORES}\": […]}} with {count} number(s), one for each image, in their order");
    let Some(list) = reply.as_array().or_else(|| reply[SCORES].as_array()) else {
        return Err(format!("{expected}, found {}", cut(&reply.to_string())));
    };
    if list.len() != count {
        return Err(format!("{expected}, found {} of them", list.len()));
    }
    let number = |(index, value): (usize, &Value)| {
        value
            .as_f64()
            // It becomes an f32.
            .filter(|score| (*score as f32).is_finite())
            .ok_or_else(|| format!("{expected}, but score {index} is {}", cut(&value.to_string())))
    };
    list.iter().enumerate().map(number).collect()
}

/// The beginning of a text, on one line.
pub(crate) fn cut(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_sent_as_png_files() {
        let image = RgbImage::from_fn(5, 3, |x, y| [x as u8 * 50, y as u8 * 80, 7].into());
        let request = request(std::slice::from_ref(&image), &["a \"fox\"".to_owned()]);
        assert_eq!(request["prompts"], json!(["a \"fox\""]));
        let png = STANDARD.decode(request["images"][0].as_str().unwrap()).unwrap();
        assert_eq!(vp_data::decode_image(&png, "sent".as_ref()).unwrap(), image);
    }

    #[test]
    fn scores_are_one_number_per_image() {
        assert_eq!(scores(&json!({ "scores": [1, -0.5] }), 2), Ok(vec![1.0, -0.5]));
        assert_eq!(scores(&json!([1.5]), 1), Ok(vec![1.5]));
        for (reply, found) in [
            (json!({ "score": [1] }), "found {\"score\":[1]}"),
            (json!({ "scores": [1, 2] }), "found 2 of them"),
            (json!({ "scores": [null] }), "but score 0 is null"),
            (json!({ "scores": ["1"] }), "but score 0 is \"1\""),
        ] {
            let told = scores(&reply, 1).unwrap_err();
            assert!(told.starts_with("expected {\"scores\": […]} with 1 number(s)") && told.ends_with(found), "{told}");
        }
    }
}
