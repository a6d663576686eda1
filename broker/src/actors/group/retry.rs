//! A failed message: its copy for later, or its dead letter, and the acknowledgement of the original, in one write.

use std::sync::Arc;

use actix::{AsyncContext, Context};
use cuemq_storage_api::{Attribute, AttributesBuilder, QueueId, QueueKey, Record, TopicName, WriteBatch};

use super::offsets::OffsetOwner;
use super::{GroupActor, GroupRequest, RetryRequest};
use crate::domain::delay::TimerKey;
use crate::error::Result;
use crate::message::{ATTEMPTS, DEAD_REASON, ORIGIN_ID, ORIGIN_TOPIC};
use crate::settings::Flush;
use crate::tables::delay::{self, DelayOrigin, DelayRow};

impl GroupActor {
    pub(super) fn retry(&mut self, request: RetryRequest, ctx: &Context<Self>) {
        let checked = self.check_lease(&request.member, &request.queue, request.lease);
        match checked.and_then(|()| self.retry_batch(&request)) {
            Ok((batch, timer)) => {
                let (shared, inbox, me) = (Arc::clone(&self.shared), Arc::clone(&self.inbox), ctx.address());
                self.shared.storage.write(batch, Flush::Buffered, move |result| {
                    if result.is_ok() {
                        // Only now the original is done. A group that is gone reads that from storage when it is back.
                        let _ = inbox.push(acknowledgement(&request), &me);
                    }
                    if let (Ok(_), Some(timer)) = (&result, timer) {
                        shared.delayed.add(1);
                        shared.delay_handle().stored(vec![timer]);
                    }
                    let _ = request.reply.send(result.map(|_| ()).map_err(|error| error.get()));
                });
            }
            Err(error) => {
                let _ = request.reply.send(Err(error));
            }
        }
    }

    fn retry_batch(&self, request: &RetryRequest) -> Result<(WriteBatch, Option<TimerKey>)> {
        let now = self.shared.clock.now();
        let mut batch = WriteBatch::new(now);
        let policy_delay = self.policy.delay_of(request.failures);
        let timer = match policy_delay {
            Some(pause) => {
                let timer = TimerKey::new(now.plus(request.delay.unwrap_or(pause)), self.shared.take_number());
                let row = DelayRow {
                    topic: TopicName::retry_of(&self.group),
                    queue: Some(QueueId::FIRST),
                    origin: DelayOrigin::Retry,
                    record: self.copy(request, None)?,
                };
                batch.put(&delay::TABLE, delay::key(timer), row.encode());
                Some(timer)
            }
            None => {
                let letters = QueueKey::new(TopicName::dead_letter_of(&self.group), QueueId::FIRST);
                batch.append(&letters, self.copy(request, Some("retries exceeded"))?);
                None
            }
        };
        let owner = OffsetOwner { queue: request.queue.clone(), member: None };
        self.offsets.acknowledge_in(&owner, request.stored.offset, &mut batch);
        Ok((batch, timer))
    }

    /// The same message with the broker's own properties brought up to date.
    fn copy(&self, request: &RetryRequest, dead_reason: Option<&str>) -> Result<Record> {
        let original = &request.stored.record;
        let mut builder = AttributesBuilder::default();
        let mut origin_topic = None;
        for attribute in original.attributes.iter() {
            match attribute {
                Attribute::Tag(tag) => builder.tag(tag),
                Attribute::Key(key) => builder.key(key),
                Attribute::ShardingKey(key) => builder.sharding_key(key),
                Attribute::Property(ORIGIN_TOPIC, topic) => {
                    origin_topic = Some(topic);
                    &mut builder
                }
                Attribute::Property(ATTEMPTS | ORIGIN_ID, _) => &mut builder,
                Attribute::Property(name, value) => builder.property(name, value),
            };
        }
        builder
            .property(ORIGIN_TOPIC, origin_topic.unwrap_or(request.queue.topic.as_str()))
            .property(ORIGIN_ID, &request.origin_id.to_string())
            .property(ATTEMPTS, &request.failures.to_string());
        if let Some(reason) = dead_reason {
            builder.property(DEAD_REASON, reason);
        }
        Ok(Record::new(original.body.clone(), original.born_at).with_attributes(builder.build()?))
    }
}

fn acknowledgement(request: &RetryRequest) -> GroupRequest {
    let offset = request.stored.offset;
    GroupRequest::Acknowledge {
        member: request.member.clone(),
        queue: request.queue.clone(),
        lease: request.lease,
        ranges: vec![offset..offset.plus(1)],
        reply: None,
    }
}
