//! What `cargo bench` is made of: the loads, the machine's limits they are held against, and the report.
//!
//! ```text
//! cargo bench                                        one to two minutes; prints a table, writes target/bench-report
//! CUEMQ_BENCH=full cargo bench                       some 20 minutes, more sizes and batches
//! CUEMQ_BENCH_DIR=/mnt/disk cargo bench              keeps the stores there; by default in target/bench-data
//! cargo bench -- append_durable                      only what has this in its name
//! cargo bench -- --save-baseline before              then later: cargo bench -- --baseline before
//! cargo bench -- --test                              a tiny pass of everything that only checks
//! ```
//!
//! A [`Configuration`](configuration::Configuration) names one thing to measure; [`paths::build`] makes the
//! [`Rig`](paths::Rig) that carries it out and checks that everything it counted is really there. Criterion times the
//! rigs in `benches/engines.rs`; [`measured`] reads its results back, [`report`] judges them against [`limits`], and
//! [`table`], [`plot`] and [`page`] show them.

pub mod configuration;
pub mod limits;
pub mod machine;
pub mod measured;
pub mod moment;
pub mod page;
pub mod paths;
pub mod place;
pub mod plot;
pub mod profile;
pub mod report;
pub mod stopwatch;
pub mod store;
pub mod table;
pub mod targets;
pub mod workload;

/// Why a benchmark failed. Its text is all that anybody needs of it: a failure ends the run.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything that can fail in a benchmark.
pub type Result<T> = std::result::Result<T, Failure>;
