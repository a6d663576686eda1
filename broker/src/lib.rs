//! CueMQ: a message broker of supervised actors over a storage engine of your choice, inside your process.
//!
//! | to... | use |
//! |---|---|
//! | open a broker | [`Broker::open`], [`Broker::builder`] with an engine, [`Broker::in_memory`], [`Broker::temp`] |
//! | send | [`Broker::producer`]: [`Producer::send`], [`enqueue`](Producer::enqueue), [`send_batch`](Producer::send_batch), [`send_with`](Producer::send_with), [`send_one_way`](Producer::send_one_way) |
//! | consume as a group | [`Broker::consumer`]: [`Consumer::next`], [`run`](Consumer::run), [`spawn`](Consumer::spawn) |
//! | consume by pop | [`Broker::pop_consumer`]: [`PopConsumer::pop`], then [`ack`](PopConsumer::ack), [`nack`](PopConsumer::nack), [`reject`](PopConsumer::reject) or [`renew`](PopConsumer::renew) by [`PopReceipt`] |
//! | read by offset | [`Broker::pull_consumer`]: [`PullConsumer::poll`], [`seek`](PullConsumer::seek), [`commit`](PullConsumer::commit) |
//! | see to what could not be consumed | [`Delivery::retry_in`], [`fail`](Delivery::fail), [`reject`](Delivery::reject); [`Broker::dead_letters`]: [`DeadLetters::browse`], [`redrive`](DeadLetters::redrive), [`redrive_all`](DeadLetters::redrive_all), [`purge`](DeadLetters::purge) |
//! | send later | [`Message::delay`], [`Message::delay_level`], [`Message::deliver_at`] |
//! | take a delayed message back, or move it | [`Producer::recall`], [`reschedule`](Producer::reschedule) by [`Receipt::scheduled`] |
//! | send again and again, by a cron pattern | [`Producer::send_recurring`] with a [`Recurrence`], [`Broker::recurring`], [`cancel_recurring`](Broker::cancel_recurring) |
//! | send with a local transaction | [`Broker::transaction_producer`] |
//! | change messages, acknowledgements and tables of your own in one transaction | [`Broker::transaction`] |
//! | connect actix actors of your own | [`Broker::gateway`] with [`Publish`], [`ConsumerBuilder::deliver_to`] with [`Deliver`] |
//! | look messages up | [`Broker::message`], [`messages`](Broker::messages), [`find_by_key`](Broker::find_by_key), [`query`](Broker::query) |
//! | administer | [`Broker::create_topic`], [`describe_topic`](Broker::describe_topic), [`delete_topic`](Broker::delete_topic), [`describe_group`](Broker::describe_group), [`pause_group`](Broker::pause_group) |
//! | move a group's offsets | [`Broker::reset_group`], [`skip`](Broker::skip), then [`OffsetPlan::confirm`]; what was done: [`Broker::audit_log`] |
//! | move a backlog out of the way | [`Broker::divert`] |
//! | test with your own time | [`ManualClock`] |
//!
//! All handles are cheap to clone (but consumers), work on any async runtime and on none, and keep their broker alive;
//! [`Broker::shutdown`] ends it cleanly. No global state: several brokers may run in one process.
//!
//! # What an acknowledgement means
//!
//! [`Receipt::level`] says what a message survives: [`AckLevel::Durable`] a power cut, [`AckLevel::Buffered`] the end of
//! the process, [`AckLevel::Memory`] nothing. [`Error::is_certainly_not_applied`] says whether a failed request surely
//! did nothing. Messages come at least once: after a crash or a failure again.
//!
//! # Features
//!
//! `mmap` (default): [`Broker::open`] and [`Broker::temp`] over the commit-log engine. Without it the crate names no
//! engine but the in-memory one.

pub mod limits;

