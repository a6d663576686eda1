//! Whatever an operator does is written down in the write that does it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]

#[macro_use]
mod common;

use common::next;
use common::store::Store;
use cuemq::storage_api::ErrorKind as StorageKind;
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::{
    AuditAction, AuditRecord, Broker, DeadLetters, LetterFilter, QueueOffset, RedriveOptions, RedriveTo, Timestamp,
    TopicSpec,
};

on_every_engine!(
    a_change_of_queues_is_written_down,
    what_becomes_of_letters_is_written_down,
    many_writes_of_one_operation_are_one_entry,
    what_is_not_done_is_not_written_down,
);

fn log(broker: &Broker) -> Vec<AuditRecord> {
    broker.audit_log(Timestamp::MIN, 1000).unwrap()
}

fn said(broker: &Broker) -> Vec<(AuditAction, String)> {
    log(broker).into_iter().map(|entry| (entry.action, entry.note)).collect()
}

async fn letters(broker: &Broker, count: usize) -> DeadLetters {
    let producer = broker.producer("orders").await.unwrap();
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    for n in 0..count {
        producer.send(n.to_string()).await.unwrap();
        next(&mut consumer).await.reject("no").await.unwrap();
    }
    broker.dead_letters("group").unwrap()
}

async fn a_change_of_queues_is_written_down(store: Store) {
    let broker = store.open().await;
    broker.create_topic(TopicSpec::new("orders").queues(4)).await.unwrap();
    broker.set_queues("orders", 16).await.unwrap();
    broker.set_queues("orders", 16).await.unwrap();
    broker.set_queues("orders", 2).await.unwrap();
    broker.set_queues("missing", 2).await.unwrap_err();
    let broker = store.reopen(broker).await;
    let entries = log(&broker);
    assert!(entries.iter().all(|e| e.topic.as_deref() == Some("orders") && e.group.is_none() && e.queues.is_empty()));
    let change = |note: &str| (AuditAction::QueueChange, note.to_owned());
    assert_eq!(said(&broker), [change("from 4 to 16 queues"), change("from 16 to 2 queues")]);
    broker.shutdown().await.unwrap();
}

async fn what_becomes_of_letters_is_written_down(store: Store) {
    let broker = store.open().await;
    let letters = letters(&broker, 6).await;
    letters.redrive(QueueOffset::ZERO, RedriveTo::Origin).await.unwrap();
    letters.redrive(QueueOffset::ZERO, RedriveTo::Origin).await.unwrap_err();
    letters.redrive(QueueOffset::new(2), RedriveTo::Group).await.unwrap();
    letters.purge_one(QueueOffset::new(1)).await.unwrap();
    letters.purge(&LetterFilter::all()).await.unwrap();
    letters.purge(&LetterFilter::all()).await.unwrap();
    drop(letters);
    let broker = store.reopen(broker).await;
    assert!(log(&broker).iter().all(|entry| entry.group.as_deref() == Some("group") && entry.topic.is_none()));
    let expected = [
        (AuditAction::Redrive, "1 dead letters to their topics"),
        (AuditAction::Redrive, "1 dead letters to the group"),
        (AuditAction::Purge, "1 dead letters"),
        (AuditAction::Purge, "3 dead letters"),
    ];
    assert_eq!(said(&broker), expected.map(|(action, note)| (action, note.to_owned())));
    broker.shutdown().await.unwrap();
}

async fn many_writes_of_one_operation_are_one_entry(store: Store) {
    let broker = store.open().await;
    let letters = letters(&broker, 300).await;
    let options = RedriveOptions::new().to(RedriveTo::Group);
    assert_eq!(letters.redrive_all(&LetterFilter::all(), options).await.unwrap().redriven, 300);
    assert_eq!(said(&broker), [(AuditAction::Redrive, "300 dead letters to the group".to_owned())]);
    broker.shutdown().await.unwrap();
}

async fn what_is_not_done_is_not_written_down(store: Store) {
    let broker = store.open().await;
    let letters = letters(&broker, 2).await;
    store.faults.fail(Operation::Apply, 1, Fault::Refuse(StorageKind::Full));
    letters.purge(&LetterFilter::all()).await.unwrap_err();
    assert_eq!((letters.count().unwrap(), log(&broker)), (2, Vec::new()));
    letters.purge(&LetterFilter::all()).await.unwrap();
    assert_eq!((letters.count().unwrap(), log(&broker).len()), (0, 1));
    broker.shutdown().await.unwrap();
}
