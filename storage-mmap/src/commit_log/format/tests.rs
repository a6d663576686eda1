use bytes::Bytes;
use cuemq_storage_api::{Attributes, AttributesBuilder, Record, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::commit_log::encoder::{Encoded, FrameEncoder};

fn header(position: u64) -> FrameHeader {
    FrameHeader {
        len: 0,
        items: 0,
        epoch: 3,
        previous: 0xdead_beef,
        position,
        durable_upto: position / 2,
        stored_at: -5,
        items_crc: 0,
        blank: false,
    }
}

fn tagged() -> Record {
    let mut attributes = AttributesBuilder::default();
    attributes.tag("pay").key("k");
    Record::new("a body", Timestamp::from_millis(-7)).with_attributes(attributes.build().unwrap())
}

fn record_header(topic: &str, record: &Record, position: u64, queue_offset: u64) -> RecordHeader {
    RecordHeader {
        len: len_u32(record_bytes(topic, record)),
        topic_len: len_u8(topic.len()),
        attributes_len: len_u16(record.attributes.as_bytes().len()),
        body_len: len_u32(record.body.len()),
        position,
        queue_offset,
        stored_at: 11,
        born_at: record.born_at.as_millis(),
        tag_hash: record.attributes.tag_hash(),
        queue: 9,
        epoch: 3,
    }
}

/// A frame around items of this size, in a place that holds other bytes before.
fn frame(items: usize, header: FrameHeader, encode: impl FnOnce(&mut FrameEncoder<'_>)) -> Vec<u8> {
    let mut frame = vec![0xa5; usize::try_from(frame_bytes(items as u64)).unwrap()];
    let mut sums = vec![1, 2, 3];
    let mut encoder = FrameEncoder::new(&mut frame, &mut sums);
    encode(&mut encoder);
    assert_eq!(encoder.len(), FRAME_HEADER_BYTES + items);
    let Encoded { items, items_crc } = encoder.finish();
    let head = FrameHeader { len: len_u32(frame.len()), items, items_crc, ..header };
    frame[..FRAME_HEADER_BYTES].copy_from_slice(&head.encode().0);
    frame
}

/// Bytes that the items of [`mixed_frame`] take.
fn mixed_items(record: &Record) -> usize {
    let rows = [row_bytes("rows", b"key", b"value"), row_bytes("rows", b"key2", b"")];
    let others = [record_bytes("orders", record), trim_bytes("orders")];
    rows.into_iter().chain(others).map(in_frame).sum()
}

/// One frame with an item of each kind.
fn mixed_frame() -> Vec<u8> {
    let record = tagged();
    let items = mixed_items(&record);
    frame(items, header(4096), |encoder| {
        encoder.record(&record_header("orders", &record, 64, 5), "orders", &record);
        encoder.put("rows", b"key", b"value");
        encoder.delete("rows", b"key2");
        encoder.trim("orders", 9, 4);
    })
}

fn decode(frame: &[u8]) -> Option<(FrameHeader, u32)> {
    let (header, crc) = FrameHeader::decode(frame)?;
    let items = frame.get(FRAME_HEADER_BYTES..header.len as usize)?;
    header.vouches_for(items).then_some((header, crc))
}

#[test]
fn every_kind_of_item_comes_back() {
    let frame = mixed_frame();
    let (head, crc) = decode(&frame).unwrap();
    assert_eq!(crc.to_le_bytes(), frame[60..64]);
    assert_eq!(head, FrameHeader { len: len_u32(frame.len()), items: 4, items_crc: head.items_crc, ..header(4096) });
    let mut items = Items::new(&head, &frame[FRAME_HEADER_BYTES..]);
    let record = tagged();
    let Some(Item::Record { header, bytes }) = items.next() else { panic!("the first item is a record") };
    assert_eq!(header, record_header("orders", &record, 64, 5));
    assert_eq!(header.topic(bytes), b"orders");
    assert_eq!(header.attributes(bytes), &record.attributes.as_bytes()[..]);
    assert_eq!(header.record(Bytes::copy_from_slice(bytes)), record);
    assert_eq!(items.next(), Some(Item::Put { table: "rows", key: b"key", value: b"value" }));
    assert_eq!(items.next(), Some(Item::Delete { table: "rows", key: b"key2" }));
    assert_eq!(items.next(), Some(Item::Trim { topic: b"orders", queue: 9, before: 4 }));
    assert_eq!(items.next(), None);
    assert!(items.is_complete());
}

#[test]
fn the_sizes_are_known_before_encoding() {
    assert_eq!(frame_bytes(mixed_items(&tagged()) as u64), mixed_frame().len() as u64);
}

#[test]
fn no_flipped_bit_goes_unnoticed() {
    let frame = mixed_frame();
    for bit in 0..frame.len() * 8 {
        let mut damaged = frame.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decode(&damaged), None, "bit {bit}");
    }
}

#[test]
fn no_frame_is_whole_without_its_end() {
    let frame = mixed_frame();
    for len in 0..frame.len() {
        assert_eq!(decode(&frame[..len]), None, "{len} bytes");
    }
}

#[test]
fn a_blank_frame_comes_back() {
    let blank = FrameHeader { len: 4096 - 64, blank: true, ..header(64) };
    let (bytes, crc) = blank.encode();
    assert_eq!(FrameHeader::decode(&bytes), Some((blank, crc)));
    assert!(blank.vouches_for(&[]));
}

#[test]
#[should_panic(expected = "measured larger")]
fn a_frame_that_is_measured_too_large_is_refused() {
    let mut frame = vec![0; FRAME_HEADER_BYTES + row_bytes("rows", b"key", b"") + 8];
    let mut sums = vec![1, 2, 3];
    let mut encoder = FrameEncoder::new(&mut frame, &mut sums);
    encoder.put("rows", b"key", b"");
    encoder.finish();
}

#[test]
#[should_panic(expected = "out of range")]
fn a_frame_that_is_measured_too_small_is_refused() {
    let mut frame = vec![0; FRAME_HEADER_BYTES + row_bytes("rows", b"key", b"") - 1];
    FrameEncoder::new(&mut frame, &mut Vec::new()).put("rows", b"key", b"");
}

proptest! {
    #[test]
    fn any_record_comes_back(
        topic in "[a-zA-Z0-9_%-]{1,134}",
        body in proptest::collection::vec(any::<u8>(), 0..600),
        attributes in proptest::collection::vec(any::<u8>(), 0..300),
        born_at: i64,
        position: u64,
        queue_offset: u64,
    ) {
        let attributes = Attributes::from_stored(Bytes::from(attributes));
        let record = Record::new(body, Timestamp::from_millis(born_at)).with_attributes(attributes);
        let head = record_header(&topic, &record, position, queue_offset);
        let frame = frame(in_frame(record_bytes(&topic, &record)), header(0), |encoder| encoder.record(&head, &topic, &record));
        let (frame_header, _) = decode(&frame).expect("what was encoded can be decoded");
        let items: Vec<_> = Items::new(&frame_header, &frame[FRAME_HEADER_BYTES..]).collect();
        let [Item::Record { header, bytes }] = items[..] else { panic!("one record") };
        prop_assert_eq!(header, head);
        prop_assert_eq!(header.topic(bytes), topic.as_bytes());
        prop_assert_eq!(header.record(Bytes::copy_from_slice(bytes)), record);
        let with_zeros = &frame[FRAME_HEADER_BYTES..];
        prop_assert!(item_is_sound(with_zeros) && with_zeros[bytes.len()..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0u8..6) {
        if let Some(byte) = bytes.get_mut(8) {
            *byte = kind;
        }
        let anything = FrameHeader { len: 64, items: 3, ..header(0) };
        prop_assert!(!anything.vouches_for(&bytes));
        let seen = Items::new(&anything, &bytes).count();
        prop_assert!(seen <= 3);
        if let Some(header) = RecordHeader::decode(&bytes) {
            prop_assert!(header.len as usize >= RECORD_HEADER_BYTES);
        }
    }
}
