//! What `cargo bench` is made of: the loads, the machine's limits they are held against, and the report.
//!
//! It has two parts. `targets` holds every target of the project's speed against its own limit, measured right beside
//! it, several times in turns; `engines` compares the engines with criterion. Both check everything they count, say
//! what is flushed, and write one page, `target/bench-report/index.html`, with the same in `summary.json`; a part that
//! was not run keeps its last results and their date.
//!
//! ```text
//! cargo bench                                        both parts, some minutes
//! cargo bench --bench targets                        only the targets
//! cargo bench --bench targets -- 5                   only target 5 (also: -- 1 8, or a part of a title: -- commit)
//! cargo bench --bench engines                        only the comparison
//! cargo bench --bench engines -- append_durable      only what has this in its name
//! CUEMQ_BENCH=full cargo bench                       longer, with more sizes and batches and 10 M messages
//! CUEMQ_BENCH_DIR=/mnt/disk cargo bench              keeps the stores there; by default in target/bench-data
//! cargo bench -- --save-baseline before              then later: cargo bench -- --baseline before
//! cargo bench -- --test                              a tiny pass of everything that only checks
//! cargo bench --manifest-path benches/peers/Cargo.toml    target 9: embedded peers, a crate of its own
//! ```
//!
//! A [`Target`](targets::Target) measures [`Row`](targets::row::Row)s within a [`Context`](targets::Context); how much
//! is its [`Scale`](targets::scale::Scale); the [`Board`](targets::board::Board) keeps and shows them. What has to be
//! seen in a process of its own, such as a start, is done by the same program as a [`child`](targets::child).
//!
//! A [`Configuration`](configuration::Configuration) names one thing to compare; [`paths::build`] makes the
//! [`Rig`](paths::Rig) that carries it out and checks that everything it counted is really there. Criterion times the
//! rigs in `benches/engines.rs`; [`measured`] reads its results back, [`report`] judges them against [`limits`], and
//! [`table`], [`plot`] and [`page`] show them.

pub mod configuration;
pub mod limits;
pub mod machine;
pub mod measured;
pub mod moment;
pub mod neighbours;
pub mod openmessaging;
pub mod page;
pub mod paths;
pub mod place;
pub mod plot;
pub mod profile;
pub mod report;
mod rest;
pub mod stopwatch;
pub mod store;
pub mod table;
pub mod targets;
pub mod workload;

/// Why a benchmark failed. Its text is all that anybody needs of it: a failure ends the run.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The result of everything that can fail in a benchmark.
pub type Result<T> = std::result::Result<T, Failure>;
