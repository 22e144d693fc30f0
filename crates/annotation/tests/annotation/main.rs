//! Annotation against a real server on this machine that speaks OpenAI's protocol, and misbehaves on schedule.

mod annotators;
mod bounds;
mod faults;
mod killed;
mod scene;
mod server;
