//! Kills the shop with SIGKILL at random moments, and looks after each kill, from outside, whether every piece is
//! accounted for and every order has each effect at most once; in the end, exactly once.
//!
//! `CUEMQ_KILL_COUNT` sets the number of kills per engine, `CUEMQ_KILL_SEED` repeats the choice of moments.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and tells its seed")]

use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cuemq_examples::shop::Books;
use cuemq_examples::store::{EngineKind, FlushKind, StoreArguments};

/// Kills per engine unless the environment says otherwise.
const KILLS: u64 = 8;
/// Orders for each kill: so many that the work lasts longer than the kills.
const ORDERS_PER_KILL: u64 = 60;
/// A child that is killed has written at most so many lines.
const MOST_LINES: u64 = 60;
/// A kill comes up to so many turns of an empty loop after the chosen line.
const MOST_SPINS: u64 = 20_000;

/// Numbers that are the same for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}: give a number")))
}

/// The example's program: `cargo test` builds it beside the directory of this test's program.
fn shop() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own program");
    let program = test.parent().and_then(|deps| deps.parent());
    let program = program.map(|profile| profile.join("examples/orders_stock_shipping"));
    let program = program.expect("a test's program lies in target/<profile>/deps");
    assert!(program.exists(), "{} is not built: run cargo build -p cuemq-examples --examples", program.display());
    program
}

fn command(store: &StoreArguments, orders: u64) -> Command {
    let mut command = Command::new(shop());
    command.args(["--engine", store.engine_name(), "--flush", "durable", "--keep", "--steps", "--orders"]);
    command.arg(orders.to_string()).arg("--dir").arg(&store.dir).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Runs a child and kills it after so many lines and turns; false when it was through before.
fn run_and_kill(store: &StoreArguments, orders: u64, lines: u64, spins: u64) -> bool {
    let mut child = command(store, orders).spawn().expect("the shop starts");
    let mut output = BufReader::new(child.stdout.take().expect("the output is piped"));
    let mut line = String::new();
    for _ in 0..lines {
        if output.read_line(&mut line).expect("the output is text") == 0 {
            break;
        }
    }
    for _ in 0..spins {
        std::thread::yield_now();
    }
    // On Unix this is SIGKILL. It may come too late, and then the child has ended by itself.
    child.kill().expect("a child can be killed");
    let status = child.wait().expect("a child can be waited for");
    assert!(status.code().is_none_or(|code| code == 0), "the shop failed before it was killed: {status}");
    status.code().is_none()
}

async fn audit(store: &StoreArguments) -> (Books, Vec<String>) {
    let broker = store.open().await.unwrap();
    let books = Books::read(&broker).await.unwrap();
    broker.shutdown().await.unwrap();
    let wrong = books.audit();
    (books, wrong)
}

async fn survives_kills(engine: EngineKind) {
    let seed = from_environment("CUEMQ_KILL_SEED").unwrap_or_else(|| RandomState::new().hash_one(engine as u8));
    println!("CUEMQ_KILL_SEED={seed}");
    let kills = from_environment("CUEMQ_KILL_COUNT").unwrap_or(KILLS);
    let (orders, mut random) = (kills * ORDERS_PER_KILL, Random(seed));
    let directory = tempfile::tempdir().unwrap();
    let store = StoreArguments { engine, dir: directory.path().join("store"), flush: FlushKind::Durable };
    let mut killed = 0;
    for _ in 0..kills {
        killed += u64::from(run_and_kill(&store, orders, random.below(MOST_LINES), random.below(MOST_SPINS)));
        let (books, wrong) = audit(&store).await;
        assert!(wrong.is_empty(), "seed {seed}, {killed} kills, {} orders: {wrong:?}", books.sent);
    }
    assert!(killed * 2 > kills, "only {killed} of {kills} children could be killed in time");
    let status = command(&store, orders).stdout(Stdio::null()).status().expect("the shop starts");
    assert!(status.success(), "seed {seed}: {status}");
    let (books, wrong) = audit(&store).await;
    assert!(wrong.is_empty() && books.finished(orders), "seed {seed}: {wrong:?}");
    println!("{}: {killed} kills, {orders} orders, {} shipped", store.engine_name(), books.shipped.len());
}

#[tokio::test]
async fn the_commit_log_engine_has_each_effect_once() {
    survives_kills(EngineKind::Mmap).await;
}

#[tokio::test]
async fn the_lsm_engine_has_each_effect_once() {
    survives_kills(EngineKind::Lsm).await;
}
