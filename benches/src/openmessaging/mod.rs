//! The workload runner behind `cuemq-bench`: OpenMessaging's workload files, driven against a broker, every message
//! verified.
//!
//! ```text
//! cuemq-bench benches/workloads/1-topic-1-partition-1kb.yaml --engine mmap --flush durable
//! cuemq-bench benches/workloads/*.yaml --seconds 10 --warmup-seconds 2
//! ```
//!
//! A [`Workload`](workload::Workload) is read from YAML; [`run::run`] creates its topics, producers and consumers
//! through a [`Driver`](driver::Driver) and conducts the phases. Threads of [`publisher`] send by a
//! [`Schedule`](schedule::Schedule) and those of [`subscriber`] receive; a [`RateSearch`](rate_search::RateSearch) and a
//! [`Backlog`](backlog::Backlog) decide from counts and times alone. Each body carries what
//! [`payload`] stamps on it, and a [`Verifier`](verifier::Verifier) per subscription finds what is lost, altered,
//! doubled or out of order. [`outcome`] has OpenMessaging's names, [`console`] shows it.

pub mod backlog;
pub mod command;
pub mod console;
pub mod control;
pub mod driver;
pub mod embedded;
mod fields;
pub mod keys;
pub mod outcome;
pub mod payload;
pub mod publisher;
pub mod rate_search;
pub mod run;
pub mod schedule;
pub mod statistics;
pub mod subscriber;
pub mod verifier;
pub mod workload;
