//! Whatever a producer decides about a half message, whoever of its group answers, and wherever the broker ends in
//! between: the message is visible once or never, never before, and a decision stands.
//!
//! Each cell of the matrix walks the same way on a store of its own:
//! ```text
//!  half message ─▶ local transaction ─▶ first check, not known yet ─▶ decision ─▶ delivery ─▶ said again, and the opposite
//! ```

#![allow(clippy::unwrap_used, reason = "a failed unwrap is how a test fails")]
#![allow(clippy::print_stdout, reason = "a failure says in which cell")]

#[macro_use]
mod common;

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use common::checker::{number_of, numbered};
use common::store::Store;
use common::{assert_nothing, manual_clock, read_all, soon, take, until};
use cuemq::storage_api::fault::Operation;
use cuemq::{Broker, Decision, ErrorKind, HalfMessage, ManualClock, Timestamp, TransactionId, TransactionProducer};
use futures_util::FutureExt;
use tokio::sync::{oneshot, watch};

on_every_engine!(
    committed,
    committed_by_another,
    rolled_back,
    rolled_back_by_another,
    never_decided,
    never_decided_with_another,
);

const GIVEN_UP: &str = "rmq_sys_TRANS_CHECK_MAX_TIME";
const FIRST_CHECK: Duration = Duration::from_secs(6);
const NEXT_CHECK: Duration = Duration::from_secs(30);
const MOST_CHECKS: u32 = 15;
const MILLISECOND: Duration = Duration::from_millis(1);
const NUMBER: u64 = 9;

/// Who is there after the local transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answers {
    /// The producer that began.
    TheSame,
    /// It was killed, and another member of its group knows of the transaction.
    Another,
}

/// Where the broker ends, and with it every producer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Restart {
    Nowhere,
    After(Step, End),
    /// The decision has been made and its write has not reached the store.
    BeforeTheDecisionIsStored,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    HalfMessage,
    LocalTransaction,
    FirstCheck,
    Decision,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Killed,
    ShutDown,
}

async fn committed(store: Store) {
    every_restart(&store, Some(Decision::Commit), Answers::TheSame).await;
}

async fn committed_by_another(store: Store) {
    every_restart(&store, Some(Decision::Commit), Answers::Another).await;
}

async fn rolled_back(store: Store) {
    every_restart(&store, Some(Decision::Rollback), Answers::TheSame).await;
}

async fn rolled_back_by_another(store: Store) {
    every_restart(&store, Some(Decision::Rollback), Answers::Another).await;
}

async fn never_decided(store: Store) {
    every_restart(&store, None, Answers::TheSame).await;
}

async fn never_decided_with_another(store: Store) {
    every_restart(&store, None, Answers::Another).await;
}

async fn every_restart(store: &Store, fate: Option<Decision>, answers: Answers) {
    let mut restarts = vec![Restart::Nowhere, Restart::BeforeTheDecisionIsStored];
    for step in [Step::HalfMessage, Step::LocalTransaction, Step::FirstCheck, Step::Decision] {
        restarts.extend([End::Killed, End::ShutDown].map(|end| Restart::After(step, end)));
    }
    for restart in restarts {
        println!("{fate:?}, {answers:?}, {restart:?}");
        play(Store::new(store.kind), fate, answers, restart).await;
    }
}

async fn play(store: Store, fate: Option<Decision>, answers: Answers, restart: Restart) {
    let mut shop = Shop::open(store, answers).await;
    let id = shop.begin().await;
    shop.hidden().await;
    shop.restart_if(restart, Step::HalfMessage).await;
    shop.hidden().await;
    shop.broker().transaction(|t| t.put("local", "order", vec![1])).await.unwrap();
    if answers == Answers::Another {
        shop.the_first_dies().await;
    }
    shop.restart_if(restart, Step::LocalTransaction).await;
    shop.checked(1).await;
    shop.hidden().await;
    shop.restart_if(restart, Step::FirstCheck).await;
    shop.hidden().await;
    match fate {
        Some(decision) => shop.decide(id, decision, restart).await,
        None => shop.decide_never(restart).await,
    }
    shop.restart_if(restart, Step::Decision).await;
    shop.delivered(fate).await;
    shop.said_again(id, fate.unwrap_or(Decision::Rollback)).await;
    // For ever.
    shop.restart(End::Killed).await;
    shop.nothing_more().await;
    shop.delivered(fate).await;
    shop.said_again(id, fate.unwrap_or(Decision::Rollback)).await;
    shop.close().await;
}

