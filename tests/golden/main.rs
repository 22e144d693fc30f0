//! Numbers computed by the original Python code, held against ours. Each folder beside this file is a case: its settings in `case.json`, its tensors in
//! `tensors.safetensors`. `VP_REFERENCE_DIR` points the same tests at another folder of the same layout,
//! `VP_DEVICE` at another device than the CPU.

mod blip;
mod clip;
mod ddpo;
#[path = "../device/mod.rs"]
mod device;
mod dpo;
mod lora;
mod lora_formats;
mod model_files;
mod optim;
mod pipelines;
mod published_rewards;
mod recomputation;
mod refl;
mod schedulers;
mod sd;
mod support;
mod tiles;
mod tokenizers;
