//! A shop whose orders, stock and shipments are in one store: its transactions, and a check of what they have left.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use cuemq::{ApplicationTransaction, Broker, Delivery, Error, Message, Popped, Received};
use serde::{Deserialize, Serialize};

/// Where orders are sent to.
pub const ORDERS: &str = "orders";
/// Where what was taken from the stock is sent to.
pub const SHIPPING: &str = "shipping";
/// Where orders are sent to for which there was not enough.
pub const REFUSED: &str = "refused";
/// What there is to buy, and how much of it there is in the beginning, or so many times that.
pub const GOODS: [(&str, u64); 4] = [("apples", 400), ("books", 300), ("clocks", 50), ("drums", 900)];

/// Tables: numbers by the name of a good, or by the number of an order.
const STOCK: &str = "stock";
const ON_THE_WAY: &str = "on_the_way";
const DELIVERED: &str = "delivered";
const HANDLED: &str = "handled";
const SHIPPED: &str = "shipped";
const SHOP: &str = "shop";

/// One order, and what is left of it in the messages that follow from it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Counts from 0.
    pub number: u64,
    /// One of [`GOODS`].
    pub good: String,
    /// How many.
    pub amount: u64,
}

impl Order {
    /// The order of this number: always the same.
    #[must_use]
    pub fn of(number: u64) -> Self {
        let goods = GOODS.len() as u64;
        let good = GOODS.iter().map(|(good, _)| *good).cycle().nth(usize::try_from(number % goods).unwrap_or(0));
        Self { number, good: good.unwrap_or_default().to_owned(), amount: 1 + number * 7 % 5 }
    }

    fn message(&self) -> cuemq::Result<Message> {
        Ok(Message::json(self)?.key(self.number.to_string()).sharding_key(self.good.clone()))
    }
}

/// Fills the stock with so many times the [`GOODS`], once.
///
/// # Errors
/// What the transaction meets.
pub async fn open_shop(broker: &Broker, times: u64) -> Result<()> {
    let open = |t: &mut ApplicationTransaction| {
        if t.get(SHOP, "times")?.is_none() {
            set(t, SHOP, "times", times)?;
            GOODS.iter().try_for_each(|(good, amount)| set(t, STOCK, good, amount * times))?;
        }
        Ok(())
    };
    broker.transaction(open).await.context("the shop cannot be opened")?;
    Ok(())
}

/// Sends the next order, if there are fewer than `most`; whether there was one. Message and count are one transaction,
/// so that no order is sent twice whenever the program ends.
///
/// # Errors
/// What the transaction meets.
pub async fn send_next(broker: &Broker, most: u64) -> Result<bool> {
    let send = |t: &mut ApplicationTransaction| {
        let number = get(t, SHOP, "sent")?;
        if number == most {
            return Ok(false);
        }
        set(t, SHOP, "sent", number + 1)?;
        t.send(ORDERS, Order::of(number).message()?)?;
        Ok(true)
    };
    Ok(broker.transaction(send).await.context("an order cannot be sent")?.value)
}

/// Takes an order from the stock and sends it on, or refuses it; the acknowledgement is part of it.
///
/// # Errors
/// What the transaction meets: then nothing has happened, or it cannot be told.
pub async fn take_from_stock(broker: &Broker, delivery: &Delivery) -> cuemq::Result<Order> {
    let order: Order = delivery.json()?;
    let take = |t: &mut ApplicationTransaction| {
        take(t, &order)?;
        t.ack(delivery)
    };
    broker.transaction(take).await?;
    Ok(order)
}

/// The mistake that transactions are there to avoid: the acknowledgement is left to the caller, and whenever the program
/// ends before that, the order is taken twice.
///
/// # Errors
/// As [`take_from_stock`].
pub async fn take_carelessly(broker: &Broker, delivery: &Received) -> cuemq::Result<Order> {
    let order: Order = delivery.json()?;
    broker.transaction(|t| take(t, &order)).await?;
    Ok(order)
}

fn take(t: &mut ApplicationTransaction, order: &Order) -> cuemq::Result<()> {
    let left = get(t, STOCK, &order.good)?;
    let topic = match left.checked_sub(order.amount) {
        Some(rest) => {
            set(t, STOCK, &order.good, rest)?;
            add(t, ON_THE_WAY, &order.good, order.amount)?;
            SHIPPING
        }
        None => REFUSED,
    };
    add(t, HANDLED, &order.number.to_string(), 1)?;
    t.send(topic, order.message()?)
}

