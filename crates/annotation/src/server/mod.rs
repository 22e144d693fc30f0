//! Requests to a paid server: how one is sent, how often, after which wait, for how much money, and with which key.

pub(crate) mod budget;
pub(crate) mod client;
pub(crate) mod clock;
mod limiter;
mod reported_error;
mod retry;
pub(crate) mod secret;
