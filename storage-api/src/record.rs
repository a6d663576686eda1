//! One message as engines see it: a body, its attributes and its times. Nothing here allocates on reading back.

use bytes::{BufMut, Bytes, BytesMut};

use crate::error::InvalidInput;
use crate::limits::{MAX_ATTRIBUTES_BYTES, MAX_BODY_BYTES, MAX_KEY_BYTES};
use crate::types::{LogPosition, QueueKey, QueueOffset, Timestamp};

const TAG: u8 = 1;
const KEY: u8 = 2;
const SHARDING_KEY: u8 = 3;
const PROPERTY: u8 = 4;
const FIELD_HEADER_BYTES: usize = 3;

/// The hash of a tag as it stands in a consume queue: Java's `String.hashCode`, sign-extended (RocketMQ's
/// `tagsString2tagsCode`). Different tags may share it ("Aa" and "BB" do), so a match is checked on the string too.
#[must_use]
pub fn tag_hash(tag: &str) -> i64 {
    let hash = tag.encode_utf16().fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    i64::from(hash)
}

/// Tag, keys, sharding key and properties in one encoded block, which a read hands out as a slice of the store.
///
/// ```text
/// field: kind u8 | length u16 LE | payload          kinds: 1 tag, 2 key, 3 sharding key, 4 property
/// property payload: name length u16 LE | name | value
/// ```
/// Fields keep the order in which they were added. At most [`MAX_ATTRIBUTES_BYTES`] in all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Attributes(Bytes);

/// One attribute, borrowed from its block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attribute<'a> {
    /// The message's one tag.
    Tag(&'a str),
    /// A key under which the message can be found.
    Key(&'a str),
    /// The key that chooses the queue and orders the message.
    ShardingKey(&'a str),
    /// A named value.
    Property(&'a str, &'a str),
}

impl Attributes {
    /// Attributes without any field.
    pub const EMPTY: Self = Self(Bytes::new());

    /// Checks a block that comes from outside.
    ///
    /// # Errors
    /// When it is longer than [`MAX_ATTRIBUTES_BYTES`] or not a sequence of whole UTF-8 fields.
    pub fn decode(block: Bytes) -> Result<Self, InvalidInput> {
        check_attributes_len(block.len())?;
        let mut rest = &block[..];
        while !rest.is_empty() {
            let (_, tail) =
                split_field(rest).ok_or_else(|| InvalidInput::new("attributes are not whole UTF-8 fields"))?;
            rest = tail;
        }
        Ok(Self(block))
    }

    /// Wraps a block that a checksum has already vouched for. Reading stops at the first malformed field.
    #[must_use]
    pub fn from_stored(block: Bytes) -> Self {
        Self(block)
    }

    /// The encoded block.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// All fields in order.
    pub fn iter(&self) -> impl Iterator<Item = Attribute<'_>> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (field, tail) = split_field(rest)?;
            rest = tail;
            Some(field)
        })
    }

    /// The tag, if there is one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.iter().find_map(|a| if let Attribute::Tag(tag) = a { Some(tag) } else { None })
    }

    /// The keys under which the message can be found.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.iter().filter_map(|a| if let Attribute::Key(key) = a { Some(key) } else { None })
    }

    /// The sharding key, if there is one.
    #[must_use]
    pub fn sharding_key(&self) -> Option<&str> {
        self.iter().find_map(|a| if let Attribute::ShardingKey(key) = a { Some(key) } else { None })
    }

    /// The last value given to a property.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties().filter(|(n, _)| *n == name).last().map(|(_, value)| value)
    }

    /// All properties in the order in which they were added.
    pub fn properties(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter().filter_map(|a| if let Attribute::Property(name, value) = a { Some((name, value)) } else { None })
    }

    /// The hash that stands in the consume queue: 0 without a tag.
    #[must_use]
    pub fn tag_hash(&self) -> i64 {
        self.tag().map_or(0, tag_hash)
    }
}

fn split_field(rest: &[u8]) -> Option<(Attribute<'_>, &[u8])> {
    let (header, after) = rest.split_at_checked(FIELD_HEADER_BYTES)?;
    let len = usize::from(u16::from_le_bytes([header[1], header[2]]));
    let (payload, tail) = after.split_at_checked(len)?;
    let field = match header[0] {
        TAG => Attribute::Tag(std::str::from_utf8(payload).ok()?),
        KEY => Attribute::Key(std::str::from_utf8(payload).ok()?),
        SHARDING_KEY => Attribute::ShardingKey(std::str::from_utf8(payload).ok()?),
        PROPERTY => {
            let (name_len, named) = payload.split_at_checked(2)?;
            let name_len = usize::from(u16::from_le_bytes([name_len[0], name_len[1]]));
            let (name, value) = named.split_at_checked(name_len)?;
            Attribute::Property(std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?)
        }
        _ => return None,
    };
    Some((field, tail))
}

