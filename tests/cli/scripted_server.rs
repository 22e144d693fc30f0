//! A server of JSON over plain sockets that answers what a test tells it to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// With the query.
    pub path: String,
    /// Every line of the head, in lower case before the colon.
    pub headers: Vec<(String, String)>,
    pub body: Value,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// A status and a body. With 429 the server asks to come back in five minutes.
pub type Answer = (u16, Value);

/// It runs until its test ends, or until it has no answer.
pub struct ScriptedServer {
    /// `http://127.0.0.1:PORT`.
    pub address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl ScriptedServer {
    /// `answer` is asked for each request in turn, with the number of those before it; without an answer the server is gone: the connection
    /// is cut, and no other is taken.
    pub fn start(mut answer: impl FnMut(&Seen, usize) -> Option<Answer> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Some(request) = read(&stream) else { continue };
                let before = all.lock().unwrap().len();
                all.lock().unwrap().push(request.clone());
                match answer(&request, before) {
                    Some(answer) => drop(write(stream, &answer)),
                    None => return,
                }
            }
        });
        Self { address, seen }
    }

    /// Answer n for request n, the last for all that follow.
    pub fn saying(answers: Vec<Answer>) -> Self {
        Self::start(move |_, before| Some(answers[before.min(answers.len() - 1)].clone()))
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn read(stream: &TcpStream) -> Option<Seen> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let path = lines.first()?.split(' ').nth(1)?.to_owned();
    let headers: Vec<(String, String)> =
        lines[1..].iter().filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    let length = headers.iter().find(|(name, _)| name == "content-length")?.1.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { path, headers, body: serde_json::from_slice(&body).ok()? })
}

fn write(mut stream: TcpStream, (status, body): &Answer) -> std::io::Result<()> {
    let body = body.to_string();
    let wait = if *status == 429 { "retry-after: 300\r\n" } else { "" };
    let head =
        format!("HTTP/1.1 {status} X\r\n{wait}content-type: application/json\r\nconnection: close\r\ncontent-length: {}", body.len());
    stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes())?;
    stream.flush()
}

/// A chat completion whose message is `message`, which cost 10 tokens in and 5 out.
pub fn completion(message: Value) -> Answer {
    let choice = json!({ "index": 0, "message": message, "finish_reason": "stop" });
    (200, json!({ "object": "chat.completion", "choices": [choice], "usage": { "prompt_tokens": 10, "completion_tokens": 5 } }))
}

/// The JSON of ratings in which every aspect of each of `images` images gets `rating`.
pub fn ratings(images: usize, rating: u32) -> String {
    let aspect = json!({ "rationale": "as asked", "rating": rating });
    let entry = |image: usize| json!({ "image": image + 1, "prompt_following": aspect, "aesthetic": aspect, "fidelity": aspect, "harmlessness": aspect });
    json!({ "images": (0..images).map(entry).collect::<Vec<_>>() }).to_string()
}
