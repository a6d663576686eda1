//! Table `audit`: what operators did.
//!
//! Key: `time in milliseconds, sign bit flipped, u64 BE | number u64 BE`, so that byte order is the order of time.

use bytes::{BufMut, Bytes, BytesMut};
use cuemq_storage_api::limits::MAX_POSITION;
use cuemq_storage_api::{GroupName, QueueId, QueueOffset, Table, Timestamp, TopicName};
use serde::{Deserialize, Serialize};

use super::codec::{DecodeError, decode, encode};
use crate::domain::audit::AuditAction;
use crate::domain::failed_copy::cut;
use crate::limits::{MAX_NOTE_BYTES, MAX_QUEUES_PER_TOPIC};

const NAME: &str = "audit";
const VERSION: u8 = 1;
const SIGN: u64 = 1 << 63;

/// The table.
pub(crate) static TABLE: Table = Table::named(NAME);

/// What an operator did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct AuditRow {
    /// What.
    pub(crate) action: AuditAction,
    /// To which group, if to one.
    pub(crate) group: Option<GroupName>,
    /// To which topic, if to one.
    pub(crate) topic: Option<TopicName>,
    /// The queues of that topic that it moved: from where, to where. At most [`MAX_QUEUES_PER_TOPIC`].
    pub(crate) queues: Vec<(QueueId, QueueOffset, QueueOffset)>,
    /// What the operator said, at most [`MAX_NOTE_BYTES`].
    pub(crate) note: String,
}

#[derive(Serialize, Deserialize)]
struct Fields {
    action: Action,
    group: Option<String>,
    topic: Option<String>,
    queues: Vec<(u32, u64, u64)>,
    note: String,
}

/// The order of these is part of the format: add behind the last.
#[derive(Serialize, Deserialize)]
enum Action {
    Reset,
    Skip,
    DivertBegan,
    DivertEnded,
    Pause,
    Resume,
    QueueChange,
    Purge,
    Redrive,
}

/// The key of what was done at a time, told from others of that time by a number.
pub(crate) fn key(at: Timestamp, number: u64) -> Bytes {
    let mut key = BytesMut::with_capacity(16);
    key.put_u64(at.as_millis().cast_unsigned() ^ SIGN);
    key.put_u64(number);
    key.freeze()
}

/// Reads a key.
///
/// # Errors
/// When it does not have 16 bytes.
pub(crate) fn decode_key(key: &[u8]) -> Result<(Timestamp, u64), DecodeError> {
    let malformed = || DecodeError::new(NAME, format!("key has {} bytes instead of 16", key.len()));
    let (at, number) = key.split_first_chunk::<8>().ok_or_else(malformed)?;
    let number: [u8; 8] = number.try_into().map_err(|_| malformed())?;
    let at = (u64::from_be_bytes(*at) ^ SIGN).cast_signed();
    Ok((Timestamp::from_millis(at), u64::from_be_bytes(number)))
}

impl AuditRow {
    /// The row's value. A longer note is cut.
    pub(crate) fn encode(&self) -> Bytes {
        let moved = |(queue, from, to): &(QueueId, QueueOffset, QueueOffset)| (queue.get(), from.get(), to.get());
        let fields = Fields {
            action: encode_action(self.action),
            group: self.group.as_ref().map(|group| group.as_str().to_owned()),
            topic: self.topic.as_ref().map(|topic| topic.as_str().to_owned()),
            queues: self.queues.iter().map(moved).collect(),
            note: cut(&self.note, MAX_NOTE_BYTES).to_owned(),
        };
        encode(VERSION, &fields)
    }

    /// Reads a row's value.
    ///
    /// # Errors
    /// When it is of another version or damaged: names, queues or offsets that cannot be, too much of anything.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let fields: Fields = decode(NAME, VERSION, value)?;
        if fields.queues.len() > MAX_QUEUES_PER_TOPIC as usize || fields.note.len() > MAX_NOTE_BYTES {
            let (queues, note) = (fields.queues.len(), fields.note.len());
            return Err(DecodeError::new(NAME, format!("{queues} queues or a note of {note} bytes are too much")));
        }
        let moved = |(queue, from, to): (u32, u64, u64)| {
            let queue = QueueId::new(queue).map_err(DecodeError::invalid(NAME))?;
            Ok((queue, offset(from)?, offset(to)?))
        };
        let name = DecodeError::invalid(NAME);
        Ok(Self {
            action: decode_action(&fields.action),
            group: fields.group.as_deref().map(GroupName::new).transpose().map_err(&name)?,
            topic: fields.topic.as_deref().map(TopicName::from_stored).transpose().map_err(&name)?,
            queues: fields.queues.into_iter().map(moved).collect::<Result<_, DecodeError>>()?,
            note: fields.note,
        })
    }
}