fn check_attributes_len(len: usize) -> Result<(), InvalidInput> {
    if len > MAX_ATTRIBUTES_BYTES {
        return Err(InvalidInput::new(format!(
            "tag, keys and properties take {len} bytes, more than {MAX_ATTRIBUTES_BYTES}: move data into the body"
        )));
    }
    Ok(())
}

/// Collects attributes; [`AttributesBuilder::build`] checks their limits.
#[derive(Debug, Default)]
pub struct AttributesBuilder {
    block: BytesMut,
    problem: Option<InvalidInput>,
    tagged: bool,
    sharded: bool,
}

impl AttributesBuilder {
    /// Starts from existing attributes, to add more.
    #[must_use]
    pub fn from_attributes(attributes: &Attributes) -> Self {
        let tagged = attributes.tag().is_some();
        let sharded = attributes.sharding_key().is_some();
        Self { block: BytesMut::from(&attributes.0[..]), problem: None, tagged, sharded }
    }

    /// Starts from existing attributes without the properties whose names `keeps` refuses, to say them anew.
    #[must_use]
    pub fn from_attributes_keeping(attributes: &Attributes, keeps: impl Fn(&str) -> bool) -> Self {
        let mut builder = Self::default();
        for attribute in attributes.iter() {
            match attribute {
                Attribute::Tag(tag) => builder.tag(tag),
                Attribute::Key(key) => builder.key(key),
                Attribute::ShardingKey(key) => builder.sharding_key(key),
                Attribute::Property(name, value) if keeps(name) => builder.property(name, value),
                Attribute::Property(..) => &mut builder,
            };
        }
        builder
    }

    /// Sets the tag; a second one is an error.
    pub fn tag(&mut self, tag: &str) -> &mut Self {
        if std::mem::replace(&mut self.tagged, true) {
            self.refuse(format!("a message has one tag; {tag:?} is a second one"));
        }
        if tag.contains("||") || tag == "*" {
            self.refuse(format!("tag {tag:?} is a filter expression: a tag has no \"||\" and is not \"*\""));
        }
        self.short_field(TAG, "tag", tag)
    }

    /// Adds a key under which the message can be found.
    pub fn key(&mut self, key: &str) -> &mut Self {
        self.short_field(KEY, "key", key)
    }

    /// Sets the sharding key; a second one is an error.
    pub fn sharding_key(&mut self, key: &str) -> &mut Self {
        if std::mem::replace(&mut self.sharded, true) {
            self.refuse(format!("a message has one sharding key; {key:?} is a second one"));
        }
        self.short_field(SHARDING_KEY, "sharding key", key)
    }

    /// Adds a named value; of two with one name the last counts.
    pub fn property(&mut self, name: &str, value: &str) -> &mut Self {
        let len = 2 + name.len() + value.len();
        let (Ok(payload_len), Ok(name_len)) = (u16::try_from(len), u16::try_from(name.len())) else {
            self.refuse(format!("property {:?} takes {len} bytes, more than 65535", name.get(..64).unwrap_or(name)));
            return self;
        };
        if name.is_empty() {
            self.refuse("a property name is empty".to_owned());
        }
        self.block.put_u8(PROPERTY);
        self.block.put_u16_le(payload_len);
        self.block.put_u16_le(name_len);
        self.block.put_slice(name.as_bytes());
        self.block.put_slice(value.as_bytes());
        self
    }

    /// Checks the whole.
    ///
    /// # Errors
    /// The first thing that was wrong, or more than [`MAX_ATTRIBUTES_BYTES`] in all.
    pub fn build(self) -> Result<Attributes, InvalidInput> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        check_attributes_len(self.block.len())?;
        Ok(Attributes(self.block.freeze()))
    }

    fn short_field(&mut self, kind: u8, what: &str, text: &str) -> &mut Self {
        match u16::try_from(text.len()) {
            Ok(len) if (1..=MAX_KEY_BYTES).contains(&text.len()) => {
                self.block.put_u8(kind);
                self.block.put_u16_le(len);
                self.block.put_slice(text.as_bytes());
            }
            _ => self.refuse(format!("{what} has {} bytes: it needs 1 to {MAX_KEY_BYTES}", text.len())),
        }
        self
    }

    fn refuse(&mut self, reason: String) {
        self.problem.get_or_insert_with(|| InvalidInput::new(reason));
    }
}

/// A message to write, and the part of a stored one that its producer chose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// What the producer sent; at most 64 MiB, may be empty.
    pub body: Bytes,
    /// Tag, keys, sharding key, properties.
    pub attributes: Attributes,
    /// When the producer made it, by the producer's clock.
    pub born_at: Timestamp,
}

