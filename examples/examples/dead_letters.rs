//! What cannot be consumed: retries, rejection, dead letters, and the way back. Hours pass in a moment.

#![allow(clippy::print_stdout, reason = "a program for a terminal talks to it")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use cuemq::{
    Broker, Consumer, DeadLetters, DeadReason, Delivery, LetterFilter, ManualClock, Message, QueueOffset,
    RedriveOptions, RedriveTo, Timestamp,
};
use cuemq_examples::store::StoreArguments;
use cuemq_examples::table::print_grid;
use futures_util::FutureExt;

/// When the clock that is moved by hand starts: 2026-01-01, 00:00 UTC.
const NEW_YEAR: Timestamp = Timestamp::from_millis(1_767_225_600_000);
/// The pauses before the 16 redeliveries, in seconds.
const PAUSES_S: [u64; 16] = [10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200];
/// Orders without a customer.
const ORPHANS: u64 = 9;
/// How many of them are sent again in a second.
const RATE: u32 = 2;

/// Follows messages that cannot be consumed to the dead letters and back.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    store: StoreArguments,
    /// A directory to keep, instead of a temporary one that is removed at the end
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    cuemq_examples::tracing::show();
    let temporary = tempfile::tempdir().context("no temporary directory")?;
    if !arguments.keep {
        arguments.store.dir = temporary.path().to_owned();
    }
    let clock = ManualClock::new(NEW_YEAR);
    let broker = arguments.store.builder()?.clock(clock.clock()).open().await?;
    let mut consumer = broker.consumer("warehouse").subscribe("orders").build().await?;
    let letters = broker.dead_letters("warehouse")?;
    let told = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&told);
    let hook = letters.on_arrival(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    })?;

    keep_failing(&broker, &mut consumer, &clock).await?;
    reject(&broker, &mut consumer).await?;
    show(&letters)?;
    bring_back(&letters, &mut consumer, &clock).await?;

    tokio::time::timeout(Duration::from_secs(10), async {
        while told.load(Ordering::SeqCst) < ORPHANS + 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .context("the hook was not called for every dead letter")?;
    drop(hook);
    ensure!(letters.count()? == 0, "a dead letter is left");
    broker.shutdown().await.context("the broker could not be closed cleanly")?;
    println!("no dead letter is left; the hook was told of all {}", ORPHANS + 1);
    Ok(())
}

/// The next message; an error when none comes.
async fn next(consumer: &mut Consumer) -> Result<Delivery> {
    Ok(tokio::time::timeout(Duration::from_secs(10), consumer.next()).await.context("a message did not come")??)
}

/// A message whose handler fails again and again, until it is dead.
async fn keep_failing(broker: &Broker, consumer: &mut Consumer, clock: &ManualClock) -> Result<()> {
    broker.producer("orders").await?.send(Message::new("7 pairs of shoes").key("order 1")).await?;
    let mut rows = Vec::new();
    for (attempt, pause) in (1..).zip(PAUSES_S.map(Some).into_iter().chain([None])) {
        let delivery = next(consumer).await?;
        ensure!(delivery.attempts() == attempt - 1, "delivery {attempt} has {} attempts", delivery.attempts());
        let at = clock.now().since(NEW_YEAR);
        let last = delivery.last_error().unwrap_or("-").to_owned();
        delivery.fail(format!("the shelf was empty at {}", hours(at))).await?;
        rows.push([
            attempt.to_string(),
            hours(at),
            last,
            pause.map_or_else(|| "dead".to_owned(), |s| format!("{s} s")),
        ]);
        let Some(seconds) = pause else { break };
        // A moment too early nothing comes.
        clock.advance(Duration::from_secs(seconds) - Duration::from_millis(1));
        tokio::task::yield_now().await;
        ensure!(consumer.next().now_or_never().is_none(), "a redelivery came too early");
        clock.advance(Duration::from_millis(1));
    }
    print_grid(["delivery", "after", "the one before said", "the next one after"], &rows);
    let passed = clock.now().since(NEW_YEAR);
    ensure!(passed == Duration::from_secs(4 * 3600 + 45 * 60 + 40), "the redeliveries took {passed:?}");
    ensure!(broker.dead_letters("warehouse")?.count()? == 1, "the message did not die with its last failure");
    Ok(())
}

/// Messages of which it is clear at once that nothing will help.
async fn reject(broker: &Broker, consumer: &mut Consumer) -> Result<()> {
    let producer = broker.producer("orders").await?;
    for n in 0..ORPHANS {
        producer.send(Message::new(format!("{n} hats")).key(format!("hats {n}")).tag("hat")).await?;
    }
    for _ in 0..ORPHANS {
        next(consumer).await?.reject("no such customer").await?;
    }
    Ok(())
}

/// What the dead letters say of themselves.
fn show(letters: &DeadLetters) -> Result<()> {
    let (mut rows, mut from) = (Vec::new(), Some(QueueOffset::ZERO));
    while let Some(at) = from {
        let page = letters.browse(at, 4, &LetterFilter::all())?;
        for letter in &page.letters {
            ensure!(letter.topic() == "orders", "a letter of another topic");
            let times = [letter.first_failed_at(), letter.died_at()].map(|at| at.unwrap_or(NEW_YEAR).since(NEW_YEAR));
            rows.push([
                String::from_utf8_lossy(letter.body()).into_owned(),
                letter.reason().to_string(),
                letter.attempts().to_string(),
                hours(times[0]),
                hours(times[1]),
                format!("{}/{} at {}", letter.topic(), letter.origin_queue(), letter.origin_offset()),
                letter.last_error().unwrap_or("-").to_owned(),
            ]);
        }
        from = page.next;
    }
    print_grid(["dead letter", "reason", "failures", "first", "died", "from", "last error"], &rows);
    ensure!(rows.len() as u64 == ORPHANS + 1 && letters.count()? == ORPHANS + 1, "{} letters were found", rows.len());
    Ok(())
}

/// One is mended, one thrown away, the others are sent again at a rate.
async fn bring_back(letters: &DeadLetters, consumer: &mut Consumer, clock: &ManualClock) -> Result<()> {
    let died = LetterFilter::all().reason(DeadReason::RetriesExceeded);
    let Some(shoes) = letters.browse(QueueOffset::ZERO, 1, &died)?.letters.pop() else {
        bail!("no letter died of its retries")
    };
    let mended = shoes.to_message().replace_body("6 pairs of shoes and an apology");
    letters.redrive_edited(&shoes, mended, RedriveTo::Origin).await?;
    let again = next(consumer).await?;
    ensure!(again.redriven_from() == Some(shoes.origin_id()) && again.attempts() == 0, "it did not start anew");
    println!("sent again as: {}", String::from_utf8_lossy(again.body()));
    again.ack().await?;
    let refused = letters.redrive(&shoes, RedriveTo::Origin).await;
    ensure!(refused.is_err(), "a letter was sent twice");

    ensure!(letters.purge(&LetterFilter::all().key("hats 0")).await? == 1, "not exactly one letter was purged");

    let progress = Arc::new(Mutex::new(Vec::new()));
    let (told, moved) = (Arc::clone(&progress), clock.clone());
    let start = clock.now();
    let options = RedriveOptions::new().to(RedriveTo::Group).per_second(RATE).on_progress(move |p| {
        if let Ok(mut told) = told.lock() {
            told.push([
                p.redriven.to_string(),
                format!("{} of {}", p.examined, p.total),
                hours(moved.now().since(start)),
            ]);
        }
    });
    let hats = LetterFilter::all().text("hats");
    let mut redrive = std::pin::pin!(letters.redrive_all(&hats, options));
    let sleepers = clock.sleepers();
    let done = loop {
        match redrive.as_mut().now_or_never() {
            Some(done) => break done?,
            // It waits for its turn; otherwise for a write.
            None if clock.sleepers() > sleepers => clock.advance(Duration::from_millis(100)),
            None => tokio::task::yield_now().await,
        }
    };
    ensure!(done.redriven == ORPHANS - 1, "{} letters were sent again", done.redriven);
    for _ in 0..done.redriven {
        let again = next(consumer).await?;
        ensure!(again.topic() == "orders" && again.attempts() == 0 && again.tag() == Some("hat"), "it was altered");
        again.ack().await?;
    }
    let rows = progress.lock().map(|told| told.clone()).unwrap_or_default();
    print_grid(["sent again", "looked at", "after"], &rows);
    let least = Duration::from_millis((done.redriven - 1) * 1000 / u64::from(RATE));
    ensure!(clock.now().since(start) >= least, "they were sent faster than {RATE} a second");
    Ok(())
}

fn hours(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, time.subsec_millis())
}
