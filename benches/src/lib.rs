//! What `cargo bench` is made of: the loads, the machine's limits they are held against, and the report.
//!
//! A [`Configuration`](configuration::Configuration) names one thing to measure; [`paths::build`] makes the
//! [`Rig`](paths::Rig) that carries it out and checks that everything it counted is really there. Criterion times the
//! rigs in `benches/engines.rs`; [`measured`] reads its results back, [`report`] judges them against [`limits`], and
//! [`table`], [`plot`] and [`page`] show them.

pub mod configuration;
pub mod limits;
pub mod machine;
pub mod measured;
pub mod page;
pub mod paths;
pub mod place;
pub mod plot;
pub mod profile;
pub mod report;
pub mod stopwatch;
pub mod store;
pub mod table;
pub mod workload;

/// Why a benchmark failed. Its text is all that anybody needs of it: a failure ends the run.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything that can fail in a benchmark.
pub type Result<T> = std::result::Result<T, Failure>;
