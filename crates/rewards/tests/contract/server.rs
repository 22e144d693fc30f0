//! A server for the rewards that ask one: what it says of an image depends on the image and its prompt alone.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::OnceLock;
use std::thread;

use serde_json::{Value, json};
use vp_data::Aspect;

/// Its address. There is one for all tests, and it runs until they end.
pub fn address() -> &'static str {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    ADDRESS.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || answer(stream));
            }
        });
        address
    })
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut length, mut line) = (0, String::new());
    while reader.read_line(&mut line)? > 2 {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body)?;
    let said = if body["messages"].is_array() { completion(&body) } else { scores(&body) }.to_string();
    write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{said}", said.len())
}

fn digest(parts: &[&Value]) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.iter().for_each(|part| part.to_string().hash(&mut hasher));
    hasher.finish()
}

/// What `http` asks for.
fn scores(body: &Value) -> Value {
    let (images, prompts) = (body["images"].as_array().unwrap(), body["prompts"].as_array().unwrap());
    assert_eq!(images.len(), prompts.len());
    let score = |(image, prompt): (&Value, &Value)| digest(&[image, prompt]) as f64 / u64::MAX as f64;
    json!({ "scores": images.iter().zip(prompts).map(score).collect::<Vec<f64>>() })
}

/// What `vlm` asks for: the ratings of one image.
fn completion(body: &Value) -> Value {
    let parts = body["messages"][0]["content"].as_array().unwrap();
    let urls: Vec<&Value> = parts.iter().map(|part| &part["image_url"]["url"]).filter(|url| url.is_string()).collect();
    assert_eq!(urls.len(), 1, "a score must not depend on other images");
    let digest = digest(&[urls[0], &parts[parts.len() - 1]]);
    let mut entry = json!({ "image": 1 });
    for (index, aspect) in Aspect::ALL.into_iter().enumerate() {
        entry[aspect.name()] = json!({ "rationale": "So the digest says.", "rating": (digest >> (8 * index)) % 5 + 1 });
    }
    let content = json!({ "images": [entry] }).to_string();
    json!({ "choices": [{ "message": { "content": content }, "finish_reason": "stop" }] })
}
