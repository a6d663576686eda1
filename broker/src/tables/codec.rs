//! How a value becomes bytes: the only place that knows the serialiser.
//!
//! ```text
//! row:                version u8 | fields (bincode: little endian, variable-length integers)
//! row with a record:  version u8 | fields length u32 BE | fields | attributes length u32 BE | attributes | body
//! ```
//! Bodies and attributes stand behind the fields as they are, so that they are copied once and read back as slices.

use std::fmt;
use std::time::Duration;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use cuemq_storage_api::limits::MAX_BODY_BYTES;
use cuemq_storage_api::{Attributes, ErrorKind, InvalidInput, Record, StorageError, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of a row's fields. Whatever the bytes claim, reading them allocates no more than this for a text, and no
/// more than serde's own first step of 1 MiB for a list.
pub(crate) const MAX_FIELDS_BYTES: usize = 64 << 10;

const CONFIGURATION: Configuration<LittleEndian, Varint, Limit<MAX_FIELDS_BYTES>> =
    bincode::config::standard().with_limit::<MAX_FIELDS_BYTES>();

/// Bytes in a table that are not a row of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct DecodeError {
    table: &'static str,
    reason: String,
    newer: bool,
}

impl DecodeError {
    /// Says what is wrong with a row of the table.
    pub(crate) fn new(table: &'static str, reason: impl Into<String>) -> Self {
        Self { table, reason: reason.into(), newer: false }
    }

    /// Turns a value that no row may have into this error.
    pub(crate) fn invalid(table: &'static str) -> impl Fn(InvalidInput) -> Self {
        move |invalid| Self::new(table, invalid.to_string())
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row of table {}: {}", self.table, self.reason)
    }
}

impl std::error::Error for DecodeError {}

impl From<DecodeError> for StorageError {
    fn from(error: DecodeError) -> Self {
        let kind = if error.newer { ErrorKind::Version } else { ErrorKind::Corrupt };
        Self::not_stored(kind, "decode", error.to_string())
    }
}

/// Writes a row without a record.
///
/// # Panics
/// When the fields exceed 64 KiB, which the bounds of every row's fields rule out.
pub(crate) fn encode<T: Serialize>(version: u8, fields: &T) -> Bytes {
    let fields = encode_fields(fields);
    let mut row = BytesMut::with_capacity(1 + fields.len());
    row.put_u8(version);
    row.put_slice(&fields);
    row.freeze()
}

/// Reads a row without a record.
///
/// # Errors
/// When it has another version, does not hold exactly these fields, or claims more than 64 KiB of them.
pub(crate) fn decode<T: DeserializeOwned>(table: &'static str, version: u8, row: &[u8]) -> Result<T, DecodeError> {
    decode_fields(table, check_version(table, version, row)?)
}

/// Writes a row with a record; copies body and attributes once.
///
/// # Panics
/// As [`encode`] does.
pub(crate) fn encode_with_record<T: Serialize>(version: u8, fields: &T, record: &Record) -> Bytes {
    let fields = encode_fields(&(fields, record.born_at.as_millis()));
    let attributes = record.attributes.as_bytes();
    let mut row = BytesMut::with_capacity(9 + fields.len() + record.payload_bytes());
    row.put_u8(version);
    for part in [&fields[..], attributes] {
        row.put_u32(u32::try_from(part.len()).expect("fields and attributes are far below 4 GiB"));
        row.put_slice(part);
    }
    row.put_slice(&record.body);
    row.freeze()
}

/// Reads a row with a record, whose body and attributes are slices of the row.
///
/// # Errors
/// As [`decode`], and when the attributes or the body are not what an engine would store.
pub(crate) fn decode_with_record<T: DeserializeOwned>(
    table: &'static str,
    version: u8,
    row: &Bytes,
) -> Result<(T, Record), DecodeError> {
    let mut rest = row.slice_ref(check_version(table, version, row)?);
    let fields = split_part(table, &mut rest)?;
    let attributes = split_part(table, &mut rest)?;
    let (fields, born_at) = decode_fields(table, &fields)?;
    let attributes = Attributes::decode(attributes).map_err(DecodeError::invalid(table))?;
    if rest.len() > MAX_BODY_BYTES {
        return Err(DecodeError::new(table, format!("body has {} bytes, more than {MAX_BODY_BYTES}", rest.len())));
    }
    Ok((fields, Record::new(rest, Timestamp::from_millis(born_at)).with_attributes(attributes)))
}

/// A time span as rows keep it; one beyond 2^64 ms is as good as for ever.
pub(crate) fn whole_millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn encode_fields<T: Serialize>(fields: &T) -> Vec<u8> {
    let bytes = bincode::serde::encode_to_vec(fields, CONFIGURATION).expect("fields are plain data of known length");
    assert!(bytes.len() <= MAX_FIELDS_BYTES, "a row's fields take {} bytes, more than can be read back", bytes.len());
    bytes
}

