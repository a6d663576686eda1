//! The dead letters of a consumer group: to be read, sent again, or thrown away.

mod arrivals;
mod letter;
mod reading;
mod redrive;
mod room;

use std::fmt;
use std::sync::Arc;

use cuemq_storage_api::{QueueId, QueueKey, QueueOffset, TopicName};

pub use arrivals::{ArrivalHook, Arrivals};
pub use letter::{DeadLetter, LetterPage, LetterRef};
pub use redrive::{Redrive, RedriveOptions, RedriveProgress, RedriveTo};

use crate::actors::group::{GroupHandle, GroupRequest, Handled, LetterOperation, LetterRequest, LetterToHandle};
use crate::audit::AuditPlace;
use crate::broker::Keeper;
use crate::domain::letters::{Edited, LetterFilter};
use crate::error::{Error, ErrorKind, Result};
use crate::limits::{MAX_LETTER_BATCH, MAX_LETTERS_EXAMINED, MAX_LETTERS_PER_PAGE};
use crate::message::{Message, Receipt};
use crate::tables::dead_letter::Fate;
use letter::Found;
use reading::LetterQueue;

/// The dead letters of one group, from [`Broker::dead_letters`](crate::Broker::dead_letters). Cheap to clone.
///
/// A letter is *open* until it was sent again or thrown away, which happens exactly once whoever asks for it and
/// however often the broker is killed: the message and the note that the letter is dealt with are one write. The
/// topic `%DLQ%group` itself stays readable by offset with a [`PullConsumer`](crate::PullConsumer); there a letter that was dealt with can be
/// seen until all before it are dealt with too.
#[derive(Clone)]
pub struct DeadLetters {
    keeper: Arc<Keeper>,
    group: Arc<GroupHandle>,
    queue: LetterQueue,
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetters").field("group", self.group.name()).finish_non_exhaustive()
    }
}

impl DeadLetters {
    pub(crate) fn new(keeper: Arc<Keeper>, group: Arc<GroupHandle>) -> Result<Self> {
        let key = QueueKey::new(TopicName::dead_letter_of(group.name()), QueueId::FIRST);
        let queue = LetterQueue::new(Arc::clone(keeper.shared()), group.name().clone(), key)?;
        Ok(Self { keeper, group, queue })
    }

    /// Open letters at or behind the offset `from` that the filter means, oldest first: at most `limit` and at most
    /// 1,000 of them, out of the next 65,536. [`LetterPage::next`] says where to go on.
    ///
    /// # Errors
    /// A failed read.
    pub fn browse(&self, from: QueueOffset, limit: usize, filter: &LetterFilter) -> Result<LetterPage> {
        let limit = limit.min(MAX_LETTERS_PER_PAGE);
        let (mut page, end) = (LetterPage { letters: Vec::new(), next: Some(from) }, self.queue.end());
        let mut examined = 0;
        while let Some(at) = page.next
            && page.letters.len() < limit
            && examined < MAX_LETTERS_EXAMINED
        {
            let part = self.queue.read(at, end, limit - page.letters.len(), filter)?;
            examined += part.examined;
            page.letters.extend(part.letters);
            page.next = (part.next < end).then_some(part.next);
        }
        Ok(page)
    }

    /// One open letter, by its offset among the dead letters, by its own id, or by the id under which its message was
    /// first stored. The last way looks through all letters. `None` when there is no such open letter.
    ///
    /// # Errors
    /// A failed read.
    pub fn get(&self, letter: impl Into<LetterRef>) -> Result<Option<DeadLetter>> {
        match self.queue.find(letter.into())? {
            Found::Open(letter) => Ok(Some(*letter)),
            Found::NotOpen(_) | Found::Nowhere => Ok(None),
        }
    }

    /// How many letters are open.
    ///
    /// # Errors
    /// A failed read.
    pub fn count(&self) -> Result<u64> {
        self.queue.count()
    }

    /// Sends one letter again.
    ///
    /// # Errors
    /// `Conflict` when it was dealt with before, `OutOfRange` when there is no such letter; `UnknownTopic` when its topic
    /// was deleted; `Full` when its queue is limited in length and has no room, and the letter stays open; `NotStored` or
    /// `Unknown` when the write failed.
    pub async fn redrive(&self, letter: impl Into<LetterRef>, to: RedriveTo) -> Result<Receipt> {
        self.redrive_one(letter.into(), None, to).await
    }

    /// Sends another message in place of a letter; [`DeadLetter::to_message`] is a good start for it.
    ///
    /// # Errors
    /// As [`redrive`](DeadLetters::redrive); `Invalid` as for a send, and when the message has a delay.
    pub async fn redrive_edited(
        &self,
        letter: impl Into<LetterRef>,
        message: Message,
        to: RedriveTo,
    ) -> Result<Receipt> {
        if message.delay_ref().is_some() {
            return Err(Error::new(
                ErrorKind::Invalid,
                "a re-driven message cannot be delayed: send a new one instead",
            ));
        }
        let attributes = message.checked_attributes(self.keeper.shared().settings.max_body_bytes)?;
        let edited = Edited { body: message.body().clone(), attributes };
        self.redrive_one(letter.into(), Some(&edited), to).await
    }

