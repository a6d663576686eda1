//! Damage: a torn end is cut, anything that was once durable is never given up in silence.

use super::*;
use cuemq_storage_api::ErrorKind;

/// A store that was killed, with what it had applied; the second half of its records was never synced.
fn half_synced(records: u64) -> (MemoryFiles, Vec<Applied>) {
    let files = MemoryFiles::new();
    let engine = open(&files);
    let mut applied = Vec::new();
    for number in 0..records {
        applied.push(append(&engine, &orders(), number).unwrap());
        if number == records / 2 {
            engine.sync().unwrap();
        }
    }
    (killed(&files), applied)
}

/// File and offset of a log position.
fn place(position: u64) -> (String, u64) {
    let start = position - position % SEGMENT_BYTES;
    (format!("commitlog/{start:020}"), position - start)
}

fn end_of(applied: &[Applied]) -> u64 {
    applied.last().unwrap().mark.0
}

#[test]
fn everything_written_is_there_after_a_kill() {
    let (files, applied) = half_synced(100);
    let engine = open(&files);
    assert_whole(&engine, &orders(), 100);
    assert_eq!(engine.durable().0, end_of(&applied), "recovery has synced what it found");
}

#[test]
fn garbage_behind_the_end_is_cut_and_stays_away() {
    let (files, applied) = half_synced(20);
    let (path, offset) = place(end_of(&applied));
    overwrite(&files, &path, offset, &[7; 100]);
    assert_whole(&open(&files), &orders(), 20);
    let log = content(&files, &path);
    assert!(log[usize::try_from(offset).unwrap()..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_torn_frame_takes_only_unsynced_records_with_it() {
    let (files, applied) = half_synced(20);
    for (lost, torn) in applied.iter().enumerate().skip(11) {
        let files = killed(&files);
        let (path, offset) = place(torn.positions[0].get());
        overwrite(&files, &path, offset + 70, &[0xff; 8]);
        let engine = open(&files);
        assert_whole(&engine, &orders(), lost as u64);
        let next = append(&engine, &orders(), lost as u64).unwrap();
        assert_eq!(next.mark, torn.mark, "the log goes on where it was cut");
        engine.sync().unwrap();
        assert_whole(&open(&killed(&files)), &orders(), lost as u64 + 1);
    }
}

#[test]
fn a_second_recovery_writes_nothing_to_the_log() {
    let (files, applied) = half_synced(20);
    let (path, offset) = place(end_of(&applied));
    overwrite(&files, &path, offset, &[7; 100]);
    let first = open(&files);
    let again = killed(&files);
    let before = tree(&again, "commitlog");
    drop(open(&again));
    assert_eq!(tree(&again, "commitlog"), before);
    drop(first);
}

#[test]
fn rot_below_the_durable_end_is_refused_and_named() {
    let (files, applied) = half_synced(20);
    for (damaged, rotten) in applied.iter().enumerate().take(11) {
        let files = killed(&files);
        let (path, offset) = place(rotten.positions[0].get());
        flip(&files, &path, offset + 90);
        let before = tree(&files, "commitlog");
        let refused = try_open(&files).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "record {damaged}: {refused}");
        let frame = offset - 64;
        assert!(refused.context().contains(&format!("{path} at offset {frame} ")), "{refused}");
        let behind = 19 - damaged;
        assert!(refused.context().contains(&format!(" {} whole record headers", behind + 1)), "{refused}");
        assert_eq!(tree(&files, "commitlog"), before, "nothing was touched");
    }
}

#[test]
fn the_watermark_vouches_for_the_newest_batches() {
    let files = MemoryFiles::new();
    let engine = open(&files);
    append_many(&engine, &orders(), 0..9);
    let last = append(&engine, &orders(), 9).unwrap();
    engine.sync().unwrap();
    let unwitnessed = killed(&files);
    engine.maintain(Timestamp::from_millis(10_000)).unwrap();
    let witnessed = killed(&files);
    let (path, offset) = place(last.positions[0].get());
    for files in [&unwitnessed, &witnessed] {
        flip(files, &path, offset);
    }
    assert_whole(&open(&unwitnessed), &orders(), 9);
    assert_eq!(try_open(&witnessed).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_missing_or_short_segment_is_refused() {
    let files = MemoryFiles::new();
    let engine = open(&files);
    for ten in 0..20 {
        append_many(&engine, &orders(), ten * 10..ten * 10 + 10);
        engine.sync().unwrap();
    }
    let dirty = killed(&files);
    engine.close().unwrap();
    for files in [dirty, files] {
        let segments = files.list("commitlog").unwrap();
        assert!(segments.len() >= 4);
        for lost in &segments {
            let path = format!("commitlog/{lost}");
            let missing = killed(&files);
            missing.remove(&path).unwrap();
            // The newest segment of a dirty store is vouched for by nothing but the frames in it.
            if lost != segments.last().unwrap() || missing.open("checkpoint", OpenMode::Existing).is_ok() {
                assert_eq!(try_open(&missing).unwrap_err().kind(), ErrorKind::Corrupt, "{path} is missing");
            }
            let short = killed(&files);
            short.open(&path, OpenMode::Existing).unwrap().set_len(100).unwrap();
            if lost != segments.last().unwrap() || short.open("checkpoint", OpenMode::Existing).is_ok() {
                assert_eq!(try_open(&short).unwrap_err().kind(), ErrorKind::Corrupt, "{path} is short");
            }
        }
    }
}

#[test]
fn a_full_segment_that_lost_only_its_length_gets_it_back() {
    let files = MemoryFiles::new();
    let engine = open(&files);
    append_many(&engine, &orders(), 0..100);
    let cut = killed(&files);
    let first = cut.open(&first_segment(), OpenMode::Existing).unwrap();
    // Frames end at multiples of 8, whatever their last bytes are.
    let last = content(&cut, &first_segment()).iter().rposition(|byte| *byte != 0).unwrap() as u64;
    let used = (last + 1).next_multiple_of(8);
    assert!(used < SEGMENT_BYTES);
    first.set_len(used).unwrap();
    let engine = open(&cut);
    assert_whole(&engine, &orders(), 100);
    engine.close().unwrap();
    assert_eq!(first.len().unwrap(), SEGMENT_BYTES);
    assert_whole(&open(&cut), &orders(), 100);
}

#[test]
fn rot_that_is_read_is_an_error_and_the_rest_can_be_read() {
    let files = MemoryFiles::new();
    let engine = open(&files);
    let applied: Vec<_> = (0..20).map(|number| append(&engine, &orders(), number).unwrap()).collect();
    engine.close().unwrap();
    let (path, offset) = place(applied[7].positions[0].get());
    flip(&files, &path, offset + 150);
    let engine = open(&files);
    let fetch = |from| {
        let queue = orders();
        engine
            .fetch(FetchRequest::all(&queue, QueueOffset::new(from), FetchLimit::messages(1)))
            .map(|f| f.records.len())
    };
    let damaged = fetch(7).unwrap_err();
    assert_eq!(damaged.kind(), ErrorKind::Corrupt);
    assert!(damaged.context().contains(&format!("{path} at offset {offset}")), "{damaged}");
    assert_eq!(engine.record_at(applied[7].positions[0]).unwrap(), None);
    for other in (0..20).filter(|other| *other != 7) {
        assert_eq!(fetch(other).unwrap(), 1);
    }
    append(&engine, &orders(), 20).unwrap();
}

/// Sums are checked for several records at once: a damaged one is found all the same, and no other is blamed for it.
#[test]
fn rot_is_named_wherever_it_lies_in_a_long_fetch() {
    const RECORDS: u64 = 50;
    let home = tempfile::tempdir().unwrap();
    let settings = || MmapSettings { segment_bytes: 4 * SEGMENT_BYTES, ..settings() };
    let engine = MmapEngine::open(home.path(), settings()).unwrap();
    let applied: Vec<_> = (0..RECORDS).map(|number| append(&engine, &orders(), number).unwrap()).collect();
    engine.close().unwrap();
    let queue = orders();
    for (damaged, applied) in applied.iter().enumerate() {
        let position = applied.positions[0].get();
        let start = position - position % (4 * SEGMENT_BYTES);
        let path = home.path().join(format!("commitlog/{start:020}"));
        let whole = std::fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let item_bytes = 70;
        bytes[usize::try_from(position - start).unwrap() + item_bytes] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let engine = MmapEngine::open(home.path(), settings()).unwrap();
        let fetch =
            |from, most| engine.fetch(FetchRequest::all(&queue, QueueOffset::new(from), FetchLimit::messages(most)));
        let refused = fetch(0, 50).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{damaged}");
        let place = format!("commitlog/{start:020} at offset {}", position - start);
        assert!(refused.context().contains(&place), "{damaged}: {refused}");
        assert!(damaged == 0 || fetch(0, damaged).unwrap().records.len() == damaged, "{damaged}");
        let behind = damaged as u64 + 1;
        assert_eq!(fetch(behind, 50).unwrap().records.len() as u64, RECORDS - behind);
        engine.close().unwrap();
        std::fs::write(&path, &whole).unwrap();
    }
}

/// What comes next may have to come from the disk: the log is read ahead behind each fetch, however it ended.
#[test]
fn behind_a_fetch_of_what_is_not_trusted_the_log_is_read_ahead() {
    let files = MemoryFiles::new();
    let engine = open(&files);
    let applied: Vec<_> = (0..20).map(|number| append(&engine, &orders(), number).unwrap()).collect();
    let queue = orders();
    let fetch = |engine: &MmapEngine, limit| {
        engine.fetch(FetchRequest::all(&queue, QueueOffset::ZERO, limit)).unwrap().records.len()
    };
    fetch(&engine, FetchLimit::messages(5));
    assert_eq!(files.last_read_on(), None, "what was just written is in memory");
    engine.close().unwrap();
    let engine = open(&files);
    for limit in [FetchLimit::messages(5), FetchLimit { max_messages: 20, max_bytes: 700 }] {
        let count = fetch(&engine, limit);
        assert!((1..20).contains(&count));
        let (path, offset) = place(applied[count].positions[0].get());
        let (read, end) = files.last_read_on().expect("it is read ahead");
        // Between two records lies the second one's frame header.
        assert!(read == path && end <= offset && offset - end <= 72, "{read} {end}, {path} {offset}");
    }
}

#[test]
fn without_its_checkpoint_a_store_is_read_from_its_log() {
    let files = MemoryFiles::new();
    let engine = open(&files);
    append_many(&engine, &orders(), 0..50);
    engine.close().unwrap();
    let missing = killed(&files);
    missing.remove("checkpoint").unwrap();
    assert_whole(&open(&missing), &orders(), 50);
    for offset in 0..content(&files, "checkpoint").len() as u64 {
        let damaged = killed(&files);
        flip(&damaged, "checkpoint", offset);
        assert_whole(&open(&damaged), &orders(), 50);
    }
}

#[test]
fn a_forged_record_in_a_body_is_not_found() {
    let files = MemoryFiles::new();
    let engine = open(&files);
    let first = append(&engine, &orders(), 0).unwrap();
    // A copy of the first record's bytes, with the position at which it will lie made right.
    let log = content(&files, &first_segment());
    let real = usize::try_from(first.positions[0].get()).unwrap();
    let mut forged = log[real..usize::try_from(first.mark.0).unwrap()].to_vec();
    let len = u32::from_le_bytes(forged[4..8].try_into().unwrap());
    forged.truncate(len as usize);
    let position = first.mark.0 + 64 + 64 + "orders".len() as u64;
    forged[16..24].copy_from_slice(&position.to_le_bytes());
    let crc = crc32c::crc32c(&forged[4..]);
    forged[..4].copy_from_slice(&crc.to_le_bytes());
    let mut batch = WriteBatch::new(Timestamp::from_millis(0));
    batch.append(&orders(), Record::new(forged.clone(), Timestamp::from_millis(0)));
    engine.apply(batch).unwrap();
    let at = usize::try_from(position).unwrap();
    assert_eq!(content(&files, &first_segment())[at..at + forged.len()], forged, "the forgery lies where it says");
    assert_eq!(engine.record_at(cuemq_storage_api::LogPosition::new(position)).unwrap(), None);
}