mod actors;
mod admission;
mod application;
mod audit;
mod broker;
mod builder;
mod clock;
mod consumer;
mod dead_letters;
mod divert;
mod domain;
#[cfg(feature = "mmap")]
mod engines;
mod error;
mod message;
mod offset_plan;
mod pause;
mod producer;
mod query;
mod recurring;
mod runtime;
mod scheduled;
mod settings;
mod shared;
mod state;
mod storage;
mod tables;
mod transaction;

pub use cuemq_storage_api as storage_api;

pub use actors::gateway::{Deliver, GatewayActor, Publish, PublishBatch};
pub use actors::group::{GroupDescription, MemberDescription, QueueLag};
pub use application::{ApplicationTransaction, Committed};
pub use audit::{AuditRecord, AuditedMove};
pub use broker::{Broker, QueueDescription, TopicDescription};
pub use builder::BrokerBuilder;
pub use clock::{Clock, ManualClock, Sleep};
pub use consumer::{
    Acknowledgeable, Batch, Consumer, ConsumerBuilder, Delivery, PopConsumer, PopConsumerBuilder, Popped, PullConsumer,
    Received, SeekTo, Settlement, StartAt, WorkerHandle,
};
pub use cuemq_storage_api::{Engine, FaultEngine, MemoryEngine, QueueId, QueueKey, QueueOffset, Timestamp};
pub use dead_letters::{
    ArrivalHook, Arrivals, DeadLetter, DeadLetters, LetterPage, LetterRef, Redrive, RedriveOptions, RedriveProgress,
    RedriveTo,
};
pub use divert::{DivertOptions, DivertProgress, DivertReport};
pub use domain::assignment::AssignmentStrategy;
pub use domain::audit::AuditAction;
pub use domain::expiry::OnExpiry;
pub use domain::failure::DeadReason;
pub use domain::length::{MaxLength, Overflow};
pub use domain::letters::LetterFilter;
pub use domain::offset_plan::{OffsetMove, ResetTo, Skip};
pub use domain::order::Order;
pub use domain::pop_receipt::PopReceipt;
pub use domain::recurrence::Recurrence;
pub use domain::retry::RetryPolicy;
pub use error::{Error, ErrorKind, Rejected, Result};
pub use message::{AckLevel, Message, MessageId, Receipt};
pub use offset_plan::OffsetPlan;
pub use producer::{PendingReceipt, Producer};
pub use query::{Cursor, Page, Query};
pub use recurring::{RecurrenceId, RecurringMessage};
pub use scheduled::{Recalled, Rescheduled, ScheduledId};
pub use settings::{BrokerSettings, Flush, InvalidSetting, TopicSpec};
pub use shared::ProbePoint;
pub use state::BrokerState;
pub use transaction::{Decision, HalfMessage, Transaction, TransactionId, TransactionListener, TransactionProducer};

/// Runs the programs of README and guide as tests.
#[cfg(all(doctest, feature = "mmap"))]
mod guide {
    #[doc = include_str!("../../README.md")]
    mod readme {}
    #[doc = include_str!("../../docs/guide/groups.md")]
    mod groups {}
    #[doc = include_str!("../../docs/guide/operations.md")]
    mod operations {}
    #[doc = include_str!("../../docs/guide/ordering.md")]
    mod ordering {}
    #[doc = include_str!("../../docs/guide/pop.md")]
    mod pop {}
    #[doc = include_str!("../../docs/guide/retries-and-dead-letters.md")]
    mod retries_and_dead_letters {}
    #[doc = include_str!("../../docs/guide/scaling.md")]
    mod scaling {}
    #[doc = include_str!("../../docs/guide/testing.md")]
    mod testing {}
    #[doc = include_str!("../../docs/guide/time.md")]
    mod time {}
    #[doc = include_str!("../../docs/guide/transactions.md")]
    mod transactions {}
    #[doc = include_str!("../../docs/guide/ttl-and-limits.md")]
    mod ttl_and_limits {}
}