/// Ships what was taken from the stock; the acknowledgement is part of it.
///
/// # Errors
/// As [`take_from_stock`].
pub async fn ship(broker: &Broker, parcel: &Popped) -> cuemq::Result<Order> {
    let order: Order = parcel.json()?;
    let ship = |t: &mut ApplicationTransaction| {
        let on_the_way = get(t, ON_THE_WAY, &order.good)?;
        let rest = on_the_way.checked_sub(order.amount);
        set(t, ON_THE_WAY, &order.good, rest.ok_or_else(|| Error::aborted("more is shipped than was taken"))?)?;
        add(t, DELIVERED, &order.good, order.amount)?;
        add(t, SHIPPED, &order.number.to_string(), 1)?;
        t.ack(parcel)
    };
    broker.transaction(ship).await?;
    Ok(order)
}

fn number_in(row: &Bytes) -> cuemq::Result<u64> {
    let text = std::str::from_utf8(row).ok().and_then(|text| text.parse().ok());
    text.ok_or_else(|| Error::aborted("a row is not a number"))
}

fn get(t: &mut ApplicationTransaction, table: &str, key: &str) -> cuemq::Result<u64> {
    t.get(table, key)?.map_or(Ok(0), |row| number_in(&row))
}

fn set(t: &mut ApplicationTransaction, table: &str, key: &str, number: u64) -> cuemq::Result<()> {
    t.put(table, key, number.to_string())
}

fn add(t: &mut ApplicationTransaction, table: &str, key: &str, more: u64) -> cuemq::Result<()> {
    let before = get(t, table, key)?;
    set(t, table, key, before + more)
}

/// Everything that a shop has stored.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Books {
    /// How many orders were sent, by the shop's own count.
    pub sent: u64,
    /// How many times the [`GOODS`] there were in the beginning; 0 before the shop is open.
    pub times: u64,
    /// By good: what is in stock, taken from it, and delivered.
    pub stock: BTreeMap<String, u64>,
    /// See `stock`.
    pub on_the_way: BTreeMap<String, u64>,
    /// See `stock`.
    pub delivered: BTreeMap<String, u64>,
    /// By order: how often it was taken from the stock or refused.
    pub handled: BTreeMap<u64, u64>,
    /// By order: how often it was shipped.
    pub shipped: BTreeMap<u64, u64>,
    /// The messages of each topic.
    pub orders: Vec<Order>,
    /// See `orders`.
    pub shipping: Vec<Order>,
    /// See `orders`.
    pub refused: Vec<Order>,
}

impl Books {
    /// Reads a shop's tables and topics.
    ///
    /// # Errors
    /// A failed read, or something that no shop stores.
    pub async fn read(broker: &Broker) -> Result<Self> {
        let goods = |rows: Vec<(String, u64)>| rows.into_iter().collect();
        let orders = |rows: Vec<(String, u64)>| {
            rows.into_iter().map(|(number, count)| Ok((number.parse()?, count))).collect::<Result<BTreeMap<_, _>>>()
        };
        Ok(Self {
            sent: broker.transaction(|t| get(t, SHOP, "sent")).await?.value,
            times: broker.transaction(|t| get(t, SHOP, "times")).await?.value,
            stock: goods(table(broker, STOCK).await?),
            on_the_way: goods(table(broker, ON_THE_WAY).await?),
            delivered: goods(table(broker, DELIVERED).await?),
            handled: orders(table(broker, HANDLED).await?)?,
            shipped: orders(table(broker, SHIPPED).await?)?,
            orders: messages(broker, ORDERS).await?,
            shipping: messages(broker, SHIPPING).await?,
            refused: messages(broker, REFUSED).await?,
        })
    }

    /// Whether every order of `most` has come to its end.
    #[must_use]
    pub fn finished(&self, most: u64) -> bool {
        self.sent == most && self.handled.len() as u64 == most && self.shipped.len() == self.shipping.len()
    }

