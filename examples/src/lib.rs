//! What the example programs share: opening a broker from arguments, reading lines, sending them, telling the outcome.
//!
//! Each program in `examples/examples/` is run to its end by CI; it exits with an error when what it shows is not so.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "programs for a terminal talk to it")]

pub mod backlog;
pub mod field;
pub mod histogram;
pub mod input;
pub mod ledger;
pub mod order_check;
pub mod pipeline;
pub mod progress;
pub mod rounds;
pub mod shop;
pub mod stopwatch;
pub mod store;
pub mod table;
pub mod tally;
pub mod tracing;
