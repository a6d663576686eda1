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

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    Send {
        count: u8,
        key: u8,
    },
    SendLater {
        seconds: u64,
    },
    Next {
        times: u8,
    },
    Settle {
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
    Restart,
    Kill,
}

/// How the group's members take their messages, and what happens.
pub(crate) fn runs() -> impl Strategy<Value = (Order, Vec<Step>)> {
    let order = prop_oneof![3 => Just(Order::Concurrent), 1 => Just(Order::Queue), 1 => Just(Order::Key)];
    (order, prop::collection::vec(step(), 1..60))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1u8..5, 0u8..4).prop_map(|(count, key)| Step::Send { count, key }),
        2 => (1u64..50).prop_map(|seconds| Step::SendLater { seconds }),
        12 => (1u8..4).prop_map(|times| Step::Next { times }),
        14 => (any::<prop::sample::Index>(), settling())
            .prop_map(|(which, how)| Step::Settle { which: which.index(1 << 16), how }),
        3 => Just(Step::Join),
        2 => (0usize..8).prop_map(|which| Step::Leave { which }),
        2 => Just(Step::Pop),
        4 => prop_oneof![Just(1u64), Just(10), Just(31), 1u64..120].prop_map(|seconds| Step::Advance { seconds }),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
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
