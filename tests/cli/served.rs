//! A running `serve` or `train --serve`, and plain requests to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::util::root;

/// The program while it serves pages.
pub struct Served {
    pub process: Child,
    /// `127.0.0.1:8383`
    pub host: String,
    /// As it was printed, with its token.
    pub address: String,
}

/// A reply, as it came.
pub struct Reply {
    pub status: u16,
    /// In small letters.
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

impl Served {
    /// Starts the program with these arguments, and waits for its address.
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_visionprefer"));
        let mut process =
            command.current_dir(root()).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let found =
            lines.by_ref().map_while(Result::ok).find_map(|line| line.split_once("http://").map(|(_, rest)| format!("http://{rest}")));
        let Some(address) = found else {
            let mut stderr = String::new();
            process.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("{args:?} printed no address: {stderr}");
        };
        // What else it prints is read, so that it never waits.
        std::thread::spawn(move || lines.for_each(drop));
        let host = address.trim_start_matches("http://").split('/').next().unwrap().to_string();
        Self { process, host, address }
    }

    /// The cookie that a browser has after it was at the address.
    fn cookie(&self) -> String {
        let (port, token) = (self.host.rsplit(':').next().unwrap(), self.address.split_once("token=").expect("a token in the address").1);
        format!("Cookie: visionprefer-{port}={}", token.trim_end())
    }

    /// A request with these headers besides `Host` and `Cookie`; one that begins with `Host:` or `Cookie:` replaces it.
    pub fn ask(&self, method: &str, path: &str, headers: &[&str]) -> Reply {
        Self::reply(self.send(method, path, headers, ""))
    }

    fn reply(mut stream: TcpStream) -> Reply {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|some| some == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head, body: bytes[end + 4..].to_vec() }
    }

    fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let given = |name: &str| headers.iter().any(|header| header.starts_with(name));
        let mut host = if given("Host:") { String::new() } else { format!("Host: {}\r\n", self.host) };
        if !given("Cookie:") {
            host += &format!("{}\r\n", self.cookie());
        }
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let length = if method == "POST" { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
        stream.write_all(format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{length}{headers}\r\n{body}").as_bytes()).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[])
    }

    /// The token in a page, which is what pages write with.
    pub fn token(&self) -> String {
        let page = self.get("/").text();
        page.split_once("name=\"token\" content=\"").expect("a token").1.split('"').next().unwrap().to_string()
    }

    /// Presses a button of a page.
    pub fn press(&self, path: &str) -> Reply {
        self.post(path, "")
    }

    /// Sends what a page sends.
    pub fn post(&self, path: &str, body: &str) -> Reply {
        let headers = [format!("X-Token: {}", self.token()), format!("Origin: http://{}", self.host)];
        Self::reply(self.send("POST", path, &headers.each_ref().map(String::as_str), body))
    }

    /// A stream of events: what is sent until one holds `wanted`, after `then` was done.
    pub fn events_until(&self, path: &str, then: impl FnOnce(), wanted: &str) -> String {
        let mut stream = self.send("GET", path, &["Accept: text/event-stream"], "");
        let (mut seen, mut piece, began) = (Vec::new(), [0; 4096], Instant::now());
        let mut then = Some(then);
        loop {
            let read = stream.read(&mut piece).expect("an event in time");
            assert!(read > 0, "the stream ended: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&piece[..read]);
            let text = String::from_utf8_lossy(&seen).into_owned();
            if (text.contains("event: status") || text.contains("event: places"))
                && let Some(then) = then.take()
            {
                then();
            }
            if text.contains(wanted) {
                return text;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "no {wanted} in {text}");
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until something is so.
pub fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{what} does not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}