impl Record {
    /// A record without attributes.
    #[must_use]
    pub fn new(body: impl Into<Bytes>, born_at: Timestamp) -> Self {
        Self { body: body.into(), attributes: Attributes::EMPTY, born_at }
    }

    /// The same record with other attributes.
    #[must_use]
    pub fn with_attributes(mut self, attributes: Attributes) -> Self {
        self.attributes = attributes;
        self
    }

    /// Bytes of body and attributes together.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        self.body.len() + self.attributes.0.len()
    }

    /// Checks the hard caps.
    ///
    /// # Errors
    /// Names the size and the cap.
    pub fn check(&self) -> Result<(), InvalidInput> {
        if self.body.len() > MAX_BODY_BYTES {
            return Err(InvalidInput::new(format!(
                "body has {} bytes, more than {MAX_BODY_BYTES}: split it or store it elsewhere and send a reference",
                self.body.len()
            )));
        }
        check_attributes_len(self.attributes.0.len())
    }
}

/// A record as it lies in its queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredRecord {
    /// Its place in the queue.
    pub offset: QueueOffset,
    /// Its place in the broker.
    pub position: LogPosition,
    /// When it was stored, by the broker's clock; never falls within an engine.
    pub stored_at: Timestamp,
    /// What the producer sent. Body and attributes may be slices of a whole segment: copy what is kept for long.
    pub record: Record,
}

/// A stored record together with the queue it lies in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocatedRecord {
    /// The queue.
    pub queue: QueueKey,
    /// The record.
    pub stored: StoredRecord,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_hash_is_javas() {
        assert_eq!(tag_hash("Aa"), tag_hash("BB"));
        assert_eq!(tag_hash("TagA"), 2_598_919);
        assert_eq!(
            tag_hash("order-created-event"),
            i64::from(
                "order-created-event".encode_utf16().fold(0i32, |h, u| h.wrapping_mul(31).wrapping_add(i32::from(u)))
            )
        );
        assert_eq!(tag_hash(""), 0);
    }

    #[test]
    fn attributes_keep_all_but_the_properties_refused() {
        let mut builder = AttributesBuilder::default();
        builder.tag("pay").key("k1").key("k2").sharding_key("o-7").property("a", "1").property("b", "2");
        let attributes = builder.build().unwrap();
        let mut kept = AttributesBuilder::from_attributes_keeping(&attributes, |name| name != "a");
        kept.property("a", "3");
        let kept = kept.build().unwrap();
        assert_eq!((kept.tag(), kept.sharding_key()), (Some("pay"), Some("o-7")));
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["k1", "k2"]);
        assert_eq!((kept.property("a"), kept.property("b")), (Some("3"), Some("2")));
        let mut tagged_twice = AttributesBuilder::from_attributes_keeping(&attributes, |_| true);
        tagged_twice.tag("again");
        assert!(tagged_twice.build().is_err(), "what was kept counts against the one tag");
    }

    #[test]
    fn attributes_round_trip() {
        let mut builder = AttributesBuilder::default();
        builder.tag("pay").key("k1").key("k2").sharding_key("o-7").property("a", "1").property("a", "2");
        let attributes = builder.build().unwrap();
        let again = Attributes::decode(attributes.as_bytes().clone()).unwrap();
        assert_eq!(again.tag(), Some("pay"));
        assert_eq!(again.keys().collect::<Vec<_>>(), ["k1", "k2"]);
        assert_eq!(again.sharding_key(), Some("o-7"));
        assert_eq!(again.property("a"), Some("2"));
        assert_eq!(again.property("b"), None);
    }

    #[test]
    fn bad_attributes_are_refused() {
        let too_long = "x".repeat(MAX_KEY_BYTES + 1);
        let mut two_tags = AttributesBuilder::default();
        two_tags.tag("a").tag("b");
        let mut empty_key = AttributesBuilder::default();
        empty_key.key("");
        let mut long_key = AttributesBuilder::default();
        long_key.key(&too_long);
        let mut filter = AttributesBuilder::default();
        filter.tag("a || b");
        let mut large = AttributesBuilder::default();
        large.property("p", &"x".repeat(MAX_ATTRIBUTES_BYTES));
        for builder in [two_tags, empty_key, long_key, filter, large] {
            assert!(builder.build().is_err());
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        for block in [&[1u8][..], &[1, 255, 255], &[9, 0, 0], &[4, 1, 0, 7], &[1, 1, 0, 0xff]] {
            let block = Bytes::copy_from_slice(block);
            assert!(Attributes::decode(block.clone()).is_err());
            assert_eq!(Attributes::from_stored(block).iter().count(), 0);
        }
    }
}
