//! Counting what waits, for the bound on it.
//!
//! What this opening of the store adds is counted as it is added. What was there before is counted after the opening,
//! some thousand rows at a time, so that an opening takes no longer the more there is.

use actix::{AsyncContext, Context, Handler, Message};

use super::{DelayActor, KIND};
use crate::actors::supervisor::fail_start;
use crate::domain::delay::TimerKey;
use crate::error::{Error, ErrorKind, Result};
use crate::limits::COUNT_STEP_ROWS;
use crate::storage::scan_rows;
use crate::tables::delay as table;

/// Has the next rows counted.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct CountOn;

/// How far the rows of earlier openings are counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Counting {
    From(TimerKey),
    Done,
}

impl Default for Counting {
    fn default() -> Self {
        Self::From(TimerKey::FIRST)
    }
}

impl Handler<CountOn> for DelayActor {
    type Result = ();

    fn handle(&mut self, _: CountOn, ctx: &mut Context<Self>) {
        let Counting::From(from) = self.counting else { return };
        self.shared.probe(KIND, "scheduler", "CountOn");
        match self.count_rows(from) {
            Ok(counting) => self.counting = counting,
            Err(error) => fail_start(&error),
        }
        if matches!(self.counting, Counting::From(_)) {
            ctx.notify(CountOn);
        }
    }
}

impl DelayActor {
    fn count_rows(&self, from: TimerKey) -> Result<Counting> {
        let (mut last, mut earlier, engine) = (None, 0, self.shared.storage.engine());
        let first_of_ours = self.shared.numbers.first();
        let rows = scan_rows::<Error>(&**engine, &table::TABLE, &table::key(from), None, COUNT_STEP_ROWS, |key, _| {
            let timer = table::decode_key(key)?;
            last = Some(timer);
            // Those in a write's hands go with it.
            if timer.sequence < first_of_ours && !self.firing.contains(&timer) {
                earlier += 1;
            }
            Ok(())
        })?;
        self.shared.delayed.add(earlier);
        let next = last.and_then(TimerKey::next).filter(|_| rows == COUNT_STEP_ROWS);
        Ok(next.map_or(Counting::Done, Counting::From))
    }

    /// Whether a message is among those counted, so that it has to be taken off when it goes.
    pub(super) fn is_counted(&self, timer: TimerKey) -> bool {
        match self.counting {
            Counting::Done => true,
            Counting::From(from) => timer < from || timer.sequence >= self.shared.numbers.first(),
        }
    }

    /// Makes room for one message more.
    pub(super) fn count_one(&self) -> Result<()> {
        let most = self.shared.settings.max_delayed_messages;
        if self.shared.delayed.add_within(1, most) {
            return Ok(());
        }
        let text = format!(
            "{most} delayed messages wait, as many as max_delayed_messages allows: send this one when some are due, or \
             raise the setting"
        );
        Err(Error::new(ErrorKind::Full, text))
    }
}