/// A broker and the producers of one group that live in its process.
struct Shop {
    store: Store,
    clock: ManualClock,
    broker: Option<Broker>,
    answers: Answers,
    first: Option<TransactionProducer>,
    another: Option<TransactionProducer>,
    /// Who was asked, and the number of the check.
    asked: watch::Sender<Vec<(&'static str, u32)>>,
    /// What a listener says.
    known: Arc<Mutex<Option<Decision>>>,
    /// What a listener waits for before it says it, once.
    hesitation: Arc<Mutex<Option<mpsc::Receiver<()>>>>,
}

const FIRST: &str = "the first";
const ANOTHER: &str = "another";

impl Shop {
    async fn open(store: Store, answers: Answers) -> Self {
        let (clock, asked, known) = (manual_clock(), watch::Sender::new(Vec::new()), Arc::default());
        let hesitation = Arc::default();
        let mut shop =
            Self { store, clock, broker: None, answers, first: None, another: None, asked, known, hesitation };
        shop.broker = Some(shop.store.open_at(&shop.clock).await);
        shop.first = Some(shop.producer(FIRST).await);
        shop
    }

    fn broker(&self) -> &Broker {
        self.broker.as_ref().unwrap()
    }

    /// One that is alive.
    fn alive(&self) -> &TransactionProducer {
        self.another.as_ref().or(self.first.as_ref()).unwrap()
    }

    async fn producer(&self, name: &'static str) -> TransactionProducer {
        let (asked, known, hesitation) = (self.asked.clone(), Arc::clone(&self.known), Arc::clone(&self.hesitation));
        let listener = move |half: HalfMessage| {
            asked.send_modify(|all| all.push((name, half.checks())));
            if let Some(word) = hesitation.lock().unwrap().take() {
                word.recv().unwrap();
            }
            *known.lock().unwrap()
        };
        self.broker().transaction_producer("producers", "orders", listener).await.unwrap()
    }

    async fn begin(&self) -> TransactionId {
        self.first.as_ref().unwrap().begin(numbered(NUMBER)).await.unwrap().id()
    }

    async fn the_first_dies(&mut self) {
        if self.another.is_none() {
            self.another = Some(self.producer(ANOTHER).await);
        }
        self.first = None;
    }

    async fn restart_if(&mut self, restart: Restart, step: Step) {
        match restart {
            Restart::After(at, end) if at == step => self.restart(end).await,
            _ => {}
        }
    }

    async fn restart(&mut self, end: End) {
        (self.first, self.another) = (None, None);
        let broker = self.broker.take().unwrap();
        match end {
            End::Killed => self.store.kill(broker).await,
            End::ShutDown => broker.shutdown().await.unwrap(),
        }
        self.reopen().await;
    }

    async fn reopen(&mut self) {
        self.broker = Some(self.store.open_at(&self.clock).await);
        match self.answers {
            Answers::TheSame => self.first = Some(self.producer(FIRST).await),
            Answers::Another => self.another = Some(self.producer(ANOTHER).await),
        }
    }

    async fn close(mut self) {
        (self.first, self.another) = (None, None);
        self.broker.take().unwrap().shutdown().await.unwrap();
    }

    /// Nobody sees the message, wherever they look.
    async fn hidden(&self) {
        self.visible(0, 0).await;
    }

