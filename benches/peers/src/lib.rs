//! CueMQ beside other embedded logs and stores, in one process and one run.
//!
//! ```text
//! cargo bench --manifest-path benches/peers/Cargo.toml               some two minutes; prints a table
//! CUEMQ_BENCH=full cargo bench --manifest-path benches/peers/Cargo.toml
//! CUEMQ_BENCH_DIR=/mnt/disk cargo bench --manifest-path benches/peers/Cargo.toml
//! cargo bench --manifest-path benches/peers/Cargo.toml -- --test     a tiny pass that only checks
//! ```
//!
//! A [`Contender`](contender::Contender) opens a [`Store`](store::Store); [`load`] appends to it against the clock and
//! reads everything back, checked message by message; [`run`] lets all contenders take turns, several rounds of them;
//! [`report`] turns the rounds into rates and factors, which [`table`] shows. The report's data goes to
//! `target/bench-report/peers.json`.
//!
//! Every contender is used the way its documentation recommends for speed, gets the same bodies, and is built with
//! cargo's own release profile. What it promises and what it leaves out is said beside its figures:
//! [`Contender::terms`](contender::Contender::terms).

pub mod contender;
pub mod load;
pub mod profile;
pub mod report;
pub mod run;
pub mod store;
mod stores;
pub mod table;
pub mod versions;

pub use cuemq_benches::{Failure, Result};
