//! Being written.

pub mod files;
mod mapped_file;
