//! CueMQ: an actor-model message broker with pluggable storage engines, inside your process.

pub mod limits;

mod actors;
mod broker;
mod builder;
mod clock;
mod consumer;
mod domain;
#[cfg(feature = "mmap")]
mod engines;
mod error;
mod message;
mod producer;
mod runtime;
mod settings;
mod shared;
mod state;
mod storage;
mod tables;
mod transaction;

pub use cuemq_storage_api as storage_api;

pub use actors::gateway::{Deliver, GatewayActor, Publish, PublishBatch};
pub use actors::group::{GroupDescription, MemberDescription, QueueLag};
pub use broker::{Broker, QueueDescription, TopicDescription};
pub use builder::BrokerBuilder;
pub use clock::{Clock, ManualClock, Sleep};
pub use consumer::{Consumer, ConsumerBuilder, Delivery, PullConsumer, Received, SeekTo, StartAt, WorkerHandle};
pub use cuemq_storage_api::{Engine, FaultEngine, MemoryEngine, QueueId, QueueKey, QueueOffset, Timestamp};
pub use domain::assignment::AssignmentStrategy;
pub use domain::retry::RetryPolicy;
pub use error::{Error, ErrorKind, Rejected, Result};
pub use message::{AckLevel, Message, MessageId, Receipt};
pub use producer::{PendingReceipt, Producer};
pub use settings::{BrokerSettings, Flush, InvalidSetting, TopicSpec};
pub use shared::ProbePoint;
pub use state::BrokerState;
pub use transaction::{Decision, HalfMessage, Transaction, TransactionId, TransactionListener, TransactionProducer};
