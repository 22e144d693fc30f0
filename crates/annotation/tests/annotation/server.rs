//! A chat completions server: HTTP/1.1 over plain sockets, a thread a connection. What it answers depends on the prompt and the images
//! alone; how it misbehaves, on its schedule.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vp_annotation::{Clock, Task, rubric};
use vp_data::Aspect;

/// What a request is answered with, if not with what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// 429 with `retry-after`, in seconds.
    Busy(u64),
    /// 500 whose body quotes the key.
    Broken,
    /// 400 whose body quotes the key.
    Rejected,
    /// Any status, with the key quoted.
    Status(u16),
    /// Nothing comes until the client gives up.
    Hang,
    /// The connection is cut in the middle of the body.
    Cut,
    Fenced,
    MissingAspect,
    OutOfRange,
    WrongCount,
    /// Text that is no answer, and quotes the key.
    Chatter,
    Refusal,
    ContentFilter,
    Empty,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub request_id: String,
    pub body: Value,
    /// By the server's clock.
    pub at: Duration,
    pub fault: Fault,
}

impl Seen {
    /// The key of the question.
    pub fn key(&self) -> &str {
        self.request_id.split('-').next().unwrap()
    }
}

/// A request, and how often one with the same prompt and images came before.
pub struct Asked<'a> {
    pub prompt: &'a str,
    pub digest: &'a [u8],
    pub before: usize,
}

type Schedule = Box<dyn Fn(&Asked) -> Fault + Send + Sync>;

struct State {
    schedule: Schedule,
    rejects_response_format: bool,
    delay: Duration,
    clock: Clock,
    seen: Mutex<Vec<Seen>>,
    before: Mutex<HashMap<Vec<u8>, usize>>,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
}

/// What the server counts for every reply.
pub const INPUT_TOKENS: u64 = 1000;
pub const OUTPUT_TOKENS: u64 = 100;

pub struct Server {
    pub base_url: String,
    state: Arc<State>,
}

impl Server {
    pub fn start(schedule: impl Fn(&Asked) -> Fault + Send + Sync + 'static) -> Self {
        Self::with(schedule, false, Duration::ZERO, Clock::system())
    }

    pub fn with(
        schedule: impl Fn(&Asked) -> Fault + Send + Sync + 'static,
        rejects_response_format: bool,
        delay: Duration,
        clock: Clock,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let state = Arc::new(State {
            schedule: Box::new(schedule),
            rejects_response_format,
            delay,
            clock,
            seen: Mutex::default(),
            before: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
        });
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                // A client that is killed cuts its connections; that is no fault of the test.
                thread::spawn(move || state.serve(stream));
            }
        });
        Self { base_url, state }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    pub fn most_in_flight(&self) -> usize {
        self.state.most_in_flight.load(Ordering::SeqCst)
    }
}