fn offset(offset: u64) -> Result<QueueOffset, DecodeError> {
    if offset > MAX_POSITION {
        return Err(DecodeError::new(NAME, format!("offset {offset} is above {MAX_POSITION}")));
    }
    Ok(QueueOffset::new(offset))
}

fn encode_action(action: AuditAction) -> Action {
    match action {
        AuditAction::Reset => Action::Reset,
        AuditAction::Skip => Action::Skip,
        AuditAction::DivertBegan => Action::DivertBegan,
        AuditAction::DivertEnded => Action::DivertEnded,
        AuditAction::Pause => Action::Pause,
        AuditAction::Resume => Action::Resume,
        AuditAction::QueueChange => Action::QueueChange,
        AuditAction::Purge => Action::Purge,
        AuditAction::Redrive => Action::Redrive,
    }
}

fn decode_action(action: &Action) -> AuditAction {
    match action {
        Action::Reset => AuditAction::Reset,
        Action::Skip => AuditAction::Skip,
        Action::DivertBegan => AuditAction::DivertBegan,
        Action::DivertEnded => AuditAction::DivertEnded,
        Action::Pause => AuditAction::Pause,
        Action::Resume => AuditAction::Resume,
        Action::QueueChange => AuditAction::QueueChange,
        Action::Purge => AuditAction::Purge,
        Action::Redrive => AuditAction::Redrive,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tables::codec::tests::hex;

    fn moved(queue: u32, from: u64, to: u64) -> (QueueId, QueueOffset, QueueOffset) {
        (QueueId::new(queue).unwrap(), QueueOffset::new(from), QueueOffset::new(to))
    }

    #[test]
    fn golden_bytes() {
        let row = AuditRow {
            action: AuditAction::Skip,
            group: Some(GroupName::new("g").unwrap()),
            topic: Some(TopicName::new("orders").unwrap()),
            queues: vec![moved(1, 300, 2)],
            note: "ok".into(),
        };
        let parts = ["0101", "010167", "01066f7264657273", "0101fb2c0102", "026f6b"];
        assert_eq!(hex(&row.encode()), parts.concat());
        assert_eq!(AuditRow::decode(&row.encode()), Ok(row));
        let at = Timestamp::from_millis(1_700_000_000_000);
        assert_eq!(hex(&key(at, 258)), "8000018bcfe568000000000000000102");
    }

    #[test]
    fn the_largest_row_fits_and_a_long_note_is_cut() {
        let most = MAX_QUEUES_PER_TOPIC;
        let mut row = AuditRow {
            action: AuditAction::Reset,
            group: Some(GroupName::new(&"g".repeat(127)).unwrap()),
            topic: Some(TopicName::from_stored(&"t".repeat(134)).unwrap()),
            queues: (0..most).map(|queue| moved(queue + 70_000, MAX_POSITION, MAX_POSITION - 1)).collect(),
            note: "ä".repeat(MAX_NOTE_BYTES),
        };
        let again = AuditRow::decode(&row.encode()).unwrap();
        row.note = "ä".repeat(MAX_NOTE_BYTES / 2);
        assert_eq!(again, row);
    }

    proptest! {
        #[test]
        fn keys_are_in_the_order_of_time(one: (i64, u64), other: (i64, u64)) {
            let key = |(at, number)| key(Timestamp::from_millis(at), number);
            prop_assert_eq!(key(one).cmp(&key(other)), one.cmp(&other));
            prop_assert_eq!(decode_key(&key(one)), Ok((Timestamp::from_millis(one.0), one.1)));
        }

        #[test]
        fn round_trip(action in 0usize..9, queues in prop::collection::vec((0u32..1000, 0u64..9_000_000, 0u64..9), 0..9), note in ".{0,30}") {
            let actions = [
                AuditAction::Reset, AuditAction::Skip, AuditAction::DivertBegan, AuditAction::DivertEnded,
                AuditAction::Pause, AuditAction::Resume, AuditAction::QueueChange, AuditAction::Purge,
                AuditAction::Redrive,
            ];
            let queues = queues.into_iter().map(|(queue, from, to)| moved(queue, from, to)).collect();
            let row = AuditRow { action: actions[action], group: None, topic: None, queues, note };
            prop_assert_eq!(AuditRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn any_bytes_are_refused_or_read_back(mut value in prop::collection::vec(0u8..9, 0..40)) {
            value.insert(0, VERSION);
            if let Ok(row) = AuditRow::decode(&value) {
                prop_assert_eq!(AuditRow::decode(&row.encode()), Ok(row));
            }
        }
    }
}