    async fn redrive_one(&self, letter: LetterRef, edited: Option<&Edited>, to: RedriveTo) -> Result<Receipt> {
        let wanted = match self.queue.find(letter)? {
            Found::Open(letter) => redrive::to_handle(&letter, edited, to, self.group.name())?,
            // The group's actor knows what became of it.
            Found::NotOpen(offset) => LetterToHandle { offset, send: None },
            Found::Nowhere => return Err(self.unknown(letter)),
        };
        let handled = self.handle(to.fate(), vec![wanted], true, &mut self.operation()).await?;
        handled.receipts.into_iter().next().ok_or_else(|| Error::lost("the re-drive"))
    }

    /// Throws one letter away.
    ///
    /// # Errors
    /// `Conflict` when it was dealt with before, `OutOfRange` when there is no such letter; `NotStored` or `Unknown` when
    /// the write failed.
    pub async fn purge_one(&self, letter: impl Into<LetterRef>) -> Result<()> {
        let letter = letter.into();
        let offset = match self.queue.find(letter)? {
            Found::Open(letter) => letter.offset(),
            Found::NotOpen(offset) => offset,
            Found::Nowhere => return Err(self.unknown(letter)),
        };
        let letter = vec![LetterToHandle { offset, send: None }];
        self.handle(Fate::Purged, letter, true, &mut self.operation()).await.map(|_| ())
    }

    /// Throws away all letters that the filter means and that are there now; returns how many.
    ///
    /// # Errors
    /// `NotStored` or `Unknown` when a write failed; what was purged before it stays purged.
    pub async fn purge(&self, filter: &LetterFilter) -> Result<u64> {
        let (mut at, end, mut purged) = (self.queue.start()?, self.queue.end(), 0);
        let mut operation = self.operation();
        while at < end {
            let part = self.queue.read(at, end, MAX_LETTER_BATCH, filter)?;
            at = part.next;
            let wanted = part.letters.iter().map(|letter| LetterToHandle { offset: letter.offset(), send: None });
            let wanted: Vec<_> = wanted.collect();
            if !wanted.is_empty() {
                purged += self.handle(Fate::Purged, wanted, false, &mut operation).await?.letters as u64;
            }
        }
        Ok(purged)
    }

    /// Sends all letters that the filter means and that are there now again, oldest first.
    ///
    /// ```
    /// # async fn example(letters: cuemq::DeadLetters) -> cuemq::Result<()> {
    /// use cuemq::{DeadReason, LetterFilter, RedriveOptions};
    ///
    /// let rejected = LetterFilter::all().reason(DeadReason::Rejected);
    /// let options = RedriveOptions::new().per_second(100).on_progress(|p| println!("{} of {}", p.examined, p.total));
    /// let redrive = letters.redrive_all(&rejected, options).await?;
    /// println!("{} were sent again, {} could not be", redrive.redriven, redrive.passed_over);
    /// # Ok(())
    /// # }
    /// ```
    /// Dropping the future stops it after the write under way; a later call goes on with what is still open.
    ///
    /// # Errors
    /// `NotStored` or `Unknown` when a write failed; what was sent before it stays sent. `Closed` or `Unavailable` when the
    /// broker ends meanwhile.
    pub async fn redrive_all(&self, filter: &LetterFilter, options: RedriveOptions) -> Result<Redrive> {
        redrive::all(self, filter, options).await
    }

    /// Every letter that arrives from now on, dealt with or not.
    ///
    /// # Errors
    /// A failed read.
    pub fn watch(&self) -> Result<Arrivals> {
        Ok(Arrivals::new(&self.keeper, self.queue.clone()))
    }

    /// Calls back for every letter that arrives from now on, one after the other, on the broker's own thread for user
    /// code, until the hook is dropped. A callback that is slow falls behind and misses only what was dealt with, or
    /// expired, meanwhile; one that panics is called for the next letter all the same.
    ///
    /// # Errors
    /// A failed read.
    pub fn on_arrival(&self, callback: impl FnMut(DeadLetter) + Send + 'static) -> Result<ArrivalHook> {
        Ok(ArrivalHook::start(&self.keeper, self.queue.clone(), callback))
    }

    /// What begins now, for the audit log.
    fn operation(&self) -> LetterOperation {
        LetterOperation { place: AuditPlace::new(self.keeper.shared()), letters: 0 }
    }

    async fn handle(
        &self,
        fate: Fate,
        letters: Vec<LetterToHandle>,
        strict: bool,
        operation: &mut LetterOperation,
    ) -> Result<Handled> {
        self.keeper.shared().check_running()?;
        let (shared, mut handled) = (self.keeper.shared(), Handled::default());
        for mut portion in room::portions(shared, letters) {
            let rooms = portion.rooms(shared).await?;
            let (letters, so_far) = (portion.letters, *operation);
            let request = |reply| {
                let operation = so_far;
                GroupRequest::Letters(LetterRequest { fate, letters, strict, operation, rooms, reply })
            };
            let Handled { letters, receipts } = self.group.ask(request).await?;
            operation.letters += letters;
            handled.letters += letters;
            handled.receipts.extend(receipts);
        }
        Ok(handled)
    }

    fn unknown(&self, letter: LetterRef) -> Error {
        let text =
            format!("group {} has no open dead letter {letter}: browse shows those there are", self.group.name());
        Error::new(ErrorKind::OutOfRange, text)
    }
}
