//! What a transaction can acknowledge.

/// What [`ApplicationTransaction::ack`](crate::ApplicationTransaction::ack) takes: a [`Delivery`](crate::Delivery), a
/// [`Batch`](crate::Batch) with all of its messages, or a [`Popped`](crate::Popped) message. Sealed: nothing else can be.
pub trait Acknowledgeable: sealed::Acknowledge {}

impl<T: sealed::Acknowledge> Acknowledgeable for T {}

pub(crate) mod sealed {
    use std::fmt;

    use crate::consumer::Acknowledged;

    /// Known to this crate only.
    pub trait Acknowledge {
        /// What a transaction needs to acknowledge it.
        fn acknowledged(&self) -> Part;
    }

    /// A part of a transaction that nobody outside can look into.
    pub struct Part(pub(crate) Acknowledged);

    impl fmt::Debug for Part {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Part").finish_non_exhaustive()
        }
    }
}
