//! One dead letter, and how it is named.

use std::fmt;
use std::ops::Deref;

use cuemq_storage_api::{Attribute, QueueOffset};

use crate::consumer::Received;
use crate::domain::failure::DeadReason;
use crate::message::{Message, MessageId, SYSTEM_PROPERTY_PREFIX};

/// A message that its group could not consume. It [is](Deref) a [`Received`], with [`topic`](Received::topic),
/// [`origin_queue`](Received::origin_queue), [`origin_offset`](Received::origin_offset) and
/// [`origin_id`](Received::origin_id) of the first one, [`attempts`](Received::attempts): how many deliveries failed,
/// [`first_failed_at`](Received::first_failed_at), [`died_at`](Received::died_at) and
/// [`last_error`](Received::last_error); its [`offset`](Received::offset) is that among the group's dead letters.
#[derive(Clone, Debug)]
pub struct DeadLetter(Received);

impl Deref for DeadLetter {
    type Target = Received;

    fn deref(&self) -> &Received {
        &self.0
    }
}

impl DeadLetter {
    pub(super) fn new(received: Received) -> Self {
        Self(received)
    }

    /// Why it is here.
    #[must_use]
    pub fn reason(&self) -> DeadReason {
        self.0.dead_reason().unwrap_or(DeadReason::RetriesExceeded)
    }

    /// The letter as its producer sent it, to be changed and given to
    /// [`redrive_edited`](super::DeadLetters::redrive_edited).
    #[must_use]
    pub fn to_message(&self) -> Message {
        let record = &self.0.stored().record;
        let message = Message::new(record.body.clone());
        record.attributes.iter().fold(message, |message, attribute| match attribute {
            Attribute::Tag(tag) => message.tag(tag),
            Attribute::Key(key) => message.key(key),
            Attribute::ShardingKey(key) => message.sharding_key(key),
            Attribute::Property(name, _) if name.starts_with(SYSTEM_PROPERTY_PREFIX) => message,
            Attribute::Property(name, value) => message.property(name, value),
        })
    }
}

/// Open letters in the order in which they came.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LetterPage {
    /// The letters.
    pub letters: Vec<DeadLetter>,
    /// Where the next page begins; `None` when there was nothing more.
    pub next: Option<QueueOffset>,
}

/// What names a letter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LetterRef {
    /// Its offset among the group's dead letters.
    Offset(QueueOffset),
    /// Its own id, or the id under which its message was first stored.
    Id(MessageId),
}

impl From<QueueOffset> for LetterRef {
    fn from(offset: QueueOffset) -> Self {
        Self::Offset(offset)
    }
}

impl From<MessageId> for LetterRef {
    fn from(id: MessageId) -> Self {
        Self::Id(id)
    }
}

impl From<&DeadLetter> for LetterRef {
    fn from(letter: &DeadLetter) -> Self {
        Self::Offset(letter.offset())
    }
}

impl fmt::Display for LetterRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offset(offset) => write!(f, "{offset}"),
            Self::Id(id) => write!(f, "{id}"),
        }
    }
}

/// What a name led to.
#[derive(Debug)]
pub(super) enum Found {
    Open(Box<DeadLetter>),
    /// A place without an open letter.
    NotOpen(QueueOffset),
    Nowhere,
}
