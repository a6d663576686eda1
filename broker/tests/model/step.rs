//! What a random run is made of. Indices are taken modulo whatever there is, so that every sequence makes sense.

use cuemq::Order;
use proptest::prelude::*;

/// How a delivery is settled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Settling {
    Ack,
    Fail,
    RetryIn { seconds: u64 },
    Reject,
    Drop,
    Again { seconds: u64 },
}

impl Settling {
    /// Whether nobody is told of the outcome.
    pub(crate) fn is_silent(self) -> bool {
        matches!(self, Self::Drop | Self::Again { .. })
    }
}

/// Which dead letters are sent again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Redriving {
    One { which: usize },
    OneToGroup { which: usize },
    Rejected,
    Expired,
    All,
}

/// Where an operator moves the group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Moving {
    Begin,
    End,
    Ago { seconds: u64 },
    KeepLast { count: u64 },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Send {
        count: u8,
        key: u8,
        /// Seconds to live.
        ttl: Option<u64>,
    },
    SendLater {
        seconds: u64,
        ttl: Option<u64>,
    },
    Next {
        times: u8,
    },
    Settle {
        which: usize,
        how: Settling,
    },
    /// A popped message stays invisible for that long.
    Renew {
        which: usize,
        seconds: u64,
    },
    /// A receipt that is over is used once more.
    Spent {
        which: usize,
        how: Settling,
    },
    Join,
    Leave {
        which: usize,
    },
    /// A pop consumer comes, or goes if there is one.
    Pop,
    Advance {
        seconds: u64,
    },
    Pause,
    Resume,
    Redrive(Redriving),
    /// The topic gets another number of queues.
    Queues {
        count: u32,
    },
    Move(Moving),
    /// The reader by offset commits where it is.
    Commit,
    /// The reader by offset goes back in a queue, or to its begin.
    Seek {
        which: usize,
        back: Option<u64>,
    },
    Restart,
    Kill,
}

/// A random run: how the group's members take their messages, how long the topic's messages live, and what happens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) order: Order,
    pub(crate) ttl: Option<u64>,
    pub(crate) steps: Vec<Step>,
}

pub(crate) fn runs() -> impl Strategy<Value = Run> {
    let order = prop_oneof![3 => Just(Order::Concurrent), 1 => Just(Order::Queue), 1 => Just(Order::Key)];
    let ttl = prop_oneof![4 => Just(None), 1 => (20u64..90).prop_map(Some)];
    let steps = prop::collection::vec(step(), 1..60);
    (order, ttl, steps).prop_map(|(order, ttl, steps)| Run { order, ttl, steps })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => what_operators_do(),
        8 => (1u8..5, 0u8..4, ttl()).prop_map(|(count, key, ttl)| Step::Send { count, key, ttl }),
        2 => (1u64..50, ttl()).prop_map(|(seconds, ttl)| Step::SendLater { seconds, ttl }),
        12 => (1u8..4).prop_map(|times| Step::Next { times }),
        14 => (which(), settling()).prop_map(|(which, how)| Step::Settle { which, how }),
        1 => (which(), 1u64..29).prop_map(|(which, seconds)| Step::Renew { which, seconds }),
        1 => (which(), settling()).prop_map(|(which, how)| Step::Spent { which, how }),
        3 => Just(Step::Join),
        2 => (0usize..8).prop_map(|which| Step::Leave { which }),
        2 => Just(Step::Pop),
        4 => prop_oneof![Just(1u64), Just(10), Just(31), 1u64..120].prop_map(|seconds| Step::Advance { seconds }),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        1 => prop_oneof![Just(Step::Commit), seek()],
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
    ]
}

fn what_operators_do() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => redriving().prop_map(Step::Redrive),
        2 => (1u32..7).prop_map(|count| Step::Queues { count }),
        2 => moving().prop_map(Step::Move),
    ]
}

fn which() -> impl Strategy<Value = usize> {
    any::<prop::sample::Index>().prop_map(|which| which.index(1 << 16))
}

fn ttl() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![5 => Just(None), 1 => (0u64..60).prop_map(Some)]
}

fn seek() -> impl Strategy<Value = Step> {
    (0usize..8, prop::option::of(0u64..9)).prop_map(|(which, back)| Step::Seek { which, back })
}

fn redriving() -> impl Strategy<Value = Redriving> {
    prop_oneof![
        3 => which().prop_map(|which| Redriving::One { which }),
        1 => which().prop_map(|which| Redriving::OneToGroup { which }),
        1 => Just(Redriving::Rejected),
        1 => Just(Redriving::Expired),
        2 => Just(Redriving::All),
    ]
}

fn moving() -> impl Strategy<Value = Moving> {
    prop_oneof![
        2 => Just(Moving::Begin),
        1 => Just(Moving::End),
        2 => (0u64..60).prop_map(|seconds| Moving::Ago { seconds }),
        1 => (0u64..6).prop_map(|count| Moving::KeepLast { count }),
    ]
}

fn settling() -> impl Strategy<Value = Settling> {
    prop_oneof![
        6 => Just(Settling::Ack),
        3 => Just(Settling::Fail),
        1 => (0u64..40).prop_map(|seconds| Settling::RetryIn { seconds }),
        1 => Just(Settling::Reject),
        1 => Just(Settling::Drop),
        1 => (0u64..5).prop_map(|seconds| Settling::Again { seconds }),
    ]
}
