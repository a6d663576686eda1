//! Opening: what is refused, and what it leaves untouched.

use super::*;
use cuemq_storage_api::ErrorKind;

fn stored(records: u64) -> MemoryFiles {
    let files = MemoryFiles::new();
    let engine = open(&files);
    append_many(&engine, &orders(), 0..records);
    engine.close().unwrap();
    files
}

fn crc_of_manifest(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(&bytes[..bytes.len() - 4]).to_le_bytes()
}

#[test]
fn a_second_opening_is_locked_out_and_told_by_whom() {
    let home = tempfile::tempdir().unwrap();
    let engine = MmapEngine::open(home.path(), settings()).unwrap();
    let refused = MmapEngine::open(home.path(), settings()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Locked);
    let text = refused.to_string();
    assert!(text.contains(home.path().to_str().unwrap()), "{text}");
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    drop(engine);
    MmapEngine::open(home.path(), settings()).unwrap();
}

#[test]
fn another_format_is_refused_untouched() {
    for major in [0u16, 1, 999] {
        let files = stored(5);
        let mut manifest = content(&files, "MANIFEST");
        manifest[8..10].copy_from_slice(&major.to_le_bytes());
        let crc = crc_of_manifest(&manifest);
        let at = manifest.len() - 4;
        manifest[at..].copy_from_slice(&crc);
        overwrite(&files, "MANIFEST", 0, &manifest);
        let before = tree(&files, "");
        let refused = try_open(&files).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Version, "{refused}");
        assert!(refused.context().contains(&format!("{major}.0")) && refused.context().contains("2.0"), "{refused}");
        assert_eq!(tree(&files, ""), before);
    }
}

#[test]
fn a_foreign_directory_is_refused_untouched() {
    let files = MemoryFiles::new();
    files.open("notes.txt", OpenMode::Create).unwrap().write_at(0, &[b"mine"]).unwrap();
    let refused = try_open(&files).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Version);
    assert!(refused.context().contains("notes.txt"), "{refused}");
    assert_eq!(tree(&files, ""), BTreeMap::from([("notes.txt".to_owned(), b"mine".to_vec())]));
}

#[test]
fn a_lost_manifest_is_refused() {
    let files = stored(5);
    files.remove("MANIFEST").unwrap();
    assert_eq!(try_open(&files).unwrap_err().kind(), ErrorKind::Version);
}

#[test]
fn a_damaged_manifest_is_refused() {
    let files = stored(5);
    for offset in 0..content(&files, "MANIFEST").len() as u64 {
        let files = killed(&files);
        flip(&files, "MANIFEST", offset);
        let refused = try_open(&files).unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::Corrupt | ErrorKind::Version), "byte {offset}: {refused}");
    }
}

#[test]
fn settings_that_shape_files_stay() {
    let files = stored(5);
    for (field, other) in [
        ("segment_bytes", MmapSettings { segment_bytes: 2 * SEGMENT_BYTES, ..settings() }),
        ("consume_queue_entries", MmapSettings { consume_queue_entries: 11, ..settings() }),
        ("index_slots", MmapSettings { index_slots: 17, ..settings() }),
        ("index_entries", MmapSettings { index_entries: 65, ..settings() }),
    ] {
        let refused = MmapEngine::open_with(Arc::new(files.clone()), other).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        assert!(refused.context().contains(field), "{refused}");
    }
    assert_whole(&open(&files), &orders(), 5);
}

#[test]
fn a_clean_opening_costs_the_same_however_long_the_log() {
    let calls_of_reopening = |records| {
        let files = stored(records);
        let before = files.calls();
        let engine = open(&files);
        let calls = files.calls() - before;
        assert_whole(&engine, &orders(), records);
        calls
    };
    // Both logs are one segment, and both queues end in their first file.
    assert_eq!(calls_of_reopening(1), calls_of_reopening(9));
    let (short, long) = (calls_of_reopening(20), calls_of_reopening(400));
    let (segments, queue_files) = (400 * 300 / SEGMENT_BYTES + 2, 40);
    assert!(long < short + 3 * (segments + queue_files), "{short} calls, then {long}: only per file, not per record");
}