    async fn visible(&self, delivered: usize, given_up: usize) {
        let (broker, key) = (self.broker(), format!("key{NUMBER}"));
        let found = broker.find_by_key("orders", &key, Timestamp::MIN, Timestamp::MAX, 10).unwrap().len();
        let (orders, inspectable) = (read_all(broker, "orders").await, read_all(broker, GIVEN_UP).await);
        assert!(orders.iter().chain(&inspectable).all(|message| number_of(message) == NUMBER));
        assert_eq!((orders.len(), found, inspectable.len()), (delivered, delivered, given_up));
    }

    /// Returns when what is due at this moment of the clock is done and the questions have been asked and answered.
    async fn settle(&self) {
        for _ in 0..2 {
            let unknown = self.alive().end(TransactionId(u64::MAX), Decision::Commit).await.unwrap_err();
            assert_eq!(unknown.kind(), ErrorKind::Invalid, "{unknown}");
        }
        // Listeners run on the thread of callbacks, one after the other.
        let (called, done) = oneshot::channel();
        let markers = self.broker().producer("markers").await.unwrap();
        markers.send_with("marker", move |_| called.send(()).unwrap()).unwrap();
        soon("a callback", done).await.unwrap();
    }

    /// The time of a check comes: the one who is alive is asked, and not a millisecond early.
    async fn checked(&self, check: u32) {
        let pause = if check == 1 { FIRST_CHECK } else { NEXT_CHECK };
        let before = self.asked.borrow().len();
        self.clock.advance(pause - MILLISECOND);
        self.settle().await;
        assert_eq!(self.asked.borrow().len(), before, "not a millisecond early");
        self.clock.advance(MILLISECOND);
        self.is_asked(check).await;
        self.settle().await;
        assert_eq!(self.asked.borrow().len(), before + 1, "once each");
    }

    async fn is_asked(&self, check: u32) {
        let expected = (if self.another.is_some() { ANOTHER } else { FIRST }, check);
        let mut asked = self.asked.subscribe();
        soon("the check", asked.wait_for(|all| all.last() == Some(&expected))).await.unwrap();
    }

    /// Decided by whoever is alive: by its own word if it began, else when it is asked.
    async fn decide(&mut self, id: TransactionId, decision: Decision, restart: Restart) {
        if restart == Restart::BeforeTheDecisionIsStored {
            match self.answers {
                Answers::TheSame => self.is_killed_at_its_word(id, decision).await,
                Answers::Another => self.is_killed_at_its_answer(decision).await,
            }
            self.hidden().await;
        }
        *self.known.lock().unwrap() = Some(decision);
        match self.answers {
            Answers::TheSame => {
                let receipt = self.alive().end(id, decision).await.unwrap();
                let offset = receipt.map(|receipt| receipt.offset.unwrap().get());
                assert_eq!(offset, (decision == Decision::Commit).then_some(0));
            }
            Answers::Another => {
                self.clock.advance(NEXT_CHECK);
                let check = if restart == Restart::BeforeTheDecisionIsStored { 3 } else { 2 };
                self.is_asked(check).await;
                self.settle().await;
                // The answer is under way or stored; when this is said, it is stored.
                self.alive().end(id, opposite(decision)).await.unwrap_err();
                self.alive().end(id, decision).await.unwrap();
            }
        }
    }

    /// Fifteen times it is not known yet; then the message goes where an operator finds it.
    async fn decide_never(&mut self, restart: Restart) {
        for check in 2..=MOST_CHECKS {
            self.checked(check).await;
        }
        self.hidden().await;
        self.clock.advance(NEXT_CHECK - MILLISECOND);
        self.settle().await;
        self.hidden().await;
        if restart == Restart::BeforeTheDecisionIsStored {
            let gate = self.store.faults.hold(Operation::Apply);
            self.clock.advance(MILLISECOND);
            gate.wait_for(1);
            (self.first, self.another) = (None, None);
            self.store.kill_behind(self.broker.take().unwrap(), gate).await;
            self.reopen().await;
        } else {
            self.clock.advance(MILLISECOND);
        }
        let mut pull = self.broker().pull_consumer("operator").await.unwrap();
        pull.assign_topic(GIVEN_UP).await.unwrap();
        let given_up = soon("the message", pull.poll(9, Duration::from_secs(3600))).await.unwrap();
        assert_eq!(given_up.iter().map(number_of).collect::<Vec<_>>(), [NUMBER]);
    }