    /// Everything that is wrong, at whatever moment the books were read; nothing if each order was sent once, each was
    /// handled at most once and sent on once for it, and no piece was lost or gained.
    #[must_use]
    pub fn audit(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let of = |table: &BTreeMap<String, u64>, good: &str| table.get(good).copied().unwrap_or(0);
        for (good, amount) in GOODS {
            let parts = [&self.stock, &self.on_the_way, &self.delivered].map(|table| of(table, good));
            let amount = amount * self.times;
            if parts.iter().sum::<u64>() != amount {
                wrong.push(format!("{good}: {parts:?} are in stock, on the way and delivered, together not {amount}"));
            }
            let taken = |orders: &[Order]| orders.iter().filter(|o| o.good == good).map(|o| o.amount).sum::<u64>();
            if taken(&self.shipping) != parts[1] + parts[2] {
                wrong.push(format!("{good}: {} were sent on, {} taken", taken(&self.shipping), parts[1] + parts[2]));
            }
        }
        each_once(&mut wrong, "sent", (0..self.sent).collect(), &self.orders);
        let onward: Vec<Order> = self.shipping.iter().chain(&self.refused).cloned().collect();
        each_once(&mut wrong, "sent on", self.handled.keys().copied().collect(), &onward);
        for (table, name) in [(&self.handled, "handled"), (&self.shipped, "shipped")] {
            let twice = table.iter().filter(|(_, times)| **times != 1);
            wrong.extend(twice.map(|(order, times)| format!("order {order} was {name} {times} times")));
        }
        let sent_on: BTreeSet<u64> = self.shipping.iter().map(|order| order.number).collect();
        let never_sent = self.shipped.keys().filter(|number| !sent_on.contains(number));
        wrong.extend(never_sent.map(|number| format!("order {number} was shipped and never sent on")));
        wrong
    }
}

/// Compares what should be there once with what is there.
fn each_once(wrong: &mut Vec<String>, what: &str, expected: Vec<u64>, found: &[Order]) {
    let mut numbers: Vec<u64> = found.iter().map(|order| order.number).collect();
    numbers.sort_unstable();
    if numbers != expected {
        wrong.push(format!("orders {what}: {numbers:?} instead of {expected:?}"));
    }
    let altered = found.iter().filter(|order| **order != Order::of(order.number));
    wrong.extend(altered.map(|order| format!("order {} was altered: {order:?}", order.number)));
}

async fn table(broker: &Broker, name: &str) -> Result<Vec<(String, u64)>> {
    let (mut rows, mut from) = (Vec::new(), Vec::new());
    loop {
        let page = broker.transaction(|t| t.scan(name, &from, None, 1000)).await?.value;
        let Some((last, _)) = page.last() else { return Ok(rows) };
        from = [last, &b"\0"[..]].concat();
        for (key, value) in page {
            rows.push((String::from_utf8(key.to_vec())?, number_in(&value)?));
        }
    }
}

async fn messages(broker: &Broker, topic: &str) -> Result<Vec<Order>> {
    if !broker.topics().iter().any(|known| known == topic) {
        return Ok(Vec::new());
    }
    let mut pull = broker.pull_consumer("auditor").await?;
    pull.assign_topic(topic).await?;
    let mut orders = Vec::new();
    loop {
        let page = pull.poll(1000, Duration::ZERO).await?;
        if page.is_empty() {
            return Ok(orders);
        }
        for message in &page {
            orders.push(order_of(message)?);
        }
    }
}

fn order_of(message: &Received) -> Result<Order> {
    let Ok(order) = message.json() else { bail!("a message of {} is not an order", message.topic()) };
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Books {
        let orders = [0, 1, 2].map(Order::of).to_vec();
        let (apples, books) = (orders[0].amount, orders[1].amount);
        let mut stock: BTreeMap<String, u64> = GOODS.iter().map(|(good, n)| ((*good).to_owned(), *n)).collect();
        *stock.get_mut("apples").unwrap() -= apples;
        *stock.get_mut("books").unwrap() -= books;
        Books {
            sent: 3,
            times: 1,
            stock,
            on_the_way: [("books".to_owned(), books)].into(),
            delivered: [("apples".to_owned(), apples)].into(),
            handled: [(0, 1), (1, 1)].into(),
            shipped: [(0, 1)].into(),
            shipping: orders[..2].to_vec(),
            refused: Vec::new(),
            orders,
        }
    }

    #[test]
    fn good_books_pass_at_any_moment() {
        assert_eq!(good().audit(), [""; 0]);
        assert_eq!(Books::default().audit(), [""; 0]);
        assert!(!good().finished(3));
    }

    #[test]
    fn every_kind_of_damage_is_found() {
        let damages: [fn(&mut Books); 8] = [
            |books| drop(books.orders.pop()),
            |books| books.orders.push(Order::of(0)),
            |books| books.shipping.push(Order::of(1)),
            |books| drop(books.shipping.pop()),
            |books| *books.stock.get_mut("drums").unwrap() -= 1,
            |books| {
                books.handled.insert(1, 2);
            },
            |books| {
                books.shipped.insert(2, 1);
            },
            |books| books.orders[0].amount += 1,
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            let mut books = good();
            damage(&mut books);
            assert!(!books.audit().is_empty(), "damage {number}");
        }
    }
}
