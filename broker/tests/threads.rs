//! A broker's threads end with it, whichever way it ends. In a process of its own, because it counts them.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]
#![cfg(target_os = "linux")]

#[macro_use]
mod common;

use std::sync::Mutex;

use common::checker::numbered;
use common::store::{Kind, Store};
use common::{run, take, until};
use cuemq::storage_api::ErrorKind as StorageKind;
use cuemq::storage_api::fault::{Fault, Operation};
use cuemq::{Broker, BrokerState};

/// One at a time: each counts the threads of the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// The broker's threads that live, by name.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // A thread may end between the listing and the reading.
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let ours = |name: &String| ["cuemq", "actix-rt", "fjall"].iter().any(|prefix| name.starts_with(prefix));
    names.map(|name| name.trim().to_owned()).filter(ours).collect()
}

async fn none_left(after: &str) {
    until(&format!("the end of all threads after {after}: {:?}", threads()), || threads().is_empty()).await;
}

async fn work(broker: &Broker) {
    let producer = broker.producer("orders").await.unwrap();
    for n in 0..3 {
        producer.send(numbered(n)).await.unwrap();
    }
    let mut consumer = broker.consumer("group").subscribe("orders").build().await.unwrap();
    take(&mut consumer, 3).await;
}

#[test]
fn a_broker_has_threads_and_a_shutdown_ends_them() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for kind in [Kind::Memory, Kind::Mmap, Kind::Lsm] {
        run(async {
            let store = Store::new(kind);
            let broker = store.open().await;
            work(&broker).await;
            for part in ["cuemq-system", "cuemq-sync", "cuemq-clock", "cuemq-maintain", "actix-rt"] {
                // A thread gives itself its name, some time after it was started.
                until(part, || threads().iter().any(|name| name.starts_with(part))).await;
            }
            broker.shutdown().await.unwrap();
            drop(broker);
            none_left("a shutdown").await;
        });
    }
}

#[test]
fn dropping_the_last_handle_ends_all_threads() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for kind in [Kind::Memory, Kind::Mmap, Kind::Lsm] {
        run(async {
            let store = Store::new(kind);
            let broker = store.open().await;
            work(&broker).await;
            let consumer = broker.consumer("other").subscribe("orders").build().await.unwrap();
            let worker = consumer.spawn(2, async |_| Ok::<(), String>(()));
            drop((broker, worker));
            none_left("a drop").await;
        });
    }
}

#[test]
fn a_hundred_brokers_leave_no_thread() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    run(async {
        for round in 0..100 {
            let store = Store::new(if round % 4 == 0 { Kind::Mmap } else { Kind::Memory });
            let broker = store.open().await;
            broker.producer("orders").await.unwrap().send(numbered(round)).await.unwrap();
            broker.shutdown().await.unwrap();
        }
        none_left("a hundred brokers").await;
    });
}

#[test]
fn a_broker_that_failed_leaves_no_thread() {
    let _alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for kind in [Kind::Memory, Kind::Mmap, Kind::Lsm] {
        run(async {
            let store = Store::new(kind);
            let broker = store.open().await;
            let producer = broker.producer("orders").await.unwrap();
            store.faults.fail(Operation::Apply, 1, Fault::LoseThenFail(StorageKind::Io));
            producer.send(numbered(1)).await.unwrap_err();
            assert!(matches!(broker.state(), BrokerState::Failed(_)));
            drop((broker, producer));
            none_left("a failure").await;
            store.faults.fail(Operation::Scan, 1, Fault::Refuse(StorageKind::Io));
            store.builder().open().await.unwrap_err();
            none_left("a failed opening").await;
        });
    }
}
