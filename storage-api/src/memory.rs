//! The executable specification. (Being written.)
/// placeholder
#[derive(Debug)]
pub struct MemoryEngine;
