//! Faults on request. (Being written.)
/// placeholder
#[derive(Debug)]
pub struct FaultEngine;
