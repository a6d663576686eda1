//! CueMQ's LSM engine: the [storage contract](cuemq_storage_api) over [fjall](https://docs.rs/fjall), an LSM tree.

mod directory;
mod disk_space;
mod engine;
mod fjall_kv;
mod keys;
mod kv;
mod kv_engine;
#[cfg(test)]
mod memory_kv;
mod progress;
mod registry;
mod settings;
mod watermark;

pub use engine::LsmEngine;
pub use settings::LsmSettings;

#[cfg(test)]
mod tests;