fn decode_fields<T: DeserializeOwned>(table: &'static str, bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > MAX_FIELDS_BYTES {
        let reason = format!("fields have {} bytes, more than {MAX_FIELDS_BYTES}", bytes.len());
        return Err(DecodeError::new(table, reason));
    }
    let (fields, read) = bincode::serde::decode_from_slice(bytes, CONFIGURATION)
        .map_err(|error| DecodeError::new(table, error.to_string()))?;
    if read != bytes.len() {
        return Err(DecodeError::new(table, format!("{} bytes follow its fields", bytes.len() - read)));
    }
    Ok(fields)
}

fn check_version<'a>(table: &'static str, version: u8, row: &'a [u8]) -> Result<&'a [u8], DecodeError> {
    match row.split_first() {
        Some((found, rest)) if *found == version => Ok(rest),
        Some((found, _)) => {
            let reason = format!("version {found}: this broker reads version {version}");
            Err(DecodeError { table, reason, newer: *found > version })
        }
        None => Err(DecodeError::new(table, "it is empty")),
    }
}

fn split_part(table: &'static str, rest: &mut Bytes) -> Result<Bytes, DecodeError> {
    let len = rest.try_get_u32().ok().and_then(|len| usize::try_from(len).ok());
    match len {
        Some(len) if len <= rest.len() => Ok(rest.split_to(len)),
        _ => Err(DecodeError::new(table, "it ends early")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use cuemq_storage_api::AttributesBuilder;
    use proptest::prelude::*;

    use super::*;

    /// A record with one tag and one property, for golden bytes.
    pub(crate) fn tagged_record() -> Record {
        let mut attributes = AttributesBuilder::default();
        attributes.tag("pay").property("a", "1");
        Record::new("body", Timestamp::from_millis(5)).with_attributes(attributes.build().unwrap())
    }

    pub(crate) fn any_record() -> impl Strategy<Value = Record> {
        let body = prop::collection::vec(any::<u8>(), 0..200);
        let property = prop::option::of(("[a-z]{1,9}", ".{0,20}"));
        (body, prop::option::of("[a-z]{1,9}"), property, any::<i64>()).prop_map(|(body, tag, property, born_at)| {
            let mut attributes = AttributesBuilder::default();
            if let Some(tag) = &tag {
                attributes.tag(tag);
            }
            if let Some((name, value)) = &property {
                attributes.property(name, value);
            }
            Record::new(body, Timestamp::from_millis(born_at)).with_attributes(attributes.build().unwrap())
        })
    }

    pub(crate) fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn versions_are_told_apart() {
        let row = encode(1, &7u32);
        assert_eq!(decode::<u32>("t", 1, &row), Ok(7));
        let older = decode::<u32>("t", 2, &row).unwrap_err();
        let newer = decode::<u32>("t", 1, &encode(9, &7u32)).unwrap_err();
        assert_eq!(newer.to_string(), "row of table t: version 9: this broker reads version 1");
        assert!(newer.newer && !older.newer);
        assert_eq!(StorageError::from(newer).kind(), ErrorKind::Version);
        assert_eq!(StorageError::from(older).kind(), ErrorKind::Corrupt);
        assert!(decode::<u32>("t", 1, &[]).is_err());
    }

    #[test]
    fn what_follows_the_fields_is_an_error() {
        assert!(decode::<u32>("t", 1, &[1, 7, 0]).unwrap_err().to_string().contains("1 bytes follow"));
    }

    /// A length of 2^64 - 1 and one of 1 GiB, each followed by nothing.
    #[test]
    fn a_claimed_length_allocates_nothing() {
        for claim in ["01fdffffffffffffffff", "01fc00000040"] {
            let row: Vec<u8> =
                (0..claim.len()).step_by(2).map(|at| u8::from_str_radix(&claim[at..at + 2], 16).unwrap()).collect();
            assert!(decode::<String>("t", 1, &row).is_err());
            assert!(decode::<Vec<u64>>("t", 1, &row).is_err());
        }
        let large = vec![1; MAX_FIELDS_BYTES + 2];
        assert!(decode::<String>("t", 1, &large).unwrap_err().to_string().contains("more than 65536"));
    }

    #[test]
    fn a_record_is_read_back_as_a_slice() {
        let record = Record::new(vec![7u8; 100_000], Timestamp::from_millis(-1));
        let row = encode_with_record(1, &"x", &record);
        let (fields, again): (String, Record) = decode_with_record("t", 1, &row).unwrap();
        assert_eq!((fields.as_str(), &again), ("x", &record));
        assert!(row.as_ptr_range().contains(&again.body.as_ptr()), "no copy");

        let empty = Record::new("", Timestamp::MIN);
        assert_eq!(decode_with_record("t", 1, &encode_with_record(1, &7u8, &empty)), Ok((7u8, empty)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut row = vec![1];
            row.extend(bytes);
            let _ = decode::<(String, Vec<u64>, Option<bool>)>("t", 1, &row);
            let row = Bytes::from(row);
            if let Ok((fields, record)) = decode_with_record::<(String, Option<u32>)>("t", 1, &row) {
                prop_assert!(record.payload_bytes() + fields.0.len() <= row.len());
            }
        }
    }
}
