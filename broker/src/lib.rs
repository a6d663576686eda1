//! Being written.

mod domain;
mod tables;