impl State {
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut length = 0;
        let (mut key, mut request_id) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(": ") else { continue };
            match name.to_lowercase().as_str() {
                "content-length" => length = value.parse().ok()?,
                "authorization" => key = value.into(),
                "x-client-request-id" => request_id = value.into(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_flight.fetch_max(now, Ordering::SeqCst);
        self.answer(stream, &serde_json::from_slice(&body).ok()?, &key, request_id)
    }

    fn answer(&self, mut stream: TcpStream, body: &Value, key: &str, request_id: String) -> Option<()> {
        let content = body["messages"][0]["content"].as_array()?;
        let prompt = content.last()?["text"].as_str()?.strip_prefix("Prompt: ")?;
        let digest = Sha256::digest(json!(content).to_string().as_bytes()).to_vec();
        let before = {
            let mut before = self.before.lock().unwrap();
            let count = before.entry(digest.clone()).or_default();
            *count += 1;
            *count - 1
        };
        let fault = match self.rejects_response_format && body.get("response_format").is_some() {
            true => Fault::None,
            false => (self.schedule)(&Asked { prompt, digest: &digest, before }),
        };
        let seen = Seen { request_id, body: body.clone(), at: self.clock.now(), fault };
        self.seen.lock().unwrap().push(seen);
        thread::sleep(self.delay);
        let response = match fault {
            _ if self.rejects_response_format && body.get("response_format").is_some() => {
                error(400, "Unknown parameter: 'response_format'.", "")
            }
            Fault::Busy(seconds) => error(429, "Slow down.", &format!("retry-after: {seconds}\r\n")),
            Fault::Broken => error(500, &format!("Incorrect key provided: {key}."), ""),
            Fault::Rejected => error(400, &format!("I dislike this, {key}."), ""),
            Fault::Status(status) => error(status, &format!("Not for {key}."), ""),
            Fault::Hang => {
                // Not counted as in flight: the client has given up before this ends.
                self.in_flight.fetch_sub(1, Ordering::SeqCst);
                stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
                let _ = stream.read(&mut [0; 1]);
                return None;
            }
            _ => response(200, &completion(fault, content, prompt, &digest, key).to_string(), ""),
        };
        let sent = if fault == Fault::Cut { &response[..response.len() - 40] } else { &response };
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        stream.write_all(sent.as_bytes()).ok()?;
        stream.flush().ok()
    }
}

fn response(status: u16, body: &str, headers: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn error(status: u16, message: &str, headers: &str) -> String {
    response(status, &json!({ "error": { "message": message } }).to_string(), headers)
}

fn completion(fault: Fault, content: &[Value], prompt: &str, digest: &[u8], key: &str) -> Value {
    let images = content.iter().filter(|part| part["type"] == "image_url").count();
    assert_eq!(content.iter().filter(|part| part["text"].as_str().is_some_and(|text| text.starts_with("Image "))).count(), images);
    let task =
        [Task::Rate, Task::Compare, Task::Polish].into_iter().find(|task| content[0]["text"] == rubric::instructions(*task)).unwrap();
    let mut answer = match task {
        Task::Rate => ratings(images, digest),
        Task::Compare => {
            let preferred = ["image_1", "image_2", "tie"][digest[0] as usize % 3];
            json!({ "rationale": "One is redder.", "preferred": preferred })
        }
        Task::Polish => {
            json!({ "prompt": prompt.replace(" gore", ""), "removed": if prompt.contains(" gore") { vec!["unsafe"] } else { vec![] } })
        }
    };
    match (fault, task) {
        (Fault::MissingAspect, Task::Rate) => drop(answer["images"][0].as_object_mut().unwrap().remove("fidelity")),
        (Fault::OutOfRange, Task::Rate) => answer["images"][0]["aesthetic"]["rating"] = json!(u32::from(digest[1]) + 6),
        (Fault::WrongCount, Task::Rate) => drop(answer["images"].as_array_mut().unwrap().pop()),
        (Fault::MissingAspect | Fault::OutOfRange | Fault::WrongCount, _) => answer = json!({ "preferred": "both", "prompt": 3 }),
        _ => {}
    }
    let text = match fault {
        Fault::Fenced => json!(format!("Certainly! Here it is:\n```json\n{answer}\n```\nAnything else?")),
        Fault::Chatter => json!(format!("I would rather talk about {key}.")),
        Fault::Refusal => Value::Null,
        Fault::Empty => json!(""),
        _ => json!(answer.to_string()),
    };
    let mut message = json!({ "role": "assistant", "content": text });
    if fault == Fault::Refusal {
        message["refusal"] = json!("I cannot help with that.");
    }
    let finish = if fault == Fault::ContentFilter { "content_filter" } else { "stop" };
    json!({
        "choices": [{ "index": 0, "message": message, "finish_reason": finish }],
        "usage": { "prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS },
    })
}

fn ratings(images: usize, digest: &[u8]) -> Value {
    let of_image = |image: usize| {
        let mut entry = json!({ "image": image + 1 });
        for (index, aspect) in Aspect::ALL.into_iter().enumerate() {
            let rating = digest[image * 4 + index] % 5 + 1;
            entry[aspect.name()] = json!({ "rationale": format!("Byte {}.", digest[image * 4 + index]), "rating": rating });
        }
        entry
    };
    json!({ "images": (0..images).map(of_image).collect::<Vec<_>>() })
}