    /// The decision is made, and the process ends before it is stored.
    async fn is_killed_at_its_word(&mut self, id: TransactionId, decision: Decision) {
        let producer = self.first.take().unwrap();
        let gate = self.store.faults.hold(Operation::Apply);
        let mut ending = Box::pin(producer.end(id, decision));
        assert!(ending.as_mut().now_or_never().is_none());
        gate.wait_for(1);
        self.store.kill_behind(self.broker.take().unwrap(), gate).await;
        // With a store in files the dead process lives on over files that nobody looks at any more.
        drop(soon("an answer", ending).await);
        drop(producer);
        self.reopen().await;
    }

    /// The same, when it is an answer.
    async fn is_killed_at_its_answer(&mut self, decision: Decision) {
        *self.known.lock().unwrap() = Some(decision);
        let (word, hesitation) = mpsc::channel();
        *self.hesitation.lock().unwrap() = Some(hesitation);
        // Whatever was asked for before is written.
        self.broker().transaction(|t| t.put("local", "last", vec![1])).await.unwrap();
        let writes = self.store.faults.calls(Operation::Apply);
        let gate = self.store.faults.hold(Operation::Apply);
        // How often was asked and when next is written, and by itself: the answer comes after it.
        gate.let_pass(1);
        self.clock.advance(NEXT_CHECK);
        self.is_asked(2).await;
        until("the question's write", || self.store.faults.calls(Operation::Apply) > writes).await;
        word.send(()).unwrap();
        until("the decision's write", || self.store.faults.calls(Operation::Apply) >= writes + 2).await;
        (self.first, self.another) = (None, None);
        self.store.kill_behind(self.broker.take().unwrap(), gate).await;
        self.reopen().await;
    }

    /// The same again is no error and changes nothing; the opposite is refused.
    async fn said_again(&self, id: TransactionId, decision: Decision) {
        for _ in 0..2 {
            assert_eq!(self.alive().end(id, decision).await.unwrap(), None);
            let refused = self.alive().end(id, opposite(decision)).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
        }
    }

    /// The message is there once, or never.
    async fn delivered(&self, fate: Option<Decision>) {
        let (delivered, given_up) = match fate {
            Some(Decision::Commit) => (1, 0),
            Some(Decision::Rollback) => (0, 0),
            None => (0, 1),
        };
        self.visible(delivered, given_up).await;
        let group = format!("group{}", self.clock.now().as_millis());
        let mut consumer = self.broker().consumer(&group).subscribe("orders").build().await.unwrap();
        take(&mut consumer, delivered).await;
        self.settle().await;
        assert_nothing(&mut consumer, "once");
    }

    /// What is decided is not asked about.
    async fn nothing_more(&self) {
        let before = self.asked.borrow().len();
        self.clock.advance(NEXT_CHECK * (MOST_CHECKS + 2));
        self.settle().await;
        assert_eq!(self.asked.borrow().len(), before, "nothing decided is asked about");
    }
}

fn opposite(decision: Decision) -> Decision {
    match decision {
        Decision::Commit => Decision::Rollback,
        Decision::Rollback => Decision::Commit,
    }
}

/// The control: a store that forgets decisions has to be found out.
#[test]
#[should_panic(expected = "is not known, or was decided more than a day ago")]
fn a_forgotten_decision_is_found() {
    let restart = Restart::After(Step::Decision, End::Killed);
    common::run(play(Store::forgetting("transaction_outcome"), Some(Decision::Commit), Answers::TheSame, restart));
}
