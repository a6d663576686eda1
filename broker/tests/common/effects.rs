//! The effects that messages have in transactions: rows that count them, and messages that they are sent on as.

use cuemq::{ApplicationTransaction, Broker, Received, Result};

use super::checker::number_of;
use super::{bodies, read_all};

/// Counts a message, and sends its number on.
pub(crate) fn count(t: &mut ApplicationTransaction, order: &Received) -> Result<()> {
    let n = number_of(order);
    let seen = t.get("seen", n.to_string())?.map_or(0, |row| row[0]);
    t.put("seen", n.to_string(), vec![seen + 1])?;
    t.send("shipping", n.to_string())
}

/// The numbers of the messages and how often each was counted.
pub(crate) async fn counted(broker: &Broker) -> Vec<(u64, u8)> {
    let rows = broker.transaction(|t| t.scan("seen", "", None, 10_000)).await.unwrap().value;
    let row =
        |(key, value): &(bytes::Bytes, bytes::Bytes)| (std::str::from_utf8(key).unwrap().parse().unwrap(), value[0]);
    let mut counted: Vec<(u64, u8)> = rows.iter().map(row).collect();
    counted.sort_unstable();
    counted
}

/// The numbers that were sent on.
pub(crate) async fn shipped(broker: &Broker) -> Vec<u64> {
    let mut shipped: Vec<u64> =
        bodies(&read_all(broker, "shipping").await).iter().map(|body| body.parse().unwrap()).collect();
    shipped.sort_unstable();
    shipped
}

/// Each message below this was counted once and sent on once.
pub(crate) async fn assert_each_once(broker: &Broker, messages: u64) {
    assert_eq!(counted(broker).await, (0..messages).map(|n| (n, 1)).collect::<Vec<_>>());
    assert_eq!(shipped(broker).await, (0..messages).collect::<Vec<_>>());
}
