//! Kills the shop with SIGKILL at random moments, and looks after each kill, from outside, whether every piece is
//! accounted for and every order has each effect at most once; in the end, exactly once.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and tells its seed")]

#[path = "../killing/mod.rs"]
mod killing;

use std::process::Command;

use cuemq_examples::shop::Books;
use cuemq_examples::store::{EngineKind, FlushKind, StoreArguments};
use killing::{Campaign, finish, program};

/// Kills per engine unless the environment says otherwise.
const KILLS: u64 = 8;
/// A child that is killed has written at most so many lines: one for each step that it was told is committed.
const MOST_LINES: u64 = 60;
/// More orders than any child comes to.
const ENDLESS: u64 = u64::MAX;
/// Orders that the last child, which nobody kills, adds to those that are there.
const ORDERS_AT_THE_END: u64 = 40;
/// The careless shop is found out long before so many kills.
const CARELESS_KILLS: u64 = 50;

/// A shop with so many times its goods in the beginning: enough for some orders to be refused, and most not.
fn command(store: &StoreArguments, orders: u64, times: u64) -> Command {
    let mut command = program("orders_stock_shipping", store);
    command.args(["--keep", "--steps", "--orders", &orders.to_string(), "--stock-times", &times.to_string()]);
    command
}

async fn audit(store: &StoreArguments) -> (Books, Vec<String>) {
    let broker = store.open().await.unwrap();
    let books = Books::read(&broker).await.unwrap();
    broker.shutdown().await.unwrap();
    let wrong = books.audit();
    (books, wrong)
}

fn store_in(directory: &tempfile::TempDir, engine: EngineKind) -> StoreArguments {
    StoreArguments { engine, dir: directory.path().join("store"), flush: FlushKind::Durable }
}

async fn survives_kills(test: &str, engine: EngineKind) {
    let mut campaign = Campaign::new(test, KILLS, MOST_LINES);
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(&directory, engine);
    let (seed, times, mut steps) = (campaign.seed(), 1 + campaign.kills() / 2, 0_u64);
    let mut books = Books::default();
    while campaign.kill_next(command(&store, ENDLESS, times), |_| {
        steps += 1;
        true
    }) {
        let wrong;
        (books, wrong) = audit(&store).await;
        let (killed, sent) = (campaign.killed(), books.sent);
        assert!(wrong.is_empty(), "seed {seed}, {killed} kills, {sent} orders: {wrong:?}");
        let done = books.sent + books.handled.len() as u64 + books.shipped.len() as u64;
        assert!(done >= steps, "seed {seed}, {killed} kills: {steps} steps were told, {done} are stored");
    }
    let orders = books.sent + ORDERS_AT_THE_END;
    finish(command(&store, orders, times), |_| true);
    let (books, wrong) = audit(&store).await;
    assert!(wrong.is_empty() && books.finished(orders), "seed {seed}: {wrong:?}");
    let (shipped, refused) = (books.shipped.len(), books.refused.len());
    println!(
        "{}: {} kills, {steps} steps told, {orders} orders, {shipped} shipped, {refused} refused",
        store.engine_name(),
        campaign.killed()
    );
}

#[tokio::test]
async fn the_commit_log_engine_has_each_effect_once() {
    survives_kills("the_commit_log_engine_has_each_effect_once", EngineKind::Mmap).await;
}

#[tokio::test]
async fn the_lsm_engine_has_each_effect_once() {
    survives_kills("the_lsm_engine_has_each_effect_once", EngineKind::Lsm).await;
}

/// The control: a shop that acknowledges apart from the effects has to be found out.
#[tokio::test]
async fn a_careless_shop_is_found_out() {
    let mut campaign = Campaign::careless("a_careless_shop_is_found_out", CARELESS_KILLS, MOST_LINES);
    let directory = tempfile::tempdir().unwrap();
    let store = store_in(&directory, EngineKind::Mmap);
    let careless = || {
        let mut command = command(&store, ENDLESS, 100);
        command.arg("--careless");
        command
    };
    while campaign.kill_next(careless(), |_| true) {
        let (_, wrong) = audit(&store).await;
        if wrong.iter().any(|wrong| wrong.contains("was handled 2 times")) {
            println!("found out after {} kills", campaign.killed());
            return;
        }
    }
    panic!("seed {}: {CARELESS_KILLS} kills, and nothing was done twice", campaign.seed());
}
