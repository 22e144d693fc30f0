//! Black-box tests of the binary: what is typed, what is printed, what is left on disk.

mod annotate;
mod annotate_servers;
mod browser;
mod crash;
mod dataset;
mod doctor;
mod dpo;
mod embedded;
mod evaluate;
mod image_folders;
mod list;
mod lora;
mod own_rewards;
mod policy_gradient;
mod precision;
mod profile;
mod progress;
mod refused;
mod report;
mod sample;
mod score;
mod scripted_server;
mod sentinel;
mod supervised;
mod train;
mod util;
