//! What an operator does meanwhile: sends dead letters again, changes the number of queues, moves the group.

use std::time::Duration;

use cuemq::{
    DeadLetter, DeadReason, ErrorKind, LetterFilter, Order, QueueOffset, RedriveOptions, RedriveTo, ResetTo, Skip,
};

use super::hands::poll_all;
use super::operations::Shown;
use super::play::{GROUP, Play, TOPIC};
use super::step::{Moving, Redriving};
use crate::common::checker::number_of;

/// Changes of the number of queues that a topic remembers.
const MOST_CHANGES: u64 = 16;
/// More letters than a run has.
const ALL: usize = 1000;
/// How long letters may take to arrive on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn shown(letter: &DeadLetter) -> Shown {
    Shown { message: number_of(letter), reason: letter.reason(), attempts: letter.attempts() }
}

impl Play {
    fn open_letters(&self) -> Vec<DeadLetter> {
        let letters = self.broker().dead_letters(GROUP).unwrap();
        // Some may arrive meanwhile; none goes.
        let before = letters.count().unwrap();
        let page = letters.browse(QueueOffset::ZERO, ALL, &LetterFilter::all()).unwrap();
        let counted = before..=letters.count().unwrap();
        assert!(counted.contains(&(page.letters.len() as u64)), "{counted:?} are not {}", page.letters.len());
        page.letters
    }

    /// Waits until exactly those letters are there that have to be, or all but those that may come later.
    async fn await_letters(&mut self) -> Vec<DeadLetter> {
        self.await_letters_while(false).await
    }

    /// Waits until exactly those letters are there that have to be, while everybody looks for messages; none comes.
    pub(crate) async fn await_all_letters(&mut self) {
        self.await_letters_while(true).await;
    }

    async fn await_letters_while(&mut self, looking: bool) -> Vec<DeadLetter> {
        self.settle_down().await;
        self.reference.expire(self.clock.now());
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            if looking {
                let more = poll_all(&mut self.members, self.popper.as_ref(), self.reference.pool).await;
                assert!(more.is_none(), "something comes after everything is over");
            }
            let letters = self.open_letters();
            let shown: Vec<Shown> = letters.iter().map(shown).collect();
            self.reference.concede(&shown, self.clock.now());
            let mut missing = self.reference.compare_letters(&shown).unwrap();
            missing.retain(|letter| looking || !letter.may_be_late);
            if missing.is_empty() {
                return letters;
            }
            assert!(tokio::time::Instant::now() < end, "dead letters are missing: {missing:?}");
            std::thread::yield_now();
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn redrive(&mut self, redriving: Redriving) {
        let open = self.await_letters().await;
        if open.is_empty() {
            return;
        }
        let letters = self.broker().dead_letters(GROUP).unwrap();
        // By way of the retry topic a message loses its place.
        let to = match redriving {
            Redriving::OneToGroup { .. } if self.reference.order == Order::Concurrent => RedriveTo::Group,
            _ => RedriveTo::Origin,
        };
        let meant: Vec<Shown> = match redriving {
            Redriving::One { which } | Redriving::OneToGroup { which } => {
                let letter = &open[which % open.len()];
                letters.redrive(letter, to).await.unwrap();
                let again = letters.redrive(letter, to).await.unwrap_err();
                assert_eq!(again.kind(), ErrorKind::Conflict, "a letter is sent again once: {again}");
                vec![shown(letter)]
            }
            Redriving::Rejected => self.redrive_all(&open, Some(DeadReason::Rejected)).await,
            Redriving::Expired => self.redrive_all(&open, Some(DeadReason::Expired)).await,
            Redriving::All => self.redrive_all(&open, None).await,
        };
        let now = self.clock.now();
        for letter in meant {
            let ends = self.end_of_life(now, None);
            self.reference.redriven(&letter, to == RedriveTo::Group, now, ends);
        }
        self.locate().await;
    }

    async fn redrive_all(&self, open: &[DeadLetter], reason: Option<DeadReason>) -> Vec<Shown> {
        let letters = self.broker().dead_letters(GROUP).unwrap();
        let filter = reason.map_or_else(LetterFilter::all, |reason| LetterFilter::all().reason(reason));
        let meant = open.iter().filter(|letter| reason.is_none_or(|reason| letter.reason() == reason));
        let meant: Vec<Shown> = meant.map(shown).collect();
        let done = letters.redrive_all(&filter, RedriveOptions::new()).await.unwrap();
        assert_eq!((done.redriven, done.passed_over), (meant.len() as u64, 0));
        meant
    }

    pub(crate) async fn set_queues(&mut self, count: u32) {
        let before = self.broker().describe_topic(TOPIC).unwrap().written_queues;
        match self.broker().set_queues(TOPIC, count).await {
            Ok(topic) => {
                assert_eq!(topic.written_queues, count);
                if count != before {
                    self.reference.generation += 1;
                }
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Full, "{error}");
                assert!(self.reference.generation >= MOST_CHANGES, "there was room: {error}");
            }
        }
        self.puller.open(self.broker.as_ref().unwrap(), &self.reference, self.clock.now()).await;
        self.locate().await;
        self.settle_down().await;
        self.shared_out();
    }

    /// Moves the group in all queues of the topic, after a look at what the plan says.
    pub(crate) async fn move_group(&mut self, moving: Moving) {
        if self.await_letters().await.len() < self.reference.letters.len() {
            // Whether the move finds them over nobody can say.
            return;
        }
        let (broker, now) = (self.broker.as_ref().unwrap(), self.clock.now());
        let ago = |seconds| cuemq::Timestamp::from_millis(now.as_millis() - i64::try_from(seconds * 1000).unwrap());
        let plan = match moving {
            Moving::Begin => broker.reset_group(GROUP, TOPIC, ResetTo::Begin).await,
            Moving::End => broker.reset_group(GROUP, TOPIC, ResetTo::End).await,
            Moving::Ago { seconds } => broker.reset_group(GROUP, TOPIC, ResetTo::Time(ago(seconds))).await,
            Moving::KeepLast { count } => broker.skip(GROUP, TOPIC, Skip::KeepLast(count)).await,
        };
        let plan = plan.unwrap();
        for planned in plan.moves() {
            let (queue, from, to) = (&planned.queue, planned.from.get(), planned.to.get());
            self.reference.assert_consumed(queue, from);
            let end = self.reference.end_of(queue);
            let expected = match moving {
                Moving::Begin => 0,
                Moving::End => end,
                Moving::Ago { seconds } => self.reference.stored_before(queue, ago(seconds)),
                Moving::KeepLast { count } => end.saturating_sub(count).max(from),
            };
            assert_eq!(to, expected, "{queue} {moving:?}");
        }
        let moves = plan.confirm().await.unwrap();
        self.reference.moved(&moves, now);
        self.settle_down().await;
    }
}
